"""Changes that leave the truth as it is, on batches of arrays, in training only.

Each takes a batch and a seeded generator; the same generator state gives the same batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def augment_echo(clip_B1TSS: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, shift, scale and re-gain whole clips: uint8 in, uint8 out."""
    batch, _, frames, height, width = clip_B1TSS.shape
    images = clip_B1TSS.reshape(batch, frames, height, width).to(torch.float32)  # frames move alike
    moved = _moved(images, generator, turn_degrees=8.0, shift_share=0.06, scale_share=0.08)
    gain = 1.0 + 0.15 * _uniform((batch, 1, 1, 1), generator)
    gamma = 1.0 + 0.15 * _uniform((batch, 1, 1, 1), generator)
    changed = 255.0 * (moved.clamp(0.0, 255.0) / 255.0).pow(gamma) * gain
    return changed.clamp(0.0, 255.0).round().to(torch.uint8).reshape(clip_B1TSS.shape)


def augment_view(frames_B1SS: Tensor, generator: torch.Generator) -> Tensor:
    """Turn a little, shift, scale, blur and re-gain single frames: uint8 in, uint8 out; far turns are a view of their own."""
    images = frames_B1SS.to(torch.float32)
    moved = _moved(images, generator, turn_degrees=12.0, shift_share=0.10, scale_share=0.15)
    soft = functional.avg_pool2d(moved, 3, stride=1, padding=1)
    share = torch.rand((len(images), 1, 1, 1), generator=generator)
    mixed = share * soft + (1.0 - share) * moved
    gain = 1.0 + 0.35 * _uniform((len(images), 1, 1, 1), generator)
    gamma = 1.0 + 0.35 * _uniform((len(images), 1, 1, 1), generator)
    changed = 255.0 * (mixed.clamp(0.0, 255.0) / 255.0).pow(gamma) * gain
    return changed.clamp(0.0, 255.0).round().to(torch.uint8)


def augment_ecg(ecg_BLN: Tensor, generator: torch.Generator) -> Tensor:
    """Shift in time (round the end), re-gain a little and add noise; leads keep their order and sign."""
    batch, _, samples = ecg_BLN.shape
    offsets = torch.randint(0, samples, (batch,), generator=generator)
    steps = (torch.arange(samples)[None, :] + offsets[:, None]) % samples  # [B, N]
    shifted = torch.gather(ecg_BLN, 2, steps[:, None, :].expand_as(ecg_BLN))
    gain = 1.0 + 0.1 * _uniform((batch, 1, 1), generator)
    return shifted * gain + 0.02 * torch.randn(ecg_BLN.shape, generator=generator)


def _moved(
    images_BCHW: Tensor, generator: torch.Generator, *, turn_degrees: float, shift_share: float, scale_share: float
) -> Tensor:
    batch = len(images_BCHW)
    turn = torch.deg2rad(turn_degrees * _uniform((batch,), generator))
    scale = 1.0 + scale_share * _uniform((batch,), generator)
    shift = 2.0 * shift_share * _uniform((batch, 2), generator)  # the grid runs from -1 to 1
    cosine, sine = scale * torch.cos(turn), scale * torch.sin(turn)
    rows = [torch.stack([cosine, -sine, shift[:, 0]], dim=1), torch.stack([sine, cosine, shift[:, 1]], dim=1)]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images_BCHW.shape), align_corners=False)
    return functional.grid_sample(images_BCHW, grid, align_corners=False)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.rand(shape, generator=generator) - 1.0
