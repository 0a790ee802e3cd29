"""What a trained network says of videos, by a fixed protocol, and how right it is: each number with an interval over patients.

Two protocols: three fixed clips a video as published, or every clip that the video has room for; both average the answers.

Letters: N videos, E width of the embedding, K clips of a video, P pairs of videos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from training.metrics import (
    Measured,
    calibration_slope,
    mean_absolute_error,
    patient_draws,
    r_squared,
    root_mean_square_error,
)

FloatArray = NDArray[np.float64]
Clips = Literal["fixed", "all"]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How often patients are drawn for an interval; a draw for the order ranks all pairs, a hundred times the work."""

    errors: int = 10_000
    order: int = 1000


PUBLISHED_DRAWS = Draws()
"""10,000 as EchoNet-Dynamic and EchoCoTr draw for their errors."""

BINS = ("below 35", "35 to 50", "above 50")


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a network says of N videos.

    Args:
        keys: of the videos.
        patients: whose video it is; videos of one patient are drawn together.
        truth_percent: [N].
        ef_percent: [N], mean over the clips.
        clip_sd_percent: [N], standard deviation between the clips; 0 for one clip.
        embeddings_NE: mean over the clips.
    """

    keys: tuple[str, ...]
    patients: tuple[str, ...]
    truth_percent: FloatArray
    ef_percent: FloatArray
    clip_sd_percent: FloatArray
    embeddings_NE: FloatArray

    def __post_init__(self) -> None:
        """Refuse answers that no number can be made from."""
        count = len(self.keys)
        columns = (self.patients, self.truth_percent, self.ef_percent, self.clip_sd_percent, self.embeddings_NE)
        if count < 2 or any(len(column) != count for column in columns):
            lengths = [count, *(len(column) for column in columns)]
            raise ValueError(f"answers have the lengths {lengths}; expected the same, at least 2")
        if not all(np.isfinite(column).all() for column in columns[1:]):
            raise ValueError("answers hold a number that is not finite; expected a number for every video")


def measured(answers: Answers, draws: Draws = PUBLISHED_DRAWS, *, seed: int = 0) -> dict[str, Any]:
    """Return every number of the evaluation, each as value, low and high of its 95 % interval, ready for JSON."""
    truth, given = answers.truth_percent, answers.ef_percent
    rows = patient_draws(answers.patients, draws=draws.errors, seed=seed)
    metrics: dict[str, Callable[[FloatArray, FloatArray], float]] = {
        "mae": mean_absolute_error,
        "rmse": root_mean_square_error,
        "r2": r_squared,
        "slope": calibration_slope,
    }
    found: dict[str, Any] = {name: over_draws(metric, truth, given, rows).as_dict() for name, metric in metrics.items()}
    found["mae_by_bin"] = {name: _of_bin(answers, index, draws.errors, seed) for index, name in enumerate(BINS)}
    found["order"] = order_by_ef(answers, draws=draws.order, seed=seed).as_dict()
    found["clip_sd_median"] = float(np.median(answers.clip_sd_percent))
    return {"videos": len(truth), "patients": len(set(answers.patients)), **found}


def bin_of(ef_percent: FloatArray) -> NDArray[np.int64]:
    """Return the row in ``BINS`` of each ejection fraction; 35 and 50 lie in the middle."""
    values = np.asarray(ef_percent)
    return (values >= 35.0).astype(np.int64) + (values > 50.0)


def _of_bin(answers: Answers, index: int, draws: int, seed: int) -> dict[str, Any]:
    rows = np.flatnonzero(bin_of(answers.truth_percent) == index)
    if not len(rows):
        return {"videos": 0}
    patients = [answers.patients[row] for row in rows]
    drawn = patient_draws(patients, draws=draws, seed=seed)
    truth, given = answers.truth_percent[rows], answers.ef_percent[rows]
    return {"videos": len(rows), **over_draws(mean_absolute_error, truth, given, drawn).as_dict()}


def over_draws(
    metric: Callable[[FloatArray, FloatArray], float],
    truth: FloatArray,
    given: FloatArray,
    rows: Sequence[NDArray[np.int64]],
) -> Measured:
    """Return a metric with its 95 % percentile interval over draws; a draw of one value only says nothing."""
    values = [metric(truth[each], given[each]) for each in rows if np.ptp(truth[each]) > 0 or metric in _OF_ERRORS]
    low, high = np.percentile(values, [2.5, 97.5]) if values else (math.nan, math.nan)
    return Measured(value=metric(truth, given), low=float(low), high=float(high))


_OF_ERRORS = (mean_absolute_error, root_mean_square_error)


def difference(
    metric: Callable[[FloatArray, FloatArray], float],
    ours: Answers,
    theirs: Answers,
    *,
    draws: int = PUBLISHED_DRAWS.errors,
) -> Measured:
    """Return metric of ours less metric of theirs, on the same draws of the same patients.

    Raises:
        ValueError: the answers are of other videos.
    """
    _require_same(ours, theirs)
    truth, rows = ours.truth_percent, patient_draws(ours.patients, draws=draws, seed=0)
    values = [
        metric(truth[each], ours.ef_percent[each]) - metric(truth[each], theirs.ef_percent[each]) for each in rows
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    value = metric(truth, ours.ef_percent) - metric(truth, theirs.ef_percent)
    return Measured(value=value, low=float(low), high=float(high))


def order_by_ef(answers: Answers, *, draws: int = PUBLISHED_DRAWS.order, seed: int = 0) -> Measured:
    """Return the rank correlation of embedding distance and distance in ejection fraction, over all pairs of videos.

    Two videos of one patient are no pair, so a patient who is drawn twice does not bring pairs of distance 0.
    """
    pairs = _Pairs.of(answers)
    values = [pairs.correlation(rows) for rows in patient_draws(answers.patients, draws=draws, seed=seed)]
    finite = [value for value in values if math.isfinite(value)]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite else (math.nan, math.nan)
    return Measured(value=pairs.correlation(np.arange(len(answers.keys))), low=float(low), high=float(high))


def order_difference(ours: Answers, theirs: Answers, *, draws: int = PUBLISHED_DRAWS.order, seed: int = 0) -> Measured:
    """Return the rank correlation of ours less that of theirs, on the same draws of the same patients."""
    _require_same(ours, theirs)
    first, second = _Pairs.of(ours), _Pairs.of(theirs)
    whole = np.arange(len(ours.keys))
    rows = patient_draws(ours.patients, draws=draws, seed=seed)
    values = [first.correlation(each) - second.correlation(each) for each in rows]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    value = first.correlation(whole) - second.correlation(whole)
    return Measured(value=value, low=float(low), high=float(high))


def _require_same(ours: Answers, theirs: Answers) -> None:
    if ours.keys != theirs.keys:
        raise ValueError("the two answers are of other videos; expected the same ones in the same order")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pairs:
    """Distances of all pairs of videos, [N, N] each, and whether a pair is of two patients."""

    embedding_NN: FloatArray
    ef_NN: FloatArray
    apart_NN: NDArray[np.bool_]

    @classmethod
    def of(cls, answers: Answers) -> _Pairs:
        """Return the pairs of some answers."""
        patients = np.asarray(answers.patients)
        return cls(
            embedding_NN=squareform(pdist(answers.embeddings_NE)),
            ef_NN=squareform(pdist(answers.truth_percent[:, None])),
            apart_NN=patients[:, None] != patients[None, :],
        )

    def correlation(self, rows: NDArray[np.int64]) -> float:
        """Return Spearman's rank correlation over the pairs of these rows; NaN where one side is constant."""
        first, second = np.triu_indices(len(rows), k=1)
        one, other = rows[first], rows[second]
        apart = self.apart_NN[one, other]
        embedding, ef = self.embedding_NN[one, other][apart], self.ef_NN[one, other][apart]
        return _spearman(embedding, ef)


def _spearman(first: FloatArray, second: FloatArray) -> float:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(spearmanr(first, second).statistic)
