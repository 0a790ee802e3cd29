"""Towers that turn cardiac MR into an embedding: one slice, one slice over time, or a volume of slices.

Papers: K. He et al., Deep Residual Learning, CVPR 2016, arXiv 1512.03385 (slice); S. Hochreiter, J. Schmidhuber, Long
Short-Term Memory, Neural Computation 9, 1997 (slice over time); C. Feichtenhofer et al., SlowFast Networks, ICCV 2019,
arXiv 1812.03982, table 1, slow pathway (volume: slices take the place of frames).
Code: ``monai.networks.nets.ResNet`` of MONAI, Apache-2.0, for the images; the slow pathway is written from the table.
Weights: none, trained from the start (``training.ecg_cmr.tower_training``).

Letters: B subjects, T phases, D slices, S pixels, C channels, E width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from monai.networks.nets import ResNet, resnet50
from torch import Tensor, nn

TowerKind = Literal["slice", "slice_time", "volume"]
TowerSize = Literal["small", "published"]

SLICES = 12
"""Slices D of a volume where nothing else is said."""

_PUBLISHED_WIDTH = 768
_SMALL_WIDTHS = (16, 32, 64, 128)


class SliceTower(nn.Module):
    """One image float32 [B, 1, S, S] to [B, E]: a residual network and the mean over its last map.

    Args:
        body: [N, 1, S, S] to [N, E].
        width: E.
    """

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.width = width

    def forward(self, image_B1SS: Tensor) -> Tensor:
        """Return the embedding, [B, E].

        Raises:
            ValueError: another shape.
        """
        _require_shape(image_B1SS, "slice", ("B", "1", "S", "S"))
        embedding: Tensor = self.body(image_B1SS)
        return embedding


class SliceTimeTower(nn.Module):
    """One slice over the beat, float32 [B, 1, T, S, S], to [B, E]: a network a frame, then an LSTM's last state; any T.

    Args:
        body: [N, 1, S, S] to [N, F].
        features: F.
        width: E.
    """

    def __init__(self, body: nn.Module, features: int, width: int) -> None:
        super().__init__()
        self.body = body
        self.reduce = nn.Linear(features, width)
        self.over_time = nn.LSTM(width, width, batch_first=True)
        self.width = width

    def forward(self, cine_B1TSS: Tensor) -> Tensor:
        """Return the embedding, [B, E].

        Raises:
            ValueError: another shape.
        """
        _require_shape(cine_B1TSS, "slice_time", ("B", "1", "T", "S", "S"))
        frames = cine_B1TSS.transpose(1, 2).flatten(0, 1)  # [B T, 1, S, S]
        each = self.reduce(self.body(frames)).unflatten(0, (cine_B1TSS.shape[0], -1))  # [B, T, E]
        _, (last, _) = self.over_time(each)  # [1, B, E]
        return last[0]  # [B, E]


class VolumeTower(nn.Module):
    """A volume float32 [B, 1, D, S, S] and the mask of its slices [B, D] to [B, E].

    What stands in a slice outside the mask changes nothing: it is set to 0 before the first convolution and again before
    the first that looks at neighbouring slices, and has no part in the mix.

    Args:
        stem: [B, 1, D, S, S] to [B, C, D, S / 4, S / 4].
        stages: four; the last two look at neighbouring slices.
        features: channels of the last stage.
        slices: D.
        width: E.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], features: int, slices: int, width: int) -> None:
        super().__init__()
        self.stem = stem
        self.within_slices = nn.Sequential(*stages[:2])
        self.across_slices = nn.Sequential(*stages[2:])
        self.mix = nn.Linear(slices, 1)
        self.reduce = nn.Linear(features, width)
        self.width = width
        nn.init.constant_(self.mix.weight, 1.0 / slices)
        nn.init.zeros_(self.mix.bias)

    def forward(self, volume_B1DSS: Tensor, mask_BD: Tensor | None = None) -> Tensor:
        """Return the embedding, [B, E]; without a mask every slice counts.

        Raises:
            ValueError: another shape, or not D slices.
        """
        _require_shape(volume_B1DSS, "volume", ("B", "1", "D", "S", "S"))
        mask_B1D11 = self._mask(volume_B1DSS, mask_BD)
        x = self.within_slices(self.stem(volume_B1DSS * mask_B1D11))  # [B, C, D, S/8, S/8]
        x = self.across_slices(x * mask_B1D11)  # [B, C, D, S/32, S/32]
        each_BCD = (x * mask_B1D11).mean(dim=(3, 4))
        return self.reduce(self.mix(each_BCD)[..., 0])  # [B, E]

    def _mask(self, volume_B1DSS: Tensor, mask_BD: Tensor | None) -> Tensor:
        # Not ``len``, which fixes the batch of an exported graph.
        subjects, slices = volume_B1DSS.shape[0], self.mix.in_features
        if volume_B1DSS.shape[2] != slices:
            raise ValueError(
                f"the volume has {volume_B1DSS.shape[2]} slices; this tower mixes {slices}: prepare as many"
            )
        if mask_BD is None:
            return volume_B1DSS.new_ones((1, 1, slices, 1, 1))
        if mask_BD.shape != (subjects, slices):
            raise ValueError(f"the slice mask is {tuple(mask_BD.shape)}; expected {(subjects, slices)}")
        return mask_BD.to(volume_B1DSS.dtype)[:, None, :, None, None]


class SlowBottleneck(nn.Module):
    """Three convolutions around which the input passes: across slices, within a slice (with the stride), and 1 x 1 x 1.

    Args:
        inputs, inner, outputs: channels.
        depth: kernel of the first convolution along the slices, 1 or 3.
        stride: within a slice.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, *, depth: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *_convolution(inputs, inner, (depth, 1, 1)),
            nn.ReLU(inplace=True),
            *_convolution(inner, inner, (1, 3, 3), stride),
            nn.ReLU(inplace=True),
            *_convolution(inner, outputs, (1, 1, 1)),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, (1, 1, 1), stride))

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return [B, outputs, D, H / stride, W / stride]."""
        return torch.relu(self.shortcut(x_BCDHW) + self.path(x_BCDHW))


Trunk: TypeAlias = tuple[nn.Module, list[nn.Module], int]
"""Stem, four stages, channels of the last."""


def slow_trunk(*, widths: Sequence[int], blocks: Sequence[int], expansion: int) -> Trunk:
    """Return the slow pathway: no stride along the slices; kernels along them in the last two stages.

    Args:
        widths: inner channels of the four stages; the stem has those of the first.
        blocks: of each stage.
        expansion: outer over inner channels.
    """
    stem = nn.Sequential(
        nn.Conv3d(1, widths[0], (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(widths[0]),
        nn.ReLU(inplace=True),
        nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
    )
    stages: list[nn.Module] = []
    inputs = widths[0]
    for stage, (inner, count) in enumerate(zip(widths, blocks, strict=True)):
        depth, outputs = (3 if stage >= 2 else 1), expansion * inner
        strides = [2 if stage else 1, *[1] * (count - 1)]
        sizes = [inputs, *[outputs] * (count - 1)]
        row = [SlowBottleneck(n, inner, outputs, depth=depth, stride=s) for n, s in zip(sizes, strides, strict=True)]
        stages.append(nn.Sequential(*row))
        inputs = outputs
    return stem, stages, inputs


def build_tower(kind: TowerKind, size: TowerSize, *, slices: int = SLICES) -> nn.Module:
    """Return an untrained tower; ``.width`` says how wide its embedding is.

    Args:
        kind: ``slice`` [B, 1, S, S], ``slice_time`` [B, 1, T, S, S] or ``volume`` [B, 1, D, S, S] with a mask [B, D].
        size: ``published`` widths (ResNet50 each), or ``small`` for two CPU cores.
        slices: D of a volume; the others do not read it.

    Raises:
        ValueError: no such kind or size.
    """
    if kind not in {"slice", "slice_time", "volume"} or size not in {"small", "published"}:
        raise ValueError(f"no tower of kind {kind!r} and size {size!r}; see TowerKind and TowerSize")
    small = size == "small"
    if kind == "volume":
        if small:
            stem, stages, features = slow_trunk(widths=(16, 16, 32, 64), blocks=(1, 1, 1, 1), expansion=2)
        else:
            stem, stages, features = slow_trunk(widths=(64, 128, 256, 512), blocks=(3, 4, 6, 3), expansion=4)
        return VolumeTower(stem, stages, features, slices, features if small else _PUBLISHED_WIDTH)
    body, features = (_small_body(), _SMALL_WIDTHS[-1]) if small else (_published_body(), 2048)
    if kind == "slice":
        return SliceTower(body, features)
    return SliceTimeTower(body, features, features if small else _PUBLISHED_WIDTH)


def _published_body() -> nn.Module:
    return resnet50(
        pretrained=False,
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_size=7,
        conv1_t_stride=2,
        bias_downsample=False,
        feed_forward=False,
    )


def _small_body() -> nn.Module:
    """One basic block a stage, a quarter of the widths of ResNet18."""
    return ResNet(
        "basic",
        [1, 1, 1, 1],
        list(_SMALL_WIDTHS),
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_size=7,
        conv1_t_stride=2,
        bias_downsample=False,
        feed_forward=False,
    )


def _convolution(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> list[nn.Module]:
    padding = tuple(size // 2 for size in kernel)
    convolution = nn.Conv3d(inputs, outputs, kernel, stride=(1, stride, stride), padding=padding, bias=False)
    return [convolution, nn.BatchNorm3d(outputs)]


def _require_shape(x: Tensor, kind: TowerKind, letters: Sequence[str]) -> None:
    if x.ndim != len(letters) or x.shape[1] != 1 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"a {kind} tower reads [{', '.join(letters)}]; found {tuple(x.shape)}")
