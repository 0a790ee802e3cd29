"""The segmentation: exactly equivariant, labels cropped as images are, trained, resumed, and measured in volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.canonical import CanonicalStack, canonical_stack
from engines.preprocess.cmr import LocatedHeart, crop_slices
from engines.preprocess.heart_phases import HeartPhases
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack, SourceInstance
from training.config import OptimConfig
from training.enf import segmentation
from training.enf.expert_check import ContouredImages, check_against_experts, dice, draw_overlay
from training.enf.segmentation import (
    CavityNotFoundError,
    LabelledSlices,
    SegmentationConfig,
    crop_labels,
    labelled_slices,
    mean_over_turns,
    segmentation_ef,
    segmented,
    train_segmentation,
    with_labels,
)
from training.enf.slice_augment import SliceAugment, augmented
from training.models.short_axis_unet import ShortAxisUnet, Tissue
from training.recipes.enf_small import preprocess

SOURCE = SourceInstance(sop_class_uid="1.2", sop_instance_uid="2.25.1", series_instance_uid="2.25.2")
SIZE = 32


def spec() -> CmrSpec:
    """A specification at one millimetre."""
    return preprocess(size_px=SIZE).model_copy(update={"pixel_spacing_mm": 1.0})


def tiny() -> ShortAxisUnet:
    """A network of three levels."""
    return ShortAxisUnet(widths=(4, 6, 8), residual_units=1)


class BrightIsCavity(nn.Module):
    """Names every pixel brighter than a half left cavity and the rest background."""

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 4, S, S]."""
        cavity = 20.0 * (image - 0.5)
        return torch.cat([-cavity, cavity, cavity - 40.0, cavity - 40.0], dim=1)


def stack(images_SPHW: np.ndarray, orientation: tuple[float, ...] = (1, 0, 0, 0, 0, -1)) -> CineStack:
    """A stack of one millimetre pixels; the default orientation is nearly canonical."""
    slices, phases = images_SPHW.shape[:2]
    return CineStack(
        images_SPHW=images_SPHW,
        spacing_mm=(1.0, 1.0),
        slice_positions_mm=8.0 * np.arange(slices),
        trigger_times_ms=np.tile(40.0 * np.arange(phases), (slices, 1)),
        orientation=orientation,
        sources_SP=((SOURCE,) * phases,) * slices,
    )


def located(images_SPHW: np.ndarray, centre_px: tuple[float, float]) -> LocatedHeart:
    """A heart whose images are canonical already; end-diastole first, end-systole second."""
    slices = len(images_SPHW)
    return LocatedHeart(
        canonical=CanonicalStack(
            images_SPHW=images_SPHW,
            spacing_mm=(1.0, 1.0),
            slice_order=tuple(range(slices)),
            mirrored=False,
            quarter_turns=0,
        ),
        mid_slice=slices // 2,
        first_slice=0,
        last_slice=slices - 1,
        phases=HeartPhases(end_diastole=0, end_systole=1, area_mm2=np.array([2.0, 1.0])),
        centre_px=centre_px,
        sources=(SOURCE, SOURCE),
        region_px=(0, 0, SIZE, SIZE),
    )


def turned(heart: LocatedHeart) -> LocatedHeart:
    """The same heart with its images turned by 90 degrees counter-clockwise."""
    images = np.rot90(heart.canonical.images_SPHW, axes=(2, 3))
    row, column = heart.centre_px
    return replace(
        heart,
        canonical=replace(heart.canonical, images_SPHW=images),
        centre_px=(images.shape[2] - 1 - column, row),
    )


def discs(radii_SP: np.ndarray, side: int = 40) -> np.ndarray:
    """Bright discs in the middle, float [S, P, H, W]."""
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    return (np.hypot(rows, columns) < radii_SP[..., None, None]).astype(float)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_segmenting_commutes_with_quarter_turns_and_one_pass_does_not(seed: int) -> None:
    """For any weights the labels of a turned image are the turned labels, bit for bit; a single pass differs."""
    torch.manual_seed(seed)
    network = tiny().eval()
    images = np.random.default_rng(seed).random((2, 16, 16))
    labels, after = segmented(images, network), segmented(np.rot90(images, axes=(1, 2)), network)
    assert np.array_equal(after, np.rot90(labels, axes=(1, 2)))
    with torch.inference_mode():
        one, other = (
            network(torch.from_numpy(np.ascontiguousarray(each, np.float32))[:, None]).numpy()
            for each in (images, np.rot90(images, axes=(1, 2)))
        )
    assert np.abs(other - np.rot90(one, axes=(2, 3))).max() > 1e-4


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_the_ejection_fraction_is_exactly_invariant_to_quarter_turns(seed: int) -> None:
    """For any weights, images and place of the heart, all four turns give the same ejection fraction, bit for bit."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = tiny().eval()
    heart = located(np.round(1000 * rng.random((3, 2, 40, 40))), (float(rng.integers(14, 26)), 20.0))
    found = set()
    for _ in range(4):
        try:
            found.add(segmentation_ef(heart, spec(), network, crop_px=16))
        except CavityNotFoundError:
            found.add(None)
        heart = turned(heart)
    assert len(found) == 1


def test_the_mean_over_turns_does_not_depend_on_their_order() -> None:
    """Numbers of very different size, whose plain sum depends on the order, have one mean."""
    values = [np.array([value]) for value in (1e16, 1.0, -1e16, 1.0)]
    means = {float(mean_over_turns(values[start:] + values[:start])[0]) for start in range(4)}
    assert len(means) == 1


def test_the_ejection_fraction_of_discs_is_that_of_their_areas() -> None:
    """Cavities of 10 and 8 px that shrink to 6 and 4 px have an ejection fraction of 1 - 52 / 164, about 68 %."""
    heart = located(discs(np.array([[10.0, 6.0], [8.0, 4.0]])), (19.5, 19.5))
    assert segmentation_ef(heart, spec(), BrightIsCavity(), crop_px=SIZE) == pytest.approx(68.3, abs=1.5)


def test_only_the_slices_of_the_ventricle_count() -> None:
    """A bright disc in a slice beyond the ventricle changes nothing."""
    heart = located(discs(np.array([[10.0, 5.0], [9.0, 9.0]])), (19.5, 19.5))
    alone = segmentation_ef(replace(heart, last_slice=0), spec(), BrightIsCavity(), crop_px=SIZE)
    assert alone == pytest.approx(75.0, abs=1.5)
    assert segmentation_ef(heart, spec(), BrightIsCavity(), crop_px=SIZE) < alone - 20


def test_a_second_piece_of_cavity_is_dropped() -> None:
    """Of two bright discs only the larger is the left cavity."""
    image = discs(np.array([[6.0]]))[0, 0]
    image[2:5, 2:5] = 1.0
    labels = segmented(image[None], BrightIsCavity())
    assert (labels[0] == Tissue.LEFT_CAVITY).sum() == (discs(np.array([[6.0]])) > 0).sum()


def test_no_cavity_is_an_error() -> None:
    """Dark images have no ejection fraction."""
    with pytest.raises(CavityNotFoundError, match="end-diastole"):
        segmentation_ef(located(np.zeros((2, 2, 40, 40)), (19.5, 19.5)), spec(), BrightIsCavity(), crop_px=SIZE)


@given(gain=st.floats(0.01, 1e4), offset=st.floats(-100.0, 100.0))
@settings(max_examples=20, deadline=None)
def test_the_network_ignores_gain_and_offset(gain: float, offset: float) -> None:
    """Raw grey values of any scale give the same logits, up to rounding."""
    torch.manual_seed(0)
    network = tiny().eval()
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    network = network.double()
    assert torch.allclose(network(gain * image + offset), network(image), atol=1e-5)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 0, -1), (0, 0, -1, 1, 0, 0), (-1, 0, 0, 0, 0, -1)])
def test_labels_are_cropped_where_the_images_are(orientation: tuple[float, ...]) -> None:
    """Labels that follow the grey level still do so after canonical turns, mirrors and the crop."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (2, 2, 8, 8)), np.ones((5, 5))).astype(np.uint8)
    cine = stack(labels.astype(np.uint16) * 100, orientation)
    heart = replace(located(np.zeros((2, 2, 40, 40)), (17.5, 22.5)), canonical=canonical_stack(cine))
    images = crop_slices(heart, spec(), 24, (1, 0), (0, 1))
    cut = crop_labels(with_labels(heart, cine, labels), spec(), 24, (1, 0), (0, 1))
    assert cut.dtype == np.uint8
    assert np.array_equal(cut, np.rint(images / 100))


def slices(count: int = 8, wide: int = 48) -> LabelledSlices:
    """A bright cavity in a dark wall on grey, with its labels."""
    rng = np.random.default_rng(1)
    rows, columns = np.indices((wide, wide)) - (wide - 1) / 2
    distance = np.hypot(rows, columns)[None] - rng.uniform(4, 7, count)[:, None, None]
    labels = np.select([distance < 0, distance < 4], [Tissue.LEFT_CAVITY, Tissue.MYOCARDIUM], Tissue.BACKGROUND)
    grey = np.array([0.5, 1.0, 0.1, 1.0])[labels] + rng.normal(0, 0.05, labels.shape)
    return LabelledSlices(slices_NWW=grey.astype(np.float32), labels_NWW=labels.astype(np.uint8))


def config(epochs: int = 3, steps: int = 12) -> SegmentationConfig:
    """A short run of a tiny network."""
    return SegmentationConfig(
        spec=spec(),
        wide_px=48,
        crop_px=SIZE,
        steps_per_epoch=steps,
        network=tiny,
        optim=OptimConfig(
            epochs=epochs,
            batch_size=8,
            learning_rate=1e-2,
            weight_decay=0.0,
            warmup_fraction=0.1,
            gradient_clip=1.0,
            autocast_bfloat16=False,
        ),
        augment=SliceAugment(bend_px=0.5, tissue_spread=0.05, gamma_spread=0.1, shading_spread=0.05, noise_max=0.05),
    )


def test_training_learns_the_tissues(tmp_path: Path) -> None:
    """After a few steps the cavity of an unseen disc is found with a Dice above 0.8."""
    network = train_segmentation(slices(), config(), tmp_path, lambda _: None)
    held = slices(12)
    labels = segmented(held.slices_NWW[8:, 8:40, 8:40].astype(np.float64), network)
    truth = held.labels_NWW[8:, 8:40, 8:40]
    assert dice(labels == Tissue.LEFT_CAVITY, truth == Tissue.LEFT_CAVITY) > 0.8


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Stopped after the first epoch and started again, the run gives the weights of one that was not stopped."""

    class Stopped(Exception):
        """The process is killed."""

    def stop(_: str) -> None:
        raise Stopped

    whole = train_segmentation(slices(), config(2, 3), tmp_path / "whole", lambda _: None).state_dict()
    with pytest.raises(Stopped):
        train_segmentation(slices(), config(2, 3), tmp_path / "cut", stop)
    said: list[str] = []
    resumed = train_segmentation(slices(), config(2, 3), tmp_path / "cut", said.append).state_dict()
    assert len(said) == 1
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    """Other data or another config do not continue a run."""
    train_segmentation(slices(), config(1, 2), tmp_path, lambda _: None)
    with pytest.raises(ValueError, match="another config or other data"):
        train_segmentation(slices(9), config(1, 2), tmp_path, lambda _: None)
    with pytest.raises(ValueError, match="another config or other data"):
        train_segmentation(slices(), config(1, 3), tmp_path, lambda _: None)


def test_random_changes_move_labels_with_the_image() -> None:
    """Without changes of appearance the labels still follow the grey levels after turns, bends and scales."""
    data = slices(6)
    still = SliceAugment(
        texture_max=0.0,
        papillary_max=0.0,
        tissue_spread=0.0,
        gamma_spread=0.0,
        shading_spread=0.0,
        blur_max_px=0.06,
        noise_max=0.0,
        cut_probability=0.0,
    )
    drawn = np.roll(data.labels_NWW, 6, axis=2)  # off the centre: swapped axes would show
    grey = np.array([0.5, 1.0, 0.1, 1.0])[drawn].astype(np.float32)
    arguments = torch.from_numpy(grey), torch.from_numpy(drawn)
    images, labels = augmented(*arguments, still, SIZE, torch.Generator().manual_seed(3))
    assert images.shape == (6, 1, SIZE, SIZE)
    wall, cavity = (images[:, 0][labels == tissue].mean() for tissue in (Tissue.MYOCARDIUM, Tissue.LEFT_CAVITY))
    assert cavity > wall + 0.6
    turned_again, _ = augmented(*arguments, still, SIZE, torch.Generator().manual_seed(4))
    assert not torch.equal(images, turned_again)


def test_subjects_without_a_heart_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stack in which the heart is found gives its slices; none at all is an error."""
    bright = stack(discs(np.full((2, 2), 8.0)).astype(np.uint16))
    empty = stack(np.zeros((2, 2, 40, 40), np.uint16))

    def locate(cine: CineStack, _: CmrSpec) -> LocatedHeart:
        if cine is empty:
            raise InputRefused(RefusalCode.HEART_NOT_FOUND, "nothing beats")
        return replace(located(np.zeros((2, 2, 40, 40)), (19.5, 19.5)), canonical=canonical_stack(cine))

    monkeypatch.setattr(segmentation, "locate_heart", locate)
    labels = bright.images_SPHW.astype(np.uint8)
    found = labelled_slices([(empty, labels), (bright, labels)], config())
    assert found.slices_NWW.shape == found.labels_NWW.shape == (4, 48, 48)
    assert np.array_equal(found.labels_NWW == Tissue.LEFT_CAVITY, found.slices_NWW > 0.5)
    with pytest.raises(ValueError, match="no heart was found"):
        labelled_slices([(empty, labels)], config())


def test_dice_of_known_masks() -> None:
    """Equal masks overlap fully, half a mask by two thirds, two empty masks have no overlap to speak of."""
    whole, half = np.ones(8, bool), np.arange(8) < 4
    assert dice(whole, whole) == 1.0
    assert dice(whole, half) == pytest.approx(2 / 3)
    assert np.isnan(dice(~whole, ~whole))


class NothingButCavity(BrightIsCavity):
    """Sees cavity everywhere."""

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 4, S, S]."""
        return super().forward(torch.ones_like(image))


def test_a_real_stack_is_measured(sample_data: Path, tmp_path: Path) -> None:
    """A network that sees cavity everywhere has a poor overlap and no ejection; the expert's fraction stands beside it."""
    (tmp_path / "SCD0000301").symlink_to(sample_data / "cmr" / "SCD0000301_SC-HF-I-4")
    at_18_mm = spec().model_copy(update={"pixel_spacing_mm": 1.8})
    measured = check_against_experts(NothingButCavity(), tmp_path, at_18_mm, tmp_path / "pictures")
    assert list(measured) == ["SCD0000301"]
    assert measured["SCD0000301"]["expert_lvef_percent"] == pytest.approx(22, abs=0.5)
    assert 0.0 < measured["SCD0000301"]["cavity_dice"] < 0.3
    assert measured["SCD0000301"]["myocardium_dice"] == 0.0
    assert measured["SCD0000301"]["lvef_percent"] == 0.0
    assert (tmp_path / "pictures" / "SCD0000301.png").read_bytes()[1:4] == b"PNG"


def test_a_root_without_experts_is_an_error(tmp_path: Path) -> None:
    """There is nothing to measure without contours."""
    with pytest.raises(FileNotFoundError, match="contours"):
        check_against_experts(tiny(), tmp_path, spec(), tmp_path)


def test_the_overlay_is_drawn(tmp_path: Path) -> None:
    """One picture holds every contoured image."""
    mask = discs(np.array([[6.0]]))[0].astype(np.uint8)
    images = ContouredImages(
        places=((0, 0),), images_NSS=mask.astype(float), expert_NSS=mask, found_NSS=np.zeros_like(mask)
    )
    draw_overlay(images, tmp_path / "overlay.png")
    assert (tmp_path / "overlay.png").read_bytes()[1:4] == b"PNG"
