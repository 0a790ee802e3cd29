"""The embedded log: one durable file, several processes, no broker. Same protocol and tests as ``kafka_log``.

One partition (0) per topic, but finer sharing than Kafka's: members of a group take single records, and records of
one key are never with two members at once, so the order per key is kept. A member that dies is noticed at once
(its process is gone), one that hangs after ``lease_timeout_s``. Standard library only: it runs inside Orthanc.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orthanc_plugin.wire import sqlite_tables as tables
from orthanc_plugin.wire.log import LogRecord, LogUnavailable, check_record
from orthanc_plugin.wire.process_identity import ProcessIdentity, own_identity
from orthanc_plugin.wire.sqlite_file import LogFile

OPTIONS = ("retention_s", "retention_bytes", "busy_timeout_s", "lease_timeout_s")
POLL_INTERVAL_S = 0.025
_LOOK_AGAIN_S = 0.5  # dead members make no noise; look for them this often
_PAGE = 100
_APPENDS_PER_TRIM = 64


@dataclass(frozen=True, kw_only=True)
class _Limits:
    retention_s: float
    retention_bytes: int
    busy_timeout_s: float
    lease_timeout_s: float


class SqliteLog:
    """The log in one file on a local disk.

    Args:
        path: absolute path of the file; its folder must exist.
        retention_s: committed records older than this are dropped (default 30 days).
        retention_bytes: and the oldest committed ones of a topic above this size (default 1 GiB). What a group has
            not committed is never dropped. A topic that no group ever joined is only held by these two limits.
        busy_timeout_s: how long to wait for other processes before ``LogUnavailable``.
        lease_timeout_s: a member silent for this long loses its records to others.

    Raises:
        LogUnavailable: the file cannot be opened, or is not ours.
    """

    def __init__(
        self,
        path: str,
        *,
        retention_s: float = 30 * 86400.0,
        retention_bytes: int = 1 << 30,
        busy_timeout_s: float = 5.0,
        lease_timeout_s: float = 10.0,
    ) -> None:
        if not Path(path).is_absolute():
            msg = f"path of the embedded log is {path!r}; expected an absolute path"
            raise ValueError(msg)
        self._limits = _Limits(
            retention_s=retention_s,
            retention_bytes=retention_bytes,
            busy_timeout_s=busy_timeout_s,
            lease_timeout_s=lease_timeout_s,
        )
        self._file = LogFile(path, busy_timeout_s=busy_timeout_s)
        self._appends = 0

    def append(self, topic: str, *, key: str, headers: Mapping[str, str], value: bytes) -> tuple[int, int]:
        """Append durably and return (0, offset); see ``Log.append``."""
        check_record(topic, key, headers, value)
        row = (key, json.dumps(dict(headers)), value, time.time_ns() // 1_000_000)
        with self._file.writing() as db:
            offset = tables.append(db, topic, row)
            trimmed = self._appends % _APPENDS_PER_TRIM == 0 and tables.trim(
                db, topic, self._limits.retention_s, self._limits.retention_bytes
            )
            self._appends += 1
        if trimmed:
            self._shrink()
        return tables.PARTITION, offset

    def ensure_topics(self, topics: Sequence[str], *, partitions: int, replication: int) -> None:  # noqa: ARG002
        """Make the topics known; here each has one partition and one copy, whatever is asked."""
        with self._file.writing() as db:
            db.executemany("INSERT OR IGNORE INTO topic VALUES (?, 0, 0, 0)", [(topic,) for topic in topics])

    def subscribe(self, topics: Sequence[str], *, group: str) -> SqliteSubscription:
        """Join a group; see ``Log.subscribe``."""
        return SqliteSubscription(self._file.path, topics, group, self._limits)

    def read(
        self, topic: str, *, since_ms: int | None = None, from_offset: int | None = None, limit: int | None = None
    ) -> Iterator[LogRecord]:
        """Walk over a topic in order; see ``Log.read``. No lock is held between records."""
        with self._file.reading() as db:
            end = tables.next_offset(db, topic)
            start = 0 if since_ms is None else tables.offset_at_time(db, topic, since_ms)
        position, left = max(start, from_offset or 0), end if limit is None else limit
        while position < end and left > 0:
            page = self._page(topic, position, end, min(left, _PAGE))
            yield from page
            if not page:
                return
            position, left = page[-1].offset + 1, left - len(page)

    def lag(self, topics: Sequence[str], *, group: str) -> dict[str, int]:
        """Records per topic that the group has not committed."""
        with self._file.reading() as db:
            return {topic: tables.next_offset(db, topic) - tables.committed(db, group, topic) for topic in topics}

    def ping(self) -> str:
        """Say that the file answers and what is in it."""
        with self._file.reading() as db:
            topics, records = db.execute(
                "SELECT count(*), coalesce(sum(next_offset - first_offset), 0) FROM topic"
            ).fetchone()
        return f"embedded log {self._file.path} (SQLite {sqlite3.sqlite_version}): {topics} topics, {records} records"

    def close(self) -> None:
        """Release the file; subscriptions have their own connections."""
        self._file.close()

    def _page(self, topic: str, start: int, end: int, count: int) -> list[LogRecord]:
        query = (
            "SELECT offset, key, headers, value, timestamp_ms FROM record"
            " WHERE topic = ? AND offset >= ? AND offset < ? ORDER BY offset LIMIT ?"
        )
        with self._file.reading() as db:
            return [tables.record(topic, row) for row in db.execute(query, (topic, start, end, count))]

    def _shrink(self) -> None:
        """Give freed pages back to the file system; it may wait for the next time."""
        with contextlib.suppress(LogUnavailable), self._file.reading() as db:
            db.executescript("PRAGMA incremental_vacuum(1000)")  # execute() would stop after the first page


class SqliteSubscription:
    """One member of a group; made by ``SqliteLog.subscribe``."""

    def __init__(self, path: str, topics: Sequence[str], group: str, limits: _Limits) -> None:
        self._group = group
        self._topics = tuple(topics)
        self._turn = 0
        self._id = uuid.uuid4().hex
        self._identity = own_identity()
        self._limits = limits
        self._paused = False
        self._closed = threading.Event()
        self._seen: tuple[int, float] | None = None  # version of the file and time of the last look at it
        self._file = LogFile(path, busy_timeout_s=limits.busy_timeout_s)
        with self._file.writing() as db:
            for topic in topics:
                db.execute(
                    "INSERT OR IGNORE INTO consumer VALUES (?, ?, ?)", (group, topic, tables.first_offset(db, topic))
                )
            self._enrol(db)
        self._heart = threading.Thread(target=self._beat, args=(path,), name="sqlite-log-heartbeat", daemon=True)
        self._heart.start()

    def poll(self, *, timeout_s: float) -> LogRecord | None:
        """Next record not yet handed out, or None after the timeout; see ``Subscription.poll``."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._check_open()
            if not self._paused and self._worth_a_look():
                record = self._take()
                if record is not None:
                    self._seen = None  # there may be more
                    return record
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return None
            self._closed.wait(min(POLL_INTERVAL_S, remaining_s))

    def commit(self, record: LogRecord) -> bool:
        """Mark the record as done; False when fenced; see ``Subscription.commit``."""
        self._check_open()
        with self._file.writing() as db:
            marked = db.execute(
                "UPDATE delivery SET member = NULL WHERE grp = ? AND topic = ? AND offset = ? AND member = ?",
                (self._group, record.topic, record.offset, self._id),
            ).rowcount
            if not marked:
                return tables.is_done(db, self._group, record)
            tables.advance(db, self._group, record.topic)
            return True

    def pause(self) -> None:
        """Hand out nothing until ``resume``; heartbeats go on."""
        self._paused = True

    def resume(self) -> None:
        """Hand out records again."""
        self._paused, self._seen = False, None

    def seek_to_time(self, timestamp_ms: int) -> None:
        """Move the group to the first record not older than this; see ``Subscription.seek_to_time``."""
        with self._file.writing() as db:
            for topic in self._topics:
                tables.move(db, self._group, topic, tables.offset_at_time(db, topic, timestamp_ms))
        self._seen = None

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Move the group to this offset; see ``Subscription.seek``."""
        if topic not in self._topics or partition != tables.PARTITION or offset < 0:
            msg = f"cannot seek to {topic}/{partition} at {offset}; expected partition 0 of a topic subscribed to"
            raise ValueError(msg)
        with self._file.writing() as db:
            tables.move(db, self._group, topic, offset)
        self._seen = None

    def lag(self) -> int:
        """Records appended but not committed, over the topics of this subscription."""
        with self._file.reading() as db:
            return sum(
                tables.next_offset(db, topic) - tables.committed(db, self._group, topic) for topic in self._topics
            )

    def close(self) -> None:
        """Leave the group; what was handed out but not committed is free for others at once."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._heart.join()
        with contextlib.suppress(LogUnavailable), self._file.writing() as db:  # else the lease runs out
            tables.bury(db, self._id)
        self._file.close()

    def _check_open(self) -> None:
        if self._closed.is_set():
            msg = "the subscription is closed; subscribe again"
            raise ValueError(msg)

    def _worth_a_look(self) -> bool:
        """True when somebody changed the file since the last look, or that was long ago."""
        now_s, version = time.monotonic(), self._file.version()
        if self._seen is not None and self._seen[0] == version and now_s - self._seen[1] < _LOOK_AGAIN_S:
            return False
        self._seen = (version, now_s)
        return True

    def _take(self) -> LogRecord | None:
        with self._file.writing() as db:
            self._bury_the_dead(db)
            self._enrol(db)
            for _ in self._topics:
                topic = self._topics[self._turn % len(self._topics)]
                self._turn += 1  # no topic starves another
                row = db.execute(tables.NEXT, {"grp": self._group, "topic": topic, "me": self._id}).fetchone()
                if row is not None:
                    db.execute("INSERT INTO delivery VALUES (?, ?, ?, ?, ?)", (self._group, topic, *row[:2], self._id))
                    return tables.record(topic, row)
        return None

    def _enrol(self, db: sqlite3.Connection) -> None:
        """Be a member; again, should others have taken us for dead."""
        who = self._identity
        db.execute(
            "INSERT OR IGNORE INTO member VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self._id, self._group, who.boot, who.namespace, who.pid, who.started, time.monotonic()),
        )

    def _bury_the_dead(self, db: sqlite3.Connection) -> None:
        now_s = time.monotonic()  # of the machine, not of the process; starts anew with the machine
        silent_since_s = now_s - self._limits.lease_timeout_s
        query = "SELECT id, beat_s, boot, namespace, pid, started FROM member WHERE grp = ? AND id <> ?"
        for member, beat_s, *identity in db.execute(query, (self._group, self._id)).fetchall():
            if not silent_since_s <= beat_s <= now_s or ProcessIdentity(*identity).known_dead(self._identity):
                tables.bury(db, member)

    def _beat(self, path: str) -> None:
        """Heartbeat thread: its own connection, so that it never waits for the worker."""
        file: LogFile | None = None
        while not self._closed.wait(self._limits.lease_timeout_s / 4):
            with contextlib.suppress(LogUnavailable):  # the next beat tries again
                file = file or LogFile(path, busy_timeout_s=self._limits.lease_timeout_s / 4, durable=False)
                with file.writing() as db:
                    db.execute("UPDATE member SET beat_s = ? WHERE id = ?", (time.monotonic(), self._id))
        if file is not None:
            file.close()
