"""Reading, storing and sending against a real Orthanc."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from engines.records import Modality
from orthanc_plugin.wire.events import SeriesClaim, StudyReady
from stream_processors.errors import ClaimExpired, ClaimSuperseded, PacsRefused
from stream_processors.events import Stored
from stream_processors.local.orthanc import AE_TITLE, LocalOrthanc, OrthancMissing, find_orthanc
from stream_processors.pacs.association import Peer, echo
from stream_processors.pacs.client import EncodedReport
from stream_processors.pacs.dimse import DimseWriter
from stream_processors.pacs.orthanc_rest import OrthancRest
from stream_processors.pacs.send import find_files, send
from stream_processors.pipeline import encoded
from stream_processors.reports.document import MANUFACTURER
from stream_processors.reports.measurement_report import build_reports
from stream_processors.settings import DimseSettings, RestSettings
from tests.doubles.archive import part10_bytes
from tests.doubles.reports import make_context, make_header, make_prediction
from tests.doubles.small_studies import ECG, MR, instance


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOrthanc]:
    """An Orthanc without our plugin, for all tests of this file."""
    try:
        find_orthanc()
    except OrthancMissing as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI needs Orthanc: {error}")
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("orthanc")
    with LocalOrthanc(folder, configuration={"DicomAlwaysAllowFind": True}) as running:
        yield running


@pytest.fixture
def rest(orthanc: LocalOrthanc) -> Iterator[OrthancRest]:
    """The client under test, on an Orthanc without studies."""
    for study in httpx.get(f"{orthanc.url}/studies").json():
        httpx.delete(f"{orthanc.url}/studies/{study}")
    client = OrthancRest(RestSettings(url=orthanc.url), largest_study_bytes=10**9)
    yield client
    client.close()


class Sink:
    """Keeps what was fetched."""

    def __init__(self) -> None:
        self.instances: list[bytes] = []

    def append(self, chunks: Any) -> None:
        self.instances.append(b"".join(chunks))


def _peer(orthanc: LocalOrthanc, *, timeout_s: float = 20.0) -> Peer:
    return Peer(
        host="127.0.0.1",
        port=orthanc.dicom_port,
        called_ae_title=AE_TITLE,
        calling_ae_title="PURKINJE",
        timeout_s=timeout_s,
    )


def _reports(modality: Modality = Modality.ECHO, **changes: Any) -> tuple[EncodedReport, EncodedReport]:
    headers = [make_header(modality)]
    report, companion = build_reports(
        make_prediction(modality, "answered", headers), make_context(modality, headers, **changes)
    )
    return encoded(report), encoded(companion)


def _stack(folder: Path, count: int) -> list[Path]:
    """``count`` MR instances of one series as files."""
    dataset = dcmread(get_testdata_file("MR_small.dcm"))
    paths = []
    for number in range(count):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.7.{number + 1}"
        dataset.InstanceNumber = number + 1
        path = folder / f"{count - number:03d}.dcm"
        dataset.save_as(path)
        paths.append(path)
    return paths


def _claim(orthanc: LocalOrthanc) -> StudyReady:
    (series,) = httpx.get(f"{orthanc.url}/series?expand").json()
    claim = SeriesClaim(
        series_instance_uid=series["MainDicomTags"]["SeriesInstanceUID"],
        pacs_series_id=series["ID"],
        instance_count=len(series["Instances"]),
        sop_class_uids=(),
        digest="",
    )
    return StudyReady(
        source="urn:orthanc:test",
        study_instance_uid="1.2.3",
        pacs_study_id=series["ParentStudy"],
        modality="cmr",
        revision=1,
        supersedes=None,
        series=(claim,),
        content_digest="0" * 64,
        completeness_rule="test",
        last_received_utc="",
        announced_utc="",
        sequence=1,
    )


def test_a_series_that_was_sent_is_fetched_byte_for_byte(
    orthanc: LocalOrthanc, rest: OrthancRest, tmp_path: Path
) -> None:
    """C-STORE in, REST out: sorted by UID, and the MD5 of each file is the one Orthanc keeps."""
    files = _stack(tmp_path, 40)
    assert len(send(files, _peer(orthanc)).sent) == 40
    sink = Sink()
    uids = rest.fetch(_claim(orthanc), sink)
    assert list(uids) == sorted(f"1.2.826.0.1.7.{number + 1}" for number in range(40))
    for uid, content in zip(uids, sink.instances, strict=True):
        (found,) = httpx.post(f"{orthanc.url}/tools/lookup", content=uid).json()
        kept = httpx.get(f"{orthanc.url}/instances/{found['ID']}/attachments/dicom/md5").text
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == kept
        assert dcmread(BytesIO(content)).SOPInstanceUID == uid


def test_a_study_that_changed_or_vanished_is_told(orthanc: LocalOrthanc, rest: OrthancRest, tmp_path: Path) -> None:
    """One instance less is superseded, none left is expired."""
    send(_stack(tmp_path, 3), _peer(orthanc))
    claim = _claim(orthanc)
    first, *_ = httpx.get(f"{orthanc.url}/instances").json()
    httpx.delete(f"{orthanc.url}/instances/{first}")
    with pytest.raises(ClaimSuperseded):
        rest.fetch(claim, Sink())
    httpx.delete(f"{orthanc.url}/studies/{claim.pacs_study_id}")
    with pytest.raises(ClaimExpired):
        rest.fetch(claim, Sink())


def test_a_report_is_stored_once_and_found_with_its_bytes(rest: OrthancRest) -> None:
    """First created, then already there; what is found is what was sent."""
    report, _ = _reports()
    assert rest.find(report.sop_instance_uid) is None
    assert rest.store(report) is Stored.CREATED
    rest.verify(report)
    assert rest.store(report) is Stored.ALREADY
    assert rest.find(report.sop_instance_uid) == report.content


def test_the_first_copy_of_a_report_wins(rest: OrthancRest) -> None:
    """Other bytes under the same UID do not replace what stands."""
    report, _ = _reports()
    rest.store(report)
    changed = EncodedReport(**{**vars(report), "content": report.content.replace(b"node-1", b"node-2")})
    assert rest.store(changed) is Stored.ALREADY
    assert rest.find(report.sop_instance_uid) == report.content


def test_earlier_reports_of_ours_are_found_in_their_study(rest: OrthancRest) -> None:
    """Both documents of the study come back; another study's and another manufacturer's do not."""
    report, companion = _reports()
    for one in (report, companion):
        rest.store(one)
    found = rest.reports_of("1.2.3", manufacturer=MANUFACTURER)
    assert set(found) == {report.content, companion.content}
    assert rest.reports_of("1.2.4", manufacturer=MANUFACTURER) == ()
    assert rest.reports_of("1.2.3", manufacturer="Somebody") == ()


def test_junk_is_refused_for_good(rest: OrthancRest) -> None:
    """What Orthanc cannot read is not sent again and again."""
    report, _ = _reports()
    with pytest.raises(PacsRefused):
        rest.store(EncodedReport(**{**vars(report), "content": b"junk"}))


def test_ping_names_what_answers(rest: OrthancRest, orthanc: LocalOrthanc) -> None:
    """One line with the version for ``purkinje check``; the plugin is not loaded here."""
    assert "Purkinje local 1." in rest.ping()
    assert rest.plugin_status() is None
    assert "answers C-ECHO" in echo(_peer(orthanc))


def test_reports_by_c_store_stand_in_orthanc(orthanc: LocalOrthanc, rest: OrthancRest) -> None:
    """The DIMSE writer stores, verifies by C-FIND and recognises what is there; the bytes are those of REST."""
    settings = DimseSettings(host="127.0.0.1", port=orthanc.dicom_port, called_ae_title=AE_TITLE)
    writer = DimseWriter(settings)
    for one in _reports(Modality.ECG):
        assert writer.store(one) is Stored.CREATED
        writer.verify(one)
        assert writer.store(one) is Stored.ALREADY
        stored = rest.find(one.sop_instance_uid)
        assert stored is not None
        assert dcmread(BytesIO(stored)) == dcmread(BytesIO(one.content))
    writer.close()


def test_every_sample_is_sent_or_named(orthanc: LocalOrthanc, rest: OrthancRest, sample_data: Path) -> None:
    """Decoys and malformed files neither stop the sender nor vanish without a word.

    At a truncated data set Orthanc waits for the rest: those end by our time-out.
    """
    files = find_files([sample_data / "malformed", sample_data / "decoy", sample_data / "ecg"])
    result = send(files, _peer(orthanc, timeout_s=2.0))
    assert len(result.sent) + len(result.skipped) + len(result.failed) == len(files)
    assert all(reason for reason in (*result.skipped.values(), *result.failed.values()))
    assert len(result.sent) > len(files) / 3
    assert rest.ping()


def test_the_same_patients_other_study_is_found_and_fetched(orthanc: LocalOrthanc, rest: OrthancRest) -> None:
    """An ECG two days after the images finds them, not those of another patient, issuer or month."""
    own = {"PatientID": "ID*", "IssuerOfPatientID": "A"}
    images = instance(MR, "MR", "1.2.826.0.1.8", StudyDate="20260101", **own)
    studies = [
        instance(ECG, "ECG", "1.2.826.0.1.9", StudyDate="20260103", **own),
        images,
        instance(MR, "MR", "1.2.826.0.1.10", StudyDate="20260103", PatientID="ID*", IssuerOfPatientID="B"),
        instance(MR, "MR", "1.2.826.0.1.11", StudyDate="20260103", PatientID="ID1"),
        instance(MR, "MR", "1.2.826.0.1.12", StudyDate="20260103", PatientID="id*"),
        instance(MR, "MR", "1.2.826.0.1.13", StudyDate="20260203", **own),
    ]
    for dataset in studies:
        httpx.post(f"{orthanc.url}/instances", content=part10_bytes(dataset)).raise_for_status()
    (found,) = rest.partners_of("1.2.826.0.1.9", Modality.CMR, window_days=30)
    assert (found.study_instance_uid, found.days_apart) == ("1.2.826.0.1.8", 2)
    sink = Sink()
    assert rest.fetch(found, sink) == (images.SOPInstanceUID,)
    assert sink.instances == [part10_bytes(images)]
    assert [one.study_instance_uid for one in rest.partners_of("1.2.826.0.1.8", Modality.ECG, window_days=2)] == [
        "1.2.826.0.1.9"
    ]
