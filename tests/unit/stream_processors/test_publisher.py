"""Dead letters can be listed, selected and redriven; replay and its times."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from engines.errors import InferenceError
from engines.records import Modality
from stream_processors.disposition import Rule
from stream_processors.errors import SettingsInvalid
from stream_processors.publisher import REDRIVEN_FROM, dead_letters, select
from stream_processors.replay import Selection, modalities_of, replay, since_ms_of
from tests.unit.stream_processors.conftest import World

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off is measured elsewhere."""
    monkeypatch.setattr(Rule, "wait_s", lambda *_: 0.001)


def _bury_one(world: World) -> None:
    world.announce()
    world.engine.faults = [KeyError("x")]
    world.lane().step()


def test_a_redriven_message_is_announced_again_and_no_longer_dead(world: World) -> None:
    """After the repair the study ends as it should have, and the letter is off the list."""
    _bury_one(world)
    (letter,) = dead_letters(world.log).values()
    world.publisher.redrive(letter)
    assert dead_letters(world.log) == {}
    world.lane().step()
    assert [outcome["outcome"] for outcome in world.outcomes()] == ["failed", "reported"]
    again = list(world.log.read(world.claim().topic))[-1]
    assert again.headers[REDRIVEN_FROM] == letter.letter_id
    assert again.value == letter.record.value


def test_a_message_that_fails_again_is_dead_again(world: World) -> None:
    """Redriving is no way to lose a message."""
    _bury_one(world)
    (letter,) = dead_letters(world.log).values()
    world.publisher.redrive(letter)
    world.engine.faults = [KeyError("x")]
    world.lane().step()
    (again,) = dead_letters(world.log).values()
    assert again.letter_id != letter.letter_id


def test_letters_are_selected_by_class_and_topic(world: World) -> None:
    """The class may be given with or without its module."""
    _bury_one(world)
    letters = list(dead_letters(world.log).values())
    topic = world.claim().topic
    assert list(select(letters, error="KeyError", topic=topic)) == letters
    assert list(select(letters, error="builtins.KeyError", topic=None)) == letters
    assert list(select(letters, error="ValueError", topic=None)) == []
    assert list(select(letters, error=None, topic="other")) == []


def test_a_record_that_is_no_letter_is_left_alone(world: World) -> None:
    """Somebody else's record on the topic does not disturb the list."""
    world.log.append("purkinje.dead-letter.v1", key="x", headers={}, value=b"?")
    _bury_one(world)
    assert len(dead_letters(world.log)) == 1


def test_replay_is_a_no_op_where_the_reports_stand(world: World) -> None:
    """Everything is found, nothing is written, and no group moves."""
    for revision in (1, 2):
        world.announce(revision=revision)
    world.lane().step()
    before, lag = dict(world.pacs.reports), world.lag()
    ended = []
    count = replay(world.log, world.claim().topic, world.settler(), Selection(), each_done=ended.append)
    assert count == 2
    assert [outcome.report.stored for outcome in ended if outcome.report] == ["already", "already"]
    assert (world.pacs.reports, world.lag()) == (before, lag)


def test_replay_writes_what_is_missing(world: World) -> None:
    """A report that was lost in the PACS comes back with its own bytes."""
    world.announce()
    world.lane().step()
    before = dict(world.pacs.reports)
    world.pacs.reports.clear()
    replay(world.log, world.claim().topic, world.settler(), Selection(from_offset=0, limit=5))
    assert world.pacs.reports == before


def test_replay_survives_what_fails(world: World) -> None:
    """A study that fails in a replay is buried like any other, and the next one is replayed."""
    world.announce()
    world.announce(revision=2)
    world.engine.faults = [InferenceError("x")] * 3
    assert replay(world.log, world.claim().topic, world.settler(), Selection()) == 2
    assert [outcome["outcome"] for outcome in world.outcomes()] == ["failed", "reported"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", datetime(2026, 3, 1, 10, 30, tzinfo=UTC)),
        ("24h", datetime(2026, 2, 28, 12, 0, tzinfo=UTC)),
        ("7d", datetime(2026, 2, 22, 12, 0, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01T08:00+01:00", datetime(2026, 3, 1, 7, 0, tzinfo=UTC)),
    ],
)
def test_a_time_may_be_written_in_several_ways(text: str, expected: datetime) -> None:
    """An age, a date or a full time with its zone mean what people expect."""
    assert since_ms_of(text, NOW) == int(expected.timestamp() * 1000)


@pytest.mark.parametrize("text", ["yesterday", "5w", "", "-1h"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    """What cannot be read is named with what is expected."""
    with pytest.raises(SettingsInvalid, match="expected a time"):
        since_ms_of(text, NOW)


def test_modalities_follow_from_topic_or_name() -> None:
    """A selection means some of the served modalities, and a topic that carries no studies is refused."""
    served = tuple(Modality)
    assert modalities_of(served, modality=None, topic=None) == list(served)
    assert modalities_of(served, modality="ecg", topic=None) == [Modality.ECG]
    assert modalities_of(served, modality=None, topic="purkinje.study.ready.cmr.v1") == [Modality.CMR]
    with pytest.raises(SettingsInvalid, match="expected one of"):
        modalities_of(served, modality=None, topic="purkinje.study.outcome.v1")
    with pytest.raises(SettingsInvalid):
        modalities_of(served, modality="ecg", topic="purkinje.study.ready.cmr.v1")
