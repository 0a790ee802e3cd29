"""Paints the outlines of ``cmr_heart`` into a patch around the heart: images and labels. Called by ``cmr``.

Letters: P phase, H row, W column, A angle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.phantoms import cmr_difficulty as difficulty
from training.phantoms.cmr_heart import ANGLES_RAD, Outlines
from training.phantoms.cmr_tissue import Tissues, inside, mix
from training.phantoms.subjects import Floats

BACKGROUND, LEFT_CAVITY, LEFT_MUSCLE, RIGHT_CAVITY = range(4)
"""Values of a label image; the papillary muscles belong to the left cavity."""

_PAPILLARY_RAD = (np.radians(125.0), np.radians(-115.0))
_PAPILLARY_LEVELS = (0.22, 0.80)
_RIGHT_WALL_MM = 3.0
_SLICE_THICKNESS_MM = 7.0


@dataclass(frozen=True, kw_only=True)
class HeartDetail:
    """What the painter adds to one heart's outlines.

    Args:
        papillary_rad, papillary_mm: angle and radius of the two papillary muscles.
        trabecula_A: depth of the trabeculae at the endocardium, mm at the base; deeper at the apex.
        fat_A: thickness of the epicardial fat, mm.
        right_blood: brightness of the right ventricle's blood relative to the left one's.
    """

    papillary_rad: tuple[float, float]
    papillary_mm: tuple[float, float]
    trabecula_A: Floats
    fat_A: Floats
    right_blood: float


def draw_detail(rng: np.random.Generator) -> HeartDetail:
    """Draw papillary muscles, trabeculae and fat of one heart."""
    scale = difficulty.PAPILLARY_SCALE
    first, second = (float(angle + rng.normal(0, 0.2)) for angle in _PAPILLARY_RAD)
    small, large = (float(scale * rng.uniform(2.6, 4.8)) for _ in range(2))
    ridges = sum(
        rng.normal(0, 0.5) * np.cos(order * ANGLES_RAD + rng.uniform(0, 2 * np.pi)) for order in range(7, 19, 2)
    )
    grooves = np.exp(6 * (np.cos(ANGLES_RAD - 1.15) - 1)) + np.exp(6 * (np.cos(ANGLES_RAD + 1.1) - 1))
    septal = 0.5 + 0.5 * np.cos(ANGLES_RAD)
    return HeartDetail(
        papillary_rad=(first, second),
        papillary_mm=(small, large),
        trabecula_A=np.asarray(scale * (0.5 + np.clip(ridges, -0.5, 2.5))),
        fat_A=np.asarray(rng.uniform(0, 3) * septal + rng.uniform(1, 6) * grooves),
        right_blood=float(rng.uniform(0.88, 1.05)),
    )


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Pixels around the heart: distance from the long axis, mm, index of the angle, and coordinates [H, W]."""

    distance_HW: Floats
    angle_HW: NDArray[np.intp]
    u_HW: Floats
    v_HW: Floats


def patch_of(u_HW: Floats, v_HW: Floats) -> Patch:
    """Polar coordinates of pixels; ``u`` points to the right ventricle, ``v`` to its anterior insertion."""
    turn = np.arctan2(v_HW, u_HW) * (len(ANGLES_RAD) / (2 * np.pi))
    return Patch(
        distance_HW=np.hypot(u_HW, v_HW).astype(np.float32),
        angle_HW=np.rint(turn).astype(np.intp) % len(ANGLES_RAD),
        u_HW=u_HW.astype(np.float32),
        v_HW=v_HW.astype(np.float32),
    )


def _depth(curve_PA: Floats, patch: Patch) -> Floats:
    """How far inside a curve each pixel lies, mm, float32 [P, H, W]."""
    return np.asarray(curve_PA.astype(np.float32)[:, patch.angle_HW] - patch.distance_HW)


def painted_labels(outlines: Outlines, patch: Patch) -> NDArray[np.uint8]:
    """Label of every pixel, uint8 [P, H, W]; above the base there is no ventricle."""
    inner, outer, right = (_depth(c, patch) for c in (outlines.inner_PA, outlines.outer_PA, outlines.right_PA))
    labels = np.where(right > 0, np.uint8(RIGHT_CAVITY), np.uint8(BACKGROUND))
    labels[outer > 0] = LEFT_MUSCLE
    labels[inner > 0] = LEFT_CAVITY
    labels[outlines.level_P > 1] = BACKGROUND
    return labels


def painted_heart(  # noqa: PLR0913, PLR0917 - what is painted, on what, where and when
    outlines: Outlines, detail: HeartDetail, tissues: Tissues, patch: Patch, behind_HW: Floats, phases: Floats
) -> Floats:
    """Grey levels of the patch at every phase, float32 [P, H, W], over what lies behind the heart."""
    blood_P = _blood(outlines, tissues, phases)
    frames = _with_right_ventricle(outlines, detail, tissues, patch, behind_HW, blood_P)
    left = mix(frames, tissues.muscle, inside(_depth(outlines.outer_PA, patch), tissues.edge_mm))
    rough = np.maximum(outlines.inner_PA - detail.trabecula_A * (1.6 - np.clip(outlines.level_P, 0, 1))[:, None], 0)
    cavity = inside(_depth(rough, patch), tissues.edge_mm)
    left = mix(left, blood_P, cavity * (1 - _papillary(outlines, detail, patch, tissues.edge_mm)))
    atrial_P = np.clip(outlines.above_base_mm_P / _SLICE_THICKNESS_MM + 0.5, 0, 1).astype(np.float32)
    if not atrial_P.any():
        return left
    return mix(left, _atria(outlines, tissues, patch, frames, blood_P), atrial_P[:, None, None])


def _blood(outlines: Outlines, tissues: Tissues, phases: Floats) -> Floats:
    """Brightness of blood, float32 [P, 1, 1]."""
    pulse = 1 + tissues.pulsation * np.cos(2 * np.pi * phases - tissues.pulse_rad)
    inflow = 1 + tissues.inflow * (np.clip(outlines.level_P, 0, 1) - 0.5)
    return np.asarray(tissues.blood * pulse * inflow, np.float32)[:, None, None]


def _with_right_ventricle(  # noqa: PLR0913, PLR0917 - what is painted, on what, and where
    outlines: Outlines, detail: HeartDetail, tissues: Tissues, patch: Patch, behind_HW: Floats, blood_P: Floats
) -> Floats:
    """Epicardial fat, the thin free wall and the blood of the right ventricle, float32 [P, H, W]."""
    width_PA = outlines.right_PA - outlines.outer_PA
    wall_PA = outlines.right_PA + np.minimum(width_PA / 2, _RIGHT_WALL_MM)
    fat_PA = np.where(outlines.outer_PA > 1, wall_PA + detail.fat_A, 0)
    frames = mix(behind_HW, tissues.fat, inside(_depth(fat_PA, patch), tissues.edge_mm))
    frames = mix(frames, tissues.muscle, inside(_depth(wall_PA, patch), tissues.edge_mm))
    right_PA = outlines.right_PA - np.minimum(width_PA / 2, detail.trabecula_A)
    return mix(frames, blood_P * np.float32(detail.right_blood), inside(_depth(right_PA, patch), tissues.edge_mm))


def _papillary(outlines: Outlines, detail: HeartDetail, patch: Patch, edge_mm: float) -> Floats:
    """Part of each pixel that is papillary muscle: free in diastole, at the wall in systole, float32 [P, H, W]."""
    low, high = _PAPILLARY_LEVELS
    level = np.clip(outlines.level_P, 0, 1)
    thick = np.sqrt(np.clip(1 - ((level - (low + high) / 2) / ((high - low) / 2)) ** 2, 0, 1))
    part = np.zeros((len(level), *patch.distance_HW.shape), np.float32)
    if not thick.any():
        return part
    for angle, radius_mm in zip(detail.papillary_rad, detail.papillary_mm, strict=True):
        wall = outlines.inner_PA[:, round(angle / (2 * np.pi) * len(ANGLES_RAD)) % len(ANGLES_RAD)]
        place = np.maximum(wall - 1.6 * radius_mm, 0.45 * wall)
        away = np.hypot(
            patch.u_HW - (place * np.cos(angle)).astype(np.float32)[:, None, None],
            patch.v_HW - (place * np.sin(angle)).astype(np.float32)[:, None, None],
        )
        part = np.maximum(part, inside((thick * radius_mm).astype(np.float32)[:, None, None] - away, edge_mm))
    return np.where(thick[:, None, None] > 0, part, np.float32(0))


def _atria(outlines: Outlines, tissues: Tissues, patch: Patch, frames: Floats, blood_P: Floats) -> Floats:
    """What replaces the left ventricle above its base: the left atrium with a thin wall, the root of the aorta, fat."""
    radius_P = np.sqrt((outlines.inner_PA**2).mean(axis=1)).astype(np.float32)[:, None, None]
    atria = mix(frames, 0.6 * tissues.fat, inside(_depth(outlines.outer_PA, patch), tissues.edge_mm))
    for u_mm, v_mm, scale in ((-6.0, -4.0, 0.92), (16.0, 22.0, 0.50)):
        away = np.hypot(patch.u_HW - np.float32(u_mm), patch.v_HW - np.float32(v_mm))
        depth = scale * radius_P - away
        atria = mix(atria, tissues.muscle, inside(depth + np.float32(2.0), tissues.edge_mm))
        atria = mix(atria, blood_P, inside(depth, tissues.edge_mm))
    return atria
