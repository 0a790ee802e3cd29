"""Sunnybrook cardiac data: short-axis cines with the contours an expert drew on them, and the volumes that follow.

A contour file ``IM-0001-<k>-icontour-manual.txt`` (endocardium, papillary muscles inside) or ``-ocontour-`` (epicardium)
belongs to the image with InstanceNumber k and holds one ``x y`` per line. x runs along the columns, y along the rows, and
both count from 1: the pixel of row r and column c (from 0) has its centre at x = c + 1, y = r + 1. This was measured: the
drawn endocardium meets the steepest fall of the grey level when moved by about one pixel up and left.
A pixel belongs to a contour when its centre lies inside.

Source: P. Radau et al., Evaluation framework for algorithms segmenting short axis cardiac MRI, MIDAS Journal 2009.
"""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom import dcmread

from engines.decode.cmr import decode_cmr
from engines.records import CineStack

_FILE_NAME = re.compile(r"IM-\d+-(\d+)-([io])contour-manual\.txt")


@dataclass(frozen=True, kw_only=True)
class Contour:
    """The borders on one image; polygons are float64 [N, 2], (x, y) in pixels, counted from 0 at the first pixel's centre."""

    slice_index: int
    phase: int
    endocardium: NDArray[np.float64]
    epicardium: NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True)
class ExpertStudy:
    """A decoded stack and its contours, by the slice and the phase of the stack."""

    name: str
    stack: CineStack
    contours: tuple[Contour, ...]

    def volume_ml(self, phase: int) -> float:
        """Volume of the cavity at a contoured phase: areas of the polygons times the slice distance.

        Raises:
            ValueError: no contour at this phase.
        """
        areas_px = [polygon_area(contour.endocardium) for contour in self.contours if contour.phase == phase]
        if not areas_px:
            raise ValueError(f"phase {phase} has no contour; contoured are {sorted(self.phases)}")
        row_mm, column_mm = self.stack.spacing_mm
        distance_mm = float(np.median(np.diff(self.stack.slice_positions_mm)))
        return sum(areas_px) * row_mm * column_mm * distance_mm / 1000.0

    @property
    def phases(self) -> frozenset[int]:
        """Phases with contours."""
        return frozenset(contour.phase for contour in self.contours)

    @property
    def end_diastole(self) -> int:
        """The contoured phase of the largest volume."""
        return max(self.phases, key=self.volume_ml)

    @property
    def end_systole(self) -> int:
        """The contoured phase of the smallest volume."""
        return min(self.phases, key=self.volume_ml)

    @property
    def lvef_percent(self) -> float:
        """Ejection fraction of the contours; papillary muscles count as blood, no correction at the base."""
        filled, emptied = self.volume_ml(self.end_diastole), self.volume_ml(self.end_systole)
        return 100.0 * (filled - emptied) / filled


def read_expert_study(folder: Path) -> ExpertStudy:
    """Read one subject: ``dicom.tar.xz`` or the folder ``dicom``, and ``contours/{i,o}-contours``.

    Raises:
        FileNotFoundError: images or contours are missing.
        ValueError: a contour belongs to no image of the stack.
    """
    polygons = _polygons(folder / "contours")
    files = _dicom_files(folder)
    stack = decode_cmr([io.BytesIO(content) for content in files])
    places = _places(stack, files)
    numbers = sorted(number for number, kind in polygons if kind == "i")
    if unknown := [number for number in numbers if number not in places]:
        raise ValueError(f"{folder.name}: contours on instances {unknown} that are not in the stack; check the folder")
    contours = (
        Contour(
            slice_index=places[number][0],
            phase=places[number][1],
            endocardium=polygons[number, "i"],
            epicardium=polygons.get((number, "o")),
        )
        for number in numbers
    )
    return ExpertStudy(name=folder.name, stack=stack, contours=tuple(contours))


def _dicom_files(folder: Path) -> list[bytes]:
    """Contents of the images."""
    if (folder / "dicom").is_dir():
        return [path.read_bytes() for path in sorted((folder / "dicom").rglob("*.dcm"))]
    with tarfile.open(folder / "dicom.tar.xz") as archive:  # in the archive's order: going back means unpacking again
        opened = (archive.extractfile(member) for member in archive if member.isfile())
        return [each.read() for each in opened if each is not None]


def _places(stack: CineStack, files: list[bytes]) -> dict[int, tuple[int, int]]:
    """Slice and phase of each InstanceNumber."""
    tags = ["SOPInstanceUID", "InstanceNumber"]
    headers = [dcmread(io.BytesIO(content), specific_tags=tags) for content in files]
    numbers = {str(header.SOPInstanceUID): int(header.InstanceNumber) for header in headers}
    return {
        numbers[source.sop_instance_uid]: (slice_index, phase)
        for slice_index, row in enumerate(stack.sources_SP)
        for phase, source in enumerate(row)
    }


def _polygons(folder: Path) -> dict[tuple[int, str], NDArray[np.float64]]:
    """Polygons by InstanceNumber and kind, ``i`` or ``o``; the first pixel's centre is moved from (1, 1) to (0, 0)."""
    polygons = {}
    for path in sorted(folder.rglob("*.txt")):
        if match := _FILE_NAME.fullmatch(path.name):
            polygons[int(match[1]), match[2]] = np.loadtxt(path, ndmin=2) - 1.0
    if not polygons:
        raise FileNotFoundError(f"no contour file IM-0001-<k>-icontour-manual.txt below {folder}")
    return polygons


def polygon_area(polygon_N2: NDArray[np.float64]) -> float:
    """Area inside a closed polygon, square pixels (shoelace formula)."""
    x, y = polygon_N2.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2.0)


def polygon_mask(polygon_N2: NDArray[np.float64], shape_HW: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centre lies inside a polygon, bool [H, W]."""
    rows, columns = np.indices(shape_HW)
    centres = np.column_stack([columns.ravel(), rows.ravel()])
    return np.asarray(Polygon(polygon_N2).contains_points(centres).reshape(shape_HW))


def expert_labels(study: ExpertStudy) -> NDArray[np.uint8]:
    """Labels of the whole stack, uint8 [S, P, H, W]: 1 left cavity, 2 myocardium (where both borders exist), else 0."""
    labels_SPHW = np.zeros(study.stack.images_SPHW.shape, np.uint8)
    for contour in study.contours:
        image = labels_SPHW[contour.slice_index, contour.phase]
        if contour.epicardium is not None:
            image[polygon_mask(contour.epicardium, image.shape)] = 2
        image[polygon_mask(contour.endocardium, image.shape)] = 1
    return labels_SPHW
