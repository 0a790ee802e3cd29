"""Ultrasound multi-frame images to ``CineLoop``: B-mode cine clips, frames decoded one at a time when asked for.

What a clip shows is decided from its header alone (SOP class, regions, time base, view); what the header cannot tell is
left to preprocessing and to the engine. The only place that reads ultrasound pixel data.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import iter_pixels

from engines.decode.headers import PARSER_ERRORS, heart_rate_bpm, number, parsed, source_of, texts
from engines.decode.jpeg_planes import chroma_departure, luma_plane, stored_as_planes
from engines.errors import InputRefused, NotApplicable, RefusalCode
from engines.records import CineLoop

US_MULTI_FRAME, US_MULTI_FRAME_RETIRED = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.3"
US_IMAGE, US_IMAGE_RETIRED = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.6"
ENHANCED_US_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
ULTRASOUND = (US_MULTI_FRAME, US_MULTI_FRAME_RETIRED, US_IMAGE, US_IMAGE_RETIRED)
APICAL_FOUR_CHAMBER = "399214001"
MOST_CANDIDATES = 8
LARGEST_SIDE_PX = 4096
MOST_FRAMES = 5000

_VIEW_ATTRIBUTES = ("ViewName", "SeriesDescription", "ProtocolName")
_MOST_LABELS, _LONGEST_LABEL = 8, 64
_VIEW_CODES = {"399214001": APICAL_FOUR_CHAMBER, "G-A19C": APICAL_FOUR_CHAMBER}
_VIEW_NAMES = re.compile(r"\b(A4C|AP4|4CH|4C|APICAL (4|FOUR)[ -]?(CH|CHAMBER)S?)\b")
_OTHER_VIEW_NAMES = re.compile(
    r"\b(PLAX|PSAX|A2C|AP2|2CH|A3C|AP3|3CH|A5C|SUBCOSTAL|SSN|PARASTERNAL|APICAL (2|3|TWO|THREE))\b"
)
_UNDECODABLE_SYNTAXES = re.compile(
    r"1\.2\.840\.10008\.1\.2\.4\.1\d\d(\.1)?|1\.2\.840\.10008\.1\.2\.(6|8)\..*"
)  # video streams
_TISSUE, _COLOUR_FLOW, _ECG_TRACE = 1, 2, 0x0A  # PS3.3 C.8.5.5.1.2
_TWO_DIMENSIONAL, _M_MODE, _SPECTRAL = 1, 2, 3  # PS3.3 C.8.5.5.1.1
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def decode_echo(
    instances: Sequence[BinaryIO], *, most: int = MOST_CANDIDATES, stored_luma: bool = False
) -> tuple[CineLoop, ...]:
    """Decode the B-mode cine clips of a study that may be apical four-chamber views.

    Args:
        instances: of one study.
        most: clips that are returned.
        stored_luma: take the luma plane of a JPEG as it is stored, which is several times faster than by way of red,
            green and blue, and differs from that by rounding where the image is not quite grey.

    Returns:
        Clips that state the view, or, where none does, those that state no view, longest first; 1 to ``most``.

    Raises:
        NotApplicable: no ultrasound among the instances.
        InputRefused: ultrasound, but no usable clip; the reason of the instance that came nearest.
    """
    loops: list[CineLoop] = []
    refusals: list[InputRefused] = []
    for instance in instances:
        try:
            loops.append(_loop(instance, stored_luma=stored_luma))
        except NotApplicable:
            continue
        except InputRefused as refusal:
            refusals.append(refusal)
    if loops:
        stated = [loop for loop in loops if loop.view == APICAL_FOUR_CHAMBER]
        return tuple(sorted(stated or loops, key=_duration_ms, reverse=True)[:most])
    if refusals:
        raise max(refusals, key=lambda refusal: _NEARNESS.get(refusal.code, 0))
    raise NotApplicable(RefusalCode.NOT_CARDIAC, "no ultrasound image among the instances")


_NEARNESS = {
    RefusalCode.NO_B_MODE_CINE: 1,
    RefusalCode.COLOUR_DOPPLER: 2,
    RefusalCode.VIEW_NOT_APICAL_FOUR_CHAMBER: 3,
    RefusalCode.TOO_FEW_FRAMES: 4,
    RefusalCode.FRAME_RATE_UNKNOWN: 5,
}
"""Of several reasons the one that came nearest to a usable clip says most to the reader."""


def _duration_ms(loop: CineLoop) -> float:
    return float(loop.frame_times_ms[-1])


def _loop(instance: BinaryIO, *, stored_luma: bool) -> CineLoop:
    dataset = parsed(instance)
    try:
        return _described(dataset, instance, stored_luma=stored_luma)
    except PARSER_ERRORS as error:
        message = (
            f"an ultrasound header is contradictory ({type(error).__name__}); send the study again from its source"
        )
        raise InputRefused(RefusalCode.UNDECODABLE, message) from None


def _described(dataset: Dataset, instance: BinaryIO, *, stored_luma: bool) -> CineLoop:
    frames = replace(_checked_frames(dataset, instance), stored_luma=stored_luma)
    region = _tissue_region(dataset, frames.shape_HW)
    view = _view(dataset)
    return CineLoop(
        frames=frames,
        frame_times_ms=_frame_times_ms(dataset, len(frames)),
        region_px=region[0] if region else None,
        spacing_mm=region[1] if region else None,
        heart_rate_bpm=heart_rate_bpm(dataset),
        view=view,
        source=replace(source_of(dataset), view_labels=_view_labels(dataset)),
    )


def _checked_frames(dataset: Dataset, instance: BinaryIO) -> DicomFrames:
    """Bounds are checked before a single pixel is decoded."""
    sop_class = str(dataset.SOPClassUID)
    if sop_class == ENHANCED_US_VOLUME:
        raise InputRefused(
            RefusalCode.NO_B_MODE_CINE, "a three-dimensional volume was found; a two-dimensional clip is expected"
        )
    if sop_class not in ULTRASOUND:
        raise NotApplicable(RefusalCode.NOT_CARDIAC, "not an ultrasound image")
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if _UNDECODABLE_SYNTAXES.fullmatch(syntax):
        message = f"transfer syntax {syntax} is a video stream, which is not read; let the PACS send JPEG or uncompressed frames"
        raise InputRefused(RefusalCode.UNSUPPORTED_TRANSFER_SYNTAX, message)
    count = int(dataset.get("NumberOfFrames") or 1)
    if count < 2:
        raise InputRefused(
            RefusalCode.NO_B_MODE_CINE, "single images only; a cine clip of at least one heart beat is expected"
        )
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if not (16 <= rows <= LARGEST_SIDE_PX and 16 <= columns <= LARGEST_SIDE_PX and count <= MOST_FRAMES):
        message = f"{count} frames of {columns} x {rows}; at most {MOST_FRAMES} of {LARGEST_SIDE_PX} x {LARGEST_SIDE_PX} are read"
        raise InputRefused(RefusalCode.LIMITS_EXCEEDED, message)
    if int(dataset.BitsAllocated) != 8:
        raise InputRefused(
            RefusalCode.PIXEL_DATA_INCONSISTENT, f"{dataset.BitsAllocated} bits allocated; ultrasound has 8"
        )
    return DicomFrames(instance, dataset, count)


def _tissue_region(
    dataset: Dataset, shape_HW: tuple[int, int]
) -> tuple[tuple[int, int, int, int], tuple[float, float] | None] | None:
    """Box (x0, y0, x1, y1) and spacing of the one 2D tissue region; None where no region is stated."""
    regions = list(dataset.get("SequenceOfUltrasoundRegions") or [])
    kinds = [(int(region.get("RegionSpatialFormat", 0)), int(region.get("RegionDataType", 0))) for region in regions]
    if any(data == _COLOUR_FLOW for _, data in kinds):
        raise InputRefused(RefusalCode.COLOUR_DOPPLER, "colour flow was found; a grey-scale (B-mode) clip is expected")
    if any(space in (_M_MODE, _SPECTRAL) and data != _ECG_TRACE for space, data in kinds):
        raise InputRefused(
            RefusalCode.NO_B_MODE_CINE, "M-mode or spectral Doppler was found; a B-mode clip is expected"
        )
    tissue = [region for region, kind in zip(regions, kinds, strict=True) if kind == (_TWO_DIMENSIONAL, _TISSUE)]
    if len(tissue) > 1:
        raise InputRefused(
            RefusalCode.NO_B_MODE_CINE, f"{len(tissue)} image panes in one frame; a single B-mode pane is expected"
        )
    if not tissue:
        return None
    box = _box(tissue[0], shape_HW)
    return None if box is None else (box, _spacing_mm(tissue[0]))


def _box(region: Dataset, shape_HW: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The region clipped to the frame; None where it was stated for another image size."""
    height, width = shape_HW
    x0, y0 = int(region.RegionLocationMinX0), int(region.RegionLocationMinY0)
    x1, y1 = int(region.RegionLocationMaxX1) + 1, int(region.RegionLocationMaxY1) + 1
    if x1 > width + 1 or y1 > height + 1:  # resized after calibration: the box means nothing here
        return None
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _spacing_mm(region: Dataset) -> tuple[float, float] | None:
    """(row, column) spacing where both directions are in centimetres (unit 3)."""
    units = (region.get("PhysicalUnitsYDirection"), region.get("PhysicalUnitsXDirection"))
    deltas = (number(region, "PhysicalDeltaY"), number(region, "PhysicalDeltaX"))
    if units != (3, 3) or None in deltas:
        return None
    row_mm, column_mm = (abs(delta or 0.0) * 10 for delta in deltas)
    return (row_mm, column_mm) if min(row_mm, column_mm) > 0 else None


def _view(dataset: Dataset) -> str | None:
    """Stated view as a SNOMED CT code; None where nothing is stated.

    Raises:
        InputRefused: another view is stated.
    """
    codes = {
        str(item.get("CodeValue", "")): str(item.get("CodeMeaning", ""))
        for item in dataset.get("ViewCodeSequence") or []
    }
    stated = next((_VIEW_CODES[code] for code in codes if code in _VIEW_CODES), None)
    names = [text for name in _VIEW_ATTRIBUTES for text in texts(dataset, name)]
    if stated is None and any(_VIEW_NAMES.search(name) for name in names):
        stated = APICAL_FOUR_CHAMBER
    if stated is None and (codes or any(_OTHER_VIEW_NAMES.search(name) for name in names)):
        message = "the clip states another view; an apical four-chamber view is expected"
        raise InputRefused(RefusalCode.VIEW_NOT_APICAL_FOUR_CHAMBER, message)
    return stated


def _view_labels(dataset: Dataset) -> tuple[tuple[str, str], ...]:
    """What the source calls its view, at most ``_MOST_LABELS`` texts, each cut to the length of a label."""
    codes = [str(item.get("CodeValue", "")) for item in dataset.get("ViewCodeSequence") or []]
    found = [("ViewCodeSequence", code) for code in codes]
    found += [(name, text) for name in _VIEW_ATTRIBUTES for text in texts(dataset, name)]
    return tuple((name, text[:_LONGEST_LABEL]) for name, text in found if text)[:_MOST_LABELS]


def _frame_times_ms(dataset: Dataset, frames: int) -> NDArray[np.float64]:
    """Time of each frame from the first, in the order of precedence of PS3.3 C.7.6.5.1.2 and what scanners also write."""
    vector = [float(step) for step in _values(dataset, "FrameTimeVector")]
    if len(vector) == frames and all(step > 0 for step in vector[1:]):
        return np.asarray(np.cumsum([0.0, *vector[1:]]))
    step_ms = number(dataset, "FrameTime") or _period_ms(dataset, frames)
    if step_ms is None or not 1 <= step_ms <= 1000:
        message = f"no usable time base (FrameTime, FrameTimeVector or CineRate); found {step_ms} ms a frame"
        raise InputRefused(RefusalCode.FRAME_RATE_UNKNOWN, message)
    return step_ms * np.arange(frames, dtype=np.float64)


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    value = dataset.get(keyword)
    return (
        [] if value is None else list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    )


def _period_ms(dataset: Dataset, frames: int) -> float | None:
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        rate = number(dataset, keyword)
        if rate:
            return 1000.0 / rate
    duration_s = number(dataset, "EffectiveDuration")
    return number(dataset, "ActualFrameDuration") or (1000.0 * duration_s / frames if duration_s else None)


@dataclass(frozen=True)
class DicomFrames:
    """Frames of one instance, decoded when asked for; holds one frame at a time.

    Raises:
        InputRefused: while iterating, when a frame cannot be decoded or has another size than stated.
    """

    instance: BinaryIO
    dataset: Dataset
    count: int
    stored_luma: bool = False

    @property
    def shape_HW(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.dataset.Rows), int(self.dataset.Columns)

    def __len__(self) -> int:
        return self.count

    def luma(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Luma of the asked frames: BT.601 of red, green and blue, or the plane of a JPEG; grey sources as shown."""
        read = self._luma_planes if self._has_planes else self._luma_shown
        return _repeated(indices, read)

    def chroma(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Largest difference between red, green and blue of each pixel of the asked frames; 0 for grey sources."""
        read = self._chroma_planes if self._has_planes else self._chroma_shown
        return _repeated(indices, read)

    def chroma_spread(self, index: int) -> float:
        """Mean over the frame of the largest difference between red, green and blue; 0 for grey sources."""
        frame = next(self._shown([index])).astype(np.int16)
        return 0.0 if frame.ndim == 2 else float((frame.max(axis=-1) - frame.min(axis=-1)).mean())

    @cached_property
    def _has_planes(self) -> bool:
        if not self.stored_luma:
            return False
        with _refusing():
            return stored_as_planes(self.instance, self.dataset)

    def _luma_planes(self, indices: list[int]) -> Iterator[NDArray[np.uint8]]:
        with _refusing():
            yield from luma_plane(self.instance, self.dataset, indices)

    def _luma_shown(self, indices: list[int]) -> Iterator[NDArray[np.uint8]]:
        for frame in self._shown(indices):
            yield frame if frame.ndim == 2 else np.asarray(np.rint(frame @ _LUMA), np.uint8)

    def _chroma_planes(self, indices: list[int]) -> Iterator[NDArray[np.uint8]]:
        with _refusing():
            yield from chroma_departure(self.instance, self.dataset, indices)

    def _chroma_shown(self, indices: list[int]) -> Iterator[NDArray[np.uint8]]:
        for frame in self._shown(indices):
            grey = frame.ndim == 2
            yield np.zeros(frame.shape, np.uint8) if grey else frame.max(axis=-1) - frame.min(axis=-1)

    def _shown(self, indices: list[int]) -> Iterator[NDArray[np.uint8]]:
        """The asked frames as they are shown, grey [H, W] or RGB [H, W, 3], whatever they are stored as."""
        if not indices:  # the decoder takes an empty list for all frames
            return
        self.instance.seek(0)
        with _refusing():
            for frame in iter_pixels(self.instance, indices=indices):
                if frame.shape[:2] != self.shape_HW or frame.dtype != np.uint8:
                    raise ValueError
                yield _presented(frame, self.dataset)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what the decoders raise into a refusal."""
    try:
        yield
    except PARSER_ERRORS as error:
        message = f"a frame cannot be decoded ({type(error).__name__}); send the study again from its source"
        raise InputRefused(RefusalCode.PIXEL_DATA_INCONSISTENT, message) from None


def _repeated(
    indices: Sequence[int], read: Callable[[list[int]], Iterator[NDArray[np.uint8]]]
) -> Iterator[NDArray[np.uint8]]:
    """Decode every asked frame once and give it as often as it was asked for."""
    different = list(dict.fromkeys(indices))
    if not different:
        return
    for index, frame in zip(different, read(different), strict=True):
        yield from itertools.repeat(frame, list(indices).count(index))


def _presented(frame: NDArray[np.uint8], dataset: Dataset) -> NDArray[np.uint8]:
    """Undo what stands between stored and shown values: the palette, or white for 0."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return _from_palette(frame, dataset)
    return 255 - frame if dataset.PhotometricInterpretation == "MONOCHROME1" else frame


def _from_palette(frame_HW: NDArray[np.uint8], dataset: Dataset) -> NDArray[np.uint8]:
    """RGB through the palette, whose entries are 8 or 16 bits wide in the byte order of the file (PS3.3 C.7.6.3.1.6)."""
    shown = apply_color_lut(frame_HW, dataset)[..., :3]
    _, little_endian = dataset.original_encoding
    if shown.dtype == np.uint16 and not little_endian and "RedPaletteColorLookupTableData" in dataset:
        shown = shown.byteswap()
    bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    return np.asarray(shown >> (bits - 8), np.uint8)
