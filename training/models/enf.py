"""Equivariant neural field: an image as a cloud of latents, decoded by attention between pixels and latents.

Paper: Wessels, Knigge et al., "Grounding Continuous Representations in Geometry: Equivariant Neural Fields", ICLR 2025
(arXiv 2406.05753), in the form of Wiers et al., "Geometry-Aware Cardiac MRI Representation Learning with ENFs", MIDL 2026
(PMLR 315:3641-3658). Built from the formulas; the authors' code has no licence and none of it is here. Licence of this
project.

Legend: B images, G = B or 1 (poses shared by all images), P pixels, N latents, K latents seen by a pixel, H heads,
A key width, C context width, E hidden width, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.bi_invariants import bi_invariant
from training.models.latent_cloud import LatentCloud, squared_distance

_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a unit normal cut at two standard deviations."""


@dataclass(frozen=True, kw_only=True)
class EnfShape:
    """Sizes of a field.

    Attributes:
        latents: N.
        context_width: numbers per latent.
        hidden: E.
        heads: H.
        key_width: A, per head.
        std_query: standard deviation of the frequencies before the attention.
        std_value: standard deviation of the frequencies before the values.
        neighbours: latents seen by a pixel; None for all.
        invariant: name in ``BI_INVARIANTS``.
        outputs: channels of the image.
    """

    latents: int
    context_width: int
    hidden: int
    heads: int
    key_width: int
    std_query: float
    std_value: float
    neighbours: int | None
    invariant: str
    outputs: int = 1

    @classmethod
    def published(cls, context_width: int, latents: int = 64) -> Self:
        """Return the decoder of the MIDL 2026 paper: 743,425, 759,809 or 792,577 parameters for 16, 32 or 64 numbers."""
        return cls(
            latents=latents,
            context_width=context_width,
            hidden=256,
            heads=3,
            key_width=256,
            std_query=30.0,
            std_value=60.0,
            neighbours=4,
            invariant="se2",
        )

    @classmethod
    def small(cls) -> Self:
        """Return a field that two CPU cores train within an hour."""
        return cls(
            latents=64,
            context_width=16,
            hidden=64,
            heads=3,
            key_width=32,
            std_query=3.0,
            std_value=5.0,
            neighbours=4,
            invariant="se2",
        )


@dataclass(frozen=True)
class Geometry:
    """All that the decoder needs of pixels and poses; contexts do not enter.

    Attributes:
        query: [G, P, K, H, C + 1]: what each head asks of a context, and its constant.
        scale: [G, P, K, E]: FiLM factor less one.
        shift: [G, P, K, E]: FiLM offset.
        window_logit: [G, P, K]: minus squared distance over squared width.
        index: int64 [G, P, K]: which latents, or None for all N in order.
    """

    query: Tensor
    scale: Tensor
    shift: Tensor
    window_logit: Tensor
    index: Tensor | None


class PosEmb(nn.Module):
    """Random Fourier features of a bi-invariant, with trainable frequencies: Linear(sin([a, e, e + pi / 2]))."""

    def __init__(self, dimension: int, hidden: int, std: float) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(std * torch.randn(dimension, hidden // 2))
        self.mix = nn.Linear(dimension + hidden, hidden)

    def forward(self, a: Tensor) -> Tensor:
        """Map [..., dimension] to [..., hidden]."""
        phase = math.pi * (a + 1.0) @ self.frequencies  # [..., hidden / 2]
        return self.mix(torch.sin(torch.cat([a, phase, phase + math.pi / 2], dim=-1)))


class Enf(nn.Module):
    """Pixels and a latent cloud to the values of the image at these pixels."""

    def __init__(self, shape: EnfShape) -> None:
        super().__init__()
        self.shape = shape
        self.invariant = bi_invariant(shape.invariant)
        hidden, heads = shape.hidden, shape.heads
        if hidden % 2:
            raise ValueError(f"hidden width {hidden} is odd; sines and cosines need an even one")
        self.query_embedding = PosEmb(self.invariant.dimension, hidden, shape.std_query)
        self.value_embedding = PosEmb(self.invariant.dimension, hidden, shape.std_value)
        self.query = nn.Linear(hidden, heads * shape.key_width)
        self.film = nn.Linear(hidden, 2 * hidden)
        self.key = nn.Linear(shape.context_width, heads * shape.key_width)
        self.value = nn.Linear(shape.context_width, hidden)
        self.value_hidden = nn.Linear(hidden, hidden)
        self.value_out = nn.Linear(hidden, heads * hidden)
        self.head = nn.Linear(heads * hidden, shape.outputs)
        self.apply(_lecun_normal)

    def forward(self, pixels_P2: Tensor, cloud: LatentCloud) -> Tensor:
        """Return the values at the pixels.

        Args:
            pixels_P2: half fields of view, (column, row).
            cloud: contexts [B, N, C]; poses [B, N, 3] and window [B, N], or [N, 3] and [N] when shared.

        Returns:
            [B, P, O].
        """
        return self.decode(self.geometry(pixels_P2, cloud.poses, cloud.window), cloud.contexts)

    def geometry(self, pixels_P2: Tensor, poses: Tensor, window: Tensor) -> Geometry:
        """Return what is constant while poses and widths are: embed once, decode many contexts.

        Args:
            pixels_P2: half fields of view.
            poses: [B, N, 2 or 3], or [N, 2 or 3] when shared by all images.
            window: [B, N] or [N].
        """
        poses_GN = poses if poses.ndim == 3 else poses[None]
        index = self._nearest(pixels_P2, poses_GN)
        window_GN1 = window.expand(poses_GN.shape[:2])[..., None]
        pose, width = (
            rows_near(poses_GN, index),
            rows_near(window_GN1, index)[..., 0],
        )  # [G, P or 1, K, 3], [G, P or 1, K]
        pixel = pixels_P2[None, :, None, :]
        a = self.invariant(pixel, pose)  # [G, P, K, d]
        scale, shift = self.film(self.value_embedding(a)).chunk(2, dim=-1)
        squared = (pixel - pose[..., :2]).square().sum(dim=-1)  # [G, P, K]
        return Geometry(self.folded_query(a), scale, shift, -squared / width.square(), index)

    def decode(self, geometry: Geometry, contexts_BNC: Tensor) -> Tensor:
        """Return [B, P, O] for contexts at known poses.

        ``value_out`` and ``head`` are linear and the attention weights sum to one, so the values are summed before both.
        """
        near = rows_near(contexts_BNC, geometry.index)  # [B, P or 1, K, C]
        asked = (geometry.query[..., :-1] * near[..., None, :]).sum(dim=-1) + geometry.query[..., -1]  # [B, P, K, H]
        weights = torch.softmax(asked + geometry.window_logit[..., None], dim=2)  # [B, P, K, H]
        stem = rows_near(self.value(contexts_BNC), geometry.index)  # [B, P or 1, K, E]
        film = stem * (1.0 + geometry.scale) + geometry.shift  # [B, P, K, E]
        values = functional.gelu(self.value_hidden(film), approximate="tanh")  # [B, P, K, E]
        kernel_OHE, bias_O = self.folded_output()
        per_head = torch.einsum("bpke,ohe->bpkho", values, kernel_OHE)
        return (weights[..., None] * per_head).sum(dim=(2, 3)) + bias_O

    def folded_query(self, a: Tensor) -> Tensor:
        """Return [G, P, K, H, C + 1]: <query, key(c)> is affine in c, so query and key are one linear map.

        This is the attention of the paper with fewer products: the key width A is summed over once, in the weights.
        """
        heads, width = self.shape.heads, self.shape.key_width
        key_HAC = torch.cat([self.key.weight, self.key.bias[:, None]], dim=1).unflatten(0, (heads, width))
        kernel_HCE = key_HAC.transpose(1, 2) @ self.query.weight.unflatten(0, (heads, width))
        bias_HC = (key_HAC * self.query.bias.view(heads, width, 1)).sum(dim=1)
        embedded = self.query_embedding(a)  # [G, P, K, E]
        return functional.linear(embedded, kernel_HCE.flatten(0, 1), bias_HC.flatten()).unflatten(-1, (heads, -1))

    def folded_output(self) -> tuple[Tensor, Tensor]:
        """Return ``head`` after ``value_out`` as one kernel per head [O, H, E] and one bias [O]."""
        heads, hidden = self.shape.heads, self.shape.hidden
        head_OHE = self.head.weight.unflatten(1, (heads, hidden))
        kernel_OHE = torch.einsum("ohf,hfe->ohe", head_OHE, self.value_out.weight.unflatten(0, (heads, hidden)))
        return kernel_OHE, self.head(self.value_out.bias)

    def _nearest(self, pixels_P2: Tensor, poses_GN: Tensor) -> Tensor | None:
        """Return which latents each pixel sees, [G, P, K]; ties are for ``nearest_latents`` to refuse."""
        if self.shape.neighbours is None:
            return None
        distance = squared_distance(pixels_P2, poses_GN.detach())  # [G, P, N]
        return torch.topk(distance, self.shape.neighbours, dim=-1, largest=False).indices


def rows_near(rows_BNF: Tensor, index_GPK: Tensor | None) -> Tensor:
    """Return the rows of the latents that each pixel sees: [B, P, K, F], or [B, 1, N, F] where it sees all."""
    if index_GPK is None:
        return rows_BNF[:, None]
    images, latents, width = rows_BNF.shape
    first_row = torch.arange(images, device=rows_BNF.device)[:, None, None] * latents
    flat = (index_GPK + first_row).flatten()
    return rows_BNF.reshape(-1, width).index_select(0, flat).view(images, *index_GPK.shape[1:], width)


def _lecun_normal(module: nn.Module) -> None:
    """Give a linear layer a normal kernel of variance 1 / fan-in, cut at two standard deviations, and a zero bias."""
    if isinstance(module, nn.Linear):
        std = math.sqrt(1.0 / module.in_features) / _TRUNCATED_STD
        nn.init.trunc_normal_(module.weight, std=std, a=-2.0 * std, b=2.0 * std)
        nn.init.zeros_(module.bias)
