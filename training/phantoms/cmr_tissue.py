"""Grey levels of the tissues in one stack, and mixing them at edges. Called by ``cmr``, ``cmr_body`` and ``cmr_paint``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.phantoms import cmr_difficulty as difficulty
from training.phantoms.subjects import Floats


@dataclass(frozen=True, kw_only=True)
class Tissues:
    """Grey levels, where 1 is about the brightest, and the width of an edge.

    Args:
        blood, muscle, fat, lung, liver, wall: tissues; ``wall`` is skeletal muscle.
        inflow: part by which blood brightens from apex to base.
        pulsation, pulse_rad: part by which blood brightens and darkens over the beat, and when.
        texture: relative strength of the grain within a tissue.
        edge_mm: width of an edge.
    """

    blood: float
    muscle: float
    fat: float
    lung: float
    liver: float
    wall: float
    inflow: float
    pulsation: float
    pulse_rad: float
    texture: float
    edge_mm: float


def draw_tissues(rng: np.random.Generator, spacing_mm: float) -> Tissues:
    """Draw the contrast of one stack: blood and fat bright, muscle and liver dark, lung nearly black."""
    blood = float(rng.uniform(0.72, 0.92))
    return Tissues(
        blood=blood,
        muscle=max(0.12, blood - float(rng.uniform(*difficulty.BLOOD_MUSCLE_CONTRAST))),
        fat=float(rng.uniform(0.50, 0.95)),
        lung=float(rng.uniform(0.03, 0.10)),
        liver=float(rng.uniform(0.24, 0.44)),
        wall=float(rng.uniform(0.20, 0.34)),
        inflow=float(rng.normal(0.04, 0.08)),
        pulsation=float(rng.uniform(0.0, 0.08)),
        pulse_rad=float(rng.uniform(0, 2 * np.pi)),
        texture=float(rng.uniform(0.04, 0.12)),
        edge_mm=spacing_mm * float(rng.uniform(*difficulty.BLUR_PX)),
    )


def inside(depth_mm: Floats, edge_mm: float) -> Floats:
    """0 outside, 1 inside, linear over the edge: partial volume; depth is positive inside."""
    scaled = np.asarray(depth_mm * np.float32(1 / edge_mm) + np.float32(0.5), np.float32)
    return np.asarray(np.clip(scaled, 0, 1, out=scaled))


def mix(below: Floats, value: Floats | float, alpha: Floats) -> Floats:
    """``value`` over ``below`` where ``alpha`` is 1."""
    return np.asarray(below + alpha * (value - below))
