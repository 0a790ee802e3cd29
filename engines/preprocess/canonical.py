"""One way to look at a short-axis stack, whichever way the scanner stored it.

Mirroring and quarter turns of the stored images are undone from ImageOrientationPatient (PS3.3 C.7.6.2.1.1):
seen so, the slice normal (row x column direction) points from apex to base (right, posterior, superior) and
rows run towards the feet. Called by ``preprocess.cmr``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputRefused, RefusalCode
from engines.records import CineStack

APEX_TO_BASE = np.array([-1.0, 1.0, 1.0])
"""Direction of the heart's base from its apex in patient coordinates (LPS): right, posterior, superior."""

SHORT_AXIS_COSINE_MIN = 0.5
"""A short-axis normal lies within 60 degrees of that direction; the normal of a long-axis plane is about perpendicular."""

TO_FEET = np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True, kw_only=True)
class CanonicalStack:
    """A view of a stack in canonical orientation; nothing is copied.

    Args:
        images_SPHW: slices from apex to base.
        spacing_mm: (row, column), swapped when the view is turned by an odd number of quarters.
        slice_order: index into the stored slices, per canonical slice.
        mirrored: the stored columns were reversed.
        quarter_turns: counter-clockwise quarter turns applied after mirroring.
    """

    images_SPHW: NDArray[Any]
    spacing_mm: tuple[float, float]
    slice_order: tuple[int, ...]
    mirrored: bool
    quarter_turns: int

    def region_in_source(self, top: int, bottom: int, left: int, right: int) -> tuple[int, int, int, int]:
        """Bounding box (x0, y0, x1, y1), end exclusive, in the stored image of a canonical box."""
        inside = np.zeros(self.images_SPHW.shape[2:], bool)
        inside[top:bottom, left:right] = True
        stored = np.rot90(inside, -self.quarter_turns)
        stored = stored[:, ::-1] if self.mirrored else stored
        rows, columns = np.flatnonzero(stored.any(axis=1)), np.flatnonzero(stored.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def canonical_stack(stack: CineStack) -> CanonicalStack:
    """View the stack from apex to base with the feet at the bottom.

    Raises:
        InputRefused: the slices run along the heart, not across it.
    """
    along_row, along_column = np.array(stack.orientation[:3]), np.array(stack.orientation[3:])
    towards_base = float(np.cross(along_row, along_column) @ APEX_TO_BASE / np.linalg.norm(APEX_TO_BASE))
    if abs(towards_base) < SHORT_AXIS_COSINE_MIN:
        message = (
            f"the slices lie {90 - np.degrees(np.arccos(min(1.0, abs(towards_base)))):.0f} degrees from the usual long axis "
            "of a heart (long axis?); a stack across the heart is expected, from 30 degrees on"
        )
        raise InputRefused(RefusalCode.NO_SHORT_AXIS_CINE, message)
    reversed_normal = towards_base < 0
    images, order = stack.images_SPHW, tuple(range(len(stack.images_SPHW)))
    if reversed_normal:
        images, order = images[::-1, :, :, ::-1], order[::-1]
        along_row = -along_row
    turns = _quarter_turns_to_feet(along_row, along_column)
    spacing_mm = stack.spacing_mm if turns % 2 == 0 else stack.spacing_mm[::-1]
    return CanonicalStack(
        images_SPHW=np.rot90(images, turns, axes=(2, 3)),
        spacing_mm=spacing_mm,
        slice_order=order,
        mirrored=reversed_normal,
        quarter_turns=turns,
    )


def _quarter_turns_to_feet(along_row: NDArray[np.float64], along_column: NDArray[np.float64]) -> int:
    """Turns that make the column direction point most towards the feet.

    One counter-clockwise turn makes the old row direction point up, so that columns run against it.
    """
    candidates = (along_column, -along_row, -along_column, along_row)
    return int(np.argmax([direction @ TO_FEET for direction in candidates]))
