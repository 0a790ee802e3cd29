"""MR series to ``CineStack``: a short-axis cine found by geometry and time, never by SliceLocation or by names alone.

Slices are ordered by ImagePositionPatient projected on the slice normal, phases by TriggerTime. Names only exclude (late
enhancement, maps, flow, long axis). One series for the whole stack and one series per slice both occur; images of equal
orientation and matrix are merged. The only place that reads MR pixel data.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from engines.decode.headers import PARSER_ERRORS, heart_rate_bpm, number, parsed, source_of, texts
from engines.errors import InputRefused, NotApplicable, RefusalCode
from engines.records import CineStack, SourceInstance

MR_IMAGE, ENHANCED_MR, LEGACY_ENHANCED_MR = (f"1.2.840.10008.5.1.4.1.1.4{last}" for last in ("", ".1", ".4"))
FEWEST_PHASES = 8
FEWEST_SLICES = 5
LARGEST_SIDE_PX = 1024
MOST_PIXELS = 200_000_000

_SAME_PLACE_MM = 0.5
_SAME_DIRECTION = np.cos(np.radians(2.0))
_SLICE_DISTANCE_MM = (4.0, 16.0)
_DERIVED_KINDS = {
    "LOCALIZER",
    "PROJECTION IMAGE",
    "T1 MAP",
    "T2 MAP",
    "T2_STAR MAP",
    "ECV",
    "PHASE MAP",
    "P",
    "VELOCITY",
    "MPR",
}
_OTHER_NAMES = re.compile(
    r"(LGE|PSIR|\bDE[_ ]|DELAYED|VIAB|\bT1|\bT2|MOLLI|PERF|TAGG?|GRID|FLOW|4D|VENC|\bPC[_ ]|SCOUT|\bLOC|\bLAX|LONG.?AX"
    r"|[234][ _-]?CH|\bHLA|\bVLA|RVOT|LVOT|HASTE|\bTSE|_AO_|AORT)"
)


@dataclass(frozen=True, kw_only=True)
class _Image:
    """What the header of one MR image says."""

    instance: BinaryIO
    source: SourceInstance
    matrix: tuple[int, int]
    spacing_mm: tuple[float, float]
    orientation: tuple[float, ...]
    position_mm: NDArray[np.float64]
    trigger_ms: float | None
    number: float
    heart_rate_bpm: float | None
    cardiac: bool
    excluded: str | None


def decode_cmr(instances: Sequence[BinaryIO]) -> CineStack:
    """Find and decode the short-axis cine stack of a study.

    Raises:
        NotApplicable: no MR, or nothing that looks like a heart scan.
        InputRefused: a heart scan without a usable short-axis cine; the reason says what was found.
    """
    images, refusal = _images(instances)
    if not images:
        raise refusal or NotApplicable(RefusalCode.NOT_CARDIAC, "no MR image among the instances")
    stacks = [_slices(group) for group in _parallel(image for image in images if image.excluded is None)]
    cines = [cine for cine in map(_cine_slices, stacks) if cine]
    if not cines:
        raise _no_cine(images, stacks)
    best = max(cines, key=lambda cine: (len(cine), sum(map(len, cine))))
    _check_stack(best)
    return _stack(best)


def _images(instances: Iterable[BinaryIO]) -> tuple[list[_Image], InputRefused | None]:
    """Readable MR images, and the first reason why another was not readable."""
    images: list[_Image] = []
    first: InputRefused | None = None
    for instance in instances:
        try:
            images.append(_image(parsed(instance), instance))
        except NotApplicable:
            continue
        except InputRefused as refusal:
            first = first or refusal
        except PARSER_ERRORS as error:
            message = f"an MR header is contradictory ({type(error).__name__}); send the study again from its source"
            first = first or InputRefused(RefusalCode.UNDECODABLE, message)
    return images, first


def _image(dataset: Dataset, instance: BinaryIO) -> _Image:
    sop_class = str(dataset.SOPClassUID)
    if sop_class in (ENHANCED_MR, LEGACY_ENHANCED_MR):
        _refuse_enhanced(dataset)
    if sop_class != MR_IMAGE:
        raise NotApplicable(RefusalCode.NOT_CARDIAC, "not an MR image")
    orientation, position = (
        _numbers(dataset, "ImageOrientationPatient", 6),
        _numbers(dataset, "ImagePositionPatient", 3),
    )
    spacing = _numbers(dataset, "PixelSpacing", 2)
    if not (orientation and position and spacing):
        message = (
            "an image lacks ImagePositionPatient, ImageOrientationPatient or PixelSpacing; slices cannot be ordered"
        )
        raise InputRefused(RefusalCode.GEOMETRY_MISSING, message)
    row_mm, column_mm = spacing
    if min(spacing) <= 0:
        raise ValueError
    return _Image(
        instance=instance,
        source=source_of(dataset),
        matrix=(int(dataset.Rows), int(dataset.Columns)),
        spacing_mm=(row_mm, column_mm),
        orientation=orientation,
        position_mm=np.array(position),
        trigger_ms=number(dataset, "TriggerTime"),
        number=number(dataset, "InstanceNumber") or 0.0,
        heart_rate_bpm=heart_rate_bpm(dataset),
        cardiac=_looks_cardiac(dataset),
        excluded=_excluded(dataset),
    )


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """The values of an element, empty when absent.

    Raises:
        ValueError: another count, or not finite.
    """
    values = tuple(float(value) for value in dataset.get(keyword) or ())
    if values and (len(values) != count or not np.isfinite(values).all()):
        raise ValueError
    return values


def _refuse_enhanced(dataset: Dataset) -> None:
    gated = set(texts(dataset, "CardiacSynchronizationTechnique")) - {"NONE", ""}
    if gated:
        message = "an Enhanced MR cine was found; classic MR Image Storage is read: let the PACS or scanner convert it"
        raise InputRefused(RefusalCode.NO_SHORT_AXIS_CINE, message)
    raise NotApplicable(RefusalCode.NOT_CARDIAC, "an Enhanced MR image without cardiac synchronisation")


def _looks_cardiac(dataset: Dataset) -> bool:
    """Gated, or prepared to be: scouts of a heart study carry CardiacNumberOfImages 0."""
    gating = {"CG", "RG", "PPG", "EG"} & set(texts(dataset, "ScanOptions"))
    return "CardiacNumberOfImages" in dataset or bool(gating) or (number(dataset, "TriggerTime") or 0) > 0


def _excluded(dataset: Dataset) -> str | None:
    """Why an image is no magnitude cine image, or None."""
    kinds = _DERIVED_KINDS & set(texts(dataset, "ImageType"))
    if kinds or texts(dataset, "ImageType")[:1] == ("DERIVED",):
        return ", ".join(sorted(kinds)) or "DERIVED"
    names = (*texts(dataset, "SeriesDescription"), *texts(dataset, "ProtocolName"))
    return "another sequence by name" if any(_OTHER_NAMES.search(name) for name in names) else None


def _parallel(images: Iterable[_Image]) -> list[list[_Image]]:
    """Images grouped by equal matrix, spacing and orientation (within two degrees)."""
    groups: list[list[_Image]] = []
    for image in images:
        home = next((group for group in groups if _same_plane(group[0], image)), None)
        groups.append([image]) if home is None else home.append(image)
    return groups


def _same_plane(one: _Image, other: _Image) -> bool:
    if one.matrix != other.matrix or not np.allclose(one.spacing_mm, other.spacing_mm, rtol=1e-3):
        return False
    rows = np.dot(one.orientation[:3], other.orientation[:3])
    columns = np.dot(one.orientation[3:], other.orientation[3:])
    return bool(min(rows, columns) > _SAME_DIRECTION)


def _slices(group: list[_Image]) -> list[list[_Image]]:
    """Images of each position along the normal, ordered by position; within one by time."""
    normal = np.cross(group[0].orientation[:3], group[0].orientation[3:])
    places: dict[float, list[_Image]] = defaultdict(list)
    for image in sorted(group, key=lambda image: float(image.position_mm @ normal)):
        distance = float(image.position_mm @ normal)
        near = next((place for place in places if abs(place - distance) < _SAME_PLACE_MM), distance)
        places[near].append(image)
    return [_one_cycle(places[place]) for place in sorted(places)]


def _one_cycle(images: list[_Image]) -> list[_Image]:
    """The images of one slice by time; where several series lie in the same place, the one with the most images, then the last."""
    series: dict[str, list[_Image]] = defaultdict(list)
    for image in images:
        series[image.source.series_instance_uid].append(image)
    chosen = max(series.values(), key=lambda members: (len(members), members[0].source.series_instance_uid))
    return sorted(chosen, key=lambda image: (image.trigger_ms if image.trigger_ms is not None else -1.0, image.number))


def _cine_slices(slices: list[list[_Image]]) -> list[list[_Image]]:
    """The longest run of cine slices at plausible distances."""
    cine = [images for images in slices if _is_cine(images)]
    runs: list[list[list[_Image]]] = []
    for images in cine:
        if runs and _SLICE_DISTANCE_MM[0] <= _distance_mm(runs[-1][-1][0], images[0]) <= _SLICE_DISTANCE_MM[1]:
            runs[-1].append(images)
        else:
            runs.append([images])
    return max(runs, key=len) if runs else []


def _is_cine(images: list[_Image]) -> bool:
    times = {image.trigger_ms for image in images}
    return len(images) >= FEWEST_PHASES and None not in times and len(times) == len(images)


def _distance_mm(one: _Image, other: _Image) -> float:
    normal = np.cross(one.orientation[:3], one.orientation[3:])
    return float(abs((other.position_mm - one.position_mm) @ normal))


def _no_cine(images: list[_Image], stacks: list[list[list[_Image]]]) -> NotApplicable | InputRefused:
    if not any(image.cardiac for image in images):
        return NotApplicable(RefusalCode.NOT_CARDIAC, "MR without cardiac gating: no heart scan")
    phases = max((len(images) for slices in stacks for images in slices), default=0)
    if any(len(slices) >= FEWEST_SLICES for slices in stacks) and 2 <= phases < FEWEST_PHASES:
        message = f"at most {phases} phases a slice; a cine of at least {FEWEST_PHASES} phases is expected"
        return InputRefused(RefusalCode.TOO_FEW_PHASES, message)
    message = (
        f"{len(images)} heart images, but no gated cine stack: scouts, maps or stills; a short-axis cine is expected"
    )
    return InputRefused(RefusalCode.NO_SHORT_AXIS_CINE, message)


def _check_stack(slices: list[list[_Image]]) -> None:
    if len(slices) == 1:
        message = "single cine slices only (long axis?); a stack of parallel short-axis slices is expected"
        raise InputRefused(RefusalCode.NO_SHORT_AXIS_CINE, message)
    if len(slices) < FEWEST_SLICES:
        message = f"a cine stack of {len(slices)} slices; at least {FEWEST_SLICES} short-axis slices are expected"
        raise InputRefused(RefusalCode.TOO_FEW_SLICES, message)
    counts = sorted({len(images) for images in slices})
    if counts[-1] - counts[0] > 1:
        message = f"slices have {counts[0]} to {counts[-1]} phases; the same number is expected in every slice: some are missing"
        raise InputRefused(RefusalCode.PHASES_INCONSISTENT, message)
    rows, columns = slices[0][0].matrix
    if max(rows, columns) > LARGEST_SIDE_PX or rows * columns * len(slices) * counts[-1] > MOST_PIXELS:
        message = f"{len(slices)} slices of {counts[-1]} phases of {columns} x {rows} pixels are more than is read"
        raise InputRefused(RefusalCode.LIMITS_EXCEEDED, message)


def _stack(slices: list[list[_Image]]) -> CineStack:
    phases = min(map(len, slices))
    kept = [images[:phases] for images in slices]
    first = kept[0][0]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    rates = [image.heart_rate_bpm for images in kept for image in images if image.heart_rate_bpm is not None]
    a, b, c, d, e, f = first.orientation
    return CineStack(
        images_SPHW=np.stack([np.stack([_pixels(image) for image in images]) for images in kept]),
        spacing_mm=first.spacing_mm,
        slice_positions_mm=np.array([float(images[0].position_mm @ normal) for images in kept]),
        trigger_times_ms=np.array([[image.trigger_ms for image in images] for images in kept], float),
        orientation=(a, b, c, d, e, f),
        sources_SP=tuple(tuple(image.source for image in images) for images in kept),
        heart_rate_bpm=float(np.median(rates)) if rates else None,
    )


def _pixels(image: _Image) -> NDArray[np.uint16]:
    """Stored values of one image, uint16 [H, W]."""
    image.instance.seek(0)
    try:
        values = pixel_array(image.instance, index=0, raw=True)
    except PARSER_ERRORS as error:
        message = f"an image cannot be decoded ({type(error).__name__}); send the study again from its source"
        raise InputRefused(RefusalCode.PIXEL_DATA_INCONSISTENT, message) from None
    if values.shape != image.matrix or values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        message = (
            f"an image holds {values.dtype} {values.shape}; expected {image.matrix} unsigned values of at most 16 bits"
        )
        raise InputRefused(RefusalCode.PIXEL_DATA_INCONSISTENT, message)
    return values.astype(np.uint16)
