"""What lies around the heart in a short-axis slice, and what the coils make of it. Static over the beat. Called by ``cmr``.

Coordinates are those of the standard view, mm from the long axis of the left ventricle: ``a`` to the right of the
image (left and posterior in the patient), ``b`` down (to the feet).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from training.phantoms import cmr_difficulty as difficulty
from training.phantoms.cmr_tissue import Tissues, inside, mix
from training.phantoms.subjects import Floats

_TO_CHEST = (-0.55, -0.83)
"""Direction of the chest wall and its coil."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """One chest.

    Args:
        centre_mm, half_axes_mm: the outline of the trunk, an ellipse.
        fat_mm, wall_mm: thickness of the fat under the skin and of ribs and muscle.
        diaphragm_mm, dome_mm: how far below the long axis it lies, and how much it falls 100 mm aside.
        fat_pad_mm: height of the fat between diaphragm and right ventricle.
        liver_edge_mm: right end of the liver.
        stomach_mm, stomach_content, stomach_rad: place, grey level of what it holds, direction of its bulge.
        vessel_threshold: standard deviations of the noise above which it is a vessel.
        rib_rad: direction of a rib.
    """

    centre_mm: tuple[float, float]
    half_axes_mm: tuple[float, float]
    fat_mm: float
    wall_mm: float
    diaphragm_mm: float
    dome_mm: float
    fat_pad_mm: float
    liver_edge_mm: float
    stomach_mm: tuple[float, float]
    stomach_content: float
    stomach_rad: float
    vessel_threshold: float
    rib_rad: float


@dataclass(frozen=True, kw_only=True)
class Slab:
    """Pixels of one slice: coordinates, position from the apex, and noise of two grain sizes, float32 [H, W]."""

    a: Floats
    b: Floats
    position_mm: float
    fine: Floats
    coarse: Floats


def draw_body(rng: np.random.Generator, heart_radius_mm: float) -> Body:
    """Draw a chest around a heart whose left ventricle has the given outer radius."""
    return Body(
        centre_mm=(float(rng.normal(55, 8)), float(rng.normal(52, 8))),
        half_axes_mm=(float(rng.normal(152, 8)), float(rng.normal(154, 8))),
        fat_mm=float(rng.uniform(6, 24)),
        wall_mm=float(rng.uniform(7, 15)),
        diaphragm_mm=heart_radius_mm + float(rng.uniform(1, 10)),
        dome_mm=float(rng.uniform(4, 22)),
        fat_pad_mm=float(rng.uniform(5, 32)),
        liver_edge_mm=float(rng.normal(-12, 15)),
        stomach_mm=(float(rng.normal(40, 12)), float(rng.normal(34, 7))),
        stomach_content=float(rng.choice([0.05, 0.25, 0.6])),
        stomach_rad=float(rng.uniform(0, 2 * np.pi)),
        vessel_threshold=float(rng.uniform(2.0, 2.6)),
        rib_rad=float(rng.uniform(0, 2 * np.pi)),
    )


def painted_body(body: Body, tissues: Tissues, slab: Slab) -> Floats:
    """Grey levels of one slice without the heart, float32 [H, W]."""
    vessels = np.clip(3 * (slab.fine - body.vessel_threshold), 0, 1)
    frame = mix(np.full(slab.a.shape, tissues.lung, np.float32), 0.75 * tissues.blood, vessels)
    frame = _with_aorta(frame, tissues, slab)
    frame = _with_fat_pad(frame, body, tissues, slab)
    frame = _with_abdomen(frame, body, tissues, slab)
    frame = _with_chest_wall(frame, body, tissues, slab)
    return np.asarray(frame * np.clip(1 + 0.14 * slab.coarse, 0.4, 1.6), np.float32)


def _with_aorta(frame: Floats, tissues: Tissues, slab: Slab) -> Floats:
    """The descending aorta behind the heart, and the spine beside it, in the basal half."""
    near = float(np.clip((slab.position_mm - 25) / 25, 0, 1))
    away = np.hypot(slab.a - 80, slab.b - 30)
    frame = mix(frame, tissues.wall, near * inside(14 - away, 2.0))
    frame = mix(frame, 0.9 * tissues.blood, near * inside(11 - away, 2.0))
    return mix(frame, tissues.liver, near * inside(24 - np.hypot(slab.a - 110, (slab.b - 60) / 1.3), 3.0))


def _with_fat_pad(frame: Floats, body: Body, tissues: Tissues, slab: Slab) -> Floats:
    """Fat in the angle between diaphragm, chest wall and right ventricle: a wedge with a ragged edge."""
    top = body.diaphragm_mm - body.fat_pad_mm + 0.55 * (slab.a + 75) + 2.5 * slab.coarse
    return mix(frame, 0.8 * tissues.fat, inside(np.minimum(slab.b - top, -8 - slab.a), 4.0))


def _with_abdomen(frame: Floats, body: Body, tissues: Tissues, slab: Slab) -> Floats:
    """Below the diaphragm: fat, the liver on the right of the patient, the stomach and the spleen on the left."""
    below = slab.b - body.diaphragm_mm - body.dome_mm * ((slab.a - 10) / 100) ** 2 - 0.05 * slab.position_mm
    frame = mix(frame, 0.65 * tissues.fat * np.clip(1 + 0.25 * slab.coarse, 0.3, 1.5), inside(below, 3.0))
    edge = body.liver_edge_mm + 0.45 * (slab.position_mm - 40) - 0.3 * (slab.b - body.diaphragm_mm)
    liver = np.minimum(below - 2, edge - slab.a)
    frame = mix(frame, tissues.liver, inside(liver, 3.0))
    vessels = np.clip(3 * (slab.fine[::-1, ::-1] - body.vessel_threshold - 0.2), 0, 1)
    frame = mix(frame, 0.7 * tissues.blood, vessels * inside(liver - 5, 3.0))
    frame = _with_stomach(frame, body, tissues, slab)
    spleen = 26 - np.hypot((slab.a - 108) / 0.8, (slab.b - body.diaphragm_mm - 28) / 1.2)
    return mix(frame, 0.95 * tissues.liver, inside(spleen, 3.0))


def _with_stomach(frame: Floats, body: Body, tissues: Tissues, slab: Slab) -> Floats:
    x, y = slab.a - body.stomach_mm[0], slab.b - body.diaphragm_mm - body.stomach_mm[1]
    bulge = 1 + 0.22 * np.sin(2 * np.arctan2(y, x) + body.stomach_rad) + 0.06 * slab.coarse
    away = np.hypot(x / 1.5, y) * bulge
    frame = mix(frame, tissues.wall, inside(24 - away, 3.0))
    return mix(frame, body.stomach_content, inside(19 - away, 4.0))


def _with_chest_wall(frame: Floats, body: Body, tissues: Tissues, slab: Slab) -> Floats:
    """Ribs and muscle, fat under the skin, and air outside."""
    x, y = (slab.a - body.centre_mm[0]) / body.half_axes_mm[0], (slab.b - body.centre_mm[1]) / body.half_axes_mm[1]
    out = (np.hypot(x, y) - 1) * float(np.mean(body.half_axes_mm))  # about the distance outside the skin, mm
    fat_mm = body.fat_mm + 2 * slab.coarse
    frame = mix(frame, tissues.wall, inside(out + fat_mm + body.wall_mm, 3.0))
    ribs = np.clip(3 * np.sin(9 * np.arctan2(y, x) + body.rib_rad + 0.4 * slab.coarse) - 1.5, 0, 1)
    frame = mix(frame, 0.55 * tissues.fat, ribs * inside(3.5 - np.abs(out + fat_mm + 0.5 * body.wall_mm), 3.0))
    frame = mix(frame, tissues.fat, inside(out + fat_mm, 3.0))
    return mix(frame, 0.0, inside(out, 3.0))


def coil_gain(a: Floats, b: Floats, rng: np.random.Generator) -> Floats:
    """Brightness by place: bright at the chest wall, fading with depth, and a slope of its own, float32 [H, W]."""
    angle, slope, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.003), rng.uniform(0.001, 0.006)
    to_chest = _TO_CHEST[0] * a + _TO_CHEST[1] * b
    exponent = depth * to_chest + slope * (np.cos(angle) * a + np.sin(angle) * b)
    return np.asarray(np.exp(np.clip(exponent, -1.5, 0.9)), np.float32)


def banding(a: Floats, b: Floats, rng: np.random.Generator) -> Floats:
    """Factor of the dark band of a balanced sequence off resonance; 1 in most stacks, float32 [H, W]."""
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(25, 90)
    depth, width, bend = rng.uniform(0.3, 0.8), rng.uniform(3, 8), rng.uniform(-0.004, 0.004)
    if rng.random() >= difficulty.BANDING_SHARE:
        return np.ones(a.shape, np.float32)
    along = -np.sin(angle) * a + np.cos(angle) * b
    across = np.cos(angle) * a + np.sin(angle) * b - offset - bend * along**2
    return np.asarray(1 - depth * np.exp(-((across / width) ** 2)), np.float32)


def noise_field(shape: tuple[int, ...], grain_px: float, rng: np.random.Generator) -> Floats:
    """Smooth noise of mean 0 and standard deviation 1, float32 [H, W]; it wraps around."""
    smooth = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), grain_px, mode="wrap")
    return np.asarray((smooth - smooth.mean()) / smooth.std(), np.float32)
