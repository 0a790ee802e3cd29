"""A DICOM archive in this process: C-ECHO, C-STORE, C-FIND at the IMAGE level, storage commitment. pynetdicom's own SCP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context

from stream_processors.pacs.association import STUDY_ROOT_FIND, VERIFICATION, Peer
from stream_processors.pacs.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE

COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"


class Archive:
    """Listens on a port of its own until ``close``.

    Attributes:
        stored: data set bytes by SOP Instance UID, as they came over the wire.
        status: answered to every C-STORE.
        forgets: C-FIND lists nothing.
        commitment: how N-ACTION is answered: ``same`` association, ``new`` association, ``never``, or ``failed``.
        requester: host and port of the commitment listener, for ``new`` and ``failed``.
        proposed: the contexts of every association that was asked for.
        transactions: UIDs of the commitment requests.
    """

    def __init__(self, *contexts: tuple[str, str | None], ae_title: str = "ARCHIVE") -> None:
        self.reset()
        self._threads: list[threading.Thread] = []
        entity = AE(ae_title=ae_title)
        for sop_class, syntax in contexts or ((COMPREHENSIVE_SR, None),):
            entity.add_supported_context(sop_class, *([syntax] if syntax else []))
        for sop_class in (VERIFICATION, STUDY_ROOT_FIND):
            entity.add_supported_context(sop_class)
        entity.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._commit),
            (evt.EVT_REQUESTED, self._note_contexts),
        ]
        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.ae_title = ae_title

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def reset(self) -> None:
        """Empty and well, as at the start."""
        self.stored: dict[str, bytes] = {}
        self.status = 0x0000
        self.forgets = False
        self.commitment = "same"
        self.requester: tuple[str, int] | None = None
        self.proposed: list[list[tuple[str, tuple[str, ...]]]] = []
        self.transactions: list[str] = []

    def peer(self, *, timeout_s: float = 5.0) -> Peer:
        return Peer(
            host="127.0.0.1",
            port=self.port,
            called_ae_title=self.ae_title,
            calling_ae_title="PURKINJE",
            timeout_s=timeout_s,
        )

    def close(self) -> None:
        for thread in self._threads:
            thread.join(10)
        self._server.shutdown()

    def _note_contexts(self, event: Any) -> None:
        requested = event.assoc.requestor.requested_contexts
        self.proposed.append([(str(one.abstract_syntax), tuple(map(str, one.transfer_syntax))) for one in requested])

    def _store(self, event: Any) -> int:
        if self.status in {0x0000, 0xB000, 0xB006, 0xB007}:
            self.stored[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return self.status

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        uid = event.identifier.SOPInstanceUID
        if uid in self.stored and not self.forgets:
            yield 0xFF00, event.identifier
        yield 0x0000, None

    def _commit(self, event: Any) -> tuple[int, Dataset | None]:
        asked = event.action_information
        self.transactions.append(str(asked.TransactionUID))
        if self.commitment == "never":
            return 0x0000, None
        answer = Dataset()
        answer.TransactionUID = asked.TransactionUID
        if self.commitment == "failed":
            answer.FailedSOPSequence = [self._failed(item) for item in asked.ReferencedSOPSequence]
        else:
            answer.ReferencedSOPSequence = asked.ReferencedSOPSequence
        deliver = self._same if self.commitment == "same" else self._new
        thread = threading.Thread(target=deliver, args=(event.assoc, answer), daemon=True)
        self._threads.append(thread)
        thread.start()
        return 0x0000, None

    def _failed(self, item: Dataset) -> Dataset:
        failed = Dataset()
        failed.ReferencedSOPClassUID = item.ReferencedSOPClassUID
        failed.ReferencedSOPInstanceUID = item.ReferencedSOPInstanceUID
        failed.FailureReason = 0x0112
        return failed

    def _same(self, association: Any, answer: Dataset) -> None:
        association.send_n_event_report(answer, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)

    def _new(self, _association: Any, answer: Dataset) -> None:
        assert self.requester is not None
        kind = 2 if "FailedSOPSequence" in answer else 1
        entity = AE(ae_title=self.ae_title)
        opened = entity.associate(
            *self.requester,
            contexts=[build_context(PUSH_MODEL)],
            ext_neg=[build_role(PUSH_MODEL, scp_role=True)],
        )
        if opened.is_established:
            opened.send_n_event_report(answer, kind, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            opened.release()


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def part10_bytes(dataset: Dataset) -> bytes:
    """The dataset as a Part 10 file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
