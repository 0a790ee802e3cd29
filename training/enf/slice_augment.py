"""Strong random changes of short-axis slices and their labels, so that a network trained on phantoms reads real images.

Shape: any turn, scale, mirror, shift and a smooth elastic bend. Appearance: each tissue gets another grey level, the
background other structures, the cavity dark papillary muscles; then gamma, coil shading, blur, noise and cut-out.
Geometry moves image and labels together; appearance leaves the labels as they are. Called by ``segmentation``.

Letters: B slices, W side of the wide crop, S side of the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, one_hot

from training.models.short_axis_unet import Tissue


@dataclass(frozen=True, kw_only=True)
class SliceAugment:
    """Largest changes; every slice draws its own.

    Args:
        scale_min, scale_max: of the heart, along each axis.
        shift_px: either way.
        bend_px: standard deviation of the elastic displacement.
        bend_points: control points of the displacement along a side.
        tissue_spread: standard deviation of the change of a tissue's grey level; the image's is 1.
        texture_max: uneven grey level everywhere; the image's standard deviation is 1.
        papillary_max: how much darker than blood papillary muscles are; likewise.
        gamma_spread: the exponent is exp of up to this, either way.
        shading_spread: standard deviation of the logarithm of the coil shading.
        blur_max_px: standard deviation.
        noise_max: standard deviation; the image's is 1.
        cut_probability: of a slice to lose a rectangle, its labels kept.
    """

    scale_min: float = 0.8
    scale_max: float = 1.25
    shift_px: float = 8.0
    bend_px: float = 2.5
    bend_points: int = 6
    tissue_spread: float = 0.35
    texture_max: float = 0.2
    papillary_max: float = 2.5
    gamma_spread: float = 0.5
    shading_spread: float = 0.25
    blur_max_px: float = 1.2
    noise_max: float = 0.25
    cut_probability: float = 0.3


def augmented(
    slices_BWW: Tensor, labels_BWW: Tensor, config: SliceAugment, size_px: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return images float32 [B, 1, S, S] and labels int64 [B, S, S], changed at random."""
    grid = _geometry(len(slices_BWW), slices_BWW.shape[-1], size_px, config, generator)  # [B, S, S, 2]
    images = grid_sample(slices_BWW[:, None], grid, align_corners=True)  # [B, 1, S, S]
    labels = grid_sample(labels_BWW[:, None].float(), grid, mode="nearest", align_corners=True)[:, 0].long()
    images = _unit(images)
    images = _recoloured(images, labels, config, generator)
    images = _gamma(images, config, generator)
    images = images * torch.exp(config.shading_spread * _smooth_field(images, 3, generator))
    images = _blurred(images, config, generator)
    noise = config.noise_max * _uniform(len(images), generator) * images.std(dim=(1, 2, 3), keepdim=True)
    images = images + noise * torch.randn(images.shape, generator=generator)
    return _cut_out(images, config, generator), labels


def _uniform(count: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """One number per slice, [B, 1, 1, 1]."""
    return low + (high - low) * torch.rand((count, 1, 1, 1), generator=generator)


def _geometry(count: int, wide: int, size: int, config: SliceAugment, generator: torch.Generator) -> Tensor:
    """Where each pixel comes from, [B, S, S, 2], -1 to 1 over the wide crop."""
    offsets = torch.arange(size) - (size - 1) / 2.0
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    place = torch.stack([x, y], dim=-1).expand(count, size, size, 2)  # [B, S, S, 2] pixels
    angle = _uniform(count, generator, 0.0, 2.0 * math.pi)[..., 0]
    log_scale = torch.rand((count, 1, 1, 2), generator=generator)
    scale = config.scale_min * (config.scale_max / config.scale_min) ** log_scale
    mirror = torch.where(_uniform(count, generator)[..., 0] < 0.5, 1.0, -1.0)
    shift = config.shift_px * (2.0 * torch.rand((count, 1, 1, 2), generator=generator) - 1.0)
    x, y = ((place - shift) / scale).unbind(-1)
    turned = torch.stack([mirror * (angle.cos() * x - angle.sin() * y), angle.sin() * x + angle.cos() * y], dim=-1)
    knots = torch.randn((count, 2, config.bend_points, config.bend_points), generator=generator)
    bend = interpolate(knots, size=(size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return (turned + config.bend_px * bend) * 2.0 / (wide - 1)


def _unit(images: Tensor) -> Tensor:
    """Each image to 0..1."""
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)


def _recoloured(images: Tensor, labels: Tensor, config: SliceAugment, generator: torch.Generator) -> Tensor:
    """Another grey level per tissue, other background, papillary muscles; borders stay as soft as they were."""
    masks = one_hot(labels, len(Tissue)).permute(0, 3, 1, 2).float()  # [B, 4, S, S]
    soft = torch.nn.functional.avg_pool2d(masks, 3, stride=1, padding=1)
    spread = images.std(dim=(1, 2, 3), keepdim=True)
    change = torch.randn((len(images), len(Tissue), 1, 1), generator=generator)
    change[:, Tissue.RIGHT_CAVITY] = change[:, Tissue.LEFT_CAVITY] + 0.3 * change[:, Tissue.RIGHT_CAVITY]  # both blood
    images = images + config.tissue_spread * spread * (change * soft).sum(dim=1, keepdim=True)
    background = soft[:, :1] * _uniform(len(images), generator, 0.0, 1.5) * spread
    images = images + background * _smooth_field(images, 9, generator)
    texture = _uniform(len(images), generator, 0.0, config.texture_max) * spread
    images = images + texture * _smooth_field(images, 16, generator)
    return images - _papillary(images, soft, config, generator) * spread


def _papillary(images: Tensor, soft: Tensor, config: SliceAugment, generator: torch.Generator) -> Tensor:
    """Dark islands and bays inside the left cavity, [B, 1, S, S], in units of the image's spread."""
    islands = (_smooth_field(images, 12, generator) - _uniform(len(images), generator, 0.3, 1.3)).clamp(0.0, 1.0)
    depth = _uniform(len(images), generator, 0.0, config.papillary_max)
    return depth * islands * soft[:, Tissue.LEFT_CAVITY : Tissue.LEFT_CAVITY + 1]


def _gamma(images: Tensor, config: SliceAugment, generator: torch.Generator) -> Tensor:
    exponent = torch.exp(_uniform(len(images), generator, -config.gamma_spread, config.gamma_spread))
    return _unit(images) ** exponent


def _smooth_field(images: Tensor, points: int, generator: torch.Generator) -> Tensor:
    """Smooth noise of about unit spread, [B, 1, S, S], from ``points`` values along a side."""
    knots = torch.randn((len(images), 1, points, points), generator=generator)
    return interpolate(knots, size=images.shape[2:], mode="bicubic", align_corners=True)


def _blurred(images: Tensor, config: SliceAugment, generator: torch.Generator) -> Tensor:
    """Gaussian blur of each image by its own width."""
    reach = math.ceil(3 * config.blur_max_px)
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype)
    sigma = _uniform(len(images), generator, 0.05, config.blur_max_px)[:, 0, 0]  # [B, 1]
    kernel = torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=1)  # [B, K]
    x = images.transpose(0, 1)  # [1, B, S, S]: one group per slice
    x = torch.conv2d(x, kernel[:, None, :, None], padding=(reach, 0), groups=len(images))
    x = torch.conv2d(x, kernel[:, None, None, :], padding=(0, reach), groups=len(images))
    return x.transpose(0, 1)


def _cut_out(images: Tensor, config: SliceAugment, generator: torch.Generator) -> Tensor:
    """A rectangle of one grey level over some images."""
    count, size = len(images), images.shape[-1]
    centre = size * torch.rand((count, 2), generator=generator)
    half = size * (0.04 + 0.10 * torch.rand((count, 2), generator=generator))
    along = torch.arange(size)
    rows, columns = (((along - centre[:, axis : axis + 1]).abs() < half[:, axis : axis + 1]) for axis in (0, 1))
    chosen = _uniform(count, generator) < config.cut_probability
    inside = (rows[:, None, :, None] & columns[:, None, None, :]) & chosen
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(inside, low + (high - low) * _uniform(count, generator), images)
