"""Gives announcements that lie on the log to the pipeline again, without touching any consumer group.

A report that is already in the PACS is found and nothing is written; a new engine, or a report that is missing, makes
one. Live traffic goes on beside it. Called by ``purkinje replay``.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from engines.records import Modality
from orthanc_plugin.wire.events import READY_TOPICS, ready_topic
from orthanc_plugin.wire.log import Log
from stream_processors.consumer import Settler, say_outcome
from stream_processors.errors import SettingsInvalid
from stream_processors.events import StudyOutcome
from stream_processors.settings import Settings
from stream_processors.telemetry import NoMetrics

_AGO = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which announcements: ``since_ms`` in milliseconds since the epoch, ``from_offset`` in each partition."""

    since_ms: int | None = None
    from_offset: int | None = None
    limit: int | None = None


def replay(
    log: Log,
    topic: str,
    settler: Settler,
    selection: Selection,
    *,
    each_done: Callable[[StudyOutcome], None] = lambda _: None,
) -> int:
    """Settle the selected records of a topic; return how many there were.

    Raises:
        Stopped: an operator has to act first.
        Abandoned: asked to end in between.
    """
    count = 0
    for record in log.read(
        topic, since_ms=selection.since_ms, from_offset=selection.from_offset, limit=selection.limit
    ):
        each_done(settler.settle(record))
        count += 1
    return count


def replay_all(settings: Settings, modalities: Sequence[Modality], selection: Selection) -> dict[str, int]:
    """Open the engines that are needed, replay, and count the outcomes.

    Raises:
        BundleError: an engine fails its self-test.
        Stopped: an operator has to act first.
    """
    from stream_processors.processors import opened, settler_of, with_partners
    from stream_processors.routes import open_route

    counts: Counter[str] = Counter()

    def count(outcome: StudyOutcome) -> None:
        say_outcome(outcome)
        counts[outcome.outcome.value] += 1

    with ExitStack() as stack:
        connections = with_partners(settings, stack.enter_context(opened(settings)), stack)
        for modality in modalities:
            route = open_route(modality, settings.engine, settings.decode)
            stack.callback(route.close)
            settler = settler_of(settings, route, connections, stopping=threading.Event(), metrics=NoMetrics())
            replay(connections.log, route.topic, settler, selection, each_done=count)
    return dict(counts)


def modalities_of(served: Sequence[Modality], *, modality: str | None, topic: str | None) -> list[Modality]:
    """The modalities that a selection means; without one, all that are served.

    Raises:
        SettingsInvalid: the topic carries no studies.
    """
    if topic is None:
        return [one for one in served if modality in (None, one.value)]
    meant = [one for one in Modality if ready_topic(one) == topic and modality in (None, one.value)]
    if not meant:
        msg = f"--topic is {topic!r}; expected one of {', '.join(READY_TOPICS)}, and to agree with --modality"
        raise SettingsInvalid(msg)
    return meant


def since_ms_of(text: str, now: datetime) -> int:
    """Milliseconds since the epoch of ``2026-03-01T08:00+01:00``, ``2026-03-01`` (UTC) or ``90m`` (ago; s, m, h, d).

    Raises:
        SettingsInvalid: none of these.
    """
    ago = _AGO.fullmatch(text)
    if ago:
        return _milliseconds(now - timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        msg = f"--since is {text!r}; expected a time such as 2026-03-01T08:00+01:00, a date, or 90m, 24h, 7d"
        raise SettingsInvalid(msg) from None
    return _milliseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
