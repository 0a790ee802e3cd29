"""A network that no longer changes: neither its weights nor the statistics of its norms, whoever calls ``train``."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A trained network in evaluation mode for good.

    Weights get no gradient, BatchNorm uses the statistics it learned and leaves them alone, dropout is off. The answer for
    one subject does not depend on who else is in the batch.

    Args:
        network: with the attribute ``width``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(requires_grad=False).eval()
        self.width: int = network.width

    def train(self, mode: bool = True) -> Self:  # noqa: FBT002 - torch's signature
        """Stay in evaluation mode, whatever the parent asks for."""
        super().train(mode)
        self.network.eval()
        return self

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the network says, without a graph."""
        embedding: Tensor = self.network(*inputs)
        return embedding
