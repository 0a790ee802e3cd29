"""CMR preprocessing: however the stack is stored, the same heart, the right slice, the right phases, or a refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.canonical import APEX_TO_BASE, canonical_stack
from engines.preprocess.cmr import crop_pair, crop_slices, locate_heart, prepare_cmr, unit_range
from engines.preprocess.registry import Prepared
from engines.preprocess.resample import area_weights, centred_positions, linear_weights
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack, SourceInstance
from tests.doubles.hearts import restored, small_mr_scan, small_stack, small_subject
from training.phantoms.cmr import draw_scan, rendered
from training.phantoms.cycle import left_ventricle
from training.phantoms.subjects import draw_subject

SPEC = CmrSpec(**json.loads(Path(__file__).with_name("test_preprocess_specs.json").read_text())["cmr"])
SEEDS = (1, 2, 3)


@cache
def stack_of(seed: int) -> CineStack:
    """A phantom stack."""
    return small_stack(seed)


def refusal_of(stack: CineStack, **changes: Any) -> RefusalCode:
    """Code of the refusal that preparing ends in."""
    with pytest.raises(InputRefused) as caught:
        prepare_cmr(stack, SPEC.model_copy(update=changes))
    return caught.value.code


@cache
def prepared_of(seed: int) -> Prepared:
    """What preparing a phantom gives."""
    return prepare_cmr(stack_of(seed), SPEC)


def image_of(seed: int) -> np.ndarray:
    """The prepared image of a phantom."""
    return np.asarray(prepared_of(seed).arrays["image"])


def used(prepared: Prepared) -> tuple[int, int, int]:
    """(stored slice, end-diastole, end-systole) that were taken, from the placeholder UIDs of the phantom."""
    diastole, systole = ([int(part) for part in source.sop_instance_uid.split(".")[-2:]] for source in prepared.sources)
    assert diastole[0] == systole[0]
    return diastole[0], diastole[1], systole[1]


def off(one: int, other: int, phases: int) -> int:
    """Distance around the heart beat."""
    return min((one - other) % phases, (other - one) % phases)


@pytest.mark.parametrize("seed", SEEDS)
def test_end_diastole_and_end_systole_of_phantoms(seed: int) -> None:
    """Both phases agree with the truth, give or take one of twelve."""
    subject, scan = small_subject(seed), small_mr_scan(seed)
    _, diastole, systole = used(prepared_of(seed))
    assert off(diastole, 0, scan.phases) <= 1
    assert off(systole, round(subject.systole_fraction * scan.phases), scan.phases) <= 1


@pytest.mark.parametrize("seed", [300, 302, 304, 306])
def test_full_size_phantoms(seed: int) -> None:
    """At scanner resolution both phases lie within one of 20 to 30 and the centre within 4 mm of the ventricle's axis.

    Measured on the seeds 300 to 399 before they were chosen: phases 98 of 99, centre 99 of 99, one refused.
    """
    rng = np.random.default_rng(seed)
    subject, scan = draw_subject(rng), draw_scan(rng)
    located = locate_heart(rendered(subject, scan, rng), SPEC)
    assert off(located.phases.end_diastole, 0, scan.phases) <= 1
    assert off(located.phases.end_systole, round(subject.systole_fraction * scan.phases), scan.phases) <= 1
    centred = np.array(located.centre_px) - (scan.size_px - 1) / 2
    for _ in range(located.canonical.quarter_turns):  # back into the stored image
        centred = np.array([centred[1], -centred[0]])
    row_mm, column_mm = centred * scan.spacing_mm
    column_mm = -column_mm if located.canonical.mirrored else column_mm
    assert np.hypot(row_mm - scan.centre_mm[1], column_mm - scan.centre_mm[0]) < 4


@pytest.mark.parametrize("start", [0, 3, 7, 11])
def test_triggering_late_changes_nothing(start: int) -> None:
    """A stack whose first phase is not end-diastole gives the same phases of the heart beat: the cycle has no seam."""
    stack = stack_of(1)
    late = replace(
        stack,
        images_SPHW=np.roll(stack.images_SPHW, -start, axis=1),
        sources_SP=tuple(row[start:] + row[:start] for row in stack.sources_SP),
    )
    found = prepare_cmr(late, SPEC)
    assert used(found) == used(prepared_of(1))
    assert np.abs(found.arrays["image"] - image_of(1)).max() < 1e-6


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mid_slice(seed: int) -> None:
    """The slice lies 30 to 70 % of the way from apex to base, and its crop has the pool in the centre, bright on dark."""
    scan = small_mr_scan(seed)
    mid, _, _ = used(prepared_of(seed))
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


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_turned_images_give_turned_crops(turns: int, seed: int) -> None:
    """Images turned by quarters, with the orientation left as it was, give exactly the crops turned by quarters.

    Where the canonical view is mirrored, a turn to the left becomes one to the right.
    """
    stack = stack_of(seed)
    turned = replace(stack, images_SPHW=np.rot90(stack.images_SPHW, turns, axes=(2, 3)))
    expected = np.rot90(image_of(seed), -turns if canonical_stack(stack).mirrored else turns, axes=(2, 3))
    found = prepare_cmr(turned, SPEC)
    assert np.abs(found.arrays["image"] - expected).max() < 1e-6
    assert not np.array_equal(expected, image_of(seed))
    assert used(found) == used(prepared_of(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mirrored_image_gives_the_mirrored_crop(seed: int) -> None:
    """Columns in reverse, with the orientation left as it was, give the crop with columns in reverse."""
    stack = stack_of(seed)
    mirrored = replace(stack, images_SPHW=stack.images_SPHW[..., ::-1])
    across = -2 if canonical_stack(stack).quarter_turns % 2 else -1
    expected = np.flip(image_of(seed), axis=across)
    found = prepare_cmr(mirrored, SPEC)
    assert np.abs(found.arrays["image"] - expected).max() < 1e-6
    assert used(found) == used(prepared_of(seed))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_one_heart_stored_in_eight_ways_is_one_image(turns: int, mirrored: bool) -> None:
    """Turning and mirroring that the header states are undone, and the instances and pixels named are the same."""
    stack = stack_of(2)
    other = restored(stack, turns, mirrored)
    found = prepare_cmr(other, SPEC)
    assert np.abs(found.arrays["image"] - image_of(2)).max() < 1e-6
    assert used(found) == used(prepared_of(2))
    x0, y0, x1, y1 = found.region_px or (0, 0, 0, 0)
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
    x0, y0, x1, y1 = prepared_of(3).region_px or (0, 0, 0, 0)
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
    prepared = prepared_of(1)
    stored = {source for row in stack_of(1).sources_SP for source in row}
    assert len(prepared.sources) == 2
    assert all(isinstance(source, SourceInstance) and source in stored for source in prepared.sources)
    _, diastole, systole = used(prepared_of(1))
    assert f"end-diastole at phase {diastole + 1}, end-systole at phase {systole + 1} of 12" in prepared.notes[0]


def test_serving_and_training_cut_the_same_crop() -> None:
    """``prepare_cmr`` is locating, cropping and scaling; a wider crop holds the narrow one in its middle."""
    located = locate_heart(stack_of(1), SPEC)
    narrow, wide = crop_pair(located, SPEC, SPEC.size_px), crop_pair(located, SPEC, SPEC.size_px + 20)
    assert np.array_equal(unit_range(narrow, SPEC), image_of(1)[0])
    assert wide[:, 10:-10, 10:-10] == pytest.approx(narrow)
    assert wide.dtype == np.float64
    assert wide.max() > 10  # stored grey values


def test_crops_of_the_whole_stack() -> None:
    """Any slices and phases are cropped about the same axis; the pair is one slice of them."""
    located = locate_heart(stack_of(1), SPEC)
    slices, phases = range(located.first_slice, located.last_slice + 1), (0, located.phases.end_systole)
    crops = crop_slices(located, SPEC, 40, slices, phases)
    assert crops.shape == (len(slices), 2, 40, 40)
    mid = crops[located.mid_slice - located.first_slice, 1]
    assert np.array_equal(mid, crop_pair(located, SPEC, 40)[1])


def test_what_locating_says() -> None:
    """Indices lie in order, the area is largest at end-diastole and smallest at end-systole."""
    located = locate_heart(stack_of(1), SPEC)
    assert 0 <= located.first_slice < located.mid_slice < located.last_slice < len(stack_of(1).images_SPHW)
    area_mm2 = located.phases.area_mm2
    assert area_mm2.shape == stack_of(1).images_SPHW.shape[1:2]
    assert area_mm2.argmax() == located.phases.end_diastole
    assert area_mm2.argmin() == located.phases.end_systole


def test_a_crop_without_contrast_is_refused() -> None:
    """One grey everywhere cannot be scaled to 0..1."""
    with pytest.raises(InputRefused) as caught:
        unit_range(np.full((2, 8, 8), 7.0), SPEC)
    assert caught.value.code is RefusalCode.HEART_NOT_FOUND


def test_slices_along_the_heart_are_refused() -> None:
    """A stack whose plane holds the heart's long axis is no short-axis stack, although it beats and is parallel."""
    row, column = np.array(stack_of(1).orientation[:3]), np.array(stack_of(1).orientation[3:])
    along = tuple(float(value) for value in (*np.cross(row, column), *column))
    assert refusal_of(replace(stack_of(1), orientation=along)) is RefusalCode.NO_SHORT_AXIS_CINE  # type: ignore[arg-type]


def test_a_heart_in_two_slices_of_many_is_refused() -> None:
    """A ventricle of 20 mm is none: what beats in so few slices is something else."""
    images = stack_of(1).images_SPHW.copy()
    rows = np.arange(len(images))
    images[np.abs(rows - len(images) // 2) > 1] = 5
    assert refusal_of(replace(stack_of(1), images_SPHW=images)) is RefusalCode.HEART_NOT_FOUND


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
