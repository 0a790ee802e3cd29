"""Which heart serves which purpose: by heart, never by image; drawn once from the seed of the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.config import SplitConfig

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Row numbers of the hearts of each part; disjoint, together all hearts."""

    train: Indices
    validation: Indices
    calibration: Indices
    test: Indices


def split_hearts(hearts: int, config: SplitConfig, seed: int) -> Split:
    """Return a random partition of 0 to ``hearts`` - 1.

    Raises:
        ValueError: when a part would be empty.
    """
    order = np.random.default_rng([seed, hearts]).permutation(hearts)
    shares = np.cumsum([config.train, config.validation, config.calibration])
    parts = np.split(order, np.round(shares * hearts).astype(int))
    if min(len(part) for part in parts) == 0:
        raise ValueError(f"{hearts} hearts are too few for four parts; ask for more")
    train, validation, calibration, test = parts
    return Split(train=train, validation=validation, calibration=calibration, test=test)


BALANCED_PARTS = ("training", "validation", "test")


def balanced_split(
    keys: Sequence[str],
    lvef_percent: NDArray[np.float64],
    *,
    threshold_percent: float,
    sizes: tuple[int, int, int] = (275, 60, 60),
    seed: int,
) -> tuple[Indices, Indices, Indices]:
    """Return rows for training, validation and test, half of each part with LVEF at most at the threshold.

    A hash of seed and key gives every patient a home part and a rank; each part takes the patients of its home by rank.
    So neither the order of the input nor the other patients move anybody, except where a part lacks patients of a
    class and takes some that other parts do not need. Patients beyond the sizes are left out. Of an odd size the class
    above the threshold, which is commoner, gets one more.

    Args:
        keys: one key a patient.
        lvef_percent: [N], 0 to 100.
        threshold_percent: between the classes; a patient at the threshold is of the low class.
        sizes: patients of each part.
        seed: another seed is another split.

    Returns:
        Row numbers of the three parts, disjoint, each in an order that follows from the keys alone.

    Raises:
        ValueError: a key that is there twice, an LVEF that is no number, or too few patients of a class.
    """
    _check_patients(keys, lvef_percent, sizes)
    low = np.asarray(lvef_percent) <= threshold_percent
    needs = {True: [size // 2 for size in sizes], False: [size - size // 2 for size in sizes]}
    _check_counts(low, needs, threshold_percent)
    drawn = [_draw(key, sizes, seed) for key in keys]
    classes = [_parts(np.flatnonzero(low == is_low).tolist(), drawn, needs[is_low]) for is_low in (True, False)]
    parts = [sorted([*lows, *highs], key=lambda row: drawn[row][1]) for lows, highs in zip(*classes, strict=True)]
    train, validation, test = (np.array(rows, np.int64) for rows in parts)
    return train, validation, test


def _draw(key: str, sizes: Sequence[int], seed: int) -> tuple[int, bytes]:
    """Home part of a patient, drawn in proportion to the sizes, and rank."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") * sum(sizes) >> 64
    return int(np.searchsorted(np.cumsum(sizes), place, side="right")), digest[8:]


def _parts(rows: Sequence[int], drawn: Sequence[tuple[int, bytes]], needs: Sequence[int]) -> list[list[int]]:
    """Rows of one class for each part: those at home first, then those that no part takes, by rank."""
    ranked = sorted(rows, key=lambda row: drawn[row][1])
    parts = [[row for row in ranked if drawn[row][0] == part][:need] for part, need in enumerate(needs)]
    taken = {row for part in parts for row in part}
    spare = iter([row for row in ranked if row not in taken])
    return [[*part, *(next(spare) for _ in range(need - len(part)))] for part, need in zip(parts, needs, strict=True)]


def _check_patients(keys: Sequence[str], lvef_percent: NDArray[np.float64], sizes: Sequence[int]) -> None:
    if np.shape(lvef_percent) != (len(keys),) or not np.isfinite(lvef_percent).all():
        raise ValueError(f"LVEF has the shape {np.shape(lvef_percent)}; expected a number for each of {len(keys)} keys")
    if len(set(keys)) < len(keys):
        raise ValueError(f"{len(keys) - len(set(keys))} keys are there more than once; expected one row a patient")
    if len(sizes) != len(BALANCED_PARTS) or min(sizes) < 2:
        raise ValueError(f"sizes are {tuple(sizes)}; expected at least 2 patients for {', '.join(BALANCED_PARTS)}")


def _check_counts(low: NDArray[np.bool_], needs: dict[bool, list[int]], threshold_percent: float) -> None:
    missing = []
    for is_low, sign in ((True, "<="), (False, ">")):
        found, needed = int(np.sum(low == is_low)), sum(needs[is_low])
        if found < needed:
            missing.append(
                f"{found} patients with LVEF {sign} {threshold_percent:g} %, {needed} needed: {needed - found} missing"
            )
    if missing:
        raise ValueError(f"{'; '.join(missing)}; add patients or ask for smaller parts")
