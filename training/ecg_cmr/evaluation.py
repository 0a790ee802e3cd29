"""What was measured of a cohort, what a model says of it, and every number that follows, drawing by drawing of the patients.

``numbers`` is the one place where answers become metrics; ``training.ecg_cmr.measurements`` compares models with it.

Letters: N rows, T targets, D conditions, G demographic columns, E width of a projection, B drawings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.ecg_cmr.drawn_metrics import Drawn, classification, patient_weights, regression
from training.ecg_cmr.retrieval import retrieval

FloatArray = NDArray[np.float64]
DRAWS = 1000
AVERAGE = "average"
"""Name under which the mean R2 over all targets stands."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """What is known of N ECGs besides the ECG.

    Args:
        keys: of the ECGs.
        patients: whose they are; rows of one patient are drawn together.
        targets: names of the quantities, the list that an average is over.
        truth_NT: what was measured, in the unit of each target; NaN where it was not.
        conditions: names of the diseases.
        label_ND: 1 present, 0 absent, NaN unknown.
        demographics: names of the columns, such as age_years, male (0 or 1), height_cm, weight_kg.
        demographics_NG: NaN where not stated.
    """

    keys: tuple[str, ...]
    patients: tuple[str, ...]
    targets: tuple[str, ...]
    truth_NT: FloatArray
    conditions: tuple[str, ...]
    label_ND: FloatArray
    demographics: tuple[str, ...]
    demographics_NG: FloatArray

    def __post_init__(self) -> None:
        """Refuse what no number can be made from."""
        count = len(self.keys)
        _require(
            len(set(self.keys)) == count >= 2, f"{len(set(self.keys))} different keys of {count}, at least 2 expected"
        )
        _require(len(self.patients) == count, f"{len(self.patients)} patients of {count} rows; expected one a row")
        columns = (
            (self.targets, self.truth_NT),
            (self.conditions, self.label_ND),
            (self.demographics, self.demographics_NG),
        )
        for names, values in columns:
            expected = (count, len(names))
            _require(
                values.shape == expected, f"columns {list(names)[:3]} have shape {values.shape}; expected {expected}"
            )
            _require(not np.isinf(values).any(), f"columns {list(names)[:3]} hold an infinite number")
        labels = self.label_ND[np.isfinite(self.label_ND)]
        _require(bool(np.isin(labels, (0.0, 1.0)).all()), "a label is neither 0 nor 1; leave unknown ones NaN")

    def rows(self, chosen: NDArray[np.int64]) -> Cohort:
        """Return some rows."""
        taken: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        words = {name: tuple(taken[name][row] for row in chosen) for name in ("keys", "patients")}
        values = {name: taken[name][chosen] for name in ("truth_NT", "label_ND", "demographics_NG")}
        return Cohort(**(taken | words | values))


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a model says of a cohort.

    Args:
        cohort: who was asked about.
        given_NT: the model's values, in the unit of each target.
        probability_ND: of each condition, 0 to 1; a logit is none.
        ecg_projection_NE: where the ECG lies in the space shared with the images; None for a model without one.
        cmr_projection_NE: where the images of the same row lie.
    """

    cohort: Cohort
    given_NT: FloatArray
    probability_ND: FloatArray
    ecg_projection_NE: FloatArray | None = None
    cmr_projection_NE: FloatArray | None = None

    def __post_init__(self) -> None:
        """Refuse answers that are missing, or are logits."""
        cohort, given, probability = self.cohort, self.given_NT, self.probability_ND
        _require(given.shape == cohort.truth_NT.shape, f"values {given.shape}; expected {cohort.truth_NT.shape}")
        _require(probability.shape == cohort.label_ND.shape, f"probabilities {probability.shape}; expected one a label")
        _require(bool(np.isfinite(given).all()), "a value is not finite; expected a number for every row and target")
        within = np.isfinite(probability).all() and (probability >= 0).all() and (probability <= 1).all()
        _require(bool(within), "a probability lies outside 0 to 1; expected probabilities, not logits")
        self._check_projections()

    def _check_projections(self) -> None:
        both = (self.ecg_projection_NE, self.cmr_projection_NE)
        _require((both[0] is None) == (both[1] is None), "one projection without the other; expected both or none")
        if both[0] is not None and both[1] is not None:
            shapes = both[0].shape, both[1].shape
            _require(
                shapes[0] == shapes[1] and len(both[0]) == len(self.cohort.keys), f"projections {shapes}: one a row"
            )
            _require(bool(np.isfinite(both[0]).all() and np.isfinite(both[1]).all()), "a projection is not finite")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def present(probability: FloatArray, threshold: float = 0.5) -> NDArray[np.bool_]:
    """Return which probabilities say present: those above the threshold, not those above 0.

    Raises:
        ValueError: a value is no probability.
    """
    _require(bool(((probability >= 0) & (probability <= 1)).all()), "expected probabilities from 0 to 1, not logits")
    return np.asarray(probability > threshold)


def numbers(answers: Answers, weights_BN: FloatArray) -> dict[str, Drawn]:
    """Return every metric under every drawing: by target, by condition, ``average`` (R2 only) and ``retrieval`` if there is one.

    Args:
        answers: of one model with one seed.
        weights_BN: from ``patient_weights``; rows of weight 0 are left out, which is how a subgroup is measured.

    Raises:
        ValueError: a target has no two different values, so that no average over the stated list exists.
    """
    cohort = answers.cohort
    found = {
        name: regression(cohort.truth_NT[:, column], answers.given_NT[:, column], weights_BN)
        for column, name in enumerate(cohort.targets)
    }
    if found:
        found[AVERAGE] = {"r2": np.mean([each["r2"] for each in found.values()], axis=0)}
    for column, name in enumerate(cohort.conditions):
        found[name] = classification(cohort.label_ND[:, column], answers.probability_ND[:, column], weights_BN)
    if answers.ecg_projection_NE is not None and answers.cmr_projection_NE is not None:
        found["retrieval"] = retrieval(
            answers.ecg_projection_NE, answers.cmr_projection_NE, cohort.patients, weights_BN
        )
    return found


def require_targets(cohort: Cohort) -> None:
    """Refuse a target of which a test set holds no two different values: an average over it would not exist.

    Raises:
        ValueError: naming the targets.
    """
    known = [np.unique(column[np.isfinite(column)]) for column in cohort.truth_NT.T]
    empty = [name for name, values in zip(cohort.targets, known, strict=True) if len(values) < 2]
    _require(not empty, f"targets {', '.join(empty)} have no two different values here; leave them out of the list")


def cohort_weights(cohort: Cohort, *, draws: int = DRAWS, seed: int = 0) -> FloatArray:
    """Return the drawings of the cohort's patients, [1 + draws, N]."""
    return patient_weights(cohort.patients, draws=draws, seed=seed)


def same_cohort(first: Cohort, second: Cohort) -> bool:
    """Whether two cohorts are of the same rows with the same truth: what may be compared pairwise."""
    pairs = ((getattr(first, item.name), getattr(second, item.name)) for item in fields(Cohort))
    return all(_equal(one, other) for one, other in pairs)


def _equal(one: Sequence[str] | FloatArray, other: Sequence[str] | FloatArray) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=True)
    return one == other
