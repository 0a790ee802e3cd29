"""The segmentation against the contours of experts: overlap and ejection fraction on real stacks, and a picture to look at.

Letters: N contoured images, S side of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from engines.preprocess.cmr import LocatedHeart, crop_slices, locate_heart
from engines.preprocess.spec import CmrSpec
from training.data.sources.expert_contours import ExpertStudy, expert_labels, read_expert_study
from training.enf.segmentation import (
    CROP_PX,
    cavity_areas_mm2,
    crop_labels,
    end_phases,
    segmentation_ef,
    segmented,
    with_labels,
)
from training.models.short_axis_unet import Tissue


@dataclass(frozen=True, kw_only=True)
class ContouredImages:
    """Every image of a study that an expert contoured, cropped about the found ventricle.

    Args:
        places: (slice from the apex, phase) of each image.
        images_NSS: raw grey values.
        expert_NSS, found_NSS: labels of the expert and of the network, numbered as ``Tissue``.
        has_wall_N: where the expert drew the epicardium too.
    """

    places: tuple[tuple[int, int], ...]
    images_NSS: NDArray[np.float64]
    expert_NSS: NDArray[np.uint8]
    found_NSS: NDArray[np.uint8]

    @property
    def has_wall_N(self) -> NDArray[np.bool_]:
        return np.asarray((self.expert_NSS == Tissue.MYOCARDIUM).any(axis=(1, 2)))


def check_against_experts(network: nn.Module, root: Path, spec: CmrSpec, pictures: Path) -> dict[str, dict[str, float]]:
    """Compare the segmentation with the contours of every subject below ``root``.

    Args:
        network: a trained ``ShortAxisUnet``.
        root: holds one folder per subject, with images and ``contours``.
        spec: of the preprocessing.
        pictures: folder that receives one picture a subject; they show patients and belong in no repository.

    Returns:
        By subject: ``cavity_dice`` and ``myocardium_dice`` (all images together, the wall where both borders are drawn),
        ``cavity_dice_per_image`` (their mean), ``expert_lvef_percent``; ``found_lvef_percent`` on the contoured images, and
        ``lvef_percent`` on the slices and phases that the preprocessing finds, and how far those phases lie from the expert's.

    Raises:
        FileNotFoundError: no subject with contours.
    """
    folders = sorted(path.parent for path in root.glob("*/contours"))
    if not folders:
        raise FileNotFoundError(f"no folder with contours below {root}")
    return {folder.name: _check(read_expert_study(folder), network, spec, pictures) for folder in folders}


def _check(study: ExpertStudy, network: nn.Module, spec: CmrSpec, pictures: Path) -> dict[str, float]:
    located = locate_heart(study.stack, spec)
    images = contoured_images(study, located, network, spec)
    draw_overlay(images, pictures / f"{study.name}.png")
    cavities = [each == Tissue.LEFT_CAVITY for each in (images.expert_NSS, images.found_NSS)]
    walls = [(each == Tissue.MYOCARDIUM)[images.has_wall_N] for each in (images.expert_NSS, images.found_NSS)]
    return {
        "cavity_dice": dice(*cavities),
        "cavity_dice_per_image": float(np.mean([dice(one, other) for one, other in zip(*cavities, strict=True)])),
        "myocardium_dice": dice(*walls),
        "expert_lvef_percent": study.lvef_percent,
        "found_lvef_percent": _ejection(images.found_NSS, [phase for _, phase in images.places], study, spec),
        "lvef_percent": segmentation_ef(located, spec, network),
        "end_diastole_offset_phases": float(end_phases(located)[0] - study.end_diastole),
        "end_systole_offset_phases": float(end_phases(located)[1] - study.end_systole),
    }


def contoured_images(study: ExpertStudy, located: LocatedHeart, network: nn.Module, spec: CmrSpec) -> ContouredImages:
    """Crop and segment the images that the expert contoured."""
    drawn = with_labels(located, study.stack, expert_labels(study))
    cavity_SP = (drawn.canonical.images_SPHW == Tissue.LEFT_CAVITY).any(axis=(2, 3))
    places = tuple((int(slice_index), int(phase)) for slice_index, phase in np.argwhere(cavity_SP))
    images = np.stack([crop_slices(located, spec, CROP_PX, (s,), (p,))[0, 0] for s, p in places])
    expert = np.stack([crop_labels(drawn, spec, CROP_PX, (s,), (p,))[0, 0] for s, p in places])
    return ContouredImages(places=places, images_NSS=images, expert_NSS=expert, found_NSS=segmented(images, network))


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Overlap of two masks, 2 |A and B| / (|A| + |B|), 0 to 1; NaN where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2.0 * int((one & other).sum()) / total if total else float("nan")


def _ejection(found_NSS: NDArray[np.uint8], phases: Sequence[int], study: ExpertStudy, spec: CmrSpec) -> float:
    areas_mm2, phase_N = cavity_areas_mm2(found_NSS, spec), np.asarray(phases)
    filled = float(areas_mm2[phase_N == study.end_diastole].sum())
    emptied = float(areas_mm2[phase_N == study.end_systole].sum())
    return 100.0 * (filled - emptied) / filled if filled else float("nan")


def draw_overlay(images: ContouredImages, path: Path) -> None:
    """Draw every contoured image with the borders of the expert (green) and of the network (red cavity, yellow wall)."""
    from matplotlib.figure import Figure

    columns = 6
    rows = -(-len(images.places) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis in axes:
        axis.axis("off")
    for axis, index in zip(axes, range(len(images.places)), strict=False):
        axis.imshow(images.images_NSS[index], cmap="gray")
        expert, found = images.expert_NSS[index], images.found_NSS[index]
        _border(axis, (expert == Tissue.LEFT_CAVITY) | (expert == Tissue.MYOCARDIUM), "lime")
        _border(axis, expert == Tissue.LEFT_CAVITY, "lime")
        _border(axis, (found == Tissue.LEFT_CAVITY) | (found == Tissue.MYOCARDIUM), "yellow")
        _border(axis, found == Tissue.LEFT_CAVITY, "red")
        slice_index, phase = images.places[index]
        overlap = dice(expert == Tissue.LEFT_CAVITY, found == Tissue.LEFT_CAVITY)
        axis.set_title(f"slice {slice_index + 1}, phase {phase + 1}, Dice {overlap:.2f}", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _border(axis: object, mask_SS: NDArray[np.bool_], colour: str) -> None:
    if mask_SS.any():
        axis.contour(mask_SS.astype(float), levels=[0.5], colors=colour, linewidths=0.8)  # type: ignore[attr-defined]
