"""Intervals that cover, probabilities that are calibrated, and cohorts made of entries by name."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from training.data.sources.ecg_sets import EcgEntry
from training.ecg_cmr.cohorts import cohort_of, complete
from training.ecg_cmr.evaluation import Answers, Cohort
from training.ecg_cmr.serving import calibrated, coverage, intervals, probability_tables, reliability


def answers(count: int, seed: int, *, spread: float = 8.0) -> tuple[Answers, np.ndarray]:
    """Answers with heavy-tailed errors, and overconfident logits of a condition that a fifth has."""
    rng = np.random.default_rng(seed)
    truth = rng.normal((55, 5), (12, 1), (count, 2))
    truth[::3, 1] = math.nan
    true_logit = rng.normal(-1.5, 1.2, (count, 1))
    label = (rng.random((count, 1)) < 1 / (1 + np.exp(-true_logit))).astype(float)
    label[::7] = math.nan
    cohort = Cohort(
        keys=tuple(f"k{row}" for row in range(count)),
        patients=tuple(f"p{row}" for row in range(count)),
        targets=("lvef", "cardiac_output"),
        truth_NT=truth,
        conditions=("heart_failure",),
        label_ND=label,
        demographics=(),
        demographics_NG=np.empty((count, 0)),
    )
    filled = np.nan_to_num(truth, nan=5.0)
    given = Answers(
        cohort=cohort,
        given_NT=filled + rng.standard_t(4, (count, 2)) * (spread, 0.6),
        probability_ND=np.full((count, 1), 0.2),
    )
    return given, 3.0 * true_logit + 1.0


def test_both_intervals_cover_new_patients() -> None:
    """80 and 95 percent of new patients lie inside, averaged over calibration sets, and the wider is the wider."""
    shares = []
    for seed in range(30):
        found = intervals(answers(200, seed)[0])
        assert found[0].half_widths[95.0] > found[0].half_widths[80.0]
        measured = coverage(answers(200, 1000 + seed)[0], found)
        shares.append([[measured[name][asked].value for asked in (80.0, 95.0)] for name in ("lvef", "cardiac_output")])
    np.testing.assert_allclose(np.mean(shares, axis=0), [[0.80, 0.95]] * 2, atol=0.02)
    assert (found[0].patients, found[1].patients) == (200, 133)
    lvef = measured["lvef"][80.0]
    assert lvef.low < lvef.value < lvef.high


def test_what_cannot_be_calibrated_is_refused() -> None:
    """Too few patients for 95 percent, several ECGs of one patient, a condition hardly anybody has, other logits."""
    few, logits = answers(18, 0)
    with pytest.raises(ValueError, match=r"lvef: 18 hearts cannot hold 95.0 % coverage"):
        intervals(few)
    many, logits = answers(200, 0)
    twice = replace(many.cohort, patients=("p0", "p0", *many.cohort.patients[2:]))
    with pytest.raises(ValueError, match="1 rows are further ECGs"):
        intervals(replace(many, cohort=twice))
    with pytest.raises(ValueError, match="one ECG a patient"):
        probability_tables(twice, logits)
    rare = many.cohort.label_ND.copy()
    rare[np.isfinite(rare)] = 0
    with pytest.raises(ValueError, match="heart_failure: 0 of 171 calibration patients have it"):
        probability_tables(replace(many.cohort, label_ND=rare), logits)
    with pytest.raises(ValueError, match="logits have shape"):
        probability_tables(many.cohort, logits[:, 0])


def test_probabilities_are_calibrated_though_logits_are_not() -> None:
    """Overconfident, shifted logits become probabilities within sampling error; unknown labels are in no table."""
    given, logits = answers(1500, 1)
    table = probability_tables(given.cohort, logits)["heart_failure"]
    new, other = answers(3000, 2)
    label = new.cohort.label_ND[:, 0]
    before = reliability(label, 1 / (1 + np.exp(-other[:, 0])))
    after = reliability(label, calibrated(table, other[:, 0]))
    assert before.expected_error > 0.08
    assert after.expected_error < 0.04
    assert abs(after.in_the_large) < 0.03
    assert sum(count for _, _, count in after.bins) == int(np.isfinite(label).sum())


def test_reliability_is_the_distance_of_its_bins() -> None:
    """Of ten patients of whom one in two has it, a probability of one in two is reliable and one of nine in ten is not."""
    label = np.array([0.0, 1.0] * 50)
    assert reliability(label, np.full(100, 0.5)).expected_error == pytest.approx(0.0)
    wrong = reliability(label, np.full(100, 0.9))
    assert (wrong.expected_error, wrong.in_the_large) == (pytest.approx(0.4), pytest.approx(0.4))
    with pytest.raises(ValueError, match="no label is known"):
        reliability(np.full(3, np.nan), np.full(3, 0.5))


def entry(key: str, **told: dict[str, float]) -> EcgEntry:
    """An entry whose patient is its key."""
    return EcgEntry(key=key, patient=key, **told)  # type: ignore[arg-type]


def test_columns_of_a_cohort_are_by_name() -> None:
    """In the order asked for, whatever the entries' own; what is not stated is NaN, and complete rows are known."""
    entries = [
        entry(
            "a",
            targets={"lvesv": 60.0, "lvef": 45.0},
            labels={"af": True},
            demographics={"age_years": 60.0, "male": 1.0},
        ),
        entry("b", targets={"lvesv": 45.0}, labels={"af": False}, demographics={"male": 0.0}),
    ]
    found = cohort_of(entries, targets=("lvef", "lvesv"), conditions=("af",), demographics=("male", "age_years"))
    np.testing.assert_array_equal(found.truth_NT, [[45.0, 60.0], [math.nan, 45.0]])
    np.testing.assert_array_equal(found.label_ND, [[1.0], [0.0]])
    np.testing.assert_array_equal(found.demographics_NG, [[1.0, 60.0], [0.0, math.nan]])
    assert complete(found).tolist() == [0]
    with pytest.raises(ValueError, match="no entry states lvef_percent"):
        cohort_of(entries, targets=("lvef_percent",), conditions=(), demographics=())


def test_defect_11_conditions_of_ejection_fraction_are_made_of_it() -> None:
    """LVEF of 45 with an end-systolic volume of 30 is at most 50 and not at most 40; without LVEF nothing is known."""
    entries = [entry("a", targets={"lvesv": 30.0, "lvef": 45.0}), entry("b", targets={"lvesv": 30.0})]
    names = ("lvef_at_most_40", "lvef_at_most_50")
    found = cohort_of(entries, targets=("lvesv",), conditions=names, demographics=())
    np.testing.assert_array_equal(found.label_ND, [[0.0, 1.0], [math.nan, math.nan]])
