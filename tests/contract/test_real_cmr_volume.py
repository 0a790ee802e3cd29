"""The volumes of two real patients against the contours of experts: detected phases, chosen slices, one way to lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.preprocess.cmr import locate_heart
from engines.preprocess.cmr_volume import CmrVolumeSpec, prepare_volumes, slice_grid, slice_heights_mm
from engines.records import CineStack
from tests.doubles.hearts import restored, small_stack
from training.data.sources.expert_contours import ExpertStudy, read_expert_study
from training.recipes.enf_small import preprocess

SUBJECTS = ("SCD0000101_SC-HF-I-1", "SCD0000301_SC-HF-I-4")
SPEC = CmrVolumeSpec(
    kind="cmr_volume",
    preprocess_version=1,
    heart=preprocess(size_px=56).model_copy(update={"pixel_spacing_mm": 3.0}),
    slices=12,
    slice_distance_mm=10.0,
    phases=16,
    ventricle_slices_min=6,
    slice_gap_max=1.5,
    outside_fraction_max=0.15,
)


@pytest.fixture(scope="module", params=SUBJECTS)
def study(request: pytest.FixtureRequest, sample_data: Path) -> ExpertStudy:
    """One subject with contours."""
    return read_expert_study(sample_data / "cmr" / request.param)


def test_phases_and_slices_are_those_of_the_experts(study: ExpertStudy) -> None:
    """End-diastole and end-systole within a phase of the experts', neither frame 0 nor T // 2; slices within one of theirs."""
    located = locate_heart(study.stack, SPEC.heart)
    phases = study.stack.images_SPHW.shape[1]
    for found, drawn in (
        (located.phases.end_diastole, study.end_diastole),
        (located.phases.end_systole, study.end_systole),
    ):
        assert min((found - drawn) % phases, (drawn - found) % phases) <= 1
    assert study.end_systole != phases // 2
    assert study.end_diastole != 0
    grid = slice_grid(located, slice_heights_mm(study.stack, located), SPEC)
    order = list(located.canonical.slice_order)
    drawn_slices = [
        order.index(contour.slice_index) for contour in study.contours if contour.phase == study.end_diastole
    ]
    held = grid.indices[grid.mask]
    assert abs(int(held[0]) - min(drawn_slices)) <= 1
    assert abs(int(held[-1]) - max(drawn_slices)) <= 1


def test_a_real_stack_stored_otherwise_is_the_same_volume(study: ExpertStudy) -> None:
    """Mirrored and turned by a quarter, with an orientation that says so, every array comes out as before."""
    before = prepare_volumes(study.stack, SPEC).arrays
    after = prepare_volumes(restored(study.stack, 1, mirrored=True), SPEC).arrays
    assert before["slice_mask"].sum() >= 6
    for name, array in before.items():
        assert np.abs(after[name] - array).max() < 1e-4


def left_less_right(stack: CineStack) -> float:
    """Brightness beside the left ventricle at end-diastole: left of the image less right, in standard deviations."""
    arrays = prepare_volumes(stack, SPEC.model_copy(update={"ventricle_slices_min": 4})).arrays
    bright_SS = arrays["volumes"][0, 0][arrays["slice_mask"][0] > 0].mean(axis=0)
    return float(bright_SS[18:38, 6:18].mean() - bright_SS[18:38, 38:50].mean())


def test_the_right_ventricle_lies_where_it_lies_in_phantoms(study: ExpertStudy) -> None:
    """On the left of the image there is blood, on the right there is lung, in patients as in phantoms."""
    assert left_less_right(study.stack) > 0.3
    assert left_less_right(small_stack(1)) > 0.3
