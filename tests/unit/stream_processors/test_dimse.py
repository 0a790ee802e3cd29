"""Writing to an archive by C-STORE, against pynetdicom's SCP in this process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt

from stream_processors.errors import (
    CommitmentPending,
    PacsFault,
    PacsRefused,
    PacsUnauthorized,
    PacsUnavailable,
    StoreUnverified,
)
from stream_processors.events import Stored
from stream_processors.pacs.association import Peer, association, contexts_for, echo, require_stored, status_of
from stream_processors.pacs.client import EncodedReport
from stream_processors.pacs.dimse import DimseWriter
from stream_processors.settings import CommitmentSettings, DimseSettings
from tests.doubles.archive import COMPREHENSIVE_SR, Archive, free_port, part10_bytes


def _report(uid: str = "2.25.1") -> EncodedReport:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = COMPREHENSIVE_SR, uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "2.25.2"
    dataset.PatientName = "Doe^Jane"
    return EncodedReport(
        sop_class_uid=COMPREHENSIVE_SR,
        sop_instance_uid=uid,
        series_instance_uid="2.25.2",
        study_instance_uid="1.2.3",
        content=part10_bytes(dataset),
    )


@pytest.fixture(scope="module")
def shared_archive() -> Iterator[Archive]:
    """One archive that takes Comprehensive SR; ending an SCP takes half a second."""
    made = Archive((COMPREHENSIVE_SR, None))
    yield made
    made.close()


@pytest.fixture
def archive(shared_archive: Archive) -> Archive:
    """The archive, empty and well."""
    shared_archive.reset()
    return shared_archive


def _settings(archive: Archive, commitment: CommitmentSettings | None = None) -> DimseSettings:
    return DimseSettings(
        host="127.0.0.1", port=archive.port, called_ae_title="ARCHIVE", timeout_s=5.0, commitment=commitment
    )


@pytest.fixture
def writer(archive: Archive) -> Iterator[DimseWriter]:
    """A writer without storage commitment."""
    made = DimseWriter(_settings(archive))
    yield made
    made.close()


def test_a_report_is_stored_and_found(writer: DimseWriter, archive: Archive) -> None:
    """The archive gets the data set, and verification finds it there."""
    assert writer.store(_report()) is Stored.CREATED
    writer.verify(_report())
    assert list(archive.stored) == ["2.25.1"]


def test_a_second_store_finds_the_first(writer: DimseWriter, archive: Archive) -> None:
    """What the archive has is not sent again."""
    writer.store(_report())
    archive.status = 0xC000
    assert writer.store(_report()) is Stored.ALREADY


def test_exactly_our_contexts_are_proposed(writer: DimseWriter, archive: Archive) -> None:
    """The association for a report offers its SOP class with explicit and implicit VR, and nothing else."""
    writer.store(_report())
    syntaxes = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
    assert archive.proposed[-1] == [(COMPREHENSIVE_SR, (syntax,)) for syntax in syntaxes]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (0xA700, PacsUnavailable),
        (0xA7FF, PacsUnavailable),
        (0xA900, PacsRefused),
        (0xC123, PacsRefused),
        (0x0122, PacsRefused),
        (0x0110, PacsFault),
        (0x0124, PacsUnauthorized),
    ],
)
def test_a_failure_status_means_what_the_standard_says(
    writer: DimseWriter, archive: Archive, status: int, error: type[Exception]
) -> None:
    """Out of resources is waited for, a wrong data set is not sent again (PS3.4 B.2.3)."""
    archive.status = status
    with pytest.raises(error, match=f"0x{status:04X}") as raised:
        writer.store(_report())
    assert type(raised.value) is error


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007])
def test_a_warning_is_stored(status: int) -> None:
    """Coerced or discarded elements are a success with a warning (PS3.4 B.2.3)."""
    require_stored(status, "storing")


def test_an_archive_that_takes_no_reports_refuses_them() -> None:
    """A class that is not accepted is a refusal, not a reason to try for ever."""
    other = Archive(("1.2.840.10008.5.1.4.1.1.7", None))
    try:
        with (
            pytest.raises(PacsRefused, match="accepts none"),
            association(other.peer(), contexts_for([COMPREHENSIVE_SR])),
        ):
            pass
    finally:
        other.close()


def test_nobody_there_is_unavailable() -> None:
    """A closed port is waited for."""
    peer = Peer(host="127.0.0.1", port=free_port(), called_ae_title="A", calling_ae_title="B", timeout_s=1.0)
    with pytest.raises(PacsUnavailable, match="cannot be reached"):
        echo(peer)


def test_no_answer_is_unavailable() -> None:
    """Pynetdicom's empty data set, which means time-out or abort, never passes as success."""
    with pytest.raises(PacsUnavailable, match="no answer"):
        status_of(Dataset(), "C-STORE")


def test_a_store_that_is_not_found_is_not_verified(writer: DimseWriter, archive: Archive) -> None:
    """Success without the object is no success."""
    writer.store(_report())
    archive.forgets = True
    with pytest.raises(StoreUnverified, match="does not find"):
        writer.verify(_report())


def test_small_messages_are_sent_at_once(archive: Archive) -> None:
    """TCP_NODELAY is set on every association that is opened."""
    seen: list[int] = []

    def look(event: evt.Event) -> None:
        connection = event.assoc.dul.socket.socket
        seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with association(archive.peer(), contexts_for([COMPREHENSIVE_SR]), [(evt.EVT_ESTABLISHED, look)]):
        pass
    assert seen == [1]


def test_the_stored_bytes_are_the_ones_that_were_sent(writer: DimseWriter, archive: Archive) -> None:
    """What goes over the wire is the data set of the file, byte for byte."""
    report = _report()
    writer.store(report)
    assert report.content.endswith(archive.stored["2.25.1"])


@pytest.fixture
def desk_settings(tmp_path: Path) -> CommitmentSettings:
    """A commitment desk on a free port with a short patience."""
    return CommitmentSettings(
        listen_host="127.0.0.1", listen_port=free_port(), ledger=tmp_path / "state" / "commitment.db", wait_s=3.0
    )


@pytest.mark.parametrize("way", ["same", "new"])
def test_a_report_stands_once_the_archive_commits_to_it(
    archive: Archive, desk_settings: CommitmentSettings, way: str
) -> None:
    """The promise counts whether it comes on the association of the request or on a new one (PS3.4 J.3)."""
    archive.commitment, archive.requester = way, ("127.0.0.1", desk_settings.listen_port)
    writer = DimseWriter(_settings(archive, desk_settings))
    try:
        assert writer.store(_report()) is Stored.CREATED
        writer.verify(_report())
        writer.verify(_report())
        assert len(archive.transactions) == 1
        assert writer.store(_report()) is Stored.ALREADY
    finally:
        writer.close()


def test_a_broken_promise_is_told_and_asked_for_again(archive: Archive, desk_settings: CommitmentSettings) -> None:
    """A failure reason ends the verification; the next one makes a new request."""
    archive.commitment, archive.requester = "failed", ("127.0.0.1", desk_settings.listen_port)
    writer = DimseWriter(_settings(archive, desk_settings))
    try:
        writer.store(_report())
        with pytest.raises(StoreUnverified, match="274"):
            writer.verify(_report())
        archive.commitment = "new"
        writer.verify(_report())
        assert len(set(archive.transactions)) == 2
    finally:
        writer.close()


def test_an_answer_after_a_restart_finds_its_question(archive: Archive, desk_settings: CommitmentSettings) -> None:
    """The transaction outlives the process that asked: the next one does not ask again and sees the answer."""
    archive.commitment = "never"
    patient = desk_settings.model_copy(update={"wait_s": 0.2})
    first = DimseWriter(_settings(archive, patient))
    first.store(_report())
    with pytest.raises(CommitmentPending):
        first.verify(_report())
    first.close()
    archive.requester = ("127.0.0.1", desk_settings.listen_port)
    second = DimseWriter(_settings(archive, desk_settings))
    try:
        answer = Dataset()
        answer.TransactionUID = archive.transactions[0]
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = COMPREHENSIVE_SR, "2.25.1"
        answer.ReferencedSOPSequence = [item]
        archive._new(None, answer)
        second.verify(_report())
        assert len(archive.transactions) == 1
    finally:
        second.close()


def test_a_question_nobody_answered_is_asked_again_after_a_while(
    archive: Archive, desk_settings: CommitmentSettings
) -> None:
    """An overdue transaction is issued once more under a new UID."""
    archive.commitment = "never"
    hasty = desk_settings.model_copy(update={"wait_s": 0.1, "reissue_after_s": 0.01})
    writer = DimseWriter(_settings(archive, hasty))
    try:
        for _ in range(2):
            with pytest.raises(CommitmentPending):
                writer.verify(_report())
        assert len(set(archive.transactions)) == 2
    finally:
        writer.close()
