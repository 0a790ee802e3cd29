"""NIfTI cines: geometry from the affine alone, handedness included; nothing guessed."""

from __future__ import annotations

import dataclasses
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.canonical import canonical_stack
from engines.records import CineStack, SourceInstance
from training.data.sources.cmr_studies import CmrOptions, open_cmr_studies
from training.data.sources.nifti_cmr import stack_from_nifti

SOURCE = SourceInstance(sop_class_uid="1.2", sop_instance_uid="1.3", series_instance_uid="1.4")
SLICES, PHASES, ROWS, COLUMNS = 6, 9, 7, 5
FRAME_MS = 31.25


def cine(seed: int = 0, *, left_handed: bool = False) -> CineStack:
    """An oblique stack of noise, no two axes alike; the normal points to the apex where left-handed is asked for."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    a, b, c, d, e, f = (float(value) for value in turn[:, :2].T.ravel())
    row, column = np.array([a, b, c]), np.array([d, e, f])
    column = -column if (np.cross(row, column) @ [-1, 1, 1] < 0) != left_handed else column
    return CineStack(
        images_SPHW=rng.integers(0, 4096, (SLICES, PHASES, ROWS, COLUMNS)).astype(np.uint16),
        spacing_mm=(1.5, 1.25),
        slice_positions_mm=-20.0 + 9.5 * np.arange(SLICES),
        trigger_times_ms=np.tile(FRAME_MS * np.arange(PHASES), (SLICES, 1)),
        orientation=(a, b, c, *(float(value) for value in column)),  # type: ignore[arg-type]
        sources_SP=((SOURCE,) * PHASES,) * SLICES,
    )


def nifti(stack: CineStack, *, order: tuple[int, int, int] = (0, 1, 2), flips: tuple[int, ...] = ()) -> Any:
    """The stack as a NIfTI image, axes permuted and flipped with the affine following, as converters store it."""
    row, column = np.array(stack.orientation[:3]), np.array(stack.orientation[3:])
    normal = np.cross(row, column)
    step_mm = float(stack.slice_positions_mm[1] - stack.slice_positions_mm[0])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * stack.spacing_mm[1], column * stack.spacing_mm[0], normal * step_mm], axis=1)
    affine[:3, 3] = 17.0 * row - 4.0 * column + stack.slice_positions_mm[0] * normal
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # patient coordinates of DICOM to those of NIfTI
    values_IJKT = stack.images_SPHW.transpose(3, 2, 0, 1)
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (values_IJKT.shape[axis] - 1)
        affine[:3, axis] *= -1
        values_IJKT = np.flip(values_IJKT, axis)
    affine[:3, :3] = affine[:3, list(order)]
    image = nibabel.Nifti1Image(np.ascontiguousarray(values_IJKT.transpose(*order, 3)), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = FRAME_MS / 1000
    return image


def write(path: Path, image: Any) -> Path:
    """Save an image, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def labels(root: Path, text: str = "id,lvef_percent\na,35\nb,60\n") -> None:
    """The table of labels."""
    (root / "labels.csv").write_text(text)


def assert_equal(found: CineStack, expected: CineStack) -> None:
    """Pixels exactly, geometry and time within the single precision of the header."""
    assert found.images_SPHW.dtype == expected.images_SPHW.dtype
    assert np.array_equal(found.images_SPHW, expected.images_SPHW)
    assert found.spacing_mm == pytest.approx(expected.spacing_mm, abs=1e-5)
    assert found.orientation == pytest.approx(expected.orientation, abs=1e-6)
    assert found.slice_positions_mm == pytest.approx(expected.slice_positions_mm, abs=1e-4)
    assert found.trigger_times_ms == pytest.approx(expected.trigger_times_ms, abs=1e-3)


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_stack_comes_back_as_it_was_written(tmp_path: Path, seed: int, *, left_handed: bool) -> None:
    """Pixels, orientation, spacing, positions and times survive the file, whichever way the normal points."""
    stack = cine(seed, left_handed=left_handed)
    assert_equal(stack_from_nifti(write(tmp_path / "sa.nii.gz", nifti(stack))), stack)


@settings(max_examples=24, deadline=None)
@given(
    flips=st.lists(st.integers(0, 2), unique=True, max_size=3),
    order=st.sampled_from([(0, 1, 2), (1, 0, 2)]),
    left_handed=st.booleans(),
)
def test_any_way_of_storing_gives_the_same_canonical_heart(
    tmp_path_factory: pytest.TempPathFactory, flips: list[int], order: tuple[int, int, int], *, left_handed: bool
) -> None:
    """Flipped, transposed or base to apex: the canonical view has the pixels of the original, never its mirror image."""
    stack = cine(5, left_handed=left_handed)
    image = nifti(stack, order=order, flips=tuple(flips))
    found = stack_from_nifti(write(tmp_path_factory.mktemp("way") / "sa.nii", image))
    assert np.array_equal(canonical_stack(found).images_SPHW, canonical_stack(stack).images_SPHW)
    assert canonical_stack(found).spacing_mm == pytest.approx(canonical_stack(stack).spacing_mm)
    assert np.diff(found.slice_positions_mm) == pytest.approx(9.5, abs=1e-4)


def test_slices_stored_base_to_apex_are_put_in_order(tmp_path: Path) -> None:
    """A file whose slices run against the normal gives the stack of the one whose slices run along it."""
    stack = cine(2)
    assert_equal(stack_from_nifti(write(tmp_path / "sa.nii", nifti(stack, flips=(2,)))), stack)


def test_both_places_of_a_file_are_found(tmp_path: Path) -> None:
    """``<id>/sa.nii.gz`` and ``<id>.nii.gz`` may stand side by side; the set travels to worker processes."""
    stack = cine()
    write(tmp_path / "a" / "sa.nii.gz", nifti(stack))
    write(tmp_path / "b.nii.gz", nifti(stack))
    write(tmp_path / "c.nii", nifti(stack))
    labels(tmp_path)
    studies = pickle.loads(pickle.dumps(open_cmr_studies(tmp_path)))
    assert (studies.name, studies.keys, len(studies)) == ("NIfTI", ("a", "b"), 2)
    for key, lvef_percent in (("a", 35.0), ("b", 60.0)):
        study = studies.read(key)
        assert (study.key, study.lvef_percent) == (key, lvef_percent)
        assert_equal(study.stack, stack)
    write(tmp_path / "a.nii", nifti(stack))
    with pytest.raises(ValueError, match="1 studies have two NIfTI files"):
        open_cmr_studies(tmp_path)


@pytest.mark.parametrize(
    ("value", "unit", "expected_ms"),
    [(0.03, "sec", 30.0), (30, "msec", 30.0), (30_000, "usec", 30.0), (0.03, "unknown", 30.0), (30, "unknown", 30.0)],
)
def test_the_time_between_phases_is_read_in_its_unit(
    tmp_path: Path, value: float, unit: str, expected_ms: float
) -> None:
    """Seconds, milliseconds and microseconds; without a unit the one that makes a cine of it."""
    image = nifti(cine())
    image.header["pixdim"][4] = value
    image.header.set_xyzt_units("mm", unit)
    found = stack_from_nifti(write(tmp_path / "sa.nii", image))
    assert found.trigger_times_ms[3] == pytest.approx(expected_ms * np.arange(PHASES), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "unit"),
    [(0, "sec"), (1, "sec"), (1, "unknown"), (30, "sec"), (0.03, "msec"), (0.03, "hz"), (np.nan, "sec")],
)
def test_no_time_between_phases_is_a_refusal_that_an_option_cures(tmp_path: Path, value: float, unit: str) -> None:
    """Absent, a filler or no cine's time: refused with what was found; ``frame_interval_ms`` says it instead."""
    image = nifti(cine())
    image.header["pixdim"][4] = value
    image.header.set_xyzt_units("mm", unit)
    write(tmp_path / "a" / "sa.nii.gz", image)
    labels(tmp_path)
    with pytest.raises(InputRefused, match=r"pixdim\[4\] is .* or give frame_interval_ms") as caught:
        open_cmr_studies(tmp_path).read("a")
    assert caught.value.code is RefusalCode.FRAME_RATE_UNKNOWN
    stack = open_cmr_studies(tmp_path, CmrOptions(frame_interval_ms=28.0)).read("a").stack
    assert stack.trigger_times_ms[0] == pytest.approx(28.0 * np.arange(PHASES))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.int16, np.uint16), (np.uint8, np.uint16), (np.float32, np.float32), (np.float64, np.float32)],
)
def test_pixel_types(tmp_path: Path, dtype: type, expected: type) -> None:
    """Whole numbers stay whole, real numbers become single precision; a slope in the header is applied."""
    stack = cine()
    stack = dataclasses.replace(stack, images_SPHW=(stack.images_SPHW // 17).astype(np.uint16))
    image = nifti(stack)
    typed = nibabel.Nifti1Image(np.asarray(image.dataobj).astype(dtype), image.affine, image.header, dtype=dtype)
    found = stack_from_nifti(write(tmp_path / "sa.nii.gz", typed))
    assert found.images_SPHW.dtype == expected
    assert np.array_equal(found.images_SPHW, stack.images_SPHW)
    typed.header.set_slope_inter(0.5, -8)
    halved = stack_from_nifti(write(tmp_path / "scaled.nii.gz", typed))
    assert halved.images_SPHW.dtype == np.float32
    assert halved.images_SPHW == pytest.approx(0.5 * stack.images_SPHW - 8)


def changed(change: Callable[[Any], object]) -> Callable[[Path], object]:
    """A file whose header or pixels differ from a good one."""

    def save(path: Path) -> None:
        image = nifti(cine())
        write(path, change(image) or image)

    return save


def of_values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    """The image with other pixels."""

    def changed_image(image: Any) -> Any:
        values = change(np.asarray(image.dataobj))
        return nibabel.Nifti1Image(values, image.affine, image.header, dtype=values.dtype)

    return changed_image


def mirrored(image: Any) -> None:
    """A qform that is the mirror image of the sform."""
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine @ np.diag([-1, 1, 1, 1]), code=1)


def sheared(image: Any) -> None:
    """Slices shifted against each other."""
    image.set_sform(image.affine @ np.array([[1, 0, 0.9, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), code=1)


def unoriented(image: Any) -> None:
    """Neither transformation is said to mean anything."""
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)


def with_affine(value: float) -> Callable[[Path], object]:
    """A file whose affine is of one value (srow_x to srow_z, from byte 280)."""

    def save(path: Path) -> None:
        write(path, nifti(cine()))
        content = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(content[:280] + np.full(12, value, "<f4").tobytes() + content[328:]))

    return save


def truncated(path: Path) -> None:
    """The first half of the bytes."""
    write(path, nifti(cine()))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("save", "code", "reason"),
    [
        (lambda path: path.write_bytes(b""), RefusalCode.UNDECODABLE, "not readable as NIfTI"),
        (lambda path: path.write_bytes(b"no image" * 99), RefusalCode.UNDECODABLE, "not readable as NIfTI"),
        (lambda path: path.write_bytes(gzip.compress(bytes(999))), RefusalCode.UNDECODABLE, "not readable as NIfTI"),
        (truncated, RefusalCode.UNDECODABLE, "not readable as NIfTI"),
        (changed(of_values(lambda v: v[..., 0])), RefusalCode.NO_SHORT_AXIS_CINE, r"the shape \(5, 7, 6\)"),
        (changed(of_values(lambda v: v[:, :, :4])), RefusalCode.TOO_FEW_SLICES, "a cine stack of 4 slices"),
        (changed(of_values(lambda v: v[..., :2])), RefusalCode.TOO_FEW_PHASES, "2 phases a slice"),
        (
            changed(of_values(lambda _: np.zeros((1100, 1, 6, 9), np.uint8))),
            RefusalCode.LIMITS_EXCEEDED,
            "1100 x 1 pixels are more than is read",
        ),
        (
            changed(of_values(lambda v: np.where(v == v.max(), np.nan, v))),
            RefusalCode.PIXEL_DATA_INCONSISTENT,
            "not finite",
        ),
        (changed(of_values(lambda v: v.astype(np.complex64))), RefusalCode.PIXEL_DATA_INCONSISTENT, "complex"),
        (changed(unoriented), RefusalCode.GEOMETRY_MISSING, "neither qform_code nor sform_code"),
        (changed(mirrored), RefusalCode.GEOMETRY_MISSING, "mirror images"),
        (changed(sheared), RefusalCode.GEOMETRY_MISSING, "not at right angles"),
        (changed(lambda i: i.header.set_xyzt_units("meter", "sec")), RefusalCode.GEOMETRY_MISSING, "given in meter"),
        (with_affine(0.0), RefusalCode.GEOMETRY_MISSING, "length 0"),
        (with_affine(np.nan), RefusalCode.GEOMETRY_MISSING, "not finite"),
    ],
)
def test_an_unusable_file_refuses_one_study(
    tmp_path: Path, save: Callable[[Path], object], code: RefusalCode, reason: str
) -> None:
    """Each way a file can be wrong is a refusal with its reason; the next study is read."""
    write(tmp_path / "b.nii.gz", nifti(cine()))
    save(tmp_path / "a.nii.gz")
    labels(tmp_path)
    studies = open_cmr_studies(tmp_path)
    with pytest.raises(InputRefused, match=reason) as caught:
        studies.read("a")
    assert caught.value.code is code
    assert studies.read("b").lvef_percent == 60
