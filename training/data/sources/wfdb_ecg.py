"""A WFDB record with twelve leads to an ``EcgRecord``, through the package wfdb: leads by name, amplitudes by stated unit.

Called by the readers of PTB-XL and MIMIC-IV-ECG, whose leads stand in different orders and spellings.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from engines.errors import InputRefused, RefusalCode
from engines.records import LEAD_NAMES, EcgRecord, SourceInstance

MOST_SAMPLES = 2_000_000
_SOURCE = SourceInstance(sop_class_uid="1.2", sop_instance_uid="2.25.9", series_instance_uid="2.25.10")
_LEAD_OF_NAME = {lead.upper(): lead for lead in LEAD_NAMES}
_MILLIVOLT = {"mv": 1.0, "uv": 1e-3, "v": 1e3}


def record_within(root: Path, name: str) -> Path:
    """Return where a record lies that a table names, without an ending.

    Raises:
        ValueError: the name leads out of the folder.
    """
    path = root / name
    if not name or "://" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError("a record of the table lies outside the folder; use the table of the release")
    return path


def read_wfdb(path: Path) -> EcgRecord:
    """Read a record.

    Args:
        path: of header and signal file, without their endings.

    Raises:
        InputRefused: a file is missing or damaged, a lead is missing or there twice, or a unit is no voltage.
    """
    import wfdb

    try:
        header = wfdb.rdheader(str(path))
        _check_length(header.sig_len)
        record = wfdb.rdrecord(str(path))
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        message = f"the WFDB record is not readable ({type(error).__name__}); fetch header and signal again"
        raise InputRefused(RefusalCode.UNDECODABLE, message) from None
    places = _places(record.sig_name or [])
    scale = np.array([_millivolt(record.units[places[lead]]) for lead in LEAD_NAMES])
    signal = np.stack([record.p_signal[:, places[lead]] for lead in LEAD_NAMES]) * scale[:, None]
    rate_hz = float(record.fs)
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise InputRefused(RefusalCode.SAMPLING_RATE_UNSUPPORTED, f"the header states {rate_hz} Hz; fetch it again")
    return EcgRecord(signal_mv=signal.astype(np.float32), sampling_rate_hz=rate_hz, source=_SOURCE)


def _check_length(samples: int | None) -> None:
    if not samples or samples > MOST_SAMPLES:
        message = f"the header promises {samples} samples; expected 1 to {MOST_SAMPLES}"
        raise InputRefused(RefusalCode.LIMITS_EXCEEDED, message)


def _places(names: list[str]) -> dict[str, int]:
    """Column of each lead."""
    found = [_LEAD_OF_NAME.get(name.strip().upper()) for name in names]
    missing = [lead for lead in LEAD_NAMES if lead not in found]
    if missing:
        message = f"missing leads: {', '.join(missing)}; twelve leads recorded together are expected"
        raise InputRefused(RefusalCode.LEADS_MISSING, message)
    if any(found.count(lead) > 1 for lead in LEAD_NAMES):
        raise InputRefused(RefusalCode.LEADS_INCONSISTENT, "a lead is in the record twice; expected each once")
    return {lead: found.index(lead) for lead in LEAD_NAMES}


def _millivolt(unit: str) -> float:
    if unit.strip().lower() not in _MILLIVOLT:
        message = f"a lead's unit is {unit[:16]!r}; expected mV, uV or V"
        raise InputRefused(RefusalCode.UNIT_UNKNOWN, message)
    return _MILLIVOLT[unit.strip().lower()]
