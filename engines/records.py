"""What decoding yields: one validated value per modality, units in the names, no patient identity.

Called by ``decode`` (which makes them), ``preprocess`` (which reads them) and the phantoms of the
training package. A record that exists is valid: every invariant is checked when it is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

LEAD_NAMES = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""Canonical lead order of the ECG tensor."""


class Modality(StrEnum):
    """The three kinds of study; also the suffix of the topic that carries them."""

    CMR = "cmr"
    ECHO = "echo"
    ECG = "ecg"


@dataclass(frozen=True, kw_only=True)
class SourceInstance:
    """One SOP instance that was read, for the evidence of the report (PS3.3 C.17.2).

    ``frame_numbers`` are 1-based and empty when the whole instance was used.
    ``waveform_channels`` are (multiplex group, channel) pairs, 1-based, channel 0 = all (PS3.3 C.18.5).
    ``view_labels`` are (attribute, text) pairs with which the source states its view, upper case. They are compared with
    the patterns of the view check and never printed: free text may hold anything.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    frame_numbers: tuple[int, ...] = ()
    waveform_channels: tuple[tuple[int, int], ...] = ()
    view_labels: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class FrameSource(Protocol):
    """Frames of a cine that are decoded when they are asked for, never all at once."""

    @property
    def shape_HW(self) -> tuple[int, int]:
        """Rows and columns of every frame."""

    def __len__(self) -> int:
        """Number of frames."""

    def luma(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield the asked frames in the asked order as luma, uint8 [H, W]; 0-based, non-decreasing."""

    def chroma_spread(self, index: int) -> float:
        """Mean absolute departure from grey of one frame, 0 (grey) to 255; 0 for monochrome sources."""

    def chroma(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield the departure from grey of each pixel of the asked frames, uint8 [H, W]; 0-based, non-decreasing."""


@dataclass(frozen=True, kw_only=True)
class ArrayFrames:
    """A ``FrameSource`` over an array in memory, uint8 [T, H, W]."""

    frames_THW: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.frames_THW.ndim != 3 or self.frames_THW.dtype != np.uint8:
            msg = f"frames are {self.frames_THW.dtype} {self.frames_THW.shape}; expected uint8 [T, H, W]"
            raise ValueError(msg)

    @property
    def shape_HW(self) -> tuple[int, int]:
        _, height, width = self.frames_THW.shape
        return height, width

    def __len__(self) -> int:
        return len(self.frames_THW)

    def luma(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        return (self.frames_THW[index] for index in indices)

    def chroma_spread(self, index: int) -> float:  # noqa: ARG002 - grey by construction
        return 0.0

    def chroma(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        return (np.zeros(self.shape_HW, np.uint8) for _ in indices)


@dataclass(frozen=True, kw_only=True)
class CineLoop:
    """One B-mode ultrasound clip.

    Args:
        frames: the frames as luma.
        frame_times_ms: float64 [T], starts at 0, strictly increasing.
        region_px: (x0, y0, x1, y1) of the 2D tissue region, end exclusive, or None when not stated.
        spacing_mm: (row, column) pixel spacing, or None when not stated.
        heart_rate_bpm: 30 to 220, or None when absent or implausible.
        view: stated view as a SNOMED CT code value (399214001 = apical four chamber), or None.
        source: the instance it came from.
    """

    frames: FrameSource
    frame_times_ms: NDArray[np.float64]
    region_px: tuple[int, int, int, int] | None
    spacing_mm: tuple[float, float] | None
    heart_rate_bpm: float | None
    view: str | None
    source: SourceInstance

    def __post_init__(self) -> None:
        _require(len(self.frames) == len(self.frame_times_ms), "one time per frame")
        _require(len(self.frames) >= 2, "at least two frames")
        _require(bool(np.all(np.diff(self.frame_times_ms) > 0)), "frame times increase strictly")
        if self.region_px is not None:
            x0, y0, x1, y1 = self.region_px
            height, width = self.frames.shape_HW
            _require(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height, "the region lies inside the frame")


@dataclass(frozen=True, kw_only=True)
class CineStack:
    """A short-axis cine stack, ordered by geometry and time.

    Args:
        images_SPHW: uint16 or float32 [slice, phase, row, column], stored values.
        spacing_mm: (row, column) pixel spacing.
        slice_positions_mm: float64 [S], projection of ImagePositionPatient on the slice normal, strictly increasing.
        trigger_times_ms: float64 [S, P], increasing along P.
        orientation: six direction cosines of ImageOrientationPatient (PS3.3 C.7.6.2.1.1).
        sources_SP: the instance of each image.
        heart_rate_bpm: 30 to 220, or None when absent or implausible.
    """

    images_SPHW: NDArray[np.uint16] | NDArray[np.float32]
    spacing_mm: tuple[float, float]
    slice_positions_mm: NDArray[np.float64]
    trigger_times_ms: NDArray[np.float64]
    orientation: tuple[float, float, float, float, float, float]
    sources_SP: tuple[tuple[SourceInstance, ...], ...]
    heart_rate_bpm: float | None = None

    def __post_init__(self) -> None:
        _require(self.images_SPHW.ndim == 4, "images are [slice, phase, row, column]")
        slices, phases = self.images_SPHW.shape[:2]
        _require(self.slice_positions_mm.shape == (slices,), "one position per slice")
        _require(self.trigger_times_ms.shape == (slices, phases), "one time per slice and phase")
        _require(bool(np.all(np.diff(self.slice_positions_mm) > 0)), "slice positions increase strictly")
        _require(bool(np.all(np.diff(self.trigger_times_ms, axis=1) > 0)), "trigger times increase strictly")
        _require(len(self.sources_SP) == slices, "one row of sources per slice")
        _require(all(len(row) == phases for row in self.sources_SP), "one source per image")
        _require(min(self.spacing_mm) > 0, "pixel spacing is positive")


@dataclass(frozen=True, kw_only=True)
class EcgRecord:
    """A simultaneous twelve-lead ECG.

    Args:
        signal_mv: float32 [12, N] in millivolt, rows in the order of ``LEAD_NAMES``; NaN where padded.
        sampling_rate_hz: native rate.
        derived_leads: names of limb leads computed from I and II, not recorded.
        source: the instance and the multiplex group it came from.
        highpass_hz, lowpass_hz: filter edges stated by the cart, or None.
        warnings: sentences for the report, without patient data.
    """

    signal_mv: NDArray[np.float32]
    sampling_rate_hz: float
    source: SourceInstance
    derived_leads: frozenset[str] = frozenset()
    highpass_hz: float | None = None
    lowpass_hz: float | None = None
    warnings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        _require(self.signal_mv.ndim == 2 and len(self.signal_mv) == len(LEAD_NAMES), "twelve rows")
        _require(self.signal_mv.dtype == np.float32, "float32 millivolt")
        _require(self.sampling_rate_hz > 0, "a positive sampling rate")
        _require(self.derived_leads <= set(LEAD_NAMES), "derived leads are leads")


Record = CineLoop | CineStack | EcgRecord


def _require(condition: bool, expectation: str) -> None:
    if not condition:
        msg = f"not a valid record: expected {expectation}"
        raise ValueError(msg)
