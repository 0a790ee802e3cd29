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
from scipy.special import expit

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


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHeads:
    """What reads values off inputs [N, E] as they are.

    Args:
        targets_ET, bias_T: to the targets, in their units.
        conditions_ED, bias_D: to the logits of the conditions.
        chosen: penalties that the validation part chose, in words.
    """

    targets_ET: FloatArray
    bias_T: FloatArray
    conditions_ED: FloatArray
    bias_D: FloatArray
    chosen: tuple[str, ...]

    def values(self, inputs_NE: NDArray[np.floating]) -> FloatArray:
        """Return the targets, [N, T]."""
        return np.asarray(np.asarray(inputs_NE, np.float64) @ self.targets_ET + self.bias_T)

    def logits(self, inputs_NE: NDArray[np.floating]) -> FloatArray:
        """Return the logits of the conditions, [N, D]."""
        return np.asarray(np.asarray(inputs_NE, np.float64) @ self.conditions_ED + self.bias_D)


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
    heads = linear_heads(parts.train, parts.validation, alphas=alphas, inverse_strengths=inverse_strengths)
    inputs = parts.test.inputs
    answers = Answers(
        cohort=parts.test.cohort, given_NT=heads.values(inputs), probability_ND=expit(heads.logits(inputs))
    )
    return Probed(answers=answers, chosen=heads.chosen)


def linear_heads(
    train: Part,
    validation: Part,
    *,
    alphas: Sequence[float] = ALPHAS,
    inverse_strengths: Sequence[float] = INVERSE_STRENGTHS,
) -> LinearHeads:
    """Return the heads of ``linear_probe``; the standardisation of inputs and targets is folded into them.

    Raises:
        ValueError: as ``linear_probe``.
    """
    scale = Scale.of(train.inputs)
    inputs = [scale.to(part.inputs) for part in (train, validation)]
    known, chooses = train.cohort, validation.cohort
    values = [
        _ridge(name, inputs, known.truth_NT[:, at], chooses.truth_NT[:, at], alphas)
        for at, name in enumerate(known.targets)
    ]
    logits = [
        _logistic(name, inputs, known.label_ND[:, at], chooses.label_ND[:, at], inverse_strengths)
        for at, name in enumerate(known.conditions)
    ]
    targets_ET, bias_T = _folded(values, scale)
    conditions_ED, bias_D = _folded(logits, scale)
    words = tuple(each.words for each in (*values, *logits))
    return LinearHeads(targets_ET=targets_ET, bias_T=bias_T, conditions_ED=conditions_ED, bias_D=bias_D, chosen=words)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Head:
    """One column, of scaled inputs."""

    weights_E: FloatArray
    bias: float
    words: str


def _folded(heads: Sequence[_Head], scale: Scale) -> tuple[FloatArray, FloatArray]:
    """Weights [E, C] and biases [C] of inputs as they are."""
    weights = np.array([each.weights_E for each in heads]).reshape(len(heads), scale.spread.size).T
    weights_EC = weights / scale.spread[:, None]
    return weights_EC, np.array([each.bias for each in heads]) - scale.centre @ weights_EC


def _ridge(
    name: str, inputs: Sequence[FloatArray], train_N: FloatArray, validation_N: FloatArray, alphas: Sequence[float]
) -> _Head:
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
    spread, centre = float(scale.spread[0]), float(scale.centre[0])
    return _Head(weights_E=model.coef_ * spread, bias=float(model.intercept_) * spread + centre, words=words)


def _logistic(
    name: str, inputs: Sequence[FloatArray], train_N: FloatArray, validation_N: FloatArray, strengths: Sequence[float]
) -> _Head:
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
    return _Head(weights_E=model.coef_[0], bias=float(model.intercept_[0]), words=words)


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
