"""The account, the summary and the verdict: what the demo and ``verify`` say follows from the log."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from orthanc_plugin.wire.events import RESULT_TOPIC, SeriesClaim, StudyReady
from orthanc_plugin.wire.sqlite_log import SqliteLog
from stream_processors.events import Outcome, StudyOutcome
from stream_processors.local.arrivals import InputUnusable, arrivals_in
from stream_processors.local.ledger import take_account
from stream_processors.local.results import result_text, summarise, write_summary
from stream_processors.local.verify import Verdict, compare, judge, last_line

STUDY = "2.25.100"
DIGEST = "a" * 64


def announcement(study: str = STUDY, digest: str = DIGEST) -> StudyReady:
    """An echo announcement."""
    claim = SeriesClaim("2.25.101", "series", 1, ("1.2.840.10008.5.1.4.1.1.3.1",), digest)
    return StudyReady(
        source="urn:orthanc:test",
        study_instance_uid=study,
        pacs_study_id="study",
        modality="echo",
        revision=1,
        supersedes=None,
        series=(claim,),
        content_digest=digest,
        completeness_rule="quiet",
        last_received_utc="2026-01-01T00:00:00Z",
        announced_utc="2026-01-01T00:00:01Z",
        sequence=1,
    )


def outcome_of(event: StudyReady, outcome: Outcome, **more: Any) -> StudyOutcome:
    """How an announcement ended."""
    known = {"modality": event.modality, "study_instance_uid": event.study_instance_uid, "source": event.source}
    return StudyOutcome(outcome=outcome, revision=1, claim_event_id=event.event_id, **known, **more)


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    """An embedded log."""
    return SqliteLog(str(tmp_path / "log.db"))


def append(log: SqliteLog, message: StudyReady | StudyOutcome) -> None:
    """Put a message on its topic."""
    topic = message.topic if isinstance(message, StudyReady) else RESULT_TOPIC
    log.append(topic, key=message.study_instance_uid, headers=message.headers(), value=message.value())


def test_an_account_balances(log: SqliteLog) -> None:
    """Announced and ended studies are counted once each, however often they were said; the rest is open."""
    first, second = announcement(), announcement("2.25.200", "b" * 64)
    for message in (first, second, first):
        append(log, message)
    for _ in range(2):
        append(log, outcome_of(first, Outcome.REFUSED, reason_code="lead_off", reason="Lead V1 is flat."))
    account = take_account(log)
    assert set(account.announced) == {first.event_id, second.event_id}
    assert account.open_events == [second]
    assert account.contradictions == []
    assert [end["outcome"] for end in account.of_study(STUDY)] == ["refused"]


def test_two_different_ends_are_a_contradiction(log: SqliteLog) -> None:
    """An announcement that ended in two ways is found."""
    event = announcement()
    append(log, event)
    append(log, outcome_of(event, Outcome.REFUSED, reason_code="lead_off", reason="x"))
    append(log, outcome_of(event, Outcome.FAILED, reason_code="bug", reason="x"))
    assert take_account(log).contradictions == [event.event_id]


def test_a_study_that_was_not_announced_is_listed_as_ignored(log: SqliteLog, tmp_path: Path) -> None:
    """The summary leaves nothing out that was sent."""
    event = announcement()
    append(log, event)
    append(log, outcome_of(event, Outcome.NOT_APPLICABLE, reason_code="not_cardiac", reason="no heart"))
    entries = summarise(take_account(log), [STUDY, "2.25.999"])
    assert [entry["outcome"] for entry in entries] == ["not_applicable", "ignored"]
    assert json.loads(write_summary(tmp_path, entries).read_text()) == entries


def entry(**more: Any) -> dict[str, Any]:
    """A summary entry of an answered echo study with LVEF 50 (40 to 60)."""
    interval = {"low": 40.0, "high": 60.0, "coverage_percent": 90.0}
    lvef = {"quantity": "lvef", "value": 50.0, "unit": "%", "interval": interval}
    base = {
        "study_instance_uid": STUDY,
        "modality": "echo",
        "outcome": "reported",
        "measurements": [lvef],
        "probabilities": [],
    }
    return {**base, "reason": None, "reason_code": None, **more}


def risk(*, decision: bool | None) -> dict[str, Any]:
    """A summary entry of an answered CMR study."""
    probability = {
        "condition": "lvef_at_most_40",
        "probability": 0.5,
        "interval": {"low": 0.1, "high": 0.9},
        "decision": decision,
    }
    return entry(modality="cmr", measurements=[], probabilities=[probability])


@pytest.mark.parametrize(
    ("said", "true_percent", "verdict"),
    [
        (entry(), 40.0, Verdict.RIGHT),
        (entry(), 39.9, Verdict.WRONG),
        (entry(modality="ecg"), 60.1, Verdict.WRONG),
        (entry(outcome="abstained"), 50.0, Verdict.REFUSED),
        (entry(outcome="refused"), 50.0, Verdict.REFUSED),
        (entry(outcome="failed"), 50.0, Verdict.WRONG),
        (entry(outcome="ignored"), 50.0, Verdict.WRONG),
        (risk(decision=True), 40.0, Verdict.RIGHT),
        (risk(decision=True), 40.1, Verdict.WRONG),
        (risk(decision=False), 40.1, Verdict.RIGHT),
        (risk(decision=None), 40.1, Verdict.REFUSED),
    ],
)
def test_verdicts(said: dict[str, Any], true_percent: float, verdict: Verdict) -> None:
    """Right inside the interval or the class, refused where no answer was given, wrong otherwise, lost studies included."""
    assert judge(said, {"lvef_percent": true_percent}) is verdict


def test_the_last_line_counts() -> None:
    """The last line says how many were right, refused and wrong."""
    truths = [{"study_instance_uid": STUDY, "lvef_percent": 50.0, "files": []}]
    assert last_line(compare([entry()], truths)) == "right 1 refused 0 wrong 0 of 1"


def test_a_result_reads_as_a_sentence() -> None:
    """Numbers come with unit and interval; without numbers the reason is shown."""
    assert result_text(entry()) == "LVEF 50.0 % (40.0 to 60.0)"
    assert result_text(entry(measurements=[], reason="Lead V1 is flat.")) == "Lead V1 is flat."


def test_arrivals_are_grouped_by_study_and_nothing_to_send_is_said(tmp_path: Path) -> None:
    """A folder without DICOM and a missing path are errors that say what was found."""
    (tmp_path / "notes.txt").write_text("no DICOM")
    with pytest.raises(InputUnusable, match="none of 1 files is DICOM"):
        arrivals_in(tmp_path)
    with pytest.raises(InputUnusable, match="does not exist"):
        arrivals_in(tmp_path / "nowhere")


def test_an_announcement_keeps_its_identity() -> None:
    """The account joins on the event id, which does not depend on when the study was announced."""
    event = announcement()
    assert dataclasses.replace(event, announced_utc="2027-01-01T00:00:00Z").event_id == event.event_id
