"""The two networks that are trained: encoder with a regressor of its own, and encoder with its linear head.

Both take clips as 8-bit grey values and give ``ef`` in percent and ``embedding``; normalisation is part of them.

Letters: B clips, T frames, S pixels, E width of the embedding.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from training.coreecho.config import AnyEchoRun, CoReEchoRun, R2Plus1dShape
from training.models.coreecho_net import CoReEchoNet, normalised
from training.models.ef_regressor import EfRegressor
from training.models.r2plus1d import R2Plus1d
from training.models.uniformer import UniFormer

EchoNetwork: TypeAlias = nn.Module
"""Clip uint8 [B, 1, T, S, S] to ``ef`` [B, 1] and ``embedding`` [B, E]; ``encoder`` is part of it."""


class EndToEndNet(nn.Module):
    """The encoder's own linear head gives the ejection fraction."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clip_B1TSS: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        encoded = self.encoder(normalised(clip_B1TSS))
        return {"ef": encoded.head, "embedding": encoded.embedding}


def build_encoder(run: AnyEchoRun) -> nn.Module:
    """Return the untrained encoder of a run."""
    if isinstance(run.encoder, R2Plus1dShape):
        return R2Plus1d.published() if run.encoder.size == "published" else R2Plus1d.small()
    return UniFormer(run.encoder, start_percent=run.start_percent)


def build_network(run: AnyEchoRun) -> EchoNetwork:
    """Return the untrained network of a run; the same seed gives the same weights.

    The encoder's head has no part in CoReEcho: it is kept for the weights' names and never trained.
    """
    torch.manual_seed(run.seed)
    encoder = build_encoder(run)
    if not isinstance(run, CoReEchoRun):
        return EndToEndNet(encoder)
    freeze(encoder.head)
    regressor = EfRegressor(embedding_width(encoder), dropout=run.dropout, start_percent=run.start_percent)
    return CoReEchoNet(encoder, regressor)


def embedding_width(encoder: Any) -> int:
    """Return E."""
    return int(encoder.head.in_features)


def freeze(network: Any) -> None:
    """Take a network out of training."""
    for parameter in network.parameters():
        parameter.requires_grad_(requires_grad=False)
