"""Lists and redrives dead letters for an operator. Called by ``purkinje dead-letter``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from stream_processors.events import DeadLetter
from stream_processors.processors import open_settings_log
from stream_processors.publisher import Publisher, dead_letters, select
from stream_processors.replay import since_ms_of
from stream_processors.settings import Settings


def find(settings: Settings, *, error: str | None, topic: str | None, since: str | None) -> list[DeadLetter]:
    """The messages that are dead now and fit, oldest first.

    Raises:
        SettingsInvalid: ``since`` is not a time.
        LogUnavailable: the log does not answer.
    """
    since_ms = since_ms_of(since, datetime.now(UTC)) if since else None
    log = open_settings_log(settings)
    try:
        return list(select(dead_letters(log, since_ms=since_ms).values(), error=error, topic=topic))
    finally:
        log.close()


def redrive(settings: Settings, letters: Iterable[DeadLetter]) -> None:
    """Announce them again. Raises LogUnavailable; those before it were announced."""
    log = open_settings_log(settings)
    try:
        publisher = Publisher(log)
        for letter in letters:
            publisher.redrive(letter)
    finally:
        log.close()


def row(letter: DeadLetter) -> dict[str, Any]:
    """A letter as JSON values, without the message itself."""
    return {"id": letter.letter_id, "study_instance_uid": letter.record.key, **asdict(letter.failure)}
