"""How short-axis phantoms lie in the patient and are stored: as real hearts lie and as scanners store."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.decode.cmr import decode_cmr
from engines.preprocess.canonical import canonical_stack
from engines.preprocess.cmr import locate_heart
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack
from tests.doubles.hearts import small_mr_scan, small_subject
from training.phantoms import cmr, cmr_view
from training.phantoms.cmr_paint import LEFT_CAVITY, RIGHT_CAVITY

FORWARD = np.array([-0.65, 0.45, 0.60])
"""From apex to base in a textbook heart: right, posterior, superior."""

RIGHT_AND_FRONT = np.array([-1.0, -1.0, 0.0]) / np.sqrt(2)
FEET = np.array([0.0, 0.0, -1.0])
SEEDS = range(400)
SPECS = Path(__file__).parents[1] / "engines" / "test_preprocess_specs.json"


def views() -> list[cmr_view.View]:
    """Many views."""
    return [cmr_view.draw_view(np.random.default_rng(seed)) for seed in SEEDS]


def in_patient(orientation: tuple[float, ...], x: float, y: float) -> NDArray[np.float64]:
    """Patient direction of (along the row, along the column)."""
    return x * np.array(orientation[:3]) + y * np.array(orientation[3:])


def to_right_ventricle(view: cmr_view.View) -> NDArray[np.float64]:
    """Direction of the right ventricle in the patient."""
    return np.asarray(np.cos(view.turn_rad) * view.row + np.sin(view.turn_rad) * view.column)


def test_the_axes_are_those_of_hearts() -> None:
    """The normal points to the base when slices run there, else to the apex; frames are orthonormal."""
    for view in views():
        towards_base = np.cross(view.row, view.column) @ FORWARD / np.linalg.norm(FORWARD)
        assert (towards_base > 0.9) if view.apex_first else (towards_base < -0.9)
        assert np.array([view.row, view.column]) @ np.array([view.row, view.column]).T == pytest.approx(np.eye(2))


def test_the_right_ventricle_is_right_and_in_front() -> None:
    """In the patient it lies where it does, within the variation between hearts, however the images are stored."""
    degrees = [np.degrees(np.arccos(to_right_ventricle(view) @ RIGHT_AND_FRONT)) for view in views()]
    assert max(degrees) < 50
    assert 5 < np.median(degrees) < 15


def test_the_standard_view_is_the_most_common() -> None:
    """About 70 of 100 stacks have the right ventricle on the left of the image and the feet at the bottom."""
    standard = [view.apex_first and view.column @ FEET > 0.5 for view in views()]
    assert 0.64 < np.mean(standard) < 0.80
    assert 0.7 < np.mean([view.apex_first for view in views()]) < 0.92
    left = [
        abs(np.degrees(np.angle(-np.exp(1j * v.turn_rad)))) for v, usual in zip(views(), standard, strict=True) if usual
    ]
    assert np.mean(np.array(left) < 45) > 0.9


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_heart_is_mirrored(seed: int) -> None:
    """In the patient (to the right ventricle) x (to its anterior insertion) points to the base, whatever is stored."""
    scan = cmr.draw_scan(np.random.default_rng(seed))
    axes = [cmr._heart_axes(scan, *unit) for unit in ((np.ones(1), np.zeros(1)), (np.zeros(1), np.ones(1)))]
    u, v = (in_patient(scan.orientation, float(axes[0][k][0]), float(axes[1][k][0])) for k in (0, 1))
    assert np.cross(u, v) @ FORWARD > 0.8
    assert v @ np.array([0.0, -1.0, 1.0]) > 0  # the anterior insertion is in front and above
    views_ab = [cmr._standard_view(scan, *unit) for unit in ((np.ones(1), np.zeros(1)), (np.zeros(1), np.ones(1)))]
    a, b = (in_patient(scan.orientation, float(views_ab[0][k][0]), float(views_ab[1][k][0])) for k in (0, 1))
    assert b @ FEET > 0.5
    assert np.cross(a, b) @ FORWARD > 0.8


@pytest.mark.parametrize("seed", range(12))
def test_the_canonical_view_shows_the_standard(seed: int) -> None:
    """After ``canonical_stack`` the right ventricle lies on the left, and slices run from apex to base."""
    scan = small_mr_scan(seed)
    stack, labels = cmr.rendered_with_labels(small_subject(seed), scan, np.random.default_rng(seed))
    view = canonical_stack(stack)
    assert view.mirrored == (not scan.apex_first)
    shown = labels[list(view.slice_order)]
    shown = np.rot90(shown[..., ::-1] if view.mirrored else shown, view.quarter_turns, axes=(2, 3))
    sizes = (shown[:, 0] == LEFT_CAVITY).sum(axis=(1, 2))
    assert sizes[: len(sizes) // 2].sum() < sizes[len(sizes) // 2 :].sum()
    (down, right) = centroid(shown == RIGHT_CAVITY) - centroid(shown == LEFT_CAVITY)
    assert right < -0.4 * abs(down)  # the scanner's frame and the heart's direction vary


def centroid(mask_SPHW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean (row, column)."""
    return np.array([indices.mean() for indices in np.nonzero(mask_SPHW)[2:]])


def test_the_frame_follows_the_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without variation every stack is the standard one; with a share of one none is."""
    for name in ("AXIS_SD", "HEART_TURN_SD_DEG", "FRAME_TURN_SD_DEG", "OTHERWISE_STORED_SHARE"):
        monkeypatch.setattr(cmr_view, name, 0.0)
    first, second = (cmr_view.draw_view(np.random.default_rng(seed)) for seed in (1, 2))
    assert first.cosines() == second.cosines()
    assert abs(np.degrees(first.turn_rad)) > 165
    monkeypatch.setattr(cmr_view, "OTHERWISE_STORED_SHARE", 1.0)
    assert first.cosines() not in {cmr_view.draw_view(np.random.default_rng(seed)).cosines() for seed in range(50)}
    ways = {cmr_view.draw_view(np.random.default_rng(seed)).cosines() for seed in range(100)}
    assert len(ways) == 7


def blood_beside(stack: CineStack) -> tuple[float, float]:
    """Grey level 40 to 55 mm to the left and to the right of the left ventricle, one slice above the middle."""
    spec = CmrSpec(**json.loads(SPECS.read_text())["cmr"])
    located = locate_heart(stack, spec)
    row, column = (round(value) for value in located.centre_px)
    image = located.canonical.images_SPHW[located.mid_slice + 1, 0]
    near, far = (round(mm / located.canonical.spacing_mm[1]) for mm in (40, 55))
    rows = slice(row - 8, row + 8)
    return float(image[rows, column - far : column - near].mean()), float(
        image[rows, column + near : column + far].mean()
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_phantoms_have_blood_on_the_left(seed: int) -> None:
    """Left of the left ventricle there is the right one's blood, right of it lung."""
    left, right = blood_beside(cmr.rendered(small_subject(seed), small_mr_scan(seed), np.random.default_rng(seed)))
    assert left > 2 * right


@pytest.mark.sample_data
def test_real_hearts_have_blood_on_the_left(sample_data: Path) -> None:
    """The same holds of a real heart, so phantoms and real hearts lie the same way."""
    with tarfile.open(sample_data / "cmr" / "SCD0000301_SC-HF-I-4" / "dicom.tar.xz") as archive:
        files = [archive.extractfile(member) for member in archive if member.isfile()]
        stack = decode_cmr([io.BytesIO(file.read()) for file in files if file is not None])
    left, right = blood_beside(stack)
    assert left > 2 * right
