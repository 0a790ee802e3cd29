"""In-memory double of the appending half of ``orthanc_plugin.wire.log.Log`` that can be made to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from orthanc_plugin.wire.events import StudyReady, parse_study_ready
from orthanc_plugin.wire.log import LogRecord, LogUnavailable


class MemoryLog:
    """Keeps records over ``close``, as a log on another machine would.

    Args:
        utc_s: the wall clock, for the time stamps of the records.
    """

    def __init__(self, utc_s: Callable[[], float]) -> None:
        self.records: list[LogRecord] = []
        self._utc_s = utc_s
        self.down = False
        self.lose_answer = False
        self.attempts = 0

    @property
    def events(self) -> list[StudyReady]:
        """What was announced, in order."""
        return [parse_study_ready(record.headers, record.value) for record in self.records]

    def append(self, topic: str, *, key: str, headers: Mapping[str, str], value: bytes) -> tuple[int, int]:
        self.attempts += 1
        self._answer()
        offset = len(self.records)
        self.records.append(LogRecord(topic, 0, offset, key, dict(headers), value, int(self._utc_s() * 1000)))
        if self.lose_answer:
            raise LogUnavailable("the answer was lost")
        return 0, offset

    def read(
        self, topic: str, *, since_ms: int | None = None, from_offset: int | None = None, limit: int | None = None
    ) -> Iterator[LogRecord]:
        self._answer()
        assert from_offset is None
        assert limit is None
        return (r for r in self.records if r.topic == topic and r.timestamp_ms >= (since_ms or 0))

    def ping(self) -> str:
        self._answer()
        return "memory"

    def close(self) -> None:
        """Nothing to release."""

    def _answer(self) -> None:
        if self.down:
            raise LogUnavailable("switched off by the test")
