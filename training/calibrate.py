"""From raw network outputs on held-out hearts to the numbers that make them honest.

Split conformal intervals and inductive Venn-Abers probabilities. Pure numpy and scipy; called by
``training.postprocess``. The statistics of the out-of-distribution gate are in ``engines.predictors.distance``,
which scores with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

FloatArray = NDArray[np.float64]


def conformal_half_width(absolute_residuals: FloatArray, coverage_percent: float) -> float:
    """Return the half width that holds the truth of a new heart with at least the asked probability.

    Args:
        absolute_residuals: |prediction - truth| of hearts the network never saw, [N].
        coverage_percent: above 0, below 100.

    Raises:
        ValueError: when there are too few hearts for the coverage.

    Source: Papadopoulos et al., ECML 2002: the ceil((N + 1) * coverage)-th smallest residual.
    """
    count = len(absolute_residuals)
    rank = math.ceil((count + 1) * coverage_percent / 100.0 - 1e-9)
    if not 1 <= rank <= count:
        raise ValueError(f"{count} hearts cannot hold {coverage_percent} % coverage; calibrate on more hearts")
    return float(np.sort(absolute_residuals)[rank - 1])


@dataclass(frozen=True, kw_only=True)
class VennAbersTable:
    """Probability that the label is 1, bracketed, on a grid of scores: three arrays [G], all non-decreasing."""

    scores: FloatArray
    low_probabilities: FloatArray
    high_probabilities: FloatArray


def venn_abers_table(scores: FloatArray, labels: FloatArray, *, grid_points: int = 129) -> VennAbersTable:
    """Return the inductive Venn-Abers probabilities on a grid over the calibration scores.

    For each grid score s the isotonic fit is made twice, with (s, 0) and with (s, 1) added. Where a class is missing
    among the calibration hearts the pair stays wide on that side: nothing is assumed of what was not seen.

    Args:
        scores: raw scores of calibration hearts, [N].
        labels: 0 or 1, [N].
        grid_points: at most this many distinct quantiles of the scores.

    Source: Vovk, Petej and Fedorova, NeurIPS 2015 (inductive Venn-Abers predictors).
    """
    grid = np.unique(np.quantile(scores, np.linspace(0.0, 1.0, grid_points)))
    pairs = [[_isotonic_at(score, assumed, scores, labels) for assumed in (0.0, 1.0)] for score in grid]
    low, high = np.array(pairs).T
    # Exact fits are monotone; accumulate only removes rounding of the solver.
    return VennAbersTable(
        scores=grid, low_probabilities=np.maximum.accumulate(low), high_probabilities=np.maximum.accumulate(high)
    )


def smoothed_venn_abers_table(
    scores: FloatArray, labels: FloatArray, *, resamples: int = 100, grid_points: int = 129
) -> VennAbersTable:
    """Return the mean of the Venn-Abers pairs over resamples of the hearts, on the grid of ``venn_abers_table``.

    An isotonic fit of a few hundred hearts has steps as wide as several of them, and a step at the threshold leaves all of
    them undecided. Hearts drawn again with replacement move the steps; the mean has none. The validity of a single pair,
    which is exact, becomes approximate.

    Args:
        scores: raw scores of calibration hearts, [N].
        labels: 0 or 1, [N].
        resamples: how many; always the same ones.
        grid_points: at most this many distinct quantiles of the scores.

    Source: Breiman, "Bagging predictors", Machine Learning 24, 1996, of the pairs of Vovk et al., NeurIPS 2015.
    """
    grid = np.unique(np.quantile(scores, np.linspace(0.0, 1.0, grid_points)))
    rng = np.random.default_rng(0)
    rows = [rng.integers(len(scores), size=len(scores)) for _ in range(resamples)]
    pairs = np.array(
        [
            [[_isotonic_at(score, assumed, scores[drawn], labels[drawn]) for assumed in (0.0, 1.0)] for score in grid]
            for drawn in rows
        ]
    )  # [B, G, 2]
    low, high = pairs.mean(axis=0).T
    return VennAbersTable(
        scores=grid, low_probabilities=np.maximum.accumulate(low), high_probabilities=np.maximum.accumulate(high)
    )


def _isotonic_at(score: float, assumed_label: float, scores: FloatArray, labels: FloatArray) -> float:
    levels, inverse = np.unique(np.append(scores, score), return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, weights=np.append(labels, assumed_label)) / weights
    fit = isotonic_regression(means, weights=weights).x
    return float(np.clip(fit[np.searchsorted(levels, score)], 0.0, 1.0))
