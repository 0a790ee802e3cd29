"""Stacks measured by segmentation: the painted truth comes back, crops are judged, tables and pages say what was found."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from engines.preprocess.cmr import locate_heart
from tests.doubles.painted_stacks import GREYS, PaintedStacks, ReadsPaint
from training.cli import main
from training.data.sources.paired_subjects import TARGETS
from training.ecg_cmr import segmentation_study as study
from training.ecg_cmr.measured_stacks import (
    CropCheck,
    Segmenter,
    StackRow,
    crop_check,
    largest_piece,
    measure_stack,
    read_measured,
    seen_crop,
    write_rows,
)
from training.ecg_cmr.preparation import cmr_volume_small
from training.ecg_cmr.segmentation_page import markdown
from training.ecg_cmr.segmentation_study import PhantomStacks, SegmentationOptions, document, measured_rows
from training.models.short_axis_unet import Tissue
from training.recipes.enf_small import preprocess


@pytest.fixture(scope="module")
def by() -> Segmenter:
    """The network that reads paint."""
    return Segmenter(network=ReadsPaint(), spec=preprocess(size_px=64), volume=cmr_volume_small())


def test_a_painted_heart_is_measured(by: Segmenter) -> None:
    """Volumes within a tenth, LVEF within 8 points of what is true; the crop holds all of the heart, by either labels.

    What a network calls a heart elsewhere, here in a corner, is no part of it.
    """
    source = PaintedStacks(stacks=4)
    stack, labels_SPHW = source.read(1)
    assert not labels_SPHW[:, :, 20:26, 20:26].any()
    stack.images_SPHW[:, :, 20:26, 20:26] = GREYS[Tissue.RIGHT_CAVITY]
    row = measure_stack("1", stack, by, stated=source.stated(1), labels_SPHW=labels_SPHW)
    assert set(row.measured) == set(TARGETS) - {"wall_thickness"}
    for name in ("lvedv", "lvesv", "rvedv", "rvesv", "lv_mass"):
        assert row.measured[name] == pytest.approx(row.stated[name], rel=0.1), name
    assert row.measured["lvef"] == pytest.approx(row.stated["lvef"], abs=8)
    assert row.crop is not None
    assert row.true_crop is not None
    assert row.crop.inside_share == row.true_crop.inside_share == 1.0
    assert row.crop.margin_mm == pytest.approx(row.true_crop.margin_mm, abs=3.0)


def test_a_stack_without_a_heart_has_its_reason(by: Segmenter) -> None:
    """No numbers, not zeros; and patients have no true crop."""
    source = PaintedStacks(stacks=2, blank=0)
    row = measure_stack("0", source.read(0)[0], by, stated={"lvef": 50.0})
    assert row == StackRow(key="0", stated={"lvef": 50.0}, code=row.code, reason=row.reason)
    assert row.code
    assert row.reason
    assert measure_stack("1", source.read(1)[0], by, stated={}).true_crop is None


def test_a_crop_that_cuts_is_told() -> None:
    """Half of the heart beyond the border is half inside, and the margin is negative by how far it reaches."""
    labels = np.zeros((2, 40, 40), np.uint8)
    labels[1, 18:22, 30:40] = Tissue.RIGHT_CAVITY
    assert crop_check(labels, (19.5, 19.5), (2.0, 2.0), 80.0) == CropCheck(inside_share=1.0, margin_mm=0.0)
    assert crop_check(labels, (19.5, 19.5), (2.0, 2.0), 60.0) == CropCheck(inside_share=0.5, margin_mm=-10.0)
    assert crop_check(labels, (19.5, 34.5), (2.0, 1.0), 60.0) == CropCheck(inside_share=1.0, margin_mm=25.0)
    assert crop_check(labels, (19.5, 34.5), (4.0, 1.0), 18.0).margin_mm == 1.0


def test_other_organs_are_no_part_of_the_heart() -> None:
    """Only the largest piece, over slices, is held against the crop."""
    labels = np.zeros((3, 20, 20), np.uint8)
    labels[:, 5:9, 5:9] = Tissue.LEFT_CAVITY
    labels[:, 9, 5:9] = Tissue.MYOCARDIUM
    labels[0, 15:20, 10:20] = Tissue.RIGHT_CAVITY
    kept = largest_piece(labels)
    assert kept[0, 16, 12] == Tissue.BACKGROUND
    np.testing.assert_array_equal(kept[:, :10], labels[:, :10])


def test_where_no_heart_is_seen_no_crop_is_judged(by: Segmenter) -> None:
    """A network that sees none in the wider crop says nothing of the crop, and stops no data set."""

    class SeesNothing(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([torch.ones_like(image), torch.zeros_like(image).expand(-1, 3, -1, -1)], dim=1)

    located = locate_heart(PaintedStacks(stacks=1).read(0)[0], by.volume.heart)
    assert seen_crop(located, by) is not None
    assert seen_crop(located, replace(by, network=SeesNothing())) is None


def row(key: str, lvef: float, **changes: object) -> StackRow:
    """A row with one target."""
    made = StackRow(
        key=key,
        stated={"lvef": lvef},
        measured={"lvef": lvef + 2.0},
        crop=CropCheck(inside_share=1.0, margin_mm=lvef),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_table_is_read_back(tmp_path: Path) -> None:
    """What was not measured stays unmeasured, a refused stack is there with its reason."""
    refused = row("b", 40.0, measured={}, crop=None, code="too_few_slices", reason='3 slices, "expected" 6')
    write_rows([row("a", 51.25), refused], tmp_path / "measured.csv")
    text = (tmp_path / "measured.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0].startswith("key,lvedv,lvesv,lvsv,lvef,")
    assert 'too_few_slices,"3 slices, ""expected"" 6"' in text
    assert read_measured(tmp_path / "measured.csv") == {"a": {"lvef": 53.25}, "b": {}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("eid,lvef\n1,50\n", "has no column key"),
        (f"key,{','.join(TARGETS)}\na{',' * 11}\na{',' * 11}\n", "line 3: .* twice"),
        (f"key,{','.join(TARGETS)}\na,abc{',' * 10}\n", "line 2: lvedv is no number"),
        (f"key,{','.join(TARGETS)}\na,inf{',' * 10}\n", "line 2: lvedv is no number"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """With the line, and without whose it is."""
    (tmp_path / "measured.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_measured(tmp_path / "measured.csv")


def options(out: Path, **changes: object) -> SegmentationOptions:
    """Of a small study."""
    made = SegmentationOptions(
        data=None,
        instance=2,
        out=out,
        docs=None,
        stacks=6,
        seed=3,
        training_hearts=20,
        contours=None,
        workers=1,
        command="purkinje-train evaluate segmentation",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def painted_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The whole command on painted stacks, with the network that reads paint in place of a trained one."""
    folder = tmp_path_factory.mktemp("segmentation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "phantom_segmentation", lambda *_: ReadsPaint())
        patch.setattr(study, "_source", lambda _: PaintedStacks(stacks=7, blank=2))
        page = study.run_segmentation_study(options(folder / "out", docs=folder / "docs"), lambda _: None)
    return folder, page


def test_the_study_writes_page_numbers_and_table(painted_study: tuple[Path, str]) -> None:
    """The page agrees with the numbers; no key of a patient is in either, all are in the table below --out alone."""
    folder, page = painted_study
    numbers = json.loads((folder / "docs" / "segmentation.json").read_text(encoding="utf-8"))
    assert page == (folder / "docs" / "segmentation.md").read_text(encoding="utf-8") == markdown(numbers)
    assert (numbers["stacks"], sum(numbers["refused"].values())) == (7, 1)
    found = numbers["agreement"]["lvesv"]
    assert found["stacks"] == 6
    assert abs(found["bias"]["value"]) < 8
    assert f"| {found['bias']['value']:+.2f} [" in page
    assert numbers["crop"]["truth"]["whole"] == numbers["crop"]["network"]["whole"] == 6
    assert "Not for clinical use" in page
    for path in (folder / "docs").iterdir():
        assert "participant-" not in path.read_text(encoding="utf-8")
    assert len(read_measured(folder / "out" / "measured.csv")) == 7
    assert not (folder / "docs" / "measured.csv").exists()


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, by: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed in the middle of a line goes on with that stack; another network begins anew."""
    source = PaintedStacks(stacks=3)
    whole = measured_rows(source, by, options(tmp_path), lambda _: None)
    (journal,) = tmp_path.glob("stacks-*.jsonl")
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    journal.write_text("".join(lines[:2]) + lines[2][:30], encoding="utf-8")
    read: list[int] = []
    monkeypatch.setattr(PaintedStacks, "read", lambda self, number: read.append(number) or original(self, number))
    assert measured_rows(source, by, options(tmp_path), lambda _: None) == whole
    assert read == [2]
    assert len(journal.read_text(encoding="utf-8").splitlines()) == 3
    monkeypatch.setattr(PaintedStacks, "stated", lambda _, number: {"lvef": 50.0 + number})
    assert measured_rows(source, by, options(tmp_path), lambda _: None)[2].stated == {"lvef": 52.0}
    other = ReadsPaint()
    other.greys += 1.0
    measured_rows(source, replace(by, network=other), options(tmp_path), lambda _: None)
    assert read == [2, 0, 1, 2]


original = PaintedStacks.read


def test_processes_give_the_same_rows(tmp_path: Path, by: Segmenter) -> None:
    """In the order of the keys."""
    source = PaintedStacks(stacks=3, blank=0)
    one = measured_rows(source, by, options(tmp_path / "a"), lambda _: None)
    assert measured_rows(source, by, options(tmp_path / "b", workers=2), lambda _: None) == one
    assert [each.key for each in one] == list(source.keys)


def test_hardly_a_stack_measured_is_no_study(tmp_path: Path) -> None:
    """The reasons are told, not a mean of four."""
    rows = [row(str(number), 40.0 + number) for number in range(4)]
    refused = row("5", 50.0, measured={}, code="heart_not_found", reason="no heart")
    with pytest.raises(ValueError, match="4 of 5 stacks could be measured, 5 expected: no heart"):
        document([*rows, refused], "x", options(tmp_path))
    found = document([*rows, row("6", 60.0)], "x", options(tmp_path), draws=20)
    assert "states no quantity" in markdown(found | {"agreement": {}, "experts": {}})
    assert list(found["agreement"]) == ["lvef"]
    assert found["agreement"]["lvef"]["bias"]["value"] == 2.0
    assert found["crop"] == {
        "network": {"stacks": 5, "whole": 5, "least_inside_share": 1.0, "margin_mm": [40.0, 40.2, 42.0]},
        "truth": None,
    }


def test_phantoms_are_new_and_travel(tmp_path: Path) -> None:
    """The same number is the same heart in any process, with labels of its shape."""
    source = PhantomStacks(seed=1, stacks=2)
    stack, labels = pickle.loads(pickle.dumps(source)).read(1)
    again, _ = source.read(1)
    np.testing.assert_array_equal(stack.images_SPHW, again.images_SPHW)
    assert labels is not None
    assert labels.shape == stack.images_SPHW.shape
    assert source.stated(1) != source.stated(0)
    assert set(source.stated(0)) == set(TARGETS)


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    """A table without the data set that it fills in."""
    table = tmp_path / "measured.csv"
    write_rows([], table)
    found = CliRunner().invoke(main, ["evaluate", "ecg_cmr", "--measured", str(table)])
    assert found.exit_code == 2
    assert "give its folder as --data" in found.output


def test_a_broken_folder_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes minutes."""
    monkeypatch.setattr(study, "phantom_segmentation", lambda *_: pytest.fail("trained first"))
    found = CliRunner().invoke(
        main, ["evaluate", "segmentation", "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    )
    assert found.exit_code == 1
    assert "20205" in found.output


def test_no_contours_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a page without them."""
    monkeypatch.setattr(study, "phantom_segmentation", lambda *_: ReadsPaint())
    monkeypatch.setattr(study, "_source", lambda _: PaintedStacks(stacks=0))
    with pytest.raises(FileNotFoundError, match="no folder with contours"):
        study.run_segmentation_study(options(tmp_path, contours=tmp_path), lambda _: None)
