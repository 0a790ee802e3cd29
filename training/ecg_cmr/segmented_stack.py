"""What a segmented short-axis stack measures, and whether it may: targets where a data set states none.

Volumes are voxels times their size at end-diastole and end-systole, the phases that ``preprocess.cmr`` finds. The base moves
through the slices as the heart beats: above it a network sees an atrium in its fat and calls it a ventricle, so at both phases
the ventricle ends where a slice is unlike the one below it. A segmentation with holes, without a right ventricle or of too few
slices is refused with its reason, not measured.

Letters: S slices from the apex, P the two phases, end-diastole first, H row, W column.

Source: W. Bai et al., J Cardiovasc Magn Reson 20:65, 2018 (formulas and rules of quality, in words).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.cmr import LocatedHeart, crop_slices
from engines.preprocess.spec import CmrSpec
from training.enf.segmentation import CROP_PX, end_phases, segmented
from training.models.short_axis_unet import Tissue
from training.phantoms.paired import MUSCLE_G_PER_ML

PIXELS_MIN = 10
"""Fewest pixels of a tissue in a slice that shows it."""

ABOVE = 2
"""Slices above the last one that holds the ventricle over the whole beat; at end-diastole the base may lie in them."""

BASE_MOVES_MM = 25.0
"""Farthest the base lies below the last slice that holds the ventricle at some phase; it descends by 10 to 20."""

UNLIKE = 0.225
"""Two neighbouring slices that differ by more have the base between them, see ``unlikeness``. Set, with the weights there, on 40
phantoms of seed 90, which 0.2 fits as well; one of two real stacks needs more than that."""

_BREATHS_PX = 1
"""Largest shift of a slice against the next, either way, that is looked through: each is acquired in a breath-hold of its own."""

_SHRINK = (-0.1, 0.3)
"""Towards its base a ventricle widens; how much of that counts for and how much of the opposite against it."""

SLICES_MIN = 6
"""Fewest slices with cavity and muscle of the left ventricle, one behind the other."""


@dataclass(frozen=True, kw_only=True)
class LabelledStack:
    """Labels and the size of a voxel.

    Args:
        labels_SPHW: uint8, numbered as ``Tissue``, end-diastole and end-systole.
        spacing_mm: (row, column).
        slice_distance_mm: from slice to slice, gap included.
        heart_rate_bpm: or None where it is not known.
    """

    labels_SPHW: NDArray[np.uint8]
    spacing_mm: tuple[float, float]
    slice_distance_mm: float
    heart_rate_bpm: float | None

    def volume_ml(self, tissue: Tissue) -> NDArray[np.float64]:
        """Volume of a tissue at both phases, millilitre [P]."""
        voxel_ml = self.spacing_mm[0] * self.spacing_mm[1] * self.slice_distance_mm / 1000
        return np.asarray((self.labels_SPHW == tissue).sum(axis=(0, 2, 3)) * voxel_ml, np.float64)


def measured(stack: LabelledStack) -> dict[str, float]:
    """Return what a stack measures, by the names of ``paired_subjects.TARGETS``; cardiac output only with a heart rate.

    Raises:
        InputRefused: as ``check_labels``, at end-diastole.
    """
    check_labels(stack.labels_SPHW[:, 0])
    found = {
        **_ventricle("lv", *stack.volume_ml(Tissue.LEFT_CAVITY)),
        **_ventricle("rv", *stack.volume_ml(Tissue.RIGHT_CAVITY)),
        "lv_mass": float(stack.volume_ml(Tissue.MYOCARDIUM)[0]) * MUSCLE_G_PER_ML,
    }
    if stack.heart_rate_bpm is not None:
        found["cardiac_output"] = found["lvsv"] * stack.heart_rate_bpm / 1000
    return found


def _ventricle(name: str, filled_ml: float, emptied_ml: float) -> dict[str, float]:
    stroke_ml = float(filled_ml - emptied_ml)
    return {
        f"{name}edv": float(filled_ml),
        f"{name}esv": float(emptied_ml),
        f"{name}sv": stroke_ml,
        f"{name}ef": 100 * stroke_ml / float(filled_ml),
    }


def check_labels(labels_SHW: NDArray[np.uint8]) -> None:
    """Refuse a segmentation that cannot be measured.

    Raises:
        InputRefused: too few slices in a row show cavity and muscle (``TOO_FEW_SLICES``), the slices that do are apart
            (``HEART_NOT_FOUND``), or the middle one of them shows no right ventricle (``HEART_NOT_FOUND``).
    """
    shown = {tissue: (labels_SHW == tissue).sum(axis=(1, 2)) >= PIXELS_MIN for tissue in Tissue}
    left = np.flatnonzero(shown[Tissue.LEFT_CAVITY] & shown[Tissue.MYOCARDIUM])
    if len(left) < SLICES_MIN:
        raise InputRefused(
            RefusalCode.TOO_FEW_SLICES,
            f"{len(left)} slices show cavity and muscle of the left ventricle; expected at least {SLICES_MIN}.",
        )
    if left[-1] - left[0] + 1 != len(left):
        raise InputRefused(
            RefusalCode.HEART_NOT_FOUND,
            f"{len(left)} slices show the left ventricle, but not one behind the other; look at the segmentation.",
        )
    middle = int(left[len(left) // 2])
    if not shown[Tissue.RIGHT_CAVITY][middle]:
        raise InputRefused(
            RefusalCode.HEART_NOT_FOUND,
            f"The middle slice of the ventricle shows less than {PIXELS_MIN} pixels of the right ventricle; "
            "look at the segmentation.",
        )


def segmented_stack(
    located: LocatedHeart,
    spec: CmrSpec,
    network: nn.Module,
    *,
    slice_distance_mm: float,
    heart_rate_bpm: float | None = None,
) -> LabelledStack:
    """Name the tissue of every pixel about the ventricle at end-diastole and end-systole, from its apex to its base.

    Args:
        located: the heart.
        spec: states the pixel spacing of the crops.
        network: a trained ``ShortAxisUnet``.
        slice_distance_mm: of the stack.
        heart_rate_bpm: of the stack.
    """
    stored = len(located.canonical.images_SPHW)
    slices = range(located.first_slice, min(stored, located.last_slice + 1 + ABOVE))
    crops_SPWW = crop_slices(located, spec, CROP_PX, slices, end_phases(located))
    labels = segmented(crops_SPWW.reshape(-1, CROP_PX, CROP_PX), network).reshape(crops_SPWW.shape)
    middle, last = (place - located.first_slice for place in (located.mid_slice, located.last_slice))
    lowest = max(middle, last - math.ceil(BASE_MOVES_MM / slice_distance_mm))
    return LabelledStack(
        labels_SPHW=below_base(labels, crops_SPWW, middle=middle, lowest=lowest),
        spacing_mm=(spec.pixel_spacing_mm, spec.pixel_spacing_mm),
        slice_distance_mm=slice_distance_mm,
        heart_rate_bpm=heart_rate_bpm,
    )


def below_base(
    labels_SPHW: NDArray[np.uint8], images_SPHW: NDArray[np.floating], *, middle: int, lowest: int
) -> NDArray[np.uint8]:
    """Return the labels with nothing above the base of each phase.

    The base lies below the first slice that is ``UNLIKE`` the one below it, at end-systole never higher than at end-diastole.

    Args:
        labels_SPHW: numbered as ``Tissue``, slices from the apex.
        images_SPHW: grey values.
        middle: a slice in the middle of the ventricle.
        lowest: the first slice that the base may lie above.
    """
    kept, base = labels_SPHW.copy(), len(labels_SPHW)
    for phase in range(labels_SPHW.shape[1]):
        base = min(base, _base(labels_SPHW[:, phase], images_SPHW[:, phase], middle, lowest))
        kept[base:, phase] = Tissue.BACKGROUND
    return kept


def _base(labels_SHW: NDArray[np.uint8], images_SHW: NDArray[np.floating], middle: int, lowest: int) -> int:
    """The first slice above the ventricle."""
    tissues = (Tissue.LEFT_CAVITY, Tissue.MYOCARDIUM)
    blood, muscle = (_grey(labels_SHW[middle], images_SHW[middle], tissue) for tissue in tissues)
    contrast = abs(blood - muscle)
    if not contrast > 0:
        return len(labels_SHW)
    for place in range(lowest + 1, len(labels_SHW)):
        pair = slice(place - 1, place + 1)
        if not unlikeness(labels_SHW[pair], images_SHW[pair] / contrast) <= UNLIKE:
            return place
    return len(labels_SHW)


def unlikeness(labels_2HW: NDArray[np.uint8], images_2HW: NDArray[np.floating]) -> float:
    """Say how unlike a slice is to the one below it, NaN where one shows no muscle.

    The change of grey where the lower one shows muscle, the change of the grey of what is called muscle, and the part of the
    cavity's area that is lost. Changes, not levels: the grey drifts along the stack with the coil.

    Args:
        labels_2HW: of the lower and the upper slice.
        images_2HW: grey values of both, 1 from muscle to blood.
    """
    lower, upper = (_grey(*each, Tissue.MYOCARDIUM) for each in zip(labels_2HW, images_2HW, strict=True))
    reach = range(-_BREATHS_PX, _BREATHS_PX + 1)
    shifted = [np.roll(images_2HW[1], (row, column), (0, 1)) for row in reach for column in reach]
    there = min(abs(_grey(labels_2HW[0], each - images_2HW[0], Tissue.MYOCARDIUM)) for each in shifted)
    area = (labels_2HW == Tissue.LEFT_CAVITY).sum(axis=(1, 2))
    shrink = 1.0 - area[1] / max(int(area[0]), 1)
    return float(there + abs(upper - lower) + np.clip(shrink, *_SHRINK))


def _grey(labels: NDArray[np.uint8], images: NDArray[np.floating], tissue: Tissue) -> float:
    """Median grey value of a tissue, NaN where it is not there."""
    shown = images[labels == tissue]
    return float(np.median(shown)) if len(shown) else float("nan")
