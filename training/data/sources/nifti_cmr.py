"""NIfTI cines: ``ROOT/<id>/sa.nii.gz`` or ``ROOT/<id>.nii.gz``, labels in ``ROOT/labels.csv``.

The array is [I, J, K, T] and the affine leads from voxel (i, j, k) to millimetres right-anterior-superior. Axis I is
read as the column index of a DICOM image and axis J as the row index, as converters write them. Geometry comes from
the affine alone, so a file stored flipped, transposed or from base to apex gives a stack whose orientation says so, and
the canonical view of the preprocessing is the same. Nothing is guessed: without an orientation or a time base a
study is refused.

Source: NIfTI-1 header (qform_code, sform_code, pixdim, xyzt_units); PS3.3 C.7.6.2.1.1.
Letters: I column, J row, K slice, T phase of the file; S slice, P phase, H row, W column of the stack.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.decode.cmr import FEWEST_PHASES, FEWEST_SLICES, LARGEST_SIDE_PX, MOST_PIXELS
from engines.errors import InputRefused, RefusalCode
from engines.records import CineStack, SourceInstance
from training.data.sources.cmr_labels import join_labels, read_labels
from training.data.sources.cmr_studies import CmrOptions, FoundStudies

NAME = "NIfTI"
SHORTEST_FRAME_MS, LONGEST_FRAME_MS = 4.0, 250.0
"""Bounds of a cine's frame interval: 270 ms of RR in 60 phases, 2 s in 8."""

_ENDINGS = (".nii.gz", ".nii")
_STACK_NAMES = tuple(f"sa{ending}" for ending in _ENDINGS)
_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
_TO_MS = {"sec": 1000.0, "msec": 1.0, "usec": 0.001}
_ANGLE_SINE = np.sin(np.radians(2.0))
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_FILE_ERRORS = (OSError, EOFError, ValueError, zlib.error, OverflowError, MemoryError)


def nifti_files(root: Path) -> dict[str, Path]:
    """File of each study by id.

    Raises:
        ValueError: two files for one id.
    """
    alone = [(_id(path), path) for path in root.iterdir() if path.name.endswith(_ENDINGS) and path.is_file()]
    within = [(path.parent.name, path) for name in _STACK_NAMES for path in root.glob(f"*/{name}") if path.is_file()]
    files = dict(alone + within)
    if len(files) < len(alone) + len(within):
        more = len(alone) + len(within) - len(files)
        raise ValueError(f"{more} studies have two NIfTI files; keep either <id>/sa.nii.gz or <id>.nii.gz")
    return files


def nifti_studies(root: Path, options: CmrOptions) -> FoundStudies:
    """Open a folder of this layout.

    Raises:
        ValueError: ``labels.csv`` is missing or broken, or fits no file.
    """
    files = nifti_files(root)
    labels = join_labels(NAME, read_labels(root), files.keys(), options.exclude_percent)
    load = _Loader(files, options.frame_interval_ms)
    return FoundStudies(name=NAME, lvef_percent_by_key=labels, load=load).salted(options.log_salt)


@dataclass(frozen=True)
class _Loader:
    """The stack of a key; a value, so that it travels to worker processes."""

    files: Mapping[str, Path]
    frame_interval_ms: float | None

    def __call__(self, key: str) -> CineStack:
        return stack_from_nifti(self.files[key], self.frame_interval_ms)


def stack_from_nifti(path: Path, frame_interval_ms: float | None = None) -> CineStack:
    """Read a short-axis cine.

    Args:
        path: NIfTI-1 or NIfTI-2 file of a four-dimensional image.
        frame_interval_ms: time between phases; None takes it from the header.

    Raises:
        InputRefused: not readable, not a cine, without orientation or without a time base.
    """
    image = _opened(path)
    _check_shape(image.shape)
    orientation, spacing_mm, origins_mm = _geometry(image)
    interval_ms = _frame_interval_ms(image.header) if frame_interval_ms is None else frame_interval_ms
    images_SPHW = _pixels(image)
    normal = np.cross(orientation[:3], orientation[3:])
    positions_mm = origins_mm @ normal
    order = np.argsort(positions_mm)
    slices, phases = images_SPHW.shape[:2]
    a, b, c, d, e, f = (float(value) for value in orientation)
    return CineStack(
        images_SPHW=images_SPHW[order],
        spacing_mm=spacing_mm,
        slice_positions_mm=np.asarray(positions_mm[order], np.float64),
        trigger_times_ms=np.tile(interval_ms * np.arange(phases, dtype=np.float64), (slices, 1)),
        orientation=(a, b, c, d, e, f),
        sources_SP=tuple(tuple(_placeholder(s, p) for p in range(phases)) for s in range(slices)),
    )


def _opened(path: Path) -> Any:
    """The image of a file, pixels unread; its header is consistent enough to be asked for both orientations."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nibabel.load(path)
        image.header.get_qform(coded=True)
        image.header.get_best_affine()
    except (*_FILE_ERRORS, ImageFileError, HeaderDataError) as error:
        raise _unreadable(error) from None
    return image


def _id(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _unreadable(error: BaseException) -> InputRefused:
    message = f"the file is not readable as NIfTI ({type(error).__name__}); copy it again from its source"
    return InputRefused(RefusalCode.UNDECODABLE, message)


def _check_shape(shape_IJKT: tuple[int, ...]) -> None:
    if len(shape_IJKT) != 4:
        message = f"the image has the shape {shape_IJKT}; a cine of (columns, rows, slices, phases) is expected"
        raise InputRefused(RefusalCode.NO_SHORT_AXIS_CINE, message)
    columns, rows, slices, phases = shape_IJKT
    if max(rows, columns) > LARGEST_SIDE_PX or rows * columns * slices * phases > MOST_PIXELS:
        message = f"{slices} slices of {phases} phases of {columns} x {rows} pixels are more than is read"
        raise InputRefused(RefusalCode.LIMITS_EXCEEDED, message)
    if slices < FEWEST_SLICES:
        message = f"a cine stack of {slices} slices; at least {FEWEST_SLICES} short-axis slices are expected"
        raise InputRefused(RefusalCode.TOO_FEW_SLICES, message)
    if phases < FEWEST_PHASES:
        message = f"{phases} phases a slice; a cine of at least {FEWEST_PHASES} phases is expected"
        raise InputRefused(RefusalCode.TOO_FEW_PHASES, message)


def _geometry(image: Any) -> tuple[NDArray[np.float64], tuple[float, float], NDArray[np.float64]]:
    """Orientation [6] (LPS), (row, column) spacing, and the corner of each slice [K, 3] (LPS), millimetres.

    Raises:
        InputRefused: no orientation stated, two that contradict, axes that are not at right angles, or no millimetres.
    """
    axes = _RAS_TO_LPS @ np.asarray(image.affine, np.float64)[:3]
    lengths_mm = np.linalg.norm(axes[:, :3], axis=0)
    if not np.isfinite(axes).all() or lengths_mm.min() <= 0:
        raise _no_geometry("the affine is not finite or has an axis of length 0")
    _check_stated(image.header)
    directions = axes[:, :3] / lengths_mm
    if np.abs(directions.T @ directions - np.eye(3)).max() > _ANGLE_SINE:
        raise _no_geometry("the axes are not at right angles: a sheared or resampled stack")
    origins_mm = axes[:, 3] + np.arange(image.shape[2])[:, None] * axes[:, 2]
    spacing_mm = (float(lengths_mm[1]), float(lengths_mm[0]))
    return np.concatenate([directions[:, 0], directions[:, 1]]), spacing_mm, origins_mm


def _check_stated(header: Any) -> None:
    quaternion, matrix = header.get_qform(coded=True), header.get_sform(coded=True)
    if quaternion[1] == 0 and matrix[1] == 0:
        raise _no_geometry("neither qform_code nor sform_code is set, so left and right are unknown")
    if quaternion[1] and matrix[1] and np.linalg.det(quaternion[0]) * np.linalg.det(matrix[0]) < 0:
        raise _no_geometry("qform and sform are mirror images of each other")
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise _no_geometry(f"lengths are given in {unit}, not in mm")


def _no_geometry(found: str) -> InputRefused:
    message = f"{found}; convert the study again from DICOM"
    return InputRefused(RefusalCode.GEOMETRY_MISSING, message)


def _frame_interval_ms(header: Any) -> float:
    """Time between phases from pixdim[4]; a file without a unit is read in the one unit that makes a cine of it.

    Raises:
        InputRefused: absent, or no cine's interval.
    """
    value, unit = float(header["pixdim"][4]), header.get_xyzt_units()[1]
    factors = [_TO_MS[unit]] if unit in _TO_MS else [_TO_MS["sec"], _TO_MS["msec"]] if unit == "unknown" else []
    plausible = [value * factor for factor in factors if SHORTEST_FRAME_MS <= value * factor <= LONGEST_FRAME_MS]
    if not plausible:
        message = (
            f"pixdim[4] is {value:g} ({unit}); a time between phases of {SHORTEST_FRAME_MS:g} to {LONGEST_FRAME_MS:g} ms"
            " is expected: write it into the header, or give frame_interval_ms"
        )
        raise InputRefused(RefusalCode.FRAME_RATE_UNKNOWN, message)
    return plausible[0]


def _pixels(image: Any) -> NDArray[np.uint16] | NDArray[np.float32]:
    """Values as [K, T, J, I]: uint16 where the file holds such integers, float32 otherwise.

    Raises:
        InputRefused: truncated, coloured or complex, or not finite.
    """
    try:
        values_IJKT = np.asanyarray(image.dataobj)
    except _FILE_ERRORS as error:
        raise _unreadable(error) from None
    if values_IJKT.dtype.kind not in "iuf":
        raise _no_pixels(f"the pixels are {values_IJKT.dtype}")
    values_KTJI = np.ascontiguousarray(values_IJKT.transpose(2, 3, 1, 0))
    if values_KTJI.dtype.kind in "iu" and values_KTJI.min() >= 0 and values_KTJI.max() <= np.iinfo(np.uint16).max:
        return values_KTJI.astype(np.uint16)
    with np.errstate(over="ignore"):
        single_KTJI = values_KTJI.astype(np.float32)
    if not np.isfinite(single_KTJI).all():
        raise _no_pixels("some pixels are not finite")
    return single_KTJI


def _no_pixels(found: str) -> InputRefused:
    message = f"{found}; real, finite numbers are expected: convert the study again"
    return InputRefused(RefusalCode.PIXEL_DATA_INCONSISTENT, message)


def _placeholder(slice_index: int, phase_index: int) -> SourceInstance:
    """A NIfTI file names no instances."""
    return SourceInstance(
        sop_class_uid=_MR_IMAGE,
        sop_instance_uid=f"2.25.3.{slice_index}.{phase_index}",
        series_instance_uid="2.25.4",
    )
