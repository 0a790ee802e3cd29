"""Phantoms: the truth they state is the truth they draw, and a seed decides every byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from scipy.signal import butter, find_peaks, sosfiltfilt

from tests.doubles.hearts import clean_ecg
from training.phantoms.cycle import emptying, left_ventricle
from training.phantoms.dicom import Patient
from training.phantoms.draws import METHODS
from training.phantoms.make import StudyTruth, make_studies
from training.phantoms.subjects import DISEASES, Subject, draw_subject

SUBJECTS = 2000
CANARY = Patient(name="CANARY^KIWI", patient_id="CANARY-4711", birth_date="19010203")


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    """Many hearts."""
    rng = np.random.default_rng(0)
    return [draw_subject(rng) for _ in range(SUBJECTS)]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_even_studies_are_others_than_plain_ones(tmp_path: Path) -> None:
    """No study of a verification has the UID or the patient of a plain one of the same seed; the bytes are the seed's."""
    plain = make_studies("ecg", 5, 3, tmp_path / "plain")
    even = make_studies("ecg", 5, 3, tmp_path / "even", evenly=True)
    make_studies("ecg", 5, 3, tmp_path / "again", evenly=True)
    assert digests(tmp_path / "even") == digests(tmp_path / "again")
    uids = {truth.study_instance_uid for truth in (*plain, *even)}
    files = [
        tmp_path / name / file
        for name, made in (("plain", plain), ("even", even))
        for each in made
        for file in each.files
    ]
    patients = {str(dcmread(file).PatientID) for file in files}
    assert len(uids) == len(patients) == 6


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    """Two runs with one seed agree in every byte; another seed makes other hearts and other UIDs."""
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_studies("ecg", seed, 3, tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    one, other = (json.loads((tmp_path / name / "truth.json").read_text()) for name in "ac")
    for key in ("study_instance_uid", "lvef_percent", "lvedv_ml"):
        assert not {study[key] for study in one} & {study[key] for study in other}


def test_more_studies_begin_with_the_same(tmp_path: Path) -> None:
    """A study depends on its number, not on how many follow."""
    few, many = make_studies("ecg", 9, 1, tmp_path / "few"), make_studies("ecg", 9, 3, tmp_path / "many")
    assert few[0] == many[0]
    assert digests(tmp_path / "few" / "000") == digests(tmp_path / "many" / "000")


def test_negative_and_large_seeds_are_seeds(tmp_path: Path) -> None:
    """SEED is free: -7 and 7 differ, and a large one works."""
    found = [make_studies("ecg", seed, 1, tmp_path / str(seed))[0].lvef_percent for seed in (-7, 7, 2**40)]
    assert len(set(found)) == 3


@pytest.mark.parametrize(("method", "count"), [("pet", 1), ("ecg", 0)])
def test_wrong_orders_are_refused(method: str, count: int, tmp_path: Path) -> None:
    """An unknown method and a count below one are said."""
    with pytest.raises(ValueError, match=r"expected one of|at least one"):
        make_studies(method, 1, count, tmp_path)


def test_the_truth_is_complete(tmp_path: Path) -> None:
    """``truth.json`` says all that is promised of every study, and its files exist."""
    seen: list[tuple[int, int]] = []
    made = make_studies("ecg", 4, 2, tmp_path, progress=lambda done, of: seen.append((done, of)), patient=CANARY)
    stored = json.loads((tmp_path / "truth.json").read_text())
    assert seen == [(1, 2), (2, 2)]
    assert len(stored) == len(made) == 2
    for study in stored:
        assert study.keys() == set(StudyTruth.__dataclass_fields__)
        assert set(study["conditions"]) == set(DISEASES)
        assert study["modality"] == "ecg"
        assert 100 * (1 - study["lvesv_ml"] / study["lvedv_ml"]) == pytest.approx(study["lvef_percent"])
        assert all((tmp_path / name).is_file() for name in study["files"])
    assert len({study["study_instance_uid"] for study in stored}) == 2


def test_hearts_are_consistent(subjects: list[Subject]) -> None:
    """EF, stroke volume and output fit together; the right ventricle ejects what the left one does."""
    for subject in subjects:
        stroke = subject.lvedv_ml - subject.lvesv_ml
        assert subject.rvedv_ml - subject.rvesv_ml == pytest.approx(stroke)
        assert subject.cardiac_output_l_min == pytest.approx(stroke * subject.heart_rate_bpm / 1000)
        assert 12 <= subject.lvef_percent <= 78
        assert 15 <= subject.rvef_percent <= 75
        assert 42 <= subject.heart_rate_bpm <= 118


def test_the_distribution_of_ejection_fractions(subjects: list[Subject]) -> None:
    """About half of the hearts (48 % by the stated mixture) have 40 % or less; every tenth of the range occurs."""
    ef = np.array([subject.lvef_percent for subject in subjects])
    assert 0.43 < (ef <= 40).mean() < 0.53
    counts, _ = np.histogram(ef, bins=[15, 25, 35, 45, 55, 65, 76])
    assert counts.min() > 0.03 * SUBJECTS


def test_diseases_follow_the_heart(subjects: list[Subject]) -> None:
    """Every disease occurs, none in all; heart failure goes with a low ejection fraction."""
    for name in DISEASES:
        share = np.mean([subject.diseases[name] for subject in subjects])
        assert 0.02 < share < 0.8
    failing = [subject.lvef_percent for subject in subjects if subject.diseases["heart_failure"]]
    others = [subject.lvef_percent for subject in subjects if not subject.diseases["heart_failure"]]
    assert np.mean(failing) < np.mean(others) - 10


@settings(max_examples=40, deadline=None)
@given(systole=st.floats(0.30, 0.48))
def test_a_beat_empties_once(systole: float) -> None:
    """The ventricle is full at the start, emptiest once, at end-systole, and full again at the end."""
    phase = np.linspace(0, 1, 2001)
    emptied = emptying(phase, systole)
    assert emptied[0] == emptied[-1] == 0
    assert emptied.max() == pytest.approx(1, abs=1e-5)
    rising = np.diff(emptied[: int(systole * 2000)])
    falling = np.diff(emptied[int(systole * 2000) + 2 : -1])
    assert rising.min() >= -1e-12
    assert falling.max() <= 1e-12
    assert emptying(1.3, systole) == pytest.approx(float(emptying(0.3, systole)))


def test_the_drawn_shape_has_the_true_volume(subjects: list[Subject]) -> None:
    """The half-ellipsoid has the true volumes, and the area-length formula of echo gives the true EF from its section."""
    for subject in subjects[:50]:
        shape = left_ventricle(subject, np.array([0.0, subject.systole_fraction]))
        assert 2 / 3 * np.pi * shape.radius_mm**2 * shape.length_mm / 1000 == pytest.approx(
            [subject.lvedv_ml, subject.lvesv_ml]
        )
        area = np.pi * shape.radius_mm * shape.length_mm / 2  # half an ellipse
        end_diastole, end_systole = 8 * area**2 / (3 * np.pi * shape.length_mm) / 1000
        assert 100 * (1 - end_systole / end_diastole) == pytest.approx(subject.lvef_percent, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_limb_leads_are_exact(seed: int) -> None:
    """Einthoven's and Goldberger's relations hold to the rounding of single precision."""
    one, two, three, avr, avl, avf = clean_ecg(seed).signal_mv[:6].astype(float)
    assert np.abs(one + three - two).max() < 1e-6
    assert np.abs(avr + (one + two) / 2).max() < 1e-6
    assert np.abs(avl - (one - two / 2)).max() < 1e-6
    assert np.abs(avf - (two - one / 2)).max() < 1e-6


def test_rhythm_follows_the_heart() -> None:
    """R waves come at the subject's heart rate, within what ten seconds and an irregular rhythm allow."""
    for seed in (0, 1, 2, 3):
        subject = draw_subject(np.random.default_rng(seed))
        record = clean_ecg(seed)
        band = butter(2, (8, 25), "bandpass", fs=record.sampling_rate_hz, output="sos")
        strength = np.abs(sosfiltfilt(band, record.signal_mv.astype(float), axis=1)).sum(axis=0)
        peaks, _ = find_peaks(strength, height=0.4 * strength.max(), distance=int(0.3 * record.sampling_rate_hz))
        assert 6 * len(peaks) == pytest.approx(subject.heart_rate_bpm, abs=14)


def test_the_methods_are_the_three() -> None:
    """CMR, echo and ECG can be made."""
    assert set(METHODS) == {"cmr", "echo", "ecg"}
