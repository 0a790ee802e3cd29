"""Values read off an embedding: the linear probe, the parts that all probes share, and the demographics-only baseline.

The MLP probe and full fine-tuning are in ``neural_probes``. Inputs and targets are standardised with the training part;
a target that was not measured and a label that is not known count in no loss; every hyper-parameter is chosen on the
validation part; the test part is answered once. Called by the study.

Letters: N rows, E width of the embedding, T targets, D conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.ecg_cmr.evaluation import Answers, Cohort

FloatArray = NDArray[np.float64]
ALPHAS = tuple(float(value) for value in 10.0 ** np.arange(-1, 6))
"""Weights of the ridge penalty, on standardised inputs and targets."""
INVERSE_STRENGTHS = tuple(float(value) for value in 10.0 ** np.arange(-4, 3))
"""C of the logistic regression, on standardised inputs."""
MOST_ITERATIONS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Training, validation or test rows.

    Args:
        inputs: [N, ...]: embeddings [N, E], or ECGs [N, 12, samples] for fine-tuning.
        cohort: of the same rows.
    """

    inputs: NDArray[np.floating]
    cohort: Cohort

    def __post_init__(self) -> None:
        """Refuse inputs that are not of the cohort's rows."""
        if len(self.inputs) != len(self.cohort.keys):
            raise ValueError(f"{len(self.inputs)} inputs for {len(self.cohort.keys)} rows; expected one a row")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Who is learnt from, who chooses and who is asked; no patient is in two of them."""

    train: Part
    validation: Part
    test: Part

    def __post_init__(self) -> None:
        """Refuse a patient in two parts, and parts with other columns."""
        train, validation, test = (part.cohort for part in (self.train, self.validation, self.test))
        shared = _shared(train, validation) | _shared(train, test) | _shared(validation, test)
        if shared:
            raise ValueError(f"{len(shared)} patients are in two parts; split by patient")
        if any((part.targets, part.conditions) != (train.targets, train.conditions) for part in (validation, test)):
            raise ValueError("the parts have other targets or conditions; expected the same columns in each")


def _shared(first: Cohort, second: Cohort) -> set[str]:
    return set(first.patients) & set(second.patients)


@dataclass(frozen=True, kw_only=True, eq=False)
class Probed:
    """Answers of the test part, and what the validation part chose, in words."""

    answers: Answers
    chosen: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """Centre and spread of columns, over the rows that have them; a constant column has spread 1."""

    centre: FloatArray
    spread: FloatArray

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Scale:
        """Return the scale of columns [N, C]; NaN is left out.

        Raises:
            ValueError: a column has no value at all.
        """
        columns = np.asarray(values, np.float64)
        empty = int(np.isnan(columns).all(axis=0).sum())
        if empty:
            raise ValueError(f"{empty} columns have no value in the training part; leave these targets out")
        spread = np.nanstd(columns, axis=0)
        return cls(centre=np.nanmean(columns, axis=0), spread=np.where(spread > 0, spread, 1.0))

    def to(self, values: NDArray[np.floating]) -> FloatArray:
        """Return values in units of the spread from the centre."""
        return np.asarray((np.asarray(values, np.float64) - self.centre) / self.spread)

    def back(self, scaled: FloatArray) -> FloatArray:
        """Undo ``to``."""
        return np.asarray(scaled * self.spread + self.centre)


def linear_probe(
    parts: Parts,
    *,
    alphas: Sequence[float] = ALPHAS,
    inverse_strengths: Sequence[float] = INVERSE_STRENGTHS,
) -> Probed:
    """Return ridge regressions of the targets and logistic regressions of the conditions, each with its own penalty.

    Raises:
        ValueError: a target has no value, or a condition one class only, among the rows that are learnt from or chosen on.
    """
    scale = Scale.of(parts.train.inputs)
    inputs = [scale.to(part.inputs) for part in (parts.train, parts.validation, parts.test)]
    train, validation = parts.train.cohort, parts.validation.cohort
    answered = [
        *(
            _ridge(name, inputs, train.truth_NT[:, at], validation.truth_NT[:, at], alphas)
            for at, name in enumerate(train.targets)
        ),
        *(
            _logistic(name, inputs, train.label_ND[:, at], validation.label_ND[:, at], inverse_strengths)
            for at, name in enumerate(train.conditions)
        ),
    ]
    columns = np.array([values for values, _ in answered]).reshape(len(answered), len(parts.test.inputs)).T
    count = len(train.targets)
    return Probed(
        answers=Answers(cohort=parts.test.cohort, given_NT=columns[:, :count], probability_ND=columns[:, count:]),
        chosen=tuple(words for _, words in answered),
    )


_Fitted = tuple[FloatArray, str]


def _ridge(
    name: str, inputs: Sequence[FloatArray], train_N: FloatArray, validation_N: FloatArray, alphas: Sequence[float]
) -> _Fitted:
    from sklearn.linear_model import Ridge

    known, chooses = np.isfinite(train_N), np.isfinite(validation_N)
    if min(known.sum(), chooses.sum()) < 2:
        raise ValueError(f"{name} is known of {known.sum()} training and {chooses.sum()} validation rows; leave it out")
    scale = Scale.of(train_N[known, None])
    target, wanted = scale.to(train_N[known, None])[:, 0], scale.to(validation_N[chooses, None])[:, 0]

    def fitted(alpha: float) -> tuple[float, Ridge]:
        model = Ridge(alpha=alpha).fit(inputs[0][known], target)
        return float(np.mean((model.predict(inputs[1][chooses]) - wanted) ** 2)), model

    model, words = _best(name, "alpha", alphas, fitted)
    return scale.back(model.predict(inputs[2])[:, None])[:, 0], words


def _logistic(
    name: str, inputs: Sequence[FloatArray], train_N: FloatArray, validation_N: FloatArray, strengths: Sequence[float]
) -> _Fitted:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    known, chooses = np.isfinite(train_N), np.isfinite(validation_N)
    if len(np.unique(train_N[known])) < 2 or not chooses.any():
        raise ValueError(f"{name}: one class only in training, or nobody to choose on; leave it out or add patients")

    def fitted(strength: float) -> tuple[float, LogisticRegression]:
        model = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(inputs[0][known], train_N[known])
        return float(
            log_loss(validation_N[chooses], model.predict_proba(inputs[1][chooses])[:, 1], labels=[0, 1])
        ), model

    model, words = _best(name, "C", strengths, fitted)
    return model.predict_proba(inputs[2])[:, 1], words


def _best(
    name: str, symbol: str, values: Sequence[float], fitted: Callable[[float], tuple[float, Any]]
) -> tuple[Any, str]:
    """The model with the lowest loss on the validation part, the first of equals; a choice at the edge is said."""
    tried = [(*fitted(value), value) for value in values]
    _, model, value = min(tried, key=lambda each: each[0])
    edge = len(values) > 1 and value in (min(values), max(values))
    return model, f"{name}: {symbol} {value:g}{' (the end of the grid)' if edge else ''}"


def demographics_only(part: Cohort) -> Part:
    """Return the rows with the demographic columns as inputs: the baseline without an ECG.

    Raises:
        ValueError: there is no column, or a row lacks one; nothing is filled in.
    """
    if not part.demographics:
        raise ValueError("the cohort states no demographic column; the baseline needs at least age and sex")
    missing = np.isnan(part.demographics_NG).sum(axis=0)
    if missing.any():
        lacking = ", ".join(f"{name}: {count}" for name, count in zip(part.demographics, missing, strict=True) if count)
        raise ValueError(f"rows without demographics ({lacking}); leave these rows out of every model alike")
    return Part(inputs=part.demographics_NG, cohort=part)


def with_demographics(part: Part) -> Part:
    """Return the rows with embedding and demographic columns side by side.

    Raises:
        ValueError: as ``demographics_only``, or the inputs are no embeddings.
    """
    if part.inputs.ndim != 2:
        raise ValueError(f"inputs have shape {part.inputs.shape}; expected embeddings [N, E]")
    return Part(inputs=np.concatenate([part.inputs, demographics_only(part.cohort).inputs], axis=1), cohort=part.cohort)


def each_part(parts: Parts, change: Callable[[Part], Part]) -> Parts:
    """Return the parts with one change made to all three."""
    return Parts(train=change(parts.train), validation=change(parts.validation), test=change(parts.test))
