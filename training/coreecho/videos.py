"""The videos of one part of a data set, as training and evaluation see them, and their clips as the networks take them.

Letters: N videos, F frames of a video, T frames of a clip, S pixels, K clips of a video, B clips of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.coreecho.clips import (
    Sampling,
    Starts,
    Video,
    all_starts,
    cut,
    evenly_picked,
    fixed_starts,
    two_view_batch,
)
from training.coreecho.config import AnyEchoRun
from training.data.clip_store import ClipStore

FloatArray = NDArray[np.float64]
Rows = NDArray[np.int64]
Clips = NDArray[np.uint8]


class Videos(Protocol):
    """N videos of a data set, in a fixed order."""

    @property
    def keys(self) -> Sequence[str]:
        """Names within the data set."""

    @property
    def patients(self) -> Sequence[str]:
        """Videos of one patient share it."""

    @property
    def qualities(self) -> Sequence[str | None]:
        """What the data set says of each image."""

    @property
    def ef_percent(self) -> FloatArray:
        """True ejection fractions, [N]."""

    @property
    def sha256(self) -> str:
        """Digest of pixels, truths and order."""

    def video(self, row: int) -> Video:
        """Return the pixels of a video and when its frames were recorded."""


@dataclass(frozen=True, eq=False)
class StoreVideos:
    """Videos of a clip store, or of a part of it.

    Args:
        store: opened and verified.
        frames_max: evenly spaced frames that are kept of a longer video; None keeps all.
    """

    store: ClipStore
    frames_max: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Names within the data set."""
        return self.store.keys

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """Videos of one patient share it."""
        return tuple(video.patient for video in self.store.videos.values())

    @cached_property
    def qualities(self) -> tuple[str | None, ...]:
        """What the data set says of each image."""
        return tuple(video.quality for video in self.store.videos.values())

    @cached_property
    def ef_percent(self) -> FloatArray:
        """True ejection fractions, [N]."""
        return self.store.targets("lvef")

    @cached_property
    def sha256(self) -> str:
        """Digest of the store, of which of its videos these are, and of what is kept of them."""
        text = "\n".join([self.store.sha256, str(self.frames_max), *self.keys])
        return hashlib.sha256(text.encode()).hexdigest()

    def video(self, row: int) -> Video:
        """Return the pixels of a video and when its frames were recorded."""
        key = self.keys[row]
        frames, times = self.store.frames(key), self.store.video(key).frame_times_ms
        if self.frames_max is None:
            return Video(frames_FSS=frames, frame_times_ms=times)
        kept = evenly_picked(len(frames), self.frames_max)
        return Video(frames_FSS=frames[kept], frame_times_ms=None if times is None else times[kept])


def training_clips(videos: Videos, rows: Rows, run: AnyEchoRun, *, views: int, epoch: int) -> Clips:
    """Return random, shifted clips, uint8 [views x videos, 1, T, S, S]: view 1 of all stands before view 2."""
    sampling = Sampling(shape=run.clips, seed=run.seed, translation_px=run.translation_px, views=views)
    numbers = [int(row) for row in rows]
    drawn_VBTSS = two_view_batch([videos.video(row) for row in numbers], numbers, sampling, epoch=epoch)
    return drawn_VBTSS.reshape(-1, 1, *drawn_VBTSS.shape[2:])


def fixed_clips(videos: Videos, row: int, run: AnyEchoRun) -> Clips:
    """Return the run's number of evenly spaced clips, uint8 [K, 1, T, S, S]; fewer where a video has no room for as many."""
    video = videos.video(row)
    return _at(video, fixed_starts(video, run.clips, run.validation_clips), run)


def all_clips(videos: Videos, row: int, run: AnyEchoRun) -> Clips:
    """Return the clip of every start, uint8 [K, 1, T, S, S]."""
    video = videos.video(row)
    return _at(video, all_starts(video, run.clips), run)


def _at(video: Video, starts: Starts, run: AnyEchoRun) -> Clips:
    return np.stack([cut(video, float(start), run.clips) for start in starts])[:, None]
