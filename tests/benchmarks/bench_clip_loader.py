"""Batches of two clips a video: cut from the memory-mapped store, against decoding each video anew with OpenCV.

The videos are Motion JPEG files of the size of EchoNet-Dynamic (112 x 112, 50 frames a second), 16 in a batch, two clips of
36 frames each, every fourth frame, moved at random. The store was built from the same files. The decoding side does what
the published code does, a whole decode for every clip, and, as the better peer, one decode for both clips of a video.

All sides make the same batch from the same draw; before anything is timed every pixel must be equal, since both come out of
the same decoder. How far the decoder is from the frames that were written is shown (grey levels, mean over the batch; JPEG
is lossy). Sides are interleaved in one process, on one thread, with the files in the page cache. Processor time is what to
compare: it leaves out what else the machine does.

    python -m tests.benchmarks.bench_clip_loader --out clip_loader.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from tests.benchmarks.interleave import order_of_round
from tests.doubles.echo_videos import write_avi
from training.coreecho.clips import ClipShape, Sampling, Video, two_view_batch, two_views
from training.data.clip_store import ClipStore
from training.data.clip_store_build import build_clip_store
from training.data.sources.avi import read_avi
from training.data.sources.echonet import EchoNet

SIDE_PX, RATE_HZ, BATCH = 112, 50.0, 16
SHAPE = ClipShape(frames=36, period_frames=4)
SAMPLING = Sampling(shape=SHAPE, seed=0)
JPEG_LEVELS = 4.0
"""Largest mean difference between what was written and what is read, grey levels."""


def main() -> int:
    """Measure and write; 1 when the sides disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--videos", type=int, default=48)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), options.videos, options.rounds)
    packages = {name: version(name) for name in ("numpy", "opencv-python-headless")}
    environment = {"python": platform.python_version(), "machine": platform.machine(), **packages}
    result = {"name": "Batches of two clips a video", "rows": rows, "environment": environment}
    options.out.write_text(json.dumps(result))
    return 0 if all(row["correct"] for row in rows) else 1


def measured(folder: Path, videos: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a batch for every side."""
    written = write_data_set(folder / "echonet", videos)
    source = EchoNet(root=folder / "echonet", side_px=SIDE_PX)
    store = build_clip_store(source, folder / "store")
    arms = arms_of(folder / "echonet", store)
    difference = from_written(written, store, arms)
    correct = difference <= JPEG_LEVELS and all(
        np.array_equal(arm(0), next(iter(arms.values()))(0)) for arm in arms.values()
    )
    taken = interleaved(arms, rounds)
    base = [times.processor_ms for times in taken["store"]]
    return [
        {
            "what": name,
            "ms a batch": statistics.median(each.wall_ms for each in times),
            "processor ms a batch": statistics.median(each.processor_ms for each in times),
            "processor time, times the store": statistics.median(
                each.processor_ms / own for each, own in zip(times, base, strict=True)
            ),
            "from what was written, grey levels": difference,
            "correct": correct,
        }
        for name, times in taken.items()
    ]


def arms_of(root: Path, store: ClipStore) -> dict[str, Callable[[int], np.ndarray]]:
    """Every side as a function of the number of the batch."""
    keys = store.keys

    def rows(batch: int) -> list[int]:
        return np.random.default_rng(batch).permutation(len(keys))[:BATCH].tolist()

    def from_store(batch: int) -> np.ndarray:
        chosen = rows(batch)
        videos = [Video(frames_FSS=store.frames(keys[row])) for row in chosen]
        return two_view_batch(videos, chosen, SAMPLING, epoch=batch)

    def decoded(row: int) -> Video:
        return Video(frames_FSS=read_avi(root / "Videos" / f"{keys[row]}.avi", "video").frames)

    def decode_once(batch: int) -> np.ndarray:
        chosen = rows(batch)
        return two_view_batch([decoded(row) for row in chosen], chosen, SAMPLING, epoch=batch)

    def decode_each(batch: int) -> np.ndarray:
        chosen = rows(batch)
        first = [two_views(decoded(row), SAMPLING, epoch=batch, index=row)[0] for row in chosen]
        second = [two_views(decoded(row), SAMPLING, epoch=batch, index=row)[1] for row in chosen]
        return np.stack([np.stack(first), np.stack(second)])

    return {
        "store": from_store,
        "OpenCV, one decode a video": decode_once,
        "OpenCV, one decode a clip (as published)": decode_each,
    }


def write_data_set(root: Path, videos: int) -> list[np.ndarray]:
    """Write videos of 100 to 250 frames in the layout of EchoNet-Dynamic."""
    written = []
    lines = ["FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"]
    for number in range(videos):
        frames = speckled(number)
        written.append(frames)
        write_avi(root / "Videos" / f"V{number:03d}.avi", frames, RATE_HZ)
        lines.append(f"V{number:03d},55,40,90,{SIDE_PX},{SIDE_PX},{RATE_HZ},{len(frames)},TRAIN")
    (root / "FileList.csv").write_text("\n".join(lines) + "\n")
    return written


def speckled(number: int) -> np.ndarray:
    """A beating sector of soft speckle, uint8 [T, 112, 112]."""
    rng = np.random.default_rng(number)
    count = int(rng.integers(100, 250))
    rows, columns = np.indices((SIDE_PX, SIDE_PX))
    sector = (np.abs(np.arctan2(columns - SIDE_PX / 2, rows)) < 0.65) & (np.hypot(columns - 56, rows) < 106)
    speckle = cv2.GaussianBlur(rng.integers(0, 256, (SIDE_PX, SIDE_PX)).astype(np.float32), (5, 5), 1.2)
    frames = [np.roll(speckle, round(6 * np.sin(frame / 5)), axis=0) * sector for frame in range(count)]
    return np.stack(frames).astype(np.uint8)


def from_written(written: list[np.ndarray], store: ClipStore, arms: dict[str, Callable[[int], np.ndarray]]) -> float:
    """Mean difference of a batch from the same draw out of the frames that were written."""
    chosen = np.random.default_rng(0).permutation(len(store))[:BATCH].tolist()
    expected = two_view_batch([Video(frames_FSS=written[row]) for row in chosen], chosen, SAMPLING, epoch=0)
    return float(np.abs(expected.astype(np.int16) - arms["store"](0)).mean())


class Taken(NamedTuple):
    """What one batch took."""

    wall_ms: float
    processor_ms: float


def interleaved(arms: dict[str, Callable[[int], np.ndarray]], rounds: int) -> dict[str, list[Taken]]:
    """What every side took in every round; one round before that is not counted."""
    taken: dict[str, list[Taken]] = {name: [] for name in arms}
    for batch in range(rounds + 1):
        for name in order_of_round(list(arms), batch):
            wall, processor = time.perf_counter(), time.process_time()
            arms[name](batch)
            if batch:
                took = time.perf_counter() - wall, time.process_time() - processor
                taken[name].append(Taken(*(1000 * seconds for seconds in took)))
    return taken


if __name__ == "__main__":
    sys.exit(main())
