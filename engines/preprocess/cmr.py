"""Short-axis cine stack to the mid slice at end-diastole and end-systole, left ventricle in the centre.

The left ventricle is the round bright pool with a dark wall all around, sought where the stack moves with the
heart beat. Every step is symmetric about the image centre, so images turned by 90 degrees give crops turned by
90 degrees. Serving calls ``prepare_cmr`` through ``registry.prepare``; training calls the three steps it consists
of, to turn and shift wide crops before they are cut.

Letters: S slice, P phase, H row, W column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.canonical import CanonicalStack, canonical_stack
from engines.preprocess.cavity import Cavity, find_cavity, wall_to_blood
from engines.preprocess.heart_phases import HeartPhases, beating_alike, find_phases, ventricle_slices
from engines.preprocess.registry import Prepared
from engines.preprocess.resample import centred_positions, linear_weights
from engines.preprocess.spec import CmrSpec
from engines.preprocess.ventricle import CoarseCine, Ventricle, find_ventricle
from engines.records import CineStack, SourceInstance

SHORTEST_VENTRICLE_MM = 40.0
"""Half the long axis of an adult's left ventricle."""


@dataclass(frozen=True, kw_only=True)
class LocatedHeart:
    """A stack in canonical view with its left ventricle found.

    Args:
        canonical: the stack from apex to base; slices and phases below are indices into it.
        mid_slice: the slice in the middle of the ventricle.
        first_slice, last_slice: slices that hold the ventricle, inclusive.
        phases: end-diastole, end-systole and the area of the cavity at every phase, mm2.
        centre_px: (row, column) of the ventricle's axis in the canonical images; pixel centres are integers.
        sources: instances of the mid slice at end-diastole and end-systole.
        region_px: (x0, y0, x1, y1) of the crop of ``spec.size_px`` in the stored images, end exclusive.
    """

    canonical: CanonicalStack
    mid_slice: int
    first_slice: int
    last_slice: int
    phases: HeartPhases
    centre_px: tuple[float, float]
    sources: tuple[SourceInstance, SourceInstance]
    region_px: tuple[int, int, int, int]


def prepare_cmr(stack: CineStack, spec: CmrSpec) -> Prepared:
    """Crop the mid-ventricular slice at end-diastole and end-systole.

    Returns:
        ``image`` float32 [1, 2, S, S], 0 to 1, end-diastole first.

    Raises:
        InputRefused: too few slices or phases, or no beating ventricle found.
    """
    located = locate_heart(stack, spec)
    image = unit_range(crop_pair(located, spec, spec.size_px), spec)
    return Prepared(
        arrays={"image": image[None]},
        sources=located.sources,
        region_px=located.region_px,
        notes=(_note(located),),
    )


def locate_heart(stack: CineStack, spec: CmrSpec) -> LocatedHeart:
    """Find the left ventricle, its mid slice, end-diastole and end-systole.

    Raises:
        InputRefused: too few slices or phases, or no beating ventricle found.
    """
    _check_size(stack, spec)
    canonical = canonical_stack(stack)
    ventricle = find_ventricle(coarse_cine(canonical, spec), spec)
    cavities = _cavities(canonical, ventricle)
    area_mm2_SP = np.stack([cavity.area_mm2 for cavity in cavities])
    first, last = ventricle_slices(area_mm2_SP, cavities)
    _check_length(stack, last - first + 1)
    phases = find_phases(area_mm2_SP[beating_alike(area_mm2_SP)])
    middle = (first + last) // 2
    centre = _axis_px(cavities[max(first, middle - 1) : min(last, middle + 1) + 1])
    mid = ventricle.first_slice + middle
    row = stack.sources_SP[canonical.slice_order[mid]]
    return LocatedHeart(
        canonical=canonical,
        mid_slice=mid,
        first_slice=ventricle.first_slice + first,
        last_slice=ventricle.first_slice + last,
        phases=phases,
        centre_px=centre,
        sources=(replace(row[phases.end_diastole]), replace(row[phases.end_systole])),
        region_px=canonical.region_in_source(*_region(canonical, centre, spec)),
    )


def crop_pair(located: LocatedHeart, spec: CmrSpec, size_px: int) -> NDArray[np.float64]:
    """Mid slice at end-diastole and end-systole, stored grey values, float64 [2, W, W], the ventricle in the centre.

    Args:
        located: the heart.
        spec: states the pixel spacing of the crop.
        size_px: side W of the crop; what lies outside the image is 0.
    """
    phases = (located.phases.end_diastole, located.phases.end_systole)
    return np.asarray(crop_slices(located, spec, size_px, slices=(located.mid_slice,), phases=phases)[0])


def crop_slices(
    located: LocatedHeart, spec: CmrSpec, size_px: int, slices: Sequence[int], phases: Sequence[int]
) -> NDArray[np.float64]:
    """Crops of any slices and phases about the ventricle's axis, stored grey values, float64 [S, P, W, W].

    Args:
        located: the heart.
        spec: states the pixel spacing of the crop.
        size_px: side W of the crop; what lies outside the image is 0.
        slices: indices from the apex, S of them.
        phases: indices of phases, P of them.
    """
    canonical = located.canonical
    images_SPHW = canonical.images_SPHW[np.ix_(slices, phases)].astype(np.float64)
    rows, columns = (
        _crop_weights(size_px, position, spec.pixel_spacing_mm / spacing_mm, length)
        for position, spacing_mm, length in zip(
            located.centre_px, canonical.spacing_mm, images_SPHW.shape[2:], strict=True
        )
    )
    return np.asarray(rows @ images_SPHW @ columns.T)


def unit_range(crop_2SS: NDArray[np.floating], spec: CmrSpec) -> NDArray[np.float32]:
    """Grey values of both images together to 0..1, float32 [2, S, S].

    Raises:
        InputRefused: both images are one grey.
    """
    low, high = np.percentile(crop_2SS, [spec.percentile_low, spec.percentile_high])
    if high <= low:
        raise InputRefused(
            RefusalCode.HEART_NOT_FOUND, "The heart's region has no contrast: all pixels are equal; check the series."
        )
    return np.asarray(np.clip((crop_2SS - low) / (high - low), 0.0, 1.0), np.float32)


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


def _crop_weights(size_px: int, centre: float, step: float, length: int) -> NDArray[np.float64]:
    return linear_weights(centred_positions(size_px, centre, step), length, step)


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


def _check_length(stack: CineStack, slices: int) -> None:
    """A ventricle that is seen in a short part of a longer stack is none, or the wrong one."""
    distance_mm = float(np.median(np.diff(stack.slice_positions_mm))) if len(stack.slice_positions_mm) > 1 else 0.0
    expected = min(int(np.ceil(SHORTEST_VENTRICLE_MM / max(distance_mm, 1.0))), len(stack.slice_positions_mm))
    if slices < expected:
        message = (
            f"A left ventricle was seen in {slices} slices {distance_mm:.1f} mm apart; expected at least {expected} in a "
            "row: check that the stack is a short-axis stack."
        )
        raise InputRefused(RefusalCode.HEART_NOT_FOUND, message)


def _cavities(canonical: CanonicalStack, ventricle: Ventricle) -> tuple[Cavity, ...]:
    """The cavity in every slice in which the ventricle is seen."""
    start = _centre_px(canonical, ventricle)
    slices = canonical.images_SPHW[ventricle.first_slice : ventricle.last_slice + 1]
    middle = slices[len(slices) // 4 : len(slices) - len(slices) // 4]
    ratio = wall_to_blood(middle, start, canonical.spacing_mm)
    return tuple(find_cavity(images_PHW, start, canonical.spacing_mm, ratio) for images_PHW in slices)


def _axis_px(cavities: Sequence[Cavity]) -> tuple[float, float]:
    """Mean centre of neighbouring slices: papillary muscles and breath-holds move that of a single one."""
    rows, columns = zip(*(cavity.centre_px for cavity in cavities), strict=True)
    return float(np.mean(rows)), float(np.mean(columns))


def _region(canonical: CanonicalStack, centre: tuple[float, float], spec: CmrSpec) -> tuple[int, int, int, int]:
    limits = []
    for position, spacing_mm, length in zip(centre, canonical.spacing_mm, canonical.images_SPHW.shape[2:], strict=True):
        half = spec.size_px * spec.pixel_spacing_mm / spacing_mm / 2.0
        limits.append((max(0, round(position - half)), min(length, round(position + half))))
    (top, bottom), (left, right) = limits
    return top, bottom, left, right


def _note(located: LocatedHeart) -> str:
    slices, count = located.canonical.images_SPHW.shape[:2]
    phases = located.phases
    return (
        f"Slice {located.mid_slice + 1} of {slices} from the apex (ventricle seen in {located.first_slice + 1} to "
        f"{located.last_slice + 1}); end-diastole at phase {phases.end_diastole + 1}, "
        f"end-systole at phase {phases.end_systole + 1} of {count}."
    )
