"""What a segmented short-axis stack measures, and whether it may: targets where a data set states none.

Volumes are voxels times their size, end-diastole and end-systole where the left cavity is largest and smallest over the
beat. A segmentation with holes, without a right ventricle or of too few slices is refused with its reason, not measured.

Letters: S slices from the apex, P phases, H row, W column.

Source: W. Bai et al., J Cardiovasc Magn Reson 20:65, 2018 (formulas and rules of quality, in words).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.cmr import LocatedHeart, crop_slices
from engines.preprocess.spec import CmrSpec
from training.enf.segmentation import CROP_PX, segmented, ventricle_slices
from training.models.short_axis_unet import Tissue
from training.phantoms.paired import MUSCLE_G_PER_ML

PIXELS_MIN = 10
"""Fewest pixels of a tissue in a slice that shows it."""

SLICES_MIN = 6
"""Fewest slices with cavity and muscle of the left ventricle, one behind the other."""


@dataclass(frozen=True, kw_only=True)
class LabelledStack:
    """Labels and the size of a voxel.

    Args:
        labels_SPHW: uint8, numbered as ``Tissue``.
        spacing_mm: (row, column).
        slice_distance_mm: from slice to slice, gap included.
        heart_rate_bpm: or None where it is not known.
    """

    labels_SPHW: NDArray[np.uint8]
    spacing_mm: tuple[float, float]
    slice_distance_mm: float
    heart_rate_bpm: float | None

    def volume_ml(self, tissue: Tissue) -> NDArray[np.float64]:
        """Volume of a tissue at every phase, millilitre [P]."""
        voxel_ml = self.spacing_mm[0] * self.spacing_mm[1] * self.slice_distance_mm / 1000
        return np.asarray((self.labels_SPHW == tissue).sum(axis=(0, 2, 3)) * voxel_ml, np.float64)


def measured(stack: LabelledStack) -> dict[str, float]:
    """Return what a stack measures, by the names of ``paired_subjects.TARGETS``; cardiac output only with a heart rate.

    Raises:
        InputRefused: as ``check_labels``, at end-diastole.
    """
    left, right = stack.volume_ml(Tissue.LEFT_CAVITY), stack.volume_ml(Tissue.RIGHT_CAVITY)
    end_diastole, end_systole = int(left.argmax()), int(left.argmin())
    check_labels(stack.labels_SPHW[:, end_diastole])
    found = {
        **_ventricle("lv", float(left[end_diastole]), float(left[end_systole])),
        **_ventricle("rv", float(right[end_diastole]), float(right[end_systole])),
        "lv_mass": float(stack.volume_ml(Tissue.MYOCARDIUM)[end_diastole]) * MUSCLE_G_PER_ML,
    }
    if stack.heart_rate_bpm is not None:
        found["cardiac_output"] = found["lvsv"] * stack.heart_rate_bpm / 1000
    return found


def _ventricle(name: str, filled_ml: float, emptied_ml: float) -> dict[str, float]:
    stroke_ml = filled_ml - emptied_ml
    return {
        f"{name}edv": filled_ml,
        f"{name}esv": emptied_ml,
        f"{name}sv": stroke_ml,
        f"{name}ef": 100 * stroke_ml / filled_ml,
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
    """Name the tissue of every pixel about the ventricle at every phase.

    Args:
        located: the heart.
        spec: states the pixel spacing of the crops.
        network: a trained ``ShortAxisUnet``.
        slice_distance_mm: of the stack.
        heart_rate_bpm: of the stack.
    """
    slices, phases = ventricle_slices(located), range(located.canonical.images_SPHW.shape[1])
    crops_SPWW = crop_slices(located, spec, CROP_PX, slices, phases)
    labels = segmented(crops_SPWW.reshape(-1, CROP_PX, CROP_PX), network)
    return LabelledStack(
        labels_SPHW=labels.reshape(crops_SPWW.shape),
        spacing_mm=(spec.pixel_spacing_mm, spec.pixel_spacing_mm),
        slice_distance_mm=slice_distance_mm,
        heart_rate_bpm=heart_rate_bpm,
    )
