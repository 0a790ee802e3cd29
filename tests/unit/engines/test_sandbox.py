"""The decoding process: same answers as in-process, and nothing a file does reaches the parent."""

from __future__ import annotations

import inspect
import io
import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from engines.decode import exchange, sandbox, sandbox_child
from engines.decode.echo import US_MULTI_FRAME
from engines.decode.headers import REPORT_KEYWORDS, header_extract
from engines.decode.sandbox import ChildFailed, DecodeLimits, DecodeSandbox
from engines.decode.spool import Spool
from engines.decode.study import StudyReading, read_instances
from engines.errors import InputRefused, NotApplicable, RefusalCode
from engines.preprocess.cmr_volume import CmrVolumeSpec
from engines.preprocess.spec import CmrSpec, EcgSpec, EchoSpec
from engines.records import Modality
from tests.doubles.hearts import written
from training.phantoms.dicom import Patient

CANARY = Patient(name="CANARY^KIWI", patient_id="CANARY-4711", birth_date="19010203")
_SPECS = json.loads(Path(__file__).with_name("test_preprocess_specs.json").read_text())
SPECS = {
    Modality.ECHO: EchoSpec(**_SPECS["echo"]),
    Modality.CMR: CmrSpec(**_SPECS["cmr"]),
    Modality.ECG: EcgSpec(**_SPECS["ecg"]),
}
VOLUMES = CmrVolumeSpec(
    kind="cmr_volume",
    preprocess_version=1,
    heart=SPECS[Modality.CMR].model_copy(update={"size_px": 32, "pixel_spacing_mm": 5.0}),
    slices=12,
    slice_distance_mm=10.0,
    phases=6,
    ventricle_slices_min=6,
    slice_gap_max=1.5,
    outside_fraction_max=0.15,
)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[Modality, list[bytes]]:
    """One phantom study of each modality, of a patient whose name must not leak."""
    return {modality: written(modality.value, 11, tmp_path_factory.mktemp(modality), CANARY) for modality in Modality}


@pytest.fixture(scope="module")
def child() -> Iterator[DecodeSandbox]:
    """A sandbox that the tests of this module share."""
    shared = DecodeSandbox()
    yield shared
    shared.close()


def spooled(instances: list[bytes]) -> Spool:
    """A spool of whole instances."""
    spool = Spool()
    for each in instances:
        spool.append([each])
    return spool


def read(child: DecodeSandbox, modality: Modality, instances: list[bytes]) -> StudyReading:
    """One study through the child."""
    with spooled(instances) as spool:
        return child.read_study(modality, spool, SPECS[modality])


def pid_of(child: DecodeSandbox) -> int:
    """Process ID of the running child."""
    assert child._process is not None
    return child._process.pid


def open_descriptors(child: DecodeSandbox) -> int:
    """How many files the child holds open."""
    return len(list(Path(f"/proc/{pid_of(child)}/fd").iterdir()))


def over_limit(reading: StudyReading) -> bool:
    """Refused for its cost."""
    refusal = reading.refusal
    return isinstance(refusal, InputRefused) and refusal.code is RefusalCode.LIMITS_EXCEEDED and not reading.prepared


@pytest.mark.parametrize("modality", Modality)
def test_the_answer_equals_reading_in_process(
    modality: Modality, studies: dict[Modality, list[bytes]], child: DecodeSandbox
) -> None:
    """Arrays, sources, regions, notes and headers come through the exchange unchanged, for every modality."""
    apart = read(child, modality, studies[modality])
    here = read_instances(modality, [io.BytesIO(each) for each in studies[modality]], SPECS[modality])
    assert apart.refusal is here.refusal is None
    assert apart.headers == here.headers
    assert len(apart.prepared) == len(here.prepared) == 1
    for one, other in zip(apart.prepared, here.prepared, strict=True):
        assert (one.sources, one.region_px, one.notes) == (other.sources, other.region_px, other.notes)
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            assert array.dtype == other.arrays[name].dtype
            assert np.array_equal(array, other.arrays[name])


def test_volumes_for_the_cross_modal_check_come_through(
    studies: dict[Modality, list[bytes]], child: DecodeSandbox
) -> None:
    """The child prepares cardiac MR as volumes too, and its next study as the engine's spec says."""
    with spooled(studies[Modality.CMR]) as spool:
        apart = child.read_study(Modality.CMR, spool, VOLUMES)
    here = read_instances(Modality.CMR, [io.BytesIO(each) for each in studies[Modality.CMR]], VOLUMES)
    (one,), (other,) = apart.prepared, here.prepared
    assert one.arrays["volumes"].shape == (1, 2, 12, 32, 32)
    assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())
    assert read(child, Modality.CMR, studies[Modality.CMR]).prepared[0].arrays.keys() != one.arrays.keys()


def test_refusals_keep_their_type_code_and_reason(studies: dict[Modality, list[bytes]], child: DecodeSandbox) -> None:
    """Not applicable and refused arrive as what they are, with up to three headers of what was looked at."""
    foreign = read(child, Modality.CMR, studies[Modality.ECG])
    broken = read(child, Modality.ECG, [b"\0" * 300])
    here = read_instances(Modality.CMR, [io.BytesIO(each) for each in studies[Modality.ECG]], SPECS[Modality.CMR])
    assert isinstance(foreign.refusal, NotApplicable)
    assert isinstance(broken.refusal, InputRefused)
    assert str(foreign.refusal) == str(here.refusal)
    assert broken.refusal.code is RefusalCode.UNDECODABLE
    assert (len(foreign.headers), len(broken.headers)) == (1, 0)


def test_one_child_serves_study_after_study(studies: dict[Modality, list[bytes]], child: DecodeSandbox) -> None:
    """The child is started once and keeps no descriptor of a study it has answered."""
    read(child, Modality.ECG, studies[Modality.ECG])
    pid, open_files = pid_of(child), open_descriptors(child)
    for _ in range(3):
        assert read(child, Modality.ECG, studies[Modality.ECG]).refusal is None
    assert pid_of(child) == pid
    assert open_descriptors(child) == open_files


def test_a_killed_child_costs_one_study(studies: dict[Modality, list[bytes]], child: DecodeSandbox) -> None:
    """A child that dies over a study ends in a refusal; the next study gets a new child and is read."""
    read(child, Modality.ECG, studies[Modality.ECG])
    pid = pid_of(child)
    os.kill(pid, signal.SIGSTOP)  # holds the study until the kill
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    assert over_limit(read(child, Modality.ECG, studies[Modality.ECG]))
    assert read(child, Modality.ECG, studies[Modality.ECG]).refusal is None
    assert pid_of(child) != pid


def test_the_parent_gives_up_in_time(
    studies: dict[Modality, list[bytes]], child: DecodeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that does not answer within the wall limit is ended and the study refused."""
    read(child, Modality.ECG, studies[Modality.ECG])
    monkeypatch.setattr(child, "_limits", DecodeLimits(wall_s=0.3))
    pid = pid_of(child)
    os.kill(pid, signal.SIGSTOP)
    before = time.monotonic()
    assert over_limit(read(child, Modality.ECG, studies[Modality.ECG]))
    assert time.monotonic() - before < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def rle_frame(value: int, side: int) -> bytes:
    """An RLE frame of one grey level: 128 pixels in two bytes (PS3.5 G)."""
    return (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + bytes([0x81, value]) * (side**2 // 128)


def swollen_clip(side: int = 4096, frames: int = 20) -> bytes:
    """A clip of a few megabytes that is as large as an image may be when decoded: 16 million pixels a frame."""
    clip = Dataset()
    clip.file_meta = FileMetaDataset()
    clip.file_meta.TransferSyntaxUID = RLELossless
    clip.SOPClassUID = clip.file_meta.MediaStorageSOPClassUID = US_MULTI_FRAME
    clip.SOPInstanceUID = clip.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    clip.StudyInstanceUID, clip.SeriesInstanceUID, clip.Modality = "2.25.2", "2.25.3", "US"
    clip.NumberOfFrames, clip.Rows, clip.Columns, clip.FrameTime = frames, side, side, "50"
    clip.SamplesPerPixel, clip.PhotometricInterpretation, clip.PixelRepresentation = 1, "MONOCHROME2", 0
    clip.BitsAllocated, clip.BitsStored, clip.HighBit = 8, 8, 7
    clip.PixelData = encapsulate([rle_frame(200 * (number % 2), side) for number in range(frames)])
    clip["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    clip.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_memory_is_limited(studies: dict[Modality, list[bytes]]) -> None:
    """A clip that needs more memory than allowed is refused by the child, which serves on."""
    tight = DecodeSandbox(DecodeLimits(memory_bytes=440_000_000))
    try:
        assert read(tight, Modality.ECG, studies[Modality.ECG]).refusal is None
        pid = pid_of(tight)
        assert over_limit(read(tight, Modality.ECHO, [swollen_clip()]))
        assert read(tight, Modality.ECG, studies[Modality.ECG]).refusal is None
        assert pid_of(tight) == pid
    finally:
        tight.close()


def test_processor_time_is_limited() -> None:
    """A clip that needs more processor time than allowed ends the child long before the wall limit."""
    hasty = DecodeSandbox(DecodeLimits(cpu_s=0.1))
    assert over_limit(read(hasty, Modality.ECHO, [swollen_clip()]))
    assert hasty._process is None


def test_the_allowance_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time counts per study: what earlier ones used is added to the limit, which the kernel keeps."""
    limits: list[tuple[int, int]] = []
    used = SimpleNamespace(ru_utime=100.0, ru_stime=20.0)
    fake = SimpleNamespace(
        getrusage=lambda _: used,
        setrlimit=lambda which, limit: limits.append((which, limit[0])),
        RLIMIT_CPU=resource.RLIMIT_CPU,
        RUSAGE_SELF=resource.RUSAGE_SELF,
        RLIM_INFINITY=resource.RLIM_INFINITY,
    )
    monkeypatch.setattr(sandbox_child, "resource", fake)
    sandbox_child._allow_cpu(30)
    assert limits == [(resource.RLIMIT_CPU, 151)]


def test_headers_hold_what_a_report_needs(studies: dict[Modality, list[bytes]], child: DecodeSandbox) -> None:
    """Extracts are Part 10 files of allowed elements, patient included, without pixels, waveforms or private elements."""
    odd = dcmread(io.BytesIO(studies[Modality.ECG][0]))
    odd.add_new(0x00091010, "LO", "private")
    odd.PatientComments = "not needed"
    buffer = io.BytesIO()
    odd.save_as(buffer)
    for modality, instances in ((Modality.ECG, [buffer.getvalue()]), (Modality.ECHO, studies[Modality.ECHO])):
        (header,) = read(child, modality, instances).headers
        extract = dcmread(io.BytesIO(header))
        assert {element.keyword for element in extract} <= set(REPORT_KEYWORDS)
        assert str(extract.PatientName) == CANARY.name
        assert len(header) < 4000
    assert len(read(child, Modality.CMR, studies[Modality.CMR]).headers) == 2


def test_the_allow_list_names_no_content() -> None:
    """No keyword of the list is bulk data or free text about the patient."""
    assert not {"PixelData", "WaveformSequence", "WaveformData", "PatientComments", "PatientAddress"} & set(
        REPORT_KEYWORDS
    )
    assert all(tag_for_keyword(keyword) for keyword in REPORT_KEYWORDS)


def test_the_allow_list_holds_what_the_picture_of_a_report_needs() -> None:
    """Without these a picture of a lossy source would say that it is none, and could not say where left is."""
    assert {"LossyImageCompression", "ImageOrientationPatient"} <= set(REPORT_KEYWORDS)


def babbling_study() -> list[bytes]:
    """An ECG header that makes a parser warn and quote the patient: wrong dates, character sets, UIDs and numbers."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.2", "2.25.3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword in ("PatientBirthDate", "StudyDate", "PatientAge", "SeriesNumber", "StudyTime"):
            dataset.add_new(tag_for_keyword(keyword), "LO", CANARY.name)
        dataset.SpecificCharacterSet = dataset.PatientName = dataset.PatientID = CANARY.name
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
    return [buffer.getvalue()]


def test_parsers_warn_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    """Warnings that quote a patient reach neither the child's streams, nor the parent's, nor the refusal."""
    study = babbling_study()
    recwarn.clear()
    said = (tmp_path / "said").open("w+b")
    plain = subprocess.Popen

    def overheard(command: list[str], **options: Any) -> Any:
        return plain(command, **{**options, "stdout": said, "stderr": said})

    monkeypatch.setattr(sandbox.subprocess, "Popen", overheard)
    eager = DecodeSandbox()
    try:
        reading = read(eager, Modality.ECG, study)
    finally:
        eager.close()
    assert reading.refusal is not None
    assert CANARY.name not in str(reading.refusal)
    said.seek(0)
    assert said.read() == b""
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


def test_the_child_writes_nowhere(child: DecodeSandbox, studies: dict[Modality, list[bytes]]) -> None:
    """Input and output of the child are closed off: what a library prints below Python is lost too."""
    read(child, Modality.ECG, studies[Modality.ECG])
    assert {str(Path(f"/proc/{pid_of(child)}/fd/{number}").readlink()) for number in range(3)} == {"/dev/null"}


def test_nothing_is_unpickled() -> None:
    """An answer that carries a pickle is refused; none of the modules of the exchange knows pickling."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        archive = io.BytesIO()
        np.savez(archive, trap=np.array([{"a": 1}], dtype=object))
        body = (2).to_bytes(4, "big") + b"{}" + archive.getvalue()
        theirs.sendall(len(body).to_bytes(8, "big") + body)
        with pytest.raises(ValueError, match="allow_pickle"):
            exchange.receive(ours)
    for module in (exchange, sandbox, sandbox_child):
        assert "import pickle" not in inspect.getsource(module)


@pytest.mark.parametrize("length", [0, 3, 2**40])
def test_an_answer_of_impossible_length_is_refused(length: int) -> None:
    """A length that no answer has is not allocated."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(length.to_bytes(8, "big"))
        with pytest.raises(ValueError, match="a message of"):
            exchange.receive(ours)


def npz() -> bytes:
    """An archive of nothing."""
    buffer = io.BytesIO()
    np.savez(buffer)
    return buffer.getvalue()


GARBLED = {
    "no archive": b"\0\0\0\x02{}not an archive",
    "a broken archive": b"\0\0\0\x02{}PK\x03\x04" + bytes(40),
    "an array": b"\0\0\0\x02{}\x93NUMPY\x01\0",
    "a list": b"\0\0\0\x02[]" + npz(),
    "nothing": b"\0\0\0\x02{}" + npz(),
    "no JSON": b"\0\0\0\x02{[" + npz(),
    "a length beyond the end": b"\xff\xff\xff\xff{}",
}


@pytest.mark.parametrize("body", GARBLED.values(), ids=GARBLED.keys())
def test_a_garbled_answer_is_a_refusal(body: bytes, studies: dict[Modality, list[bytes]]) -> None:
    """Whatever a child answers, the parent refuses the study and starts a new child."""
    garbled = DecodeSandbox()
    ours, theirs = socket.socketpair()
    with theirs, subprocess.Popen(["sleep", "60"]) as idle:
        garbled._connection, garbled._process = ours, idle
        theirs.sendall(len(body).to_bytes(8, "big") + body)
        try:
            assert over_limit(read(garbled, Modality.ECG, studies[Modality.ECG]))
            assert garbled._process is None
        finally:
            garbled.close()


def test_a_child_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no child can be had the fault is the machine's, not the study's, and worth another try."""
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    with pytest.raises(ChildFailed) as caught:
        read(DecodeSandbox(), Modality.ECG, [b""])
    assert caught.value.retriable


def test_the_child_ends_with_its_parent() -> None:
    """When the connection is closed the child leaves by itself."""
    short = DecodeSandbox()
    short._connected()
    process, connection = short._process, short._connection
    assert process is not None
    assert connection is not None
    connection.close()
    assert process.wait(timeout=10) == 0


def test_an_empty_study_is_not_applicable(child: DecodeSandbox) -> None:
    """A claim without instances is answered, not waited for."""
    assert isinstance(read(child, Modality.ECHO, []).refusal, NotApplicable)


def test_extracts_of_odd_elements_are_left_out() -> None:
    """A header that cannot be written has no extract; one unreadable element does not cost the others."""
    nameless = Dataset()
    nameless.PatientName = CANARY.name
    assert header_extract(nameless) is None
