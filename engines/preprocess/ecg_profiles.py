"""Named processing chains behind the gate: 500 Hz millivolts in, network input out.

``ecg_clean_2026`` is ours. ``ams2025`` and ``turgut2025`` follow the published descriptions of two ECG-CMR methods, with the
baseline of the latter solved as a banded system. A chain never changes under its name: a change is a new name. Called by
``ecg_clean``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from scipy import linalg, signal

from engines.preprocess.ecg_window import Signal, butterworth, highpassed
from engines.preprocess.spec import EcgCleanSpec

_GROUPS = (slice(0, 3), slice(3, 6), slice(6, 12))
ALS_LAMBDA, ALS_ASYMMETRY, ALS_ITERATIONS = 1e7, 0.3, 5


def apply_profile(window_mv: Signal, spec: EcgCleanSpec) -> Signal:
    """Run the chain that ``spec.profile`` names on float64 [12, N] at ``spec.sampling_rate_hz``."""
    return PROFILES[spec.profile](window_mv, spec)


def clean_2026(window_mv: Signal, spec: EcgCleanSpec) -> Signal:
    """Zero-phase high-pass and a fixed scale: amplitude carries information."""
    return highpassed(window_mv, spec) / spec.scale_mv


def ams_2025(window_mv: Signal, spec: EcgCleanSpec) -> Signal:
    """High-pass 0.5 Hz of order 4, notch 60 Hz of Q 40, both zero-phase; Savitzky-Golay 15, 3; z-score over all samples."""
    rate_hz = spec.sampling_rate_hz
    filtered = signal.sosfiltfilt(butterworth(4, 0.5, "highpass", rate_hz), window_mv, axis=1)
    filtered = signal.filtfilt(*signal.iirnotch(60.0, 40.0, fs=rate_hz), filtered, axis=1)
    filtered = signal.savgol_filter(filtered, 15, 3, axis=1)
    return np.asarray((filtered - filtered.mean()) / (filtered.std(ddof=1) + 1e-5))


def turgut_2025(window_mv: Signal, spec: EcgCleanSpec) -> Signal:  # noqa: ARG001 - the chain has no parameters of its own
    """Clip at 4 standard deviations, subtract the asymmetric-least-squares baseline, z-score by group of leads."""
    clipped = np.clip(window_mv, window_mv.mean() - 4 * window_mv.std(), window_mv.mean() + 4 * window_mv.std())
    flat = clipped - als_baseline(clipped)
    for group in _GROUPS:
        flat[group] = (flat[group] - flat[group].mean()) / (flat[group].std() + 1e-12)
    return flat


def als_baseline(signal_mv: Signal) -> Signal:
    """Asymmetric least squares: minimise ``sum w (y - z)^2 + lambda sum (second difference of z)^2``, five times.

    Weights are ``p`` above the baseline and ``1 - p`` below it. The system has five diagonals.

    Args:
        signal_mv: float64 [L, N].

    Returns:
        The baselines, float64 [L, N].
    """
    penalty = ALS_LAMBDA * second_difference_bands(signal_mv.shape[1])
    return np.stack([_als_of_one(lead, penalty) for lead in signal_mv])


def _als_of_one(lead_mv: Signal, penalty: Signal) -> Signal:
    weights, baseline = np.ones(len(lead_mv)), lead_mv
    for _ in range(ALS_ITERATIONS):
        bands = penalty.copy()
        bands[2] += weights
        baseline = linalg.solveh_banded(bands, weights * lead_mv, check_finite=False, overwrite_ab=True)
        weights = np.where(lead_mv > baseline, ALS_ASYMMETRY, 1 - ALS_ASYMMETRY)
    return np.asarray(baseline)


def second_difference_bands(samples: int) -> Signal:
    """Upper bands of ``D^T D`` for second differences D, [3, N]: distance two, one and the diagonal."""
    bands = np.zeros((3, samples))
    bands[0, 2:] = 1.0
    bands[1, 1:] = -4.0
    bands[1, [1, -1]] = -2.0
    bands[2] = 6.0
    bands[2, [0, -1]], bands[2, [1, -2]] = 1.0, 5.0
    return bands


PROFILES: Final[dict[str, Callable[[Signal, EcgCleanSpec], Signal]]] = {
    "ecg_clean_2026": clean_2026,
    "ams2025": ams_2025,
    "turgut2025": turgut_2025,
}
