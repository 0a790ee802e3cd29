"""A real log that can be made unavailable, call by call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from orthanc_plugin.wire.log import Log, LogRecord, LogUnavailable, Subscription


class FaultyLog:
    """Passes every call on; the first ``faults[name]`` calls of a name raise LogUnavailable instead.

    ``appended`` keeps what went through, in order.
    """

    def __init__(self, inner: Log) -> None:
        self.inner = inner
        self.faults: Counter[str] = Counter()
        self.made: dict[str, tuple[int, int]] = {}
        self.appended: list[tuple[str, str, dict[str, str], bytes]] = []

    def append(self, topic: str, *, key: str, headers: Mapping[str, str], value: bytes) -> tuple[int, int]:
        self.strike(f"append {topic}")
        self.strike("append")
        where = self.inner.append(topic, key=key, headers=headers, value=value)
        self.appended.append((topic, key, dict(headers), value))
        return where

    def ensure_topics(self, topics: Sequence[str], *, partitions: int, replication: int) -> None:
        self.strike("ensure_topics")
        self.made.update(dict.fromkeys(topics, (partitions, replication)))
        self.inner.ensure_topics(topics, partitions=partitions, replication=replication)

    def subscribe(self, topics: Sequence[str], *, group: str) -> Subscription:
        self.strike("subscribe")
        return FaultySubscription(self, self.inner.subscribe(topics, group=group))

    def read(
        self, topic: str, *, since_ms: int | None = None, from_offset: int | None = None, limit: int | None = None
    ) -> Iterator[LogRecord]:
        self.strike("read")
        return self.inner.read(topic, since_ms=since_ms, from_offset=from_offset, limit=limit)

    def lag(self, topics: Sequence[str], *, group: str) -> dict[str, int]:
        return self.inner.lag(topics, group=group)

    def ping(self) -> str:
        return self.inner.ping()

    def close(self) -> None:
        self.inner.close()

    def strike(self, name: str) -> None:
        if self.faults[name] > 0:
            self.faults[name] -= 1
            raise LogUnavailable(f"{name} switched off by the test")


class FaultySubscription:
    """The subscription of a ``FaultyLog``; counts commits."""

    def __init__(self, log: FaultyLog, inner: Subscription) -> None:
        self._log = log
        self._inner = inner
        self.committed: list[int] = []

    def poll(self, *, timeout_s: float) -> LogRecord | None:
        self._log.strike("poll")
        return self._inner.poll(timeout_s=min(timeout_s, 0.05))

    def commit(self, record: LogRecord) -> bool:
        self._log.strike("commit")
        kept = self._inner.commit(record)
        self.committed.append(record.offset)
        return kept

    def pause(self) -> None:
        self._inner.pause()

    def resume(self) -> None:
        self._inner.resume()

    def seek_to_time(self, timestamp_ms: int) -> None:
        self._inner.seek_to_time(timestamp_ms)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self._inner.seek(topic, partition, offset)

    def lag(self) -> int:
        return self._inner.lag()

    def close(self) -> None:
        self._inner.close()
