"""Answers on calibration patients to what the bundle states beside each number: two intervals, a calibrated probability.

Called by the exporter. The patients are none the network, the probe or a choice of either has seen. Reliability on the test
patients is measured here too, for the model card.

Letters: N patients, D conditions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.predictors.answer import merged_probability
from training.calibrate import VennAbersTable, conformal_half_width, venn_abers_table
from training.ecg_cmr.evaluation import Answers, Cohort
from training.metrics import Measured, wilson_interval

FloatArray = NDArray[np.float64]
COVERAGES_PERCENT = (80.0, 95.0)
LEAST_POSITIVES = 10
"""Of a condition among the calibration patients; with fewer a table says next to nothing."""
_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Half widths of one quantity by coverage in percent, in its unit; a wider coverage is never narrower."""

    quantity: str
    half_widths: Mapping[float, float]
    patients: int


def intervals(answers: Answers, coverages_percent: Sequence[float] = COVERAGES_PERCENT) -> tuple[Intervals, ...]:
    """Return the split-conformal half widths of every target, each from the patients it was measured of.

    Raises:
        ValueError: too few patients for a coverage, or a patient has several rows: they are not exchangeable.
    """
    _require_one_row(answers.cohort)
    return tuple(
        _intervals(name, answers.cohort.truth_NT[:, column], answers.given_NT[:, column], coverages_percent)
        for column, name in enumerate(answers.cohort.targets)
    )


def _intervals(name: str, truth: FloatArray, given: FloatArray, coverages: Sequence[float]) -> Intervals:
    known = np.isfinite(truth)
    residuals = np.abs(given[known] - truth[known])
    try:
        widths = {coverage: conformal_half_width(residuals, coverage) for coverage in sorted(coverages)}
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Intervals(quantity=name, half_widths=widths, patients=int(known.sum()))


def _require_one_row(cohort: Cohort) -> None:
    repeated = len(cohort.keys) - len(set(cohort.patients))
    if repeated:
        raise ValueError(f"{repeated} rows are further ECGs of a patient; calibrate on one ECG a patient")


def coverage(answers: Answers, found: Sequence[Intervals]) -> dict[str, dict[float, Measured]]:
    """Return the share of new patients whose truth lies inside, with its Wilson interval, by target and coverage."""
    columns = {name: column for column, name in enumerate(answers.cohort.targets)}
    return {each.quantity: _inside(answers, columns[each.quantity], each.half_widths) for each in found}


def _inside(answers: Answers, column: int, half_widths: Mapping[float, float]) -> dict[float, Measured]:
    truth, given = answers.cohort.truth_NT[:, column], answers.given_NT[:, column]
    known = np.isfinite(truth)
    distance = np.abs(truth[known] - given[known])
    return {
        asked: wilson_interval(int((distance <= half).sum()), int(known.sum())) for asked, half in half_widths.items()
    }


def probability_tables(cohort: Cohort, logits_ND: FloatArray) -> dict[str, VennAbersTable]:
    """Return the Venn-Abers table of each condition over its logit, at the prevalence the calibration patients have.

    Rows whose label is not known are in no table.

    Raises:
        ValueError: a condition has fewer than ``LEAST_POSITIVES`` patients with it or without it, logits of another shape,
            or a patient has several rows.
    """
    _require_one_row(cohort)
    if logits_ND.shape != cohort.label_ND.shape:
        raise ValueError(f"logits have shape {logits_ND.shape}; expected {cohort.label_ND.shape}")
    return {name: _table(name, cohort.label_ND[:, at], logits_ND[:, at]) for at, name in enumerate(cohort.conditions)}


def _table(name: str, label: FloatArray, logit: FloatArray) -> VennAbersTable:
    known = np.isfinite(label)
    positives = int(label[known].sum())
    if min(positives, int(known.sum()) - positives) < LEAST_POSITIVES:
        raise ValueError(
            f"{name}: {positives} of {int(known.sum())} calibration patients have it; at least {LEAST_POSITIVES} with and"
            " without it are needed, or the bundle does not state this condition"
        )
    return venn_abers_table(logit[known], label[known])


def calibrated(table: VennAbersTable, logits: FloatArray) -> FloatArray:
    """Return the probability that the serving path gives at each logit."""
    low = np.interp(logits, table.scores, table.low_probabilities)
    high = np.interp(logits, table.scores, table.high_probabilities)
    return np.asarray(merged_probability(low, high))


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How far probabilities are from what happened.

    Attributes:
        expected_error: mean over tenths of the patients, by probability, of |share that has it - mean probability|.
        in_the_large: mean probability less prevalence; above 0 it says too often.
        bins: (mean probability, share that has it, patients) of each tenth.
    """

    expected_error: float
    in_the_large: float
    bins: tuple[tuple[float, float, int], ...]


def reliability(label_N: FloatArray, probability_N: FloatArray) -> Reliability:
    """Return how probabilities compare with labels, over rows whose label is known.

    Raises:
        ValueError: no label is known.
    """
    known = np.isfinite(label_N)
    if not known.any():
        raise ValueError("no label is known; reliability needs patients with and without the condition")
    label, probability = label_N[known], probability_N[known]
    tenths = [rows for rows in np.array_split(np.argsort(probability, kind="stable"), _BINS) if len(rows)]
    bins = tuple((float(probability[rows].mean()), float(label[rows].mean()), len(rows)) for rows in tenths)
    error = sum(count * abs(mean - share) for mean, share, count in bins) / len(label)
    return Reliability(expected_error=error, in_the_large=float(probability.mean() - label.mean()), bins=bins)
