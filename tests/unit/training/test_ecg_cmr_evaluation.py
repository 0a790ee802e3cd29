"""Metrics of ECG against CMR under drawings of patients, retrieval, subgroups, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from training.ecg_cmr.drawn_metrics import classification, measured, patient_weights, regression
from training.ecg_cmr.evaluation import Answers, Cohort, cohort_weights, numbers, present, require_targets
from training.ecg_cmr.retrieval import ranks_of_own, retrieval
from training.ecg_cmr.subgroups import subgroups
from training.metrics import auroc, brier_score, calibration_slope, mean_absolute_error, patient_draws, r_squared

DEMOGRAPHICS = ("age_years", "male", "height_cm", "weight_kg")


def cohort(count: int = 60, *, seed: int = 0, repeats: int = 1) -> Cohort:
    """Patients with two quantities, one of which a third lacks, and one condition."""
    rng = np.random.default_rng(seed)
    truth = np.stack([rng.normal(55, 10, count), rng.normal(5, 1, count)], axis=1)
    truth[::3, 1] = np.nan
    label = (rng.random((count, 1)) < 0.3).astype(float)
    label[0, 0] = np.nan
    people = [rng.uniform(30, 85, count), rng.random(count) < 0.5, rng.normal(170, 8, count), rng.normal(78, 14, count)]
    return Cohort(
        keys=tuple(f"ecg-{row}" for row in range(count)),
        patients=tuple(f"patient-{row // repeats}" for row in range(count)),
        targets=("lvef", "cardiac_output"),
        truth_NT=truth,
        conditions=("heart_failure",),
        label_ND=label,
        demographics=DEMOGRAPHICS,
        demographics_NG=np.stack([np.asarray(column, float) for column in people], axis=1),
    )


def answers(of: Cohort, *, noise: float = 0.5, seed: int = 1, shared: float | None = None) -> Answers:
    """Answers at a distance of ``noise`` standard deviations; ``shared`` is the noise between the projections."""
    rng = np.random.default_rng(seed)
    spread = np.nanstd(of.truth_NT, axis=0)
    filled = np.where(np.isfinite(of.truth_NT), of.truth_NT, np.nanmean(of.truth_NT, axis=0))
    score = np.nan_to_num(of.label_ND, nan=0.5) + noise * rng.standard_normal(of.label_ND.shape)
    place = rng.standard_normal((len(of.keys), 8))
    return Answers(
        cohort=of,
        given_NT=filled + noise * spread * rng.standard_normal(of.truth_NT.shape),
        probability_ND=1 / (1 + np.exp(-2 * (score - 0.5))),
        ecg_projection_NE=None if shared is None else place,
        cmr_projection_NE=None if shared is None else place + shared * rng.standard_normal(place.shape),
    )


def test_regression_under_drawings_equals_each_metric_on_each_drawing() -> None:
    """Moments under weights give what the plain metrics give of the drawn rows, rows without truth left out."""
    given = answers(cohort(repeats=2))
    truth, said = given.cohort.truth_NT[:, 1], given.given_NT[:, 1]
    found = regression(truth, said, patient_weights(given.cohort.patients, draws=5, seed=3))
    drawn = [np.arange(60), *patient_draws(given.cohort.patients, draws=5, seed=3)]
    for place, rows in enumerate(drawn):
        t, g = (each[rows][np.isfinite(truth[rows])] for each in (truth, said))
        difference = g - t
        expected = {
            "r2": r_squared(t, g),
            "pearson": np.corrcoef(t, g)[0, 1],
            "mae": mean_absolute_error(t, g),
            "bias": difference.mean(),
            "loa_low": difference.mean() - 1.96 * difference.std(ddof=1),
            "loa_high": difference.mean() + 1.96 * difference.std(ddof=1),
            "slope": calibration_slope(t, g),
        }
        assert {name: values[place] for name, values in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize("digits", [1, 12])
def test_classification_under_drawings_equals_each_metric_on_each_drawing(digits: int) -> None:
    """AUROC and average precision, ties included, equal those of the drawn rows."""
    given = answers(cohort(repeats=2))
    label, score = given.cohort.label_ND[:, 0], given.probability_ND[:, 0].round(digits)
    found = classification(label, score, patient_weights(given.cohort.patients, draws=5, seed=4))
    drawn = [np.arange(60), *patient_draws(given.cohort.patients, draws=5, seed=4)]
    for place, rows in enumerate(drawn):
        y, p = (each[rows][np.isfinite(label[rows])] for each in (label, score))
        expected = {
            "auroc": auroc(y, p),
            "auprc": average_precision_score(y, p),
            "brier": brier_score(y, p),
            "prevalence": y.mean(),
            "mean_probability": p.mean(),
        }
        assert {name: values[place] for name, values in found.items()} == pytest.approx(expected)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    """1,000 drawings of 400 independent patients give the normal interval of a mean error, within a tenth."""
    rng = np.random.default_rng(0)
    truth, error = rng.normal(0, 1, 400), rng.normal(0, 2, 400)
    weights = patient_weights(tuple(map(str, range(400))), draws=1000, seed=0)
    found = measured(regression(truth, truth + error, weights)["bias"])
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * error.std() / 20, rel=0.1)


def test_records_of_a_patient_are_drawn_together() -> None:
    """Ten copies of each patient's record do not make an interval narrower."""
    rng = np.random.default_rng(0)
    truth, given = rng.normal(0, 1, 50), rng.normal(0, 1, 50)
    names = [f"patient-{row}" for row in range(50)]
    one = measured(regression(truth, given, patient_weights(names, draws=400, seed=0))["mae"])
    copies = [np.repeat(each, 10) for each in (truth, given)]
    ten = measured(regression(*copies, patient_weights(list(np.repeat(names, 10)), draws=400, seed=0))["mae"])
    assert (ten.high - ten.low) == pytest.approx(one.high - one.low, rel=0.15)


def test_a_drawing_of_one_class_only_says_nothing_of_ranks() -> None:
    """It is NaN, and the interval is of the others."""
    weights = np.array([[1.0, 1, 1], [0, 1, 1], [1, 1, 0]])
    found = classification(np.array([1.0, 0, 0]), np.array([0.9, 0.2, 0.1]), weights)
    assert np.isnan(found["auroc"]).tolist() == [False, True, False]
    assert measured(found["auroc"]).low == 1.0


def test_the_average_is_over_exactly_the_stated_targets() -> None:
    """Mean of the R2 of each target, each over the rows that have it."""
    given = answers(cohort())
    found = numbers(given, cohort_weights(given.cohort, draws=3))
    assert found["average"]["r2"] == pytest.approx((found["lvef"]["r2"] + found["cardiac_output"]["r2"]) / 2)
    constant = replace(given.cohort, truth_NT=np.full_like(given.cohort.truth_NT, 3.0))
    with pytest.raises(ValueError, match="lvef, cardiac_output have no two different values"):
        require_targets(constant)


def test_defect_10_a_condition_is_present_above_the_threshold_not_above_zero() -> None:
    """Low probabilities say absent; logits are refused where probabilities are expected."""
    low = np.array([0.02, 0.3, 0.5, 0.51])
    assert present(low).tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="not logits"):
        present(np.array([-1.2, 2.0]))
    given = answers(cohort())
    with pytest.raises(ValueError, match="probabilities, not logits"):
        replace(given, probability_ND=given.probability_ND * 4 - 2)


def test_classes_stand_at_the_prevalence_they_have() -> None:
    """Three in a hundred stay three in a hundred: nobody is left out to balance the classes."""
    label = np.zeros(200)
    label[:6] = 1
    found = classification(label, np.linspace(1, 0, 200), np.ones((1, 200)))
    assert found["prevalence"][0] == 0.03
    assert found["auroc"][0] == 1.0
    assert classification(label, np.full(200, 0.5), np.ones((1, 200)))["auprc"][0] == pytest.approx(0.03)


def test_retrieval_finds_shared_projections_and_is_at_chance_without() -> None:
    """Nearly equal projections are found first; unrelated ones as often as chance says; a repeat visit is no miss."""
    of = cohort(200)
    weights = np.ones((1, 200))
    same = answers(of, shared=0.1)
    assert same.ecg_projection_NE is not None
    assert same.cmr_projection_NE is not None
    found = retrieval(same.ecg_projection_NE, same.cmr_projection_NE, of.patients, weights)
    assert found["ecg_to_cmr_top1"][0] > 0.95
    assert found["cmr_to_ecg_top1"][0] > 0.95
    assert found["ecg_to_cmr_top5"][0] >= found["ecg_to_cmr_top1"][0]
    rng = np.random.default_rng(5)
    unrelated = retrieval(rng.standard_normal((200, 8)), rng.standard_normal((200, 8)), of.patients, weights)
    assert unrelated["ecg_to_cmr_top5"][0] < 0.08
    assert unrelated["chance_top5"][0] == 0.025


def test_a_collapsed_space_finds_nothing() -> None:
    """Where all rows are equally similar none is found; the best of a patient's two visits counts for both."""
    assert ranks_of_own(np.ones((4, 4)), ["a", "b", "c", "d"]).tolist() == [3, 3, 3, 3]
    similarity = np.array([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5], [0.0, 0.0, 1.0]])
    assert ranks_of_own(similarity, ["a", "a", "b"]).tolist() == [0, 0, 0]
    assert ranks_of_own(similarity, ["a", "c", "b"]).tolist() == [2, 2, 0]
    with pytest.raises(ValueError, match="no direction"):
        retrieval(np.zeros((3, 2)), np.ones((3, 2)), ["a", "b", "c"], np.ones((1, 3)))


def test_subgroups_part_the_cohort_and_leave_out_who_does_not_say() -> None:
    """Sex, age and BMI each divide those who state them; a weight that is missing puts nobody in a group."""
    of = cohort()
    people = of.demographics_NG.copy()
    people[0, 3] = np.nan
    groups = subgroups(replace(of, demographics_NG=people))
    assert (groups["women"] ^ groups["men"]).all()
    ages = [groups[name] for name in groups if "years" in name]
    assert (np.sum(ages, axis=0) == 1).all()
    body = np.sum([groups[name] for name in groups if "BMI" in name], axis=0)
    assert body[0] == 0
    assert (body[1:] == 1).all()


def test_a_subgroup_is_measured_on_its_rows_alone() -> None:
    """Weights of 0 leave rows out of every metric."""
    given = answers(cohort(), shared=0.5)
    men = subgroups(given.cohort)["men"]
    found = numbers(given, np.ones((1, 60)) * men)
    alone = regression(given.cohort.truth_NT[men, 0], given.given_NT[men, 0], np.ones((1, int(men.sum()))))
    assert found["lvef"]["r2"] == pytest.approx(alone["r2"])
    assert found["retrieval"]["chance_top1"][0] == pytest.approx(1 / men.sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": ("same",) * 60}, "1 different keys of 60"),
        ({"patients": ("a",)}, "1 patients of 60 rows"),
        ({"truth_NT": np.zeros((60, 3))}, r"expected \(60, 2\)"),
        ({"truth_NT": np.full((60, 2), np.inf)}, "infinite"),
        ({"label_ND": np.full((60, 1), 0.5)}, "neither 0 nor 1"),
    ],
)
def test_a_broken_cohort_is_refused(change: dict[str, object], message: str) -> None:
    """Repeated keys, missing patients, columns of another shape, infinite values, labels that are none."""
    with pytest.raises(ValueError, match=message):
        replace(cohort(), **change)  # type: ignore[arg-type]


def test_broken_answers_are_refused() -> None:
    """A value for every row and target; projections of both modalities or of none, one a row."""
    given = answers(cohort(), shared=0.1)
    with pytest.raises(ValueError, match="not finite"):
        replace(given, given_NT=np.full((60, 2), np.nan))
    with pytest.raises(ValueError, match="values"):
        replace(given, given_NT=np.zeros((60, 1)))
    with pytest.raises(ValueError, match="both or none"):
        replace(given, cmr_projection_NE=None)
    with pytest.raises(ValueError, match="one a row"):
        replace(given, ecg_projection_NE=np.ones((59, 8)), cmr_projection_NE=np.ones((59, 8)))


def test_rows_of_a_cohort_keep_together() -> None:
    """A part of a cohort is the same rows of every column."""
    of = cohort()
    part = of.rows(np.array([5, 2]))
    assert part.keys == ("ecg-5", "ecg-2")
    assert part.patients == ("patient-5", "patient-2")
    assert np.array_equal(part.truth_NT, of.truth_NT[[5, 2]], equal_nan=True)
    assert np.array_equal(part.demographics_NG, of.demographics_NG[[5, 2]])
