"""Change log -> completeness -> announcement, in the one background thread; reconciles at every start.

Nothing depends on memory: the cursor in Orthanc's database never passes an instance whose study is not settled.
After a crash, a stop inside the quiet time or an outage of the log, the walk finds everything unsettled again; the mark
on a study tells what was announced of it. The cost of a start grows with what is unsettled, not with the archive.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from orthanc_plugin.backlog import Backlog, Waiting
from orthanc_plugin.changes import SeriesArrival, arrivals_of, first_sequence_from, read_page
from orthanc_plugin.claims import ClaimReader
from orthanc_plugin.completeness import Waits, is_whole
from orthanc_plugin.delivery import Delivery
from orthanc_plugin.intake import Exclusions
from orthanc_plugin.marks import read_cursor, read_mark, source_of, write_cursor
from orthanc_plugin.orthanc_api import OrthancApi, OrthancRefused, ResourceGone
from orthanc_plugin.settings import Settings
from orthanc_plugin.status import Status
from orthanc_plugin.wire.events import EventError
from orthanc_plugin.wire.log import Log, LogUnavailable

PAGES_PER_TURN = 20
WORK_PER_TURN_S = 0.5
CURSOR_PERIOD_S = 1.0
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 10.0
FIRST_START_MARGIN_S = 2.0
"""At the very first start, instances received this long before the plugin was loaded still count as new."""


@dataclass(frozen=True)
class Clock:
    """Both clocks: monotonic for waiting, wall for what is written down."""

    monotonic_s: Callable[[], float] = time.monotonic
    utc_s: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


class Announcer:
    """Walks, waits, announces. Used from one thread.

    Args:
        orthanc: the PACS.
        settings: what the administrator set.
        open_log: opens the log; called again after it failed.
        status: where it tells how far it is.
        clock: both clocks. At the very first start, instances older than this object are left alone.
    """

    def __init__(
        self,
        orthanc: OrthancApi,
        settings: Settings,
        open_log: Callable[[], Log],
        status: Status,
        clock: Clock,
    ) -> None:
        self._orthanc, self._settings, self._status, self._clock = orthanc, settings, status, clock
        self._loaded_utc_s = clock.utc_s()
        self._exclusions = exclusions_of(settings)
        self._reader = ClaimReader(orthanc, self._exclusions, self._clock.sleep)
        self._delivery = Delivery(orthanc, self._reader, open_log, status, self._clock.utc_s)
        self._backlog = Backlog(waits_of(settings))
        self._begun, self._catching_up = False, True
        self._walked = self._cursor = 0
        self._cursor_saved_s = self._retry_s = self._clock.monotonic_s()
        self._retry_wait_s = RETRY_FIRST_S

    def turn(self) -> float:
        """One round of work.

        Returns:
            Seconds until the next round is needed if nothing arrives.

        Raises:
            OrthancStopping: Orthanc shuts down.
            OrthancRefused: Orthanc answered with an error; try again.
        """
        if not self._begun:
            self._begin()
        behind = self._walk()
        self._announce_ready()
        self._save_cursor()
        self._report()
        return 0.0 if behind else self._wait_s()

    def close(self) -> None:
        """Close the log; what waits is found again at the next start."""
        self._delivery.close()

    def _begin(self) -> None:
        cursor = read_cursor(self._orthanc)
        if cursor is None:
            since_s = self._loaded_utc_s - FIRST_START_MARGIN_S
            cursor = 0 if self._settings.announce_existing else first_sequence_from(self._orthanc, since_s)
            write_cursor(self._orthanc, cursor)
        self._walked = self._cursor = cursor
        self._delivery.source = self._status.source = source_of(self._orthanc)
        self._begun = True

    def _walk(self) -> bool:
        """Read the change log; True where there is more to read than one turn takes."""
        touched: set[str] = set()
        done = full = False
        for _ in range(PAGES_PER_TURN):
            full = len(self._backlog) >= self._settings.most_tracked
            if done or full:
                break
            page = read_page(self._orthanc, self._walked)
            touched.update(self._take(arrival) for arrival in arrivals_of(self._orthanc, page, self._exclusions))
            self._walked, done = page.last_sequence, page.done
        self._catching_up = self._catching_up and not done
        self._look_at_layouts(touched)
        return not done and not full

    def _take(self, arrival: SeriesArrival) -> str:
        if (arrival.study_id, arrival.modality) not in self._backlog:
            mark = read_mark(self._orthanc, arrival.study_id, arrival.modality)
            if mark is not None and mark.in_log and arrival.last_sequence <= mark.sequence:
                return arrival.study_id
        self._backlog.add(arrival, self._arrived_s(arrival))
        return arrival.study_id

    def _arrived_s(self, arrival: SeriesArrival) -> float:
        """Monotonic time of an arrival: now, or before a restart as long ago as Orthanc's clock says."""
        now_s = self._clock.monotonic_s()
        if not self._catching_up:
            return now_s
        age_s = self._clock.utc_s() - arrival.received_utc_s
        return now_s - min(max(age_s, 0.0), self._settings.longest_wait_s)

    def _look_at_layouts(self, studies: set[str]) -> None:
        for waiting in self._backlog.worth_a_look(studies):
            waiting.judged_count = waiting.image_count
            try:
                whole = is_whole(self._reader.layout(waiting.study_id))
            except ResourceGone:
                whole = False
            self._backlog.judge(waiting, whole=whole)

    def _announce_ready(self) -> None:
        started_s = self._clock.monotonic_s()
        if started_s < self._retry_s or not self._log_answers():
            return
        while self._clock.monotonic_s() - started_s < WORK_PER_TURN_S:
            waiting = self._backlog.next_ready(self._clock.monotonic_s())
            if waiting is None or not self._try(waiting):
                return

    def _try(self, waiting: Waiting) -> bool:
        """Announce one study; False where the log failed and the others have to wait."""
        try:
            self._delivery.announce(waiting, covered=self._walked)
        except LogUnavailable as error:
            self._log_failed(error)
            return False
        except ResourceGone:
            if self._still_there(waiting):  # an instance of it was deleted while we looked
                self._backlog.postpone(waiting, self._clock.monotonic_s() + RETRY_FIRST_S)
                return True
        except EventError as error:
            self._status.unannounceable += 1
            self._orthanc.log_warning(f"a study of modality {waiting.modality} cannot be announced: {error}")
        except (OrthancRefused, KeyError, TypeError, ValueError) as error:  # an answer that is not what we know
            self._status.trouble(error)
            self._backlog.postpone(waiting, self._clock.monotonic_s() + RETRY_MOST_S)
            return True
        else:
            self._retry_wait_s = RETRY_FIRST_S
        self._backlog.settle(waiting)
        return True

    def _still_there(self, waiting: Waiting) -> bool:
        try:
            self._orthanc.get(f"/studies/{waiting.study_id}")
        except ResourceGone:
            return False
        return True

    def _log_answers(self) -> bool:
        try:
            self._delivery.probe()
        except LogUnavailable as error:
            self._log_failed(error)
            return False
        return True

    def _log_failed(self, error: LogUnavailable) -> None:
        if self._status.log_state != "unavailable":
            self._orthanc.log_warning(f"the log is unavailable, announcements wait: {error}")
        self._status.log_fails(error)
        self._delivery.close()
        self._retry_s = self._clock.monotonic_s() + self._retry_wait_s
        self._retry_wait_s = min(2 * self._retry_wait_s, RETRY_MOST_S)

    def _save_cursor(self) -> None:
        settled = self._backlog.settled_up_to(self._walked)
        now_s = self._clock.monotonic_s()
        if settled != self._cursor and now_s - self._cursor_saved_s >= CURSOR_PERIOD_S:
            write_cursor(self._orthanc, settled)
            self._cursor, self._cursor_saved_s = settled, now_s

    def _wait_s(self) -> float:
        now_s = self._clock.monotonic_s()
        next_s = self._backlog.next_time_s()
        wait_s = self._settings.poll_s if next_s is None else max(next_s, self._retry_s) - now_s
        return min(max(wait_s, 0.0), self._settings.poll_s)

    def _report(self) -> None:
        self._status.state = "running"
        self._status.waiting = self._backlog.counts()  # before walked: a reader must never miss what waits
        self._status.cursor, self._status.walked = self._cursor, self._walked


def exclusions_of(settings: Settings) -> Exclusions:
    """What the site does not want announced."""
    body_parts = frozenset(part.strip().upper() for part in settings.cmr_excluded_body_parts)
    return Exclusions(body_parts, settings.cmr_excluded_descriptions)


def waits_of(settings: Settings) -> Waits:
    """The waiting times."""
    return Waits(
        ecg_debounce_s=settings.ecg_debounce_s,
        echo_quiet_s=settings.echo_quiet_s,
        echo_quiet_min_s=settings.echo_quiet_min_s,
        echo_quiet_max_s=settings.echo_quiet_max_s,
        cmr_quiet_s=settings.cmr_quiet_s,
        longest_wait_s=settings.longest_wait_s,
    )
