"""What to do about each exception: one table, read by the consumer.

Nothing else decides between trying again and giving up. An exception is looked up along its bases, the most specific
rule wins, and ``Exception`` itself stands at the end: a bug is dead-lettered with an alert, never retried for ever.

A refusal is no failure: it is an outcome, written by the pipeline (``COMMIT``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from engines.errors import (
    BundleError,
    DeviceLost,
    EngineError,
    InferenceError,
    InputRefused,
    NotApplicable,
    OutOfMemory,
    Refusal,
)
from orthanc_plugin.wire.events import EventError, UnsupportedVersion
from orthanc_plugin.wire.log import LogUnavailable
from stream_processors.errors import (
    ClaimEnded,
    ClaimExpired,
    ClaimSuperseded,
    PacsFault,
    PacsUnavailable,
    ProcessorError,
    ResourceExhausted,
    SettingsInvalid,
    StoreUnverified,
    from_foreign,
)
from stream_processors.events import Outcome


class Action(StrEnum):
    """The five things that can happen to a message after an exception."""

    COMMIT = "commit"
    RETRY = "retry"
    DEAD_LETTER = "dead_letter"
    STOP = "stop"
    NEW_PROCESS = "new_process"
    """Nothing is committed; the process replaces itself, and the message is delivered to the new one."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What to do, and for how long.

    Args:
        action: the first answer.
        attempts: tries in all before a ``RETRY`` becomes a ``DEAD_LETTER``; None = for ever.
        first_wait_s: ceiling of the first back-off; it doubles with each attempt.
        longest_wait_s: ceiling of every back-off.
        outcome: how a ``COMMIT`` is announced.
        alert: an operator has to look.
    """

    action: Action
    attempts: int | None = None
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    outcome: Outcome | None = None
    alert: bool = False

    def action_after(self, attempts: int) -> Action:
        """The action once ``attempts`` tries (at least 1) have failed."""
        exhausted = self.action is Action.RETRY and self.attempts is not None and attempts >= self.attempts
        return Action.DEAD_LETTER if exhausted else self.action

    def wait_s(self, attempts: int, draw: random.Random) -> float:
        """Back-off after ``attempts`` failed tries: half of the ceiling for certain, the other half by lot."""
        ceiling = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(attempts - 1, 30))
        return ceiling / 2 + draw.uniform(0, ceiling / 2)


FOREVER = Rule(action=Action.RETRY)
A_FEW_MINUTES = Rule(action=Action.RETRY, attempts=8)
THRICE = Rule(action=Action.RETRY, attempts=3)
GIVE_UP = Rule(action=Action.DEAD_LETTER)
BUG = Rule(action=Action.DEAD_LETTER, alert=True)
STOP = Rule(action=Action.STOP, alert=True)
NEW_PROCESS = Rule(action=Action.NEW_PROCESS, alert=True)

TABLE: Mapping[type[Exception], Rule] = {
    # the input: an outcome, not a failure
    NotApplicable: Rule(action=Action.COMMIT, outcome=Outcome.NOT_APPLICABLE),
    InputRefused: Rule(action=Action.COMMIT, outcome=Outcome.REFUSED),
    Refusal: Rule(action=Action.COMMIT, outcome=Outcome.REFUSED),
    # the announcement is no longer true
    ClaimSuperseded: Rule(action=Action.COMMIT, outcome=Outcome.SUPERSEDED),
    ClaimExpired: Rule(action=Action.COMMIT, outcome=Outcome.NOT_APPLICABLE),
    ClaimEnded: Rule(action=Action.COMMIT, outcome=Outcome.SUPERSEDED),
    # the message
    UnsupportedVersion: GIVE_UP,
    EventError: GIVE_UP,
    # the engine
    BundleError: STOP,
    OutOfMemory: A_FEW_MINUTES,
    DeviceLost: NEW_PROCESS,
    InferenceError: THRICE,
    EngineError: BUG,
    # the world outside
    LogUnavailable: FOREVER,
    PacsUnavailable: FOREVER,
    PacsFault: A_FEW_MINUTES,
    StoreUnverified: A_FEW_MINUTES,
    ResourceExhausted: A_FEW_MINUTES,
    SettingsInvalid: STOP,
    ProcessorError: GIVE_UP,
    # everything else is a bug
    Exception: BUG,
}

ENDINGS = (Refusal, ClaimEnded)
"""Exceptions that the pipeline turns into an outcome; all of them have a ``COMMIT`` rule."""


def rule_for(error: Exception) -> Rule:
    """The most specific rule for an exception; a library's exception is first translated into ours."""
    rule = _look_up(type(error))
    if rule is BUG and not isinstance(error, EngineError):
        translated = from_foreign(error, "unexpected")
        return BUG if translated is None else _look_up(type(translated))
    return rule


def _look_up(error_class: type[Exception]) -> Rule:
    return next(TABLE[cls] for cls in error_class.__mro__ if cls in TABLE)
