"""Which heart serves which purpose: by heart, never by image; drawn once from the seed of the data."""

from __future__ import annotations

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
