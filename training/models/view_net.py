"""Which view a single echo frame shows: a small image classifier, the gate of an echo engine.

Own design: four halvings, one residual block, the mean and the maximum over the image, one linear layer. Licence of this
project. Normalisation is part of the graph: the input is the frame as 8-bit grey values.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from training.models.blocks import ConvBlock2d, ResidualBlock2d
from training.phantoms.echo_views import VIEWS


class ViewNet(nn.Module):
    """Frames uint8 [B, 1, S, S] to ``view_logits`` [B, V], V views in the order of ``VIEWS``."""

    def __init__(self, *, widths: tuple[int, int, int, int], views: int) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.encoder = nn.Sequential(
            ConvBlock2d(1, first, 2),  # [B, first, S/2, S/2]
            ConvBlock2d(first, second, 2),  # [B, second, S/4, S/4]
            ConvBlock2d(second, third, 2),  # [B, third, S/8, S/8]
            ResidualBlock2d(third),
            ConvBlock2d(third, fourth, 2),  # [B, fourth, S/16, S/16]
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * fourth, views)

    @classmethod
    def small(cls) -> Self:
        """Return the network of the first release, about 110 thousand parameters."""
        return cls(widths=(8, 16, 40, 64), views=len(VIEWS))

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """Return the named output."""
        x = frames.to(torch.float32) / 64.0 - 1.0  # [B, 1, S, S]
        x = self.encoder(x)  # [B, C, S/16, S/16]
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)  # [B, 2C]
        return {"view_logits": self.head(self.dropout(pooled))}
