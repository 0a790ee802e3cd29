"""Volumes for an embedding: detected phases, slices between apex and base, one way to lie, or a refusal with its reason.

Tests named after a defect check that the one of this number in the published code is not ours.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.cmr import LocatedHeart, crop_slices, locate_heart
from engines.preprocess.cmr_volume import (
    CmrVolumeSpec,
    beat_phases,
    check_quality,
    outside_fraction,
    prepare_volumes,
    slice_grid,
    slice_heights_mm,
)
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack
from tests.doubles.hearts import restored, small_mr_scan, small_stack, small_subject
from training.phantoms.cmr import rendered_with_labels
from training.phantoms.cmr_paint import LEFT_CAVITY
from training.phantoms.cycle import left_ventricle

HEART = CmrSpec(
    **json.loads(Path(__file__).with_name("test_preprocess_specs.json").read_text())["cmr"]
    | {"size_px": 32, "pixel_spacing_mm": 5.0}
)
SPEC = CmrVolumeSpec(
    kind="cmr_volume",
    preprocess_version=1,
    heart=HEART,
    slices=12,
    slice_distance_mm=10.0,
    phases=6,
    ventricle_slices_min=6,
    slice_gap_max=1.5,
    outside_fraction_max=0.15,
)
SEEDS = (1, 2, 3)


@cache
def stack_of(seed: int) -> CineStack:
    """A phantom stack of 12 phases."""
    return small_stack(seed)


@cache
def arrays_of(seed: int) -> dict[str, np.ndarray]:
    """What preparing a phantom gives."""
    return {name: np.asarray(array) for name, array in prepare_volumes(stack_of(seed), SPEC).arrays.items()}


@cache
def located_of(seed: int) -> LocatedHeart:
    """Where its heart lies."""
    return locate_heart(stack_of(seed), HEART)


def refusal_of(stack: CineStack, **changes: Any) -> InputRefused:
    """The refusal that preparing ends in."""
    with pytest.raises(InputRefused) as caught:
        prepare_volumes(stack, SPEC.model_copy(update=changes))
    return caught.value


@pytest.mark.parametrize("seed", SEEDS)
def test_the_arrays(seed: int) -> None:
    """Shapes as the spec says; mean 0 and spread 1 over what counts; the rest is one background, the darkest value."""
    arrays = arrays_of(seed)
    volumes, mask, cine = arrays["volumes"][0], arrays["slice_mask"][0].astype(bool), arrays["cine"][0]
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "volumes": (np.float32, (1, 2, 12, 32, 32)),
        "slice_mask": (np.float32, (1, 12)),
        "cine": (np.float32, (1, 1, 6, 32, 32)),
    }
    assert volumes[:, mask].mean() == pytest.approx(0, abs=1e-4)
    assert volumes[:, mask].std() == pytest.approx(1, abs=1e-3)
    assert np.ptp(volumes[:, ~mask]) == 0
    assert volumes[0, ~mask][0, 0, 0] == pytest.approx(volumes.min(), abs=1e-5)
    assert volumes.min() >= cine.min() - 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_defect_2_end_systole_is_detected(seed: int) -> None:
    """The second volume is the phase of the smallest cavity, within a phase of the truth, not the half of the beat."""
    located, stack = located_of(seed), stack_of(seed)
    phases = stack.images_SPHW.shape[1]
    truth = round(small_subject(seed).systole_fraction * phases)
    end_systole = located.phases.end_systole
    assert end_systole == int(located.phases.area_mm2.argmin())
    assert abs(end_systole - truth) <= 1
    volumes = arrays_of(seed)["volumes"][0]
    grid = slice_grid(located, slice_heights_mm(stack, located), SPEC)
    for volume, phase in zip(volumes, (located.phases.end_diastole, end_systole), strict=True):
        crops_DP = crop_slices(located, HEART, 32, grid.indices.tolist(), range(phases))[grid.mask]
        alike = [np.corrcoef(volume[grid.mask].ravel(), crops_DP[:, each].ravel())[0, 1] for each in range(phases)]
        assert int(np.argmax(alike)) == phase


@pytest.mark.parametrize("start", [3, 7])
def test_triggering_late_changes_nothing(start: int) -> None:
    """A stack that begins in the middle of the beat gives the same arrays: no frame is taken by its number."""
    stack = stack_of(1)
    late = replace(stack, images_SPHW=np.roll(stack.images_SPHW, -start, axis=1))
    found = prepare_volumes(late, SPEC).arrays
    for name, array in arrays_of(1).items():
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_one_heart_stored_in_eight_ways_is_one_volume(turns: int, mirrored: bool) -> None:
    """Turning and mirroring that the header states are undone in every array, apex first."""
    found = prepare_volumes(restored(stack_of(2), turns, mirrored), SPEC).arrays
    for name, array in arrays_of(2).items():
        assert np.abs(found[name] - array).max() < 1e-5


def test_oblong_images_are_no_exception() -> None:
    """Fewer columns than rows, or rows than columns, give the same crop: width and height are not taken for each other."""
    stack = stack_of(1)
    for axis in (2, 3):
        cut = np.delete(stack.images_SPHW, np.s_[-6:], axis=axis)
        found = prepare_volumes(replace(stack, images_SPHW=cut), SPEC.model_copy(update={"outside_fraction_max": 0.5}))
        mask = arrays_of(1)["slice_mask"][0].astype(bool)
        middle = np.s_[0, :, mask, 8:24, 8:24]
        assert (
            np.corrcoef(found.arrays["volumes"][middle].ravel(), arrays_of(1)["volumes"][middle].ravel())[0, 1] > 0.99
        )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("distance_mm", [8.0, 10.0])
def test_slices_lie_between_apex_and_base(seed: int, distance_mm: float) -> None:
    """Every place that counts shows the cavity (one border slice may not), and they cover the true length within 1.5 slices."""
    subject, scan = small_subject(seed), small_mr_scan(seed, slice_distance_mm=distance_mm)
    stack, labels_SPHW = rendered_with_labels(subject, scan, np.random.default_rng(seed))
    located = locate_heart(stack, HEART)
    grid = slice_grid(located, slice_heights_mm(stack, located), SPEC)
    shown = (labels_SPHW[:, located.phases.end_diastole] == LEFT_CAVITY).any(axis=(1, 2))
    shown = shown[list(located.canonical.slice_order)]
    assert (~shown[grid.indices[grid.mask]]).sum() <= 1
    length_mm = float(left_ventricle(subject, np.zeros(1)).length_mm[0])
    assert grid.mask.sum() * SPEC.slice_distance_mm == pytest.approx(length_mm, abs=18)
    assert np.all(np.diff(grid.indices[grid.mask]) >= 0)
    assert grid.indices[(SPEC.slices - 1) // 2] == located.mid_slice


def test_a_grid_as_fine_as_the_stack_takes_every_slice_once() -> None:
    """Where the distances agree, the places that count hold the ventricle's slices in order, none twice and none left out."""
    located, stack = located_of(1), stack_of(1)
    grid = slice_grid(located, slice_heights_mm(stack, located), SPEC)
    assert grid.indices[grid.mask].tolist() == list(range(located.first_slice, located.last_slice + 1))
    assert grid.cut == 0
    short = slice_grid(located, slice_heights_mm(stack, located), SPEC.model_copy(update={"slices": 5}))
    assert short.mask.all()
    assert short.cut == located.last_slice - located.first_slice + 1 - 5
    notes = prepare_volumes(stack, SPEC.model_copy(update={"slices": 5})).notes
    assert notes[-1].startswith(f"{short.cut} slices of the ventricle lie beyond")


def test_the_cine_begins_at_end_diastole_and_covers_the_beat() -> None:
    """Phases are evenly spread over one beat from end-diastole on, whichever number they have."""
    located = located_of(1)
    phases = beat_phases(located, 6)
    assert phases == [(located.phases.end_diastole + step) % 12 for step in (0, 2, 4, 6, 8, 10)]
    assert len(set(beat_phases(located, 12))) == 12
    cine, volumes = arrays_of(1)["cine"][0, 0], arrays_of(1)["volumes"][0]
    assert np.abs(cine[0] - volumes[0, (SPEC.slices - 1) // 2]).max() < 1e-5


def test_heights_follow_their_slices() -> None:
    """Unevenly spaced slices have the same heights from the apex whichever way the stack is stored."""
    stack = stack_of(2)
    uneven = replace(
        stack, slice_positions_mm=stack.slice_positions_mm + np.arange(len(stack.slice_positions_mm)) ** 2 / 9
    )
    heights = [
        slice_heights_mm(each, locate_heart(each, HEART)) for each in (uneven, restored(uneven, 0, mirrored=True))
    ]
    assert heights[0] == pytest.approx(heights[1])
    assert np.ptp(np.diff(heights[0])) > 1
    assert np.all(np.diff(heights[0]) > 0)


def without(stack: CineStack, *slices: int) -> CineStack:
    """The stack with slices lost."""
    kept = [index for index in range(len(stack.images_SPHW)) if index not in slices]
    return replace(
        stack,
        images_SPHW=stack.images_SPHW[kept],
        slice_positions_mm=stack.slice_positions_mm[kept],
        trigger_times_ms=stack.trigger_times_ms[kept],
        sources_SP=tuple(stack.sources_SP[index] for index in kept),
    )


def test_a_missing_slice_is_refused() -> None:
    """A hole in the middle of the ventricle is no shorter ventricle."""
    stack, located = stack_of(1), located_of(1)
    lost = located.canonical.slice_order[located.mid_slice + 2]
    refusal = refusal_of(without(stack, lost), ventricle_slices_min=4)
    assert refusal.code is RefusalCode.TOO_FEW_SLICES
    assert "20.0 mm apart, the others 10.0 mm" in refusal.reason


def test_a_short_ventricle_is_refused_and_never_padded_with_other_slices() -> None:
    """Fewer slices than asked are a refusal; nothing is taken from the other end of the stack instead."""
    held = located_of(1).last_slice - located_of(1).first_slice + 1
    refusal = refusal_of(stack_of(1), ventricle_slices_min=held + 1)
    assert refusal.code is RefusalCode.TOO_FEW_SLICES
    assert f"lies in {held} slices; expected at least {held + 1}" in refusal.reason


def test_a_heart_at_the_edge_is_refused() -> None:
    """Where the field of view cuts the heart off, it says by how much."""
    located = located_of(1)
    height_mm = slice_heights_mm(stack_of(1), located)
    assert outside_fraction(located, HEART) < 0.15
    moved = replace(located, centre_px=(2.0, located.centre_px[1]))
    assert outside_fraction(moved, HEART) == pytest.approx(0.5 - 2.5 * 3.0 / 160, abs=0.12)
    with pytest.raises(InputRefused, match=r"of the heart's region lies outside the image"):
        check_quality(moved, height_mm, SPEC)


def test_a_region_without_contrast_is_refused() -> None:
    """Grey that is cut to nothing is no image."""
    with pytest.raises(InputRefused, match="no contrast"):
        prepare_volumes(
            stack_of(1), SPEC.model_copy(update={"heart": HEART.model_copy(update={"percentile_low": 99.9})})
        )


def test_every_parameter_is_stated() -> None:
    """A spec that lacks a field, or has one more, is refused: no default at serving."""
    fields = SPEC.model_dump(mode="json")
    assert CmrVolumeSpec(**fields) == SPEC
    for name in fields:
        with pytest.raises(ValidationError):
            CmrVolumeSpec(**{key: value for key, value in fields.items() if key != name})
    with pytest.raises(ValidationError):
        CmrVolumeSpec(**fields, end_systole=25)
