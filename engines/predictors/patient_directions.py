"""Which way the patient lies in what a network read of a short-axis stack, in the letters of the standard.

A network reads the view of ``preprocess.canonical``, which may be mirrored or turned against the stored image. The
directions follow from ImageOrientationPatient of the stored one. Called by the report, which has the headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputRefused
from engines.preprocess.canonical import TO_FEET, canonical_stack
from engines.records import CineStack, SourceInstance

_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))
"""Against and along each patient axis: left, posterior, head (PS3.3 C.7.6.2.1.1)."""
_OPPOSITE = str.maketrans("RLAPFH", "LRPAHF")
_LEAST_SHARE = 0.17
"""A direction is named after a patient axis from 10 degrees off the plane across that axis."""
_COSINE_ERROR = 1e-2
_TIE = 0.07
"""Images of one stack differ by up to two degrees, and by this much in how far an axis points to the feet, times two."""


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Directions of the patient along the axes of an image, the principal letter first (PS3.3 C.7.6.1.1.1).

    Args:
        row: along a row, from left to right.
        column: down a column.
    """

    row: str
    column: str

    @property
    def edges(self) -> dict[str, str]:
        """What lies beyond each edge of the image."""
        return {
            "left": self.row.translate(_OPPOSITE),
            "right": self.row,
            "top": self.column.translate(_OPPOSITE),
            "bottom": self.column,
        }


def canonical_directions(orientation: Sequence[float]) -> Directions | None:
    """Directions in the canonical view of a stack that was stored with this orientation.

    Args:
        orientation: six direction cosines of ImageOrientationPatient of any image of the stack.

    Returns:
        The letters, or None where the view is not certain: no mark is better than a wrong one. That is so for numbers that
        are no direction cosines, for a stack that preprocessing refuses, and where rows and columns point about equally
        to the feet, so that another image of the same stack may have decided for the other of the two.
    """
    if not _are_direction_cosines(orientation):
        return None
    try:
        row, column = canonical_axes(orientation)
    except InputRefused:
        return None
    if abs(abs(row @ TO_FEET) - abs(column @ TO_FEET)) < _TIE:
        return None
    return Directions(row=letters(row), column=letters(column))


def canonical_axes(orientation: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors (LPS) along the rows and down the columns of the canonical view.

    Raises:
        InputRefused: the slices run along the heart, not across it.
    """
    view = canonical_stack(_one_pixel(orientation))
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    if view.mirrored:
        row = -row
    for _ in range(view.quarter_turns):  # counter-clockwise: what ran down runs right, what ran right runs up
        row, column = column, -row
    return row, column


def letters(direction: NDArray[np.float64]) -> str:
    """One to three letters of a unit vector (LPS), the largest component first."""
    order = np.argsort(-np.abs(direction), kind="stable")
    return "".join(_LETTERS[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) >= _LEAST_SHARE)


def _are_direction_cosines(orientation: Sequence[float]) -> bool:
    if len(orientation) != 6:
        return False
    pair = np.array(orientation, float).reshape(2, 3)
    return bool(np.allclose(pair @ pair.T, np.eye(2), atol=_COSINE_ERROR))  # a NaN is close to nothing


def _one_pixel(orientation: Sequence[float]) -> CineStack:
    """The smallest stack of this orientation: what is done to it is what is done to every other."""
    a, b, c, d, e, f = (float(cosine) for cosine in orientation)
    return CineStack(
        images_SPHW=np.zeros((1, 1, 1, 1), np.uint16),
        spacing_mm=(1.0, 1.0),
        slice_positions_mm=np.zeros(1),
        trigger_times_ms=np.zeros((1, 1)),
        orientation=(a, b, c, d, e, f),
        sources_SP=((SourceInstance(sop_class_uid="", sop_instance_uid="", series_instance_uid=""),),),
    )
