"""HMC-QU: rows as the workbook holds them, codes detected and never guessed, screens through the sector mask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpyxl import Workbook

from engines.preprocess.spec import EchoSpec
from tests.doubles.echo_videos import write_avi
from tests.doubles.hearts import small_loop
from training.data.sources.hmc_qu import MASKS, HmcQu
from training.data.sources.hmc_table import abnormal_codes
from training.data.sources.reduced_loop import reduced_loop
from training.data.sources.videos import UnusableVideo

SPEC = EchoSpec(
    **json.loads((Path(__file__).parents[1] / "engines" / "test_preprocess_specs.json").read_text())["echo"]
)
SMALL = SPEC.model_copy(update={"size_px": 24})
HEADER = ["ECHO", *(f"SEG{number}" for number in (1, 2, 3, 5, 6, 7)), "One cardiac-cycle frames", None]
TICK = "\u00fc"
ROWS: list[list[Any]] = [
    [None, *[None] * 6, "Reference", "End of cycle", None],
    ["ES0001_4CH_1", 1, 1, 1, 1, 1, 1, 2, 9, TICK],
    ["ES0001_4CH_2", 1, 1, 2, 1, None, 1, None, None, None],
    ["ES0002_4CH_1", 2, 2, 2, 1.0, 1, 1, 1, 12, TICK],
]


def workbook(path: Path, rows: list[list[Any]], header: list[Any] | None = None) -> None:
    """Write a table under its merged header."""
    book = Workbook()
    sheet = book.active
    assert sheet is not None
    for row in [header or [*HEADER, "LV Wall Ground-truth Segmentation Masks"], *rows]:
        sheet.append(row)
    book.save(path)


def screen(frames: int = 12) -> np.ndarray:
    """A screen of a scanner, blue, green and red, uint8 [T, H, W, 3]."""
    grey = np.stack(list(small_loop(2, frames=frames).frames.luma(range(frames))))
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.fixture(scope="module")
def shown() -> np.ndarray:
    """One screen for all tests."""
    return screen()


@pytest.fixture
def data_set(tmp_path: Path, shown: np.ndarray) -> Path:
    """Three videos of two patients, two with masks."""
    workbook(tmp_path / "A4C.xlsx", ROWS)
    for row in ROWS[1:]:
        write_avi(tmp_path / "HMC-QU" / "A4C" / f"{row[0]}.avi", shown, 25.0)
    (tmp_path / MASKS).mkdir()
    for row in (ROWS[1], ROWS[3]):
        (tmp_path / MASKS / f"Mask_{row[0]}.mat").write_bytes(b"")
    return tmp_path


def test_rows_become_videos(data_set: Path) -> None:
    """Infarction where any segment is abnormal, the cycle from 0 with its end exclusive, the tick, the patient."""
    entries = HmcQu(root=data_set, preprocess=SMALL).videos()
    assert [
        (entry.key, entry.patient, entry.targets["infarction"], entry.targets["has_mask"]) for entry in entries
    ] == [
        ("ES0001_4CH_1", "ES0001", 0.0, 1.0),
        ("ES0001_4CH_2", "ES0001", 1.0, 0.0),
        ("ES0002_4CH_1", "ES0002", 1.0, 1.0),
    ]
    assert [dict(entry.marks) for entry in entries] == [
        {"cycle_start": 1, "cycle_end": 9},
        {},
        {"cycle_start": 0, "cycle_end": 12},
    ]
    masked = HmcQu(root=data_set, preprocess=SMALL, only_masked=True).videos()
    assert [entry.key for entry in masked] == ["ES0001_4CH_1", "ES0002_4CH_1"]


def test_screens_go_through_the_sector_mask(data_set: Path) -> None:
    """Text and trace beside the sector are gone, the sector is what serving makes of the record, 40 ms a frame."""
    source = HmcQu(root=data_set, preprocess=SMALL)
    frames, times_ms = source.read(source.videos()[0])
    assert times_ms == pytest.approx(40.0 * np.arange(12))
    loop = small_loop(2, frames=12)
    expected = reduced_loop(loop, SMALL)
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 6


@pytest.mark.parametrize(
    ("cells", "abnormal"),
    [
        (["1", "2", "", "1"], {"2"}),
        (["0", "1"], {"1"}),
        (["1", "3", "4"], {"3", "4"}),
        (["non-MI", "MI"], {"MI"}),
        (["normal", "abnormal", "normal"], {"abnormal"}),
    ],
)
def test_codes_are_detected(cells: list[str], abnormal: set[str]) -> None:
    """Words say it themselves; of numbers the scale says which is normal."""
    assert abnormal_codes(cells, "A4C.xlsx") == abnormal


@pytest.mark.parametrize(
    "cells", [["1", "1"], ["0"], ["2", "3"], ["0", "1", "2"], ["5", "9"], ["a", "b"], ["MI", "1"], []]
)
def test_codes_that_cannot_be_told_apart_are_refused(cells: list[str]) -> None:
    """One code alone, scales without their normal value, and unknown words ask for a statement."""
    with pytest.raises(ValueError, match=r"A4C.xlsx: the segments have the codes .* say which are abnormal"):
        abnormal_codes(cells, "A4C.xlsx")


def test_stated_codes_are_taken() -> None:
    """What the caller says holds, if it occurs at all."""
    assert abnormal_codes(["a", "b"], "A4C.xlsx", ["b"]) == {"b"}
    with pytest.raises(ValueError, match=r"no segment has one of the codes \['c'\]; found \['a', 'b'\]"):
        abnormal_codes(["a", "b"], "A4C.xlsx", ["c"])


def rows_of(*rows: list[Any], header: list[Any] | None = None) -> Callable[[Path], object]:
    """Another table."""
    return lambda root: workbook(root / "A4C.xlsx", list(rows), header)


def with_cells(**cells: Any) -> Callable[[Path], object]:
    """The third video's row with other cells, by number of the column."""
    row = list(ROWS[3])
    for column, value in cells.items():
        row[int(column[1:])] = value
    return rows_of(*ROWS[:3], row)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "A4C.xlsx").unlink(), "no A4C.xlsx in"),
        (lambda root: (root / "A4C.xlsx").write_bytes(b"a,b"), "A4C.xlsx is not readable as an Excel workbook"),
        (lambda root: (root / "HMC-QU").rename(root / "other"), "no folder HMC-QU/A4C in"),
        (rows_of(*ROWS[1:], header=["NAME", *HEADER[1:], "Masks"]), "no first column ECHO in the first 5 rows"),
        (rows_of(ROWS[0]), "has a header and no videos"),
        (rows_of(["a", 1, 2], header=["ECHO", "SEG1", "SEG2"]), "has 3 columns"),
        (rows_of(*ROWS, ROWS[1]), "names 1 videos more than once"),
        (rows_of(*ROWS, ["ES0009_4CH_1", *ROWS[1][1:]]), "1 of 4 videos are not there, the first is of A4C.xlsx row 6"),
        (
            rows_of(*ROWS[:2], [*ROWS[2][:-1], TICK], ROWS[3]),
            "1 of 3 masks are not there, the first is of A4C.xlsx row 4",
        ),
        (with_cells(c7=12), "row 5: the cycle is from frame '12' to '12'"),
        (with_cells(c7=0), "row 5: the cycle is from frame '0' to '12'"),
        (with_cells(c8=None), "row 5: the cycle is from frame '1' to ''"),
        (with_cells(c8="late"), "row 5: the cycle is from frame '1' to 'late'"),
        (with_cells(**{f"c{column}": None for column in range(1, 7)}), "row 5: no segment has a label"),
        (with_cells(c1=9), r"the segments have the codes \['1', '2', '9'\]"),
    ],
)
def test_every_broken_folder_is_told(data_set: Path, damage: Callable[[Path], object], message: str) -> None:
    """Each way the workbook or the folder can be wrong is an error that names the row."""
    damage(data_set)
    with pytest.raises(ValueError, match=message):
        HmcQu(root=data_set, preprocess=SMALL).videos()


def test_a_cycle_beyond_the_video(data_set: Path) -> None:
    """A cycle that ends after the last frame is told when the video is read."""
    with_cells(c8=13)(data_set)
    source = HmcQu(root=data_set, preprocess=SMALL)
    with pytest.raises(UnusableVideo, match="row 5: the cycle ends with frame 13; the video has 12"):
        source.read(source.videos()[2])


def test_no_video_has_a_mask(data_set: Path) -> None:
    """Asked for masked videos alone, a table without a tick is told."""
    rows_of(*[[*row[:-1], None] for row in ROWS])(data_set)
    with pytest.raises(ValueError, match=r"no video of A4C\.xlsx has a mask"):
        HmcQu(root=data_set, preprocess=SMALL, only_masked=True).videos()
