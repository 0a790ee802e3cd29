"""One lane or more per modality: take a message, bring it to its end, commit exactly that offset, take the next.

An ECG never waits behind a cardiac MR: each lane has its own thread, subscription and child process, each modality its
own engine, which its lanes share. What an exception means is decided by ``disposition``; this module only acts on it.
It is one of the two places in the project that may catch ``Exception``, because here a bug must end in a dead letter
and not in a study nobody hears of.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from engines.errors import EngineError
from orthanc_plugin.wire.events import EventError, is_uid
from orthanc_plugin.wire.log import LogRecord, LogUnavailable, Subscription
from stream_processors.disposition import Action, Rule, rule_for
from stream_processors.errors import Abandoned, NewProcessNeeded, ProcessorError, Stopped
from stream_processors.events import Failure, StudyOutcome
from stream_processors.publisher import Publisher, utc_now
from stream_processors.stages import Checkpoint, Stage, pass_by
from stream_processors.telemetry import Metrics, NoMetrics, describe

EXIT_UNEXPECTED = 1
EXIT_OPERATOR = 3
POLL_S = 0.5
LAG_EVERY_S = 5.0
_SPEAK_FOR_THEMSELVES = (ProcessorError, EngineError, EventError, LogUnavailable)
"""Classes whose messages are ours and name no patient."""

_log = structlog.get_logger("stream_processors.consumer")


class Runs(Protocol):
    """What brings a message to its end: ``pipeline.Pipeline``."""

    def run(self, record: LogRecord) -> StudyOutcome:
        """One outcome, announced; or an exception, nothing announced."""


@dataclass(frozen=True, kw_only=True)
class Settler:
    """Brings a message to exactly one outcome, however often that takes.

    Args:
        pipeline: does the work.
        publisher: takes the dead letters.
        code_version: written into dead letters.
        stopping: set when the process is asked to end.
        metrics: counts.
        draw: source of the jitter.
    """

    pipeline: Runs
    publisher: Publisher
    code_version: str
    stopping: threading.Event
    metrics: Metrics = field(default_factory=NoMetrics)
    draw: random.Random = field(default_factory=random.Random)

    def settle(self, record: LogRecord) -> StudyOutcome:
        """Run, retry or bury.

        Raises:
            Stopped: an operator has to act first.
            NewProcessNeeded: it cannot end in this process.
            Abandoned: the process is ending.
        """
        return self._persist(record, lambda: self.pipeline.run(record))

    def _persist(self, record: LogRecord, attempt: Callable[[], StudyOutcome]) -> StudyOutcome:
        attempts, first_failed_utc = 0, ""
        while True:
            try:
                return attempt()
            except Exception as error:
                attempts += 1
                first_failed_utc = first_failed_utc or utc_now()
                rule = rule_for(error)
                action = rule.action_after(attempts)
                self._say(error, rule, action, attempts)
                if action is Action.STOP:
                    raise Stopped(_message(error) or type(error).__qualname__) from error
                if action is Action.NEW_PROCESS:
                    raise NewProcessNeeded(_message(error) or type(error).__qualname__) from error
                if action is Action.RETRY:
                    self._wait(rule.wait_s(attempts, self.draw), record)
                    continue
                failure = _failure(error, attempts, first_failed_utc, self.code_version)
            return self._bury(record, failure)

    def _bury(self, record: LogRecord, failure: Failure) -> StudyOutcome:
        """Bury a message; the log may be away, so this too is repeated until it is done."""
        attempts = 0
        while True:
            try:
                return self.publisher.bury(record, failure)
            except LogUnavailable as error:
                attempts += 1
                rule = rule_for(error)
                self._say(error, rule, Action.RETRY, attempts)
                self._wait(rule.wait_s(attempts, self.draw), record)

    def _wait(self, wait_s: float, record: LogRecord) -> None:
        if self.stopping.wait(wait_s):
            msg = f"offset {record.offset} of {record.topic} is left for the next start"
            raise Abandoned(msg)

    def _say(self, error: Exception, rule: Rule, action: Action, attempts: int) -> None:
        modality = structlog.contextvars.get_contextvars().get("modality", "")
        if action is Action.RETRY:
            self.metrics.retried(modality, type(error).__qualname__)
        say = _log.error if rule.alert or action is not Action.RETRY else _log.warning
        known = {"message": _message(error)} if _message(error) else {}
        say("attempt.failed", action=action.value, attempts=attempts, alert=rule.alert, **describe(error), **known)


@dataclass(kw_only=True)
class Lane:
    """One modality's messages, one at a time; other lanes of the group take others.

    Args:
        name: modality.
        subscription: member of the consumer group, used by this lane only.
        settler: brings each message to its end.
        stopping: set when the process is asked to end.
        checkpoint: for the fault tests.
        metrics: counts.
        topic: what it takes messages from.
        number: which of its modality's lanes, from 1.
    """

    name: str
    subscription: Subscription
    settler: Settler
    stopping: threading.Event
    checkpoint: Checkpoint = pass_by
    metrics: Metrics = field(default_factory=NoMetrics)
    topic: str = ""
    number: int = 1
    fatal: str | None = None
    exit_code: int = 0
    device_lost: bool = False
    _lag_seen_s: float = -math.inf

    @property
    def label(self) -> str:
        """Its name in logs and metrics, and that of its thread: ``ecg``, ``ecg-2``."""
        return self.name if self.number == 1 else f"{self.name}-{self.number}"

    def run(self) -> None:
        """Work until asked to stop; what ends the whole process leaves its reason in ``fatal`` and an exit code."""
        structlog.contextvars.bind_contextvars(lane=self.label, modality=self.name)
        try:
            while not self.stopping.is_set():
                self.step()
        except Abandoned:
            _log.info("study.abandoned")
        except Stopped as stopped:
            self.fatal, self.exit_code = str(stopped), EXIT_OPERATOR
        except NewProcessNeeded as lost:
            self.fatal, self.device_lost = str(lost), True
        except Exception as error:  # noqa: BLE001 - a lane that ends in silence would be a modality nobody serves
            _log.error("lane.failed", alert=True, **describe(error))
            self.fatal, self.exit_code = f"lane {self.label} ended: {type(error).__qualname__}", EXIT_UNEXPECTED
        finally:
            self.stopping.set()

    def step(self) -> None:
        """Take one message, if there is one, and bring it to its end."""
        try:
            record = self.subscription.poll(timeout_s=POLL_S)
            self._count_lag()
        except LogUnavailable as error:
            _log.warning("log.unavailable", message=_message(error))
            self.stopping.wait(POLL_S)
            return
        if record is not None:
            self._handle(record)

    def _handle(self, record: LogRecord) -> None:
        bound = {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "event_id": record.headers.get("ce_id", ""),
            "study_instance_uid": record.key if is_uid(record.key) else "",
        }
        with structlog.contextvars.bound_contextvars(**bound):
            outcome = self.settler.settle(record)
            self._commit(record)
            say_outcome(outcome)
            self.metrics.study_ended(self.name, outcome.outcome.value, outcome.stage_ms)

    def _commit(self, record: LogRecord) -> None:
        """Commit; while the log is away the message is done all the same, and is a no-op when it comes again."""
        attempts = 0
        while True:
            try:
                kept = self.subscription.commit(record)
            except LogUnavailable as error:
                attempts += 1
                _log.warning("commit.failed", attempts=attempts, message=_message(error))
                if self.stopping.wait(rule_for(error).wait_s(attempts, self.settler.draw)):
                    raise Abandoned from error
                continue
            if not kept:  # another member holds the record by now; it will find our report
                _log.warning("commit.fenced")
            self.checkpoint(Stage.COMMIT)
            return

    def _count_lag(self) -> None:
        now_s = time.monotonic()
        if now_s - self._lag_seen_s >= LAG_EVERY_S:
            self._lag_seen_s = now_s
            self.metrics.lag(self.topic, self.label, self.subscription.lag())


def say_outcome(outcome: StudyOutcome) -> None:
    """The canonical line: one per study, with everything an operator asks first."""
    report = outcome.report
    _log.info(
        f"study.{outcome.outcome.value}",
        modality=outcome.modality,
        study_instance_uid=outcome.study_instance_uid,
        revision=outcome.revision,
        outcome=outcome.outcome.value,
        reason_code=outcome.reason_code,
        sop_instance_uid=report.sop_instance_uid if report else None,
        stored=report.stored.value if report else None,
        engine=outcome.engine.name if outcome.engine else None,
        engine_version=outcome.engine.version if outcome.engine else None,
        stage_ms=dict(outcome.stage_ms),
    )


def _failure(error: Exception, attempts: int, first_failed_utc: str, code_version: str) -> Failure:
    return Failure(
        error=f"{type(error).__module__}.{type(error).__qualname__}",
        message=_message(error),
        attempts=attempts,
        first_failed_utc=first_failed_utc,
        last_failed_utc=utc_now(),
        code_version=code_version,
    )


def _message(error: Exception) -> str:
    """The message of an error of ours; nothing for others, whose messages may quote the data set."""
    return str(error) if isinstance(error, _SPEAK_FOR_THEMSELVES) else ""
