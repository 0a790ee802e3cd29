"""The clip store: pixels and facts come back as read, a killed build goes on, and no damage passes unnoticed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.doubles.echo_videos import MemoryVideos, noise
from training.data.clip_store import ClipStore, ClipStoreError, manifest_sha256
from training.data.clip_store_build import build_clip_store
from training.data.sources.videos import UnusableVideo, VideoEntry, VideoFrames
from training.data.stored_videos import StoredVideos

BROKEN = UnusableVideo("line 3: the video file is missing")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_videos_come_back_as_they_were_read(tmp_path: Path) -> None:
    """Pixels, times, targets, split, quality and marks of every video; views are read-only and of the mapped file."""
    store = build_clip_store(MemoryVideos(uneven=(1,)), tmp_path)
    assert (len(store), store.side_px, store.keys[2]) == (6, 8, "v2")
    for number, key in enumerate(store.keys):
        video = store.video(key)
        assert np.array_equal(store.frames(key), noise(number))
        assert (video.patient, video.targets, dict(video.marks)) == (
            f"p{number // 2}",
            {"lvef": 30.0 + number},
            {"ed": 0},
        )
        assert video.quality == ("Good" if number % 2 else None)
        times = 20.0 * np.arange(5 + number)
        assert video.frame_times_ms == pytest.approx(times**1.1 if number == 1 else times, abs=1e-6)
    assert not store.frames("v0").flags.writeable
    assert store.source["provenance"] == {"data_set": "noise", "licence": "none needed", "patients": False}


def test_parts_and_selections(tmp_path: Path) -> None:
    """A part and a fold are stores over the same pixels; unknown names are refused with what there is."""
    store = build_clip_store(MemoryVideos(), tmp_path)
    assert store.subset("test").keys == ("v2", "v5")
    assert store.only(["v4", "v1"]).targets("lvef").tolist() == [34, 31]
    assert store.subset("test").sha256 == store.sha256
    with pytest.raises(ValueError, match="no video is of the part 'val'; the store has test, train"):
        store.subset("val")
    with pytest.raises(ValueError, match="no video with this key among 6"):
        store.only(["v9"])
    with pytest.raises(ValueError, match="6 of 6 videos have no target 'infarction'"):
        store.targets("infarction")


def test_videos_by_row(tmp_path: Path) -> None:
    """The row view of a part gives what the store knows of each video."""
    videos = StoredVideos(build_clip_store(MemoryVideos(), tmp_path).subset("test"))
    assert (len(videos), list(videos.keys), list(videos.patients)) == (2, ["v2", "v5"], ["p1", "p2"])
    assert videos.ef_percent.tolist() == videos.target("lvef").tolist() == [32, 35]
    assert list(videos.qualities) == [None, "Good"]
    assert np.array_equal(videos.frames(1), noise(5))
    assert videos.times_ms(1) == pytest.approx(20.0 * np.arange(10))


def test_a_pickled_store_takes_no_pixels_along(tmp_path: Path) -> None:
    """A worker process maps the file anew and sees the same part."""
    part = build_clip_store(MemoryVideos(count=30, side_px=64), tmp_path).subset("test")
    packed = pickle.dumps(part)
    assert len(packed) < part.frames("v29").nbytes
    again = pickle.loads(packed)
    assert again.keys == part.keys
    assert np.array_equal(again.frames("v29"), noise(29, 64))


def test_several_processes_build_the_same_bytes(tmp_path: Path) -> None:
    """Two processes or one, resumed or not: every byte of the store is the same, refused videos included."""
    source = MemoryVideos(count=12, refused=(4, 11))
    seen: list[tuple[int, int]] = []
    build_clip_store(source, tmp_path / "one", progress=lambda done, total: seen.append((done, total)))
    build_clip_store(source, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert seen == [(done, 12) for done in range(1, 13)]


def test_a_refused_video_is_named_and_left_out(tmp_path: Path) -> None:
    """The store says which videos the preprocessing refused and why; all refused is an error."""
    store = build_clip_store(MemoryVideos(refused=(1,)), tmp_path / "some")
    assert "v1" not in store.keys
    assert [dict(each) for each in store.refused] == [
        {"key": "v1", "code": "sector_not_found", "reason": "nothing moves"}
    ]
    assert np.array_equal(store.frames("v2"), noise(2))
    with pytest.raises(ValueError, match="all 2 videos of noise were refused, the first because nothing moves"):
        build_clip_store(MemoryVideos(count=2, refused=(0, 1)), tmp_path / "all")


class Counting(MemoryVideos):
    """Remembers which videos were read."""

    asked: list[str] = []  # noqa: RUF012 - shared on purpose

    def read(self, entry: VideoEntry) -> VideoFrames:
        """As before."""
        self.asked.append(entry.key)
        return super().read(entry)


def interrupted(folder: Path) -> None:
    """A build that stopped at the fourth of six videos."""
    with pytest.raises(UnusableVideo, match="line 3: the video file is missing"):
        build_clip_store(MemoryVideos(refused=(1,), broken={3: BROKEN}), folder)
    Counting.asked.clear()


def half_a_line(folder: Path) -> None:
    """The last line of the journal was not finished."""
    path = folder / "videos.partial"
    path.write_text(path.read_text()[:-20])


def lost_pixels(folder: Path) -> None:
    """The pixels of the last video never reached the disk."""
    path = folder / "frames.partial"
    path.write_bytes(path.read_bytes()[:-70])


def other_pixels(folder: Path) -> None:
    """A bit of the last video flipped."""
    path = folder / "frames.partial"
    pixels = bytearray(path.read_bytes())
    pixels[-1] ^= 1
    path.write_bytes(pixels)


def more_pixels(folder: Path) -> None:
    """The next video was written and its line was not."""
    with (folder / "frames.partial").open("ab") as file:
        file.write(b"x" * 99)


@pytest.mark.parametrize(
    ("damage", "read_again"),
    [
        (lambda _: None, ["v3", "v4", "v5"]),
        (more_pixels, ["v3", "v4", "v5"]),
        (half_a_line, ["v2", "v3", "v4", "v5"]),
        (lost_pixels, ["v2", "v3", "v4", "v5"]),
        (other_pixels, ["v2", "v3", "v4", "v5"]),
        (lambda folder: (folder / "frames.partial").unlink(), ["v0", "v1", "v2", "v3", "v4", "v5"]),
    ],
)
def test_an_interrupted_build_goes_on(tmp_path: Path, damage: Callable[[Path], object], read_again: list[str]) -> None:
    """Whatever a kill left behind: only what is not whole is read again, and the store is that of one go."""
    interrupted(tmp_path / "cut")
    damage(tmp_path / "cut")
    build_clip_store(Counting(refused=(1,)), tmp_path / "cut")
    assert Counting.asked == read_again
    build_clip_store(MemoryVideos(refused=(1,)), tmp_path / "whole")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_build_killed_at_its_very_end_goes_on(tmp_path: Path) -> None:
    """Killed after the pixels got their name and before the manifest did, nothing is decoded again."""
    interrupted(tmp_path)
    (tmp_path / "frames.partial").replace(tmp_path / "frames.u8")
    with pytest.raises(ClipStoreError, match="whose build is not finished"):
        ClipStore.open(tmp_path)
    assert len(build_clip_store(Counting(refused=(1,)), tmp_path)) == 5
    assert Counting.asked == ["v3", "v4", "v5"]


def test_a_finished_store_is_not_built_again(tmp_path: Path) -> None:
    """The same data set gives the store as it lies there."""
    first = build_clip_store(MemoryVideos(), tmp_path)
    Counting.asked.clear()
    assert build_clip_store(Counting(), tmp_path).sha256 == first.sha256
    assert Counting.asked == []


@pytest.mark.parametrize("is_finished", [True, False])
def test_another_data_set_is_refused(tmp_path: Path, *, is_finished: bool) -> None:
    """A folder of other videos or other settings is neither used nor built on, finished or not."""
    if is_finished:
        build_clip_store(MemoryVideos(), tmp_path)
    else:
        interrupted(tmp_path)
    with pytest.raises(ClipStoreError, match=r"another data set or other settings \(entries_sha256 differ\)"):
        build_clip_store(MemoryVideos(count=7), tmp_path)
    with pytest.raises(ClipStoreError, match=r"other settings \(spec differ\)"):
        build_clip_store(MemoryVideos(changes={"mask": "other"}), tmp_path)


def resealed(folder: Path, **changes: Any) -> None:
    """A manifest that says something else and has a digest that fits."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": manifest_sha256(manifest)}))


def flipped(folder: Path) -> None:
    """One bit of one pixel is another."""
    pixels = bytearray((folder / "frames.u8").read_bytes())
    pixels[700] ^= 1
    (folder / "frames.u8").write_bytes(pixels)


def edited(folder: Path) -> None:
    """An ejection fraction was typed over."""
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"lvef": 31.0', '"lvef": 61.0'))


def sized(change: int) -> Callable[[Path], object]:
    """A file of pixels with fewer or more bytes."""

    def change_size(folder: Path) -> None:
        pixels = (folder / "frames.u8").read_bytes()
        (folder / "frames.u8").write_bytes(pixels[:change] if change < 0 else pixels + b"x" * change)

    return change_size


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (sized(-1), "frames.u8 is truncated: 2879 bytes, 2880 expected"),
        (sized(64), "frames.u8 is longer than its manifest says"),
        (lambda folder: (folder / "frames.u8").unlink(), "truncated: 0 bytes"),
        (flipped, "the pixels of 1 of 6 videos in .* are not those of the manifest"),
        (edited, "was changed after it was written: its digest is foreign"),
        (lambda folder: resealed(folder, version=2), "has version 2; version 1 is read"),
        (lambda folder: resealed(folder, format="zip"), "is not of the format purkinje-clip-store"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not readable"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json .* build it"),
    ],
)
def test_every_damage_is_told(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    """Truncated, altered, foreign, of an unknown version or no store at all: opening says which."""
    build_clip_store(MemoryVideos(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ClipStoreError, match=message):
        ClipStore.open(tmp_path)


def test_a_run_knows_its_store(tmp_path: Path) -> None:
    """A store with another digest than the run wrote down is refused; its own is opened."""
    store = build_clip_store(MemoryVideos(), tmp_path)
    assert ClipStore.open(tmp_path, sha256=store.sha256, check_pixels=False).keys == store.keys
    with pytest.raises(ClipStoreError, match="the run was made with 0000"):
        ClipStore.open(tmp_path, sha256="0" * 64)


class Misfit(MemoryVideos):
    """Reads something else than it promised."""

    def read(self, entry: VideoEntry) -> VideoFrames:
        """As the settings say."""
        frames, times = super().read(entry)
        assert times is not None
        wrong: dict[str, VideoFrames] = {
            "dtype": VideoFrames(frames.astype(np.float32), times),  # type: ignore[arg-type]
            "side": VideoFrames(frames[:, 1:], times),
            "times": VideoFrames(frames, times[1:]),
            "order": VideoFrames(frames, times[::-1]),
            "marks": VideoFrames(frames[:0], times[:0]),
        }
        return wrong[str(self.changes["wrong"])]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("dtype", r"line 0: read float32 \(5, 8, 8\); expected uint8"),
        ("side", r"line 0: read uint8 \(5, 7, 8\); expected uint8 \[T, 8, 8\]"),
        ("times", "line 0: expected one time a frame, increasing; found 4 for 5"),
        ("order", "line 0: expected one time a frame, increasing"),
        ("marks", r"line 0: read uint8 \(0, 8, 8\)"),
    ],
)
def test_a_reader_that_breaks_its_promise_is_caught(tmp_path: Path, wrong: str, message: str) -> None:
    """Another type, size or time base than promised stops the build before anything is written."""
    with pytest.raises(UnusableVideo, match=message):
        build_clip_store(Misfit(changes={"wrong": wrong}), tmp_path)
