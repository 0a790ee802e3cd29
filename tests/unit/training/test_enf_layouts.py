"""The comparison on a data set folder of each layout, by the command itself: from files to the page."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

from engines.records import CineStack
from tests.doubles.hearts import small_mr_scan, small_stack, small_subject
from tests.unit.training.test_enf_study import _baseline, tiny_run
from training.cli import main
from training.config import OptimConfig
from training.enf import study
from training.phantoms.dicom import Patient, Study, write_cmr

pytestmark = pytest.mark.slow

SIZES = (4, 2, 4)
LVEF_PERCENT = (25, 62, 31, 55, 38, 47, 19, 66, 35, 58)
HEARTS = len(LVEF_PERCENT)


@pytest.fixture(scope="module")
def stacks() -> list[CineStack]:
    """Small hearts, each with another scanner."""
    return [small_stack(seed, one_series_per_slice=True) for seed in range(HEARTS)]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that train in seconds."""
    optim = OptimConfig(
        epochs=1,
        batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup_fraction=0.1,
        gradient_clip=1.0,
        autocast_bfloat16=False,
    )
    monkeypatch.setattr(study, "load_recipe", lambda _name: tiny_run())
    monkeypatch.setattr(study, "BaselineConfig", lambda task: _baseline(optim, task))


def dicom_files(stack: CineStack, seed: int, folder: Path) -> list[Path]:
    """Write the stack as the instances of one study."""
    made = Study(key=f"layout/{seed}", number=1, patient=Patient(), subject=small_subject(seed), description="Heart")
    scan = small_mr_scan(seed, one_series_per_slice=True)
    return list(write_cmr(made, scan, np.asarray(stack.images_SPHW, np.uint16), stack.trigger_times_ms, folder))


def table_of(root: Path, names: list[str]) -> None:
    """Write ``labels.csv``."""
    rows = [f"{name},{lvef}" for name, lvef in zip(names, LVEF_PERCENT, strict=True)]
    (root / "labels.csv").write_text("\n".join(["id,lvef_percent", *rows]) + "\n")


def as_dicom(root: Path, stacks: list[CineStack]) -> None:
    """One folder of images a subject."""
    for seed, stack in enumerate(stacks):
        (root / f"p{seed}").mkdir()
        dicom_files(stack, seed, root / f"p{seed}")
    table_of(root, [f"p{seed}" for seed in range(HEARTS)])


def as_nifti(root: Path, stacks: list[CineStack]) -> None:
    """One 4D image a subject."""
    for seed, stack in enumerate(stacks):
        row, column = np.array(stack.orientation[:3]), np.array(stack.orientation[3:])
        normal, step_mm = np.cross(row, column), float(np.diff(stack.slice_positions_mm[:2])[0])
        affine = np.eye(4)
        affine[:3, :3] = np.stack([row * stack.spacing_mm[1], column * stack.spacing_mm[0], normal * step_mm], axis=1)
        affine[:3, 3] = stack.slice_positions_mm[0] * normal
        image = nibabel.Nifti1Image(
            np.ascontiguousarray(stack.images_SPHW.transpose(3, 2, 0, 1)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        )
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = float(np.diff(stack.trigger_times_ms[0, :2])[0]) / 1000
        (root / f"p{seed}").mkdir()
        nibabel.save(image, root / f"p{seed}" / "sa.nii.gz")
    table_of(root, [f"p{seed}" for seed in range(HEARTS)])


def as_ukbb(root: Path, stacks: list[CineStack]) -> None:
    """One archive a participant, and a table."""
    rows = ["eid,24103-2.0"]
    for seed, stack in enumerate(stacks):
        folder = root.parent / f"images-{seed}"
        folder.mkdir()
        with zipfile.ZipFile(root / f"{1000018 + seed}_20209_2_0.zip", "w") as archive:
            for path in dicom_files(stack, seed, folder):
                archive.write(path, path.name)
        rows.append(f"{1000018 + seed},{LVEF_PERCENT[seed]}")
    (root / "ukb1.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (as_dicom, "DICOM folders"),
        (as_nifti, "NIfTI"),
        (as_ukbb, "UK Biobank 20209, LVEF of field 24103"),
    ],
)
def test_a_data_set_goes_through_the_whole_comparison(
    layout: Callable[[Path, list[CineStack]], None], name: str, stacks: list[CineStack], tmp_path: Path
) -> None:
    """The page names the data set and its caution, the field's answers do not turn, and the command ends with 0."""
    root = tmp_path / "data"
    root.mkdir()
    layout(root, stacks)
    arguments = ["evaluate", "enf", "--data", str(root), "--out", str(tmp_path / "out"), "--sizes", "4,2,4"]
    arguments += [
        "--seeds",
        "1",
        "--segmentation-hearts",
        "0",
        "--dicom-studies",
        "0",
        "--workers",
        "1",
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert f"Data set: {name}" in done.output
    assert "Not for clinical use" in done.output
    measured = json.loads((tmp_path / "out" / "enf.json").read_text())
    assert (measured["validation_hearts"], measured["test_hearts"]) == ([SIZES[1]], [SIZES[2]])
    field = measured["models"][0]
    assert (field["model"], field["quarter_turns"]["flips"]["count"]) == ("ENF", 0)
    assert [each["met"] for each in measured["requirements"]] == [True, True]
