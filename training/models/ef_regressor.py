"""From the embedding of a clip to its ejection fraction: a shallow network trained on embeddings that it cannot change.

Paper: F. A. Maani et al., CoReEcho, MICCAI 2024, arXiv 2403.10164. Built from the paper; licence of this project.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from training.models.encoded import MEAN_EF_PERCENT, percent_head


class EfRegressor(nn.Module):
    """Embedding [B, D] to an ejection fraction [B, 1] in percent; 265,217 parameters at D = 512.

    Args:
        width: D.
        dropout: share of what is dropped before each linear layer.
        start_percent: the answer of an untrained network, about.
    """

    def __init__(self, width: int, dropout: float = 0.4, start_percent: float = MEAN_EF_PERCENT) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm1d(width)
        self.hidden = nn.Linear(width, width)
        self.norm_hidden = nn.BatchNorm1d(width)
        self.answer = percent_head(width, start_percent)
        self.drop = nn.Dropout(dropout)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Return percent, [B, 1]."""
        x = self.norm_hidden(self.hidden(self.drop(self.norm_in(embedding_BD))))  # [B, D]
        return self.answer(self.drop(functional.gelu(x)))
