"""What every data set of echo clips yields: videos with their references, one by one, as square grey frames.

Here live the protocol that ``clip_store`` builds from, and what the readers share. The readers are ``echonet``, ``camus``,
``hmc_qu`` and ``phantom_clips``.

Letters: T frame, H row, W column, S side of the square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.preprocess.resample import area_weights

SPLITS = ("train", "validation", "test")
"""Parts of a data set, in the words of every reader."""


class UnusableVideo(ValueError):
    """A video that is missing, broken, or not what its table says; the message says where and what to do."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the pixels come from and on which terms; travels with everything trained on them.

    Args:
        data_set: name and reference.
        licence: terms of use, in short.
        patients: whether the pixels are of patients.
    """

    data_set: str
    licence: str
    patients: bool

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """One video, before its pixels are read.

    Args:
        key: names the video within the data set; never for a log.
        patient: videos of one patient share it.
        where: what a message calls the video, a line of a table or a folder of the data set.
        split: one of ``SPLITS``, or None where the data set has no parts.
        targets: references by name: ``lvef`` in percent, ``lvedv_ml``, ``lvesv_ml``, ``infarction`` 0 or 1.
        quality: what the data set says of the image, or None.
        marks: numbers of frames that mean something, counted from 0: ``ed``, ``es``, ``cycle_start``, ``cycle_end`` (end
            exclusive).
    """

    key: str = field(repr=False)
    patient: str = field(repr=False)
    where: str
    split: str | None
    targets: Mapping[str, float]
    quality: str | None = None
    marks: Mapping[str, int] = field(default_factory=dict)


class VideoFrames(NamedTuple):
    """Pixels of one video, and when each frame was recorded.

    Args:
        frames_TSS: uint8.
        frame_times_ms: float64 [T] from the first frame on, or None where the data set does not say.
    """

    frames_TSS: NDArray[np.uint8]
    frame_times_ms: NDArray[np.float64] | None


class VideoSource(Protocol):
    """A data set of echo clips. A value that can be pickled: worker processes read from it."""

    @property
    def name(self) -> str:
        """Of the data set, for tables and logs."""

    @property
    def provenance(self) -> Provenance:
        """Where the pixels come from."""

    @property
    def side_px(self) -> int:
        """Side S of every frame."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """What decides the pixels beside the data set, as plain values for JSON."""

    def videos(self) -> Sequence[VideoEntry]:
        """All videos, always in the same order.

        Raises:
            ValueError: the folder is not what the data set looks like.
        """

    def read(self, entry: VideoEntry) -> VideoFrames:
        """Read one video.

        Raises:
            UnusableVideo: missing or broken.
            Refusal: the preprocessing of the serving path cannot use it; others may be fine.
        """


def uniform_times_ms(frames: int, frame_interval_ms: float) -> NDArray[np.float64]:
    """Times of equally spaced frames."""
    return frame_interval_ms * np.arange(frames, dtype=np.float64)


def squared(frames_THW: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Area averages of the whole frame on a square, each axis by its own factor; unchanged where the size fits."""
    _, height, width = frames_THW.shape
    if height == width == side_px:
        return frames_THW
    rows_SH = area_weights(side_px, height, 0, height)
    columns_WS = area_weights(side_px, width, 0, width).T
    reduced = np.empty((len(frames_THW), side_px, side_px), np.uint8)
    for index, frame in enumerate(frames_THW):
        reduced[index] = np.clip(np.rint(rows_SH @ frame @ columns_WS), 0, 255)
    return reduced


def require_unique(keys: Sequence[str], table: str) -> None:
    """Raise where two videos have one name.

    Raises:
        ValueError: with how many names are there more than once.
    """
    more = len(keys) - len(set(keys))
    if more:
        raise ValueError(f"{table} names {more} videos more than once; expected one line a video")


def percent_of(text: object, where: str) -> float:
    """An ejection fraction in percent.

    Raises:
        ValueError: no number from 0 to 100.
    """
    try:
        value = float(str(text).strip())
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 100.0:
        raise ValueError(f"{where}: the ejection fraction is {text!r}; expected a number from 0 to 100 percent")
    return value


def require_percent(values: Sequence[float], table: str) -> None:
    """Raise where all ejection fractions are fractions of one.

    Raises:
        ValueError: no value above 1.
    """
    if values and max(values) <= 1.0:
        raise ValueError(f"no ejection fraction of {table} exceeds 1; expected percent: multiply by 100")
