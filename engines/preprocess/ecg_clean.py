"""Version 2 of the ECG preprocessing: the gate of ``ecg_quality``, then a named profile.

Called by ``registry.prepare``.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.ecg_profiles import apply_profile
from engines.preprocess.ecg_quality import EcgQuality, gated
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import EcgCleanSpec
from engines.records import EcgRecord

Signal = NDArray[np.float64]


def prepare_ecg_clean(record: EcgRecord, spec: EcgCleanSpec) -> Prepared:
    """First window that passes the gate, resampled, through the profile; masked leads are zeros.

    Returns:
        ``ecg`` float32 [1, 12, window_samples]; every flag is a note.

    Raises:
        InputRefused: rate or length is out of bounds, or no window passes; the first reason found.
    """
    start, window, quality = first_clean_window(record, spec)
    resampled = _resampled(window, record.sampling_rate_hz, spec.sampling_rate_hz)[:, : spec.window_samples]
    missing = spec.window_samples - resampled.shape[1]
    ecg = np.pad(apply_profile(resampled, spec), ((0, 0), (0, missing)))
    ecg[~quality.lead_mask] = 0.0
    flags = tuple(flag.sentence for flag in quality.flags)
    notes = (*record.warnings, *flags, *_notes(start / record.sampling_rate_hz, missing, spec))
    return Prepared(
        arrays={"ecg": ecg[None].astype(np.float32)},
        sources=(record.source,),
        region_px=None,
        notes=tuple(dict.fromkeys(notes)),
    )


def first_clean_window(record: EcgRecord, spec: EcgCleanSpec) -> tuple[int, Signal, EcgQuality]:
    """The first window that passes the gate, its start and its quality.

    Raises:
        InputRefused: as ``prepare_ecg_clean``.
    """
    _check_rate(record.sampling_rate_hz, spec)
    first_refusal: InputRefused | None = None
    for start, window in _windows(record, spec):
        try:
            return (start, *gated(window, record, spec))
        except InputRefused as refusal:
            first_refusal = first_refusal or refusal
    if first_refusal is not None:
        raise first_refusal
    seconds = record.signal_mv.shape[1] / record.sampling_rate_hz
    raise InputRefused(
        RefusalCode.RECORD_TOO_SHORT, f"The ECG lasts {seconds:.2f} s; expected at least {spec.window_min_s:g} s."
    )


def _check_rate(rate_hz: float, spec: EcgCleanSpec) -> None:
    if not spec.source_rate_min_hz <= rate_hz <= spec.source_rate_max_hz:
        raise InputRefused(
            RefusalCode.SAMPLING_RATE_UNSUPPORTED,
            f"The ECG is sampled at {rate_hz:g} Hz; expected {spec.source_rate_min_hz:g} to {spec.source_rate_max_hz:g} Hz.",
        )


def _windows(record: EcgRecord, spec: EcgCleanSpec) -> Iterator[tuple[int, Signal]]:
    rate_hz, samples = record.sampling_rate_hz, record.signal_mv.shape[1]
    length = round(spec.window_samples / spec.sampling_rate_hz * rate_hz)
    if samples < int(spec.window_min_s * rate_hz):
        return
    for start in range(0, max(1, samples - length + 1), max(1, round(spec.window_step_s * rate_hz))):
        yield start, record.signal_mv[:, start : start + length].astype(np.float64)


def _resampled(window_mv: Signal, from_hz: float, to_hz: float) -> Signal:
    """Polyphase FIR: never wraps around, never crosses leads."""
    ratio = Fraction(to_hz / from_hz).limit_denominator(1000)
    if ratio == 1:
        return window_mv
    return np.asarray(signal.resample_poly(window_mv, ratio.numerator, ratio.denominator, axis=1, padtype="line"))


def _notes(start_s: float, missing: int, spec: EcgCleanSpec) -> Iterator[str]:
    if start_s > 0:
        yield f"The first {start_s:g} s were skipped: signal quality."
    if missing > 0:
        yield f"The record ends {1000 * missing / spec.sampling_rate_hz:.0f} ms before the window; filled with 0 mV."
