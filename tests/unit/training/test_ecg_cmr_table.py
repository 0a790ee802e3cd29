"""From outcomes to numbers, page and requirements, and the file between them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.ecg_cmr.evaluation import Answers, Cohort, same_cohort
from training.ecg_cmr.measurements import Comparison, document
from training.ecg_cmr.outcome import DEMOGRAPHICS, VARIANTS, Outcome, made_from_of, read_outcome, write_outcome
from training.ecg_cmr.requirements import as_markdown, requirements
from training.ecg_cmr.table import PUBLISHED, details, markdown
from training.metrics import r_squared

COMPARISON = Comparison(
    data_set="numbers", caution="no hearts", sizes=(8, 4, 80), command="make it", settings=("a | b",)
)
NOISE = {DEMOGRAPHICS: 1.2, "ecg_only": 0.8, "slice": 0.7, "slice_time": 0.65, "volume": 0.6, "triplet": 0.5}


def _cohort(seed: int) -> Cohort:
    rng = np.random.default_rng(seed)
    return Cohort(
        keys=tuple(f"ecg-{row}" for row in range(80)),
        patients=tuple(f"patient-{row}" for row in range(80)),
        targets=("lvef", "lvedv"),
        truth_NT=rng.normal((55, 140), (10, 30), (80, 2)),
        conditions=("heart_failure", "cardiomyopathy"),
        label_ND=(rng.random((80, 2)) < (0.4, 0.0)).astype(float),
        demographics=("age_years", "male"),
        demographics_NG=np.stack([rng.uniform(30, 85, 80), rng.random(80) < 0.5], axis=1).astype(float),
    )


def _outcome(model: str, seed: int, noise: float, *, projected: float | None = None) -> Outcome:
    cohort, rng = _cohort(seed), np.random.default_rng(100 + seed)
    place = rng.standard_normal((80, 8))
    given = Answers(
        cohort=cohort,
        given_NT=cohort.truth_NT + noise * rng.normal(0, (10, 30), (80, 2)),
        probability_ND=np.clip(cohort.label_ND * 0.4 + 0.3 + noise * rng.normal(0, 0.1, (80, 2)), 0, 1),
        ecg_projection_NE=None if projected is None else place,
        cmr_projection_NE=None if projected is None else place + projected * rng.standard_normal((80, 8)),
    )
    return Outcome(
        model=model, probe="linear", seed=seed, answers=given, seconds=60.0, chosen=("alpha 1",), notes=("said once",)
    )


def _outcomes(noise: dict[str, float] = NOISE) -> list[Outcome]:
    return [
        _outcome(model, seed, each, projected=None if model in (DEMOGRAPHICS, "ecg_only") else 0.1)
        for seed in (0, 1)
        for model, each in noise.items()
    ]


def _measured(noise: dict[str, float] = NOISE) -> dict[str, Any]:
    return document(_outcomes(noise), COMPARISON, draws=50)


def test_no_table_is_made_without_the_baseline_of_demographics() -> None:
    """Neither the document nor the page: not where it is missing, and not where it is missing for one seed."""
    without = [each for each in _outcomes() if each.model != DEMOGRAPHICS]
    with pytest.raises(ValueError, match="demographics only is missing for seed 0, 1"):
        document(without, COMPARISON, draws=5)
    one = [each for each in _outcomes() if each.model != DEMOGRAPHICS or each.seed == 0]
    with pytest.raises(ValueError, match="missing for seed 1"):
        document(one, COMPARISON, draws=5)
    measured = _measured()
    measured["models"] = [each for each in measured["models"] if each["model"] != DEMOGRAPHICS]
    with pytest.raises(ValueError, match="no baseline"):
        markdown(measured)


def test_what_cannot_be_compared_is_refused() -> None:
    """Nothing at all, one seed twice, other patients, another list of targets, an unknown model or probe."""
    outcomes = _outcomes()
    with pytest.raises(ValueError, match="no outcome"):
        document([], COMPARISON)
    with pytest.raises(ValueError, match="seed 0 twice"):
        document([*outcomes, outcomes[1]], COMPARISON, draws=5)
    moved = replace(outcomes[1], answers=replace(outcomes[1].answers, cohort=_cohort(9)))
    with pytest.raises(ValueError, match="other patients or truths"):
        document([outcomes[0], moved], COMPARISON, draws=5)
    with pytest.raises(ValueError, match="model 'best'"):
        replace(outcomes[0], model="best")
    with pytest.raises(ValueError, match="probe 'deep'"):
        replace(outcomes[0], probe="deep")  # type: ignore[arg-type]


def test_the_page_shows_the_numbers_of_the_document() -> None:
    """Means, spreads, intervals, the list of targets, the published rows, 0.605 beside ours, and the command."""
    measured = json.loads(json.dumps(_measured(), allow_nan=False))
    page = markdown(measured)
    average = next(each for each in measured["models"] if each["model"] == "triplet")["numbers"]["average"]["r2"]
    assert f"{average['value']:.3f} ± {average['sd']:.3f} [{average['low']:.3f}, {average['high']:.3f}]" in page
    assert "Targets of the average R2 (2): lvef, lvedv" in page
    assert "| published: triplet, UK Biobank patients | not stated | 0.605 |" in page
    assert "Columns of the baseline: age_years, male" in page
    for words in (*VARIANTS.values(), *(row.result for row in PUBLISHED), "`make it`", "demographics only, no ECG"):
        assert words in page
    assert details(measured).count("triplet, 3D ED and ES volumes, linear probe: said once") == 1
    assert "average R2 0.605 over CMR features" in page


def test_a_condition_that_nobody_has_is_shown_without_a_rank() -> None:
    """An AUROC of one class is no number in the document, and none on the page."""
    measured = _measured()
    assert measured["models"][0]["numbers"]["cardiomyopathy"]["auroc"]["value"] is None
    assert "| cardiomyopathy | demographics only, no ECG | linear probe | none | none | 0.000" in details(measured)


def test_differences_are_paired_and_the_order_is_that_of_the_means() -> None:
    """The same drawings for both models make the difference exact; variants stand from best to worst."""
    measured = _measured()
    by_name = {each["model"]: each["numbers"]["lvef"]["r2"]["value"] for each in measured["models"]}
    found = {(each["model"], each["less"]): each["numbers"]["lvef"]["r2"] for each in measured["differences"]}
    for model, less in (
        ("triplet", "volume"),
        ("volume", "slice"),
        ("slice_time", "ecg_only"),
        ("triplet", DEMOGRAPHICS),
    ):
        assert found[model, less]["value"] == pytest.approx(by_name[model] - by_name[less], abs=2e-4)
    both = [each for each in measured["order"] if each["of"] == "lvef"]
    assert [one["variant"] for one in both[0]["variants"]] == list(VARIANTS)[::-1]
    assert all(one["above_next_share"] == 1.0 for one in both[0]["variants"][:-1])
    same = dict.fromkeys(NOISE, 0.7)
    twin = document(_outcomes(same), COMPARISON, draws=20)
    assert twin["differences"][0]["numbers"]["lvef"]["r2"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_another_probe_is_held_against_the_same_baseline() -> None:
    """The baseline has no encoder to fine-tune: its linear probe stands for it."""
    tuned = [replace(each, probe="fine_tune") for each in _outcomes() if each.model == "triplet"]
    measured = document([*_outcomes(), *tuned], COMPARISON, draws=5)
    pairs = {(each["model"], each["less"]) for each in measured["differences"] if each["probe"] == "fine_tune"}
    assert pairs == {("triplet", DEMOGRAPHICS)}
    assert "full fine-tuning" in markdown(measured)


def test_subgroups_are_measured_where_they_have_patients() -> None:
    """Women and men have numbers; a group of few is counted only."""
    groups = _measured()["models"][1]["subgroups"]
    assert min(groups["women"]["patients"]) >= 20
    expected = []
    for outcome in (_outcome("ecg_only", seed, NOISE["ecg_only"]) for seed in (0, 1)):
        women = outcome.answers.cohort.demographics_NG[:, 1] == 0
        expected.append(r_squared(outcome.answers.cohort.truth_NT[women, 0], outcome.answers.given_NT[women, 0]))
    assert groups["women"]["numbers"]["lvef"]["r2"]["value"] == pytest.approx(np.mean(expected), abs=1e-4)
    few = {name: group for name, group in groups.items() if min(group["patients"]) < 20}
    assert few
    assert not any("numbers" in group for group in few.values())


@pytest.mark.parametrize(
    ("model", "noise", "unmet"),
    [
        ("triplet", 0.75, {0}),
        ("volume", 0.78, {1}),
        ("slice_time", 1.0, {3}),
        ("triplet", 0.61, {0}),
        ("triplet", 0.6, set()),
    ],
)
def test_a_variant_that_is_worse_on_lvef_is_named(model: str, noise: float, unmet: set[int]) -> None:
    """Triplet, 3D, one slice and ECG only are held in that order; a small difference that is certain counts, none does not."""
    found = requirements(_measured(NOISE | {model: noise}), phantoms=True)
    assert {place for place, each in enumerate(found) if not each.met} == unmet
    assert "**no**" in as_markdown(found) or not unmet


def test_retrieval_is_held_on_the_easy_set() -> None:
    """Above 0.8 in both directions for every variant with projections; nothing is required of patients."""
    easy = _measured()
    found = requirements(_measured(), phantoms=True, easy=easy)[6:]
    assert len(found) == 8
    assert all(each.met for each in found)
    hard = [_outcome(name, 0, 0.5, projected=3.0 if name == "triplet" else None) for name in NOISE]
    far = document(hard, COMPARISON, draws=5)
    assert not any(each.met for each in requirements(_measured(), phantoms=True, easy=far)[6:])
    assert requirements(_measured(), phantoms=False, easy=far) == []
    with pytest.raises(ValueError, match="run both variants"):
        requirements(document(_outcomes({DEMOGRAPHICS: 1.0, "triplet": 0.5}), COMPARISON, draws=5), phantoms=True)


def test_an_outcome_comes_back_as_written(tmp_path: Path) -> None:
    """The file holds no pickles and gives back every field; a model without projections has none afterwards."""
    for name in ("triplet", "ecg_only"):
        outcome = next(each for each in _outcomes() if each.model == name)
        write_outcome(tmp_path / "a" / "o.npz", outcome, "digest")
        found = read_outcome(tmp_path / "a" / "o.npz")
        assert made_from_of(tmp_path / "a" / "o.npz") == "digest"
        assert same_cohort(found.answers.cohort, outcome.answers.cohort)
        assert (found.model, found.probe, found.seed, found.seconds) == (name, "linear", 0, 60.0)
        assert (found.chosen, found.notes) == (("alpha 1",), ("said once",))
        np.testing.assert_array_equal(found.answers.given_NT, outcome.answers.given_NT)
        assert (found.answers.ecg_projection_NE is None) == (name == "ecg_only")
    np.savez(tmp_path / "p.npz", about=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_outcome(tmp_path / "p.npz")
