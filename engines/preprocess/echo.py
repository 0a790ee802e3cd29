"""B-mode clip to square, sector-masked clips in equal time steps.

The sector is found from what moves: the tissue changes from frame to frame, burned-in text does not. Frames are asked for
one at a time and reduced at once, so that memory does not grow with the clip. Called by ``registry.prepare``.

Letters: K clip, T frame of a clip, H row, W column, S side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.registry import Prepared
from engines.preprocess.resample import area_weights
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


def prepare_echo(loop: CineLoop, spec: EchoSpec) -> Prepared:
    """Cut ``spec.clips`` evenly spaced clips out of a loop.

    Returns:
        ``clip`` uint8 [K, 1, T, S, S]; K is smaller where the loop has no room for that many different starts.

    Raises:
        InputRefused: too short, too slow, in colour, or without a moving sector.
    """
    _check_time_base(loop, spec)
    sector = find_sector(loop, spec)
    _check_grey(loop, spec)
    starts_ms, notes = _starts_ms(loop, spec)
    frames_KT = np.stack([_nearest(loop.frame_times_ms, start, spec) for start in starts_ms])
    wanted = np.unique(frames_KT[frames_KT >= 0])
    reduced = _reduced(loop, sector, wanted.tolist(), spec)
    clip = np.zeros((len(starts_ms), 1, spec.clip_frames, spec.size_px, spec.size_px), np.uint8)
    clip[:, 0][frames_KT >= 0] = reduced[np.searchsorted(wanted, frames_KT[frames_KT >= 0])]
    source = replace(loop.source, frame_numbers=tuple(int(index) + 1 for index in wanted))
    return Prepared(arrays={"clip": clip}, sources=(source,), region_px=_region_px(sector, loop), notes=notes)


def find_sector(loop: CineLoop, spec: EchoSpec) -> Sector:
    """Find the moving tissue inside the stated region, or inside the whole frame where none is stated.

    Raises:
        InputRefused: SECTOR_NOT_FOUND, with the area found.
    """
    height, width = loop.frames.shape_HW
    x0, y0, x1, y1 = loop.region_px or (0, 0, width, height)
    moving = _temporal_deviation(loop, spec)[y0:y1, x0:x1] >= spec.sector_deviation_min
    component = _largest_component(moving)
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
    return Sector(mask_HW=mask_HW, square_px=_square(mask_HW > 0, _aspect(loop), spec.margin_fraction))


def _check_time_base(loop: CineLoop, spec: EchoSpec) -> None:
    times = loop.frame_times_ms
    interval = float(np.max(np.diff(times)))
    if len(times) < spec.frames_min or times[-1] < spec.duration_min_ms:
        raise InputRefused(
            RefusalCode.TOO_FEW_FRAMES,
            f"the clip has {len(times)} frames in {times[-1]:.0f} ms; at least {spec.frames_min} frames and "
            f"{spec.duration_min_ms:.0f} ms (one heart beat) are expected",
        )
    if interval > spec.frame_interval_max_ms:
        raise InputRefused(
            RefusalCode.TOO_FEW_FRAMES,
            f"up to {interval:.0f} ms lie between two frames; at most {spec.frame_interval_max_ms:.0f} ms are expected",
        )


def _check_grey(loop: CineLoop, spec: EchoSpec) -> None:
    spread = loop.frames.chroma_spread(len(loop.frames) // 2)
    if spread > spec.chroma_spread_max:
        raise InputRefused(
            RefusalCode.COLOUR_DOPPLER,
            f"the image is coloured (departure from grey {spread:.0f} of 255, at most {spec.chroma_spread_max:.0f}); "
            "a grey-scale (B-mode) clip is expected",
        )


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


def _largest_component(moving_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
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


def _aspect(loop: CineLoop) -> float:
    """Row spacing over column spacing; 1 where it is not stated."""
    return 1.0 if loop.spacing_mm is None else loop.spacing_mm[0] / loop.spacing_mm[1]


def _square(mask_HW: NDArray[np.bool_], aspect: float, margin: float) -> tuple[float, float, float, float]:
    """A box around the mask that is square in millimetres, with a margin; edges (left, top, right, bottom) in pixels."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    half = max((bottom - top) * aspect, float(right - left)) / 2 * (1 + 2 * margin)
    middle_row, middle_column = (top + bottom) / 2, (left + right) / 2
    return middle_column - half, middle_row - half / aspect, middle_column + half, middle_row + half / aspect


def _starts_ms(loop: CineLoop, spec: EchoSpec) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Evenly spaced clip starts, and what the reader must know about a loop that is shorter than a clip.

    Raises:
        InputRefused: the loop is shorter than a clip and the spec does not fill it up.
    """
    room_ms = float(loop.frame_times_ms[-1]) - (spec.clip_frames - 1) * spec.frame_step_ms
    if room_ms >= 0:
        count = min(spec.clips, 1 + int(room_ms // spec.frame_step_ms))
        return np.linspace(0.0, room_ms, count) if count > 1 else np.array([room_ms / 2]), ()
    if spec.short_loop == "refuse":
        raise InputRefused(
            RefusalCode.TOO_FEW_FRAMES,
            f"the clip lasts {loop.frame_times_ms[-1]:.0f} ms; {(spec.clip_frames - 1) * spec.frame_step_ms:.0f} ms are expected",
        )
    return np.zeros(1), (f"The clip is {-room_ms:.0f} ms shorter than the engine's window; its end was left black.",)


def _nearest(times_ms: NDArray[np.float64], start_ms: float, spec: EchoSpec) -> NDArray[np.int64]:
    """Index of the frame nearest to each step of a clip; -1 beyond the end of the loop."""
    wanted = start_ms + spec.frame_step_ms * np.arange(spec.clip_frames)
    right = np.clip(np.searchsorted(times_ms, wanted), 1, len(times_ms) - 1)
    nearer_left = wanted - times_ms[right - 1] <= times_ms[right] - wanted
    nearest = np.where(nearer_left, right - 1, right)
    return np.where(wanted <= times_ms[-1] + spec.frame_step_ms / 2, nearest, -1)


def _reduced(loop: CineLoop, sector: Sector, indices: list[int], spec: EchoSpec) -> NDArray[np.uint8]:
    """Masked, area-averaged squares of the asked frames, uint8 [N, S, S]; one full frame in memory at a time."""
    left, top, right, bottom = sector.square_px
    height, width = loop.frames.shape_HW
    rows_SH = area_weights(spec.size_px, height, top, bottom)
    columns_WS = area_weights(spec.size_px, width, left, right).T
    reduced = np.empty((len(indices), spec.size_px, spec.size_px), np.uint8)
    for position, frame in enumerate(loop.frames.luma(indices)):
        square = rows_SH @ (frame * sector.mask_HW) @ columns_WS
        reduced[position] = np.clip(np.rint(square), 0, 255)
    return reduced


def _region_px(sector: Sector, loop: CineLoop) -> tuple[int, int, int, int]:
    """The square clipped to the frame, whole pixels, end exclusive."""
    height, width = loop.frames.shape_HW
    left, top, right, bottom = sector.square_px
    x0, y0 = max(int(np.floor(left)), 0), max(int(np.floor(top)), 0)
    return x0, y0, min(int(np.ceil(right)), width), min(int(np.ceil(bottom)), height)
