"""The spool: many instances in one file without a name, each read as a file of its own."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.decode.spool import Spool, windows

LARGE_BYTES = 40_000_000


def spooled(*instances: bytes) -> Spool:
    """A spool of whole instances."""
    spool = Spool()
    for each in instances:
        spool.append([each])
    return spool


def test_nothing_shows_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While instances are spooled, the temporary folder is empty and the descriptor's file has no name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with spooled(b"PATIENT^CANARY") as spool:
        assert list(tmp_path.iterdir()) == []
        link = str(Path(f"/proc/self/fd/{spool.fileno()}").readlink())
        assert link.startswith(str(tmp_path))
        assert link.endswith("(deleted)")
        assert os.fstat(spool.fileno()).st_nlink == 0


def test_the_space_is_given_back() -> None:
    """After closing, the descriptor is gone and nothing can be read."""
    spool = spooled(b"abc")
    window, descriptor = spool.instances()[0], spool.fileno()
    spool.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        window.read()


def test_instances_come_back_as_they_were() -> None:
    """Each window holds one instance; index and MD5 say the same of it."""
    contents = [b"first", b"", b"the third", b"\0" * 1000]
    with spooled(*contents) as spool:
        assert [window.read() for window in spool.instances()] == contents
        assert spool.index == ((0, 5), (5, 0), (5, 9), (14, 1000))
        assert list(spool.md5s) == [hashlib.md5(content).hexdigest() for content in contents]


def test_an_instance_in_pieces() -> None:
    """Chunks of any size make one instance."""
    with Spool() as spool:
        spool.append([b"ab", b"", b"cde", b"f"])
        assert spool.instances()[0].read() == b"abcdef"


def test_a_download_that_breaks_off_leaves_the_others() -> None:
    """An error between two chunks counts for nothing: the next instance takes the place of the broken one."""

    def broken() -> Iterator[bytes]:
        yield b"half of an instance"
        raise ConnectionError

    with spooled(b"first") as spool:
        with pytest.raises(ConnectionError):
            spool.append(broken())
        spool.append([b"next"])
        assert [window.read() for window in spool.instances()] == [b"first", b"next"]
        assert len(spool.md5s) == 2


def test_windows_do_not_share_a_position() -> None:
    """Reading one window, or the same instance twice, moves no other."""
    with spooled(b"abcdef", b"uvwxyz") as spool:
        one, other = spool.instances()
        again = spool.instances()[0]
        assert one.read(2) == b"ab"
        assert other.read(3) == b"uvw"
        assert again.read(6) == b"abcdef"
        assert one.read() == b"cdef"


def test_a_window_ends_where_its_instance_ends() -> None:
    """Reading past the end gives nothing of the next instance; seeking past it is allowed, before the start is not."""
    with spooled(b"abc", b"SECRET") as spool:
        window = spool.instances()[0]
        assert window.seek(0, io.SEEK_END) == 3
        assert window.read(100) == b""
        assert window.seek(50) == 50
        assert window.read(1) == b""
        with pytest.raises(OSError, match="before the start"):
            window.seek(-1)


def test_a_large_spool_is_not_held_in_memory() -> None:
    """Forty megabytes are written in chunks and read lazily: the last bytes come without the first."""
    piece = bytes(range(256)) * 4096
    with Spool() as spool:
        spool.append(piece for _ in range(LARGE_BYTES // len(piece)))
        spool.append([b"the end"])
        large, small = spool.instances()
        length = spool.index[0][1]
        assert large.seek(length - 256) == length - 256
        assert large.read() == bytes(range(256))
        assert small.read() == b"the end"
        assert os.fstat(spool.fileno()).st_size == length + 7


def test_another_descriptor_of_the_file_reads_the_same() -> None:
    """What the decoding process gets is the descriptor and the index."""
    with spooled(b"abc", b"defg") as spool:
        descriptor = os.dup(spool.fileno())
        try:
            assert [window.read() for window in windows(descriptor, spool.index)] == [b"abc", b"defg"]
        finally:
            os.close(descriptor)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 40)),
        st.tuples(st.just("set"), st.integers(0, 120)),
        st.tuples(st.just("end"), st.integers(-30, 10)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(st.binary(max_size=80), min_size=1, max_size=4), which=st.integers(0, 3), steps=STEPS)
def test_a_window_behaves_like_a_file(contents: list[bytes], which: int, steps: list[tuple[str, int]]) -> None:
    """Any reads and seeks give what a file in memory gives."""
    number = which % len(contents)
    with spooled(*contents) as spool:
        window, reference = spool.instances()[number], io.BytesIO(contents[number])
        for kind, value in steps:
            if kind == "read":
                assert window.read(value) == reference.read(value)
            elif kind == "set":
                assert window.seek(value) == reference.seek(value)
            else:
                offset = max(value, -len(contents[number]))
                assert window.seek(offset, io.SEEK_END) == reference.seek(offset, io.SEEK_END)
            assert window.tell() == reference.tell()
