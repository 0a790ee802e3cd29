"""Beats of a twelve-lead ECG: where the R waves are, and what the average beat looks like.

Only as exact as the quality gate needs it: no delineation, no measurements for a report. Called by ``ecg_quality``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from engines.preprocess.ecg_window import Signal, butterworth

BEFORE_S, AFTER_S = 0.30, 0.45
QRS_S = (-0.06, 0.09)
P_S = (-0.24, -0.08)
_ENERGY_S, _REFRACTORY_S = 0.10, 0.25
_BAND_HZ = (5.0, 25.0)


@dataclass(frozen=True, kw_only=True)
class Beats:
    """R waves of a record.

    Args:
        r_samples: their positions.
        average_mv: float64 [12, N], the median of the beats from 0.30 s before to 0.45 s after R, less its level before P.
        sampling_rate_hz: of both.
    """

    r_samples: NDArray[np.int64]
    average_mv: Signal
    sampling_rate_hz: float

    @property
    def heart_rate_bpm(self) -> float:
        """From the median interval."""
        return float(60.0 * self.sampling_rate_hz / np.median(np.diff(self.r_samples)))

    def part(self, span_s: tuple[float, float]) -> Signal:
        """The average beat between two times relative to R, [12, n]."""
        start, stop = (round((BEFORE_S + each) * self.sampling_rate_hz) for each in span_s)
        return self.average_mv[:, start:stop]


def find_beats(signal_mv: Signal, rate_hz: float) -> Beats | None:
    """Find R waves by the energy of the slopes of all leads.

    Args:
        signal_mv: float64 [12, N] without baseline wander or NaN.
        rate_hz: its rate, at least 100.

    Returns:
        The beats, or None where fewer than three stand out.
    """
    band = signal.sosfiltfilt(butterworth(2, _BAND_HZ, "bandpass", rate_hz), signal_mv, axis=1)
    size = np.sqrt(np.mean(band**2, axis=0))
    energy = ndimage.uniform_filter1d(size, max(1, round(_ENERGY_S * rate_hz)))
    height = 0.4 * float(np.percentile(energy, 97))
    peaks, _ = signal.find_peaks(energy, height=height, distance=round(_REFRACTORY_S * rate_hz))
    refined = _sharpened(size, peaks, round(_ENERGY_S / 2 * rate_hz))
    before, after = round(BEFORE_S * rate_hz), round(AFTER_S * rate_hz)
    whole = refined[(refined >= before) & (refined + after <= signal_mv.shape[1])]
    if len(whole) < 3:
        return None
    stack = np.stack([signal_mv[:, at - before : at + after] for at in whole])
    stack -= np.median(stack[:, :, : max(1, round(0.05 * rate_hz))], axis=2, keepdims=True)
    return Beats(r_samples=refined, average_mv=np.median(stack, axis=0), sampling_rate_hz=rate_hz)


def _sharpened(size: Signal, peaks: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """The steepest sample around each peak of the smoothed energy."""
    starts = np.maximum(peaks - reach, 0)
    return np.array([start + int(size[start : start + 2 * reach + 1].argmax()) for start in starts], np.int64)
