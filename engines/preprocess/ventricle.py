"""Finding the left ventricle: a bright disc with a dark ring all around it, where the stack beats.

A disc is compared with the second brightest of eight sectors of the ring around it, so that a pool that is open
to one neighbour still counts and a crescent (right ventricle) or a vessel at the chest wall does not.
Called by ``preprocess.cmr``.

Letters: S slice, P phase, R radius, h row and w column of the coarse grid.
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

RING_MM = 8.0
SECTORS = 8
NEIGHBOURHOOD_MM = 9.0
"""How far the axis of the ventricle may wander from slice to slice."""

MOTION_BLUR_MM = 12.0
RELATIVE_MOTION_MIN = 1e-4


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
        row, column: on the coarse grid.
        offset_mm: (down, right) of the image centre.
        radius_mm: of the disc that fits the blood pool best.
        first_slice, last_slice: slices that hold it, inclusive.
        score: contrast between pool and ring, standard deviations.
    """

    row: int
    column: int
    offset_mm: tuple[float, float]
    radius_mm: float
    first_slice: int
    last_slice: int
    score: float


def find_ventricle(cine: CoarseCine, spec: CmrSpec) -> Ventricle:
    """Locate the left ventricle in the coarse cine.

    Raises:
        InputRefused: HEART_NOT_FOUND when nothing beats or nothing round and bright beats.
    """
    beating = _beating_region(cine, spec)
    scores_SRHW = _disc_scores(cine)
    slices = len(scores_SRHW)
    middle = scores_SRHW[slices // 4 : slices - slices // 4].mean(axis=0)
    sought = np.where(beating, middle, -np.inf)
    radius, row, column = (int(index) for index in np.unravel_index(sought.argmax(), sought.shape))
    score = float(sought[radius, row, column])
    if score < spec.ventricle_score_min:
        raise InputRefused(
            RefusalCode.HEART_NOT_FOUND,
            f"No left ventricle was found: the best round bright region has contrast {score:.2f}, "
            f"expected {spec.ventricle_score_min:g}.",
        )
    first, last = _slice_range(scores_SRHW, cine.distance_mm(row, column) <= NEIGHBOURHOOD_MM, spec)
    height, width = beating.shape
    return Ventricle(
        row=row,
        column=column,
        offset_mm=((row - (height - 1) / 2) * cine.spacing_mm, (column - (width - 1) / 2) * cine.spacing_mm),
        radius_mm=RADII_MM[radius],
        first_slice=first,
        last_slice=last,
        score=score,
    )


def _beating_region(cine: CoarseCine, spec: CmrSpec) -> NDArray[np.bool_]:
    """Where the first harmonic of the heart beat is strong, [h, w]."""
    phases = cine.images_SPHW.shape[1]
    wave = np.exp(-2j * np.pi * np.arange(phases) / phases).astype(np.complex64)
    harmonic_SHW = np.abs(np.einsum("sphw,p->shw", cine.images_SPHW, wave)) / phases
    motion = ndimage.gaussian_filter(harmonic_SHW.mean(axis=0), MOTION_BLUR_MM / cine.spacing_mm)
    floor = RELATIVE_MOTION_MIN * float(np.ptp(cine.images_SPHW))  # below it rounding errors pass for motion
    contrast = float(motion.max() / max(float(np.median(motion)), floor, np.finfo(np.float32).tiny))
    if contrast < spec.motion_contrast_min:
        raise InputRefused(
            RefusalCode.HEART_NOT_FOUND,
            f"Nothing beats in this stack: motion contrast {contrast:.1f}, expected {spec.motion_contrast_min:g}.",
        )
    return np.asarray(motion >= spec.motion_fraction_min * motion.max())


def _disc_scores(cine: CoarseCine) -> NDArray[np.float32]:
    """Contrast of the disc around every point against its ring, float32 [S, R, h, w], standard deviations."""
    mean_SHW = cine.images_SPHW.mean(axis=1)
    level = mean_SHW.mean(axis=(1, 2), keepdims=True)
    spread = mean_SHW.std(axis=(1, 2), keepdims=True)
    standard_SHW = (mean_SHW - level) / np.maximum(spread, np.finfo(np.float32).tiny)
    return np.stack([_disc_score(standard_SHW, radius_mm, cine.spacing_mm) for radius_mm in RADII_MM], axis=1)


def _disc_score(images_SHW: NDArray[np.float32], radius_mm: float, spacing_mm: float) -> NDArray[np.float32]:
    disc, sectors = _kernels(radius_mm, spacing_mm)
    inside = _convolve(images_SHW, disc)
    texture = np.sqrt(np.maximum(_convolve(images_SHW**2, disc) - inside**2, 0.0))
    around = np.sort(np.stack([_convolve(images_SHW, sector) for sector in sectors]), axis=0)
    return np.asarray(inside - texture - around[-2], np.float32)


def _kernels(radius_mm: float, spacing_mm: float) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
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


def _slice_range(scores_SRHW: NDArray[np.float32], near: NDArray[np.bool_], spec: CmrSpec) -> tuple[int, int]:
    """First and last slice of the run around the best slice in which the ventricle is seen."""
    seen_S = scores_SRHW[:, :, near].max(axis=(1, 2))
    best = int(seen_S.argmax())
    held = seen_S >= min(spec.slice_score_min, float(seen_S[best]))
    first = last = best
    while first > 0 and held[first - 1]:
        first -= 1
    while last < len(held) - 1 and held[last + 1]:
        last += 1
    return first, last
