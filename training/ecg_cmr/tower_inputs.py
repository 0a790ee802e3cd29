"""What each tower sees of a stored pair, and the one random change that all images of a subject share.

Letters: B subjects, T phases, D slices, S pixels, K images of a subject.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from training.ecg_cmr.store import PairStore
from training.models.cmr_towers import TowerKind

Look = Literal["slice", "slice_time", "ed_volume", "es_volume"]
"""Mid slice at end-diastole, the same over the beat, and the volume at end-diastole or end-systole."""

KIND: dict[Look, TowerKind] = {
    "slice": "slice",
    "slice_time": "slice_time",
    "ed_volume": "volume",
    "es_volume": "volume",
}

ED_TARGETS = ("lvedv", "lv_mass", "rvedv")
ES_TARGETS = ("lvesv", "lvsv", "cardiac_output", "rvesv", "rvsv")
TARGETS: dict[Look, tuple[str, ...]] = {
    "slice": ED_TARGETS,
    "slice_time": (*ED_TARGETS, *ES_TARGETS, "lvef", "rvef"),
    "ed_volume": ED_TARGETS,
    "es_volume": ES_TARGETS,
}
"""What each tower is pre-trained on where nothing else is said."""


class Seen(NamedTuple):
    """Arguments of a tower: images float32, and the slice mask float32 [B, D] of a volume, else None."""

    images: Tensor
    mask_BD: Tensor | None

    def arguments(self) -> tuple[Tensor, ...]:
        """What ``tower(*seen.arguments())`` takes."""
        return (self.images,) if self.mask_BD is None else (self.images, self.mask_BD)


def seen_by(store: PairStore, look: Look, rows: Sequence[int]) -> Seen:
    """Return what a tower sees of some pairs: float32, whatever the store holds.

    Raises:
        ValueError: no such look.
    """
    if look not in get_args(Look):
        raise ValueError(f"no look {look!r}; expected one of {', '.join(get_args(Look))}")
    if look in {"slice", "slice_time"}:
        cine_B1TSS = torch.from_numpy(store.read("cine", rows))[:, None].float()
        return Seen(cine_B1TSS[:, :, 0] if look == "slice" else cine_B1TSS, None)
    volumes_B2DSS = torch.from_numpy(store.read("volumes", rows))
    mask_BD = torch.from_numpy(store.read("slice_mask", rows)).float()
    return Seen(volumes_B2DSS[:, ("ed_volume", "es_volume").index(look), None].float(), mask_BD)


@dataclass(frozen=True, kw_only=True)
class CmrAugment:
    """Ranges of the random change; no mirroring, since no heart is mirrored once the view is canonical.

    Args:
        turn_degrees: either way.
        shift_fraction: of the side, either way.
        gamma: exponent of the grey values, from 0 (background) to 1 (brightest).
    """

    turn_degrees: float = 20.0
    shift_fraction: float = 0.04
    gamma: tuple[float, float] = (0.7, 1.4)


def changed_alike(seen: Sequence[Seen], augment: CmrAugment | None, generator: torch.Generator) -> tuple[Seen, ...]:
    """Turn, shift and brighten all images of a subject in the same way: both phases, every slice, every frame.

    Args:
        seen: what the towers of one step see of the same B subjects, for instance both volumes.
        augment: None changes nothing and leaves nothing out.
        generator: one draw a subject.
    """
    if augment is None:
        return tuple(seen)
    flat = [each.images.flatten(1, -3) for each in seen]  # [B, K, S, S] each
    images_BKSS = _changed(torch.cat(flat, dim=1), augment, generator)
    parts = images_BKSS.split([each.shape[1] for each in flat], dim=1)
    return tuple(Seen(part.reshape(each.images.shape), each.mask_BD) for part, each in zip(parts, seen, strict=True))


def _changed(images_BKSS: Tensor, augment: CmrAugment, generator: torch.Generator) -> Tensor:
    subjects = len(images_BKSS)
    turn, right, down, bend = (2 * torch.rand(4, subjects, generator=generator) - 1).unbind()
    low = images_BKSS.amin(dim=(1, 2, 3), keepdim=True)
    span = (images_BKSS.amax(dim=(1, 2, 3), keepdim=True) - low).clamp_min(torch.finfo(torch.float32).tiny)
    angle = turn * math.radians(augment.turn_degrees)
    cos, sin = angle.cos(), angle.sin()
    # The sampling grid runs from -1 to 1: a shift of the whole side is 2.
    rows = [[cos, -sin, 2 * augment.shift_fraction * right], [sin, cos, 2 * augment.shift_fraction * down]]
    matrix_B23 = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)
    grid = functional.affine_grid(matrix_B23, list(images_BKSS.shape), align_corners=False)
    # From 0, so that what comes in from outside is background.
    turned = functional.grid_sample((images_BKSS - low) / span, grid, align_corners=False)
    exponent = _between(bend, augment.gamma)[:, None, None, None]
    return low + span * turned.clamp(0, 1) ** exponent


def _between(unit: Tensor, limits: tuple[float, float]) -> Tensor:
    """-1 to 1 becomes the range, evenly in the logarithm."""
    low, high = (math.log(limit) for limit in limits)
    return torch.exp(low + (high - low) * (unit + 1) / 2)
