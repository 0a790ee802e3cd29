"""DICOM folders with ``labels.csv``: phantoms, and the real stacks of the Sunnybrook collection."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from engines.errors import InputRefused, NotApplicable, Refusal, RefusalCode
from engines.records import CineStack
from tests.doubles.hearts import small_mr_scan, small_stack, small_subject
from training.data.sources import dicom_cmr
from training.data.sources.cmr_studies import CmrOptions, open_cmr_studies
from training.phantoms.dicom import Patient, Study, write_cmr

SHAPE = {"size_px": 24, "spacing_mm": 8.0, "phases": 9, "slice_distance_mm": 15.0}
SUNNYBROOK = {"SCD0000101_SC-HF-I-1": (26.0, 12, 10.0), "SCD0000301_SC-HF-I-4": (22.0, 10, 8.0)}
"""LVEF of the expert contours, slices and their distance; every slice has 20 phases."""


@pytest.fixture(scope="module")
def stack() -> CineStack:
    """A tiny heart."""
    return small_stack(3, **SHAPE)


@pytest.fixture(scope="module")
def images(stack: CineStack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its DICOM files, named without an ending."""
    folder = tmp_path_factory.mktemp("images")
    study = Study(key="dicom", number=1, patient=Patient(), subject=small_subject(3), description="Heart")
    scan, pixels = small_mr_scan(3, **SHAPE), np.asarray(stack.images_SPHW, np.uint16)
    for number, path in enumerate(write_cmr(study, scan, pixels, stack.trigger_times_ms, folder)):
        path.rename(folder / f"IM{number}")
    return folder


@pytest.fixture
def root(images: Path, tmp_path: Path) -> Path:
    """Two studies, one of them two folders deep beside a file that is no image, and labels."""
    shutil.copytree(images, tmp_path / "p1")
    shutil.copytree(images, tmp_path / "p2" / "series" / "images")
    (tmp_path / "p2" / "README.txt").write_text("no image")
    (tmp_path / "labels.csv").write_text("id,lvef_percent,site\np1,35.5,A\np2,60,B\n")
    return tmp_path


def test_files_of_any_name_and_depth_are_read(root: Path, stack: CineStack) -> None:
    """Both studies decode to the stack that was rendered; files that are no images do not matter."""
    studies = open_cmr_studies(root)
    assert (studies.name, studies.keys, len(studies)) == ("DICOM folders", ("p1", "p2"), 2)
    for key, lvef_percent in (("p1", 35.5), ("p2", 60.0)):
        study = studies.read(key)
        assert (study.lvef_percent, studies.lvef_percent(key)) == (lvef_percent, lvef_percent)
        assert np.array_equal(study.stack.images_SPHW, stack.images_SPHW)


def test_an_unusable_folder_refuses_one_study(root: Path) -> None:
    """No image among the files is a refusal of that study only."""
    shutil.rmtree(root / "p2" / "series")
    studies = open_cmr_studies(root)
    with pytest.raises(Refusal) as caught:
        studies.read("p2")
    assert caught.value.code in {RefusalCode.NOT_CARDIAC, RefusalCode.UNDECODABLE}
    assert studies.read("p1").key == "p1"
    (root / "p2" / "README.txt").unlink()
    with pytest.raises(NotApplicable, match="no MR image"):
        studies.read("p2")


@pytest.mark.parametrize("limit", ["MOST_FILES", "MOST_BYTES"])
def test_a_folder_beyond_the_bounds_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Several studies in one folder, or a disk image, are not loaded into memory."""
    monkeypatch.setattr(dicom_cmr, limit, 9)
    with pytest.raises(InputRefused, match="give each study a folder of its own"):
        open_cmr_studies(root).read("p1")


def test_links_out_of_the_folder_are_not_followed(root: Path) -> None:
    """A link counts neither as a file nor as a folder of a study."""
    (root / "p3").mkdir()
    (root / "p3" / "IM0").symlink_to(root / "p1" / "IM0")
    assert dicom_cmr.dicom_folders(root).keys() == {"p1", "p2"}
    (root / "p1" / "extra").symlink_to(root / "p2", target_is_directory=True)
    files = len(list((root / "p1").glob("IM*")))
    assert len(dicom_cmr.folder_instances(root / "p1")) == files


def test_the_excluded_band_holds_here_too(root: Path) -> None:
    """The option leaves out a study near the threshold in this layout."""
    assert open_cmr_studies(root, CmrOptions(exclude_percent=(35.0, 45.0))).keys == ("p2",)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_real_stacks_of_sunnybrook(sample_data: Path, tmp_path: Path) -> None:
    """Both real studies are read in this layout with true slice distances; the scouts beside them are refused."""
    for name in SUNNYBROOK:
        with tarfile.open(sample_data / "cmr" / name / "dicom.tar.xz") as archive:
            archive.extractall(tmp_path / name, filter="data")
    shutil.copytree(sample_data / "cmr" / "SCD0000101_localizers", tmp_path / "scouts")
    lines = [f"{name},{lvef}" for name, (lvef, _, _) in SUNNYBROOK.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["id,lvef_percent", *lines, "scouts,26"]) + "\n")
    studies = open_cmr_studies(tmp_path)
    for name, (lvef_percent, slices, distance_mm) in SUNNYBROOK.items():
        study = studies.read(name)
        assert study.lvef_percent == lvef_percent
        assert study.stack.images_SPHW.shape == (slices, 20, 256, 256)
        assert np.diff(study.stack.slice_positions_mm) == pytest.approx(distance_mm, abs=0.05)
    with pytest.raises(InputRefused) as caught:
        studies.read("scouts")
    assert caught.value.code is RefusalCode.NO_SHORT_AXIS_CINE
