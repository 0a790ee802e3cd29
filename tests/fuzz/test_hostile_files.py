"""Hostile files: whatever arrives, one decoding process ends every study in bounded time with a reading or a typed refusal."""

from __future__ import annotations

import io
import json
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit

from engines.decode import headers
from engines.decode.sandbox import DecodeLimits, DecodeSandbox
from engines.decode.spool import Spool
from engines.decode.study import StudyReading, read_instances
from engines.errors import Refusal, RefusalCode
from engines.preprocess.spec import CmrSpec, EcgSpec, EchoSpec
from engines.records import Modality
from tests.doubles.hearts import written
from training.phantoms.dicom import Patient

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

SECONDS_A_FILE = 30.0
PARENT_GROWTH_BYTES = 50_000_000
SPECS_FILE = Path(__file__).parents[1] / "unit" / "engines" / "test_preprocess_specs.json"
_SPECS = json.loads(SPECS_FILE.read_text())
SPECS = {
    Modality.ECHO: EchoSpec(**_SPECS["echo"]),
    Modality.CMR: CmrSpec(**_SPECS["cmr"]),
    Modality.ECG: EcgSpec(**_SPECS["ecg"]),
}


@pytest.fixture(scope="module")
def child() -> Iterator[DecodeSandbox]:
    """The one sandbox of all tests here, with half the memory it has in service."""
    shared = DecodeSandbox(DecodeLimits(memory_bytes=2 * 1024**3, cpu_s=20.0, wall_s=60.0))
    yield shared
    shared.close()


def read(child: DecodeSandbox, modality: Modality, content: bytes) -> StudyReading:
    """One file as a study, within the time a file may take."""
    with Spool() as spool:
        spool.append([content])
        before = time.monotonic()
        reading = child.read_study(modality, spool, SPECS[modality])
        assert time.monotonic() - before < SECONDS_A_FILE
    return reading


def check(reading: StudyReading) -> None:
    """Either prepared arrays, or a refusal with a code and a sentence."""
    if reading.refusal is None:
        assert reading.prepared
        return
    assert isinstance(reading.refusal, Refusal)
    assert isinstance(reading.refusal.code, RefusalCode)
    assert len(reading.refusal.reason) > 10
    assert not reading.prepared


@pytest.mark.sample_data
def test_the_whole_corpus(sample_data: Path, child: DecodeSandbox) -> None:
    """Every malformed and every foreign sample file, as each modality, is answered; the child lives, the parent does not grow."""
    files = sorted(
        path for name in ("malformed", "decoy") for path in (sample_data / name).rglob("*") if path.is_file()
    )
    assert len(files) > 100
    read(child, Modality.ECG, b"")
    assert child._process is not None
    pid, before = child._process.pid, psutil.Process().memory_info().rss
    for path in files:
        content = path.read_bytes()
        for modality in Modality:
            check(read(child, modality, content))
    assert child._process.pid == pid
    assert psutil.Process().memory_info().rss - before < PARENT_GROWTH_BYTES


@pytest.mark.sample_data
def test_the_whole_corpus_as_one_study(sample_data: Path, child: DecodeSandbox) -> None:
    """All the files together are one study that is answered too."""
    files = sorted(path for path in (sample_data / "malformed").rglob("*") if path.is_file())
    for modality in Modality:
        with Spool() as spool:
            for path in files:
                spool.append([path.read_bytes()])
            check(child.read_study(modality, spool, SPECS[modality]))


def part_10(syntax: str, body: bytes, preamble: bytes = b"\0" * 128) -> bytes:
    """A Part 10 file around an encoded dataset."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.3.1", "2.25.1"
    meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    write_file_meta_info(buffer, meta)
    return preamble + b"DICM" + buffer.getvalue() + body


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """An explicit little-endian element."""
    if vr in {b"OB", b"OW", b"SQ", b"UN", b"UT"}:
        return struct.pack("<HH2sHI", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def uid(value: str) -> bytes:
    """A UID padded to even length."""
    return value.encode() + b"\0" * (len(value) % 2)


IDENTITY = (
    element(0x0008, 0x0016, b"UI", uid("1.2.840.10008.5.1.4.1.1.3.1"))
    + element(0x0008, 0x0018, b"UI", uid("2.25.1"))
    + element(0x0020, 0x000D, b"UI", uid("2.25.2"))
    + element(0x0020, 0x000E, b"UI", uid("2.25.3"))
)


def ultrasound(syntax: str = ExplicitVRLittleEndian, pixels: bytes = b"\0" * 4096, **elements: Any) -> bytes:
    """A clip whose header says whatever is wished."""
    clip = Dataset()
    clip.file_meta = FileMetaDataset()
    clip.file_meta.TransferSyntaxUID = syntax
    clip.SOPClassUID = clip.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    clip.SOPInstanceUID = clip.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    clip.StudyInstanceUID, clip.SeriesInstanceUID = "2.25.2", "2.25.3"
    clip.NumberOfFrames, clip.Rows, clip.Columns, clip.FrameTime = 40, 64, 64, "40"
    clip.SamplesPerPixel, clip.PhotometricInterpretation, clip.PixelRepresentation = 1, "MONOCHROME2", 0
    clip.BitsAllocated, clip.BitsStored, clip.HighBit = 8, 8, 7
    clip.PixelData = pixels
    for keyword, value in elements.items():
        setattr(clip, keyword, value)
    if syntax != ExplicitVRLittleEndian:
        clip["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    clip.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def deflate_bomb(megabytes: int = 400) -> bytes:
    """Four hundred megabytes of zeros in four hundred kilobytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = IDENTITY + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, megabytes << 20)
    packed = packer.compress(head) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes))
    return part_10(DeflatedExplicitVRLittleEndian, packed + packer.flush())


def disguised_bomb() -> bytes:
    """The bomb behind a preamble that pretends to be a file meta of another transfer syntax."""
    return disguised(deflate_bomb())


def disguised(content: bytes) -> bytes:
    """The file with a preamble that reads like the transfer syntax of another file."""
    disguise = b"\x02\x00\x10\x00UI\x14\x00" + uid(ExplicitVRLittleEndian)
    return disguise.ljust(128, b"\0") + content[128:]


def nested(depth: int = 50_000) -> bytes:
    """Sequences within sequences, of undefined length."""
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return part_10(ExplicitVRLittleEndian, IDENTITY[:34] + opening * depth + closing * depth + IDENTITY)


def boastful(group: int, number: int, vr: bytes) -> bytes:
    """An element that claims four gigabytes and holds ten bytes."""
    claim = struct.pack("<HH2sHI", group, number, vr, 0, 0xFFFFFFFE) + b"0123456789"
    return part_10(ExplicitVRLittleEndian, IDENTITY + claim)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a million frames": lambda: ultrasound(NumberOfFrames=10**6),
    "a negative number of frames": lambda: ultrasound(NumberOfFrames=-5),
    "65535 x 65535": lambda: ultrasound(Rows=65535, Columns=65535),
    "4096 x 4096, uncompressed, no pixels": lambda: ultrasound(Rows=4096, Columns=4096, NumberOfFrames=5000),
    "a million samples a pixel": lambda: ultrasound(SamplesPerPixel=65535),
    "empty JPEG frames": lambda: ultrasound(JPEGBaseline8Bit, encapsulate([b"\xff\xd8\xff\xd9"] * 40)),
    "a JPEG of 65500 x 65500": lambda: ultrasound(
        JPEGBaseline8Bit,
        encapsulate([b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xdc\xff\xdc\x01\x01\x11\x00\xff\xd9"] * 40),
    ),
    "an offset table beyond the end": lambda: ultrasound(
        JPEGBaseline8Bit, struct.pack("<HHI", 0xFFFE, 0xE000, 160) + b"\xff\xff\xff\x7f" * 40
    ),
    "a deflate bomb": deflate_bomb,
    "a disguised deflate bomb": disguised_bomb,
    "50,000 nested sequences": nested,
    "four gigabytes of pixels": lambda: boastful(0x7FE0, 0x0010, b"OW"),
    "four gigabytes of text": lambda: boastful(0x0020, 0x4000, b"UT"),
    "four gigabytes of sequence": lambda: boastful(0x0018, 0x6011, b"SQ"),
    "sixty-five thousand elements": lambda: part_10(
        ExplicitVRLittleEndian, IDENTITY + b"".join(element(0x0029, n, b"LO", b"xx") for n in range(1, 65535))
    ),
    "nothing": lambda: b"",
    "a preamble": lambda: b"\0" * 128 + b"DICM",
    "zeros": lambda: bytes(1_000_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_built_attacks(name: str, child: DecodeSandbox) -> None:
    """Headers that lie and files that swell end in a refusal within bounded time; the parent does not grow with them."""
    content = HOSTILE[name]()
    before = psutil.Process().memory_info().rss
    for modality in Modality:
        reading = read(child, modality, content)
        check(reading)
        assert reading.refusal is not None
    assert psutil.Process().memory_info().rss - before < PARENT_GROWTH_BYTES


@pytest.mark.parametrize("make", [deflate_bomb, disguised_bomb])
def test_bombs_are_not_inflated(make: Callable[[], bytes], child: DecodeSandbox) -> None:
    """A deflate bomb is refused for its transfer syntax, before a byte is inflated, whatever stands in its preamble."""
    reading = read(child, Modality.ECHO, make())
    assert reading.refusal is not None
    assert reading.refusal.code is RefusalCode.UNSUPPORTED_TRANSFER_SYNTAX


def test_a_broken_deflated_stream_only_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a deflated file slip through, a broken stream is a refusal too, not a zlib error."""
    monkeypatch.setattr(headers, "_refuse_deflated", lambda _: None)
    for modality in Modality:
        answered(modality, [part_10(DeflatedExplicitVRLittleEndian, b"\x07not deflated at all")])


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[Modality, list[bytes]]:
    """Small valid studies to damage."""
    return {
        modality: written(modality.value, 21, tmp_path_factory.mktemp(modality), Patient()) for modality in Modality
    }


def damaged(content: bytes, edits: list[tuple[float, int, int]], header_bytes: int) -> bytes:
    """The file with bytes overwritten, mostly in its header, and possibly cut short."""
    changed = bytearray(content)
    for place, kind, value in edits:
        reach = min(len(changed), header_bytes) if kind < 8 else len(changed)
        at = int(place * max(reach - 4, 1))
        if kind == 0:
            del changed[max(at, 200) :]
        elif kind == 1:
            changed[at : at + 4] = struct.pack("<I", (value * 0x01010101) & 0xFFFFFFFF)
        elif kind == 2:
            changed[at : at + 2] = b"\xff\xff"
        elif kind == 3:
            del changed[at : at + value % 16]
        elif kind == 4:
            changed[at:at] = bytes([value]) * (value % 9)
        else:
            changed[at] = value
    return bytes(changed)


EDITS = st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 10), st.integers(0, 255)), min_size=1, max_size=6)


def answered(modality: Modality, instances: list[bytes]) -> None:
    """In this process, without a child to catch what escapes: a reading or a refusal, no other exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(read_instances(modality, [io.BytesIO(each) for each in instances], SPECS[modality]))


@pytest.mark.parametrize("modality", Modality)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS)
def test_damaged_files_only_refuse(modality: Modality, edits: list[tuple[float, int, int]], valid: Any) -> None:
    """A valid file with some bytes changed, inserted, removed or cut off is read or refused, never anything else."""
    first, *others = valid[modality]
    answered(modality, [damaged(first, edits, 3000), *others[: 8 if modality is Modality.CMR else None]])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS)
def test_a_whole_damaged_stack_only_refuses(edits: list[tuple[float, int, int]], valid: Any) -> None:
    """The same damage in every image of a CMR stack is read or refused."""
    answered(Modality.CMR, [damaged(each, edits, 2000) for each in valid[Modality.CMR][:72]])
