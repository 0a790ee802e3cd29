"""The file of the embedded log: its connections, and what SQLite's errors mean.

Write-ahead log with ``synchronous=FULL``: what was acknowledged survives ``kill -9`` and power loss. The file must
lie on a local disk (SQLite's write-ahead log needs shared memory). Used by ``sqlite_log`` only.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from orthanc_plugin.wire.log import LogUnavailable
from orthanc_plugin.wire.sqlite_tables import APPLICATION_ID, FORMAT, TABLES

_OPEN_RETRY_S = 0.05
_WAL_KEPT_BYTES = 16 * 1024 * 1024

_ADVICE = {
    "SQLITE_BUSY": "another process holds the file for long",
    "SQLITE_CANTOPEN": "check that the folder exists and may be written",
    "SQLITE_CORRUPT": "move the file away; the PACS announces again what has no mark",
    "SQLITE_FULL": "free disk space",
    "SQLITE_IOERR": "check the disk and its free space",
    "SQLITE_NOTADB": "it is no SQLite file; choose another path",
    "SQLITE_READONLY": "check the permissions of the file and its folder",
}


class LogFile:
    """One connection to the file; its transactions are atomic, durable and serialised by a lock.

    Args:
        path: absolute path; made where missing.
        busy_timeout_s: how long to wait for other processes before ``LogUnavailable``.
        durable: False for writes that may be lost on a power cut (heartbeats).
    """

    def __init__(self, path: str, *, busy_timeout_s: float, durable: bool = True) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._pid = os.getpid()
        with self._explained():
            self._db = self._open(busy_timeout_s)
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one query at a time. Raises LogUnavailable."""
        with self._guarded(), self._explained():
            yield self._db

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: all of it is on the disk afterwards, or nothing. Raises LogUnavailable."""
        with self._guarded(), self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.rollback()

    def version(self) -> int:
        """A number that changes whenever another connection has changed the file."""
        with self.reading() as db:
            return int(db.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Release the connection; nothing is pending."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        if os.getpid() != self._pid:
            msg = "the log was opened in another process; open it after the fork (SQLite's locks do not survive one)"
            raise RuntimeError(msg)
        with self._lock:
            yield

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", None) or type(error).__name__
            advice = next((text for prefix, text in _ADVICE.items() if name.startswith(prefix)), "try again")
            msg = f"embedded log {self.path}: {error} ({name}): {advice}"
            raise LogUnavailable(msg) from error

    def _open(self, busy_timeout_s: float) -> sqlite3.Connection:
        """Connect; two processes may make the file at the same moment, then one of them tries again."""
        if not Path(self.path).parent.is_dir():
            msg = f"embedded log {self.path}: its folder does not exist; create it"
            raise LogUnavailable(msg)
        deadline = time.monotonic() + busy_timeout_s
        while True:
            db = sqlite3.connect(self.path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
            try:
                _prepare(db)
            except sqlite3.OperationalError as error:
                db.close()
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_OPEN_RETRY_S)
            except BaseException:
                db.close()
                raise
            else:
                return db


def _prepare(db: sqlite3.Connection) -> None:
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found == 0:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before the first table
    db.execute("PRAGMA journal_mode = WAL")
    if found == 0:
        _make_tables(db)
    elif found != FORMAT or db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        msg = f"the file is of format {found}; this version reads its own format {FORMAT}: choose another, or upgrade"
        raise LogUnavailable(msg)


def _make_tables(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:  # nobody was faster
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                msg = "the file holds somebody else's tables: choose another path"
                raise LogUnavailable(msg)
            for statement in TABLES.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {FORMAT}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.rollback()
