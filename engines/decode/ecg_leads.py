"""Names, units and laws of the twelve leads, for every ECG format.

Leads are known by name, never by position: carts and archives write them in many orders and spellings. Limb leads that were
not recorded follow from I and II; nothing else is ever computed. Called by ``ecg`` and the readers of ECG files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputRefused, RefusalCode
from engines.records import LEAD_NAMES

Signal = NDArray[np.float64]
INDEPENDENT_LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
MINUS_AVR = "-aVR"
"""The Cabrera format's lead, which is negated when read."""
LARGEST_MV = 1e6

_OF_NAME = {lead.upper(): lead for lead in LEAD_NAMES} | {MINUS_AVR.upper(): MINUS_AVR}
_NAME = re.compile(r"^(?:LEAD\s+)?([-\u2212]?AV[RLF]|V[1-6]|III|II|I)(?:$|[\s,(])")
_MILLIVOLT_PER_UNIT = {
    "UV": 1e-3,
    "MICROVOLT": 1e-3,
    "MICROVOLTS": 1e-3,
    "MV": 1.0,
    "MILLIVOLT": 1.0,
    "MILLIVOLTS": 1.0,
}
_MILLIVOLT_PER_UNIT |= {"V": 1e3, "VOLT": 1e3, "VOLTS": 1e3, "NV": 1e-6}


def lead_named(text: str) -> str | None:
    """The lead that a text names (``I``, ``Lead aVR``, ``II (Einthoven)``), ``-aVR`` under its own name, or None."""
    match = _NAME.match(text.rstrip("\0").strip().upper())
    return _OF_NAME.get(match.group(1).replace("\u2212", "-")) if match else None


def millivolt_per(unit: str | None) -> float:
    """Millivolts in one unit, upper or lower case: no cart measures in megavolt.

    Raises:
        InputRefused: UNIT_UNKNOWN.
    """
    found = (unit or "").strip().replace("\u00b5", "u").replace("\u03bc", "u")
    if found.upper() not in _MILLIVOLT_PER_UNIT:
        raise InputRefused(
            RefusalCode.UNIT_UNKNOWN, f"the unit of the amplitude is {found[:16]!r}; expected a voltage (uV, mV)"
        )
    return _MILLIVOLT_PER_UNIT[found.upper()]


def require_independent(leads: Iterable[str]) -> None:
    """Refuse where I, II or V1 to V6 were not recorded.

    Raises:
        InputRefused: NO_TWELVE_LEAD_GROUP where no lead at all was found, else LEADS_MISSING.
    """
    found = set(leads)
    missing = [lead for lead in INDEPENDENT_LEADS if lead not in found]
    if missing:
        code = RefusalCode.LEADS_MISSING if found else RefusalCode.NO_TWELVE_LEAD_GROUP
        raise InputRefused(code, f"missing leads: {', '.join(missing)}; I, II and V1 to V6 are expected together")


def twelve_leads(signals: Mapping[str, Signal]) -> tuple[Signal, frozenset[str]]:
    """Twelve rows of equal length; limb leads that were not recorded follow from I and II (Einthoven, Goldberger).

    Args:
        signals: float64 [N] by lead, any unit; ``-aVR`` may stand for aVR.

    Returns:
        float64 [12, N] in the order of ``LEAD_NAMES``, and the leads that were computed.

    Raises:
        InputRefused: a lead is missing or the leads differ in length.
    """
    require_independent(signals)
    recorded = dict(signals)
    if MINUS_AVR in recorded:
        recorded.setdefault("aVR", -recorded.pop(MINUS_AVR))
    lengths = {lead: len(recorded[lead]) for lead in LEAD_NAMES if lead in recorded}
    if len(set(lengths.values())) > 1:
        shortest = min(lengths, key=lengths.__getitem__)
        raise InputRefused(
            RefusalCode.PIXEL_DATA_INCONSISTENT,
            f"lead {shortest} has {lengths[shortest]} samples where another has {max(lengths.values())}; "
            "twelve leads of one length are expected; export the record again",
        )
    one, two = recorded["I"], recorded["II"]
    computed = {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    rows = [recorded[lead] if lead in recorded else computed[lead] for lead in LEAD_NAMES]
    return np.stack(rows), frozenset(lead for lead in LEAD_NAMES if lead not in recorded)


def require_plausible(signal_mv: Signal) -> None:
    """Refuse amplitudes that no body has and float32 might not hold.

    Raises:
        InputRefused: UNDECODABLE.
    """
    if np.isinf(signal_mv).any() or np.abs(signal_mv[~np.isnan(signal_mv)]).max(initial=0.0) > LARGEST_MV:
        raise InputRefused(
            RefusalCode.UNDECODABLE,
            f"a lead exceeds {LARGEST_MV:g} mV: its sensitivity or baseline is wrong; send the study again from its source",
        )


def lead_warnings(derived: Iterable[str], lowpass_hz: float | None) -> tuple[str, ...]:
    """What the reader of the report has to know about how the leads were recorded."""
    warnings = []
    computed = sorted(derived)
    if computed:
        warnings.append(f"Leads {', '.join(computed)} were not recorded; they were computed from I and II.")
    if lowpass_hz is not None and lowpass_hz < 100:
        warnings.append(f"The cart filtered above {lowpass_hz:g} Hz, which lowers amplitudes.")
    return tuple(warnings)
