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
from training.ecg_cmr.segmented_stack import LabelledStack, check_labels, measured, segmented_stack
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
    return LabelledStack(
        labels_SPHW=labels_SPHW, spacing_mm=(1.5, 1.5), slice_distance_mm=2.5, heart_rate_bpm=heart.heart_rate_bpm
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


def test_phases_are_found_and_not_numbered(stack: LabelledStack) -> None:
    """A beat that begins elsewhere measures the same."""
    rolled = replace(stack, labels_SPHW=np.roll(stack.labels_SPHW, 5, axis=1))
    assert measured(rolled) == measured(stack)


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


def test_a_network_segments_every_phase_of_the_ventricles_slices() -> None:
    """The labelled stack has the found slices, all phases, and the spacing of the crops."""
    spec, image = preprocess(size_px=64), small_stack(1)
    located = locate_heart(image, spec)
    found = segmented_stack(located, spec, Thresholds(), slice_distance_mm=10.0)
    slices = located.last_slice - located.first_slice + 1
    assert found.labels_SPHW.shape == (slices, 12, 96, 96)
    assert found.spacing_mm == (1.8, 1.8)
    assert np.all(found.volume_ml(Tissue.LEFT_CAVITY) > 0)
