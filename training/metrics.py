"""Numbers that say how well a model does, each with an interval.

Pure numpy and scipy. Called by ``training.evaluate`` and the training loop; knows no model and no data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

FloatArray = NDArray[np.float64]
Metric = Callable[[FloatArray, FloatArray], float]

_WILSON_Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number and the 95 % interval it was measured with."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return the three numbers, rounded for a manifest."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def mean_absolute_error(truth: FloatArray, predicted: FloatArray) -> float:
    """Return the mean of |predicted - truth|, in the unit of both."""
    return float(np.mean(np.abs(predicted - truth)))


def root_mean_square_error(truth: FloatArray, predicted: FloatArray) -> float:
    """Return the root of the mean squared error, in the unit of both."""
    return float(np.sqrt(np.mean((predicted - truth) ** 2)))


def r_squared(truth: FloatArray, predicted: FloatArray) -> float:
    """Return the coefficient of determination; 0 is no better than the mean of ``truth``.

    Raises:
        ValueError: when ``truth`` is constant.
    """
    total = float(np.sum((truth - truth.mean()) ** 2))
    if total == 0.0:
        raise ValueError("R2 of a constant truth is undefined; expected at least two different values")
    return 1.0 - float(np.sum((predicted - truth) ** 2)) / total


def calibration_slope(truth: FloatArray, predicted: FloatArray) -> float:
    """Return the slope of predicted on truth: below 1 means shrinkage towards the mean."""
    centred = truth - truth.mean()
    return float(np.sum(centred * (predicted - predicted.mean())) / np.sum(centred**2))


def auroc(label: FloatArray, score: FloatArray) -> float:
    """Return the area under the ROC curve, ties counted half (Mann-Whitney).

    Args:
        label: 0 or 1, [N].
        score: higher means more likely 1, [N].

    Raises:
        ValueError: when only one class is present.
    """
    positives = int(np.sum(label == 1))
    negatives = len(label) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"AUROC needs both classes; found {positives} positives and {negatives} negatives")
    ranks = rankdata(score)
    return float((ranks[label == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def brier_score(label: FloatArray, probability: FloatArray) -> float:
    """Return the mean squared difference of probability and label, 0 (perfect) to 1."""
    return float(np.mean((probability - label) ** 2))


def wilson_interval(successes: int, trials: int) -> Measured:
    """Return a proportion with its 95 % Wilson score interval.

    Raises:
        ValueError: when ``trials`` is 0 or ``successes`` lies outside 0 to ``trials``.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927), 209-212.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is no proportion; expected 0 <= successes <= trials, trials > 0")
    z2 = _WILSON_Z_95**2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _WILSON_Z_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    low = 0.0 if successes == 0 else centre - half  # exactly, where rounding would leave 1e-17
    return Measured(value=share, low=low, high=1.0 if successes == trials else centre + half)


def patient_draws(patients: Sequence[str], *, draws: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows of each draw: as many patients as there are, with replacement, each with all videos."""
    _, group = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    starts = np.cumsum(counts) - counts
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = rng.integers(0, len(counts), len(counts))
        sizes = counts[chosen]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        found.append(order[np.repeat(starts[chosen], sizes) + within])
    return found


def bootstrap(
    metric: Metric, truth: FloatArray, predicted: FloatArray, *, draws: int = 1000, seed: int = 0
) -> Measured:
    """Return a metric with its 95 % percentile bootstrap interval over hearts.

    Draws for which the metric is undefined (one class only) are left out.

    Args:
        metric: of (truth, predicted).
        truth: one value per heart, [N].
        predicted: one value per heart, [N].
        draws: number of resamples.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    values = [_metric_of_draw(metric, truth, predicted, rng) for _ in range(draws)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Measured(value=metric(truth, predicted), low=float(low), high=float(high))


def _metric_of_draw(metric: Metric, truth: FloatArray, predicted: FloatArray, rng: np.random.Generator) -> float:
    chosen = rng.integers(0, len(truth), len(truth))
    try:
        return metric(truth[chosen], predicted[chosen])
    except ValueError:
        return math.nan
