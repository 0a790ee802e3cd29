"""Sunnybrook contours: which image they belong to, masks, volumes and ejection fractions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.sources.expert_contours import (
    ExpertStudy,
    expert_labels,
    polygon_area,
    polygon_mask,
    read_expert_study,
)

RECTANGLE = np.array([[1.0, 2.0], [5.0, 2.0], [5.0, 4.0], [1.0, 4.0]]) + 0.5


@pytest.fixture(scope="module")
def scd101(sample_data: Path) -> ExpertStudy:
    """SCD0000101, from its archive."""
    return read_expert_study(sample_data / "cmr" / "SCD0000101_SC-HF-I-1")


@pytest.fixture(scope="module")
def scd301(sample_data: Path) -> ExpertStudy:
    """SCD0000301, from its archive."""
    return read_expert_study(sample_data / "cmr" / "SCD0000301_SC-HF-I-4")


def test_volumes_and_ejection_fraction_of_both_subjects(scd101: ExpertStudy, scd301: ExpertStudy) -> None:
    """The contours give 191 and 141 mL, 26 %, and 230 and 180 mL, 22 %."""
    assert scd101.volume_ml(scd101.end_diastole) == pytest.approx(191, abs=0.5)
    assert scd101.volume_ml(scd101.end_systole) == pytest.approx(141, abs=0.5)
    assert scd101.lvef_percent == pytest.approx(26, abs=0.5)
    assert scd301.volume_ml(scd301.end_diastole) == pytest.approx(230, abs=0.5)
    assert scd301.volume_ml(scd301.end_systole) == pytest.approx(180, abs=0.5)
    assert scd301.lvef_percent == pytest.approx(22, abs=0.5)


def test_contours_lie_on_two_phases_of_neighbouring_slices(scd101: ExpertStudy) -> None:
    """Instance 219 is slice 2 of 12 from the apex at phase 19 of 20; end-diastole carries both borders."""
    places = [(contour.slice_index, contour.phase) for contour in scd101.contours]
    assert (1, 18) in places
    assert sorted(places) == sorted([(s, 18) for s in range(1, 10)] + [(s, 7) for s in range(1, 10)])
    assert all((contour.epicardium is not None) == (contour.phase == 18) for contour in scd101.contours)


def test_masks_hold_the_area_of_the_polygons(scd301: ExpertStudy) -> None:
    """The masks of all cavities together have the area of their polygons within two percent."""
    drawn = sum(polygon_area(contour.endocardium) for contour in scd301.contours)
    assert int((expert_labels(scd301) == 1).sum()) == pytest.approx(drawn, rel=0.02)


def test_the_drawn_pool_is_bright_and_its_wall_dark(scd101: ExpertStudy) -> None:
    """Labels lie on the image they belong to: the cavity is brighter than the wall in every image with both borders."""
    labels = expert_labels(scd101)
    for s, p in np.argwhere((labels == 2).any(axis=(2, 3))):
        image = scd101.stack.images_SPHW[s, p]
        assert np.median(image[labels[s, p] == 1]) > 1.3 * np.median(image[labels[s, p] == 2])


def test_coordinates_count_from_one(scd101: ExpertStudy, scd301: ExpertStudy) -> None:
    """The border is steepest where it is read, with coordinates counted from one: not a pixel up and left, nor down and right."""
    here, before, after = (_steepness(scd101, shift) + _steepness(scd301, shift) for shift in (0.0, -1.0, 1.0))
    assert here > 1.05 * max(before, after)


def _steepness(study: ExpertStudy, shift_px: float) -> float:
    """Fall of the grey level across the drawn endocardium, moved down and right, relative to each image's spread."""
    falls = []
    for contour in study.contours:
        image = study.stack.images_SPHW[contour.slice_index, contour.phase].astype(float)
        polygon = contour.endocardium + shift_px
        outwards = polygon - polygon.mean(axis=0)
        outwards *= 1.5 / np.linalg.norm(outwards, axis=1, keepdims=True)
        inner, outer = (np.rint(polygon + side * outwards).astype(int) for side in (-1, 1))
        falls.append((image[inner[:, 1], inner[:, 0]] - image[outer[:, 1], outer[:, 0]]).mean() / image.std())
    return float(np.mean(falls))


def test_a_pixel_belongs_when_its_centre_lies_inside() -> None:
    """A rectangle between pixel centres covers exactly the pixels it encloses: x runs along columns, y along rows."""
    expected = np.zeros((6, 8), bool)
    expected[3:5, 2:6] = True
    assert np.array_equal(polygon_mask(RECTANGLE, (6, 8)), expected)
    assert polygon_area(RECTANGLE) == 8


@given(
    radius=st.floats(6.0, 12.0),
    x=st.floats(14.0, 18.0),
    y=st.floats(14.0, 18.0),
)
def test_the_mask_of_a_disc_has_its_area_and_centre(radius: float, x: float, y: float) -> None:
    """Mask and polygon of any disc agree in area within a tenth and in centre within a third of a pixel."""
    angles = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    mask = polygon_mask(np.column_stack([x + radius * np.cos(angles), y + radius * np.sin(angles)]), (33, 33))
    rows, columns = np.nonzero(mask)
    assert mask.sum() == pytest.approx(np.pi * radius**2, rel=0.1)
    assert (columns.mean(), rows.mean()) == pytest.approx((x, y), abs=0.34)


def test_a_contour_of_a_missing_image_is_refused(sample_data: Path, tmp_path: Path) -> None:
    """A contour whose InstanceNumber is not in the stack is an error that names it."""
    source = sample_data / "cmr" / "SCD0000301_SC-HF-I-4" / "dicom.tar.xz"
    (tmp_path / "dicom.tar.xz").symlink_to(source)
    (tmp_path / "contours").mkdir()
    (tmp_path / "contours" / "IM-0001-0999-icontour-manual.txt").write_text("1 1\n2 1\n2 2\n")
    with pytest.raises(ValueError, match="999"):
        read_expert_study(tmp_path)


def test_a_folder_without_contours_is_refused(tmp_path: Path) -> None:
    """Images alone are no expert study."""
    with pytest.raises(FileNotFoundError, match="icontour"):
        read_expert_study(tmp_path)
