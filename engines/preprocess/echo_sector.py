"""Where the image is in an echo frame: the tissue changes from frame to frame, burned-in text does not.

What both versions of the echo preprocessing share, and how version 1 finds the sector. Called by ``echo`` and ``echo_clean``.

Letters: H row, W column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.spec import EchoSpec
from engines.records import CineLoop


@dataclass(frozen=True, kw_only=True)
class Sector:
    """Where the image is: a mask over the frame and the square that is cut out.

    Args:
        mask_HW: float32, 1 inside the convex hull of what moves.
        square_px: (left, top, right, bottom) edges in pixels, may reach beyond the frame.
    """

    mask_HW: NDArray[np.float32]
    square_px: tuple[float, float, float, float]


def find_sector(loop: CineLoop, spec: EchoSpec) -> Sector:
    """Find the moving tissue inside the stated region, or inside the whole frame where none is stated.

    Raises:
        InputRefused: SECTOR_NOT_FOUND, with the area found.
    """
    height, width = loop.frames.shape_HW
    x0, y0, x1, y1 = loop.region_px or (0, 0, width, height)
    moving = _temporal_deviation(loop, spec)[y0:y1, x0:x1] >= spec.sector_deviation_min
    component = largest_component(moving)
    hull = _convex_hull(component)
    fraction = float(hull.mean())
    if not spec.sector_area_min <= fraction <= spec.sector_area_max:
        raise InputRefused(
            RefusalCode.SECTOR_NOT_FOUND,
            f"{100 * fraction:.0f} % of the image area moves like tissue; a B-mode sector covers "
            f"{100 * spec.sector_area_min:.0f} to {100 * spec.sector_area_max:.0f} %",
        )
    mask_HW = np.zeros((height, width), np.float32)
    mask_HW[y0:y1, x0:x1] = hull
    return Sector(mask_HW=mask_HW, square_px=square_around(mask_HW > 0, aspect(loop), spec.margin_fraction))


def _temporal_deviation(loop: CineLoop, spec: EchoSpec) -> NDArray[np.float32]:
    """Standard deviation over time of each pixel, [H, W] grey levels, from evenly spaced frames, one at a time."""
    count = min(spec.sector_frames, len(loop.frames))
    indices = np.unique(np.linspace(0, len(loop.frames) - 1, count).round().astype(int)).tolist()
    total = np.zeros(loop.frames.shape_HW, np.float32)
    squares = np.zeros_like(total)
    for frame in loop.frames.luma(indices):
        grey = frame.astype(np.float32)
        total += grey
        squares += grey * grey
    mean = total / len(indices)
    return np.asarray(np.sqrt(np.maximum(squares / len(indices) - mean * mean, 0.0)))


def largest_component(moving_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part after closing speckle gaps and opening away thin traces."""
    closed = ndimage.binary_closing(moving_HW, iterations=2)
    opened = ndimage.binary_opening(closed, iterations=3)
    labels, count = ndimage.label(opened)
    if count == 0:
        return np.zeros_like(moving_HW)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == int(sizes.argmax()))


def _convex_hull(component_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The hull, filled: a sector is convex, and what stands still inside it belongs to it."""
    from scipy.spatial import ConvexHull

    rows = np.flatnonzero(component_HW.any(axis=1))
    if len(rows) < 3:
        return np.zeros_like(component_HW)
    first = component_HW[rows].argmax(axis=1)
    last = component_HW.shape[1] - 1 - component_HW[rows][:, ::-1].argmax(axis=1)
    points = np.concatenate([np.stack([rows, first], 1), np.stack([rows, last], 1)]).astype(float)
    if np.ptp(points[:, 1]) < 2:
        return np.zeros_like(component_HW)
    grid = np.indices(component_HW.shape).reshape(2, -1).T
    inside = np.ones(len(grid), bool)
    for *normal, offset in ConvexHull(points).equations:
        inside &= grid @ np.array(normal) + offset <= 1e-6
    return inside.reshape(component_HW.shape)


def aspect(loop: CineLoop) -> float:
    """Row spacing over column spacing; 1 where it is not stated."""
    return 1.0 if loop.spacing_mm is None else loop.spacing_mm[0] / loop.spacing_mm[1]


def square_around(mask_HW: NDArray[np.bool_], aspect: float, margin: float) -> tuple[float, float, float, float]:
    """A box around the mask that is square in millimetres, with a margin; edges (left, top, right, bottom) in pixels."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    half = max((bottom - top) * aspect, float(right - left)) / 2 * (1 + 2 * margin)
    middle_row, middle_column = (top + bottom) / 2, (left + right) / 2
    return middle_column - half, middle_row - half / aspect, middle_column + half, middle_row + half / aspect


def region_px_of(sector: Sector, loop: CineLoop) -> tuple[int, int, int, int]:
    """The square clipped to the frame, whole pixels, end exclusive."""
    height, width = loop.frames.shape_HW
    left, top, right, bottom = sector.square_px
    x0, y0 = max(int(np.floor(left)), 0), max(int(np.floor(top)), 0)
    return x0, y0, min(int(np.ceil(right)), width), min(int(np.ceil(bottom)), height)
