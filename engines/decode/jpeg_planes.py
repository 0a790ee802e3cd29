"""The planes of JPEG baseline frames as they are stored: luma alone, or luma and chroma, without conversion to red, green, blue.

A grey image in a colour JPEG is its luma plane. Asking the decoder for that plane skips the upsampling of chroma and the
way to RGB and back, which cost several times the decoding itself. Called by ``echo``, for the plain case only: three
samples, 8 bits, YBR, no Adobe marker that says otherwise; everything else goes through pydicom.

Letters: H row, W column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGBaseline8Bit

_PHOTOMETRIC = ("YBR_FULL", "YBR_FULL_422")
_ITEM_HEADER_BYTES = 12
_UNDEFINED_LENGTH = b"\xff\xff\xff\xff"


def stored_as_planes(instance: BinaryIO, dataset: Dataset) -> bool:
    """Whether the luma of the frames is a plane of plain JPEGs.

    Raises:
        Exception: whatever the parsers raise on a file that is not what it says.
    """
    plain = (
        dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        and dataset.get("SamplesPerPixel") == 3
        and dataset.get("PhotometricInterpretation") in _PHOTOMETRIC
    )
    if not plain:
        return False
    first = next(_encoded(instance, dataset), None)
    return first is not None and "adobe_transform" not in _opened(first).info


def luma_plane(instance: BinaryIO, dataset: Dataset, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the luma of the asked frames, uint8 [H, W]; 0-based, increasing."""
    return _decoded(instance, dataset, indices, "L")


def chroma_departure(instance: BinaryIO, dataset: Dataset, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the departure from grey of the asked frames, uint8 [H, W]: the largest of the colour differences.

    Source: ITU-R BT.601; red, green and blue less luma follow from the chroma planes alone.
    """
    for frame in _decoded(instance, dataset, indices, "YCbCr"):
        planes = frame[..., 1:].astype(np.int16) - 128
        if not planes.any():
            yield np.zeros(frame.shape[:2], np.uint8)
            continue
        blue, red = planes[..., 0].astype(np.float32), planes[..., 1].astype(np.float32)
        differences = np.stack([1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue])
        yield np.clip(np.rint(np.ptp(differences, axis=0)), 0, 255).astype(np.uint8)


def _decoded(
    instance: BinaryIO, dataset: Dataset, indices: Sequence[int], mode: Literal["L", "YCbCr"]
) -> Iterator[NDArray[np.uint8]]:
    wanted, found = set(indices), 0
    size = int(dataset.Columns), int(dataset.Rows)
    for index, encoded in enumerate(_encoded(instance, dataset)):
        if index not in wanted:
            continue
        image = _opened(encoded)
        if image.size != size or "adobe_transform" in image.info:
            raise ValueError  # before a pixel is decoded: the size decides how much memory that takes
        image.draft(mode, image.size)
        frame = np.asarray(image)
        if image.mode != mode:
            raise ValueError
        yield frame
        found += 1
        if found == len(wanted):
            return
    if found < len(wanted):
        raise EOFError


def _opened(encoded: bytes) -> ImageFile:
    image: ImageFile = Image.open(BytesIO(encoded), formats=("JPEG",))
    return image


def _encoded(instance: BinaryIO, dataset: Dataset) -> Iterator[bytes]:
    """Every frame as it lies in the file (PS3.5 A.4)."""
    instance.seek(0)
    dcmread(instance, stop_before_pixels=True)  # leaves the file at the element it stopped before
    header = instance.read(_ITEM_HEADER_BYTES)
    if header[-4:] != _UNDEFINED_LENGTH:
        raise ValueError
    return generate_frames(instance, number_of_frames=int(dataset.NumberOfFrames), extended_offsets=_offsets(dataset))


def _offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    if "ExtendedOffsetTable" not in dataset or "ExtendedOffsetTableLengths" not in dataset:
        return None
    return dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
