"""What each network is trained to make small; every loss is a mean over the batch, in units of the target's spread.

Each takes the network's named outputs and the targets by column name, and returns one scalar tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from training.data.targets import DISEASES, ESTIMATES, SPREADS


def ejection_fraction_loss(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Return the Huber loss of ``ef`` [B, 1] against ``lvef`` [B], percent."""
    return _huber(outputs["ef"][:, 0], targets["lvef"], SPREADS["lvef"])


def ecg_loss(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Return Huber of ``estimates`` [B, 3] plus cross-entropy of ``disease_logits`` [B, 6], columns weighted alike."""
    estimates = [
        _huber(outputs["estimates"][:, index], targets[name], SPREADS[name]) for index, name in enumerate(ESTIMATES)
    ]
    labels_BD = torch.stack([targets[name] for name in DISEASES], dim=1)
    diseases = functional.binary_cross_entropy_with_logits(outputs["disease_logits"], labels_BD)
    return torch.stack(estimates).mean() + 0.5 * diseases


def view_loss(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Return the cross-entropy of ``view_logits`` [B, V] against the number of the view [B], labels softened a little."""
    return functional.cross_entropy(outputs["view_logits"], targets["view"].long(), label_smoothing=0.05)


def _huber(predicted: Tensor, truth: Tensor, spread: float) -> Tensor:
    return functional.smooth_l1_loss(predicted / spread, truth / spread, beta=0.5)
