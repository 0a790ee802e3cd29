"""A Vision Transformer on a twelve-lead ECG, and the masked autoencoder that it learns by without labels.

Papers: A. Dosovitskiy et al., ViT, ICLR 2021, arXiv 2010.11929; K. He et al., Masked Autoencoders, CVPR 2022, arXiv
2111.06377; for ECG with patches of one lead Ö. Turgut et al., MedIA 2025, arXiv 2308.05764. Own code, licence of this project.

There is no class token and no classifier: the embedding is the mean of the tokens, then LayerNorm. Where a token lies is
added as two parts, one learned for its leads and fixed waves for its time, which together are smaller than one table.

Letters: B records, L leads, N samples, R rows of patches (leads), Q patches in time, T = R * Q tokens, K of them visible,
P values of a patch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

_MLP_RATIO = 4
_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class EcgVitShape:
    """Sizes of the encoder, of its decoder, and of the record they are made for.

    Attributes:
        width: D of the encoder and of the embedding.
        depth: blocks of the encoder.
        heads: of each block; divide the width.
        decoder_width, decoder_depth, decoder_heads: likewise, of the decoder.
        patch_leads: leads that a patch covers; divides ``leads``.
        patch_samples: samples that a patch covers; divides ``samples``.
        leads, samples: of a record.

    Raises:
        ValueError: heads do not divide their width into even parts, or patches do not tile the record.
    """

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    patch_leads: int = 1
    patch_samples: int = 100
    leads: int = 12
    samples: int = 5000

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads) or self.decoder_width % (2 * self.decoder_heads):
            msg = (
                f"{self.heads} and {self.decoder_heads} heads at widths of {self.width} and {self.decoder_width}; "
                "expected heads that divide their width into even parts"
            )
            raise ValueError(msg)
        if self.leads % self.patch_leads or self.samples % self.patch_samples:
            msg = f"patches of {self.patch_leads} x {self.patch_samples} do not tile a record of {self.leads} x {self.samples}"
            raise ValueError(msg)

    @classmethod
    def medium(cls) -> Self:
        """Return M, 576 x 12, with 48 million parameters."""
        return cls(width=576, depth=12, heads=8, decoder_width=256, decoder_depth=2, decoder_heads=8)

    @classmethod
    def tiny(cls) -> Self:
        """Return T, 384 x 3, with 5 million parameters."""
        return cls(width=384, depth=3, heads=6, decoder_width=256, decoder_depth=2, decoder_heads=8)

    @classmethod
    def small(cls) -> Self:
        """Return what two CPU cores train: a token is a tenth of a second of all leads, so there are a hundred."""
        return cls(
            width=128,
            depth=3,
            heads=4,
            decoder_width=64,
            decoder_depth=1,
            decoder_heads=4,
            patch_leads=12,
            patch_samples=50,
        )

    @property
    def rows(self) -> int:
        """R."""
        return self.leads // self.patch_leads

    @property
    def columns(self) -> int:
        """Q."""
        return self.samples // self.patch_samples

    @property
    def tokens(self) -> int:
        """T."""
        return self.rows * self.columns

    @property
    def patch_values(self) -> int:
        """P."""
        return self.patch_leads * self.patch_samples


class _Attention(nn.Module):
    """Every token looks at every token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = _linear(width, 3 * width)
        self.out = _linear(width, width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, D / heads]
            for part in self.query_key_value(tokens_BTD).chunk(3, dim=2)
        )
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.out(seen.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Attention, then an MLP; each normalises its input and adds to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS), nn.LayerNorm(width, eps=_NORM_EPS)
        self.attention = _Attention(width, heads)
        self.widen, self.narrow = _linear(width, _MLP_RATIO * width), _linear(_MLP_RATIO * width, width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        tokens = tokens_BTD + self.attention(self.norm1(tokens_BTD))
        return tokens + self.narrow(functional.gelu(self.widen(self.norm2(tokens))))


class _Places(nn.Module):
    """Adds to every token where it lies."""

    waves: Tensor

    def __init__(self, shape: EcgVitShape, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape.rows, 1, width), std=0.02))
        self.register_buffer("waves", _waves(shape.columns, width), persistent=False)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        grid = tokens_BTD.unflatten(1, (len(self.rows), -1))  # [B, R, Q, D]
        return (grid + self.rows + self.waves).flatten(1, 2)


class EcgVit(nn.Module):
    """ECG float32 [B, 12, 5000], as its preprocessing made it, to the embedding [B, D]."""

    def __init__(self, shape: EcgVitShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = _linear(shape.patch_values, shape.width)
        self.places = _Places(shape, shape.width)
        self.blocks = nn.Sequential(*(_Block(shape.width, shape.heads) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width, eps=_NORM_EPS)

    @property
    def width(self) -> int:
        """D."""
        return self.shape.width

    def tokens(self, ecg_BLN: Tensor) -> Tensor:
        """Return the patches embedded and placed, before the first block, [B, T, D]."""
        return self.places(self.embed(patches(ecg_BLN, self.shape)))

    def forward(self, ecg_BLN: Tensor) -> Tensor:
        """Return the embedding: the mean over tokens, then LayerNorm."""
        embedding: Tensor = self.norm(self.blocks(self.tokens(ecg_BLN)).mean(dim=1))
        return embedding


class EcgVitNet(nn.Module):
    """The served network: ECG [B, 12, 5000] to ``embedding`` [B, D] and what each probe reads from it, by its name.

    Args:
        encoder: gives the embedding.
        probes: each takes an embedding [B, D].

    Raises:
        ValueError: a probe is named ``embedding``.
    """

    def __init__(self, encoder: nn.Module, probes: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if "embedding" in probes:
            msg = "a probe is named 'embedding'; expected another name, since this one is the encoder's"
            raise ValueError(msg)
        self.encoder, self.probes = encoder, nn.ModuleDict(probes)

    def forward(self, ecg: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        embedding = self.encoder(ecg)
        return {name: probe(embedding) for name, probe in self.probes.items()} | {"embedding": embedding}


class Rebuilt(NamedTuple):
    """What the autoencoder makes of a record.

    Attributes:
        ecg: [B, L, N], of all patches, the visible ones too.
        hidden: bool [B, L, N], what the encoder did not see.
    """

    ecg: Tensor
    hidden: Tensor


class EcgMae(nn.Module):
    """The encoder on the visible patches, and a decoder that rebuilds all of them.

    Args:
        encoder: is trained through it.
        mask_share: of the patches, hidden; above 0 and below 1.

    Raises:
        ValueError: no patch would be visible, or none hidden.
    """

    def __init__(self, encoder: EcgVit, *, mask_share: float) -> None:
        super().__init__()
        shape = encoder.shape
        self.visible = round((1.0 - mask_share) * shape.tokens)
        if not 0 < self.visible < shape.tokens:
            msg = f"mask share {mask_share} leaves {self.visible} of {shape.tokens} patches; expected some and not all"
            raise ValueError(msg)
        self.encoder = encoder
        self.narrow = _linear(shape.width, shape.decoder_width)
        self.hidden_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape.decoder_width), std=0.02))
        self.places = _Places(shape, shape.decoder_width)
        self.blocks = nn.Sequential(
            *(_Block(shape.decoder_width, shape.decoder_heads) for _ in range(shape.decoder_depth))
        )
        self.norm = nn.LayerNorm(shape.decoder_width, eps=_NORM_EPS)
        self.values = _linear(shape.decoder_width, shape.patch_values)

    def forward(self, ecg_BLN: Tensor, noise_BT: Tensor) -> Rebuilt:
        """Return the rebuilt record.

        Args:
            ecg_BLN: the record.
            noise_BT: a number for each patch; the smallest of a record stay visible.
        """
        shape = self.encoder.shape
        order = noise_BT.argsort(dim=1)  # [B, T], the visible first
        kept = order[:, : self.visible, None].expand(-1, -1, shape.width)  # [B, K, D]
        seen = self.encoder.blocks(self.encoder.tokens(ecg_BLN).gather(1, kept))
        narrow = self.narrow(self.encoder.norm(seen))  # [B, K, decoder width]
        unseen = self.hidden_token.to(narrow.dtype).expand(len(narrow), shape.tokens - self.visible, -1)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, shape.decoder_width)
        placed = self.places(torch.cat([narrow, unseen], dim=1).gather(1, back))  # [B, T, decoder width]
        values_BTP = self.values(self.norm(self.blocks(placed)))
        hidden_BT = order.argsort(dim=1) >= self.visible
        return Rebuilt(
            ecg=record(values_BTP, shape),
            hidden=record(hidden_BT[..., None].expand(-1, -1, shape.patch_values), shape),
        )


class MaeTerms(NamedTuple):
    """Of a batch; each is a mean over records, so that batches of any size compare.

    Attributes:
        total: what is made small.
        squared: mean squared error of all patches.
        squared_hidden: of the hidden ones alone, for the log.
        correlation: mean over leads of Pearson's r between a lead and its rebuilt form.
    """

    total: Tensor
    squared: Tensor
    squared_hidden: Tensor
    correlation: Tensor


def mae_loss(rebuilt: Rebuilt, ecg_BLN: Tensor, *, correlation_weight: float) -> MaeTerms:
    """Return (1 - w) * squared error of all patches + w * (1 - mean correlation of the leads), in single precision.

    A lead that is constant, such as one that is off, has no correlation and is left out of its mean.

    Args:
        rebuilt: of the record.
        ecg_BLN: the record.
        correlation_weight: w; 0.1 as published.

    Source: the masked autoencoder of the ECG in arXiv 2602.12883, 0.9 * MSE + 0.1 * (1 - r).
    """
    truth, found = ecg_BLN.float(), rebuilt.ecg.float()
    error = (found - truth).square()
    squared = error.mean()
    correlation = _correlation(found, truth)
    total = (1.0 - correlation_weight) * squared + correlation_weight * (1.0 - correlation)
    return MaeTerms(total, squared, error[rebuilt.hidden].mean(), correlation)


def _correlation(found_BLN: Tensor, truth_BLN: Tensor) -> Tensor:
    a, b = (each - each.mean(dim=2, keepdim=True) for each in (found_BLN, truth_BLN))
    varies = b.square().mean(dim=2) > 1e-8
    r_BL = functional.cosine_similarity(a, b, dim=2, eps=1e-8)
    return torch.where(varies, r_BL, 0.0).sum() / varies.sum().clamp(min=1)


def patches(ecg_BLN: Tensor, shape: EcgVitShape) -> Tensor:
    """Return the patches of a record, row by row, [B, T, P].

    Raises:
        ValueError: the record has another size.
    """
    if tuple(ecg_BLN.shape[1:]) != (shape.leads, shape.samples):
        msg = f"records are {list(ecg_BLN.shape)}; expected [B, {shape.leads}, {shape.samples}]"
        raise ValueError(msg)
    grid = ecg_BLN.reshape(-1, shape.rows, shape.patch_leads, shape.columns, shape.patch_samples)
    return grid.transpose(2, 3).reshape(-1, shape.tokens, shape.patch_values)


def record(patches_BTP: Tensor, shape: EcgVitShape) -> Tensor:
    """Return the record of its patches, [B, L, N]."""
    grid = patches_BTP.reshape(-1, shape.rows, shape.columns, shape.patch_leads, shape.patch_samples)
    return grid.transpose(2, 3).reshape(-1, shape.leads, shape.samples)


def _waves(count: int, width: int) -> Tensor:
    """Return sines and cosines of the place in time, [Q, D].

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.5.
    """
    rates = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
