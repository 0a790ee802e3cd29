"""Between the thread that polls Kafka and the worker: what waits, what is out, what is done, per partition.

Pure bookkeeping, safe to use from several threads, no Kafka in it. Used by ``kafka_log``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from orthanc_plugin.wire.log import LogRecord

Partition = tuple[str, int]


@dataclass
class _Progress:
    """One assigned partition: records waiting, and those handed out in order with whether they are done."""

    ready: deque[LogRecord] = field(default_factory=deque)
    out: dict[int, bool] = field(default_factory=dict)
    last_offered: int = -1
    done_end: int | None = None  # end of the contiguous done prefix
    committed: int | None = None  # as far as the broker confirmed it


class HandOff:
    """Bounded buffer between two threads, fenced by the assignment of partitions."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._progress: dict[Partition, _Progress] = {}
        self._turn: deque[Partition] = deque()
        self._revoked: set[Partition] = set()
        self._closed = False

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Start afresh with these partitions."""
        with self._changed:
            for partition in partitions:
                self._forget(partition)
                self._progress[partition] = _Progress()
                self._turn.append(partition)

    def revoke(self, partitions: Iterable[Partition] | None = None) -> None:
        """Fence these partitions (None: all): what waits is dropped, what is out can no longer be committed."""
        with self._changed:
            for partition in list(self._progress) if partitions is None else list(partitions):
                self._forget(partition)
                self._revoked.add(partition)

    def revoked_since(self) -> set[Partition]:
        """Partitions revoked since the last call."""
        with self._changed:
            revoked, self._revoked = self._revoked, set()
            return revoked

    def restart(self, partition: Partition) -> None:
        """Forget what waits and what is out, after a seek."""
        with self._changed:
            if partition in self._progress:
                self._progress[partition] = _Progress()

    def offer(self, record: LogRecord) -> None:
        """Queue a record for the worker; dropped when its partition is not ours (any more)."""
        with self._changed:
            progress = self._progress.get((record.topic, record.partition))
            if progress is None:
                return
            if record.offset <= progress.last_offered:  # the log was reset under us: begin again
                progress = self._progress[record.topic, record.partition] = _Progress()
            progress.ready.append(record)
            progress.last_offered = record.offset
            self._changed.notify_all()

    def waiting(self) -> set[Partition]:
        """Partitions with records that the worker has not taken yet."""
        with self._changed:
            return {partition for partition, progress in self._progress.items() if progress.ready}

    def take(self, timeout_s: float) -> LogRecord | None:
        """Next record, partitions by turns so that none starves; None after the timeout or ``close``."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or any(p.ready for p in self._progress.values()), timeout_s)
            for _ in range(len(self._turn)):
                partition = self._turn[0]
                self._turn.rotate(-1)
                progress = self._progress[partition]
                if progress.ready:
                    record = progress.ready.popleft()
                    progress.out[record.offset] = False
                    return record
            return None

    def mark_done(self, record: LogRecord) -> bool:
        """Mark a record; False when it is fenced."""
        with self._changed:
            progress = self._progress.get((record.topic, record.partition))
            if progress is None:
                return False
            if record.offset not in progress.out:
                return progress.done_end is not None and record.offset < progress.done_end
            progress.out[record.offset] = True
            while progress.out and progress.out[first := next(iter(progress.out))]:
                del progress.out[first]
                progress.done_end = first + 1
            return True

    def to_commit(self, partition: Partition) -> int | None:
        """Offset to commit, or None when the broker has it already or the partition is not ours."""
        with self._changed:
            progress = self._progress.get(partition)
            return None if progress is None or progress.done_end == progress.committed else progress.done_end

    def holds(self, record: LogRecord) -> bool:
        """True when the record is still this member's to commit."""
        with self._changed:
            progress = self._progress.get((record.topic, record.partition))
            if progress is None:
                return False
            return record.offset in progress.out or (progress.done_end or 0) > record.offset

    def set_committed(self, partition: Partition, offset: int) -> None:
        """The broker confirmed this offset."""
        with self._changed:
            progress = self._progress.get(partition)
            if progress is not None and progress.done_end is not None and progress.done_end >= offset:
                progress.committed = offset

    def close(self) -> None:
        """Wake the worker; nothing is handed out any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _forget(self, partition: Partition) -> None:
        if self._progress.pop(partition, None) is not None:
            self._turn.remove(partition)
