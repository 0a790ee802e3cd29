"""Reduced ejection fraction from the mid short-axis slice at end diastole and end systole.

Own design: a small residual image network. No foreign code or weights. Licence of this project.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from training.data.targets import CENTRES, SPREADS
from training.models.blocks import ConvBlock2d, ResidualBlock2d


class CmrPairNet(nn.Module):
    """Image float32 [B, 2, S, S] to ``logit`` [B, 1], ``embedding`` [B, E] and, for training, ``lvef`` [B, 1].

    The embedding also holds the mean and the spread of the first features: what an image looks like (contrast, texture,
    noise) is lost in deeper features, and it is what tells an image of another scanner from those trained on.

    Legend: B hearts, S pixels, D width of the deep features, E = D + 2 * widths[0] width of the embedding.
    """

    def __init__(self, *, widths: tuple[int, int, int, int], embedding_width: int) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.stem = ConvBlock2d(2, first, 2)  # [B, first, S/2, S/2]
        self.encoder = nn.Sequential(
            ResidualBlock2d(first),
            ConvBlock2d(first, second, 2),  # [B, second, S/4, S/4]
            ResidualBlock2d(second),
            ConvBlock2d(second, third, 2),  # [B, third, S/8, S/8]
            ResidualBlock2d(third),
            ConvBlock2d(third, fourth, 2),  # [B, fourth, S/16, S/16]
        )
        self.project = nn.Linear(2 * fourth, embedding_width)
        self.risk = nn.Linear(embedding_width, 1)
        self.volume = nn.Linear(embedding_width, 1)

    @classmethod
    def small(cls) -> Self:
        """Return the network of the first release."""
        return cls(widths=(16, 32, 64, 96), embedding_width=32)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        low = self.stem(2.0 * image - 1.0)  # [B, first, S/2, S/2]
        x = self.encoder(low)  # [B, fourth, S/16, S/16]
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)  # [B, 2 * fourth]
        deep = torch.tanh(self.project(pooled))  # [B, D]
        lvef = CENTRES["lvef"] + SPREADS["lvef"] * self.volume(deep)  # [B, 1], percent
        mean = low.mean(dim=(2, 3))  # [B, first]
        spread = ((low - mean[:, :, None, None]) ** 2).mean(dim=(2, 3)).sqrt()  # [B, first]
        return {"logit": self.risk(deep), "embedding": torch.cat([deep, mean, spread], dim=1), "lvef": lvef}
