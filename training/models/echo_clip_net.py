"""Ejection fraction from an apical four-chamber clip: one image encoder per frame, then pooling over time.

Own design, after the common factorised scheme (space first, time second); no foreign code or weights.
Licence of this project. Normalisation is part of the graph: the input is the clip as 8-bit grey values.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from training.data.targets import CENTRES, SPREADS
from training.models.blocks import ConvBlock1d, ConvBlock2d, ResidualBlock1d, ResidualBlock2d


class EchoClipNet(nn.Module):
    """Clip uint8 [B, 1, T, S, S] to ``ef`` [B, 1] in percent and ``embedding`` [B, E].

    Legend: B clips, T frames, S pixels, F features of a frame, E width of the embedding.
    """

    def __init__(self, *, widths: tuple[int, int, int, int], embedding_width: int) -> None:
        super().__init__()
        first, second, third, features = widths
        self.encoder = nn.Sequential(
            ConvBlock2d(1, first, 2),  # [BT, first, S/2, S/2]
            ConvBlock2d(first, second, 2),  # [BT, second, S/4, S/4]
            ResidualBlock2d(second),
            ConvBlock2d(second, third, 2),  # [BT, third, S/8, S/8]
            ResidualBlock2d(third),
            ConvBlock2d(third, features, 2),  # [BT, F, S/16, S/16]
        )
        self.temporal = nn.Sequential(ConvBlock1d(features, features, 3, 1), ResidualBlock1d(features, 3))
        self.attention = nn.Conv1d(features, 4, 1)
        self.project = nn.Linear(4 * features, embedding_width)
        self.head = nn.Linear(embedding_width, 1)

    @classmethod
    def small(cls) -> Self:
        """Return the network of the first release."""
        return cls(widths=(8, 24, 48, 64), embedding_width=32)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        batch, _, frames, height, width = clip.shape
        x = clip.to(torch.float32) / 64.0 - 1.0  # [B, 1, T, S, S]; 0..255 to -1..3, the mean of a sector near 0
        x = x.reshape(batch * frames, 1, height, width)  # [BT, 1, S, S]
        x = self.encoder(x).mean(dim=(2, 3))  # [BT, F]
        x = x.reshape(batch, frames, -1).transpose(1, 2)  # [B, F, T]
        x = self.temporal(x)  # [B, F, T]
        weights = torch.softmax(self.attention(x), dim=2)  # [B, 4, T], each of the four chooses its frames
        pooled = torch.einsum("bft,bat->baf", x, weights).flatten(1)  # [B, 4F]
        embedding = torch.tanh(self.project(pooled))  # [B, E]
        ef = CENTRES["lvef"] + SPREADS["lvef"] * self.head(embedding)  # [B, 1]
        return {"ef": ef, "embedding": embedding}
