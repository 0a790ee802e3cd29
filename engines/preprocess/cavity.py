"""The cavity of the left ventricle in one slice: its inner edge at every phase, in polar coordinates about its centre.

Grey values become blood (1) or wall (-1): blood is read in the middle of each slice, the ratio of wall to blood once for
the whole stack. At every angle each radius is rewarded
for blood before it, wall behind it and no wall passed; neighbouring angles agree on one closed edge by messages that
run round the circle both ways at once, so that no angle is the first. Dents narrower than a quarter turn (papillary
muscles) belong to the cavity, as they do for human readers. Quarter turns and mirroring of an image permute the
angles and change nothing else. Called by ``preprocess.cmr``.

Letters: P phase, H row, W column, A angle, R radius (samples), E edge (between samples).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Point = tuple[float, float]

ANGLES = 32
STEP_MM = 1.5
LARGEST_RADIUS_MM = 48.0
"""A cavity of 96 mm across is larger than any that was reported."""

POOL_RADIUS_MM = 12.0
POOL_PERCENTILE = 75.0
"""Blood is the brighter part of the middle: there may be papillary muscles, and the apex is narrow."""

USUAL_WALL_RATIO = 0.55
"""Grey value of wall over blood of the first edge, from which it is then measured: high, so that any wall is darker."""

WALL_SHARE = 0.2
"""Where between wall (0) and blood (1) the edge lies: near the wall, since trabeculae are mixed with blood."""

BAND_SAMPLES = 3
"""Samples before and behind an edge that are compared: 4.5 mm, less than the thinnest wall."""

PASSED_WALL_COST = 0.05
"""Per millimetre of wall between centre and edge; keeps the edge from the far side of the septum."""

BEND_COST = 0.1
LARGEST_BEND_SAMPLES = 2
DENT_ANGLES = 4
"""Half the width of the widest dent that is filled: 4 of 32 angles, 45 degrees."""

EDGE_SHARPNESS = 10.0
RECENTRINGS = 2


@dataclass(frozen=True, kw_only=True)
class Cavity:
    """The cavity in one slice.

    Args:
        area_mm2: float64 [P].
        centre_px: (row, column) of its centroid over the heart beat.
        wall, blood: grey values.
        radius_mm_PA: distance of the edge from ``origin_px``; angles counter-clockwise from the right.
        origin_px: (row, column) that the radii start from.
    """

    area_mm2: NDArray[np.float64]
    centre_px: Point
    wall: float
    blood: float
    radius_mm_PA: NDArray[np.float64]
    origin_px: Point


def wall_to_blood(slices_SPHW: NDArray[Any], start_px: Point, spacing_mm: Point) -> float:
    """Grey value of wall over that of blood: the same in all slices, whatever the coil does to either.

    Args:
        slices_SPHW: slices through the middle of the ventricle.
        start_px: (row, column) near its axis.
        spacing_mm: (row, column).
    """
    return float(np.median([_wall_to_blood(each, start_px, spacing_mm) for each in slices_SPHW]))


def _wall_to_blood(images_PHW: NDArray[Any], start_px: Point, spacing_mm: Point) -> float:
    """In one slice, just behind the edge of its mean image."""
    mean_1HW, blood = _mean_and_blood(images_PHW, start_px, spacing_mm)
    origin = _recentred(mean_1HW, start_px, spacing_mm, USUAL_WALL_RATIO * blood, blood)
    polar = _polar(mean_1HW, origin, spacing_mm)
    radius_1A = _edge(_blood(polar, USUAL_WALL_RATIO * blood, blood))
    behind = np.rint(radius_1A / STEP_MM).astype(np.intp)[..., None] + np.arange(1, BAND_SAMPLES)
    wall = np.take_along_axis(polar, np.minimum(behind, polar.shape[-1] - 1), axis=-1)
    return float(np.median(wall)) / max(blood, float(np.finfo(np.float32).tiny))


def find_cavity(images_PHW: NDArray[Any], start_px: Point, spacing_mm: Point, wall_ratio: float) -> Cavity:
    """Trace the cavity around a point inside it.

    Args:
        images_PHW: one slice over the heart beat.
        start_px: (row, column) near the axis of the ventricle.
        spacing_mm: (row, column).
        wall_ratio: grey value of wall over that of blood.
    """
    mean_1HW, blood = _mean_and_blood(images_PHW, start_px, spacing_mm)
    wall = wall_ratio * blood
    origin = _recentred(mean_1HW, start_px, spacing_mm, wall, blood)
    radius_PA = _edge(_blood(_polar(images_PHW, origin, spacing_mm), wall, blood))
    return Cavity(
        area_mm2=np.pi * (radius_PA**2).mean(axis=1),
        centre_px=_centroid(radius_PA, origin, spacing_mm),
        wall=wall,
        blood=blood,
        radius_mm_PA=radius_PA,
        origin_px=origin,
    )


def _mean_and_blood(images_PHW: NDArray[Any], start_px: Point, spacing_mm: Point) -> tuple[Array, float]:
    """Mean image over the heart beat, [1, H, W], and the grey value of blood in its middle."""
    mean_1HW = images_PHW.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    middle = _polar(mean_1HW, start_px, spacing_mm)[..., : int(POOL_RADIUS_MM / STEP_MM)]
    return mean_1HW, float(np.percentile(middle, POOL_PERCENTILE))


def _recentred(mean_1HW: Array, start_px: Point, spacing_mm: Point, wall: float, blood: float) -> Point:
    origin = start_px
    for _ in range(RECENTRINGS):
        radius_1A = _edge(_blood(_polar(mean_1HW, origin, spacing_mm), wall, blood))
        origin = _centroid(radius_1A, origin, spacing_mm)
    return origin


def directions() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(down, right) of every angle; exactly symmetric under quarter turns, [A] each."""
    quarter = np.arange(ANGLES // 4) * (2.0 * np.pi / ANGLES)
    cosine, sine = np.cos(quarter), np.sin(quarter)
    up = np.concatenate([sine, cosine, -sine, -cosine])
    return -up, np.concatenate([cosine, -sine, -cosine, sine])


def _polar(images_PHW: NDArray[Any], origin: Point, spacing_mm: Point) -> Array:
    """Linear interpolation on rays from the origin, float32 [P, A, R]; the border is repeated outside."""
    radii_mm = np.arange(STEP_MM / 2.0, LARGEST_RADIUS_MM, STEP_MM)
    height, width = images_PHW.shape[1:]
    down, right = directions()
    row, next_row, row_part = _neighbours(origin[0] + down[:, None] * radii_mm / spacing_mm[0], height)
    column, next_column, column_part = _neighbours(origin[1] + right[:, None] * radii_mm / spacing_mm[1], width)
    upper = images_PHW[:, row, column] * (1 - column_part) + images_PHW[:, row, next_column] * column_part
    lower = images_PHW[:, next_row, column] * (1 - column_part) + images_PHW[:, next_row, next_column] * column_part
    return np.asarray(upper * (1 - row_part) + lower * row_part, np.float32)


def _neighbours(position: NDArray[np.float64], length: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    inside = np.clip(position, 0.0, length - 1.0)
    before = np.minimum(inside.astype(np.intp), length - 2)
    return before, before + 1, np.asarray(inside - before, np.float32)


def _blood(polar_PAR: Array, wall: float, blood: float) -> Array:
    """-1 (wall) to 1 (blood), 0 at the grey value of the edge."""
    contrast = max(blood - wall, float(np.finfo(np.float32).tiny))
    share = (polar_PAR - np.float32(wall)) / np.float32(contrast)
    return np.asarray(np.clip(2.0 * (share - WALL_SHARE), -1.0, 1.0), np.float32)


def _edge(blood_PAR: Array) -> NDArray[np.float64]:
    """Radius of the closed edge that collects the largest reward, millimetres, [P, A]."""
    belief = _agreed(_smooth_beat(_reward(blood_PAR)))
    weight = np.exp(EDGE_SHARPNESS * (belief - belief.max(axis=-1, keepdims=True)).astype(np.float64))
    radius_mm = STEP_MM * np.arange(belief.shape[-1])
    return _without_dents(weight @ radius_mm / weight.sum(axis=-1))


def _reward(blood_PAR: Array) -> Array:
    """Blood just before, wall just behind, little wall passed: float32 [P, A, E]."""
    edges = np.arange(blood_PAR.shape[-1] + 1)
    before, behind = np.maximum(edges - BAND_SAMPLES, 0), np.minimum(edges + BAND_SAMPLES, edges[-1])
    passed = _from_centre(blood_PAR)
    inside, outside = passed - passed[..., before], passed[..., behind] - passed
    wall_mm = -STEP_MM * _from_centre(np.minimum(blood_PAR, 0.0))[..., before]
    return np.asarray((inside - outside) / BAND_SAMPLES - PASSED_WALL_COST * wall_mm, np.float32)


def _from_centre(values_PAR: Array) -> Array:
    total = np.zeros((*values_PAR.shape[:2], values_PAR.shape[2] + 1), np.float32)
    np.cumsum(values_PAR, axis=-1, out=total[..., 1:])
    return total


def _smooth_beat(reward_PAE: Array) -> Array:
    return (np.roll(reward_PAE, 1, axis=0) + 2.0 * reward_PAE + np.roll(reward_PAE, -1, axis=0)) / np.float32(4.0)


def _agreed(reward_PAE: Array) -> Array:
    """Largest reward of a closed edge through each point: max-sum messages along the circle, both ways at once."""
    left, right = np.zeros_like(reward_PAE), np.zeros_like(reward_PAE)
    for _ in range(ANGLES // 2):
        left, right = _message(reward_PAE + left, 1), _message(reward_PAE + right, -1)
    return reward_PAE + left + right


def _message(belief_PAE: Array, turn: int) -> Array:
    best = belief_PAE.copy()
    for bend in range(1, LARGEST_BEND_SAMPLES + 1):
        cheaper = belief_PAE - np.float32(BEND_COST * bend**2)
        np.maximum(best[..., bend:], cheaper[..., :-bend], out=best[..., bend:])
        np.maximum(best[..., :-bend], cheaper[..., bend:], out=best[..., :-bend])
    best -= best.max(axis=-1, keepdims=True)
    return np.asarray(np.roll(best, turn, axis=1))


def _without_dents(radius_PA: NDArray[np.float64]) -> NDArray[np.float64]:
    """Grey closing along the circle: dents of less than its width are filled, wide walls stay."""
    return -_largest_near(-_largest_near(radius_PA))


def _largest_near(values_PA: NDArray[np.float64]) -> NDArray[np.float64]:
    turns = range(-DENT_ANGLES, DENT_ANGLES + 1)
    return np.asarray(np.max([np.roll(values_PA, turn, axis=1) for turn in turns], axis=0))


def _centroid(radius_PA: NDArray[np.float64], origin: Point, spacing_mm: Point) -> Point:
    """Centroid of the area inside the edge, over all phases together."""
    down, right = directions()
    scale = 2.0 / 3.0 / max(float((radius_PA**2).mean()), np.finfo(np.float64).tiny)
    cubed = (radius_PA**3).mean(axis=0)
    return (
        origin[0] + scale * float((cubed * down).mean()) / spacing_mm[0],
        origin[1] + scale * float((cubed * right).mean()) / spacing_mm[1],
    )
