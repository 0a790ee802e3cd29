"""Tracing a cavity and reading the heart beat from its area, on drawn discs and curves with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.cavity import ANGLES, Cavity, directions, find_cavity, wall_to_blood
from engines.preprocess.heart_phases import beating_alike, find_phases, slow_part, ventricle_slices

BLOOD, WALL, SPACING_MM = 800.0, 250.0, (1.5, 1.5)


def drawn(
    radii_mm: list[float], centre_px: tuple[float, float] = (41.3, 38.2), *, papillary: bool = False
) -> np.ndarray:
    """A pool of each radius in a wall of 9 mm, beside a second pool behind the septum; float64 [P, 80, 80]."""
    rows, columns = np.indices((80, 80))
    y, x = (rows - centre_px[0]) * SPACING_MM[0], (columns - centre_px[1]) * SPACING_MM[1]
    distance = np.hypot(y, x)
    frames = []
    for radius in radii_mm:
        image = np.full((80, 80), 60.0)
        image[np.hypot(y, (x + 40) / 0.8) < 30] = BLOOD
        image[distance < radius + 9] = WALL
        image += (BLOOD - image) * np.clip((radius - distance) / 1.5 + 0.5, 0, 1)
        if papillary:
            image[np.hypot(y - radius / 2, x - radius / 2) < 4] = WALL
        frames.append(image)
    return np.array(frames)


def traced(images: np.ndarray, start_px: tuple[float, float] = (40.0, 40.0)) -> Cavity:
    """The cavity of drawn images."""
    return find_cavity(images, start_px, SPACING_MM, WALL / BLOOD)


@settings(max_examples=15, deadline=None)
@given(radius=st.floats(10.0, 32.0), row=st.floats(36.0, 44.0), column=st.floats(36.0, 44.0))
def test_the_area_and_the_centre_of_a_disc(radius: float, row: float, column: float) -> None:
    """Wherever the ray's origin lies in the pool, its area is within 10 % and its centre within 1 mm."""
    found = traced(drawn([radius], (row, column)))
    assert found.area_mm2[0] == pytest.approx(np.pi * radius**2, rel=0.15 if radius < 14 else 0.1)
    assert np.hypot(found.centre_px[0] - row, found.centre_px[1] - column) * 1.5 < 1.0


def test_the_area_follows_the_beat() -> None:
    """A pool that shrinks from 25 to 18 mm is traced at every phase; the right ventricle beside it is not joined."""
    radii = [25.0, 24.0, 21.0, 18.0, 18.0, 20.0, 23.0, 25.0]
    area_mm2 = traced(drawn(radii)).area_mm2
    assert area_mm2 == pytest.approx(np.pi * np.array(radii) ** 2, rel=0.12)


def test_papillary_muscles_belong_to_the_cavity() -> None:
    """A dark spot inside the pool changes neither area nor centre much."""
    with_muscle, without = traced(drawn([24.0], papillary=True)), traced(drawn([24.0]))
    assert with_muscle.area_mm2 == pytest.approx(without.area_mm2, rel=0.06)
    assert np.hypot(*np.subtract(with_muscle.centre_px, without.centre_px)) < 0.7


def test_quarter_turns_permute_the_edge() -> None:
    """A turned image has the same areas and its edge turned by a quarter of the angles."""
    images = drawn([24.0, 19.0], papillary=True) + np.random.default_rng(1).normal(0, 20, (2, 80, 80))
    found = traced(images, (40.0, 37.0))
    turned = traced(np.rot90(images, axes=(1, 2)), (79 - 37.0, 40.0))
    assert turned.area_mm2 == pytest.approx(found.area_mm2, rel=1e-6)
    assert np.roll(found.radius_mm_PA, ANGLES // 4, axis=1) == pytest.approx(turned.radius_mm_PA, rel=1e-6)
    assert turned.centre_px == pytest.approx((79 - found.centre_px[1], found.centre_px[0]), rel=1e-6)


def test_directions_are_symmetric() -> None:
    """A quarter turn of the angles is a quarter turn of the directions, to the last bit."""
    down, right = directions()
    quarter = ANGLES // 4
    assert np.array_equal(np.roll(down, -quarter), -right)
    assert np.array_equal(np.roll(right, -quarter), down)
    assert np.hypot(down, right) == pytest.approx(1.0)


def test_the_ratio_of_wall_to_blood() -> None:
    """It comes out of the drawn grey values, whatever a coil multiplies them with."""
    slices = np.stack([drawn([25.0, 22.0]), 0.4 * drawn([24.0, 20.0]), 2.0 * drawn([23.0, 19.0])])
    assert wall_to_blood(slices, (41.3, 38.2), SPACING_MM) == pytest.approx(WALL / BLOOD, rel=0.15)


def beat(phases: int = 20, systole: int = 7, emptied: float = 0.4) -> np.ndarray:
    """Area of one slice over the beat: fullest at phase 0, emptiest at ``systole``; float64 [P]."""
    phase = np.arange(phases)
    ejecting = 0.5 - 0.5 * np.cos(np.pi * phase / systole)
    filling = 0.5 + 0.5 * np.cos(np.pi * (phase - systole) / (phases - systole))
    return np.asarray(2000.0 * (1 - emptied * np.where(phase <= systole, ejecting, filling)))


def cavities(areas: np.ndarray, blood: list[float]) -> list[Cavity]:
    """Cavities with given areas and grey values."""
    return [
        Cavity(
            area_mm2=area,
            centre_px=(0.0, 0.0),
            wall=0.4 * level,
            blood=level,
            radius_mm_PA=np.zeros((len(area), ANGLES)),
            origin_px=(0.0, 0.0),
        )
        for area, level in zip(areas, blood, strict=True)
    ]


@given(start=st.integers(0, 19), emptied=st.floats(0.1, 0.8))
def test_the_phases_of_a_curve(start: int, emptied: float) -> None:
    """End-diastole and end-systole are found wherever the recording begins, despite noise of 1 %."""
    noise = np.random.default_rng(0).normal(0, 0.01 * 2000 * emptied, 20)
    phases = find_phases(np.roll(beat(emptied=emptied) + noise, start)[None])
    assert min((phases.end_diastole - start) % 20, (start - phases.end_diastole) % 20) <= 1
    assert min((phases.end_systole - start - 7) % 20, (start + 7 - phases.end_systole) % 20) <= 1


def test_smoothing_keeps_the_mean_and_has_no_seam() -> None:
    """A shifted curve is smoothed to the shifted curve."""
    curve = beat() + np.random.default_rng(2).normal(0, 50, 20)
    assert slow_part(curve).mean() == pytest.approx(curve.mean())
    assert slow_part(np.roll(curve, 5)) == pytest.approx(np.roll(slow_part(curve), 5))


@pytest.mark.parametrize(
    "area",
    [np.full(20, 1500.0), beat(emptied=0.02), np.linspace(2000, 1000, 20), np.zeros(20)],
    ids=["still", "2 %", "falling", "none"],
)
def test_what_is_no_heart_beat_is_refused(area: np.ndarray) -> None:
    """An area that hardly changes, or falls for most of the beat, is not a ventricle's."""
    with pytest.raises(InputRefused) as caught:
        find_phases(area[None])
    assert caught.value.code is RefusalCode.HEART_NOT_FOUND


def test_the_atrium_is_no_slice_of_the_ventricle() -> None:
    """Slices that fill in systole, or whose edge runs around several chambers, end the ventricle at the base."""
    ventricle = [beat() * factor for factor in (0.4, 0.7, 0.9, 1.0, 1.1)]
    atrium, great = 4000.0 - beat(), beat() * 2.5
    for behind in (atrium, great):
        areas = np.array([*ventricle, behind])
        assert beating_alike(areas).tolist() == [True] * 5 + [False]
        assert ventricle_slices(areas, cavities(areas, [900.0] * 6)) == (0, 4)


def test_the_apex_may_move_in_any_way_but_is_bright() -> None:
    """An apical slice that fills in systole is kept while it holds blood; muscle alone ends the ventricle."""
    areas = np.array([900.0 - 0.1 * beat(), *(beat() * factor for factor in (0.7, 0.9, 1.0, 1.1))])
    assert not beating_alike(areas)[0]
    assert ventricle_slices(areas, cavities(areas, [900.0] * 5)) == (0, 4)
    assert ventricle_slices(areas, cavities(areas, [400.0, *[900.0] * 4])) == (1, 4)
