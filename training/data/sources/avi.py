"""Reads AVI files (Motion JPEG and what else FFmpeg knows) with OpenCV, which brings its own FFmpeg.

OpenCV and not PyAV: both wheels carry an LGPL FFmpeg of about the same size and decode the same pixels, OpenCV also writes
Motion JPEG, and it is what the published code reads these data sets with.

Letters: T frame, H row, W column, C channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.sources.videos import UnusableVideo

MOST_BYTES = 2**31
"""Of one decoded video in colour: 900 frames of 768 x 1024 pixels."""

_RATES_HZ = (1.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class Avi:
    """A decoded file.

    Args:
        frames: uint8 [T, H, W] (luma, BT.601) or [T, H, W, 3] (blue, green, red).
        frame_rate_hz: as the container states it.
    """

    frames: NDArray[np.uint8]
    frame_rate_hz: float


def read_avi(path: Path, where: str, *, colour: bool = False) -> Avi:
    """Decode a whole file.

    Args:
        path: the file.
        where: what a message calls it.
        colour: keep the three channels.

    Raises:
        UnusableVideo: missing, not readable, shorter than its header says, too large, or without a frame rate.
    """
    import cv2

    if not path.is_file():
        raise UnusableVideo(f"{where}: the video file is missing; copy it from the data set again")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        return _decoded(capture, where, colour=colour)
    finally:
        capture.release()


def _decoded(capture: Any, where: str, *, colour: bool) -> Avi:
    import cv2

    stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    if stated < 1:
        raise UnusableVideo(f"{where}: the file is not readable as a video; copy it from the data set again")
    height, width = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    if stated * height * width * 3 > MOST_BYTES:
        raise UnusableVideo(f"{where}: {stated} frames of {width} x {height} pixels are more than is read")
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    if not _RATES_HZ[0] <= rate <= _RATES_HZ[1]:
        raise UnusableVideo(f"{where}: the file states {rate:g} frames a second; expected 1 to 1000")
    frames = np.empty((stated, height, width, 3) if colour else (stated, height, width), np.uint8)
    for index in range(stated):
        there, frame = capture.read()
        if not there or frame.shape != (height, width, 3):
            message = f"{index} of {stated} frames can be read: the file is cut off or broken"
            raise UnusableVideo(f"{where}: {message}; copy it from the data set again")
        frames[index] = frame if colour else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    return Avi(frames=frames, frame_rate_hz=rate)


@dataclass(frozen=True)
class ColourFrames:
    """The ``FrameSource`` of the serving path over a decoded file in colour, uint8 [T, H, W, 3]."""

    frames_THWC: NDArray[np.uint8]

    @property
    def shape_HW(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.frames_THWC.shape[1], self.frames_THWC.shape[2]

    def __len__(self) -> int:
        return len(self.frames_THWC)

    def luma(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Luma of the asked frames, BT.601."""
        import cv2

        return (np.asarray(cv2.cvtColor(self.frames_THWC[index], cv2.COLOR_BGR2GRAY)) for index in indices)

    def chroma(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Departure from grey of each pixel of the asked frames."""
        return (np.ptp(self.frames_THWC[index], axis=-1) for index in indices)

    def chroma_spread(self, index: int) -> float:
        """Mean departure from grey of one frame."""
        return float(next(self.chroma([index])).mean())
