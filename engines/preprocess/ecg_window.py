"""What all versions of the ECG preprocessing do alike: which ten seconds are taken, and how they are resampled and filtered.

Called by ``ecg`` and ``ecg_clean``, which bring the quality gate that a window has to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.spec import EcgSpec
from engines.records import EcgRecord

Signal = NDArray[np.float64]
_Passed = TypeVar("_Passed")


def first_clean_window(record: EcgRecord, spec: EcgSpec, gate: Callable[[Signal], _Passed]) -> tuple[int, _Passed]:
    """Return the start of the first window that passes a gate, and what the gate returns.

    Args:
        record: the ECG.
        spec: length of a window, and from where to where it moves.
        gate: takes float64 [12, N] at the native rate and raises ``InputRefused`` where the quality does not allow an answer.

    Raises:
        InputRefused: rate or length is out of bounds, or no window passes; the first reason found.
    """
    _check_rate(record.sampling_rate_hz, spec)
    first_refusal: InputRefused | None = None
    for start, window in _windows(record, spec):
        try:
            return start, gate(window)
        except InputRefused as refusal:
            first_refusal = first_refusal or refusal
    if first_refusal is not None:
        raise first_refusal
    seconds = record.signal_mv.shape[1] / record.sampling_rate_hz
    raise InputRefused(
        RefusalCode.RECORD_TOO_SHORT, f"The ECG lasts {seconds:.2f} s; expected at least {spec.window_min_s:g} s."
    )


def resampled(window_mv: Signal, from_hz: float, to_hz: float) -> Signal:
    """Polyphase FIR: never wraps around, never crosses leads."""
    ratio = Fraction(to_hz / from_hz).limit_denominator(1000)
    if ratio == 1:
        return window_mv
    return np.asarray(signal.resample_poly(window_mv, ratio.numerator, ratio.denominator, axis=1, padtype="line"))


def highpassed(window_mv: Signal, spec: EcgSpec) -> Signal:
    """Zero-phase Butterworth high-pass that settles over two seconds at either end."""
    sections = butterworth(spec.highpass_order, spec.highpass_hz, "highpass", spec.sampling_rate_hz)
    settle = min(2 * spec.sampling_rate_hz, window_mv.shape[1] - 1)
    return np.asarray(signal.sosfiltfilt(sections, window_mv, axis=1, padtype="odd", padlen=settle))


_Kind = Literal["highpass", "bandpass"]


def butterworth(order: int, edges_hz: float | tuple[float, float], kind: _Kind, rate_hz: float) -> Signal:
    """Second-order sections of a Butterworth filter, [sections, 6]; designed once, a copy each time."""
    return _designed(order, edges_hz, kind, rate_hz).copy()


@lru_cache(maxsize=64)
def _designed(order: int, edges_hz: float | tuple[float, float], kind: _Kind, rate_hz: float) -> Signal:
    return np.asarray(signal.butter(order, edges_hz, kind, fs=rate_hz, output="sos"))


def window_notes(start_s: float, missing: int, spec: EcgSpec) -> Iterator[str]:
    """What the reader must know about a window that does not begin with the record, or does not fill."""
    if start_s > 0:
        yield f"The first {start_s:g} s were skipped: signal quality."
    if missing > 0:
        yield f"The record ends {1000 * missing / spec.sampling_rate_hz:.0f} ms before the window; filled with 0 mV."


def _check_rate(rate_hz: float, spec: EcgSpec) -> None:
    if not spec.source_rate_min_hz <= rate_hz <= spec.source_rate_max_hz:
        raise InputRefused(
            RefusalCode.SAMPLING_RATE_UNSUPPORTED,
            f"The ECG is sampled at {rate_hz:g} Hz; expected {spec.source_rate_min_hz:g} to {spec.source_rate_max_hz:g} Hz.",
        )


def _windows(record: EcgRecord, spec: EcgSpec) -> Iterator[tuple[int, Signal]]:
    rate_hz, samples = record.sampling_rate_hz, record.signal_mv.shape[1]
    length = round(spec.window_samples / spec.sampling_rate_hz * rate_hz)
    if samples < int(spec.window_min_s * rate_hz):
        return
    for start in range(0, max(1, samples - length + 1), max(1, round(spec.window_step_s * rate_hz))):
        yield start, record.signal_mv[:, start : start + length].astype(np.float64)
