"""The latent point cloud of a field: where it starts, how it turns, and which latents are near a pixel.

The start is closed under quarter turns, with orientations: only then does a turned image give a turned cloud.

What np.rot90 does to coordinates. Pixels are (x, y) = (column, row) with y DOWN, both in linspace(-1, 1, size).
``np.rot90(image)[i, j] = image[j, size - 1 - i]``, so the turned image at (x, y) shows the old one at (-y, x). The motion g
with (L_g image)(p) = image(g^-1 p) is therefore g(x, y) = (y, -x), the matrix [[0, 1], [-1, 0]]: counter-clockwise on
the screen, and R(-90 degrees) in these coordinates, because y points down. Every quarter turn takes pi / 2 FROM theta.

Legend: N latents, P pixels, B images, k neighbours, d_c width of a context.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

Orientation = Literal["radial", "four"]
_TIE_ULPS = 16.0


@dataclass(frozen=True)
class LatentCloud:
    """Poses, contexts and widths of the latents of one image, or of a batch with a leading axis B.

    Attributes:
        poses: [N, 3] or [B, N, 3]: t_x, t_y in half fields of view, theta in radian.
        contexts: [N, d_c] or [B, N, d_c].
        window: [N] or [B, N]: width of the Gaussian of each latent, half fields of view.
    """

    poses: Tensor
    contexts: Tensor
    window: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a cloud whose three tensors went through ``change``."""
        return type(self)(poses=change(self.poses), contexts=change(self.contexts), window=change(self.window))

    def to(self, target: torch.dtype | torch.device) -> Self:
        """Return the cloud in another dtype or on another device."""
        return self.map(lambda tensor: tensor.to(target))

    def batch(self, images: int) -> Self:
        """Return ``images`` equal clouds: views with a leading axis B."""
        return self.map(lambda tensor: tensor.expand(images, *tensor.shape))

    def detach(self) -> Self:
        """Return the cloud cut from the graph that made it."""
        return self.map(Tensor.detach)


def pixel_grid(size: int) -> Tensor:
    """Return the pixel centres of a square image, row by row: float64 [size * size, 2], (column, row) in -1 to 1."""
    axis = torch.linspace(-1.0, 1.0, size, dtype=torch.float64)
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([column, row], dim=-1).reshape(-1, 2)


def rotate_quarter(points_xy: Tensor, turns: int) -> Tensor:
    """Return points turned as np.rot90 turns an image: (x, y) to (y, -x) per turn, exact in floating point.

    Args:
        points_xy: [..., 2].
        turns: quarter turns counter-clockwise on the screen; any integer.
    """
    for _ in range(turns % 4):
        points_xy = torch.stack([points_xy[..., 1], -points_xy[..., 0]], dim=-1)
    return points_xy


def turn_quarter(poses: Tensor, turns: int) -> Tensor:
    """Return poses [..., 3] turned as np.rot90 turns an image; theta loses pi / 2 per turn and lies in [-pi, pi)."""
    theta_rad = wrap_rad(poses[..., 2:] - (turns % 4) * math.pi / 2)
    return torch.cat([rotate_quarter(poses[..., :2], turns), theta_rad], dim=-1)


def wrap_rad(angle_rad: Tensor) -> Tensor:
    """Return the same direction in [-pi, pi)."""
    return torch.remainder(angle_rad + math.pi, 2 * math.pi) - math.pi


def initial_cloud(
    latents: int, context_width: int, tilt_rad: float = 0.2, orientation: Orientation = "radial"
) -> LatentCloud:
    """Return the start of every fit: a tilted square grid that quarter turns map onto itself, orientations included.

    The latents lie in orbits: seen as [4, N / 4], latent (a, i) is latent (0, i) after a quarter turns, exactly.

    Args:
        latents: N; the square of an even number ("radial") or four times a square ("four").
        context_width: d_c; every context number starts at 1 / d_c.
        tilt_rad: angle by which positions and orientations are turned off the pixel axes. Zero leaves pixels that lie
            equally far from two latents, so that the choice of neighbours is not equivariant.
        orientation: "radial": theta points away from the centre, one latent per site, hence no site at the centre.
            "four": four latents with theta a quarter turn apart on each site of any square grid.

    Returns:
        A cloud in float64 without a batch axis; width 2 / sqrt(N) for "radial", of the sites for "four".

    Raises:
        ValueError: for a number of latents that makes no closed grid.
    """
    per_axis = grid_side(latents, orientation)
    first = _first_of_orbit(per_axis, tilt_rad, orientation)  # [N / 4, 3]
    poses = torch.cat([turn_quarter(first, turns) for turns in range(4)])
    contexts = torch.full((latents, context_width), 1.0 / context_width, dtype=torch.float64)
    return LatentCloud(poses, contexts, torch.full((latents,), 2.0 / per_axis, dtype=torch.float64))


def grid_side(latents: int, orientation: Orientation = "radial") -> int:
    """Return how many sites lie along one side of the grid.

    Raises:
        ValueError: for a number of latents that makes no closed grid.
    """
    if orientation == "four":
        side = math.isqrt(max(0, latents // 4))
        if side > 0 and 4 * side * side == latents:
            return side
        raise ValueError(f"{latents} latents are no square grid with four orientations per site; use 4, 16, 36, 64 ...")
    side = math.isqrt(max(0, latents))
    if side > 0 and side * side == latents and side % 2 == 0:
        return side
    raise ValueError(
        f"{latents} latents are not the square of an even number: 32 or 128 cut grids are not closed under quarter turns, "
        "and an odd grid has a centre without an orientation; use 16, 36, 64, 100 or 144"
    )


def _first_of_orbit(per_axis: int, tilt_rad: float, orientation: Orientation) -> Tensor:
    """Return one pose of each orbit, [N / 4, 3]: the quadrant x, y > 0, or all sites with theta 0, then tilted."""
    end = 1.0 - 1.0 / per_axis
    axis = torch.linspace(-end, end, per_axis, dtype=torch.float64)
    if orientation == "radial":
        axis = axis[per_axis // 2 :]
    y, x = (grid.reshape(-1) for grid in torch.meshgrid(axis, axis, indexing="ij"))
    theta_rad = torch.atan2(y, x) if orientation == "radial" else torch.zeros_like(x)
    cos, sin = math.cos(tilt_rad), math.sin(tilt_rad)
    return torch.stack([x * cos - y * sin, x * sin + y * cos, wrap_rad(theta_rad + tilt_rad)], dim=-1)


def squared_distance(pixels: Tensor, poses: Tensor) -> Tensor:
    """Return the squared distance of every pixel to every position: [..., P, 2] and [..., N, 2 or 3] to [..., P, N]."""
    return (pixels[..., :, None, :] - poses[..., None, :, :2]).square().sum(dim=-1)


def nearest_latents(pixels: Tensor, poses: Tensor, k: int) -> Tensor:
    """Return the k latents nearest to each pixel, by position only; theta is not a length.

    Args:
        pixels: [P, 2].
        poses: [N, 2 or 3].
        k: neighbours, 1 to N.

    Returns:
        int64 [P, k], nearest first.

    Raises:
        ValueError: when k is out of range, or when a pixel lies equally far from its k-th and its next neighbour, so that
            only the index could choose between them.
    """
    latents = poses.shape[0]
    if not 1 <= k <= latents:
        raise ValueError(f"{k} neighbours of {latents} latents; expected 1 to {latents}")
    wanted = min(k + 1, latents)
    distance, index = torch.topk(squared_distance(pixels.double(), poses.double()), wanted, dim=1, largest=False)
    tolerance = _TIE_ULPS * max(torch.finfo(pixels.dtype).eps, torch.finfo(poses.dtype).eps)
    ties = 0 if k == latents else int((distance[:, k] - distance[:, k - 1] <= tolerance).sum())
    if ties:
        raise ValueError(
            f"{ties} of {len(pixels)} pixels lie equally far from their neighbours {k} and {k + 1}; "
            "tilt the grid (tilt_rad=0.2) or use all latents"
        )
    return index[:, :k]
