"""Quality gate of a twelve-lead ECG: what is refused, what is masked, and what is only flagged.

Refused: leads off, clipped, inconsistent or not simultaneous. Flagged, never corrected: signs of swapped cables (a mirrored
heart looks the same), pacing, narrow filters, extreme rates. Cable swaps keep Einthoven's law; wrong scales and names break it.
Called by ``ecg_clean``; ``ecg`` takes its check of the rails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.ecg_beats import P_S, QRS_S, Beats, find_beats
from engines.preprocess.ecg_window import Signal, butterworth
from engines.preprocess.spec import EcgCleanSpec, EcgSpec
from engines.records import LEAD_NAMES, EcgRecord

CONSISTENCY_PERCENTILE = 98.0
PACE_S = 0.004
"""Widest spike of a pacemaker."""
_PACE_PERCENTILE, _PACE_APART_S = 98.0, 0.02
_QUARTER = 0.35
"""A lead recorded for less than this part of the time, and no longer elsewhere, is one of four columns of a printout."""
_PRECORDIAL = range(6, 12)
_P_MIN_MV = 0.03
_VISIBLE_MV = 0.2
_ROW = {lead: row for row, lead in enumerate(LEAD_NAMES)}


class EcgFlag(StrEnum):
    """A doubt that is told and does not stop the analysis."""

    LEAD_MASKED = "lead_masked"
    LEAD_DERIVED = "lead_derived"
    CABLE_SWAP_ARMS = "cable_swap_arms"
    CABLE_SWAP_RIGHT_ARM_LEG = "cable_swap_right_arm_leg"
    CABLE_SWAP_LEFT_ARM_LEG = "cable_swap_left_arm_leg"
    CABLE_SWAP_PRECORDIAL = "cable_swap_precordial"
    PACED = "paced"
    LOW_PASS = "low_pass"  # noqa: S105 - a filter
    HIGH_PASS = "high_pass"  # noqa: S105 - a filter
    HEART_RATE_EXTREME = "heart_rate_extreme"
    NO_BEATS = "no_beats"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One doubt: its code and a sentence for the reader."""

    code: EcgFlag
    sentence: str


@dataclass(frozen=True, kw_only=True)
class EcgQuality:
    """What the gate found in a window that it let pass.

    Args:
        lead_mask: bool [12], False where a lead was masked and holds zeros.
        derived_mask: bool [12], True where a limb lead was computed from I and II.
        flags: doubts.
    """

    lead_mask: NDArray[np.bool_]
    derived_mask: NDArray[np.bool_]
    flags: tuple[Flag, ...]


def gated(window_mv: Signal, record: EcgRecord, spec: EcgCleanSpec) -> tuple[Signal, EcgQuality]:
    """Pass a window through the gate.

    Args:
        window_mv: float64 [12, N] at the native rate, NaN where nothing was recorded.
        record: where it comes from: rate and filters.
        spec: the thresholds.

    Returns:
        The window with masked leads zero and lost limb leads computed, and its quality.

    Raises:
        InputRefused: LEAD_OFF, LEADS_NOT_SIMULTANEOUS, SATURATED or LEADS_INCONSISTENT, with the lead and the measured value.
    """
    rate_hz = record.sampling_rate_hz
    quiet = _quiet(window_mv, rate_hz, spec)
    _check_simultaneous(quiet)
    off = quiet.mean(axis=1) > spec.flat_fraction_max
    off |= np.isnan(window_mv).any(axis=1)
    _check_off(off, spec)
    window, derived = _restored(window_mv, off)
    check_rails(window[~off], rate_hz, spec, [lead for lead, gone in zip(LEAD_NAMES, off, strict=True) if not gone])
    _check_consistency(window, spec)
    mask = ~off | derived
    flags = (*_lead_flags(mask, derived), *_signal_flags(window, record, mask, spec))
    return window, EcgQuality(lead_mask=mask, derived_mask=derived, flags=flags)


def _quiet(window_mv: Signal, rate_hz: float, spec: EcgCleanSpec) -> NDArray[np.bool_]:
    """Whether each second of each lead is flat or missing, bool [12, seconds]."""
    second = max(2, round(rate_hz))
    pieces = window_mv[:, : window_mv.shape[1] // second * second].reshape(len(window_mv), -1, second)
    with np.errstate(invalid="ignore"):
        return np.asarray(~(pieces.std(axis=2) >= spec.flat_deviation_mv))


def _check_simultaneous(quiet: NDArray[np.bool_]) -> None:
    """Four columns of 2.5 s, one after the other, in one group."""
    live = ~quiet
    if live.any(axis=0).mean() > 1 - _QUARTER and live.any(axis=1).all() and live.mean(axis=1).max() < _QUARTER:
        raise InputRefused(
            RefusalCode.LEADS_NOT_SIMULTANEOUS,
            "each lead was recorded for a part of the time only, one group of leads after the other; "
            "twelve simultaneous leads of 10 s are expected",
        )


def _check_off(off: NDArray[np.bool_], spec: EcgCleanSpec) -> None:
    precordial = [LEAD_NAMES[row] for row in _PRECORDIAL if off[row]]
    limb = [lead for lead in ("I", "II") if off[_ROW[lead]]]
    if limb or len(precordial) > spec.masked_precordial_max:
        raise InputRefused(
            RefusalCode.LEAD_OFF,
            f"Leads {', '.join((*limb, *precordial))} are flat (below {1000 * spec.flat_deviation_mv:g} uV) or missing for too "
            f"long; I, II and all but {spec.masked_precordial_max} precordial leads are needed; check the electrodes.",
        )


def _restored(window_mv: Signal, off: NDArray[np.bool_]) -> tuple[Signal, NDArray[np.bool_]]:
    """Lost limb leads from I and II, lost precordial leads as zeros."""
    window = np.where(off[:, None], 0.0, window_mv)
    one, two = window[0], window[1]
    computed = {2: two - one, 3: -(one + two) / 2, 4: one - two / 2, 5: two - one / 2}
    derived = np.zeros(len(LEAD_NAMES), bool)
    for row, values in computed.items():
        if off[row]:
            window[row], derived[row] = values, True
    return window, derived


def check_rails(window_mv: Signal, rate_hz: float, spec: EcgSpec, leads: Sequence[str]) -> None:
    """Refuse amplitudes that no heart has, and stays at a lead's extreme value.

    Args:
        window_mv: float64 [L, N] at the native rate.
        rate_hz: native rate.
        spec: the thresholds.
        leads: names of the rows.

    Raises:
        InputRefused: SATURATED, with the worst lead and the measured value.
    """
    departure = np.abs(window_mv - np.median(window_mv, axis=1, keepdims=True)).max(axis=1)
    worst = int(departure.argmax())
    if departure[worst] > spec.amplitude_max_mv:
        raise InputRefused(
            RefusalCode.SATURATED,
            f"Lead {leads[worst]} departs {departure[worst]:.1f} mV from its median; at most {spec.amplitude_max_mv:g} mV.",
        )
    fractions = _plateau_fractions(window_mv, max(3, round(spec.saturated_run_ms / 1000.0 * rate_hz)))
    worst = int(fractions.argmax())
    if fractions[worst] > spec.saturated_fraction_max:
        raise InputRefused(
            RefusalCode.SATURATED,
            f"Lead {leads[worst]} is clipped in {100 * fractions[worst]:.2f} % of the window; "
            f"expected at most {100 * spec.saturated_fraction_max:g} %.",
        )


def _plateau_fractions(window_mv: Signal, run: int) -> Signal:
    """Part of each lead's samples in runs at its largest or smallest value, [leads]."""
    found = np.zeros(len(window_mv))
    for extreme in (window_mv.max(axis=1), window_mv.min(axis=1)):
        at = window_mv == extreme[:, None]
        for row in np.flatnonzero(at.sum(axis=1) >= run):
            edges = np.flatnonzero(np.diff(at[row].astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
            lengths = np.diff(edges, axis=1)
            found[row] = max(found[row], float(lengths[lengths >= run].sum()) / window_mv.shape[1])
    return found


def _check_consistency(window_mv: Signal, spec: EcgCleanSpec) -> None:
    """Einthoven's and Goldberger's laws, offsets of single leads apart."""
    one, two, three, avr, avl, avf = window_mv[:6]
    sums = np.stack([one + three - two, avr + avl + avf, avr + (one + two) / 2, avl - one + two / 2])
    names = ("I + III - II", "aVR + aVL + aVF", "aVR + (I + II) / 2", "aVL - I + II / 2")
    departures = np.percentile(np.abs(sums - sums.mean(axis=1, keepdims=True)), CONSISTENCY_PERCENTILE, axis=1)
    worst = int(departures.argmax())
    if departures[worst] > spec.consistency_max_mv:
        raise InputRefused(
            RefusalCode.LEADS_INCONSISTENT,
            f"{names[worst]} is {1000 * departures[worst]:.0f} uV where Einthoven's and Goldberger's laws say 0 "
            f"(limit {1000 * spec.consistency_max_mv:g} uV); the leads are mislabelled or wrongly scaled.",
        )


def _lead_flags(mask: NDArray[np.bool_], derived: NDArray[np.bool_]) -> Iterator[Flag]:
    masked = [lead for lead, kept in zip(LEAD_NAMES, mask, strict=True) if not kept]
    computed = [lead for lead, made in zip(LEAD_NAMES, derived, strict=True) if made]
    if masked:
        yield Flag(code=EcgFlag.LEAD_MASKED, sentence=f"Leads {', '.join(masked)} hold no signal and were left out.")
    if computed:
        yield Flag(
            code=EcgFlag.LEAD_DERIVED, sentence=f"Leads {', '.join(computed)} were lost and computed from I and II."
        )


def _signal_flags(window_mv: Signal, record: EcgRecord, mask: NDArray[np.bool_], spec: EcgCleanSpec) -> Iterator[Flag]:
    spikes = pacing_spikes(window_mv, record.sampling_rate_hz, spec)
    if spikes >= spec.pace_hits_min:
        yield Flag(code=EcgFlag.PACED, sentence=f"{spikes} narrow spikes: not validated in paced rhythm.")
    if record.lowpass_hz is not None and record.lowpass_hz < spec.lowpass_min_hz:
        text = f"The cart filtered above {record.lowpass_hz:g} Hz: QRS amplitudes are reduced."
        yield Flag(code=EcgFlag.LOW_PASS, sentence=text)
    if record.highpass_hz is not None and record.highpass_hz > spec.highpass_max_hz:
        text = f"The cart filtered below {record.highpass_hz:g} Hz: ST segments may be distorted."
        yield Flag(code=EcgFlag.HIGH_PASS, sentence=text)
    yield from _beat_flags(window_mv, record.sampling_rate_hz, mask, spec)


def pacing_spikes(window_mv: Signal, rate_hz: float, spec: EcgCleanSpec) -> int:
    """Moments at which a lead leaves and regains its level within 4 ms.

    The residue of a median filter of twice that width keeps a spike whole and an R wave hardly at all. It is held against the
    98th percentile of the same lead: the 99.9th would be the spikes themselves from the third on.
    """
    if rate_hz * PACE_S < 1:
        return 0  # a sample lasts longer than a spike: R waves would be taken for spikes
    width = 2 * max(1, round(PACE_S * rate_hz)) + 1
    residue = np.abs(window_mv - ndimage.median_filter(window_mv, size=(1, width), mode="nearest"))
    limit = np.maximum(spec.pace_prominence_mv, spec.pace_ratio * np.percentile(residue, _PACE_PERCENTILE, axis=1))
    moments = np.flatnonzero((residue > limit[:, None]).any(axis=0))
    return int(1 + (np.diff(moments) > _PACE_APART_S * rate_hz).sum()) if len(moments) else 0


def _beat_flags(window_mv: Signal, rate_hz: float, mask: NDArray[np.bool_], spec: EcgCleanSpec) -> Iterator[Flag]:
    level = signal.sosfiltfilt(butterworth(2, 0.67, "highpass", rate_hz), window_mv, axis=1)
    beats = find_beats(level, rate_hz)
    if beats is None:
        yield Flag(code=EcgFlag.NO_BEATS, sentence="Fewer than three beats stand out; cable swaps were not looked for.")
        return
    if not spec.heart_rate_min_bpm <= beats.heart_rate_bpm <= spec.heart_rate_max_bpm:
        text = f"The heart rate is {beats.heart_rate_bpm:.0f} bpm: outside what was validated."
        yield Flag(code=EcgFlag.HEART_RATE_EXTREME, sentence=text)
    for code, sign, found in _swaps(beats, mask, spec):
        if found:
            yield Flag(code=code, sentence=f"{sign}: electrodes may be swapped; check them and record again.")


def _swaps(beats: Beats, mask: NDArray[np.bool_], spec: EcgCleanSpec) -> Iterator[tuple[EcgFlag, str, bool]]:
    yield EcgFlag.CABLE_SWAP_ARMS, "Lead I is upside down against V6", bool(mask[11]) and _arms_swapped(beats, spec)
    yield EcgFlag.CABLE_SWAP_RIGHT_ARM_LEG, "Lead II is flat", _leg_on_arm(beats, spec)
    yield EcgFlag.CABLE_SWAP_LEFT_ARM_LEG, "P is larger in I than in II", _left_swapped(beats, spec)
    whole = bool(mask[6:9].all())
    yield EcgFlag.CABLE_SWAP_PRECORDIAL, "V1 resembles V3 more than V2 does", whole and _first_swapped(beats, spec)


def _arms_swapped(beats: Beats, spec: EcgCleanSpec) -> bool:
    """Lead I upside down against V6 and without an upright P (left and right arm)."""
    one, six = (beats.average_mv[_ROW[lead]] for lead in ("I", "V6"))
    upright = float(beats.part(P_S)[0].mean()) >= _P_MIN_MV
    return bool(float(np.corrcoef(one, six)[0, 1]) < spec.swap_correlation_max and not upright)


def _leg_on_arm(beats: Beats, spec: EcgCleanSpec) -> bool:
    """Lead II between two legs is flat while the precordial leads are not."""
    two, precordial = np.ptp(beats.average_mv[1]), np.median(np.ptp(beats.average_mv[6:], axis=1))
    return bool(precordial > _VISIBLE_MV and two < spec.swap_flat_fraction * precordial)


def _left_swapped(beats: Beats, spec: EcgCleanSpec) -> bool:
    """P larger in I than in II; only where there is a P."""
    p = beats.part(P_S)[:2]
    one, two = np.percentile(p, 95, axis=1) - np.percentile(p, 5, axis=1)
    return bool(one > 2 * _P_MIN_MV and one > spec.swap_p_ratio * two)


def _first_swapped(beats: Beats, spec: EcgCleanSpec) -> bool:
    """The way from V1 over V2 to V3 is longer than the way with the two exchanged."""
    first, second, third = beats.part(QRS_S)[6:9]
    common = float(np.linalg.norm(first - second))
    recorded, exchanged = (common + float(np.linalg.norm(each - third)) for each in (second, first))
    return exchanged < spec.swap_path_ratio * recorded
