"""Sending files: unchanged bytes, reasons for what is left out, one bad file never stops the rest."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit
from rich.console import Console

from stream_processors.errors import PacsUnavailable
from stream_processors.pacs import send as module
from stream_processors.pacs.association import Peer
from stream_processors.pacs.send import find_files, send, send_files
from tests.doubles.archive import COMPREHENSIVE_SR, Archive, free_port

ULTRASOUND = "1.2.840.10008.5.1.4.1.1.3.1"


@pytest.fixture(scope="module")
def shared_archive() -> Iterator[Archive]:
    """An archive that takes reports and JPEG ultrasound."""
    made = Archive((COMPREHENSIVE_SR, None), (ULTRASOUND, str(JPEGBaseline8Bit)))
    yield made
    made.close()


@pytest.fixture
def archive(shared_archive: Archive) -> Archive:
    """The archive, empty and well."""
    shared_archive.reset()
    return shared_archive


def _write(path: Path, uid: str, sop_class: str = COMPREHENSIVE_SR, syntax: str = ExplicitVRLittleEndian) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uid
    dataset.PatientName = "Doe^Jane"
    dataset.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00"
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = syntax != ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_the_bytes_of_the_file_arrive(archive: Archive, tmp_path: Path) -> None:
    """The data set reaches the archive as it lies on disk, compressed or not, odd or not."""
    plain = _write(tmp_path / "a.dcm", "1.2.1")
    jpeg = _write(tmp_path / "b.dcm", "1.2.2", ULTRASOUND, JPEGBaseline8Bit)
    result = send([plain, jpeg], archive.peer())
    assert result.sent == [plain, jpeg]
    for path, uid in ((plain, "1.2.1"), (jpeg, "1.2.2")):
        assert path.read_bytes().endswith(archive.stored[uid])
        assert len(archive.stored[uid]) > 30


def test_a_file_is_not_written_anew_on_the_way(archive: Archive, tmp_path: Path) -> None:
    """A retired group length (PS3.5 7.2), which every library drops when it writes, is still there at the other end."""
    content = _write(tmp_path / "a.dcm", "1.2.1").read_bytes()
    first = content.index(b"\x08\x00\x16\x00UI")
    group_length = b"\x08\x00\x00\x00UL\x04\x00\x2c\x00\x00\x00"
    old = tmp_path / "old.dcm"
    old.write_bytes(content[:first] + group_length + content[first:])
    assert send([old], archive.peer()).sent == [old]
    assert archive.stored["1.2.1"] == group_length + content[first:]


def test_the_contexts_are_those_of_the_files(archive: Archive, tmp_path: Path) -> None:
    """One association offers each SOP class with the transfer syntax its files have, once."""
    files = [_write(tmp_path / f"{n}.dcm", f"1.2.{n}") for n in range(3)]
    files.append(_write(tmp_path / "us.dcm", "1.2.9", ULTRASOUND, JPEGBaseline8Bit))
    send(files, archive.peer())
    assert archive.proposed == [
        [(COMPREHENSIVE_SR, (str(ExplicitVRLittleEndian),)), (ULTRASOUND, (str(JPEGBaseline8Bit),))]
    ]


def test_what_is_no_dicom_file_is_skipped_with_its_reason(archive: Archive, tmp_path: Path) -> None:
    """A text, an empty file, a cut one and a DICOMDIR are named; the DICOM file beside them is sent."""
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut.dcm").write_bytes(bytes(128) + b"DICM\x02\x00\x00\x00UL")
    _write(tmp_path / "DICOMDIR", "1.2.5", "1.2.840.10008.1.3.10")
    good = _write(tmp_path / "good.dcm", "1.2.1")
    done: list[Path] = []
    result = send(find_files([tmp_path]), archive.peer(), each_done=done.append)
    assert result.sent == [good]
    assert {path.name for path in result.skipped} == {"notes.txt", "empty", "cut.dcm", "DICOMDIR"}
    assert "DICM prefix" in result.skipped[tmp_path / "notes.txt"]
    assert len(done) == 5


def test_a_refused_syntax_is_told_and_the_rest_is_sent(archive: Archive, tmp_path: Path) -> None:
    """A file the archive takes in no context fails with that reason; the others go on."""
    bad = _write(tmp_path / "bad.dcm", "1.2.1", COMPREHENSIVE_SR, JPEGBaseline8Bit)
    good = _write(tmp_path / "good.dcm", "1.2.2")
    result = send([bad, good], archive.peer())
    assert result.sent == [good]
    assert "does not accept" in result.failed[bad]


def test_nothing_accepted_is_told_for_each_file(archive: Archive, tmp_path: Path) -> None:
    """Where every context is refused, every file says so."""
    files = [_write(tmp_path / f"{n}.dcm", f"1.2.{n}", "1.2.840.10008.5.1.4.1.1.7") for n in range(2)]
    result = send(files, archive.peer())
    assert set(result.failed) == set(files)


def test_a_failure_status_is_told(archive: Archive, tmp_path: Path) -> None:
    """What the archive answers stands in the result."""
    archive.status = 0xA700
    file = _write(tmp_path / "a.dcm", "1.2.1")
    assert send([file], archive.peer()).failed == {file: "C-STORE: status 0xA700"}


def test_more_contexts_than_fit_take_more_associations(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An association holds 128 contexts at most (PS3.8 9.3.2.2); the rest goes over the next one."""
    monkeypatch.setattr(module, "MOST_CONTEXTS", 1)
    files = [
        _write(tmp_path / "a.dcm", "1.2.1"),
        _write(tmp_path / "b.dcm", "1.2.2", ULTRASOUND, JPEGBaseline8Bit),
        _write(tmp_path / "c.dcm", "1.2.3"),
    ]
    assert send(files, archive.peer()).sent == files
    assert [len(proposed) for proposed in archive.proposed] == [1, 1, 1]


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    """A PACS that does not answer at all is no list of failed files."""
    peer = Peer(host="127.0.0.1", port=free_port(), called_ae_title="A", calling_ae_title="B", timeout_s=1.0)
    with pytest.raises(PacsUnavailable):
        send([_write(tmp_path / "a.dcm", "1.2.1")], peer)


def test_hidden_files_are_left_out_and_missing_ones_named(tmp_path: Path) -> None:
    """A folder gives its visible files, sorted; a path that is not there is an error."""
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("x")
    (tmp_path / "a").write_text("x")
    assert find_files([tmp_path]) == [tmp_path / "a", tmp_path / "sub" / "b"]
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        find_files([tmp_path / "nothing-here"])


def test_progress_is_shown(archive: Archive, tmp_path: Path) -> None:
    """The command line's form sends the same and draws a bar; no name of a patient is printed."""
    _write(tmp_path / "a.dcm", "1.2.1")
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    result = send_files(
        [tmp_path], host="127.0.0.1", port=archive.port, called_ae_title=archive.ae_title, console=console
    )
    assert len(result.sent) == 1
    assert "1/1" in output.getvalue()
    assert "Doe" not in output.getvalue()


def test_hostile_meta_information_is_skipped(sample_data: Path) -> None:
    """None of the malformed sample files makes the sender fall over while it looks at them."""
    for path in find_files([sample_data / "malformed"]):
        assert module.describe(path)


def test_a_stray_delimiter_is_left_out(archive: Archive, tmp_path: Path) -> None:
    """A second delimiter behind the pixel data, over which receivers lose the association, is not sent; all else is."""
    good = _write(tmp_path / "good.dcm", "1.2.1", ULTRASOUND, JPEGBaseline8Bit)
    stray = tmp_path / "stray.dcm"
    stray.write_bytes(good.read_bytes() + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00")
    result = send([stray], archive.peer())
    assert (result.sent, list(result.mended)) == ([stray], [stray])
    assert good.read_bytes().endswith(archive.stored["1.2.1"])
    assert archive.stored["1.2.1"].endswith(b"\xfe\xff\xdd\xe0\x00\x00\x00\x00")


def test_a_real_clip_with_a_stray_delimiter_arrives_whole(archive: Archive, sample_data: Path) -> None:
    """The frames of a real ultrasound clip reach the archive as they lie in the file."""
    path = sample_data / "us" / "echo_a4c_acuson_sequoia_65f_jpegbaseline.dcm"
    result = send([path], archive.peer())
    assert list(result.mended) == [path]
    (stored,) = archive.stored.values()
    pixel_data = dcmread(path).PixelData
    assert len(pixel_data) > 3_000_000
    assert pixel_data in stored
