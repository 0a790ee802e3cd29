"""MetaImage files of one grey sequence: a text header (``.mhd``) beside raw (``.raw``) or deflated (``.zraw``) pixels.

The header format is small and ITK, its library, is not: only what CAMUS writes is read, the rest is refused by name.

Source: MetaIO documentation, https://docs.itk.org. Letters: T frame, H row, W column.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.sources.videos import UnusableVideo

_TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_MOST_BYTES = 2**31


def read_metaimage(path: Path, where: str) -> NDArray[Any]:
    """Return the sequence of a header and its pixel file, [T, H, W] as stored.

    Raises:
        UnusableVideo: missing, not of this form, or with fewer or more bytes than the header says.
    """
    header = _header(path, where)
    width, height, frames = _shape(header, where)
    kind = _TYPES.get(header.get("ElementType", ""))
    if kind is None or header.get("ElementNumberOfChannels", "1") != "1":
        raise UnusableVideo(
            f"{where}: ElementType is {header.get('ElementType')!r}; expected one of {', '.join(_TYPES)}"
        )
    dtype = np.dtype((">" if _is_true(header, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<") + kind)
    size = frames * height * width * dtype.itemsize
    if size > _MOST_BYTES:
        raise UnusableVideo(f"{where}: {frames} frames of {width} x {height} pixels are more than is read")
    content = _content(path, header, size, where)
    if len(content) != size:
        raise UnusableVideo(f"{where}: the pixel file holds {len(content)} bytes; its header asks for {size}")
    return np.frombuffer(content, dtype).reshape(frames, height, width)


def _header(path: Path, where: str) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableVideo(f"{where}: the .mhd header is not readable ({type(error).__name__})") from None
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _shape(header: Mapping[str, str], where: str) -> tuple[int, int, int]:
    text = header.get("DimSize", "")
    try:
        width, height, frames = (int(size) for size in text.split())
    except ValueError:
        width = height = frames = 0
    if min(width, height, frames) < 1:
        raise UnusableVideo(f"{where}: DimSize is {text!r}; a sequence of columns, rows and frames is expected")
    return width, height, frames


def _content(path: Path, header: Mapping[str, str], size: int, where: str) -> bytes:
    """The pixels, inflated where they are deflated, at most one byte more than is expected."""
    name = header.get("ElementDataFile", "")
    if not name or Path(name).name != name or name in ("LOCAL", "LIST"):
        raise UnusableVideo(f"{where}: ElementDataFile is {name!r}; a file beside the header is expected")
    try:
        with (path.parent / name).open("rb") as file:
            if _is_true(header, "CompressedData"):
                return zlib.decompressobj().decompress(file.read(), size + 1)
            return file.read(size + 1)
    except (OSError, zlib.error) as error:
        raise UnusableVideo(f"{where}: the pixel file is not readable ({type(error).__name__})") from None


def _is_true(header: Mapping[str, str], *keys: str) -> bool:
    return any(header.get(key, "False").lower() == "true" for key in keys)
