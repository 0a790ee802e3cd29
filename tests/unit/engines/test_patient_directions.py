"""Which way the patient lies in the view a network reads: letters that agree with where every pixel lies in the patient."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.errors import InputRefused
from engines.predictors.patient_directions import Directions, canonical_axes, canonical_directions, letters
from engines.preprocess.canonical import canonical_stack
from engines.records import CineStack, SourceInstance

SOURCE = SourceInstance(sop_class_uid="1.2", sop_instance_uid="2.25.1", series_instance_uid="2.25.9")
USUAL = (math.sqrt(0.5), math.sqrt(0.5), 0.0, -math.sqrt(1 / 6), math.sqrt(1 / 6), -math.sqrt(2 / 3))
"""Rows to the left and back, columns to the feet, to the right and back: across the usual long axis."""
Orientation = tuple[float, float, float, float, float, float]


def stored(orientation: Orientation, *, mirrored: bool, turns: int) -> Orientation:
    """The orientation of the same plane stored mirrored (columns reversed) and turned counter-clockwise."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    row = -row if mirrored else row
    for _ in range(turns):
        row, column = column, -row
    a, b, c, d, e, f = (float(cosine) for cosine in (*row, *column))
    return a, b, c, d, e, f


def located_stack(orientation: Orientation) -> CineStack:
    """A stack whose three phases hold the patient coordinates of each pixel, plus 100 mm, in millimetres."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    y, x = np.mgrid[:5, :7]
    place_HW3 = 100.0 + x[..., None] * row + y[..., None] * column
    return CineStack(
        images_SPHW=np.moveaxis(place_HW3, -1, 0)[None].astype(np.float32),
        spacing_mm=(1.0, 1.0),
        slice_positions_mm=np.zeros(1),
        trigger_times_ms=np.arange(3.0)[None],
        orientation=orientation,
        sources_SP=((SOURCE,) * 3,),
    )


@st.composite
def orientations(draw: st.DrawFn) -> Orientation:
    """Any pair of perpendicular directions."""
    numbers = np.array(draw(st.lists(st.floats(-1, 1), min_size=6, max_size=6))).reshape(2, 3)
    assume(np.linalg.norm(numbers[0]) > 0.1)
    row = numbers[0] / np.linalg.norm(numbers[0])
    across = numbers[1] - (numbers[1] @ row) * row
    assume(np.linalg.norm(across) > 0.1)
    a, b, c, d, e, f = (float(cosine) for cosine in (*row, *(across / np.linalg.norm(across))))
    return a, b, c, d, e, f


@settings(deadline=None)
@given(orientations())
def test_axes_are_where_the_pixels_of_the_view_lie(orientation: Orientation) -> None:
    """In the canonical view the patient coordinates grow along a row and down a column as the axes say."""
    try:
        seen_PHW = canonical_stack(located_stack(orientation)).images_SPHW[0]
    except InputRefused:
        with pytest.raises(InputRefused):
            canonical_axes(orientation)
        assert canonical_directions(orientation) is None
        return
    row, column = canonical_axes(orientation)
    np.testing.assert_allclose(seen_PHW[:, 0, 1] - seen_PHW[:, 0, 0], row, atol=1e-4)
    np.testing.assert_allclose(seen_PHW[:, 1, 0] - seen_PHW[:, 0, 0], column, atol=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_the_view_does_not_depend_on_how_the_images_were_stored(mirrored: bool, turns: int) -> None:
    """The usual plane reads left and back to the right, feet below, stored mirrored or turned or not."""
    found = canonical_directions(stored(USUAL, mirrored=mirrored, turns=turns))
    assert found == Directions(row="LP", column="FRP")


def test_edges_are_named_by_what_lies_beyond_them() -> None:
    """The left edge of rows that run to the left and back of the patient is right and front."""
    assert Directions(row="LP", column="FRP").edges == {"left": "RA", "right": "LP", "top": "HLA", "bottom": "FRP"}


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ((1, 0, 0), "L"),
        ((-1, 0, 0), "R"),
        ((0, 1, 0), "P"),
        ((0, -1, 0), "A"),
        ((0, 0, 1), "H"),
        ((0, 0, -1), "F"),
        ((0.6, 0, -0.8), "FL"),
        ((-0.48, 0.6, 0.64), "HPR"),
        ((0.16, 0, -0.987), "F"),
        ((0.18, 0, -0.984), "FL"),
    ],
)
def test_letters_are_those_of_the_standard(direction: tuple[float, ...], expected: str) -> None:
    """Left, posterior and head are positive; the largest component comes first; below ten degrees none is named."""
    assert letters(np.array(direction, float)) == expected


def tilted(degrees: float) -> Orientation:
    """The usual plane with its rows turned about its normal."""
    row, column = np.array(USUAL[:3]), np.array(USUAL[3:])
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned: list[NDArray[np.float64]] = [cos * row + sin * column, cos * column - sin * row]
    a, b, c, d, e, f = (float(cosine) for axis in turned for cosine in axis)
    return a, b, c, d, e, f


@pytest.mark.parametrize(("degrees", "known"), [(0, True), (40, True), (44, False), (46, False), (50, True)])
def test_a_view_that_another_image_may_have_decided_otherwise_is_not_marked(degrees: float, known: bool) -> None:
    """Where rows and columns point to the feet about equally, two degrees between images decide: no letters."""
    assert (canonical_directions(tilted(degrees)) is not None) == known


@pytest.mark.parametrize(
    "orientation",
    [
        (),
        USUAL[:5],
        (*USUAL[:3], *USUAL[:3]),
        (0.0,) * 6,
        (math.nan,) * 6,
        (math.inf, *USUAL[1:]),
        tuple(2 * cosine for cosine in USUAL),
        (*(1 / math.sqrt(3) * sign for sign in (-1, 1, 1)), *USUAL[3:]),
    ],
)
def test_what_is_no_short_axis_plane_has_no_directions(orientation: tuple[float, ...]) -> None:
    """Missing, wrong and long-axis orientations give no letters and no error."""
    assert canonical_directions(orientation) is None
