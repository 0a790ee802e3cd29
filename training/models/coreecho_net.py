"""The served network: clip of 8-bit grey values in, ejection fraction and embedding out; and the same network folded.

Normalisation is part of the graph. ``folded`` removes what costs time and changes nothing: the three equal channels of a
grey clip, and every batch norm beside a pointwise layer. Own design after F. A. Maani et al., CoReEcho, MICCAI 2024, arXiv
2403.10164; licence of this project.

Legend: B clips, T frames, S pixels, D width of the embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.ef_regressor import EfRegressor
from training.models.encoded import pooled
from training.models.uniformer import LocalBlock, UniFormer

GREY_MEAN = (0.12741163, 0.1279413, 0.12912785)
GREY_SD = (0.19557191, 0.19562256, 0.1965878)
"""Of the training videos of EchoNet-Dynamic, red, green and blue, as shares of 255."""
_WHITE = 255.0


def normalised(clip: Tensor, mean: Sequence[float] = GREY_MEAN, sd: Sequence[float] = GREY_SD) -> Tensor:
    """Return float32 [B, 3, T, S, S] in standard deviations.

    Args:
        clip: grey values 0 to 255, [B, 1, T, S, S] or, where the channels differ, [B, 3, T, S, S].
        mean: of each channel, as a share of 255.
        sd: likewise.
    """
    grey = clip.to(torch.float32)
    centre = torch.tensor(mean, device=clip.device).reshape(-1, 1, 1, 1)
    spread = torch.tensor(sd, device=clip.device).reshape(-1, 1, 1, 1)
    return (grey - _WHITE * centre) / (_WHITE * spread)


class CoReEchoNet(nn.Module):
    """Clip uint8 [B, 1, T, S, S] to ``ef`` [B, 1] in percent and ``embedding`` [B, D].

    Args:
        encoder: normalised clip to ``Encoded``.
        regressor: embedding to percent.
        mean: of the grey values in training, per channel, as a share of 255.
        sd: likewise.
    """

    def __init__(
        self,
        encoder: nn.Module,
        regressor: nn.Module,
        mean: Sequence[float] = GREY_MEAN,
        sd: Sequence[float] = GREY_SD,
    ) -> None:
        super().__init__()
        self.encoder, self.regressor = encoder, regressor
        self.mean, self.sd = tuple(mean), tuple(sd)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        embedding = self.encoder(normalised(clip, self.mean, self.sd)).embedding  # [B, D]
        return {"ef": self.regressor(embedding), "embedding": embedding}


class GreyStem(nn.Module):
    """The first patch embedding on grey values 0 to 255 of one channel, the normalisation folded in.

    Source: linearity. With weights w, mean m and spread s, w * (g - m) / s = (w / s) * g - w * m / s, summed over the
    channels. The published stem pads with zeros in time AFTER normalisation, so that a tap on padding contributes no
    ``w * m / s``: the constant of the first frame differs from the others' (of the last, too, where T is odd).
    """

    constant: Tensor

    def __init__(self, proj: nn.Conv3d, norm: nn.LayerNorm, frames: int, statistics: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        mean, sd = (_WHITE * values.reshape(1, -1, 1, 1, 1) for values in statistics)  # [1, 3, 1, 1, 1]
        scaled = proj.weight.double() / sd  # [C, 3, 3, 4, 4]
        self.proj = nn.Conv3d(1, proj.out_channels, proj.kernel_size, proj.stride, proj.padding, bias=False)
        self.proj.weight = _fixed(scaled.sum(dim=1, keepdim=True))
        taps = (scaled * mean).sum(dim=(1, 3, 4))[:, None]  # [C, 1, 3]
        seen = functional.conv1d(taps.new_ones(1, 1, frames), taps, stride=proj.stride[0], padding=proj.padding[0])
        self.register_buffer("constant", (proj.bias.double()[:, None] - seen[0]).float()[None, :, :, None, None])
        self.norm = norm

    def forward(self, clip_B1THW: Tensor) -> Tensor:
        """Return [B, C, T / 2, S / 4, S / 4]."""
        x = self.proj(clip_B1THW) + self.constant
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class FoldedCoReEchoNet(nn.Module):
    """``CoReEchoNet`` in evaluation, folded: same input, same outputs.

    The embedding is still the encoder's, after its last norm; the ejection fraction does not go through it.
    """

    def __init__(self, encoder: UniFormer, regressor: EfRegressor, statistics: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        norm = encoder.norm
        self.encoder = _folded_encoder(encoder, statistics)
        scale, shift = _affine(norm)
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())
        inner_scale, inner_shift = _affine(regressor.norm_in)
        first = _after_affine(regressor.hidden, inner_scale * scale, inner_scale * shift + inner_shift)
        self.hidden = _before_affine(first, *_affine(regressor.norm_hidden))
        self.answer = copy.deepcopy(regressor.answer)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        scale: Any = self.scale
        pool = pooled(self.encoder.features(clip.to(torch.float32))["norm"])  # [B, D]
        ef = self.answer(functional.gelu(self.hidden(pool)))  # [B, 1]
        return {"ef": ef, "embedding": pool * scale + self.shift}


@torch.no_grad()
def folded(net: CoReEchoNet) -> FoldedCoReEchoNet:
    """Return the network to export, in evaluation mode; ``net`` stays as it is.

    Raises:
        TypeError: the encoder is not a ``UniFormer``, or the regressor not an ``EfRegressor``.
    """
    encoder, regressor = net.encoder, net.regressor
    if not isinstance(encoder, UniFormer) or not isinstance(regressor, EfRegressor):
        msg = f"found {type(encoder).__name__} and {type(regressor).__name__}; expected UniFormer and EfRegressor"
        raise TypeError(msg)
    statistics = (torch.tensor(net.mean, dtype=torch.float64), torch.tensor(net.sd, dtype=torch.float64))
    return FoldedCoReEchoNet(encoder, regressor, statistics).eval()


def _folded_encoder(encoder: UniFormer, statistics: tuple[Tensor, Tensor]) -> UniFormer:
    """Return a copy that eats grey values of one channel and ends before its last norm."""
    result = copy.deepcopy(encoder)
    stem = result.patch_embed1
    result.patch_embed1 = GreyStem(stem.proj, stem.norm, encoder.shape.frames, statistics)
    result.shape = replace(encoder.shape, channels=1)
    for block in (*result.blocks1, *result.blocks2):
        _fold_block(block)
    result.norm, result.head = nn.Identity(), nn.Identity()
    return result


def _fold_block(block: LocalBlock) -> None:
    """Fold the batch norms of a block into the pointwise convolutions behind them; those pad nothing."""
    block.conv1, block.norm1 = _after_affine(block.conv1, *_affine(block.norm1)), nn.Identity()
    block.mlp.fc1, block.norm2 = _after_affine(block.mlp.fc1, *_affine(block.norm2)), nn.Identity()


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch norm in evaluation, float64 [C] each."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _after_affine(layer: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """Return a pointwise layer, linear or 1 x 1 x 1, that does to x what ``layer`` does to scale * x + shift."""
    result = copy.deepcopy(layer)
    weight = layer.weight.double()
    columns = (1, -1) + (1,) * (weight.ndim - 2)
    result.weight = _fixed(weight * scale.reshape(columns))
    result.bias = _fixed(layer.bias.double() + weight.flatten(1) @ shift)
    return result


def _before_affine(layer: nn.Linear, scale: Tensor, shift: Tensor) -> nn.Linear:
    """Return the linear layer whose answer is scale * layer(x) + shift."""
    result = copy.deepcopy(layer)
    result.weight = _fixed(layer.weight.double() * scale[:, None])
    result.bias = _fixed(layer.bias.double() * scale + shift)
    return result


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.float(), requires_grad=False)
