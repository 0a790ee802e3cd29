"""Finding the left ventricle: a bright disc whose dark wall moves inward all around.

A disc is compared with the third brightest of eight sectors of the ring around it, so that a wall with gaps (an open
valve, a thin septum) still counts and a crescent (right ventricle) or a vessel at the chest wall does not. The edge of
the disc must darken and brighten with the heart beat in all sectors alike: neither the right ventricle nor a bright
spot beside it does. Called by ``preprocess.cmr``.

Letters: S slice, P phase, R radius, K sector, h row and w column of the coarse grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.spec import CmrSpec

RADII_MM = (14.0, 18.0, 22.0, 26.0, 30.0)
"""Radii of the blood pool that are tried: end-systole of a small heart to end-diastole of a dilated one."""

RING_MM = 6.0
"""Width of the ring around the disc that must be dark: about a wall."""

SECTORS = 8
GAPS = 2
"""Sectors of the ring that may be bright."""

EDGE_WITHIN_MM = 5.0
"""The moving edge is sought in a ring that begins this far inside the disc's rim."""

TEXTURE_WEIGHT = 0.7
"""Papillary muscles make a pool uneven, so its texture counts for less than its contrast."""

POOL_MOTION_WEIGHT = 0.5
MOTION_POWER = 1.0 / 3.0
"""Motion ranks the places that have contrast; a weak ventricle moves ten times less than a strong one."""

NEIGHBOURHOOD_MM = 9.0
"""How far the axis of the ventricle may wander from slice to slice."""

MOTION_BLUR_MM = 12.0
RELATIVE_MOTION_MIN = 1e-4
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class CoarseCine:
    """The cine on a coarse square grid, float32 [S, P, h, w], symmetric about the image centre."""

    images_SPHW: NDArray[np.float32]
    spacing_mm: float

    def distance_mm(self, row: int, column: int) -> NDArray[np.float64]:
        """Distance of every grid point from one, [h, w]."""
        height, width = self.images_SPHW.shape[2:]
        rows, columns = np.arange(height)[:, None] - row, np.arange(width)[None, :] - column
        return np.asarray(np.hypot(rows, columns) * self.spacing_mm)


@dataclass(frozen=True, kw_only=True)
class Ventricle:
    """Where the left ventricle is.

    Args:
        offset_mm: (down, right) of the image centre.
        first_slice, last_slice: slices in which it is seen, inclusive.
        score: contrast between pool and ring, as a fraction of the pool's grey value.
    """

    offset_mm: tuple[float, float]
    first_slice: int
    last_slice: int
    score: float


def find_ventricle(cine: CoarseCine, spec: CmrSpec) -> Ventricle:
    """Locate the left ventricle in the coarse cine.

    The place is sought in the middle half of the stack; the slices are the run around the best one.

    Raises:
        InputRefused: nothing beats, or nothing that beats is a round bright pool with a dark wall.
    """
    wave_SHW = _heart_beat(cine)
    beating = _beating_region(cine, wave_SHW, spec)
    slices = len(wave_SHW)
    middle = slice(slices // 4, slices - slices // 4)
    contrast_SRHW = _disc_contrast(cine, beating)
    contrast_RHW = contrast_SRHW[middle].mean(axis=0)
    motion_RHW = _edge_motion(wave_SHW[middle].mean(axis=0), cine.spacing_mm)
    rank = np.where(beating, np.clip(contrast_RHW, 0.0, None) * motion_RHW**MOTION_POWER, -1.0)
    radius, row, column = (int(index) for index in np.unravel_index(rank.argmax(), rank.shape))
    score = float(contrast_RHW[radius, row, column])
    if score < spec.ventricle_score_min or rank.max() <= 0.0:
        raise InputRefused(
            RefusalCode.HEART_NOT_FOUND,
            f"No left ventricle was found: the best round bright region has contrast {score:.2f}, "
            f"expected {spec.ventricle_score_min:g}.",
        )
    first, last = _slice_range(contrast_SRHW, cine.distance_mm(row, column) <= NEIGHBOURHOOD_MM, spec)
    height, width = beating.shape
    return Ventricle(
        offset_mm=((row - (height - 1) / 2) * cine.spacing_mm, (column - (width - 1) / 2) * cine.spacing_mm),
        first_slice=first,
        last_slice=last,
        score=score,
    )


def _heart_beat(cine: CoarseCine) -> NDArray[np.complex64]:
    """First harmonic of the heart beat at every point: strength and timing, complex64 [S, h, w]."""
    phases = cine.images_SPHW.shape[1]
    wave = np.exp(-2j * np.pi * np.arange(phases) / phases).astype(np.complex64)
    return np.asarray(np.einsum("sphw,p->shw", cine.images_SPHW, wave) / phases, np.complex64)


def _beating_region(cine: CoarseCine, wave_SHW: NDArray[np.complex64], spec: CmrSpec) -> NDArray[np.bool_]:
    """Where the first harmonic of the heart beat is strong, [h, w]."""
    motion = ndimage.gaussian_filter(np.abs(wave_SHW).mean(axis=0), MOTION_BLUR_MM / cine.spacing_mm)
    floor = RELATIVE_MOTION_MIN * float(np.ptp(cine.images_SPHW))  # below it rounding errors pass for motion
    contrast = float(motion.max() / max(float(np.median(motion)), floor, _TINY))
    if contrast < spec.motion_contrast_min:
        raise InputRefused(
            RefusalCode.HEART_NOT_FOUND,
            f"Nothing beats in this stack: motion contrast {contrast:.1f}, expected {spec.motion_contrast_min:g}.",
        )
    return np.asarray(motion >= spec.motion_fraction_min * motion.max())


def _edge_motion(wave_HW: NDArray[np.complex64], spacing_mm: float) -> NDArray[np.float32]:
    """How much the edge of every disc moves in the sector that moves second least, 0 to 1, [R, h, w].

    Only motion in time with the whole edge counts; what the pool itself does so is subtracted in part (a vessel).
    """
    moved = np.stack([_edge_motion_at(wave_HW, radius_mm, spacing_mm) for radius_mm in RADII_MM])
    return np.asarray(np.clip(moved, 0.0, None) / max(float(moved.max()), _TINY), np.float32)


def _edge_motion_at(wave_HW: NDArray[np.complex64], radius_mm: float, spacing_mm: float) -> NDArray[np.float32]:
    parts_2HW = np.stack([wave_HW.real, wave_HW.imag])
    _, sectors = _kernels(radius_mm - EDGE_WITHIN_MM, spacing_mm)
    sectors_K2HW = np.stack([_convolve(parts_2HW, sector) for sector in sectors])
    together_2HW = sectors_K2HW.sum(axis=0)
    direction_2HW = together_2HW / np.maximum(np.hypot(*together_2HW), _TINY)
    in_time_KHW = np.sort((sectors_K2HW * direction_2HW).sum(axis=1), axis=0)
    pool, _ = _kernels(radius_mm * 0.5 / 0.8, spacing_mm)
    in_pool_HW = np.abs((_convolve(parts_2HW, pool) * direction_2HW).sum(axis=0))
    return np.asarray(in_time_KHW[1] - POOL_MOTION_WEIGHT * in_pool_HW, np.float32)


def _disc_contrast(cine: CoarseCine, beating: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Contrast of the disc around every point against its ring, float32 [S, R, h, w], fraction of the disc's grey.

    A disc that is darker than the beating region on average is compared with that, so that lungs have no contrast.
    """
    mean_SHW = cine.images_SPHW.mean(axis=1)
    level_SHW = np.maximum(mean_SHW[:, beating].mean(axis=1), _TINY)[:, None, None]
    return np.stack([_disc_contrast_at(mean_SHW, level_SHW, radius, cine.spacing_mm) for radius in RADII_MM], axis=1)


def _disc_contrast_at(
    mean_SHW: NDArray[np.float32], level_SHW: NDArray[np.float32], radius_mm: float, spacing_mm: float
) -> NDArray[np.float32]:
    disc, sectors = _kernels(radius_mm, spacing_mm)
    inside = _convolve(mean_SHW, disc)
    texture = np.sqrt(np.maximum(_convolve(mean_SHW**2, disc) - inside**2, 0.0))
    around = np.sort(np.stack([_convolve(mean_SHW, sector) for sector in sectors]), axis=0)[-1 - GAPS]
    return np.asarray((inside - TEXTURE_WEIGHT * texture - around) / np.maximum(inside, level_SHW), np.float32)


def _kernels(radius_mm: float, spacing_mm: float) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """The inner 80 % of a disc, and the sectors of the ring around it."""
    reach = int(np.ceil((radius_mm + RING_MM) / spacing_mm)) + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    distance_mm, angle = np.hypot(rows, columns) * spacing_mm, np.arctan2(rows, columns)
    disc = _soft_inside(0.8 * radius_mm - distance_mm, spacing_mm)
    ring = _soft_inside(distance_mm - radius_mm, spacing_mm) * _soft_inside(
        radius_mm + RING_MM - distance_mm, spacing_mm
    )
    lobes = (np.clip(np.cos(angle - 2 * np.pi * k / SECTORS), 0.0, None) ** 4 for k in range(SECTORS))
    return _normalised(disc), [_normalised(ring * lobe) for lobe in lobes]


def _soft_inside(depth_mm: NDArray[np.float64], spacing_mm: float) -> NDArray[np.float64]:
    return np.clip(depth_mm / spacing_mm + 0.5, 0.0, 1.0)


def _normalised(kernel: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(kernel / kernel.sum(), np.float32)


def _convolve(images_SHW: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Same-size convolution with zero surroundings; ``kernel`` is odd and square."""
    height, width = images_SHW.shape[1:]
    reach = len(kernel) // 2
    shape = (fft.next_fast_len(height + 2 * reach, real=True), fft.next_fast_len(width + 2 * reach, real=True))
    spectrum = fft.rfft2(images_SHW, shape) * fft.rfft2(kernel, shape)
    full = fft.irfft2(spectrum, shape)
    return np.asarray(full[:, reach : reach + height, reach : reach + width])


def _slice_range(contrast_SRHW: NDArray[np.float32], near: NDArray[np.bool_], spec: CmrSpec) -> tuple[int, int]:
    """First and last slice of the run around the best slice in which the ventricle is seen."""
    seen_S = contrast_SRHW[:, :, near].max(axis=(1, 2))
    best = int(seen_S.argmax())
    held = seen_S >= min(spec.slice_score_min, float(seen_S[best]))
    first = last = best
    while first > 0 and held[first - 1]:
        first -= 1
    while last < len(held) - 1 and held[last + 1]:
        last += 1
    return first, last
