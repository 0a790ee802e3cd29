"""What a log is to us: append, read in order, commit what is done, seek by offset or time.

Two implementations behind one protocol and one test suite: ``sqlite_log`` (embedded) and ``kafka_log``.
Delivery is at least once: a record is delivered again until ``commit`` was called for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MAX_RECORD_BYTES = 512 * 1024
"""Limit of key, headers and value together: well under the 1 MiB a Kafka broker takes by default."""

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,200}")


class LogUnavailable(Exception):
    """The log cannot be reached or written now; nothing was lost, try again.

    After a failed ``append`` the record is *not known* to be written: the same append, tried again until it
    returns, loses nothing, and may in rare cases (the answer was lost, not the request) leave the record twice.
    Records carry an event id, so that a reader can tell.
    """


@dataclass(frozen=True)
class LogRecord:
    """One record as it lies in the log; ``timestamp_ms`` is milliseconds since the epoch, UTC."""

    topic: str
    partition: int
    offset: int
    key: str
    headers: Mapping[str, str]
    value: bytes
    timestamp_ms: int


class Subscription(Protocol):
    """One member of a consumer group. Safe to use from one worker thread; heartbeats never wait for it."""

    def poll(self, *, timeout_s: float) -> LogRecord | None:
        """Next record not yet handed out, or None after the timeout. Raises LogUnavailable."""

    def commit(self, record: LogRecord) -> bool:
        """Say that this record is done; the committed offset is the end of the contiguous done prefix.

        Returns:
            True when the log keeps it as done. False when this member was fenced: it no longer holds the record
            (it was silent for too long, its partition moved, or somebody sought), nothing was changed, and the
            record is another holder's to commit. Then drop it: results are idempotent.

        Raises:
            LogUnavailable: not known to be committed; call again, or leave it: it is delivered again.
        """

    def pause(self) -> None:
        """Hand out nothing until ``resume``; membership of the group is kept."""

    def resume(self) -> None:
        """Hand out records again."""

    def seek_to_time(self, timestamp_ms: int) -> None:
        """Continue at the first record of each partition not older than this; at the end if there is none.

        Moves the group's committed offset of the assigned partitions, backwards or forwards, durably. What was
        handed out before is fenced.
        """

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Continue at this offset of one assigned partition; otherwise as ``seek_to_time``.

        Raises:
            ValueError: the partition is not assigned to this member, or the offset is negative.
        """

    def lag(self) -> int:
        """Records appended but not committed, over the assigned partitions."""

    def close(self) -> None:
        """Leave the group. What was handed out but not committed is delivered again."""


class Log(Protocol):
    """A durable, ordered, replayable log with consumer groups. Safe to use from several threads."""

    def append(self, topic: str, *, key: str, headers: Mapping[str, str], value: bytes) -> tuple[int, int]:
        """Append durably; return (partition, offset) once it cannot be lost.

        Raises:
            LogUnavailable: within a bounded time; see there.
            ValueError: a topic name that is not ``[A-Za-z0-9._-]``, or a record above ``MAX_RECORD_BYTES``.
        """

    def ensure_topics(self, topics: Sequence[str], *, partitions: int, replication: int) -> None:
        """Make the topics that are missing, with these numbers; leave others as they are. Raises LogUnavailable."""

    def subscribe(self, topics: Sequence[str], *, group: str) -> Subscription:
        """Join a group; a new group starts at the oldest record."""

    def read(
        self, topic: str, *, since_ms: int | None = None, from_offset: int | None = None, limit: int | None = None
    ) -> Iterator[LogRecord]:
        """Walk over what is in a topic now, without a group; ends at the present end.

        Ordered within a partition; ``from_offset`` counts in each partition; given both, both must hold.
        """

    def lag(self, topics: Sequence[str], *, group: str) -> dict[str, int]:
        """Records per topic that the group has not committed."""

    def ping(self) -> str:
        """One line on what it is and that it answers. Raises LogUnavailable."""

    def close(self) -> None:
        """Flush and release."""


def open_log(url: str, options: Mapping[str, Any] | None = None) -> Log:
    """Open the log a URL names: ``sqlite:///absolute/path.db`` or ``kafka://host:port[,host:port]``.

    Args:
        url: no credentials in it: a URL ends up in logs.
        options: keyword arguments of ``SqliteLog`` or ``KafkaLog`` (time limits, retention; for Kafka
            ``security``, a mapping with the client's TLS and SASL settings).

    Raises:
        ValueError: another scheme, a relative path, or an option that is not known.
        LogUnavailable: it is named well but does not answer.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "sqlite" and rest.startswith("/"):
        from orthanc_plugin.wire.sqlite_log import OPTIONS as SQLITE_OPTIONS
        from orthanc_plugin.wire.sqlite_log import SqliteLog

        return SqliteLog(rest, **_known(options, SQLITE_OPTIONS))
    if separator and scheme == "kafka" and rest and "@" not in rest:
        from orthanc_plugin.wire.kafka_log import OPTIONS as KAFKA_OPTIONS
        from orthanc_plugin.wire.kafka_log import KafkaLog

        return KafkaLog(rest.split(","), **_known(options, KAFKA_OPTIONS))
    msg = "log URL is neither sqlite:///absolute/path.db nor kafka://host:port[,host:port] (credentials are options)"
    raise ValueError(msg)


def check_record(topic: str, key: str, headers: Mapping[str, str], value: bytes) -> None:
    """Refuse what either log could not carry; raises ValueError."""
    if not _TOPIC.fullmatch(topic) or topic in {".", ".."}:
        msg = f"topic is {topic!r}; expected up to 200 of A-Z a-z 0-9 . _ -"
        raise ValueError(msg)
    texts = [key, *headers.keys(), *headers.values()]
    size = len(value) + sum(len(text.encode()) for text in texts)
    if size > MAX_RECORD_BYTES:
        msg = f"the record has {size} bytes; the limit is {MAX_RECORD_BYTES}: carry a reference, not the data"
        raise ValueError(msg)


def _known(options: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    given = dict(options or {})
    unknown = sorted(set(given) - set(names))
    if unknown:
        msg = f"unknown log options {', '.join(unknown)}; known: {', '.join(names)}"  # names only: values may be secret
        raise ValueError(msg)
    return given
