"""The table of dispositions is total, and its back-off is bounded."""

from __future__ import annotations

import random
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stream_processors.pacs.orthanc_rest  # noqa: F401 - so that every subclass exists
from engines.errors import (
    BundleError,
    DeviceLost,
    EngineError,
    InferenceError,
    NotApplicable,
    OutOfMemory,
    Refusal,
    SelfTestFailed,
)
from orthanc_plugin.wire.events import EventError, UnsupportedVersion
from orthanc_plugin.wire.log import LogUnavailable
from stream_processors.disposition import BUG, ENDINGS, TABLE, Action, Rule, rule_for
from stream_processors.errors import (
    ClaimEnded,
    ClaimExpired,
    CommitmentPending,
    PacsRefused,
    PacsUnauthorized,
    PacsUnavailable,
    ProcessorError,
    SettingsInvalid,
)
from stream_processors.events import Outcome


def _tree(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


OURS = [cls for root in (ProcessorError, EngineError, EventError, LogUnavailable) for cls in _tree(root)]


def _made(cls: type[Exception]) -> Exception:
    return cls.__new__(cls)


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__qualname__)
def test_every_class_of_ours_has_a_rule_that_is_not_the_last_resort(cls: type[Exception]) -> None:
    """No error of ours falls through to the rule for bugs, but the root of the engines, which nobody raises."""
    assert (rule_for(_made(cls)) is BUG) == (cls is EngineError)


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__qualname__)
def test_what_is_retriable_is_retried_and_nothing_else(cls: type[Exception]) -> None:
    """The attribute of the class and the table agree; a lost GPU is tried again too, but in a new process only."""
    retriable = getattr(cls, "retriable", cls is LogUnavailable)
    again = Action.NEW_PROCESS if issubclass(cls, DeviceLost) else Action.RETRY
    assert (rule_for(_made(cls)).action is again) == retriable


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__qualname__)
def test_exactly_the_endings_commit_with_an_outcome(cls: type[Exception]) -> None:
    """A refusal or an ended claim has an outcome of its own; nothing else is committed without one."""
    rule = rule_for(_made(cls))
    assert (rule.action is Action.COMMIT) == issubclass(cls, ENDINGS)
    assert (rule.outcome is not None) == issubclass(cls, ENDINGS)


@pytest.mark.parametrize(
    ("cls", "action"),
    [
        (PacsUnavailable, Action.RETRY),
        (PacsUnauthorized, Action.RETRY),
        (CommitmentPending, Action.RETRY),
        (LogUnavailable, Action.RETRY),
    ],
)
def test_a_world_that_is_away_is_waited_for(cls: type[Exception], action: Action) -> None:
    """A PACS or a log that is away never costs a study, however long it takes."""
    assert rule_for(_made(cls)).action_after(10**9) is action


@pytest.mark.parametrize("cls", [BundleError, SelfTestFailed, SettingsInvalid])
def test_a_broken_engine_or_setting_stops_the_process(cls: type[Exception]) -> None:
    """Nothing is served from what an operator has to repair."""
    assert rule_for(_made(cls)).action is Action.STOP


@pytest.mark.parametrize("cls", [EventError, UnsupportedVersion, PacsRefused, ZeroDivisionError])
def test_what_will_fail_again_is_buried_at_once(cls: type[Exception]) -> None:
    """A poison message is not tried a second time."""
    assert rule_for(_made(cls)).action_after(1) is Action.DEAD_LETTER


def test_a_failing_runtime_is_buried_after_three_tries() -> None:
    """Inference is tried again, but not for ever."""
    rule = rule_for(InferenceError("x"))
    assert [rule.action_after(n) for n in (1, 2, 3)] == [Action.RETRY, Action.RETRY, Action.DEAD_LETTER]
    assert rule_for(OutOfMemory("x")).attempts > rule.attempts


def test_a_lost_gpu_is_left_to_a_new_process_at_once() -> None:
    """No try in this process can succeed, and none ends in a dead letter, however many there were; somebody is told."""
    rule = rule_for(DeviceLost("x"))
    assert {rule.action_after(attempts) for attempts in (1, 3, 10**6)} == {Action.NEW_PROCESS}
    assert rule.alert


def test_a_bug_is_buried_with_an_alert() -> None:
    """What nobody foresaw alerts an operator and never blocks the lane."""
    assert rule_for(ZeroDivisionError()) is BUG
    assert BUG.alert


def test_a_library_exception_that_escaped_is_translated() -> None:
    """A time-out of httpx that nobody translated counts as the PACS being away."""
    assert rule_for(httpx.ReadTimeout("x")) is TABLE[PacsUnavailable]


def test_the_outcomes_of_the_endings() -> None:
    """A study that is gone or not meant for us is not applicable, a refused one refused."""
    assert rule_for(_made(ClaimExpired)).outcome is Outcome.NOT_APPLICABLE
    assert rule_for(_made(NotApplicable)).outcome is Outcome.NOT_APPLICABLE
    assert rule_for(_made(Refusal)).outcome is Outcome.REFUSED
    assert rule_for(_made(ClaimEnded)).outcome is Outcome.SUPERSEDED


@given(st.integers(1, 10_000), st.integers())
def test_the_back_off_is_jittered_and_bounded(attempts: int, seed: int) -> None:
    """A wait lies between half its ceiling and its ceiling, and the ceiling never exceeds the longest one."""
    rule = Rule(action=Action.RETRY, first_wait_s=0.5, longest_wait_s=30.0)
    ceiling = min(30.0, 0.5 * 2 ** min(attempts - 1, 30))
    assert ceiling / 2 <= rule.wait_s(attempts, random.Random(seed)) <= ceiling
