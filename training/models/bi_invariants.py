"""What a field may see of a point and a pose: numbers that do not change when both move together.

A decoder that sees only such numbers is steerable: f(g^-1 x; z) = f(x; g z) for every g of its group.
No latents and no network live here; ``training.models.enf`` calls these with pixels and latent poses.

Conventions: points are (x, y) = (column, row), y down, in half fields of view; a pose is (t_x, t_y) or (t_x, t_y, theta)
with theta in radian, measured from +x towards +y. A rigid motion (R_alpha, v) sends t to R_alpha t + v and theta to
theta + alpha, with R_alpha = [[cos, -sin], [sin, cos]].

Source: Wessels, Knigge et al., "Grounding Continuous Representations in Geometry: Equivariant Neural Fields",
ICLR 2025 (arXiv 2406.05753), section 3. Own code, licence of this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BiInvariant:
    """Numbers of a point and a pose, and the motions that leave them as they are.

    Attributes:
        name: key in ``BI_INVARIANTS``.
        dimension: how many numbers.
        needs_orientation: whether the pose must hold theta.
        group: the motions under which the numbers are invariant.
        numbers: the function itself, (point [..., 2], pose [..., 2 or 3]) to [..., dimension].
    """

    name: str
    dimension: int
    needs_orientation: bool
    group: str
    numbers: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, point_xy: Tensor, pose: Tensor) -> Tensor:
        """Return the numbers.

        Args:
            point_xy: [..., 2], half fields of view.
            pose: [..., 2] or [..., 3]; leading axes broadcast with those of ``point_xy``.

        Returns:
            [..., dimension].

        Raises:
            ValueError: when theta is needed and the pose has none.
        """
        if self.needs_orientation and pose.shape[-1] != 3:
            raise ValueError(
                f"the {self.name} bi-invariant needs poses (t_x, t_y, theta), found {pose.shape[-1]} numbers; "
                "add theta or choose 'translation' or 'radial'"
            )
        return self.numbers(point_xy, pose)


def offset(point_xy: Tensor, pose: Tensor) -> Tensor:
    """Return x - t, [..., 2]."""
    return point_xy - pose[..., :2]


def into_frame(vector_xy: Tensor, theta_rad: Tensor) -> Tensor:
    """Return R(-theta) v: the vector as the pose sees it, [..., 2].

    The MIDL 2026 paper prints R(theta) in its equation 12; only R(-theta) is invariant.
    """
    cos, sin = torch.cos(theta_rad), torch.sin(theta_rad)
    x, y = vector_xy[..., 0], vector_xy[..., 1]
    return torch.stack([x * cos + y * sin, y * cos - x * sin], dim=-1)


def _absolute(point_xy: Tensor, pose: Tensor) -> Tensor:
    return point_xy + torch.zeros_like(pose[..., :2])


def _absolute_pair(point_xy: Tensor, pose: Tensor) -> Tensor:
    point, position = torch.broadcast_tensors(point_xy, pose[..., :2])
    return torch.cat([position, point], dim=-1)


def _radial(point_xy: Tensor, pose: Tensor) -> Tensor:
    return torch.linalg.vector_norm(offset(point_xy, pose), dim=-1, keepdim=True)


def _se2(point_xy: Tensor, pose: Tensor) -> Tensor:
    return into_frame(offset(point_xy, pose), pose[..., 2])


def _e2(point_xy: Tensor, pose: Tensor) -> Tensor:
    along, across = _se2(point_xy, pose).unbind(dim=-1)
    return torch.stack([along, across.abs()], dim=-1)


def _periodic(point_xy: Tensor, pose: Tensor) -> Tensor:
    phase_rad = math.pi * offset(point_xy, pose)
    return torch.cat([torch.cos(phase_rad), torch.sin(phase_rad)], dim=-1)


_ROWS = (
    BiInvariant("absolute", 2, needs_orientation=False, group="none", numbers=_absolute),
    BiInvariant("absolute_pair", 4, needs_orientation=False, group="none", numbers=_absolute_pair),
    BiInvariant("translation", 2, needs_orientation=False, group="R2", numbers=offset),
    BiInvariant("radial", 1, needs_orientation=False, group="E(2)", numbers=_radial),
    BiInvariant("se2", 2, needs_orientation=True, group="SE(2)", numbers=_se2),
    BiInvariant("e2", 2, needs_orientation=True, group="E(2)", numbers=_e2),
    BiInvariant("periodic", 4, needs_orientation=False, group="T2", numbers=_periodic),
)
BI_INVARIANTS = {row.name: row for row in _ROWS}


def bi_invariant(name: str) -> BiInvariant:
    """Return the bi-invariant of a name.

    Raises:
        ValueError: for a name that is not in ``BI_INVARIANTS``.
    """
    if name not in BI_INVARIANTS:
        raise ValueError(f"no bi-invariant is called {name!r}; expected one of {', '.join(BI_INVARIANTS)}")
    return BI_INVARIANTS[name]


def pair_invariant(pose_i: Tensor, pose_j: Tensor) -> Tensor:
    """Return what latent i sees of latent j under SE(2): R(-theta_i)(t_j - t_i), cos and sin of theta_j - theta_i.

    Args:
        pose_i: [..., 3].
        pose_j: [..., 3]; leading axes broadcast.

    Returns:
        [..., 4]; the first two in half fields of view.
    """
    turn_rad = pose_j[..., 2] - pose_i[..., 2]
    seen = into_frame(pose_j[..., :2] - pose_i[..., :2], pose_i[..., 2])
    return torch.cat([seen, torch.cos(turn_rad)[..., None], torch.sin(turn_rad)[..., None]], dim=-1)
