"""CMR preprocessing: however the stack is stored, the same heart, the right slice, the right phases, or a refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.canonical import APEX_TO_BASE, canonical_stack
from engines.preprocess.cmr import prepare_cmr
from engines.preprocess.resample import area_weights, centred_positions, linear_weights
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack, SourceInstance
from tests.doubles.hearts import small_mr_scan, small_stack, small_subject
from training.phantoms.cycle import left_ventricle

SPEC = CmrSpec(**json.loads(Path(__file__).with_name("test_preprocess_specs.json").read_text())["cmr"])
SEEDS = (1, 2, 3)


@cache
def stack_of(seed: int) -> CineStack:
    """A phantom stack."""
    return small_stack(seed)


@cache
def image_of(seed: int) -> np.ndarray:
    """The prepared image of a phantom."""
    return np.asarray(prepare_cmr(stack_of(seed), SPEC).arrays["image"])


def refusal_of(stack: CineStack, **changes: Any) -> RefusalCode:
    """Code of the refusal that preparing ends in."""
    with pytest.raises(InputRefused) as caught:
        prepare_cmr(stack, SPEC.model_copy(update=changes))
    return caught.value.code


def phases_used(stack: CineStack) -> tuple[int, int, int]:
    """(stored slice, end-diastole, end-systole) that were taken, from the placeholder UIDs of the phantom."""
    diastole, systole = (
        [int(part) for part in source.sop_instance_uid.split(".")[-2:]] for source in prepare_cmr(stack, SPEC).sources
    )
    assert diastole[0] == systole[0]
    return diastole[0], diastole[1], systole[1]


def off(one: int, other: int, phases: int) -> int:
    """Distance around the heart beat."""
    return min((one - other) % phases, (other - one) % phases)


@pytest.mark.parametrize("seed", SEEDS)
def test_end_diastole_and_end_systole_of_phantoms(seed: int) -> None:
    """Both phases agree with the truth, give or take one of twelve."""
    subject, scan = small_subject(seed), small_mr_scan(seed)
    _, diastole, systole = phases_used(stack_of(seed))
    assert off(diastole, 0, scan.phases) <= 1
    assert off(systole, round(subject.systole_fraction * scan.phases), scan.phases) <= 1


@pytest.mark.parametrize("start", [0, 3, 7, 11])
def test_triggering_late_changes_nothing(start: int) -> None:
    """A stack whose first phase is not end-diastole gives the same phases of the heart beat: the cycle has no seam."""
    stack = stack_of(1)
    late = replace(
        stack,
        images_SPHW=np.roll(stack.images_SPHW, -start, axis=1),
        sources_SP=tuple(row[start:] + row[:start] for row in stack.sources_SP),
    )
    assert phases_used(late) == phases_used(stack)
    assert np.array_equal(prepare_cmr(late, SPEC).arrays["image"], image_of(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mid_slice(seed: int) -> None:
    """The slice lies 30 to 70 % of the way from apex to base, and its crop has the pool in the centre, bright on dark."""
    scan, stack = small_mr_scan(seed), stack_of(seed)
    mid, _, _ = phases_used(stack)
    length_mm = float(left_ventricle(small_subject(seed), np.zeros(1)).length_mm[0])
    from_apex_mm = (mid - 0.55) * scan.slice_distance_mm  # the first slice lies 0.2 to 0.9 distances before the apex
    assert 0.3 < from_apex_mm / length_mm < 0.7
    diastole = image_of(seed)[0, 0]
    centre = SPEC.size_px // 2
    pool = diastole[centre - 3 : centre + 3, centre - 3 : centre + 3].mean()
    rows, columns = np.indices(diastole.shape)
    distance_mm = np.hypot(rows - centre + 0.5, columns - centre + 0.5) * SPEC.pixel_spacing_mm
    rings = [diastole[(distance_mm >= r) & (distance_mm < r + 3)].mean() for r in range(18, 45, 3)]
    assert pool > min(rings) + 0.25


@pytest.mark.parametrize("seed", SEEDS)
def test_the_array(seed: int) -> None:
    """float32 [1, 2, S, S] from 0 to 1, end-diastole with the larger pool first."""
    image = image_of(seed)
    assert image.shape == (1, 2, SPEC.size_px, SPEC.size_px)
    assert image.dtype == np.float32
    assert (image.min(), image.max()) == (0, 1)
    middle = image[0, :, 24:72, 24:72]
    assert middle[0].sum() > middle[1].sum()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(turns=st.integers(0, 3), seed=st.sampled_from(SEEDS))
def test_turned_images_give_turned_crops(turns: int, seed: int) -> None:
    """Images turned by quarters, with the orientation left as it was, give exactly the crops turned by quarters.

    The canonical view of the phantoms is mirrored, so that a turn to the left becomes one to the right.
    """
    stack = stack_of(seed)
    assert canonical_stack(stack).mirrored
    turned = replace(stack, images_SPHW=np.rot90(stack.images_SPHW, turns, axes=(2, 3)))
    expected = np.rot90(image_of(seed), -turns, axes=(2, 3))
    found = prepare_cmr(turned, SPEC).arrays["image"]
    assert np.abs(found - expected).max() < 1e-5
    assert phases_used(turned) == phases_used(stack)


def restored(stack: CineStack, turns: int, mirrored: bool) -> CineStack:
    """The same heart as another scanner stores it: turned or mirrored images with the orientation that says so."""
    row, column = np.array(stack.orientation[:3]), np.array(stack.orientation[3:])
    images, positions, sources = stack.images_SPHW, stack.slice_positions_mm, stack.sources_SP
    for _ in range(turns):
        images, row, column = np.rot90(images, axes=(2, 3)), column, -row
    if mirrored:
        images, row = images[::-1, :, :, ::-1], -row
        positions, sources = -positions[::-1], sources[::-1]
    orientation = tuple(float(value) for value in (*row, *column))
    return replace(
        stack,
        images_SPHW=images,
        orientation=orientation,
        slice_positions_mm=positions,
        sources_SP=sources,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_one_heart_stored_in_eight_ways_is_one_image(turns: int, mirrored: bool) -> None:
    """Turning and mirroring that the header states are undone, and the instances and pixels named are the same."""
    stack = stack_of(2)
    other = restored(stack, turns, mirrored)
    assert np.abs(prepare_cmr(other, SPEC).arrays["image"] - image_of(2)).max() < 1e-5
    assert phases_used(other) == phases_used(stack)
    x0, y0, x1, y1 = prepare_cmr(other, SPEC).region_px or (0, 0, 0, 0)
    assert 0 <= x0 < x1 <= other.images_SPHW.shape[3]
    assert 0 <= y0 < y1 <= other.images_SPHW.shape[2]


def test_the_view_runs_from_apex_to_base() -> None:
    """Whichever way a stack is stored, its canonical normal points to the base and its columns to the feet."""
    for turns in range(4):
        for mirrored in (False, True):
            other = restored(stack_of(1), turns, mirrored)
            view = canonical_stack(other)
            normal = np.cross(other.orientation[:3], other.orientation[3:]) * (-1 if view.mirrored else 1)
            assert normal @ APEX_TO_BASE > 0
            assert view.slice_order == tuple(range(len(other.images_SPHW)))[:: -1 if view.mirrored else 1]


def test_the_region_holds_the_crop() -> None:
    """The named pixels of the stored image cover the crop's side in millimetres, within the image."""
    stack = stack_of(3)
    x0, y0, x1, y1 = prepare_cmr(stack, SPEC).region_px or (0, 0, 0, 0)
    side_px = SPEC.size_px * SPEC.pixel_spacing_mm / stack.spacing_mm[0]
    assert x1 - x0 <= side_px + 1
    assert (x1 - x0) * (y1 - y0) > 0.6 * side_px**2


def test_noise_has_no_heart() -> None:
    """A stack of noise is refused."""
    noise = np.random.default_rng(3).integers(0, 2000, stack_of(1).images_SPHW.shape).astype(np.uint16)
    assert refusal_of(replace(stack_of(1), images_SPHW=noise)) is RefusalCode.HEART_NOT_FOUND


def still(stack: CineStack) -> np.ndarray:
    """The first phase, again and again."""
    return np.repeat(stack.images_SPHW[:, :1], stack.images_SPHW.shape[1], axis=1)


def test_a_still_heart_is_not_found() -> None:
    """A heart that does not beat is refused, although noise moves."""
    noise = np.random.default_rng(4).normal(0, 20, stack_of(1).images_SPHW.shape)
    noisy = np.clip(still(stack_of(1)) + noise, 0, 65535).astype(np.uint16)
    assert refusal_of(replace(stack_of(1), images_SPHW=noisy)) is RefusalCode.HEART_NOT_FOUND


def test_one_image_repeated_is_not_a_cine() -> None:
    """A cine whose phases are one and the same image is refused."""
    assert refusal_of(replace(stack_of(1), images_SPHW=still(stack_of(1)))) is RefusalCode.HEART_NOT_FOUND


def test_a_black_stack_has_no_heart() -> None:
    """Zeros are refused, not divided by."""
    assert (
        refusal_of(replace(stack_of(1), images_SPHW=np.zeros_like(stack_of(1).images_SPHW)))
        is RefusalCode.HEART_NOT_FOUND
    )


def test_small_stacks_are_refused() -> None:
    """Fewer slices or phases than the spec asks for are named as such."""
    slices, phases = stack_of(1).images_SPHW.shape[:2]
    assert refusal_of(stack_of(1), slices_min=slices + 1) is RefusalCode.TOO_FEW_SLICES
    assert refusal_of(stack_of(1), phases_min=phases + 1) is RefusalCode.TOO_FEW_PHASES


def test_the_crop_may_reach_beyond_the_image() -> None:
    """A crop larger than the image is filled with black, not with repeated borders."""
    image = prepare_cmr(stack_of(1), SPEC.model_copy(update={"size_px": 256})).arrays["image"]
    assert image[..., :20, :20].max() == 0


def test_evidence_and_note() -> None:
    """The sources are the images of end-diastole and end-systole; the note counts slices and phases from one."""
    prepared = prepare_cmr(stack_of(1), SPEC)
    stored = {source for row in stack_of(1).sources_SP for source in row}
    assert len(prepared.sources) == 2
    assert all(isinstance(source, SourceInstance) and source in stored for source in prepared.sources)
    _, diastole, systole = phases_used(stack_of(1))
    assert f"end-diastole at phase {diastole + 1}, end-systole at phase {systole + 1} of 12" in prepared.notes[0]


@given(length=st.integers(3, 40), size=st.integers(1, 30), start=st.floats(0, 3), width=st.floats(5, 50))
def test_area_weights_keep_the_mean(length: int, size: int, start: float, width: float) -> None:
    """Each cell averages the pixels under it; together the cells hold what lies between the edges."""
    weights = area_weights(size, length, start, start + width)
    inside = max(0.0, min(length, start + width) - min(length, start))
    assert weights.sum() * width / size == pytest.approx(inside, rel=1e-4, abs=1e-4)
    assert weights.min() >= 0


@given(length=st.integers(4, 40), count=st.integers(2, 20), step=st.floats(0.2, 4))
def test_linear_weights_are_symmetric(length: int, count: int, step: float) -> None:
    """About the centre the weights mirror themselves, and inside the image they reproduce a straight line."""
    centre = (length - 1) / 2
    positions = centred_positions(count, centre, step)
    weights = linear_weights(positions, length, step)
    assert weights == pytest.approx(weights[::-1, ::-1], abs=1e-12)
    margin = max(step, 1)
    inner = (positions > margin) & (positions < length - 1 - margin)
    assert (weights @ np.arange(length))[inner] == pytest.approx(positions[inner], abs=0.51)
