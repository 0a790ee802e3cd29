"""Version 2 of the echo preprocessing: clips without overlays, of sectors that are plausible.

The sector is found from what moves once the overlays are taken out; overlay pixels are left out of the averages, so that
neither text nor a trace reaches the network or any picture made of its input. Called by ``echo``.

Letters: K clip, T frame of a clip, H row, W column, S side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.echo_overlay import Moments, moments_of, overlay_of
from engines.preprocess.echo_quality import SectorQuality, quality_of, require_plausible
from engines.preprocess.echo_sector import Sector, aspect, largest_component, region_px_of, square_around
from engines.preprocess.echo_steps import check_time_base, nearest_frames, starts_ms
from engines.preprocess.registry import Prepared
from engines.preprocess.resample import area_weights
from engines.preprocess.spec import EchoCleanSpec
from engines.records import CineLoop

_SEEN_MIN = 0.2
"""A cell of the clip of which less than this part is tissue, the rest overlay, is filled from its neighbours."""
_FILL_CELLS = 2.0
"""How far the filling reaches, standard deviation in cells: left black, the strokes of a text could still be read."""


@dataclass(frozen=True, kw_only=True)
class CleanSector:
    """A sector, the part of it that is no overlay, and its quality."""

    sector: Sector
    tissue_HW: NDArray[np.float32]
    quality: SectorQuality


def prepare_clean(loop: CineLoop, spec: EchoCleanSpec) -> Prepared:
    """Cut ``spec.clips`` evenly spaced clips out of a loop, overlays removed.

    Raises:
        InputRefused: too short, too slow, in colour, or without a plausible sector.
    """
    check_time_base(loop, spec)
    found = find_clean_sector(loop, spec)
    starts, notes = starts_ms(loop, spec)
    frames_KT = np.stack([nearest_frames(loop.frame_times_ms, start, spec) for start in starts])
    wanted = np.unique(frames_KT[frames_KT >= 0])
    reduced = _reduced(loop, found, wanted.tolist(), spec)
    clip = np.zeros((len(starts), 1, spec.clip_frames, spec.size_px, spec.size_px), np.uint8)
    clip[:, 0][frames_KT >= 0] = reduced[np.searchsorted(wanted, frames_KT[frames_KT >= 0])]
    source = replace(loop.source, frame_numbers=tuple(int(index) + 1 for index in wanted))
    return Prepared(
        arrays={"clip": clip},
        sources=(source,),
        region_px=region_px_of(found.sector, loop),
        notes=(*notes, found.quality.sentence()),
    )


def find_clean_sector(loop: CineLoop, spec: EchoCleanSpec) -> CleanSector:
    """Find the tissue inside the stated region, or inside the whole frame where none is stated, without overlays.

    Raises:
        InputRefused: SECTOR_NOT_FOUND, SECTOR_IMPLAUSIBLE or COLOUR_DOPPLER, with the numbers found.
    """
    moments = moments_of(loop, spec)
    overlay_HW = overlay_of(moments, spec)
    mask_HW, area_fraction = _moving_hull(loop, moments, overlay_HW, spec)
    coloured_HW = moments.colour_HW >= spec.overlay_colour_min
    quality = quality_of(mask_HW, aspect(loop), moments.saturated_HW, coloured_HW, area_fraction)
    require_plausible(quality, spec)
    square = square_around(mask_HW, aspect(loop), spec.margin_fraction)
    sector = Sector(mask_HW=mask_HW.astype(np.float32), square_px=square)
    return CleanSector(sector=sector, tissue_HW=sector.mask_HW * ~overlay_HW, quality=quality)


def _moving_hull(
    loop: CineLoop, moments: Moments, overlay_HW: NDArray[np.bool_], spec: EchoCleanSpec
) -> tuple[NDArray[np.bool_], float]:
    """The hull of the moving tissue as a mask over the frame, and the part of the region that it covers."""
    height, width = loop.frames.shape_HW
    x0, y0, x1, y1 = loop.region_px or (0, 0, width, height)
    moving = (moments.deviation_HW >= spec.sector_deviation_min) & ~overlay_HW
    hull = filled_hull(largest_component(moving[y0:y1, x0:x1]))
    fraction = float(hull.mean())
    if not spec.sector_area_min <= fraction <= spec.sector_area_max:
        raise InputRefused(
            RefusalCode.SECTOR_NOT_FOUND,
            f"{100 * fraction:.0f} % of the image area moves like tissue; a B-mode sector covers "
            f"{100 * spec.sector_area_min:.0f} to {100 * spec.sector_area_max:.0f} %",
        )
    mask_HW = np.zeros((height, width), bool)
    mask_HW[y0:y1, x0:x1] = hull
    return mask_HW, fraction


def filled_hull(component_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The convex hull of a component, row by row between its two sides; empty where there is none."""
    from scipy.spatial import ConvexHull

    rows = np.flatnonzero(component_HW.any(axis=1))
    if len(rows) < 3:
        return np.zeros_like(component_HW)
    first = component_HW[rows].argmax(axis=1)
    last = component_HW.shape[1] - 1 - component_HW[rows][:, ::-1].argmax(axis=1)
    points = np.concatenate([np.stack([rows, first], 1), np.stack([rows, last], 1)]).astype(float)
    if np.ptp(points[:, 1]) < 2:
        return np.zeros_like(component_HW)
    down, across, offset = ConvexHull(points).equations.T
    # A half plane down * row + across * column + offset <= 0 bounds the columns of a row from one side.
    limit_RE = -(np.outer(rows, down) + offset) / np.where(across == 0, np.inf, across)
    left = np.where(across < 0, limit_RE, -np.inf).max(axis=1)
    right = np.where(across > 0, limit_RE, np.inf).min(axis=1)
    columns = np.arange(component_HW.shape[1])
    filled = np.zeros_like(component_HW)
    filled[rows] = (columns >= left[:, None] - 1e-6) & (columns <= right[:, None] + 1e-6)
    return filled


def _reduced(loop: CineLoop, found: CleanSector, indices: list[int], spec: EchoCleanSpec) -> NDArray[np.uint8]:
    """Area averages over the tissue of each cell, uint8 [N, S, S], less what lies outside the sector."""
    cells = _Cells.of(found.sector.square_px, loop.frames.shape_HW, spec.size_px)
    inside_SS, tissue_SS = cells.averages(found.sector.mask_HW), cells.averages(found.tissue_HW)
    seen = tissue_SS >= _SEEN_MIN * np.maximum(inside_SS, np.finfo(np.float32).tiny)
    share_SS = np.where(seen, inside_SS / np.where(seen, tissue_SS, 1.0), 0.0).astype(np.float32)
    around_SS = _blurred(tissue_SS)
    fill_SS = np.where(seen | (around_SS <= 0), 0.0, inside_SS / np.where(around_SS > 0, around_SS, 1.0))
    reduced = np.empty((len(indices), spec.size_px, spec.size_px), np.uint8)
    for position, frame in enumerate(loop.frames.luma(indices)):
        grey_SS = cells.averages(frame * found.tissue_HW)
        square = grey_SS * share_SS
        if fill_SS.any():
            square += _blurred(grey_SS) * fill_SS
        reduced[position] = np.clip(np.rint(square), 0, 255)
    return reduced


def _blurred(values_SS: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(ndimage.gaussian_filter(values_SS, _FILL_CELLS, truncate=3.0))


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """The cells of a square over a frame as two sparse matrices: each pixel belongs to one or two cells of an axis."""

    rows_SH: Any
    columns_SW: Any

    @classmethod
    def of(cls, square_px: tuple[float, float, float, float], shape_HW: tuple[int, int], size: int) -> Self:
        from scipy.sparse import csr_array

        left, top, right, bottom = square_px
        height, width = shape_HW
        rows, columns = area_weights(size, height, top, bottom), area_weights(size, width, left, right)
        return cls(rows_SH=csr_array(rows), columns_SW=csr_array(columns))

    def averages(self, values_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Area averages [S, S]."""
        return np.asarray((self.columns_SW @ (self.rows_SH @ values_HW).T).T)
