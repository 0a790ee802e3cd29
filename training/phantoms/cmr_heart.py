"""How the ventricles of one heart move: outlines of a short-axis slice at every phase, areas exact.

The left cavity is the half-ellipsoid of ``cycle``, whose sections contract unevenly from apex to base and around the
circumference without a change of the volume. All outlines are polar curves around the left ventricle's long axis;
angle 0 points to the right ventricle, positive angles to its anterior insertion. Called by ``cmr`` and ``cmr_paint``.

Letters: P phase, A angle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.phantoms import cmr_difficulty as difficulty
from training.phantoms.cycle import emptying, left_ventricle
from training.phantoms.subjects import Floats, Subject

ANGLES_RAD = np.arange(512) * (2 * np.pi / 512)
_SIGNED_RAD = np.mod(ANGLES_RAD + np.pi, 2 * np.pi) - np.pi

# Moments of level s (0 apex, 1 base) under the volume of a half-ellipsoid, 3/2 (2s - s^2).
_LEVEL_MEAN, _LEVEL_SD = 5 / 8, np.sqrt(0.45 - (5 / 8) ** 2)
_WAVE_MEAN = 3 / (4 * np.pi**2)
_WAVE_SD = np.sqrt(0.5 - 3 / (32 * np.pi**2) - _WAVE_MEAN**2)

_SMALLEST_PART = 0.08
"""Part of its end-diastolic area that no section goes below."""

_NARROWEST = 0.35
"""Squared radius, relative to its mean, that no direction goes below."""

_RIGHT_APEX = 0.12
"""Level at which the right ventricle begins."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What makes one heart's shape and contraction its own.

    Args:
        slope, wave: uneven contraction from apex to base, root-mean-square part of the area change.
        severity, sector_rad, sector_sharpness: how little a sector moves, where it lies, how narrow it is.
        apex_shift_mm: motion towards the base at end-systole.
        roundness_A: squared radius relative to its mean, less one; its mean is 0.
        wall_A: muscle relative to its mean.
        insertion_rad: angles of the anterior and inferior insertion of the right ventricle at the base.
        right_skew: how much fuller the anterior part of the right ventricle is.
    """

    slope: float
    wave: float
    severity: float
    sector_rad: float
    sector_sharpness: float
    apex_shift_mm: float
    roundness_A: Floats
    wall_A: Floats
    insertion_rad: tuple[float, float]
    right_skew: float


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """The curves of one slice.

    Args:
        inner_PA, outer_PA, right_PA: endocardium and epicardium of the left, free wall of the right ventricle, mm.
        level_P: place between apex (0) and base (1); beyond 1 the slice shows the atria.
        above_base_mm_P: distance from the base towards the atria, negative in the ventricle.
    """

    inner_PA: Floats
    outer_PA: Floats
    right_PA: Floats
    level_P: Floats
    above_base_mm_P: Floats


def draw_motion(rng: np.random.Generator) -> Motion:
    """Draw one heart's way to move."""
    severity = float(rng.uniform(*difficulty.REGIONAL_SEVERITY))
    diseased = bool(rng.random() < difficulty.REGIONAL_SHARE)
    slope, wave = (float(value) for value in difficulty.CONTRACTION_VARIATION_SD * rng.normal(0, 1, 2))
    return Motion(
        slope=slope,
        wave=wave,
        severity=severity if diseased else 0.0,
        sector_rad=float(rng.uniform(-np.pi, np.pi)),
        sector_sharpness=float(rng.uniform(1.5, 5.0)),
        apex_shift_mm=float(difficulty.APEX_SHIFT_SD_MM * rng.normal()),
        roundness_A=_waves(rng, (0.0, 0.07, 0.04, 0.02)),
        wall_A=1 + _waves(rng, (0.10, 0.06)),
        insertion_rad=(float(np.radians(rng.normal(71, 5))), float(np.radians(rng.normal(64, 5)))),
        right_skew=float(np.clip(rng.normal(0.15, 0.15), -0.2, 0.5)),
    )


def _waves(rng: np.random.Generator, sds: tuple[float, ...]) -> Floats:
    """Sum of cosines around the circle, the k-th with a normal amplitude; its mean is 0."""
    amplitudes, offsets = rng.normal(0, sds), rng.uniform(0, 2 * np.pi, len(sds))
    orders = np.arange(1, len(sds) + 1)
    waves = amplitudes[:, None] * np.cos(orders[:, None] * ANGLES_RAD + offsets[:, None])
    return np.asarray(waves.sum(axis=0))


def unevenness(level: Floats, motion: Motion) -> Floats:
    """Relative excess of the area change at a level; weighted with the sections of the ellipsoid its mean is 0."""
    slope = (level - _LEVEL_MEAN) / _LEVEL_SD
    wave = (np.cos(2 * np.pi * (level - 0.5)) - _WAVE_MEAN) / _WAVE_SD
    return np.asarray(motion.slope * slope + motion.wave * wave)


def cavity_area_mm2(subject: Subject, motion: Motion, position_mm: Floats | float, phases: Floats) -> Floats:
    """Area of the left cavity in a fixed plane at each phase; its integral over the position is the true volume.

    Args:
        subject: the heart.
        motion: how it moves.
        position_mm: distance of the plane from the end-diastolic apex; an array is broadcast against the phases.
        phases: fractions of the heart beat.
    """
    level = _level(subject, motion, position_mm, phases)
    return np.where((level > 0) & (level <= 1), _area_mm2(subject, motion, level, phases), 0.0)


def _area_mm2(subject: Subject, motion: Motion, level: Floats, phases: Floats) -> Floats:
    """Area of the left cavity at each phase's level, up to the base."""
    loss = shape_loss(subject, phases) * (1 + _bounded(subject, motion) * unevenness(level, motion))
    return np.asarray(_full_mm2(subject, level) * (1 - loss))


def _full_mm2(subject: Subject, level: Floats) -> Floats:
    """End-diastolic area of the left cavity at a level."""
    return np.asarray(np.pi * float(left_ventricle(subject, np.zeros(1)).radius_mm[0]) ** 2 * _profile(level))


def shape_loss(subject: Subject, phases: Floats) -> Floats:
    """Mean part of the end-diastolic section that is lost at each phase."""
    end_diastole = float(left_ventricle(subject, np.zeros(1)).radius_mm[0])
    return np.asarray(1 - (left_ventricle(subject, phases).radius_mm / end_diastole) ** 2)


def _bounded(subject: Subject, motion: Motion) -> float:
    """Part of the unevenness that leaves every section something at end-systole."""
    loss = float(shape_loss(subject, np.array([subject.systole_fraction]))[0])
    most = float(unevenness(np.linspace(0, 1, 101), motion).max())
    return min(1.0, ((1 - _SMALLEST_PART) / loss - 1) / most) if most > 0 else 1.0


def _level(subject: Subject, motion: Motion, position_mm: Floats | float, phases: Floats) -> Floats:
    """Where in the moving ventricle a fixed plane lies: 0 apex, 1 base."""
    shift = motion.apex_shift_mm * emptying(phases, subject.systole_fraction)
    return np.asarray((position_mm - shift) / left_ventricle(subject, phases).length_mm)


def _profile(level: Floats) -> Floats:
    """Section of the half-ellipsoid at a level, relative to its base."""
    return np.asarray(np.clip(1 - (1 - np.minimum(level, 1.0)) ** 2, 0, 1))


def outlines(subject: Subject, motion: Motion, position_mm: float, phases: Floats) -> Outlines:
    """Curves of both ventricles in one plane at each phase; above the base they stay as they are at the base."""
    level = _level(subject, motion, position_mm, phases)
    length = left_ventricle(subject, phases).length_mm
    inside = np.clip(level, 0, 1)
    area = _area_mm2(subject, motion, inside, phases)
    inner2_PA = (area / np.pi)[:, None] * _shape_PA(subject, motion, inside, area)
    outer2_PA = inner2_PA + _muscle_mm2(subject, level, length)[:, None] * motion.wall_A
    right2_PA = outer2_PA + _right_excess_PA(subject, motion, phases, inside)
    return Outlines(
        inner_PA=np.sqrt(inner2_PA),
        outer_PA=np.sqrt(outer2_PA),
        right_PA=np.sqrt(right2_PA),
        level_P=level,
        above_base_mm_P=(level - 1) * length,
    )


def _shape_PA(subject: Subject, motion: Motion, level: Floats, area: Floats) -> Floats:
    """Squared radius of the cavity relative to its mean: not quite round, and held back in the diseased sector."""
    bump = np.exp(motion.sector_sharpness * (np.cos(ANGLES_RAD - motion.sector_rad) - 1))
    bump -= bump.mean()
    lost = np.clip(_full_mm2(subject, level) / np.maximum(area, 1e-6) - 1, 0, None)
    held = np.minimum(motion.severity * lost / bump.max(), (1 - _NARROWEST) / -bump.min())
    shape = 1 + motion.roundness_A + held[:, None] * bump
    # Where both departures meet, both are reduced alike, so that the mean stays 1.
    reduction = np.minimum(1, (1 - _NARROWEST) / np.maximum(1 - shape.min(axis=1), 1e-9))
    return np.asarray(1 + reduction[:, None] * (shape - 1))


def _muscle_mm2(subject: Subject, level: Floats, length: Floats) -> Floats:
    """Muscle of a section over pi: it keeps its volume, so it thickens as the ventricle shortens."""
    still = left_ventricle(subject, np.zeros(1))
    base, radius, wall = float(still.length_mm[0]), float(still.radius_mm[0]), subject.wall_mm
    place = np.minimum(level, 1) * base
    cap = 0.6 * wall  # the apex is the thinnest part
    outer2 = (radius + wall) ** 2 * _profile((place + cap) / (base + cap))
    return np.asarray(np.maximum(outer2 - radius**2 * _profile(np.maximum(level, 0)), 0) * base / length)


def _right_excess_PA(subject: Subject, motion: Motion, phases: Floats, level: Floats) -> Floats:
    """Squared radius of the right ventricle's free wall less that of the septum; half its integral is the cavity's area."""
    emptied = emptying(phases, subject.systole_fraction)
    volume_mm3 = 1000 * (subject.rvedv_ml - (subject.rvedv_ml - subject.rvesv_ml) * emptied)
    height = np.clip((level - _RIGHT_APEX) / (1 - _RIGHT_APEX), 0, 1)
    area = volume_mm3 / left_ventricle(subject, phases).length_mm * np.sqrt(height) * 1.5 / (1 - _RIGHT_APEX)
    anterior, inferior = motion.insertion_rad
    reach = np.where(_SIGNED_RAD >= 0, anterior, inferior) * (0.6 + 0.4 * height[:, None])
    along = np.clip(_SIGNED_RAD / reach, -1, 1)
    form = (1 - along**2) ** 0.8 * (1 + motion.right_skew * along)
    return np.asarray(2 * area[:, None] * form / (form.sum(axis=1, keepdims=True) * (2 * np.pi / len(ANGLES_RAD))))
