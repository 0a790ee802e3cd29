"""The studies that wait for their announcement, in memory; what is lost here is found again in the change log.

One entry per study and modality. ECGs are handed out before echo, and echo before CMR, so that a long queue of
one never starves another.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from orthanc_plugin.changes import SeriesArrival
from orthanc_plugin.completeness import Arrivals, Decision, SeriesCount, Waits, decide, series_count

ORDER = ("ecg", "echo", "cmr")


@dataclass(slots=True)
class Waiting:
    """One study and modality that is not settled.

    Args:
        study_id: Orthanc's id of the study.
        modality: ``cmr``, ``echo``, ``ecg``.
        first_sequence: its oldest unsettled instance in the change log.
        last_sequence: its newest one.
        arrivals: when they arrived.
        decision: when it will be ready.
        series: counts of the MR series that changed (empty for other modalities).
        judged_count: images stored when its layout was last looked at.
    """

    study_id: str
    modality: str
    first_sequence: int
    last_sequence: int
    arrivals: Arrivals
    decision: Decision
    series: dict[str, SeriesCount] = field(default_factory=dict)
    judged_count: int = 0

    @property
    def image_count(self) -> int:
        """Images in the MR series that changed."""
        return sum(count.instance_count for count in self.series.values())

    @property
    def worth_a_look(self) -> bool:
        """True where the totals are reached and the layout was not judged at this count."""
        if not self.series or self.judged_count == self.image_count:
            return False
        return all(count.reached for count in self.series.values())


class Backlog:
    """Waiting studies, ordered by the time when they become ready.

    Args:
        waits: the waiting times.
    """

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self._waiting: dict[tuple[str, str], Waiting] = {}
        self._queues: dict[str, list[tuple[float, str]]] = {modality: [] for modality in ORDER}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._waiting

    def add(self, arrival: SeriesArrival, arrived_s: float) -> Waiting:
        """Take note of instances that arrived at ``arrived_s`` (monotonic seconds) and decide anew."""
        waiting = self._waiting.get((arrival.study_id, arrival.modality))
        if waiting is None:
            waiting = self._new(arrival, arrived_s)
        else:
            waiting.arrivals = waiting.arrivals.and_at(arrived_s)
            waiting.first_sequence = min(waiting.first_sequence, arrival.first_sequence)
            waiting.last_sequence = max(waiting.last_sequence, arrival.last_sequence)
        if arrival.modality == "cmr":
            waiting.series[arrival.series_id] = series_count(arrival.header, arrival.instance_count)
        self.judge(waiting, whole=False)
        return waiting

    def judge(self, waiting: Waiting, *, whole: bool) -> None:
        """Decide when it will be ready."""
        self._queue(waiting, decide(waiting.modality, waiting.arrivals, whole=whole, waits=self._waits))

    def postpone(self, waiting: Waiting, until_s: float) -> None:
        """Try again later, for the same reason."""
        self._queue(waiting, Decision(until_s, waiting.decision.rule))

    def settle(self, waiting: Waiting) -> None:
        """It was announced, or does not concern us after all."""
        self._waiting.pop((waiting.study_id, waiting.modality), None)

    def next_ready(self, now_s: float) -> Waiting | None:
        """The most urgent study that is ready, still kept until ``settle`` or ``postpone``; None if there is none."""
        for modality in ORDER:
            waiting = self._front(modality)
            if waiting is not None and waiting.decision.ready_s <= now_s:
                return waiting
        return None

    def next_time_s(self) -> float | None:
        """When the next study becomes ready, or None."""
        fronts = [waiting for modality in ORDER if (waiting := self._front(modality)) is not None]
        return min((waiting.decision.ready_s for waiting in fronts), default=None)

    def settled_up_to(self, walked: int) -> int:
        """The change log position before which nothing waits."""
        return min((waiting.first_sequence - 1 for waiting in self._waiting.values()), default=walked)

    def counts(self) -> dict[str, int]:
        """Waiting studies by modality."""
        counts = dict.fromkeys(ORDER, 0)
        for _, modality in self._waiting:
            counts[modality] += 1
        return counts

    def worth_a_look(self, studies: set[str]) -> Iterator[Waiting]:
        """Those of these studies whose MR totals are reached."""
        for study_id in studies:
            waiting = self._waiting.get((study_id, "cmr"))
            if waiting is not None and waiting.worth_a_look:
                yield waiting

    def _new(self, arrival: SeriesArrival, arrived_s: float) -> Waiting:
        waiting = Waiting(
            arrival.study_id,
            arrival.modality,
            arrival.first_sequence,
            arrival.last_sequence,
            Arrivals(arrived_s, arrived_s),
            Decision(arrived_s, ""),
        )
        self._waiting[(arrival.study_id, arrival.modality)] = waiting
        return waiting

    def _queue(self, waiting: Waiting, decision: Decision) -> None:
        waiting.decision = decision
        heapq.heappush(self._queues[waiting.modality], (decision.ready_s, waiting.study_id))

    def _front(self, modality: str) -> Waiting | None:
        """First valid entry; entries that a later decision made stale are dropped on the way."""
        queue = self._queues[modality]
        while queue:
            ready_s, study_id = queue[0]
            waiting = self._waiting.get((study_id, modality))
            if waiting is not None and waiting.decision.ready_s == ready_s:
                return waiting
            heapq.heappop(queue)
        return None
