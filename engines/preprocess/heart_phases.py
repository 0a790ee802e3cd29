"""When the left ventricle is fullest and emptiest, and which slices fill and empty with it.

Called by ``preprocess.cmr``. Letters: S slice, P phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.cavity import Cavity

SMOOTHING = 0.04
"""Standard deviation of the smoothing over the heart beat, as a part of it: one phase of 25, or 40 ms of a second."""


EMPTIED_MIN = 0.03
"""Smallest part of the cavity's area that a ventricle loses: an ejection fraction of 5 % loses about as much."""

SYSTOLE_PART = (0.12, 0.7)
"""End-diastole to end-systole over the heart beat: slow hearts have the shortest, fast ones the longest systole."""

LIKENESS_MIN = 0.5
"""Smallest correlation of a slice's area curve with that of the middle of the ventricle."""

WIDEST_MAX = 1.6
"""Largest cavity of a slice over the usual one in the middle; a hemisphere's base over its middle is 1.33."""


@dataclass(frozen=True, kw_only=True)
class HeartPhases:
    """Indices of end-diastole and end-systole, and the cavity's area summed over slices at every phase, mm2."""

    end_diastole: int
    end_systole: int
    area_mm2: NDArray[np.float64]


def find_phases(area_mm2_SP: NDArray[np.float64]) -> HeartPhases:
    """End-diastole at the largest, end-systole at the smallest cavity of the whole ventricle.

    Raises:
        InputRefused: the areas are not those of a ventricle that fills and empties.

    Source:
        Schulz-Menger et al. 2020, J Cardiovasc Magn Reson 22:19: largest and smallest blood volume of the stack.
    """
    area_mm2 = slow_part(area_mm2_SP.sum(axis=0))
    phases = HeartPhases(
        end_diastole=int(area_mm2.argmax()), end_systole=int(area_mm2.argmin()), area_mm2=np.asarray(area_mm2)
    )
    _check_beat(phases)
    return phases


def _check_beat(phases: HeartPhases) -> None:
    area_mm2 = phases.area_mm2
    emptied = float(np.ptp(area_mm2) / max(float(area_mm2.max()), np.finfo(np.float64).tiny))
    if emptied < EMPTIED_MIN:
        message = (
            f"The cavity that was found changes its area by {100 * emptied:.0f} % over the heart beat; "
            f"expected at least {100 * EMPTIED_MIN:.0f} %: no ventricle, or none that can be traced."
        )
        raise InputRefused(RefusalCode.HEART_NOT_FOUND, message)
    systole = (phases.end_systole - phases.end_diastole) % len(area_mm2) / len(area_mm2)
    if not SYSTOLE_PART[0] <= systole <= SYSTOLE_PART[1]:
        message = (
            f"The cavity that was found is smallest {100 * systole:.0f} % of a heart beat after it is largest; expected "
            f"{100 * SYSTOLE_PART[0]:.0f} to {100 * SYSTOLE_PART[1]:.0f} %: not the left ventricle, or no whole beat."
        )
        raise InputRefused(RefusalCode.HEART_NOT_FOUND, message)


def beating_alike(area_mm2_SP: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which slices fill and empty as the middle of the ventricle does and are no wider than its base, [S].

    Behind the valves the pool is the atrium or a great vessel, which fill while the ventricle empties, or the edge runs
    around several of them.
    """
    slow_SP = slow_part(area_mm2_SP)
    change_SP = slow_SP - slow_SP.mean(axis=1, keepdims=True)
    middle = _middle(len(area_mm2_SP))
    beat_P = np.median(change_SP[middle], axis=0)
    strength_S = np.linalg.norm(change_SP, axis=1) * np.linalg.norm(beat_P)
    likeness_S = change_SP @ beat_P / np.maximum(strength_S, np.finfo(np.float64).tiny)
    return np.asarray((likeness_S >= LIKENESS_MIN) & _narrow(area_mm2_SP))


def ventricle_slices(area_mm2_SP: NDArray[np.float64], cavities: Sequence[Cavity]) -> tuple[int, int]:
    """First (apex) and last (base) slice of the ventricle.

    Towards the base it ends where slices no longer beat alike. The apex may move through its slice in any way; there the
    ventricle ends where the grey value of the pool falls to that of wall.
    """
    alike, narrow = beating_alike(area_mm2_SP), _narrow(area_mm2_SP)
    first = last = len(cavities) // 2
    while last < len(cavities) - 1 and alike[last + 1]:
        last += 1
    while first > 0 and narrow[first - 1] and cavities[first - 1].blood > _half_way(cavities[first]):
        first -= 1
    return first, last


def _half_way(cavity: Cavity) -> float:
    return (cavity.wall + cavity.blood) / 2.0


def _narrow(area_mm2_SP: NDArray[np.float64]) -> NDArray[np.bool_]:
    widest_S = area_mm2_SP.max(axis=1)
    return np.asarray(widest_S <= WIDEST_MAX * np.median(widest_S[_middle(len(widest_S))]))


def _middle(count: int) -> slice:
    return slice(count // 4, count - count // 4)


def slow_part(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Curves over the heart beat without their noise, last axis; the beat has no seam."""
    spectrum = np.fft.rfft(curve, axis=-1)
    harmonics = np.arange(spectrum.shape[-1])
    kept = np.exp(-2.0 * (np.pi * SMOOTHING * harmonics) ** 2)
    return np.asarray(np.fft.irfft(spectrum * kept, curve.shape[-1], axis=-1))
