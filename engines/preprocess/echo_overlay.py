"""What a scanner burns into the sector: coloured traces and markers, and still, bright, thin strokes of text.

Tissue flickers with its speckle and is grey. Whatever is coloured, or bright, thin and quite still, was drawn by the machine.
White traces that move across the sector are not recognised. Called by ``echo_clean``.

Letters: H row, W column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engines.preprocess.spec import EchoCleanSpec
from engines.records import CineLoop


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What each pixel did over the frames looked at.

    Args:
        mean_HW, deviation_HW: float32, grey levels.
        saturated_HW: float32, part of the frames in which the pixel was saturated.
        colour_HW: uint8, largest departure from grey.
    """

    mean_HW: NDArray[np.float32]
    deviation_HW: NDArray[np.float32]
    saturated_HW: NDArray[np.float32]
    colour_HW: NDArray[np.uint8]


def moments_of(loop: CineLoop, spec: EchoCleanSpec) -> Moments:
    """Look at ``spec.sector_frames`` evenly spaced frames, one at a time."""
    count = min(spec.sector_frames, len(loop.frames))
    indices = np.unique(np.linspace(0, len(loop.frames) - 1, count).round().astype(int)).tolist()
    total, squares, saturated = (np.zeros(loop.frames.shape_HW, np.float32) for _ in range(3))
    for frame in loop.frames.luma(indices):
        grey = frame.astype(np.float32)
        total += grey
        squares += grey * grey
        saturated += frame >= spec.saturated_level
    colour = np.zeros(loop.frames.shape_HW, np.uint8)
    for frame in loop.frames.chroma(indices):
        np.maximum(colour, frame, out=colour)
    share = np.float32(1 / len(indices))
    mean = total * share
    deviation = np.sqrt(np.maximum(squares * share - mean * mean, np.float32(0)))
    return Moments(mean_HW=mean, deviation_HW=deviation, saturated_HW=saturated * share, colour_HW=colour)


def overlay_of(moments: Moments, spec: EchoCleanSpec) -> NDArray[np.bool_]:
    """True where the machine drew: [H, W]."""
    drawn = _coloured(moments, spec) | _text(moments, spec)
    return drawn if spec.overlay_grow_px == 0 else _grown(drawn, spec.overlay_grow_px)


def _coloured(moments: Moments, spec: EchoCleanSpec) -> NDArray[np.bool_]:
    return np.asarray(moments.colour_HW >= spec.overlay_colour_min)


def _text(moments: Moments, spec: EchoCleanSpec) -> NDArray[np.bool_]:
    """Still and bright, less what is broader than a stroke in both directions."""
    still = (moments.deviation_HW <= spec.overlay_still_max) & (moments.mean_HW >= spec.overlay_bright_min)
    side = spec.overlay_stroke_px + 1
    broad = ndimage.binary_opening(still, structure=np.ones((side, side), bool))
    return np.asarray(still & ~_grown(broad, 1))


def _grown(drawn_HW: NDArray[np.bool_], border_px: int) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_dilation(drawn_HW, structure=np.ones((3, 3), bool), iterations=border_px))
