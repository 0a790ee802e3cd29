"""Appends what the processors have to say: outcomes, dead letters, redriven announcements.

Every append is durable before it returns. An outcome that is appended twice has the same id both times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from orthanc_plugin.wire.events import (
    DEAD_LETTER_TOPIC,
    MODALITIES,
    EventError,
    UnsupportedVersion,
    is_uid,
    parse_study_ready,
    ready_topic,
)
from orthanc_plugin.wire.log import Log, LogRecord
from stream_processors.events import PREFIX, DeadLetter, Failure, Outcome, StudyOutcome, parse_dead_letter

REDRIVEN_FROM = "purkinje-redriven-from"
"""Header of a redriven announcement: the dead letter it was."""


class Publisher:
    """Writes to the log. Safe to use from several threads where the log is."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def publish(self, outcome: StudyOutcome) -> None:
        """Append an outcome. Raises LogUnavailable."""
        self._log.append(
            outcome.topic, key=outcome.study_instance_uid, headers=outcome.headers(), value=outcome.value()
        )

    def bury(self, record: LogRecord, failure: Failure) -> StudyOutcome:
        """Append the dead letter of a message, then its outcome ``failed``. Raises LogUnavailable."""
        letter = DeadLetter(record=record, failure=failure)
        self._log.append(letter.topic, key=record.key, headers=letter.headers(), value=record.value)
        outcome = failed_outcome(record, failure)
        self.publish(outcome)
        return outcome

    def redrive(self, letter: DeadLetter) -> None:
        """Append the original message again and mark its letter as redriven. Raises LogUnavailable."""
        record = letter.record
        headers = {**record.headers, REDRIVEN_FROM: letter.letter_id}
        self._log.append(record.topic, key=record.key, headers=headers, value=record.value)
        marked = {**letter.headers(), f"{PREFIX}state": "redriven"}
        self._log.append(letter.topic, key=record.key, headers=marked, value=record.value)


def failed_outcome(record: LogRecord, failure: Failure) -> StudyOutcome:
    """The outcome of a message that was given up; says as much of the study as the message allows."""
    error_class = failure.error.rpartition(".")[2]
    try:
        claim = parse_study_ready(record.headers, record.value)
        revision, source = claim.revision, claim.source
    except EventError:
        revision, source = 0, ""
    unsupported = error_class == UnsupportedVersion.__name__
    return StudyOutcome(
        outcome=Outcome.FAILED,
        modality=next((modality for modality in MODALITIES if ready_topic(modality) == record.topic), ""),
        study_instance_uid=record.key if is_uid(record.key) else "",
        revision=revision,
        claim_event_id=record.headers.get("ce_id", f"{record.topic}/{record.partition}/{record.offset}"),
        source=source,
        reason_code="unsupported_version" if unsupported else error_class,
        reason=failure.message or f"{failure.error} after {failure.attempts} attempts; see the dead-letter topic",
        completed_utc=failure.last_failed_utc,
    )


def dead_letters(log: Log, *, since_ms: int | None = None) -> dict[str, DeadLetter]:
    """The messages that are dead now, by ``letter_id``: given up, and not redriven since."""
    dead: dict[str, DeadLetter] = {}
    for record in log.read(DEAD_LETTER_TOPIC, since_ms=since_ms):
        for letter in _readable(record):
            if record.headers.get(f"{PREFIX}state") == "redriven":
                dead.pop(letter.letter_id, None)
            else:
                dead[letter.letter_id] = letter
    return dead


def select(letters: Iterable[DeadLetter], *, error: str | None, topic: str | None) -> Iterator[DeadLetter]:
    """Those whose error class ends in ``error`` and that came from ``topic``; None admits all."""
    for letter in letters:
        fits_error = error is None or letter.failure.error.rpartition(".")[2] == error.rpartition(".")[2]
        if fits_error and topic in (None, letter.record.topic):
            yield letter


def utc_now() -> str:
    """ISO 8601 with microseconds and offset."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _readable(record: LogRecord) -> Iterator[DeadLetter]:
    try:
        yield parse_dead_letter(record)
    except EventError:
        return  # somebody else wrote to the topic; it is not ours to redrive
