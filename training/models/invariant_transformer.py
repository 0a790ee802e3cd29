"""A small Transformer over latents that sees relative poses only: its answer cannot turn with the image.

A token is a context; where a latent lies enters only through the bi-invariant of pairs of poses, as a bias of the
attention logits. No absolute coordinate, no order of tokens. With frozen poses the bias is a constant of the cloud.

Letters: B hearts, T = frames * N tokens, C context, D width, L layers, E heads.

Source: Vaswani et al., "Attention is all you need", 2017 (pre-norm form); relative poses as Bekkers et al., "Fast,
Expressive SE(n) Equivariant Networks through Weight-Sharing in Position-Orientation Space", ICLR 2024. Own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, one_hot

from training.models.bi_invariants import pair_invariant

FRAMES = 2
_FREQUENCIES = 32


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """Sizes of the classifier; dropout acts on the residual branches in training."""

    width: int
    layers: int
    heads: int
    dropout: float


class _Block(nn.Module):
    """Pre-norm attention with a given bias, then a feed-forward network; both residual."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.widen, self.narrow = nn.Linear(shape.width, 2 * shape.width), nn.Linear(2 * shape.width, shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_BTD: Tensor, bias_ETT: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self._attend(self.attention_norm(x_BTD), bias_ETT))
        return x_BTD + self.dropout(self.narrow(gelu(self.widen(self.forward_norm(x_BTD)))))

    def _attend(self, x_BTD: Tensor, bias_ETT: Tensor) -> Tensor:
        tokens, width = x_BTD.shape[1:]
        query, key, value = (
            part.reshape(-1, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.query_key_value(x_BTD).chunk(3, dim=-1)
        )  # each [B, E, T, D / E]
        logits = query @ key.transpose(2, 3) * (width // self.heads) ** -0.5 + bias_ETT
        mixed = torch.softmax(logits, dim=-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(-1, tokens, width))


class InvariantTransformer(nn.Module):
    """Contexts [B, 2, N, C] to ``logit`` [B, 1], ``pooled`` [B, D] and ``relevance`` [B, 2, N].

    The logit is linear in the mean of the tokens once the scale of the last normalisation is given; ``relevance`` is
    the share of each token in it. The shares and a constant sum to the logit.

    Args:
        shape: sizes.
        poses: [N, 3] (x, y, theta), half fields of view and radian.
        mean, spread: [C], of the contexts over the training set.
    """

    def __init__(self, shape: TransformerShape, poses: Tensor, mean: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("pairs", _pair_features(poses.double()).float())  # [T, T, 8]
        self.register_buffer("mean", mean.float())
        self.register_buffer("spread", spread.float())
        self.frequencies = nn.Parameter(torch.randn(4, _FREQUENCIES) * 1.5)
        self.embed = nn.Linear(len(mean), shape.width)
        self.frame = nn.Parameter(torch.randn(FRAMES, shape.width) * 0.02)
        self.relate = nn.Sequential(
            nn.Linear(8 + 2 * _FREQUENCIES, 64), nn.GELU(), nn.Linear(64, shape.layers * shape.heads)
        )
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, 1)

    def forward(self, contexts_BFNC: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        mean: Any = self.mean
        spread: Any = self.spread
        tokens = self.embed((contexts_BFNC - mean) / spread) + self.frame[:, None, :]
        x = tokens.flatten(1, 2)  # [B, T, D]
        for block, bias in zip(self.blocks, self.biases(), strict=True):
            x = block(x, bias)
        centred = x - x.mean(dim=-1, keepdim=True)  # the normalisation's mean, token by token
        pooled = centred.mean(dim=1)  # [B, D]
        scale = (pooled.square().mean(dim=-1, keepdim=True) + self.norm.eps).rsqrt()  # [B, 1]
        weight = self.norm.weight * self.head.weight[0]  # [D]
        relevance = (centred @ weight) * scale / x.shape[1]  # [B, T]
        constant = self.norm.bias @ self.head.weight[0] + self.head.bias  # [1]
        return {
            "logit": relevance.sum(dim=1, keepdim=True) + constant,
            "pooled": pooled * scale,
            "relevance": relevance.reshape(-1, FRAMES, contexts_BFNC.shape[2]),
        }

    def biases(self) -> Tensor:
        """Return the attention biases of all layers, [L, E, T, T]."""
        pairs: Any = self.pairs
        waves = pairs[..., :4] @ self.frequencies
        features = torch.cat([pairs, torch.sin(waves), torch.cos(waves)], dim=-1)
        tokens = len(pairs)
        return self.relate(features).permute(2, 0, 1).reshape(self.shape.layers, self.shape.heads, tokens, tokens)


def _pair_features(poses: Tensor) -> Tensor:
    """Relative pose of every pair of tokens and whether they are of the same frame, [T, T, 8]."""
    relative = pair_invariant(poses[:, None], poses[None, :])  # [N, N, 4], what i sees of j
    latents = len(poses)
    frames = torch.arange(FRAMES).repeat_interleave(latents)
    kinds = one_hot(frames[:, None] * FRAMES + frames[None, :], FRAMES * FRAMES).to(relative)
    return torch.cat([relative.repeat(FRAMES, FRAMES, 1), kinds], dim=-1)
