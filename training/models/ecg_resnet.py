"""Ventricular function and disease from a twelve-lead ECG: a small residual network over time.

Own design. No foreign code or weights. Licence of this project.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from training.data.targets import CENTRES, DISEASES, ESTIMATES, SPREADS
from training.models.blocks import ConvBlock1d, ResidualBlock1d


class EcgResNet(nn.Module):
    """Signal float32 [B, 12, N] to ``estimates`` [B, 3], ``disease_logits`` [B, 6] and ``embedding`` [B, E].

    The embedding also holds the mean and the spread of the first features: noise, filters and amplitude are lost in deeper
    features, and they tell a record of another cart from those trained on.

    Legend: B records, N samples, D width of the deep features, E = D + 2 * widths[0] width of the embedding.
    """

    centres: Tensor
    spreads: Tensor

    def __init__(self, *, widths: tuple[int, int, int, int], embedding_width: int, dropout: float) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.stem = ConvBlock1d(12, first, 15, 4)  # [B, first, N/4]
        self.encoder = nn.Sequential(
            ConvBlock1d(first, second, 9, 4),  # [B, second, N/16]
            ResidualBlock1d(second, 7),
            ConvBlock1d(second, third, 7, 2),  # [B, third, N/32]
            ResidualBlock1d(third, 7),
            ConvBlock1d(third, fourth, 7, 2),  # [B, fourth, N/64]
            ResidualBlock1d(fourth, 5),
        )
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(3 * fourth, embedding_width)
        self.estimates = nn.Linear(embedding_width, len(ESTIMATES))
        self.diseases = nn.Linear(embedding_width, len(DISEASES))
        self.register_buffer("centres", torch.tensor([CENTRES[name] for name in ESTIMATES]))
        self.register_buffer("spreads", torch.tensor([SPREADS[name] for name in ESTIMATES]))

    @classmethod
    def small(cls) -> Self:
        """Return the network of the first release."""
        return cls(widths=(24, 32, 64, 96), embedding_width=32, dropout=0.1)

    def forward(self, ecg: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        low = self.stem(ecg)  # [B, first, N/4]
        x = self.encoder(low)  # [B, fourth, N/64]
        mean, spread = _moments(x)  # spread over time tells an irregular rhythm from a regular one
        pooled = torch.cat([mean, x.amax(dim=2), spread], dim=1)  # [B, 3 * fourth]
        deep = torch.tanh(self.project(self.dropout(pooled)))  # [B, D]
        estimates = self.centres + self.spreads * self.estimates(deep)  # [B, 3]
        embedding = torch.cat([deep, *_moments(low)], dim=1)  # [B, E]
        return {"estimates": estimates, "disease_logits": self.diseases(deep), "embedding": embedding}


def _moments(x_BCT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over time, [B, C] each."""
    mean = x_BCT.mean(dim=2, keepdim=True)  # [B, C, 1]
    return mean[:, :, 0], ((x_BCT - mean) ** 2).mean(dim=2).add(1e-6).sqrt()
