"""Digital hearts seen twice: one truth behind both studies, nuisance that only one sees, effects of the stated size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.preprocess.canonical import canonical_stack
from engines.records import Modality
from training.data import heart_arrays
from training.data.sources import paired_subjects
from training.data.sources.paired_subjects import (
    DEMOGRAPHICS,
    TARGETS,
    CoarseScan,
    draw_pair,
    draw_patient,
    ecg_of,
    stack_of,
)
from training.phantoms import paired_ecg
from training.phantoms.cmr import draw_scan, rendered_with_labels
from training.phantoms.cmr_paint import LEFT_MUSCLE
from training.phantoms.ecg import Wave, _waves
from training.phantoms.paired import (
    APART_DAYS,
    MUSCLE_G_PER_ML,
    SIZE_CORRELATION,
    Cohort,
    muscle_mass_g,
    size_residual,
)
from training.phantoms.subjects import DISEASES

COARSE = CoarseScan(size_px=72, spacing_mm=3.8, phases=8, slice_distance_mm=12.0)
COHORTS: tuple[Cohort, ...] = ("standard", "easy")


@pytest.mark.parametrize("cohort", COHORTS)
def test_a_patient_is_the_same_whenever_asked_for(cohort: Cohort) -> None:
    """Both records and all truths of patient i of a seed come out bit for bit again, and another index is another."""
    one, again, other = (draw_pair(3, index, cohort, COARSE) for index in (5, 5, 6))
    assert np.array_equal(one.ecg.signal_mv, again.ecg.signal_mv)
    assert np.array_equal(one.cmr.images_SPHW, again.cmr.images_SPHW)
    assert (one.patient, one.targets, one.diagnosed_on) == (again.patient, again.targets, again.diagnosed_on)
    assert one.patient != other.patient
    assert one.targets["lvef"] != other.targets["lvef"]


@pytest.mark.parametrize("cohort", COHORTS)
def test_all_truths_are_of_one_heart(cohort: Cohort) -> None:
    """Volumes, ejection fractions and outputs agree with each other, and the right ventricle ejects what the left does."""
    for index in range(200):
        patient = draw_patient(1, index, cohort)
        truth = paired_subjects.targets_of(patient)
        assert set(truth) == set(TARGETS)
        assert truth["lvsv"] == pytest.approx(truth["rvsv"])
        assert truth["lvef"] == pytest.approx(100 * truth["lvsv"] / truth["lvedv"])
        assert truth["rvef"] == pytest.approx(100 * truth["rvsv"] / truth["rvedv"])
        assert truth["cardiac_output"] == pytest.approx(truth["lvsv"] * patient.heart.heart_rate_bpm / 1000)
        assert 10 < truth["lvef"] < 80
        assert 8 < truth["rvef"] < 80
        assert 40 < truth["rvedv"] < 700
        assert 40 < truth["lv_mass"] < 450
        assert set(paired_subjects.demographics_of(patient)) == set(DEMOGRAPHICS)
        assert 120 < patient.height_cm < 220
        assert 25 < patient.weight_kg < 220


def test_the_easy_cohort_has_one_view() -> None:
    """Every easy stack lies alike and as a heart does: canonical as it is stored, the right ventricle on the left."""
    stacks = [draw_pair(9, index, "easy", COARSE).cmr for index in range(2)]
    assert stacks[0].orientation == stacks[1].orientation
    assert not np.array_equal(*(stack.images_SPHW[3] for stack in stacks))
    view = canonical_stack(stacks[0])
    assert (view.mirrored, view.quarter_turns) == (False, 0)
    scan = paired_subjects.plain(draw_scan(np.random.default_rng(0)))
    assert abs(scan.turn_rad) > np.pi / 2
    assert draw_pair(9, 0, "standard", COARSE).cmr.orientation != stacks[0].orientation


def test_the_mass_is_that_of_the_painted_muscle() -> None:
    """Voxels of muscle at end-diastole times their volume and density give the stated mass within 6 %."""
    patient = draw_patient(1, 0, "standard")
    rng = np.random.default_rng(0)
    scan = replace(draw_scan(rng), size_px=144, spacing_mm=1.2, slice_distance_mm=2.5, phases=2)
    _, labels_SPHW = rendered_with_labels(patient.heart, scan, rng)
    voxels = int((labels_SPHW[:, 0] == LEFT_MUSCLE).sum())
    measured_g = MUSCLE_G_PER_ML * voxels * 1.2**2 * 2.5 / 1000
    assert measured_g == pytest.approx(muscle_mass_g(patient.heart), rel=0.06)


def test_nuisance_of_one_modality_never_moves_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another scanner changes no sample of the ECG; another ECG renderer changes no pixel of the stack."""
    patient = draw_patient(2, 0, "standard")
    ecg = ecg_of(patient, 2, 0, "standard")
    stack = stack_of(patient, 2, 0, "standard", COARSE)
    fine = draw_pair(2, 0, "standard", replace(COARSE, phases=9))
    assert np.array_equal(fine.ecg.signal_mv, ecg.signal_mv)
    monkeypatch.setattr(paired_subjects, "ecg_record", lambda _heart, rng: (rng.normal(size=99), ecg)[1])
    assert np.array_equal(draw_pair(2, 0, "standard", COARSE).cmr.images_SPHW, stack.images_SPHW)


def test_studies_are_near_in_time_and_diagnoses_have_days() -> None:
    """ECG and CMR lie within the window, exactly the diseases that are there have a day, some before and some after."""
    patients = [draw_patient(4, index, "standard") for index in range(300)]
    assert all(abs((each.ecg_on - each.cmr_on).days) <= APART_DAYS for each in patients)
    for each in patients:
        assert set(each.diagnosed_on) == {name for name in DISEASES if each.heart.diseases[name]}
    later = [day > each.cmr_on for each in patients for day in each.diagnosed_on.values()]
    assert 0.25 < float(np.mean(later)) < 0.55


def test_body_size_follows_the_heart_as_stated() -> None:
    """Height and BMI correlate with what is left of log LVEDV as the table says, and not with LVEF."""
    patients = [draw_patient(5, index, "standard") for index in range(1500)]
    size = np.array([size_residual(each.heart) for each in patients])
    tall = np.array([each.height_cm - (176 if each.heart.male else 163) for each in patients])
    bmi = np.array([each.weight_kg / (each.height_cm / 100) ** 2 for each in patients])
    lvef = np.array([each.heart.lvef_percent for each in patients])
    for body in (tall, bmi):
        assert np.corrcoef(size, body)[0, 1] == pytest.approx(SIZE_CORRELATION, abs=0.07)
        assert abs(np.corrcoef(lvef, body)[0, 1]) < 0.08


def test_the_easy_cohort_is_wide_and_its_ecg_tells_all() -> None:
    """Size, function and shape vary by themselves; every wave gives its property back up to the stated scatter."""
    hearts = [draw_patient(6, index, "easy").heart for index in range(400)]
    rows = np.array([[h.lvef_percent, np.log(h.lvedv_ml), h.wall_mm, h.sphericity, h.systole_fraction] for h in hearts])
    assert np.abs(np.corrcoef(rows.T) - np.eye(5)).max() < 0.15
    rng = np.random.default_rng(0)
    seen = np.array([_read_off(paired_ecg.linked_waves(heart, rng)) for heart in hearts])
    truth = np.array([paired_ecg._seen(heart) for heart in hearts])
    assert (seen - truth).std(axis=0) == pytest.approx(paired_ecg.SCATTER, rel=0.25)


def _read_off(waves: list[Wave]) -> np.ndarray:
    """The six properties from the waves, by the formulas of the docstring table."""
    (_, width, r_wave), (_, _, s_wave), (t_delay, _, t_wave) = waves[3], waves[4], waves[6]
    gain = np.hypot(r_wave[0], r_wave[1]) / np.hypot(1.05, 0.75)
    turn = np.arctan2(r_wave[1], r_wave[0]) - np.arctan2(0.75, 1.05)
    return np.array(
        [
            (width / 0.012 - 1) / 0.30,
            np.log(gain) / 0.60,
            (-s_wave[0] / gain - 0.30) / 0.15,
            (t_wave[0] / 0.8 - 0.40) / 0.12,
            turn / 0.25,
            (t_delay - 0.29) / 0.025,
        ]
    )


def test_the_standard_ecg_has_the_stated_effects() -> None:
    """QRS width against LVEF, S wave against RVEF, QRS size against LVEDV: slopes as the table says."""
    hearts = [draw_patient(7, index, "standard").heart for index in range(1500)]
    rng = np.random.default_rng(0)
    waves = [_waves(heart, rng) for heart in hearts]
    weak = np.array([(55 - heart.lvef_percent) / 20 for heart in hearts])
    large = np.array([np.log(heart.lvedv_ml / 140) for heart in hearts])
    wall = np.array([heart.wall_mm - 9.5 for heart in hearts])
    width = np.array([wave[3][1] / 0.012 for wave in waves])
    gain = np.array(
        [
            np.log(-wave[2][2][1] / (0.02 + 0.15 * h.diseases["myocardial_infarction"]))
            for wave, h in zip(waves, hearts, strict=True)
        ]
    )
    assert np.polyfit(weak, width, 1)[0] == pytest.approx(0.28, abs=0.03)
    slopes = np.linalg.lstsq(np.stack([large, wall, np.ones(len(hearts))], axis=1), gain, rcond=None)[0]
    assert slopes[:2] == pytest.approx([0.25, 0.03], abs=0.04)


def test_diseases_have_the_stated_odds() -> None:
    """Among many patients each disease is as frequent as its log-odds of LVEF and age say, low LVEF and high apart."""
    from training.phantoms.subjects import _RISK

    hearts = [draw_patient(8, index, "standard").heart for index in range(3000)]
    ef, age = (np.array([getattr(heart, name) for heart in hearts]) for name in ("lvef_percent", "age_years"))
    stated = {
        "coronary_artery_disease": (-1.6, 0.35, 0.40),
        "atrial_fibrillation": (-2.2, 0.30, 0.60),
        "sudden_cardiac_death": (-3.6, 0.60, 0.20),
        "heart_failure": (-3.0, 1.20, 0.25),
        "myocardial_infarction": (-2.2, 0.50, 0.30),
        "cardiomyopathy": (-2.6, 0.80, -0.10),
    }
    assert stated == _RISK
    for name, (start, per_ef, per_age) in stated.items():
        odds = 1 / (1 + np.exp(-(start + per_ef * (55 - ef) / 10 + per_age * (age - 60) / 10)))
        has = np.array([heart.diseases[name] for heart in hearts])
        for part in (ef < 40, ef >= 40):
            assert has[part].mean() == pytest.approx(odds[part].mean(), abs=0.03)


def test_pairs_leave_the_digests_of_other_hearts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of hearts stay valid: no module that only pairs pass through counts for them."""
    others = tuple(each.value for each in Modality if each is not Modality.CMR)
    for stem in ("paired", "paired_ecg", "paired_subjects", "cmr_volume"):
        assert heart_arrays._apart(stem, others)
    assert not heart_arrays._apart("cmr_view", others)
