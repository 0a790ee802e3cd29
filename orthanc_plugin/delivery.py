"""Announces one study: claim, compare with the mark, append to the log, mark.

The mark is written before the append (the intent) and after it. A crash between the two is noticed at the next start,
and the log is asked whether the event is in it: the same content is never announced twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from orthanc_plugin.backlog import Waiting
from orthanc_plugin.claims import Claim, ClaimReader
from orthanc_plugin.marks import Mark, read_mark, write_mark
from orthanc_plugin.orthanc_api import OrthancApi
from orthanc_plugin.status import Status
from orthanc_plugin.wire.events import StudyReady, ready_topic
from orthanc_plugin.wire.log import Log, LogUnavailable

CLOCK_STEP_MS = 3_600_000
"""How far before the intent the log is searched: clocks may step."""


class Delivery:
    """Hands studies over to the log.

    Args:
        orthanc: the PACS.
        reader: reads claims.
        open_log: opens the log; called again after ``close``.
        status: where announcements are told.
        utc_s: wall clock, seconds since the epoch.
    """

    def __init__(
        self,
        orthanc: OrthancApi,
        reader: ClaimReader,
        open_log: Callable[[], Log],
        status: Status,
        utc_s: Callable[[], float],
    ) -> None:
        self._orthanc, self._reader, self._status = orthanc, reader, status
        self._open_log, self._utc_s = open_log, utc_s
        self._log: Log | None = None
        self.source = ""

    def probe(self) -> None:
        """Open the log if it is not open, and see that it answers. Raises LogUnavailable."""
        if self._log is None:
            self._status.log_answers(self._opened().ping())

    def close(self) -> None:
        """Close the log; a later call opens it again."""
        log, self._log = self._log, None
        if log is not None:
            with suppress(LogUnavailable):
                log.close()

    def announce(self, waiting: Waiting, *, covered: int) -> None:
        """Announce what is stored of a study, unless that very content was announced before.

        Args:
            waiting: the study and modality.
            covered: position up to which the change log was read.

        Raises:
            LogUnavailable: not announced; try again later.
            ResourceGone: the study was deleted.
            EventError: it can never be announced, for instance because it has too many series.
        """
        claim = self._reader.claim(waiting.study_id, waiting.modality)
        if claim is None:
            return
        mark = self._resolved(waiting)
        if mark is not None and mark.in_log and mark.content_digest == claim.content_digest:
            write_mark(self._orthanc, waiting.study_id, waiting.modality, replace(mark, sequence=covered))
            self._status.unchanged += 1
        else:
            self._append(waiting, self._event(waiting, claim, mark, covered))

    def _resolved(self, waiting: Waiting) -> Mark | None:
        """The mark of the study; where a crash left an intent, the log says whether it was announced."""
        mark = read_mark(self._orthanc, waiting.study_id, waiting.modality)
        if mark is None or mark.in_log:
            return mark
        records = self._opened().read(ready_topic(waiting.modality), since_ms=mark.attempted_ms - CLOCK_STEP_MS)
        return replace(mark, in_log=any(record.headers.get("ce_id") == mark.event_id for record in records))

    def _event(self, waiting: Waiting, claim: Claim, mark: Mark | None, covered: int) -> StudyReady:
        revision, supersedes = _next_revision(mark)
        return StudyReady(
            source=self.source,
            study_instance_uid=claim.study_instance_uid,
            pacs_study_id=waiting.study_id,
            modality=waiting.modality,
            revision=revision,
            supersedes=supersedes,
            series=claim.series,
            content_digest=claim.content_digest,
            completeness_rule=waiting.decision.rule,
            last_received_utc=claim.last_received_utc,
            announced_utc=_iso(self._utc_s()),
            sequence=covered,
        )

    def _append(self, waiting: Waiting, event: StudyReady) -> None:
        value = event.value()
        intent = Mark(
            content_digest=event.content_digest,
            revision=event.revision,
            supersedes=event.supersedes,
            event_id=event.event_id,
            sequence=event.sequence,
            in_log=False,
            attempted_ms=int(self._utc_s() * 1000),
        )
        log = self._opened()
        write_mark(self._orthanc, waiting.study_id, waiting.modality, intent)
        log.append(event.topic, key=event.study_instance_uid, headers=event.headers(), value=value)
        self._status.announced_now(event)
        write_mark(self._orthanc, waiting.study_id, waiting.modality, replace(intent, in_log=True))

    def _opened(self) -> Log:
        if self._log is None:
            try:
                self._log = self._open_log()
            except (ImportError, ValueError, OSError) as error:
                msg = f"the log cannot be opened: {error}"
                raise LogUnavailable(msg) from error
        return self._log


def _next_revision(mark: Mark | None) -> tuple[int, str | None]:
    if mark is None:
        return 1, None
    if mark.in_log:
        return mark.revision + 1, mark.event_id
    return mark.revision, mark.supersedes


def _iso(utc_s: float) -> str:
    return datetime.fromtimestamp(utc_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
