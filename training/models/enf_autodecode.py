"""Autodecoding of a field: a table of clouds optimised together with the decoder, and new images fitted against it.

It reproduces more than three gradient steps do, takes hundreds of them, and is not exported. Adam works number by
number, so quarter turns (signed permutations of the coordinates) still turn the fit; other angles do not.

Legend: B images, P pixels, O channels.

Source: Park et al., "DeepSDF", CVPR 2019, section 4.2 (autodecoder). Own code, licence of this project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.models.enf import Enf
from training.models.enf_fit import Fitted, clip_gradients, require_exact, require_finite
from training.models.latent_cloud import LatentCloud


@dataclass(frozen=True, kw_only=True)
class AutodecodeConfig:
    """How a table of clouds is optimised by Adam.

    Attributes:
        epochs: how often every image is seen.
        batch_size: images per step.
        lr_decoder: of the weights; not used by ``refit``.
        lr_context: of the contexts.
        lr_position: of the positions; 0 freezes them.
        lr_orientation: of theta; 0 freezes it.
        seed: of the order of the images.
    """

    epochs: int
    batch_size: int
    lr_decoder: float = 5e-4
    lr_context: float = 1e-2
    lr_position: float = 0.0
    lr_orientation: float = 0.0
    seed: int = 0


class _Table:
    """One cloud per image. Each image has its own tensors, so Adam leaves alone those that a batch does not hold."""

    def __init__(self, cloud: LatentCloud, images: int) -> None:
        self.positions = [cloud.poses[:, :2].clone().requires_grad_() for _ in range(images)]
        self.orientations = [cloud.poses[:, 2:].clone().requires_grad_() for _ in range(images)]
        self.contexts = [cloud.contexts.clone().requires_grad_() for _ in range(images)]
        self.window = cloud.window

    def groups(self, config: AutodecodeConfig) -> list[dict[str, Any]]:
        """Return what Adam moves, each with its own rate; what has rate 0 is left out."""
        return [{"params": tensors, "lr": rate} for tensors, rate in self._rates(config)]

    def moving(self, images: list[int], config: AutodecodeConfig) -> list[Tensor]:
        """Return the tensors of some images that Adam moves."""
        return [tensors[image] for tensors, _ in self._rates(config) for image in images]

    def _rates(self, config: AutodecodeConfig) -> list[tuple[list[Tensor], float]]:
        rows = [
            (self.positions, config.lr_position),
            (self.orientations, config.lr_orientation),
            (self.contexts, config.lr_context),
        ]
        return [(tensors, rate) for tensors, rate in rows if rate != 0.0]

    def cloud(self, images: list[int]) -> LatentCloud:
        """Return the clouds of some images."""
        poses = [torch.cat([self.positions[image], self.orientations[image]], dim=1) for image in images]
        contexts = torch.stack([self.contexts[image] for image in images])
        return LatentCloud(poses=torch.stack(poses), contexts=contexts, window=self.window)


def autodecode(enf: Enf, images_BPO: Tensor, pixels_P2: Tensor, cloud: LatentCloud, config: AutodecodeConfig) -> Fitted:
    """Optimise the decoder and one cloud per image together.

    Args:
        enf: decoder; its weights change.
        images_BPO: values at the pixels, 0 to 1.
        pixels_P2: half fields of view.
        cloud: the start of every cloud, without a batch axis, in the dtype of the decoder.
        config: epochs and rates.

    Returns:
        The table, and the errors at its end.

    Raises:
        NonFiniteFit: when an error is NaN or infinite; ``step`` counts batches. The weights are those before.
        ValueError: for a setting that cannot be equivariant.
    """
    return _optimise(enf, (images_BPO, pixels_P2), cloud, config, train_decoder=True)


def refit(enf: Enf, images_BPO: Tensor, pixels_P2: Tensor, cloud: LatentCloud, config: AutodecodeConfig) -> Fitted:
    """Optimise one cloud per image against a decoder that stays as it is; else as ``autodecode``."""
    return _optimise(enf, (images_BPO, pixels_P2), cloud, config, train_decoder=False)


def _optimise(
    enf: Enf, data: tuple[Tensor, Tensor], cloud: LatentCloud, config: AutodecodeConfig, *, train_decoder: bool
) -> Fitted:
    images_BPO, pixels_P2 = data
    require_exact(enf, pixels_P2, cloud, moving_poses=config.lr_position != 0.0 or config.lr_orientation != 0.0)
    table = _Table(cloud, len(images_BPO))
    weights = list(enf.parameters()) if train_decoder else []
    optimizer = torch.optim.Adam([*table.groups(config), {"params": weights, "lr": config.lr_decoder}])
    for step, batch in enumerate(_batches(len(images_BPO), config)):
        optimizer.zero_grad(set_to_none=True)
        mse_B = require_finite(_errors(enf, data, table, batch), step, batch)
        mse_B.sum().backward(inputs=[*table.moving(batch, config), *weights])
        if train_decoder:
            clip_gradients(enf)
        optimizer.step()
    return _measured(enf, data, table, config)


def _errors(enf: Enf, data: tuple[Tensor, Tensor], table: _Table, images: list[int]) -> Tensor:
    """Return the mean squared error of some images, [B]."""
    images_BPO, pixels_P2 = data
    return (enf(pixels_P2, table.cloud(images)) - images_BPO[images]).square().mean(dim=(1, 2))


def _batches(images: int, config: AutodecodeConfig) -> Iterator[list[int]]:
    """Yield every image once per epoch, in an order of the seed."""
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        for batch in torch.randperm(images, generator=generator).split(config.batch_size):
            yield batch.tolist()


def _measured(enf: Enf, data: tuple[Tensor, Tensor], table: _Table, config: AutodecodeConfig) -> Fitted:
    """Return the whole table, cut from the graph, and its errors."""
    everyone = list(range(len(data[0])))
    batches = [everyone[first : first + config.batch_size] for first in everyone[:: config.batch_size]]
    with torch.no_grad():
        mse_B = torch.cat([require_finite(_errors(enf, data, table, batch), config.epochs, batch) for batch in batches])
    return Fitted(table.cloud(everyone).detach(), mse_B)
