"""UniFormer for video: depthwise convolutions where frames are large, attention over space and time where they are small.

Paper: K. Li et al., UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning, ICLR 2022,
arXiv 2201.04676. Original code: Sense-X/UniFormer, Apache-2.0; none of it is here, but tensors have its names, so that
its Kinetics-400 weights load (``training.coreecho.pretrained``). Licence of this project.

The joint form with the small widths, as in F. A. Maani et al., CoReEcho, MICCAI 2024, arXiv 2403.10164, and R. Muhtaseb,
M. Yaqub, EchoCoTr, MICCAI 2022, arXiv 2209.04242. There is no drop-path: both train without. The last patch embedding cuts
7 rows into 3 and drops the seventh; it has no padding in the published weights either.

Legend: B clips, C channels, T frames, H rows, W columns, N = T * H * W tokens, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.encoded import MEAN_EF_PERCENT, Encoded, PublishedNames, percent_head, pooled

_MLP_RATIO = 4
_TOKEN_NORM_EPS = 1e-6
"""Of the LayerNorms around attention; those of the patch embeddings have PyTorch's 1e-5."""


@dataclass(frozen=True, kw_only=True)
class UniFormerShape:
    """Sizes of a UniFormer and of the clip it is made for.

    Attributes:
        frames: of a clip.
        size_px: side of a frame.
        widths: channels of the four stages; the last is D.
        depths: blocks of the four stages.
        head_width: channels of one attention head; divides the last two widths.
        dropout: share of what is dropped after the first embedding, in each MLP and after each attention.
        channels: of the clip.

    Raises:
        ValueError: the heads do not divide the widths, or the clip is too small for four stages.
    """

    frames: int
    size_px: int
    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    head_width: int
    dropout: float
    channels: int = 3

    def __post_init__(self) -> None:
        if any(width % self.head_width for width in self.widths[2:]):
            msg = f"heads of {self.head_width} channels do not divide the last two widths of {self.widths}"
            raise ValueError(msg)
        if self.frames < 1 or self.size_px < 32:
            msg = f"a clip of {self.frames} frames of {self.size_px} px; expected a frame or more, and 32 px or more"
            raise ValueError(msg)

    @classmethod
    def published(cls) -> Self:
        """Return UniFormer-S with the clips of CoReEcho: 21,195,713 parameters with a head of one output."""
        return cls(
            frames=36,
            size_px=112,
            widths=(64, 128, 320, 512),
            depths=(3, 4, 8, 3),
            head_width=64,
            dropout=0.1,
        )

    @classmethod
    def small(cls) -> Self:
        """Return a network that two CPU cores train: 548,513 parameters, 23 ms a clip forward and back on one core."""
        return cls(
            frames=16,
            size_px=64,
            widths=(24, 48, 96, 128),
            depths=(1, 1, 2, 1),
            head_width=32,
            dropout=0.1,
        )

    def map_sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Return frames, rows and columns of the map after each of the four stages."""
        frames, side = (self.frames + 1) // 2, self.size_px // 4
        return tuple((frames, side >> stage, side >> stage) for stage in range(4))


class PatchEmbed(nn.Module):
    """Strided convolution, then LayerNorm over channels."""

    def __init__(self, convolution: nn.Module, width: int) -> None:
        super().__init__()
        self.proj = convolution
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Return [B, width, T', H', W']."""
        x_BTHWC = self.proj(x_BCTHW).permute(0, 2, 3, 4, 1)
        return self.norm(x_BTHWC).permute(0, 4, 1, 2, 3)


class PointwiseMlp(nn.Module):
    """Two 1 x 1 x 1 convolutions with GELU between them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(width, _MLP_RATIO * width, 1)
        self.fc2 = nn.Conv3d(_MLP_RATIO * width, width, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Return the same shape."""
        return self.drop(self.fc2(self.drop(functional.gelu(self.fc1(x_BCTHW)))))


class TokenMlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = _linear(width, _MLP_RATIO * width)
        self.fc2 = _linear(_MLP_RATIO * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Return the same shape."""
        return self.drop(self.fc2(self.drop(functional.gelu(self.fc1(tokens_BNC)))))


class Attention(nn.Module):
    """Every token looks at every token of its clip."""

    def __init__(self, width: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = width // head_width
        self.qkv = _linear(width, 3 * width)
        self.proj = _linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Return the same shape."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, head width]
            for part in self.qkv(tokens_BNC).chunk(3, dim=2)
        )
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.drop(self.proj(seen.transpose(1, 2).flatten(2)))


class LocalBlock(nn.Module):
    """Position, then a 5 x 5 x 5 neighbourhood, then an MLP; each adds to its input."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.pos_embed = _depthwise(width, 3)
        self.norm1 = nn.BatchNorm3d(width)
        self.conv1 = nn.Conv3d(width, width, 1)
        self.attn = _depthwise(width, 5)
        self.conv2 = nn.Conv3d(width, width, 1)
        self.norm2 = nn.BatchNorm3d(width)
        self.mlp = PointwiseMlp(width, dropout)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Return the same shape."""
        x = x_BCTHW + self.pos_embed(x_BCTHW)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class GlobalBlock(nn.Module):
    """Position, then attention over space and time, then an MLP; each adds to its input."""

    def __init__(self, width: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.pos_embed = _depthwise(width, 3)
        self.norm1 = nn.LayerNorm(width, eps=_TOKEN_NORM_EPS)
        self.attn = Attention(width, head_width, dropout)
        self.norm2 = nn.LayerNorm(width, eps=_TOKEN_NORM_EPS)
        self.mlp = TokenMlp(width, dropout)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Return the same shape."""
        x = x_BCTHW + self.pos_embed(x_BCTHW)
        tokens = x.permute(0, 2, 3, 4, 1).flatten(1, 3)  # [B, N, C]
        tokens = tokens + self.attn(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.unflatten(1, x.shape[2:]).permute(0, 4, 1, 2, 3)


class UniFormer(nn.Module):
    """Clip float32 [B, C, T, S, S], normalised, to ``Encoded``.

    Args:
        shape: sizes.
        outputs: of the head: 1 for percent, 400 for the classes of Kinetics-400.
        start_percent: where a head of one output starts.
    """

    published_names: ClassVar[PublishedNames] = PublishedNames(body="", file_head="head")

    def __init__(self, shape: UniFormerShape, *, outputs: int = 1, start_percent: float = MEAN_EF_PERCENT) -> None:
        super().__init__()
        self.shape = shape
        first, second, third, last = shape.widths
        self.patch_embed1 = PatchEmbed(
            nn.Conv3d(shape.channels, first, (3, 4, 4), stride=(2, 4, 4), padding=(1, 0, 0)), first
        )
        self.patch_embed2 = PatchEmbed(_halved(first, second), second)
        self.patch_embed3 = PatchEmbed(_halved(second, third), third)
        self.patch_embed4 = PatchEmbed(_halved(third, last), last)
        self.pos_drop = nn.Dropout(shape.dropout)
        self.blocks1, self.blocks2 = (_local(shape, stage) for stage in (0, 1))
        self.blocks3, self.blocks4 = (_global(shape, stage) for stage in (2, 3))
        self.norm = nn.BatchNorm3d(last)
        self.head = percent_head(last, start_percent) if outputs == 1 else _linear(last, outputs)

    def features(self, clip_BCTHW: Tensor) -> dict[str, Tensor]:
        """Return the maps to explain an answer with, each [B, ., T', H', W'].

        ``blocks3`` is the output of the third stage, ``norm`` the last map before the pool. Gradients flow from the
        second to the first.
        """
        self._require(clip_BCTHW)
        # Depthwise convolutions on a CPU take a third of the time with channels last.
        x = clip_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        x = self.blocks1(self.pos_drop(self.patch_embed1(x)))  # [B, C1, T/2, S/4, S/4]
        x = self.blocks2(self.patch_embed2(x))  # [B, C2, T/2, S/8, S/8]
        third = self.blocks3(self.patch_embed3(x))  # [B, C3, T/2, S/16, S/16]
        x = self.blocks4(self.patch_embed4(third))  # [B, D, T/2, S/32, S/32]
        return {"blocks3": third, "norm": self.norm(x)}

    def forward(self, clip_BCTHW: Tensor) -> Encoded:
        """Return head [B, outputs] and embedding [B, D]."""
        embedding = pooled(self.features(clip_BCTHW)["norm"])
        return Encoded(head=self.head(embedding), embedding=embedding)

    def _require(self, clip: Tensor) -> None:
        shape = self.shape
        expected = (shape.channels, shape.frames, shape.size_px, shape.size_px)
        if tuple(clip.shape[1:]) != expected:
            msg = f"clips are {list(clip.shape)}; expected [B, {', '.join(map(str, expected))}]"
            raise ValueError(msg)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


def _depthwise(width: int, kernel: int) -> nn.Conv3d:
    return nn.Conv3d(width, width, kernel, padding=kernel // 2, groups=width)


def _halved(inputs: int, outputs: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, (1, 2, 2), stride=(1, 2, 2))


def _local(shape: UniFormerShape, stage: int) -> nn.Sequential:
    return _stack([LocalBlock(shape.widths[stage], shape.dropout) for _ in range(shape.depths[stage])])


def _global(shape: UniFormerShape, stage: int) -> nn.Sequential:
    width, head_width = shape.widths[stage], shape.head_width
    return _stack([GlobalBlock(width, head_width, shape.dropout) for _ in range(shape.depths[stage])])


def _stack(blocks: Sequence[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*blocks)
