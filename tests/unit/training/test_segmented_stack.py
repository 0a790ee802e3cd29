"""Measurements of a segmented stack: the phantom's own truths come back, and what cannot be measured is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.cmr import locate_heart
from tests.doubles.hearts import small_stack
from training.data.sources.paired_subjects import CoarseScan, draw_patient, targets_of
from training.ecg_cmr.segmented_stack import (
    LabelledStack,
    below_base,
    check_labels,
    measured,
    segmented_stack,
    unlikeness,
)
from training.models.short_axis_unet import Tissue
from training.phantoms.cmr import draw_scan, rendered_with_labels
from training.recipes.enf_small import preprocess


@pytest.fixture(scope="module")
def stack() -> LabelledStack:
    """The labels of a phantom, as it was painted."""
    heart = draw_patient(3, 1, "standard").heart
    rng = np.random.default_rng(0)
    scan = CoarseScan(size_px=128, spacing_mm=1.5, phases=16, slice_distance_mm=2.5).of(draw_scan(rng))
    _, labels_SPHW = rendered_with_labels(heart, replace(scan, apex_first=True), rng)
    cavity_P = (labels_SPHW == Tissue.LEFT_CAVITY).sum(axis=(0, 2, 3))
    beat = [int(cavity_P.argmax()), int(cavity_P.argmin())]
    return LabelledStack(
        labels_SPHW=labels_SPHW[:, beat],
        spacing_mm=(1.5, 1.5),
        slice_distance_mm=2.5,
        heart_rate_bpm=heart.heart_rate_bpm,
    )


def test_the_truths_of_a_phantom_come_back(stack: LabelledStack) -> None:
    """Volumes, mass and output within 5 %, ejection fractions within 2 points."""
    truth, found = targets_of(draw_patient(3, 1, "standard")), measured(stack)
    assert set(found) == set(truth) - {"wall_thickness"}
    for name, value in found.items():
        if name.endswith("ef"):
            assert value == pytest.approx(truth[name], abs=2)
        else:
            assert value == pytest.approx(truth[name], rel=0.05), name


def test_no_heart_rate_no_cardiac_output(stack: LabelledStack) -> None:
    """What was not recorded is left out, not taken to be usual."""
    assert "cardiac_output" not in measured(replace(stack, heart_rate_bpm=None))


def refusal(labels_SHW: np.ndarray) -> tuple[RefusalCode, str]:
    """How labels are refused."""
    with pytest.raises(InputRefused) as caught:
        check_labels(labels_SHW)
    return caught.value.code, caught.value.reason


def test_bad_segmentations_are_refused_with_a_reason(stack: LabelledStack) -> None:
    """Too few slices, a hole between them, no right ventricle in the middle, or no wall: each has its code and words."""
    labels = stack.labels_SPHW[:, 0]
    check_labels(labels)
    shown = np.flatnonzero((labels == Tissue.LEFT_CAVITY).sum(axis=(1, 2)) >= 10)
    hole = labels.copy()
    hole[shown[5]] = Tissue.BACKGROUND
    assert refusal(hole)[0] is RefusalCode.HEART_NOT_FOUND
    assert "not one behind the other" in refusal(hole)[1]
    assert refusal(labels[shown[:5]]) == (
        RefusalCode.TOO_FEW_SLICES,
        "5 slices show cavity and muscle of the left ventricle; expected at least 6.",
    )
    one_chamber = np.where(labels == Tissue.RIGHT_CAVITY, Tissue.BACKGROUND, labels).astype(np.uint8)
    assert "right ventricle" in refusal(one_chamber)[1]
    bare = np.where(labels == Tissue.MYOCARDIUM, Tissue.BACKGROUND, labels).astype(np.uint8)
    assert refusal(bare)[0] is RefusalCode.TOO_FEW_SLICES


class Thresholds(nn.Module):
    """Bright is the left cavity, everything else is background."""

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 4, S, S]."""
        bright = image - image.mean(dim=(2, 3), keepdim=True)
        return torch.cat([-bright, bright, torch.full_like(image, -1e9), torch.full_like(image, -1e9)], dim=1)


def test_a_network_segments_both_phases_from_apex_to_base() -> None:
    """The labelled stack has the found slices and up to two above, both phases, and the spacing of the crops."""
    spec, image = preprocess(size_px=64), small_stack(1)
    located = locate_heart(image, spec)
    found = segmented_stack(located, spec, Thresholds(), slice_distance_mm=10.0)
    slices = min(located.last_slice + 2, len(image.images_SPHW) - 1) - located.first_slice + 1
    assert found.labels_SPHW.shape == (slices, 2, 96, 96)
    assert found.spacing_mm == (1.8, 1.8)
    assert np.all(found.volume_ml(Tissue.LEFT_CAVITY) > 0)


MUSCLE, BLOOD, FAT = 60.0, 200.0, 130.0
SIDE = 40


def ringed(
    radius: float, about: float = MUSCLE, *, wall: float = 4.0, drift: float = 0.0, shift: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and greys of a cavity in a wall: a network says muscle whatever lies about the cavity."""
    rows, columns = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    far = np.hypot(rows - shift, columns)
    inside = [far < radius, far < radius + wall]
    labels = np.select(inside, [Tissue.LEFT_CAVITY, Tissue.MYOCARDIUM], Tissue.BACKGROUND)
    return labels.astype(np.uint8), np.select(inside, [BLOOD, about], 0.0) + drift


def heart(*slices: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and greys [S, 1, H, W]."""
    labels, images = zip(*slices, strict=True)
    return np.stack(labels)[:, None], np.stack(images)[:, None]


def held(labels_SPHW: np.ndarray, phase: int = 0) -> list[int]:
    """Slices with a cavity."""
    return [int(each) for each in np.flatnonzero((labels_SPHW[:, phase] == Tissue.LEFT_CAVITY).any(axis=(1, 2)))]


def test_an_atrium_in_its_fat_is_no_ventricle() -> None:
    """The ventricle ends below the slice whose cavity does not lie in muscle, brighter or darker."""
    for about in (FAT, 0.0):
        labels, images = heart(*(ringed(9 + 0.3 * place) for place in range(5)), ringed(10.4, about))
        assert held(labels) == [0, 1, 2, 3, 4, 5]
        assert held(below_base(labels, images, middle=2, lowest=3)) == [0, 1, 2, 3, 4]


def test_a_cavity_that_narrows_upwards_is_an_atrium() -> None:
    """Grey alone does not tell where the fat is as dark as muscle, and lies where muscle was."""
    labels, images = heart(*(ringed(9 + 0.3 * place) for place in range(5)), ringed(8.5, wall=5.7))
    assert held(below_base(labels, images, middle=2, lowest=3)) == [0, 1, 2, 3, 4]


def test_blood_where_muscle_was_is_an_atrium() -> None:
    """A wide pool in a thin dark wall shows the grey of muscle, elsewhere."""
    labels, images = heart(*(ringed(9 + 0.3 * place) for place in range(5)), ringed(15.0))
    assert held(below_base(labels, images, middle=2, lowest=3)) == [0, 1, 2, 3, 4]


def test_drift_and_breath_holds_end_no_ventricle() -> None:
    """The coil brightens slice after slice, a breath moves one: the whole ventricle stays."""
    labels, images = heart(
        *(ringed(9 + 0.3 * place, wall=2.0, drift=8.0 * place, shift=place % 2) for place in range(6))
    )
    np.testing.assert_array_equal(below_base(labels, images, middle=2, lowest=2), labels)


def test_a_slice_is_held_against_the_next_where_that_lies() -> None:
    """On a ramp of 0.1 a pixel, a breath of one pixel leaves the change of the grey alone; of three, two pixels stay."""
    labels, _ = ringed(9.0)
    ramp = 0.1 * np.indices((SIDE, SIDE))[1]
    for moved, expected in ((1, 0.0 + 0.1), (3, 0.2 + 0.3)):
        pair = np.stack([ramp, ramp + 0.1 * moved])
        assert unlikeness(np.stack([labels] * 2), pair) == pytest.approx(expected)


def test_nothing_below_the_lowest_place_is_cut() -> None:
    """An infarct in the middle, as bright as fat, is no base."""
    labels, images = heart(ringed(9), ringed(9.3), ringed(9.6, FAT), ringed(9.9), ringed(10.2))
    assert held(below_base(labels, images, middle=0, lowest=3)) == [0, 1, 2, 3, 4]
    assert held(below_base(labels, images, middle=0, lowest=0)) == [0, 1]


def test_at_end_systole_the_base_is_never_higher() -> None:
    """It descends: what is above it at end-diastole is above it at end-systole too."""
    filled = heart(*(ringed(9 + 0.3 * place) for place in range(4)), ringed(10.2, FAT))
    emptied = heart(*(ringed(6 + 0.3 * place) for place in range(5)))
    labels, images = (np.concatenate([one, other], axis=1) for one, other in zip(filled, emptied, strict=True))
    kept = below_base(labels, images, middle=1, lowest=2)
    assert held(kept, 0) == held(kept, 1) == [0, 1, 2, 3]
    swapped = below_base(labels[:, ::-1], images[:, ::-1], middle=1, lowest=2)
    assert (held(swapped, 0), held(swapped, 1)) == ([0, 1, 2, 3, 4], [0, 1, 2, 3])


def test_without_muscle_slices_are_unlike() -> None:
    """NaN is not small: the ventricle ends where no muscle is seen."""
    labels, images = heart(*(ringed(9 + 0.3 * place) for place in range(4)), ringed(10.2))
    labels[4][labels[4] == Tissue.MYOCARDIUM] = Tissue.BACKGROUND
    assert np.isnan(unlikeness(labels[3:, 0], images[3:, 0]))
    assert held(below_base(labels, images, middle=1, lowest=2)) == [0, 1, 2, 3]
