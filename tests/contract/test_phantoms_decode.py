"""Same content, different container: a phantom written as DICOM decodes to the record it was rendered as."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from engines.decode.cmr import decode_cmr
from engines.decode.ecg import decode_ecg
from engines.decode.echo import decode_echo
from engines.records import Modality
from tests.doubles.hearts import small_loop, small_stack, small_subject, written
from training.phantoms.dicom import Patient
from training.phantoms.draws import METHODS
from training.phantoms.ecg import ecg_record
from training.phantoms.make import make_studies

CANARY = Patient(name="CANARY^KIWI", patient_id="CANARY-4711", birth_date="19010203")
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """One small study of each method for each seed, under ``method/seed``."""
    return {
        f"{method}/{seed}": written(method, seed, tmp_path_factory.mktemp(f"{method}{seed}"), CANARY)
        for method in METHODS
        for seed in SEEDS
    }


def files(study: list[bytes]) -> list[io.BytesIO]:
    """The instances as files."""
    return [io.BytesIO(each) for each in study]


@pytest.mark.parametrize("seed", SEEDS)
def test_cmr_decodes_exactly(seed: int, studies: dict[str, list[bytes]]) -> None:
    """Pixels, spacing, positions, times, orientation and heart rate of the stack come back as rendered."""
    decoded, rendered = decode_cmr(files(studies[f"cmr/{seed}"])), small_stack(seed)
    assert np.array_equal(decoded.images_SPHW, rendered.images_SPHW)
    assert decoded.spacing_mm == rendered.spacing_mm
    assert decoded.slice_positions_mm == pytest.approx(rendered.slice_positions_mm, abs=1e-3)
    assert decoded.trigger_times_ms == pytest.approx(rendered.trigger_times_ms, abs=0.051)
    assert decoded.orientation == pytest.approx(rendered.orientation, abs=1e-6)
    assert decoded.heart_rate_bpm == rendered.heart_rate_bpm


@pytest.mark.parametrize("seed", SEEDS)
def test_ecg_decodes_within_half_a_step(seed: int, studies: dict[str, list[bytes]]) -> None:
    """Every sample comes back within half of the 1.25 uV step; rate and filters are kept."""
    decoded = decode_ecg(files(studies[f"ecg/{seed}"]))
    rendered = ecg_record(small_subject(seed), np.random.default_rng(seed))
    assert decoded.sampling_rate_hz == rendered.sampling_rate_hz
    assert np.abs(decoded.signal_mv - rendered.signal_mv).max() <= 0.000626
    assert (decoded.highpass_hz, decoded.lowpass_hz) == (rendered.highpass_hz, rendered.lowpass_hz)
    assert decoded.derived_leads == frozenset()


@pytest.mark.parametrize("seed", SEEDS)
def test_echo_decodes_up_to_jpeg(seed: int, studies: dict[str, list[bytes]]) -> None:
    """Frames come back within 2 grey levels on average, times, region, spacing, rate and view as rendered."""
    (decoded,), rendered = decode_echo(files(studies[f"echo/{seed}"])), small_loop(seed)
    indices = range(0, len(rendered.frames), 5)
    differences = [
        np.abs(one.astype(int) - other).mean()
        for one, other in zip(decoded.frames.luma(indices), rendered.frames.luma(indices), strict=True)
    ]
    assert np.mean(differences) < 2
    assert decoded.frame_times_ms == pytest.approx(rendered.frame_times_ms)
    assert decoded.region_px == rendered.region_px
    assert decoded.spacing_mm == pytest.approx(rendered.spacing_mm)
    assert (decoded.heart_rate_bpm, decoded.view) == (rendered.heart_rate_bpm, rendered.view)


def test_a_named_patient_is_in_every_file(studies: dict[str, list[bytes]]) -> None:
    """A canary's name, ID and birth date stand in every instance, so that a leak can be seen."""
    for study in studies.values():
        for instance in (*study[:2], study[-1]):
            header = dcmread(io.BytesIO(instance), stop_before_pixels=True)
            found = (str(header.PatientName), header.PatientID, header.PatientBirthDate)
            assert found == (CANARY.name, CANARY.patient_id, CANARY.birth_date)


def test_phantoms_are_plainly_phantoms(tmp_path: Path) -> None:
    """Unless told otherwise the patient is PHANTOM^PURKINJE without a birth date, one ID per study."""
    make_studies("ecg", 3, 2, tmp_path)
    headers = [dcmread(path, stop_before_pixels=True) for path in sorted(tmp_path.rglob("*.dcm"))]
    assert {str(header.PatientName) for header in headers} == {"PHANTOM^PURKINJE"}
    assert {header.PatientBirthDate for header in headers} == {""}
    assert len({header.PatientID for header in headers}) == 2


def test_one_study_has_one_study_uid(studies: dict[str, list[bytes]]) -> None:
    """All instances of a study share its UID and differ in their own."""
    for study in studies.values():
        headers = [dcmread(each, stop_before_pixels=True) for each in files(study)]
        assert len({header.StudyInstanceUID for header in headers}) == 1
        assert len({header.SOPInstanceUID for header in headers}) == len(study)


@pytest.mark.parametrize("method", METHODS)
def test_the_files_are_valid_dicom(method: str, studies: dict[str, list[bytes]], tmp_path: Path) -> None:
    """The validator dciodvfy finds no error in a study of each method."""
    program = shutil.which("dciodvfy")
    if program is None:
        assert os.environ.get("CI") != "true", "dciodvfy is missing; apt-get install dicom3tools"
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    study = studies[f"{Modality(method)}/1"]
    for number, instance in enumerate((study[0], study[-1])):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(instance)
        done = subprocess.run([program, path], capture_output=True, text=True, check=False)
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        assert errors == []
        assert done.returncode == 0
