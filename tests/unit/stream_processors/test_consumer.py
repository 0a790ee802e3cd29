"""A lane commits exactly what has ended, retries what may succeed, buries what will not, and stops when told."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from engines.errors import InferenceError, SelfTestFailed
from engines.records import Modality
from orthanc_plugin.wire.events import DEAD_LETTER_TOPIC, RESULT_TOPIC
from stream_processors.consumer import Lane
from stream_processors.disposition import Rule
from stream_processors.errors import Abandoned, PacsFault, PacsRefused, PacsUnavailable, Stopped
from stream_processors.events import parse_dead_letter
from stream_processors.publisher import dead_letters
from stream_processors.stages import Stage
from stream_processors.telemetry import configure_logging
from tests.doubles.log import FaultyLog
from tests.doubles.reports import make_header
from tests.unit.stream_processors.conftest import World, committed

CANARY = ("Canary^Patient", "CANARY-ID", "18880101")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off is measured elsewhere; here it only costs time."""
    monkeypatch.setattr(Rule, "wait_s", lambda *_: 0.001)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged, whoever logs it."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    configure_logging(stream=stream, level=logging.DEBUG)
    root.setLevel(logging.DEBUG)
    yield stream
    root.handlers[:], root.level = before
    logging.captureWarnings(capture=False)


def _step(lane: Lane) -> None:
    """Let a lane take one message."""
    lane.step()


def test_a_message_is_committed_after_its_outcome(world: World) -> None:
    """The offset moves once report and outcome stand."""
    record = world.announce()
    lane = world.lane()
    _step(lane)
    assert committed(lane) == [record.offset]
    assert len(world.outcomes()) == 1
    assert world.lag() == 0


def test_a_pacs_that_is_away_is_waited_for(world: World) -> None:
    """Twenty failures later the study is reported, and nothing was buried."""
    world.announce()
    world.pacs.faults["store"] = [PacsUnavailable("away") for _ in range(20)]
    _step(world.lane())
    assert [outcome["outcome"] for outcome in world.outcomes()] == ["reported"]
    assert world.dead() == []


def test_a_log_that_is_away_is_waited_for(world: World) -> None:
    """Outcome and commit are repeated until the log has them."""
    world.announce()
    world.log.faults.update({"append": 3, "commit": 3})
    lane = world.lane()
    _step(lane)
    assert len(committed(lane)) == 1
    assert len(world.outcomes()) == 1


def test_a_poll_that_fails_is_tried_again(world: World) -> None:
    """A log that is away while the lane is idle ends nothing."""
    world.announce()
    world.log.faults["poll"] = 1
    lane = world.lane()
    _step(lane)
    _step(lane)
    assert len(committed(lane)) == 1


@pytest.mark.parametrize(
    ("error", "attempts"), [(InferenceError("x"), 3), (PacsFault("x"), 8), (PacsRefused("x"), 1), (KeyError("x"), 1)]
)
def test_what_keeps_failing_is_buried_with_one_outcome(world: World, error: Exception, attempts: int) -> None:
    """After its tries the message lies on the dead-letter topic, the outcome is failed, and the lane goes on."""
    record = world.announce()
    world.engine.faults = [error] * 100
    lane = world.lane()
    _step(lane)
    (letter,) = world.dead()
    parsed = parse_dead_letter(letter)
    assert parsed.record.value == record.value
    assert parsed.failure.attempts == attempts
    assert parsed.failure.error.endswith(type(error).__name__)
    (outcome,) = world.outcomes()
    assert (outcome["outcome"], outcome["reason_code"]) == ("failed", type(error).__name__)
    assert outcome["study_instance_uid"] == record.key
    assert committed(lane) == [record.offset]


def test_poison_is_buried_and_the_next_study_reported(world: World) -> None:
    """A message that is no announcement does not stand in the way."""
    topic = world.claim().topic
    world.log.inner.append(topic, key="../../x", headers={"ce_type": "junk"}, value=b"\xff\x00")
    world.announce()
    lane = world.lane()
    _step(lane)
    _step(lane)
    poison, study = world.outcomes()
    assert (poison["outcome"], poison["study_instance_uid"]) == ("failed", "")
    assert poison["modality"] == "echo"
    assert study["outcome"] == "reported"


def test_a_future_version_is_buried_as_such(world: World) -> None:
    """A message of a major version this software does not read says so."""
    claim = world.claim()
    headers = {**claim.headers(), "ce_type": "org.purkinje.study.ready.v2"}
    world.log.inner.append(claim.topic, key=claim.study_instance_uid, headers=headers, value=claim.value())
    _step(world.lane())
    (outcome,) = world.outcomes()
    assert (outcome["outcome"], outcome["reason_code"]) == ("failed", "unsupported_version")
    assert outcome["claim_event_id"] == claim.event_id


def test_a_burial_is_repeated_until_the_log_has_it(world: World) -> None:
    """A dead letter is not lost because the log was away; a repeated one counts once."""
    world.announce()
    world.engine.faults = [KeyError("x")]
    world.log.faults[f"append {RESULT_TOPIC}"] = 2
    _step(world.lane())
    assert len(world.dead()) == 3
    assert len(dead_letters(world.log)) == 1
    assert len(world.outcomes()) == 1


def test_a_broken_engine_stops_the_lane_and_commits_nothing(world: World) -> None:
    """The message waits for the operator; the reason is there to be read."""
    world.announce()
    world.engine.faults = [SelfTestFailed("golden record 3 differs")]
    lane = world.lane()
    lane.run()
    assert (lane.fatal, lane.exit_code) == ("golden record 3 differs", 3)
    assert world.stopping.is_set()
    assert committed(lane) == []
    assert (world.outcomes(), world.dead()) == ([], [])


def test_a_lane_that_is_asked_to_end_finishes_its_study(world: World) -> None:
    """Between two messages the lane ends; the one in work is brought to its end first."""
    world.announce()
    world.announce(revision=2)
    world.checkpoint = lambda stage: world.stopping.set() if stage is Stage.FETCH else None
    lane = world.lane()
    lane.run()
    assert len(committed(lane)) == 1
    assert lane.fatal is None


def test_a_lane_that_waits_is_woken_to_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A back-off does not hold the process: the message is left for the next start."""
    monkeypatch.setattr(Rule, "wait_s", lambda *_: 60.0)
    world.announce()
    world.pacs.faults["find"] = [PacsUnavailable("away")]
    lane = world.lane()
    thread = threading.Thread(target=lane.run)
    thread.start()
    while not world.pacs.calls["find"]:
        time.sleep(0.01)
    started = time.monotonic()
    world.stopping.set()
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - started < 5
    assert (committed(lane), world.outcomes()) == ([], [])


def test_a_settler_that_is_abandoned_says_so(world: World) -> None:
    """Whoever settles outside a lane learns that the message was left."""
    world.stopping.set()
    world.pacs.faults["find"] = [PacsUnavailable("away")]
    with pytest.raises(Abandoned):
        world.settler().settle(world.announce())


def test_a_settler_that_must_stop_says_so(world: World) -> None:
    """Whoever settles outside a lane learns that an operator is needed."""
    world.engine.faults = [SelfTestFailed("x")]
    with pytest.raises(Stopped):
        world.settler().settle(world.announce())


def test_a_study_killed_before_the_commit_is_delivered_again_as_a_no_op(world: World) -> None:
    """Killed between outcome and commit: the next process finds the report and commits."""

    class Killed(BaseException):
        """The process ends."""

    def kill(stage: Stage) -> None:
        if stage is Stage.PUBLISH:
            raise Killed

    world.announce()
    world.checkpoint = kill
    lane = world.lane()
    with pytest.raises(Killed):
        _step(lane)
    lane.subscription.close()
    before = dict(world.pacs.reports)
    world.checkpoint = lambda _: None
    again = world.lane()
    _step(again)
    assert len(committed(again)) == 1
    assert world.pacs.reports == before
    assert len({outcome["event_id"] for outcome in world.outcomes()}) == 1


def test_one_slow_modality_does_not_hold_another(log: FaultyLog) -> None:
    """While a cardiac MR waits for its PACS, an ECG is reported."""
    stopping = threading.Event()
    slow = World(log=log, modality=Modality.CMR, stopping=stopping)
    fast = World(log=log, modality=Modality.ECG, stopping=stopping)
    slow.announce()
    slow.pacs.faults["find"] = [PacsUnavailable("away")] * 10**6
    lanes = [slow.lane(), fast.lane()]
    threads = [threading.Thread(target=lane.run) for lane in lanes]
    for thread in threads:
        thread.start()
    while not slow.pacs.calls["find"]:
        time.sleep(0.01)
    fast.announce()
    deadline = time.monotonic() + 20
    while not fast.outcomes() and time.monotonic() < deadline:
        time.sleep(0.02)
    stopping.set()
    for thread in threads:
        thread.join(10)
    assert [outcome["modality"] for outcome in fast.outcomes()] == ["ecg"]


def test_one_line_per_study_says_everything(world: World, lines: io.StringIO) -> None:
    """The canonical line names study, outcome, engine, report and the time of every stage."""
    world.announce()
    _step(world.lane())
    (line,) = [json.loads(one) for one in lines.getvalue().splitlines() if "study." in one]
    assert line["event"] == "study.reported"
    assert line["study_instance_uid"] == "1.2.3"
    assert line["engine"] == "purkinje-echo"
    assert line["sop_instance_uid"] == world.outcomes()[0]["report"]["sop_instance_uid"]
    assert {"fetch", "predict", "store", "total"} <= set(line["stage_ms"])
    assert "dropped_keys" not in line


@pytest.mark.parametrize("fails", [False, True])
def test_a_patient_never_appears_outside_the_report(log: FaultyLog, lines: io.StringIO, fails: bool) -> None:
    """Name, ID and birth date stand in the report, and in no log line, topic or header, even when a bug quotes them."""
    name, patient_id, birth_date = CANARY
    header = make_header(Modality.ECHO, PatientName=name, PatientID=patient_id, PatientBirthDate=birth_date)
    world = World(log=log, headers=[header])
    if fails:
        world.engine.faults = [ValueError(f"cannot parse {CANARY}")]
    world.announce()
    _step(world.lane())
    written = lines.getvalue()
    for topic in (world.claim().topic, RESULT_TOPIC, DEAD_LETTER_TOPIC):
        written += "".join(f"{record.key}{record.headers}{record.value!r}" for record in log.inner.read(topic))
    assert not [secret for secret in CANARY if secret in written]
    in_report = any(name.encode() in report for report in world.pacs.reports.values())
    assert in_report == (not fails)
    assert ("study.failed" in written) == fails


def test_an_unexpected_end_of_a_lane_is_loud(world: World) -> None:
    """A lane that breaks outside a message ends the process with a reason instead of leaving a modality unserved."""
    lane = world.lane()
    lane.subscription.poll = lambda **_: 1 / 0  # type: ignore[method-assign,assignment]
    lane.run()
    assert lane.fatal is not None
    assert "ZeroDivisionError" in lane.fatal
    assert lane.exit_code == 1
    assert world.stopping.is_set()
