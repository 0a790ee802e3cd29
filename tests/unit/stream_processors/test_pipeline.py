"""The spine: every outcome, no duplicate, nothing lost, wherever it breaks off."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread

from engines.errors import InferenceError, InputRefused, NotApplicable, RefusalCode
from engines.records import Modality
from orthanc_plugin.wire.events import EventError, UnsupportedVersion
from orthanc_plugin.wire.log import LogRecord, LogUnavailable
from stream_processors.errors import PacsUnavailable, ReportUnreadable
from stream_processors.settings import ReportSettings
from stream_processors.stages import Stage
from tests.doubles.log import FaultyLog
from tests.doubles.reports import make_header
from tests.unit.stream_processors.conftest import World

LEAD_OFF = InputRefused(RefusalCode.LEAD_OFF, "Lead V3 is flat.")
NOT_CARDIAC = NotApplicable(RefusalCode.NOT_CARDIAC, "A knee.")


class KilledHere(BaseException):
    """The process ends at this point."""


def _killing(stage: Stage) -> Any:
    def checkpoint(reached: Stage) -> None:
        if reached is stage:
            raise KilledHere

    return checkpoint


@pytest.mark.parametrize("modality", Modality)
@pytest.mark.parametrize(("answer", "outcome"), [("answered", "reported"), ("abstained", "abstained")])
def test_an_answer_ends_in_a_report_and_an_outcome(
    log: FaultyLog, modality: Modality, answer: str, outcome: str
) -> None:
    """A number or an abstention stands in the PACS with its companion, and the outcome says the same."""
    world = World(log=log, modality=modality, answer=answer)
    ended = world.pipeline.run(world.announce())
    (announced,) = world.outcomes()
    assert ended.outcome == announced["outcome"] == outcome
    assert announced["claim_event_id"] == world.claim().event_id
    assert set(world.pacs.reports) == {
        announced["report"]["sop_instance_uid"],
        announced["report"]["companion_sop_instance_uid"],
    }
    assert announced["report"]["stored"] == "created"
    assert bool(announced["estimates"] or announced["probabilities"]) == (outcome == "reported")


def test_a_refused_input_ends_in_a_report_that_says_why(log: FaultyLog) -> None:
    """The engine is not asked; code and sentence of the refusal stand in report and outcome."""
    world = World(log=log, modality=Modality.ECG, refusal=LEAD_OFF)
    outcome = world.pipeline.run(world.announce())
    assert (outcome.outcome, outcome.reason_code, outcome.reason) == ("refused", "lead_off", LEAD_OFF.reason)
    assert world.engine.asked == 0
    assert len(world.pacs.measurement_reports()) == 1


def test_what_is_not_meant_for_the_engine_makes_no_report(log: FaultyLog) -> None:
    """A study of something else ends quietly: one outcome, nothing in the PACS."""
    world = World(log=log, refusal=NOT_CARDIAC)
    outcome = world.pipeline.run(world.announce())
    assert (outcome.outcome, outcome.reason_code, outcome.report) == ("not_applicable", "not_cardiac", None)
    assert world.pacs.reports == {}


def test_a_refusal_without_a_readable_header_makes_no_report(log: FaultyLog) -> None:
    """Where no header names the study, there is nothing to write a report on: the outcome alone says why."""
    stranger = make_header(Modality.ECHO, StudyInstanceUID="9.9.9")
    world = World(log=log, refusal=LEAD_OFF, headers=[stranger])
    outcome = world.pipeline.run(world.announce())
    assert (outcome.outcome, outcome.report) == ("refused", None)
    assert world.pacs.reports == {}


@pytest.mark.parametrize(("refusal", "outcome"), [(LEAD_OFF, "refused"), (None, "abstained")])
def test_a_site_may_want_no_reports_without_numbers(log: FaultyLog, refusal: InputRefused | None, outcome: str) -> None:
    """With ``report_refusals`` off the outcome says why and the PACS gets nothing."""
    world = World(log=log, answer="abstained", refusal=refusal, report=ReportSettings(report_refusals=False))
    ended = world.pipeline.run(world.announce())
    assert (ended.outcome, ended.report) == (outcome, None)
    assert ended.reason
    assert world.pacs.reports == {}


def test_a_site_may_want_no_companion(log: FaultyLog) -> None:
    """With the companion off, only the measurement report is stored and named."""
    world = World(log=log, report=ReportSettings(companion=False))
    ended = world.pipeline.run(world.announce())
    assert ended.report is not None
    assert ended.report.companion_sop_instance_uid is None
    assert list(world.pacs.reports) == [ended.report.sop_instance_uid]


def test_a_changed_study_is_superseded(world: World) -> None:
    """Other bytes under the announced UID are another study: nothing is analysed."""
    record = world.announce()
    world.pacs.instances["1.2.3.4.1"] = b"edited"
    outcome = world.pipeline.run(record)
    assert (outcome.outcome, outcome.reason_code) == ("superseded", "claim_superseded")
    assert (world.engine.asked, world.pacs.reports) == (0, {})


def test_a_study_that_is_gone_is_not_applicable(world: World) -> None:
    """A deleted study ends with the reason claim_expired; there is nothing an operator could redrive."""
    record = world.announce()
    world.pacs.instances.clear()
    outcome = world.pipeline.run(record)
    assert (outcome.outcome, outcome.reason_code) == ("not_applicable", "claim_expired")


@pytest.mark.parametrize("answer", ["answered", "abstained"])
def test_a_second_delivery_is_a_no_op(log: FaultyLog, answer: str) -> None:
    """The report is found before anything is fetched; the outcome is the same event with the same content."""
    world = World(log=log, answer=answer)
    record = world.announce()
    world.pipeline.run(record)
    before = dict(world.pacs.reports)
    world.pipeline.run(record)
    first, second = world.outcomes()
    assert world.pacs.reports == before
    assert (world.pacs.calls["fetch"], world.pacs.calls["store"]) == (1, 2)
    assert second["event_id"] == first["event_id"]
    assert second["report"].pop("stored") == "already"
    assert first["report"].pop("stored") == "created"
    timeless = {"stage_ms", "completed_utc"}
    assert {k: v for k, v in first.items() if k not in timeless} == {
        k: v for k, v in second.items() if k not in timeless
    }


def test_the_same_study_gives_the_same_bytes(world: World) -> None:
    """Two runs that know nothing of each other write identical files."""
    record = world.announce()
    world.pipeline.run(record)
    before = dict(world.pacs.reports)
    world.pacs.reports.clear()
    world.pipeline.run(record)
    assert world.pacs.reports == before


def test_a_new_engine_writes_a_new_report_that_follows_the_old(world: World) -> None:
    """Same study, other weights: another UID, and the first report as predecessor."""
    record = world.announce()
    first = world.pipeline.run(record)
    world.engine.model = replace(world.engine.model, version="0.2.0", weights_sha256="f" * 64)
    second = world.pipeline.run(record)
    assert first.report is not None
    assert second.report is not None
    report = dcmread(BytesIO(world.pacs.reports[second.report.sop_instance_uid]))
    (followed,) = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert followed.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.report.sop_instance_uid
    assert len(world.pacs.measurement_reports()) == 2


def test_a_late_instance_makes_a_new_report_that_follows_the_old(world: World) -> None:
    """A new revision is another claim: another report, the older one as predecessor."""
    first = world.pipeline.run(world.announce())
    world.pacs.instances["1.2.3.4.3"] = b"late"
    second = world.pipeline.run(world.announce(revision=2, received="2026-03-01T10:10:00+00:00"))
    assert first.report is not None
    assert second.report is not None
    report = dcmread(BytesIO(world.pacs.reports[second.report.sop_instance_uid]))
    assert len(report.PredecessorDocumentsSequence) == 1
    assert second.revision == 2
    assert second.report.sop_instance_uid != first.report.sop_instance_uid


def test_replaying_an_old_revision_does_not_follow_the_newer_report(world: World) -> None:
    """An old announcement that is run late writes the bytes it would have written in time."""
    old = world.announce()
    world.pipeline.run(old)
    expected = dict(world.pacs.reports)
    world.pacs.reports.clear()
    held = dict(world.pacs.instances)
    world.pacs.instances["1.2.3.4.3"] = b"late"
    world.pipeline.run(world.announce(revision=2, received="2026-03-01T10:10:00+00:00"))
    world.pacs.instances = held
    world.pipeline.run(old)
    assert {uid: world.pacs.reports[uid] for uid in expected} == expected


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage not in {Stage.COMMIT, Stage.CROSS_MODAL}])
@pytest.mark.parametrize("answer", ["answered", "abstained"])
def test_a_kill_after_any_stage_neither_duplicates_nor_loses(log: FaultyLog, stage: Stage, answer: str) -> None:
    """Killed at any point and delivered again: one report with the same bytes, one distinct outcome."""
    undisturbed = World(log=log, answer=answer)
    undisturbed.pipeline.run(undisturbed.announce())
    world = World(log=log, answer=answer, checkpoint=_killing(stage))
    record = world.announce()
    with pytest.raises(KilledHere):
        world.pipeline.run(record)
    world.checkpoint = lambda _: None
    world.pipeline.run(record)
    assert world.pacs.reports == undisturbed.pacs.reports
    assert len({outcome["event_id"] for outcome in world.outcomes()}) == 1


@pytest.mark.parametrize("name", ["find", "fetch", "reports_of", "store", "verify"])
def test_a_pacs_that_fails_leaves_nothing_announced(world: World, name: str) -> None:
    """An exception of the PACS passes through; the next try ends as if nothing had been."""
    record = world.announce()
    world.pacs.faults[name] = [PacsUnavailable("away")]
    with pytest.raises(PacsUnavailable):
        world.pipeline.run(record)
    assert world.outcomes() == []
    assert world.pipeline.run(record).outcome == "reported"
    assert len(world.pacs.measurement_reports()) == 1


def test_the_report_is_stored_after_its_companion(world: World) -> None:
    """Where the measurement report stands, everything stands: it is what a second delivery looks for."""
    world.pacs.faults["store"] = []
    world.checkpoint = _killing(Stage.COMPANION)
    with pytest.raises(KilledHere):
        world.pipeline.run(world.announce())
    assert len(world.pacs.reports) == 1
    assert world.pacs.measurement_reports() == []


def test_nothing_is_announced_before_it_is_verified(world: World) -> None:
    """The last stage before the outcome is the verification of the store."""
    world.checkpoint = _killing(Stage.VERIFY)
    with pytest.raises(KilledHere):
        world.pipeline.run(world.announce())
    assert world.outcomes() == []
    assert world.pacs.calls["verify"] == 2


def test_a_log_that_is_away_announces_later(world: World) -> None:
    """The outcome that could not be appended is appended by the next try, from the standing report."""
    record = world.announce()
    world.log.faults["append"] = 1
    with pytest.raises(LogUnavailable):
        world.pipeline.run(record)
    assert world.pipeline.run(record).outcome == "reported"
    assert world.outcomes()[0]["report"]["stored"] == "already"


def test_a_failing_engine_announces_nothing(world: World) -> None:
    """An inference error is not an outcome yet."""
    world.engine.faults.append(InferenceError("the runtime failed"))
    with pytest.raises(InferenceError):
        world.pipeline.run(world.announce())
    assert (world.outcomes(), world.pacs.reports) == ([], {})


def test_an_object_that_is_no_report_under_our_uid_is_an_error(world: World) -> None:
    """Somebody else's bytes under our UID are never announced as our result."""
    record = world.announce()
    ended = world.pipeline.run(record)
    assert ended.report is not None
    world.pacs.reports[ended.report.sop_instance_uid] = b"junk"
    with pytest.raises(ReportUnreadable):
        world.pipeline.run(record)


def test_times_of_all_stages_are_told(world: World) -> None:
    """The outcome breaks the time down by stage, with what the study had waited before."""
    outcome = world.pipeline.run(world.announce())
    told = {"settle", "wait", "lookup", "fetch", "read", "predict", "report", "companion", "store", "verify", "total"}
    assert set(outcome.stage_ms) == told
    assert outcome.stage_ms["settle"] == 0.0
    work = sum(ms for stage, ms in outcome.stage_ms.items() if stage not in {"settle", "wait", "total"})
    assert 0 < work <= outcome.stage_ms["total"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"value": b"not json"}, EventError),
        ({"headers": {"ce_type": "org.purkinje.study.ready.v9"}}, UnsupportedVersion),
        ({"headers": {"ce_type": "something.else"}}, EventError),
    ],
)
def test_a_message_that_is_no_announcement_is_an_error(
    world: World, changes: dict[str, Any], error: type[Exception]
) -> None:
    """Poison never reaches the PACS."""
    record = LogRecord(**{**vars(world.announce()), **changes})
    with pytest.raises(error):
        world.pipeline.run(record)
    assert not world.pacs.calls


def test_an_announcement_of_another_modality_is_an_error(log: FaultyLog) -> None:
    """An ECG on the topic of echo is not analysed as echo."""
    ecg = World(log=log, modality=Modality.ECG)
    record = ecg.announce()
    with pytest.raises(EventError, match="modality ecg was announced"):
        World(log=log, modality=Modality.ECHO).pipeline.run(record)


def test_a_time_that_is_none_is_an_error_of_the_message(world: World) -> None:
    """The only time a report contains must be readable."""
    with pytest.raises(EventError, match="ISO 8601"):
        world.pipeline.run(world.announce(received="yesterday"))


def test_the_report_refers_to_the_announced_study_only(log: FaultyLog) -> None:
    """A header of another study among the instances is no evidence: a report never points at another patient."""
    headers = [make_header(Modality.ECHO), make_header(Modality.ECHO, 2, StudyInstanceUID="9.9.9", PatientID="OTHER")]
    world = World(log=log, headers=headers)
    world.engine.headers = headers[:1]
    world.pipeline.run(world.announce())
    assert not any(b"9.9.9" in report or b"OTHER" in report for report in world.pacs.reports.values())


def test_the_spool_holds_the_instances_in_the_order_of_their_uids(world: World) -> None:
    """What the child reads does not depend on the order in which the PACS lists."""
    world.pipeline.run(world.announce())
    assert world.sandbox.spooled == [[b"first", b"second"]]
