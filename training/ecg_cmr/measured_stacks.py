"""Short-axis stacks measured by segmentation, a row each: what the stack measures and whether the crop holds the heart.

The rows of a data set of patients fill in targets that its tables do not state; see ``ukbb_pairs``. A row names a patient: it is
kept beside the data, never in a page. Called by ``segmentation_study``.

Letters: S slices of the ventricle from the apex, H row, W column.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from engines.errors import Refusal
from engines.preprocess.cmr import LocatedHeart, crop_slices, locate_heart
from engines.preprocess.cmr_volume import CmrVolumeSpec, check_quality, slice_heights_mm
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack
from training.data.sources.ecg_tables import rows_of_table
from training.data.sources.paired_subjects import TARGETS
from training.ecg_cmr.segmented_stack import measured, segmented_stack
from training.enf.segmentation import segmented, ventricle_slices, with_labels
from training.models.short_axis_unet import Tissue

WIDE_PX = 128
"""Side of the crop that a heart is sought in which the crop of the towers may cut off."""

_COLUMNS = ("key", *TARGETS, "heart_inside_share", "heart_margin_mm", "code", "reason")


@dataclass(frozen=True, kw_only=True)
class CropCheck:
    """How a crop holds the heart: both ventricles and the muscle of the left, at end-diastole.

    Args:
        inside_share: part of the heart's pixels within the crop, 0 to 1.
        margin_mm: from the outermost pixel of the heart to the border of the crop; negative where the crop cuts it off.
    """

    inside_share: float
    margin_mm: float


@dataclass(frozen=True, kw_only=True)
class StackRow:
    """One stack.

    Args:
        key: names the patient.
        stated: targets as the data set states them.
        measured: targets by segmentation; empty where the stack was refused.
        crop: by the labels of the network; None where it sees no heart in a wider crop.
        true_crop: by the labels of a phantom; None for patients.
        code, reason: of the refusal, empty without one.
    """

    key: str = field(repr=False)
    stated: Mapping[str, float]
    measured: Mapping[str, float] = field(default_factory=dict)
    crop: CropCheck | None = None
    true_crop: CropCheck | None = None
    code: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """What measures.

    Args:
        network: a trained ``ShortAxisUnet``.
        spec: pixel spacing the network was trained at.
        volume: how the towers see the stack; its crop is the one that is checked.
    """

    network: nn.Module
    spec: CmrSpec
    volume: CmrVolumeSpec


def measure_stack(
    key: str,
    stack: CineStack,
    by: Segmenter,
    *,
    stated: Mapping[str, float],
    labels_SPHW: NDArray[np.uint8] | None = None,
) -> StackRow:
    """Return the row of a stack; one that cannot be used or measured has its reason and no numbers.

    Args:
        key: names the patient.
        stack: the cine.
        by: what measures.
        stated: targets as the data set states them.
        labels_SPHW: of a phantom, stored as its images are.
    """
    try:
        located = locate_heart(stack, by.volume.heart)
        height_mm = slice_heights_mm(stack, located)
        check_quality(located, height_mm, by.volume)
        labelled = segmented_stack(
            located,
            by.spec,
            by.network,
            slice_distance_mm=float(np.median(np.diff(height_mm))),
            heart_rate_bpm=stack.heart_rate_bpm,
        )
        found = measured(labelled)
    except Refusal as refusal:
        return StackRow(key=key, stated=stated, code=refusal.code.value, reason=refusal.reason)
    truth = None if labels_SPHW is None else true_crop(located, with_labels(located, stack, labels_SPHW), by.volume)
    return StackRow(key=key, stated=stated, measured=found, crop=seen_crop(located, by), true_crop=truth)


def seen_crop(located: LocatedHeart, by: Segmenter) -> CropCheck | None:
    """Hold the crop of the towers against the heart that the network finds in a wider one, None where it finds none."""
    beat = (located.phases.end_diastole,)
    wide_SWW = crop_slices(located, by.spec, WIDE_PX, ventricle_slices(located), beat)[:, 0]
    spacing_mm = (by.spec.pixel_spacing_mm, by.spec.pixel_spacing_mm)
    centre = ((WIDE_PX - 1) / 2, (WIDE_PX - 1) / 2)
    labels_SWW = segmented(wide_SWW, by.network)
    if not (labels_SWW != Tissue.BACKGROUND).any():
        return None
    return crop_check(largest_piece(labels_SWW), centre, spacing_mm, side_mm(by.volume))


def largest_piece(labels_SHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the labels of the largest connected piece of the heart: far from it a network sees hearts in other organs."""
    pieces, _ = ndimage.label(labels_SHW != Tissue.BACKGROUND)
    sizes = np.bincount(pieces.ravel())[1:]
    return np.where(pieces == sizes.argmax() + 1, labels_SHW, np.uint8(Tissue.BACKGROUND))


def true_crop(located: LocatedHeart, drawn: LocatedHeart, volume: CmrVolumeSpec) -> CropCheck:
    """Hold the crop of the towers against the labels of a phantom.

    Args:
        located: the heart as it was found.
        drawn: the same with its images replaced by labels, see ``with_labels``.
        volume: how the towers see the stack.
    """
    images_SPHW = drawn.canonical.images_SPHW
    labels_SHW = images_SPHW[list(ventricle_slices(located)), located.phases.end_diastole]
    return crop_check(labels_SHW, located.centre_px, drawn.canonical.spacing_mm, side_mm(volume))


def side_mm(volume: CmrVolumeSpec) -> float:
    """Side of the crop."""
    return volume.heart.size_px * volume.heart.pixel_spacing_mm


def crop_check(
    labels_SHW: NDArray[np.generic], centre_px: tuple[float, float], spacing_mm: tuple[float, float], side: float
) -> CropCheck:
    """Say how a square crop holds what is labelled.

    Args:
        labels_SHW: numbered as ``Tissue``; at least one pixel is no background.
        centre_px: (row, column) of the crop.
        spacing_mm: (row, column) of a pixel.
        side: of the crop, millimetre.
    """
    _, rows, columns = np.nonzero(labels_SHW != Tissue.BACKGROUND)
    reach_mm = np.maximum(
        (np.abs(rows - centre_px[0]) + 0.5) * spacing_mm[0], (np.abs(columns - centre_px[1]) + 0.5) * spacing_mm[1]
    )
    return CropCheck(
        inside_share=float((reach_mm <= side / 2).mean()), margin_mm=float(side / 2 - reach_mm.max(initial=0.0))
    )


def write_rows(rows: list[StackRow], path: Path) -> None:
    """Write the table of a data set, a line a stack; what was not measured is empty."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, restval="")
        writer.writeheader()
        for row in rows:
            crop = {} if row.crop is None else {"heart_inside_share": row.crop.inside_share}
            crop |= {} if row.crop is None else {"heart_margin_mm": row.crop.margin_mm}
            numbers = {name: f"{value:.6g}" for name, value in (dict(row.measured) | crop).items()}
            writer.writerow({"key": row.key, "code": row.code, "reason": row.reason, **numbers})
    partial.replace(path)


def read_measured(path: Path) -> dict[str, dict[str, float]]:
    """Read the targets of such a table, by key; messages name lines, not patients.

    Raises:
        ValueError: it is no such table, a key is there twice, or a cell is no number.
    """
    layout = "expected the measured.csv that `purkinje-train evaluate segmentation --data` writes"
    found: dict[str, dict[str, float]] = {}
    for row in rows_of_table(path, ("key", *TARGETS), layout):
        key = row.text("key")
        if key in found:
            raise ValueError(f"{row.where}: the key is there twice; leave one of each")
        numbers = {name: row.number(name) for name in TARGETS}
        found[key] = {name: value for name, value in numbers.items() if value is not None}
    return found
