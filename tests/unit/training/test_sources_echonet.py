"""EchoNet-Dynamic's layout: what is read, what is left out, and what each broken folder is told."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.doubles.echo_videos import smooth_frames, write_avi
from training.data.clip_store_build import build_clip_store
from training.data.sources.echonet import EchoNet
from training.data.sources.videos import UnusableVideo, squared

COLUMNS = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"
SIDE, FRAMES = 16, 7
NAMES = ("0XA", "0XB", "0XC")


def file_list(root: Path, *rows: str, columns: str = COLUMNS) -> None:
    """Write the table."""
    (root / "FileList.csv").write_text("\n".join([columns, *rows]) + "\n")


def row(name: str, split: str = "TRAIN", ef: str = "55.5", frames: int = FRAMES, fps: str = "50") -> str:
    """A line of the table."""
    return f"{name},{ef},40.5,91.0,{SIDE},{SIDE},{fps},{frames},{split}"


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Three videos: with extension, without, and a part in lower case."""
    file_list(tmp_path, row("0XA.avi"), row("0XB", "val", "12.5"), row("0XC", "Test", "71", fps="25"))
    for number, name in enumerate(NAMES):
        write_avi(tmp_path / "Videos" / f"{name}.avi", smooth_frames(FRAMES, SIDE, SIDE, number))
    return tmp_path


def tracings(root: Path, *names: str, header: str = "FileName,X1,Y1,X2,Y2,Frame") -> None:
    """Two traced frames a video: a large ventricle in frame 1, a small one in frame 4."""
    lines = [header]
    for name in names:
        for frame, width in ((1, 8.0), (4, 3.0)):
            lines.append(f"{name}.avi,8.0,1.0,8.0,14.0,{frame}")
            lines += [f"{name}.avi,{8 - width / 2},{y},{8 + width / 2},{y},{frame}" for y in (2.0, 6.0, 12.0)]
    (root / "VolumeTracings.csv").write_text("\n".join(lines) + "\n")


def test_videos_and_references_are_read(data_set: Path) -> None:
    """Names with and without extension, parts in any case, all references, luma within JPEG, times by FPS."""
    source = pickle.loads(pickle.dumps(EchoNet(root=data_set, side_px=SIDE)))
    entries = source.videos()
    assert [(entry.key, entry.split, entry.targets["lvef"]) for entry in entries] == [
        ("0XA", "train", 55.5),
        ("0XB", "validation", 12.5),
        ("0XC", "test", 71.0),
    ]
    assert entries[0].targets == {"lvef": 55.5, "lvesv_ml": 40.5, "lvedv_ml": 91.0}
    for number, (entry, interval_ms) in enumerate(zip(entries, (20.0, 20.0, 40.0), strict=True)):
        frames, times_ms = source.read(entry)
        assert (frames.shape, frames.dtype) == ((FRAMES, SIDE, SIDE), np.uint8)
        assert np.abs(frames.astype(int) - smooth_frames(FRAMES, SIDE, SIDE, number)).mean() < 3
        assert times_ms == pytest.approx(interval_ms * np.arange(FRAMES))


def test_the_three_needed_columns_are_enough(data_set: Path) -> None:
    """In any order, with more columns beside them; the frame rate is then the file's."""
    file_list(data_set, "VAL,x,30,0XB", columns="Split,Note,EF,FileName")
    source = EchoNet(root=data_set, side_px=SIDE)
    (entry,) = source.videos()
    assert (entry.key, entry.targets) == ("0XB", {"lvef": 30.0})
    _, times_ms = source.read(entry)
    assert times_ms == pytest.approx(20.0 * np.arange(FRAMES))


def test_another_size_is_averaged(data_set: Path) -> None:
    """At half the side every pixel is the mean of four."""
    (entry, *_) = EchoNet(root=data_set, side_px=SIDE).videos()
    whole, _ = EchoNet(root=data_set, side_px=SIDE).read(entry)
    half, _ = EchoNet(root=data_set, side_px=SIDE // 2).read(entry)
    expected = whole.reshape(FRAMES, 8, 2, 8, 2).mean(axis=(2, 4))
    assert np.abs(half - expected).max() <= 0.5
    assert squared(whole, SIDE) is whole


def test_tracings_mark_and_filter(data_set: Path) -> None:
    """The smaller traced area is end-systole; videos with fewer than two traced frames are left out."""
    tracings(data_set, "0XA", "0XC")
    (data_set / "VolumeTracings.csv").open("a").write("0XB.avi,1,1,2,2,5\n")
    entries = EchoNet(root=data_set, side_px=SIDE).videos()
    assert [(entry.key, dict(entry.marks)) for entry in entries] == [
        ("0XA", {"es": 4, "ed": 1}),
        ("0XC", {"es": 4, "ed": 1}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", r"has the header \['FileName', 'X1', 'Y1', 'X2', 'Frame'\]"),
        ("0XA.avi,1,2,3,x,4", "VolumeTracings.csv line 2 is '1,2,3,x,4' after its name"),
        ("0XA.avi,1,2,3,4", "VolumeTracings.csv line 2 .* expected four numbers and a frame"),
        ("0XA.avi,1,2,3,nan,4", "VolumeTracings.csv line 2"),
        ("0XA.avi,1,2,3,4,-1", "VolumeTracings.csv line 2"),
        ("0XZ.avi,1,2,3,4,1", "no video of FileList.csv has two traced frames"),
    ],
)
def test_broken_tracings_are_told(data_set: Path, line: str, message: str) -> None:
    """Another header, a line that is no chord, or tracings of other videos."""
    header = "FileName,X1,Y1,X2,Y2,Frame" if line else "FileName,X1,Y1,X2,Frame"
    (data_set / "VolumeTracings.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        EchoNet(root=data_set, side_px=SIDE).videos()


def lines(*rows: str, columns: str = COLUMNS) -> Callable[[Path], object]:
    """Another table."""
    return lambda root: file_list(root, *rows, columns=columns)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "FileList.csv").unlink(), "no FileList.csv in"),
        (lambda root: (root / "Videos").rename(root / "videos"), "no folder Videos/ in"),
        (lambda root: (root / "FileList.csv").write_bytes(b"\xff\xfe\x00"), "not readable as CSV"),
        (lines(columns="FileName,Volume,Part"), r"columns \['FileName', 'Volume', 'Part'\]; EF, Split missing"),
        (lines(), "has a header and no videos"),
        (lines(row("0XA"), row("0XZ")), "1 of 2 videos are not in Videos/, the first is of FileList.csv line 3"),
        (lines(row("0XA"), row("0XA.avi")), "names 1 videos more than once"),
        (lines(row("0XA", ef="101")), "line 2: the ejection fraction is '101'; expected a number from 0 to 100"),
        (lines(row("0XA", ef="-1")), "line 2: the ejection fraction is '-1'"),
        (lines(row("0XA"), row("0XB", ef="")), "line 3: the ejection fraction is ''"),
        (lines(row("0XA", ef="nan")), "line 2: the ejection fraction is 'nan'"),
        (lines(row("0XA", ef="0.55"), row("0XB", ef="0.6")), "no ejection fraction of FileList.csv exceeds 1"),
        (lines(row("0XA", "FOLD1")), "line 2: Split is 'FOLD1'; expected one of TRAIN, VAL, TEST"),
        (lines(row("../0XA")), r"line 2: FileName is '\.\./0XA'"),
        (lines(row(".avi")), r"line 2: FileName is '\.avi'"),
        (lines("0XA,55"), "line 2: Split is ''"),
    ],
)
def test_every_broken_folder_is_told(data_set: Path, damage: Callable[[Path], object], message: str) -> None:
    """Each way the table or the folder can be wrong is an error that says where and what was expected."""
    damage(data_set)
    with pytest.raises(ValueError, match=message):
        EchoNet(root=data_set, side_px=SIDE).videos()


def test_no_folder_is_told(tmp_path: Path) -> None:
    """A path that is no folder."""
    with pytest.raises(ValueError, match="is no folder; give the folder that holds"):
        EchoNet(root=tmp_path / "nowhere").videos()


def cut_off(path: Path) -> None:
    """The last frames and the index are gone; the header still promises them."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 17 // 20])


def headless(path: Path) -> None:
    """Only the beginning arrived, without a frame."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, r"line 2: [1-6] of 7 frames can be read: the file is cut off"),
        (headless, "line 2: the file is not readable as a video"),
        (lambda path: path.write_bytes(b"RIFF no video"), "line 2: the file is not readable as a video"),
        (lambda path: path.write_bytes(b""), "line 2: the file is not readable as a video"),
        (lambda path: write_avi(path, smooth_frames(6, SIDE, SIDE)), "line 2: the video has 6 frames; .* says 7"),
        (lambda path: write_avi(path, smooth_frames(7, SIDE, 32)), "line 2: the video is 32 x 16; square"),
    ],
)
def test_a_broken_video_stops_the_build(
    data_set: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    """Cut off, no video, another length or shape than the table says: the line is named, nothing is guessed."""
    damage(data_set / "Videos" / "0XA.avi")
    with pytest.raises(UnusableVideo, match=message):
        build_clip_store(EchoNet(root=data_set, side_px=SIDE), tmp_path / "store")


@pytest.mark.parametrize("fps", ["0", "-50", "fast"])
def test_a_frame_rate_that_is_none(data_set: Path, fps: str) -> None:
    """FPS has to be a positive number where it stands."""
    file_list(data_set, row("0XA", fps=fps))
    source = EchoNet(root=data_set, side_px=SIDE)
    with pytest.raises(ValueError, match=f"line 2: FPS is '{fps}'; expected a positive number"):
        source.read(source.videos()[0])


def test_a_store_of_the_data_set(data_set: Path, tmp_path: Path) -> None:
    """Built by two processes, the store holds what the reader reads and says on which terms."""
    source = EchoNet(root=data_set, side_px=SIDE)
    store = build_clip_store(source, tmp_path / "store", workers=2)
    for entry in source.videos():
        assert np.array_equal(store.frames(entry.key), source.read(entry).frames_TSS)
    assert store.subset("validation").keys == ("0XB",)
    assert "non-commercial" in store.source["provenance"]["licence"]
