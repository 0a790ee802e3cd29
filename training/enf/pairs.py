"""End-diastolic and end-systolic crops of many hearts, wide enough to be turned and shifted before they are cut.

A view is what the serving path would have prepared had the heart lain that way: it is cut from the wide crop and
scaled by ``engines.preprocess.cmr.unit_range``. Quarter turns and whole-pixel shifts move pixels and change none.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

from engines.preprocess.cmr import unit_range
from engines.preprocess.spec import CmrSpec

SHIFT_MAX_PX = 4.0


def wide_px(size_px: int) -> int:
    """Return the side of the wide crop of a view: its diagonal and room to shift it, with an even margin."""
    least = math.ceil(math.sqrt(2.0) * size_px + 2 * SHIFT_MAX_PX)
    return least + (least - size_px) % 2


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Wide crops of hearts; letters: N hearts, W side of the wide crop, S side of a view.

    Args:
        wide_N2WW: float32, raw grey values, end-diastole then end-systole, left ventricle in the centre.
        lvef_percent: float64 [N].
        keys: one name per heart; a heart has one key wherever it is used.
        spec: of the preprocessing; ``spec.size_px`` is S.
    """

    wide_N2WW: NDArray[np.float32]
    lvef_percent: NDArray[np.float64]
    keys: tuple[str, ...]
    spec: CmrSpec

    def __post_init__(self) -> None:
        count, wide = len(self.keys), self.wide_N2WW.shape[-1]
        if self.wide_N2WW.shape != (count, 2, wide, wide) or self.lvef_percent.shape != (count,):
            msg = f"crops {self.wide_N2WW.shape} and LVEF {self.lvef_percent.shape}; expected [{count}, 2, W, W], [{count}]"
            raise ValueError(msg)
        if wide < self.spec.size_px or (wide - self.spec.size_px) % 2:
            msg = f"wide crops of {wide} px; expected {self.spec.size_px} px and an even margin"
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sha256(self) -> str:
        """Digest of keys, preprocessing, pixels and ejection fractions."""
        digest = hashlib.sha256(json.dumps([self.keys, self.spec.model_dump(mode="json")]).encode())
        digest.update(self.wide_N2WW.tobytes())
        digest.update(self.lvef_percent.tobytes())
        return digest.hexdigest()

    def labels(self, threshold_percent: float) -> NDArray[np.bool_]:
        """Return which hearts have an ejection fraction of at most ``threshold_percent``, bool [N]."""
        return np.asarray(self.lvef_percent <= threshold_percent)

    def subset(self, rows: NDArray[np.int64]) -> Pairs:
        """Return the hearts of some rows."""
        return Pairs(
            wide_N2WW=self.wide_N2WW[rows],
            lvef_percent=self.lvef_percent[rows],
            keys=tuple(self.keys[row] for row in rows),
            spec=self.spec,
        )

    def views(
        self, rows: NDArray[np.int64], angle_deg: float = 0.0, shift_px: tuple[float, float] = (0.0, 0.0)
    ) -> NDArray[np.float32]:
        """Return float32 [n, 2, S, S], 0 to 1, of hearts turned about their centre and then shifted.

        Args:
            rows: which hearts.
            angle_deg: counter-clockwise as seen in the image, as ``numpy.rot90``.
            shift_px: (down, right), pixels of the view.
        """
        count = len(rows)
        return self._views(rows, np.full(count, angle_deg), np.tile(np.asarray(shift_px, np.float64), (count, 1)))

    def random_views(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return one view of each heart, at any angle and shifted by up to ``SHIFT_MAX_PX`` in any direction."""
        lengths_px = SHIFT_MAX_PX * np.sqrt(rng.uniform(size=len(rows)))  # even over the disc
        towards_rad = rng.uniform(0.0, 2.0 * np.pi, len(rows))
        shifts = lengths_px[:, None] * np.stack([np.cos(towards_rad), np.sin(towards_rad)], axis=1)
        return self._views(rows, rng.uniform(0.0, 360.0, len(rows)), shifts)

    def _views(
        self, rows: NDArray[np.int64], angles_deg: NDArray[np.float64], shifts_px: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        cuts = [
            _cut(self.wide_N2WW[row], angle, shift, self.spec.size_px)
            for row, angle, shift in zip(rows, angles_deg, shifts_px, strict=True)
        ]
        return np.stack([unit_range(cut, self.spec) for cut in cuts])


def _cut(
    wide_2WW: NDArray[np.float32], angle_deg: float, shift_px: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    turns, rest = divmod(angle_deg, 90.0)
    turned = np.rot90(wide_2WW, int(turns), axes=(1, 2))
    if rest or np.any(shift_px % 1):
        return _sampled(turned, rest, shift_px, size)
    down, right = (int(value) for value in shift_px)
    margin = (turned.shape[1] - size) // 2
    if max(abs(down), abs(right)) > margin:
        msg = f"a shift of {down}, {right} px leaves the wide crop; at most {margin} px"
        raise ValueError(msg)
    top, left = margin - down, margin - right
    return turned[:, top : top + size, left : left + size].astype(np.float64)


def _sampled(
    turned_2WW: NDArray[np.float32], angle_deg: float, shift_px: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """Bilinear samples of the wide crop where the pixels of the turned and shifted view come from."""
    offsets = np.arange(size) - (size - 1) / 2
    down, right = np.meshgrid(offsets - shift_px[0], offsets - shift_px[1], indexing="ij")
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    x, y = cos * right - sin * down, sin * right + cos * down
    grid = np.stack([x, y], axis=-1) * 2 / (turned_2WW.shape[1] - 1)
    image = torch.from_numpy(np.ascontiguousarray(turned_2WW, np.float32))[None]
    sampled = grid_sample(image, torch.from_numpy(grid.astype(np.float32))[None], align_corners=True)
    return np.asarray(sampled[0].double().numpy())
