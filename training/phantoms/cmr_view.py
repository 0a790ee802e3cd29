"""How a short-axis stack lies in the patient, and the ways a scanner stores it.

Patient coordinates are LPS: +x left, +y posterior, +z superior (PS3.3 C.7.6.2.1.1). In the standard view the row and
column direction span a right-handed frame with the direction from apex to base; columns run towards the feet, so the
right ventricle lies on the left of the image. Called by ``cmr`` (draws a view) and ``cmr_body`` (where the feet are).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.phantoms.subjects import Floats

APEX_TO_BASE = (-0.65, 0.50, 0.56)
"""Mean direction from apex to base: right, posterior, superior."""

TO_RIGHT_VENTRICLE = (-1.0, -1.0, 0.0)
"""Direction from the left to the right ventricle, before it is made perpendicular to the long axis: right, anterior."""

TO_FEET = (0.0, 0.0, -1.0)

AXIS_SD = 0.08
"""Spread of each component of the long axis between subjects."""

HEART_TURN_SD_DEG = 12.0
"""Spread of the right ventricle's direction around the long axis between subjects."""

FRAME_TURN_SD_DEG = 20.0
"""Spread of the scanner's in-plane frame around the standard one; cut off at two standard deviations."""

OTHERWISE_STORED_SHARE = 0.3
"""Share of the stacks that are stored turned by quarters or from base to apex."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Where the stored images of a stack look.

    Args:
        row, column: unit vectors of ImageOrientationPatient, [3] each.
        turn_rad: direction of the right ventricle in the stored image, from the row towards the column direction.
        apex_first: the normal (row x column direction) points from apex to base, and so do the slices.
    """

    row: Floats
    column: Floats
    turn_rad: float
    apex_first: bool

    def cosines(self) -> tuple[float, float, float, float, float, float]:
        """Values of ImageOrientationPatient with six decimals."""
        a, b, c, d, e, f = (float(value) for value in np.round([*self.row, *self.column], 6))
        return a, b, c, d, e, f


def draw_view(rng: np.random.Generator) -> View:
    """Draw how the heart lies and how the scanner looks at it and stores what it sees."""
    axis = _unit(np.array(APEX_TO_BASE) + rng.normal(0, AXIS_SD, 3))
    heart_turn = np.radians(HEART_TURN_SD_DEG) * rng.normal()
    frame_turn = np.radians(FRAME_TURN_SD_DEG) * np.clip(rng.normal(), -2, 2)
    right_ventricle = _turned(_across(TO_RIGHT_VENTRICLE, axis), axis, heart_turn)
    column = _turned(_across(TO_FEET, axis), axis, frame_turn)
    row, column, apex_first = _stored(np.cross(column, axis), column, rng)
    turn_rad = float(np.arctan2(right_ventricle @ column, right_ventricle @ row))
    return View(row=row, column=column, turn_rad=turn_rad, apex_first=apex_first)


def _stored(row: Floats, column: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, bool]:
    """Directions as they are stored: mostly the standard ones, else one of the seven other ways."""
    way = int(rng.integers(1, 8))
    if rng.random() >= OTHERWISE_STORED_SHARE:
        way = 0
    quarter_turns, reversed_normal = way % 4, way >= 4  # four quarter turns, then the same mirrored
    for _ in range(quarter_turns):
        row, column = column, -row
    return (-row if reversed_normal else row), column, not reversed_normal


def feet_rad(orientation: tuple[float, ...]) -> float:
    """Direction of the feet in the image, from the row towards the column direction."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    return float(np.arctan2(np.array(TO_FEET) @ column, np.array(TO_FEET) @ row))


def _across(direction: tuple[float, float, float], axis: Floats) -> Floats:
    """The part of a direction that is perpendicular to a unit axis, of length one."""
    whole = np.array(direction)
    return _unit(whole - (whole @ axis) * axis)


def _turned(direction: Floats, axis: Floats, angle_rad: float) -> Floats:
    """A direction perpendicular to a unit axis, turned around it (right-hand rule)."""
    return np.asarray(np.cos(angle_rad) * direction + np.sin(angle_rad) * np.cross(axis, direction))


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.linalg.norm(vector))
