"""Ejection fraction by segmentation: a U-Net trained on phantom stacks, and the volumes that follow from it.

Phantom and real stacks are found and cropped by the same ``engines.preprocess.cmr``. The volume is the cavity's area over
the slices of the ventricle times the slice distance, from tissue probabilities averaged over the four quarter turns.
Called by ``baselines`` and ``expert_check``; the random changes of training live in ``slice_augment``.

Letters: S slice or side of a crop, P phase, H row, W column or side of a wide crop, N slices of all subjects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from engines.errors import InputRefused
from engines.preprocess.canonical import canonical_stack
from engines.preprocess.cmr import LocatedHeart, crop_slices, locate_heart
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.config import OptimConfig
from training.enf.descent import descend
from training.enf.slice_augment import SliceAugment, augmented
from training.models.short_axis_unet import ShortAxisUnet, Tissue
from training.optim import learning_rate_at, make_optimizer
from training.phantoms.cmr import draw_scan, rendered_with_labels
from training.phantoms.subjects import draw_subject

CROP_PX = 96
"""Side of the crop that is segmented."""

_PHASES = 10
_STREAM = 0x5E6
"""Sets these phantoms apart from those of other data sets, whatever their seed."""

Labelled = tuple[CineStack, NDArray[np.uint8]]
"""A stack and its labels, uint8 [S, P, H, W], numbered as ``Tissue``."""


class CavityNotFoundError(ValueError):
    """The network finds no left cavity at end-diastole, so there is no ejection fraction."""


OPTIM = OptimConfig(
    epochs=10,
    batch_size=16,
    learning_rate=2e-3,
    weight_decay=0.05,
    warmup_fraction=0.1,
    gradient_clip=1.0,
    autocast_bfloat16=False,
)
"""Ten epochs of AdamW."""


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """How the network is trained; one image takes 21 ms on one core (measured), so the default takes 4 minutes.

    Args:
        spec: of the preprocessing; its ``pixel_spacing_mm`` is that of the crops.
        seed: of subjects, weights and random changes.
        subjects: how many phantoms are rendered.
        wide_px: side of the crops that are turned and bent before ``CROP_PX`` is cut.
        optim: an epoch is ``steps_per_epoch`` batches drawn at random.
        augment: the random changes.
        network: makes the untrained network.
    """

    spec: CmrSpec
    seed: int = 0
    subjects: int = 100
    wide_px: int = 136
    steps_per_epoch: int = 60
    optim: OptimConfig = OPTIM
    crop_px: int = CROP_PX
    augment: SliceAugment = field(default_factory=SliceAugment)
    network: Callable[[], nn.Module] = ShortAxisUnet.small


@dataclass(frozen=True, kw_only=True)
class LabelledSlices:
    """Wide crops float32 [N, W, W], raw grey values, and their labels uint8 [N, W, W]."""

    slices_NWW: NDArray[np.float32]
    labels_NWW: NDArray[np.uint8]

    @property
    def sha256(self) -> str:
        """Digest of the crops and their labels."""
        return hashlib.sha256(self.slices_NWW.tobytes() + self.labels_NWW.tobytes()).hexdigest()


def phantom_segmentation(config: SegmentationConfig, folder: Path, progress: Callable[[str], None]) -> nn.Module:
    """Render the phantoms and train on them, from the checkpoint in ``folder`` where there is one.

    Raises:
        ValueError: ``folder`` holds another run.
        NonFiniteLossError: a loss is not finite.
    """
    data = labelled_slices(phantom_subjects(config.subjects, config.seed), config)
    progress(f"segmentation: {len(data.slices_NWW)} slices of {config.subjects} phantoms")
    return train_segmentation(data, config, folder, progress)


def phantom_subjects(count: int, seed: int) -> Iterator[Labelled]:
    """Render labelled phantoms that no other data set holds, one at a time, with few phases to save time."""
    for index in range(count):
        rng = np.random.default_rng([_STREAM, seed, index])
        subject = draw_subject(rng)
        yield rendered_with_labels(subject, replace(draw_scan(rng), phases=_PHASES), rng)


def labelled_slices(subjects: Iterable[Labelled], config: SegmentationConfig) -> LabelledSlices:
    """Crop the slices of every subject's ventricle at end-diastole and end-systole; no heart found, subject left out.

    Slices beyond the base are left out too: one image does not tell an atrium in its fat from a ventricle in its wall.

    Raises:
        ValueError: no heart is found in any subject.
    """
    slices, labels = [], []
    for stack, labels_SPHW in subjects:
        try:
            located = locate_heart(stack, config.spec)
        except InputRefused:
            continue
        held, beat = ventricle_slices(located), end_phases(located)
        slices.append(crop_slices(located, config.spec, config.wide_px, held, beat))
        cut = crop_labels(with_labels(located, stack, labels_SPHW), config.spec, config.wide_px, held, beat)
        labels.append(cut)
    if not slices:
        raise ValueError("no heart was found in any of the stacks; check the stacks and the specification")
    shape = (-1, config.wide_px, config.wide_px)
    return LabelledSlices(
        slices_NWW=np.concatenate([cut.reshape(shape) for cut in slices]).astype(np.float32),
        labels_NWW=np.concatenate([cut.reshape(shape) for cut in labels]),
    )


def ventricle_slices(located: LocatedHeart) -> range:
    """Slices that hold the ventricle, from the apex."""
    return range(located.first_slice, located.last_slice + 1)


def end_phases(located: LocatedHeart) -> tuple[int, int]:
    """End-diastole and end-systole."""
    return located.phases.end_diastole, located.phases.end_systole


def with_labels(located: LocatedHeart, stack: CineStack, labels_SPHW: NDArray[np.uint8]) -> LocatedHeart:
    """Return the located heart with its images replaced by labels stored as the images of ``stack`` are."""
    canonical = canonical_stack(replace(stack, images_SPHW=labels_SPHW.astype(np.uint16)))
    return replace(located, canonical=canonical)


def crop_labels(
    located: LocatedHeart, spec: CmrSpec, size_px: int, slices: Sequence[int], phases: Sequence[int]
) -> NDArray[np.uint8]:
    """Crop labels as ``crop_slices`` crops images, uint8 [S, P, W, W]: in each pixel the tissue with the largest share."""
    asked = located.canonical.images_SPHW[np.ix_(slices, phases)]
    every = range(len(slices)), range(len(phases))
    shares = []
    for tissue in (Tissue.LEFT_CAVITY, Tissue.MYOCARDIUM, Tissue.RIGHT_CAVITY):
        one = replace(located, canonical=replace(located.canonical, images_SPHW=asked == tissue))
        shares.append(crop_slices(one, spec, size_px, *every))
    background = 1.0 - np.sum(shares, axis=0)
    return np.asarray(np.argmax([background, *shares], axis=0), np.uint8)


def train_segmentation(
    data: LabelledSlices, config: SegmentationConfig, folder: Path, progress: Callable[[str], None]
) -> nn.Module:
    """Train to the end, from the checkpoint in ``folder`` where there is one; return the network in evaluation mode.

    Raises:
        ValueError: ``folder`` holds another run.
        NonFiniteLossError: a loss is not finite.
    """
    torch.manual_seed(config.seed)
    network = config.network()
    optimizer = make_optimizer(network, config.optim)
    digest = _run_digest(data, config)
    done = load_checkpoint(folder, network, optimizer) or Progress(epochs_done=0, run_sha256=digest)
    if done.run_sha256 != digest:
        raise ValueError(f"{folder} holds a run with another config or other data; choose another folder or remove it")
    for epoch in range(done.epochs_done, config.optim.epochs):
        loss = _epoch(data, config, (network, optimizer), epoch)
        save_checkpoint(folder, network, optimizer, Progress(epochs_done=epoch + 1, run_sha256=digest))
        progress(f"segmentation: epoch {epoch + 1} of {config.optim.epochs}, loss {loss:.3f}")
    return network.eval()


def _run_digest(data: LabelledSlices, config: SegmentationConfig) -> str:
    settings = asdict(replace(config, network=ShortAxisUnet.small)) | {
        "spec": config.spec.model_dump(mode="json"),
        "network": config.network.__qualname__,
        "data": data.sha256,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _epoch(
    data: LabelledSlices,
    config: SegmentationConfig,
    trained: tuple[nn.Module, torch.optim.AdamW],
    epoch: int,
) -> float:
    network, optimizer = trained
    rng = np.random.default_rng([config.seed, epoch])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    steps, losses = config.steps_per_epoch, []
    network.train()
    for step in range(steps):
        rows = rng.integers(len(data.slices_NWW), size=config.optim.batch_size)
        slices, labels = torch.from_numpy(data.slices_NWW[rows]), torch.from_numpy(data.labels_NWW[rows])
        images, truth = augmented(slices, labels, config.augment, config.crop_px, generator)
        rate = learning_rate_at(epoch * steps + step, config.optim.epochs * steps, config.optim)
        loss = criterion(network(images), truth[:, None])
        losses.append(descend(network, optimizer, loss, rate, config.optim.gradient_clip))
    return float(np.mean(losses))


@torch.inference_mode()
def segmented(images_NSS: NDArray[np.float64], network: nn.Module) -> NDArray[np.uint8]:
    """Name the tissue of every pixel, uint8 [N, S, S]; images turned by 90 degrees give labels turned by 90 degrees.

    The probabilities are averaged over the four turns. Of the left cavity the largest connected piece is kept (all of
    them when several are), the rest is background.
    """
    network.eval()
    turns = []
    for quarter in range(4):
        turned = np.ascontiguousarray(np.rot90(images_NSS, quarter, axes=(1, 2)), np.float32)
        probability = torch.softmax(network(torch.from_numpy(turned)[:, None]), dim=1).double().numpy()
        turns.append(np.rot90(probability, -quarter, axes=(2, 3)))
    labels_NSS = mean_over_turns(turns).argmax(axis=1).astype(np.uint8)
    for image in labels_NSS:
        cavity = image == Tissue.LEFT_CAVITY
        image[cavity & ~_largest_pieces(cavity)] = Tissue.BACKGROUND
    return np.asarray(labels_NSS)


def mean_over_turns(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean of equally shaped arrays, the same bits in whichever order they come: they are sorted first."""
    return np.asarray(np.sort(values, axis=0).mean(axis=0))


def _largest_pieces(mask_SS: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask_SS)
    if count == 0:
        return mask_SS
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0  # what lies outside all pieces
    return np.asarray(sizes[pieces] == sizes.max())


def cavity_areas_mm2(labels_NSS: NDArray[np.uint8], spec: CmrSpec) -> NDArray[np.float64]:
    """Area of the left cavity in each image, float64 [N]."""
    return np.asarray((labels_NSS == Tissue.LEFT_CAVITY).sum(axis=(1, 2)) * spec.pixel_spacing_mm**2)


def segmentation_ef(located: LocatedHeart, spec: CmrSpec, network: nn.Module, crop_px: int = CROP_PX) -> float:
    """Left ventricular ejection fraction, percent, from the slices that hold the ventricle.

    The slice distance is the same everywhere and falls out of the ratio.

    Raises:
        CavityNotFoundError: no left cavity at end-diastole.
    """
    slices = ventricle_slices(located)
    images_SPWW = crop_slices(located, spec, crop_px, slices, end_phases(located))
    labels = segmented(images_SPWW.reshape(-1, crop_px, crop_px), network)
    filled, emptied = cavity_areas_mm2(labels, spec).reshape(len(slices), 2).sum(axis=0)
    if filled == 0:
        raise CavityNotFoundError("no left cavity was segmented at end-diastole; look at the images")
    return float(100.0 * (filled - emptied) / filled)
