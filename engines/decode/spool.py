"""Many instances in one anonymous temporary file: nothing with patient data ever shows in a folder.

The file has no name (``O_TMPFILE``), so it vanishes with the last process that holds it, even after a kill -9. Its
descriptor is handed to the decoding child, which reads instances through windows.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import BinaryIO, Self


class Spool:
    """Instances back to back. Write with ``append``, read with ``instances``; close to give the space back."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()
        self._index: list[tuple[int, int]] = []
        self._md5s: list[str] = []
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, chunks: Iterable[bytes]) -> None:
        """Write one instance, in pieces; an error in between leaves the instances before it as they were."""
        digest, offset = hashlib.md5(usedforsecurity=False), self._end
        position = offset
        for chunk in chunks:
            digest.update(chunk)
            position += _write_at(self._file.fileno(), chunk, position)
        self._index.append((offset, position - offset))
        self._md5s.append(digest.hexdigest())
        self._end = position

    @property
    def index(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of each instance, bytes."""
        return tuple(self._index)

    @property
    def md5s(self) -> tuple[str, ...]:
        """MD5 of each instance in hexadecimal, as Orthanc keeps it."""
        return tuple(self._md5s)

    def fileno(self) -> int:
        """Descriptor of the file."""
        return self._file.fileno()

    def instances(self) -> list[BinaryIO]:
        """One readable window per instance."""
        return windows(self.fileno(), self._index)

    def close(self) -> None:
        """Release the file and its space."""
        self._file.close()


def windows(descriptor: int, index: Sequence[tuple[int, int]]) -> list[BinaryIO]:
    """Readable, seekable windows on a file; they share the descriptor but not a position."""
    return [io.BufferedReader(_Window(descriptor, offset, length)) for offset, length in index]  # type: ignore[type-var]


def _write_at(descriptor: int, chunk: bytes, position: int) -> int:
    written = 0
    while written < len(chunk):
        written += os.pwrite(descriptor, memoryview(chunk)[written:], position + written)
    return written


class _Window(io.RawIOBase):
    """Part of a file as a file of its own, read with ``pread``."""

    name = "spool"  # pydicom asks buffered readers for one

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor, self._offset, self._length, self._position = descriptor, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset} lies before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        wanted = max(min(len(buffer), self._length - self._position), 0)
        data = os.pread(self._descriptor, wanted, self._offset + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
