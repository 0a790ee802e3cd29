"""Where clips are cut out of a video, and the one augmentation: numpy only, the same for the same seed, epoch and row.

A clip takes every ``period_frames``-th frame, as published, or the frame nearest to every ``step_ms``, as serving does. A
start is a frame number in the first case and a time in milliseconds in the second. What lies beyond the end of a video is
black before normalisation, at the end.

Letters: T frame of a clip, F frame of a video, S side, N videos, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Starts = NDArray[np.float64]
"""[K], frame numbers or milliseconds."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """How a clip lies in a video.

    Args:
        frames: T.
        period_frames: native frames from one frame of the clip to the next; or
        step_ms: time from one frame of the clip to the next.

    Raises:
        ValueError: neither or both of period and step, or a number that is not positive.
    """

    frames: int
    period_frames: int | None = None
    step_ms: float | None = None

    def __post_init__(self) -> None:
        if (self.period_frames is None) == (self.step_ms is None):
            raise ValueError("give either period_frames or step_ms of a clip")
        spacing = self.period_frames if self.period_frames is not None else self.step_ms
        if self.frames < 1 or not spacing or spacing <= 0:
            raise ValueError(f"{self} has a number that is not positive")


@dataclass(frozen=True, kw_only=True)
class Video:
    """Pixels of a video and the times of its frames.

    Args:
        frames_FSS: uint8; may be memory-mapped.
        frame_times_ms: float64 [F], or None where it is not known.
    """

    frames_FSS: NDArray[np.uint8]
    frame_times_ms: NDArray[np.float64] | None = None


def all_starts(video: Video, shape: ClipShape) -> Starts:
    """Return every start: each native frame from which a whole clip fits.

    By period, a video shorter than T periods is padded to that length, which leaves ``period_frames`` starts. By time, a
    shorter video has the start 0.
    """
    last = _last_start(video, shape)
    if shape.step_ms is None:
        return np.arange(last + 1.0)
    times = _times_ms(video)
    return times[times <= last]


def fixed_starts(video: Video, shape: ClipShape, count: int) -> Starts:
    """Return up to ``count`` evenly spaced starts, the same every time; fewer where there is no room for as many.

    By time they are those of the serving path.
    """
    last = _last_start(video, shape)
    if shape.step_ms is None:
        return np.unique(np.round(np.linspace(0.0, last, count)))
    count = min(count, 1 + int(last // shape.step_ms))
    return np.linspace(0.0, last, count) if count > 1 else np.array([last / 2])


def random_starts(video: Video, shape: ClipShape, count: int, rng: np.random.Generator) -> Starts:
    """Return starts drawn uniformly, with replacement."""
    return rng.choice(all_starts(video, shape), size=count)


def shown_frames(video: Video, shape: ClipShape, start: float) -> NDArray[np.int64]:
    """Return the number of the native frame that each frame of a clip shows, [T]; -1 is black."""
    steps = np.arange(shape.frames)
    if shape.period_frames is not None:
        shown = int(start) + shape.period_frames * steps
        return np.where(shown < len(video.frames_FSS), shown, -1)
    assert shape.step_ms is not None
    times = _times_ms(video)
    wanted = start + shape.step_ms * steps
    right = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        nearest = np.zeros_like(right)
    else:
        nearest = np.where(wanted - times[right - 1] <= times[right] - wanted, right - 1, right)
    return np.where(wanted <= times[-1] + shape.step_ms / 2, nearest, -1)


def cut(video: Video, start: float, shape: ClipShape, *, shift_px: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
    """Cut one clip.

    Args:
        video: to cut from.
        start: one of the starts.
        shape: of the clip.
        shift_px: rows down and columns right by which the picture is moved, the same for all frames; black moves in.

    Returns:
        uint8 [T, S, S], black beyond the end of the video.
    """
    shown = shown_frames(video, shape, start)
    _, height, width = video.frames_FSS.shape
    clip = np.zeros((shape.frames, height, width), np.uint8)
    down, right = shift_px
    there = np.flatnonzero(shown >= 0)
    into = clip[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    source = video.frames_FSS[:, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    into[there] = source[shown[there]]
    return clip


def clip_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return what draws the clips of one video in one epoch, whatever the batch or the process it is drawn in."""
    return np.random.default_rng([seed, epoch, index])


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What training draws of a video in every epoch.

    Args:
        shape: of the clips.
        seed: of the run.
        translation_px: largest random shift.
        views: V, clips of a video; the first is the same for any number of them.
    """

    shape: ClipShape
    seed: int
    translation_px: int = 6
    views: int = 2


def two_views(video: Video, sampling: Sampling, *, epoch: int, index: int) -> NDArray[np.uint8]:
    """Return clips of one video at random starts, each moved by a random shift of its own.

    The shift is that of a black border of ``translation_px`` and one random crop, shared by the frames of a clip.

    Args:
        video: to cut from.
        sampling: what is drawn.
        epoch: of the training.
        index: row of the video in the data set, not in the batch.

    Returns:
        uint8 [V, T, S, S].
    """
    rng = clip_generator(sampling.seed, epoch, index)
    reach = sampling.translation_px
    clips = []
    for _ in range(sampling.views):
        (start,) = random_starts(video, sampling.shape, 1, rng)
        down, right = rng.integers(-reach, reach + 1, size=2).tolist()
        clips.append(cut(video, float(start), sampling.shape, shift_px=(down, right)))
    return np.stack(clips)


def two_view_batch(
    videos: Sequence[Video], rows: Sequence[int], sampling: Sampling, *, epoch: int
) -> NDArray[np.uint8]:
    """Return the views of several videos, uint8 [V, N, T, S, S]: flattened, view 1 of all stands before view 2.

    Args:
        videos: of the batch.
        rows: of these videos in the data set, [N].
        sampling: what is drawn.
        epoch: of the training.
    """
    drawn = [two_views(video, sampling, epoch=epoch, index=row) for video, row in zip(videos, rows, strict=True)]
    return np.stack(drawn, axis=1)


def evenly_picked(frames: int, most: int) -> NDArray[np.int64]:
    """Return the numbers of up to ``most`` evenly spaced frames, first and last among them: CAMUS's half beats."""
    return np.linspace(0, frames - 1, min(frames, most)).round().astype(np.int64)


def _last_start(video: Video, shape: ClipShape) -> float:
    """The last start, in frames or milliseconds."""
    if shape.period_frames is not None:
        padded = max(len(video.frames_FSS), shape.frames * shape.period_frames)
        return float(padded - (shape.frames - 1) * shape.period_frames - 1)
    assert shape.step_ms is not None
    return max(float(_times_ms(video)[-1]) - (shape.frames - 1) * shape.step_ms, 0.0)


def _times_ms(video: Video) -> NDArray[np.float64]:
    if video.frame_times_ms is None:
        raise ValueError("the data set does not say when the frames were recorded; cut clips by period_frames")
    return video.frame_times_ms
