"""Short-axis cine stack to the mid slice at end-diastole and end-systole, left ventricle in the centre.

The left ventricle is the round bright pool with a dark wall all around, sought where the stack moves with the
heart beat. Every step is symmetric about the image centre, so images turned by 90 degrees give crops turned by
90 degrees. Called by ``registry.prepare``.

Letters: S slice, P phase, H row, W column.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.canonical import CanonicalStack, canonical_stack
from engines.preprocess.registry import Prepared
from engines.preprocess.resample import centred_positions, linear_weights
from engines.preprocess.spec import CmrSpec
from engines.preprocess.ventricle import CoarseCine, Ventricle, find_ventricle
from engines.records import CineStack


@dataclass(frozen=True, kw_only=True)
class HeartPhases:
    """Indices of end-diastole and end-systole, and the cavity's area at every phase, square millimetres."""

    end_diastole: int
    end_systole: int
    area_mm2: NDArray[np.float64]


def prepare_cmr(stack: CineStack, spec: CmrSpec) -> Prepared:
    """Crop the mid-ventricular slice at end-diastole and end-systole.

    Returns:
        ``image`` float32 [1, 2, S, S], 0 to 1, end-diastole first.

    Raises:
        InputRefused: too few slices or phases, or no beating ventricle found.
    """
    _check_size(stack, spec)
    canonical = canonical_stack(stack)
    cine = coarse_cine(canonical, spec)
    ventricle = find_ventricle(cine, spec)
    phases = find_phases(cine, ventricle)
    mid = (ventricle.first_slice + ventricle.last_slice) // 2
    centre = _centre_px(canonical, ventricle)
    images = canonical.images_SPHW[mid][[phases.end_diastole, phases.end_systole]]
    crop = _crop(images.astype(np.float64), centre, canonical.spacing_mm, spec)
    image = _unit_range(crop, spec)[None].astype(np.float32)
    row = stack.sources_SP[canonical.slice_order[mid]]
    return Prepared(
        arrays={"image": image},
        sources=tuple(replace(row[phase]) for phase in (phases.end_diastole, phases.end_systole)),
        region_px=canonical.region_in_source(*_region(canonical, centre, spec)),
        notes=(_note(stack, ventricle, phases, mid),),
    )


def coarse_cine(canonical: CanonicalStack, spec: CmrSpec) -> CoarseCine:
    """The stack on a coarse square grid, symmetric about the image centre, float32 [S, P, h, w]."""
    step_mm = spec.search_spacing_mm
    weights = []
    for length, spacing_mm in zip(canonical.images_SPHW.shape[2:], canonical.spacing_mm, strict=True):
        step = step_mm / spacing_mm
        positions = centred_positions(max(3, int(length / step)), (length - 1) / 2.0, step)
        weights.append(linear_weights(positions, length, step).astype(np.float32))
    rows, columns = weights
    images = np.stack([rows @ slice_PHW.astype(np.float32) @ columns.T for slice_PHW in canonical.images_SPHW])
    return CoarseCine(images_SPHW=images, spacing_mm=step_mm)


def find_phases(cine: CoarseCine, ventricle: Ventricle) -> HeartPhases:
    """End-diastole at the largest, end-systole at the smallest cavity, over all slices of the ventricle.

    The cavity is measured softly: a pixel counts as blood by its place between the wall's and the pool's grey level.
    """
    distance_mm = cine.distance_mm(ventricle.row, ventricle.column)
    pool = distance_mm < 0.5 * ventricle.radius_mm
    ring = (distance_mm >= ventricle.radius_mm) & (distance_mm < ventricle.radius_mm + 10.0)
    reach = distance_mm < ventricle.radius_mm + 10.0
    area_px = np.zeros(cine.images_SPHW.shape[1])
    for slice_PHW in cine.images_SPHW[ventricle.first_slice : ventricle.last_slice + 1]:
        blood = float(np.median(slice_PHW[:, pool]))
        wall = float(np.percentile(slice_PHW[:, ring], 20))
        if blood > wall:
            area_px += np.clip((slice_PHW[:, reach] - wall) / (blood - wall), 0.0, 1.0).sum(axis=1)
    area_mm2 = _smooth_cyclic(area_px) * cine.spacing_mm**2
    return HeartPhases(
        end_diastole=int(area_mm2.argmax()), end_systole=int(area_mm2.argmin()), area_mm2=np.asarray(area_mm2)
    )


def _smooth_cyclic(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((np.roll(curve, 1) + 2.0 * curve + np.roll(curve, -1)) / 4.0)


def _check_size(stack: CineStack, spec: CmrSpec) -> None:
    slices, phases = stack.images_SPHW.shape[:2]
    if slices < spec.slices_min:
        raise InputRefused(
            RefusalCode.TOO_FEW_SLICES, f"The stack has {slices} slices; expected at least {spec.slices_min}."
        )
    if phases < spec.phases_min:
        raise InputRefused(
            RefusalCode.TOO_FEW_PHASES, f"The cine has {phases} phases; expected at least {spec.phases_min}."
        )


def _centre_px(canonical: CanonicalStack, ventricle: Ventricle) -> tuple[float, float]:
    height, width = canonical.images_SPHW.shape[2:]
    return (
        (height - 1) / 2.0 + ventricle.offset_mm[0] / canonical.spacing_mm[0],
        (width - 1) / 2.0 + ventricle.offset_mm[1] / canonical.spacing_mm[1],
    )


def _crop(
    images_2HW: NDArray[np.float64], centre: tuple[float, float], spacing_mm: tuple[float, float], spec: CmrSpec
) -> NDArray[np.float64]:
    rows, columns = (
        linear_weights(
            centred_positions(spec.size_px, position, spec.pixel_spacing_mm / spacing),
            length,
            spec.pixel_spacing_mm / spacing,
        )
        for position, spacing, length in zip(centre, spacing_mm, images_2HW.shape[1:], strict=True)
    )
    return np.asarray(rows @ images_2HW @ columns.T)


def _unit_range(crop: NDArray[np.float64], spec: CmrSpec) -> NDArray[np.float64]:
    low, high = np.percentile(crop, [spec.percentile_low, spec.percentile_high])
    if high <= low:
        raise InputRefused(
            RefusalCode.HEART_NOT_FOUND, "The heart's region has no contrast: all pixels are equal; check the series."
        )
    return np.asarray(np.clip((crop - low) / (high - low), 0.0, 1.0))


def _region(canonical: CanonicalStack, centre: tuple[float, float], spec: CmrSpec) -> tuple[int, int, int, int]:
    limits = []
    for position, spacing_mm, length in zip(centre, canonical.spacing_mm, canonical.images_SPHW.shape[2:], strict=True):
        half = spec.size_px * spec.pixel_spacing_mm / spacing_mm / 2.0
        limits.append((max(0, round(position - half)), min(length, round(position + half))))
    (top, bottom), (left, right) = limits
    return top, bottom, left, right


def _note(stack: CineStack, ventricle: Ventricle, phases: HeartPhases, mid: int) -> str:
    slices, count = stack.images_SPHW.shape[:2]
    return (
        f"Slice {mid + 1} of {slices} from the apex (ventricle seen in {ventricle.first_slice + 1} to "
        f"{ventricle.last_slice + 1}); end-diastole at phase {phases.end_diastole + 1}, "
        f"end-systole at phase {phases.end_systole + 1} of {count}."
    )
