"""Storage commitment (PS3.4 J): the archive confirms, minutes later, that it keeps what it was sent.

The request (N-ACTION) names a transaction; the answer (N-EVENT-REPORT) comes on the same association or, mostly, on a
new one that the archive opens to us. Transactions lie in a small SQLite file, so that an answer that arrives after a
restart still finds its question. Used by ``dimse`` only.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from stream_processors.errors import CommitmentPending, SettingsInvalid, StoreUnverified
from stream_processors.pacs.association import Peer, association, send_at_once, status_of
from stream_processors.pacs.client import EncodedReport
from stream_processors.settings import CommitmentSettings

PUSH_MODEL = "1.2.840.10008.1.20.1"
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
REQUEST_COMMITMENT = 1
_LINGER_S = 0.5
"""How long the association of the request stays open for archives that answer on it."""
_LOOK_AGAIN_S = 0.05
_SCHEMA = """
CREATE TABLE IF NOT EXISTS commitment (
    transaction_uid TEXT PRIMARY KEY,
    sop_instance_uid TEXT NOT NULL,
    requested_s REAL NOT NULL,
    state TEXT NOT NULL,
    failure_reason INTEGER
);
CREATE INDEX IF NOT EXISTS commitment_of ON commitment (sop_instance_uid, requested_s);
"""


class State(StrEnum):
    """What is known of one transaction."""

    PENDING = "pending"
    COMMITTED = "committed"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """One request and its answer so far; times in seconds since the epoch."""

    transaction_uid: str
    requested_s: float
    state: State
    failure_reason: int | None


class Ledger:
    """The transactions on disk; several threads and processes may use one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(_SCHEMA)

    def ask(self, transaction_uid: str, sop_instance_uid: str) -> None:
        """Remember a request before it is sent."""
        row = (transaction_uid, sop_instance_uid, time.time(), State.PENDING, None)
        with self._open() as database:
            database.execute("INSERT INTO commitment VALUES (?, ?, ?, ?, ?)", row)

    def answer(self, transaction_uid: str, sop_instance_uid: str, state: State, reason: int | None = None) -> bool:
        """Remember an answer; False when nobody asked."""
        change = (
            "UPDATE commitment SET state = ?, failure_reason = ? WHERE transaction_uid = ? AND sop_instance_uid = ?"
        )
        with self._open() as database:
            return database.execute(change, (state, reason, transaction_uid, sop_instance_uid)).rowcount == 1

    def latest(self, sop_instance_uid: str) -> Transaction | None:
        """The committed transaction of an instance, else its youngest one, else None."""
        query = (
            "SELECT transaction_uid, requested_s, state, failure_reason FROM commitment WHERE sop_instance_uid = ?"
            " ORDER BY state = 'committed' DESC, requested_s DESC LIMIT 1"
        )
        with self._open() as database:
            row = database.execute(query, (sop_instance_uid,)).fetchone()
        if row is None:
            return None
        return Transaction(transaction_uid=row[0], requested_s=row[1], state=State(row[2]), failure_reason=row[3])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30.0)) as database, database:
            yield database


class CommitmentDesk:
    """Asks for commitment and listens for the answers.

    Args:
        settings: where to listen, where to keep the transactions, how long to wait.
        peer: the archive; its answers are accepted whatever it calls itself.
    """

    def __init__(self, settings: CommitmentSettings, peer: Peer) -> None:
        self._settings = settings
        self._peer = peer
        self.ledger = Ledger(settings.ledger)
        self._answered = threading.Event()
        self._server = self._listen()

    @property
    def port(self) -> int:
        """Where the answers are expected."""
        return int(self._server.server_address[1])

    def is_committed(self, sop_instance_uid: str) -> bool:
        """True once the archive has confirmed the instance."""
        known = self.ledger.latest(sop_instance_uid)
        return known is not None and known.state is State.COMMITTED

    def require(self, report: EncodedReport) -> None:
        """Return once the archive has confirmed the report; ask where nobody has asked lately.

        Raises:
            CommitmentPending: no answer within ``wait_s``; the question stays open.
            StoreUnverified: the archive says that it does not keep it.
        """
        if self._must_ask(self.ledger.latest(report.sop_instance_uid)):
            self._ask(report)
        deadline = time.monotonic() + self._settings.wait_s
        while (known := self.ledger.latest(report.sop_instance_uid)) and known.state is State.PENDING:
            if time.monotonic() > deadline:
                msg = f"{self._peer} has not confirmed {report.sop_instance_uid} within {self._settings.wait_s} s"
                raise CommitmentPending(msg)
            self._answered.wait(_LOOK_AGAIN_S)
        if known is None or known.state is State.FAILED:
            reason = known.failure_reason if known else None
            msg = f"{self._peer} does not keep {report.sop_instance_uid}: failure reason {reason} (PS3.3 C.14.1.1)"
            raise StoreUnverified(msg)

    def close(self) -> None:
        """Stop listening; open questions stay in the ledger."""
        self._server.shutdown()

    def _must_ask(self, known: Transaction | None) -> bool:
        if known is None or known.state is State.FAILED:
            return True
        overdue = time.time() - known.requested_s > self._settings.reissue_after_s
        return known.state is State.PENDING and overdue

    def _ask(self, report: EncodedReport) -> None:
        transaction_uid = generate_uid(prefix=None)
        question = Dataset()
        question.TransactionUID = transaction_uid
        item = Dataset()
        item.ReferencedSOPClassUID = report.sop_class_uid
        item.ReferencedSOPInstanceUID = report.sop_instance_uid
        question.ReferencedSOPSequence = [item]
        self._answered.clear()
        self.ledger.ask(transaction_uid, report.sop_instance_uid)
        doing = f"asking {self._peer} for storage commitment"
        handlers = [(evt.EVT_N_EVENT_REPORT, self._note)]
        with association(self._peer, [build_context(PUSH_MODEL)], handlers) as opened:
            response, _ = opened.send_n_action(question, REQUEST_COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            status = status_of(response, doing)
            if status != 0:
                self.ledger.answer(transaction_uid, report.sop_instance_uid, State.FAILED, status)
                msg = f"{doing}: status 0x{status:04X}"
                raise StoreUnverified(msg)
            self._answered.wait(_LINGER_S)

    def _note(self, event: Any) -> tuple[int, None]:
        """Take an N-EVENT-REPORT (PS3.4 J.3.3) into the ledger."""
        answer = event.event_information
        transaction_uid = str(answer.TransactionUID)
        for item in answer.get("ReferencedSOPSequence", ()):
            self.ledger.answer(transaction_uid, str(item.ReferencedSOPInstanceUID), State.COMMITTED)
        for item in answer.get("FailedSOPSequence", ()):
            uid, reason = str(item.ReferencedSOPInstanceUID), int(item.FailureReason)
            self.ledger.answer(transaction_uid, uid, State.FAILED, reason)
        self._answered.set()
        return 0x0000, None

    def _listen(self) -> Any:
        entity = AE(ae_title=self._peer.calling_ae_title)
        entity.add_supported_context(PUSH_MODEL, scu_role=False, scp_role=True)
        address = (self._settings.listen_host, self._settings.listen_port)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._note), (evt.EVT_CONN_OPEN, send_at_once)]
        try:
            return entity.start_server(address, block=False, evt_handlers=handlers)
        except OSError as error:
            msg = f"cannot listen for storage commitment on {address[0]}:{address[1]}: {error.strerror}"
            raise SettingsInvalid(msg) from None
