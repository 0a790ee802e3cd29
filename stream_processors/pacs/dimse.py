"""An archive that is written by C-STORE, as a ``ReportWriter``.

Only the SR contexts that are needed are proposed. That the report stands is checked by C-FIND, or by storage commitment
where the site has it. Reading studies stays with ``orthanc_rest``.
"""

from __future__ import annotations

from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset

from stream_processors.errors import PacsUnavailable, StoreUnverified
from stream_processors.events import Stored
from stream_processors.pacs.association import (
    STUDY_ROOT_FIND,
    Peer,
    association,
    contexts_for,
    echo,
    require_stored,
    status_of,
)
from stream_processors.pacs.client import EncodedReport
from stream_processors.pacs.commitment import CommitmentDesk
from stream_processors.settings import DimseSettings

_PENDING = (0xFF00, 0xFF01)  # PS3.4 C.4.1.1.4


class DimseWriter:
    """C-STORE with verification; one association per request, since reports are few."""

    def __init__(self, settings: DimseSettings) -> None:
        self._peer = peer_of(settings)
        self._desk = CommitmentDesk(settings.commitment, self._peer) if settings.commitment else None

    def ping(self) -> str:
        """C-ECHO. Raises PacsUnavailable."""
        return echo(self._peer)

    def store(self, report: EncodedReport) -> Stored:
        if self._stands(report):
            return Stored.ALREADY
        doing = f"storing {report.sop_instance_uid} at {self._peer}"
        dataset = dcmread(BytesIO(report.content))
        with association(self._peer, contexts_for([report.sop_class_uid])) as opened:
            try:
                response = opened.send_c_store(dataset)
            except (RuntimeError, ValueError) as error:  # the association broke off, or took none of our contexts
                msg = f"{doing}: {type(error).__name__} before the request was sent"
                raise PacsUnavailable(msg) from None
            require_stored(status_of(response, doing), doing)
        return Stored.CREATED

    def verify(self, report: EncodedReport) -> None:
        if self._desk is not None:
            self._desk.require(report)
        elif not self._found(report):
            msg = f"{self._peer} took report {report.sop_instance_uid} but does not find it"
            raise StoreUnverified(msg)

    def close(self) -> None:
        if self._desk is not None:
            self._desk.close()

    def _stands(self, report: EncodedReport) -> bool:
        if self._desk is not None:
            return self._desk.is_committed(report.sop_instance_uid)
        return self._found(report)

    def _found(self, report: EncodedReport) -> bool:
        """C-FIND at the IMAGE level (PS3.4 C.6.2): does the archive list the instance?"""
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID = report.study_instance_uid
        query.SeriesInstanceUID = report.series_instance_uid
        query.SOPInstanceUID = report.sop_instance_uid
        doing = f"looking for {report.sop_instance_uid} at {self._peer}"
        with association(self._peer, contexts_for([STUDY_ROOT_FIND])) as opened:
            statuses = [status_of(response, doing) for response, _ in opened.send_c_find(query, STUDY_ROOT_FIND)]
        if not statuses or statuses[-1] != 0:
            msg = f"{doing}: C-FIND ended with {'no status' if not statuses else f'status 0x{statuses[-1]:04X}'}"
            raise PacsUnavailable(msg)
        return any(status in _PENDING for status in statuses)


def peer_of(settings: DimseSettings) -> Peer:
    """The archive of the settings as an association peer."""
    return Peer(
        host=settings.host,
        port=settings.port,
        called_ae_title=settings.called_ae_title,
        calling_ae_title=settings.calling_ae_title,
        timeout_s=settings.timeout_s,
    )
