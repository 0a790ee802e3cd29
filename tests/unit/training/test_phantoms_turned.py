"""Turned studies: the same scan with its pixels lying another way round, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import dcmread

from tests.doubles.hearts import written
from training.phantoms import make
from training.phantoms.cli import phantoms
from training.phantoms.dicom import Patient, write_turned
from training.phantoms.make import make_studies

NEW_UIDS = {"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"}
FOLLOWING = {"PixelData", "Rows", "Columns", "PixelSpacing"}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four images of a small phantom, made oblong, with pixels that are not square."""
    folder = tmp_path_factory.mktemp("scan")
    written("cmr", 3, folder, Patient())
    files = sorted(folder.glob("*.dcm"))[:4]
    for file in files:
        dataset = dcmread(file)
        oblong_HW = dataset.pixel_array[:, :-7]
        dataset.Rows, dataset.Columns = oblong_HW.shape
        dataset.PixelSpacing = ["3.0", "2.5"]
        dataset.PixelData = oblong_HW.tobytes()
        dataset.save_as(file)
    return files


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_turned_image_decodes_to_the_turned_array(scan: list[Path], quarter_turns: int, tmp_path: Path) -> None:
    """Rows, columns and spacing follow the pixels; of everything else only the three UIDs are others."""
    for before, file in zip(scan, write_turned(scan, quarter_turns, tmp_path), strict=True):
        original, turned = dcmread(before), dcmread(file)
        assert np.array_equal(turned.pixel_array, np.rot90(original.pixel_array, quarter_turns))
        spacing = [float(value) for value in turned.PixelSpacing]
        assert spacing == ([2.5, 3.0] if quarter_turns % 2 else [3.0, 2.5])
        assert turned.file_meta.MediaStorageSOPInstanceUID == turned.SOPInstanceUID
        changed = {element.keyword for element in original if turned[element.tag] != element}
        assert changed - FOLLOWING == NEW_UIDS
        assert {element.tag for element in original} == {element.tag for element in turned}


def test_turned_studies_keep_their_form(scan: list[Path], tmp_path: Path) -> None:
    """One study and one series stay one, no UID is used twice, and the same input gives the same UIDs."""
    studies = []
    for turns in (1, 2, 3, 3):
        folder = tmp_path / f"{len(studies)}"
        folder.mkdir()
        headers = [dcmread(file, stop_before_pixels=True) for file in write_turned(scan, turns, folder)]
        assert len({header.SeriesInstanceUID for header in headers}) == 1
        assert len({header.SOPInstanceUID for header in headers}) == len(scan)
        (study,) = {header.StudyInstanceUID for header in headers}
        studies.append(study)
    assert len(set(studies)) == 3
    assert studies[2] == studies[3]


@pytest.fixture
def small(scan: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images instead of a whole study."""

    def writer(_study: object, _subject: object, _rng: object, folder: Path) -> list[Path]:
        files = [folder / file.name for file in scan]
        for source, file in zip(scan, files, strict=True):
            file.write_bytes(source.read_bytes())
        return files

    monkeypatch.setitem(make._WRITERS, "cmr", writer)


@pytest.mark.usefixtures("small")
def test_every_study_comes_four_times(tmp_path: Path) -> None:
    """Each study stands beside its three turned ones; truth and patient are the same, study and files are not."""
    made = make_studies("cmr", 4, 2, tmp_path, turned=True)
    stored = json.loads((tmp_path / "truth.json").read_text())
    assert [truth["turned_degrees"] for truth in stored] == [0, 90, 180, 270] * 2
    for four in (made[:4], made[4:]):
        assert {truth.unturned_study_instance_uid for truth in four} == {four[0].unturned_study_instance_uid}
        assert len({truth.lvef_percent for truth in four}) == 1
        assert len({truth.files for truth in four}) == 4
        for truth in four[1:]:
            headers = [dcmread(tmp_path / file, stop_before_pixels=True) for file in truth.files]
            assert {header.StudyInstanceUID for header in headers} == {truth.study_instance_uid}
    assert len({truth.study_instance_uid for truth in made[1:4]}) == 3


@pytest.mark.usefixtures("small")
def test_without_turning_nothing_is_added(tmp_path: Path) -> None:
    """A plain study is its own unturned one."""
    (truth,) = make_studies("cmr", 4, 1, tmp_path)
    assert (truth.turned_degrees, truth.unturned_study_instance_uid) == (0, truth.study_instance_uid)


@pytest.mark.parametrize("method", ["echo", "ecg"])
def test_only_cardiac_mr_can_be_turned(method: str, tmp_path: Path) -> None:
    """A turned sector or a turned ECG is no study; the program says what it found and expected."""
    with pytest.raises(ValueError, match="cannot be turned"):
        make_studies(method, 1, 1, tmp_path, turned=True)
    options = ["--method", method, "--seed", "1", "--n", "1", "--out", str(tmp_path), "--turned"]
    result = CliRunner().invoke(phantoms, ["make", *options])
    assert result.exit_code == 2
    assert f"found --method {method}, expected --method cmr" in result.output
