"""Small echo videos in the layouts of the public data sets, and a data set in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from engines.errors import InputRefused, RefusalCode
from training.data.sources.videos import Provenance, VideoEntry, VideoFrames


def write_avi(path: Path, frames: np.ndarray, rate_hz: float = 50.0) -> Path:
    """Write grey [T, H, W] or colour [T, H, W, 3] frames as Motion JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width = frames.shape[:3]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate_hz, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame if frame.ndim == 3 else cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def smooth_frames(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Frames that JPEG keeps within a few grey levels; each has a mean of its own. uint8 [T, H, W]."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0.05, 0.25, 2)
    y, x = np.indices((height, width))
    field_HW = 40 * np.sin(waves[0] * y) + 40 * np.cos(waves[1] * x)
    levels = 100 + 40 * np.sin(np.arange(count) / 3 + seed)
    return np.asarray(np.clip(levels[:, None, None] + field_HW, 0, 255), np.uint8)


@dataclass(frozen=True)
class MemoryVideos:
    """A data set whose videos are noise that their number decides; some are refused or broken when they are read."""

    count: int = 6
    side_px: int = 8
    refused: tuple[int, ...] = ()
    broken: Mapping[int, Exception] = field(default_factory=dict)
    uneven: tuple[int, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)

    name = "noise"
    provenance = Provenance(data_set="noise", licence="none needed", patients=False)

    @property
    def spec(self) -> Mapping[str, Any]:
        """What decides the pixels."""
        return {"side_px": self.side_px, **self.changes}

    def videos(self) -> Sequence[VideoEntry]:
        """As many as asked for, two of three to train on."""
        return [
            VideoEntry(
                key=f"v{number}",
                patient=f"p{number // 2}",
                where=f"line {number}",
                split="test" if number % 3 == 2 else "train",
                targets={"lvef": 30.0 + number},
                quality="Good" if number % 2 else None,
                marks={"ed": 0},
            )
            for number in range(self.count)
        ]

    def read(self, entry: VideoEntry) -> VideoFrames:
        """Noise of its own length."""
        number = int(entry.key[1:])
        if number in self.refused:
            raise InputRefused(RefusalCode.SECTOR_NOT_FOUND, "nothing moves")
        if number in self.broken:
            raise self.broken[number]
        frames = noise(number, self.side_px)
        times = 20.0 * np.arange(len(frames))
        return VideoFrames(frames, times**1.1 if number in self.uneven else times)


def noise(number: int, side_px: int = 8) -> np.ndarray:
    """Pixels of a video of ``MemoryVideos``."""
    return np.random.default_rng(number).integers(0, 256, (5 + number, side_px, side_px), dtype=np.uint8)
