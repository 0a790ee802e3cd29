"""The cross-modal check on its way through the pipeline: found, compared, written down, and never in the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from engines.errors import (
    DeviceLost,
    InferenceError,
    InputRefused,
    NotApplicable,
    OutOfMemory,
    RefusalCode,
    SelfTestFailed,
)
from engines.records import Modality
from orthanc_plugin.wire.events import RESULT_TOPIC
from stream_processors.errors import ClaimTooLarge, PacsFault, PacsRefused, PacsUnavailable
from stream_processors.local.results import result_text
from stream_processors.partner_check import PartnerCheck, open_partner_check
from stream_processors.reported import content_of, read_report
from stream_processors.reports.read import render_tree
from stream_processors.settings import Settings
from stream_processors.stages import Stage
from stream_processors.telemetry import configure_logging
from tests.doubles.cross_modal import UNLIKE, FakeComparer
from tests.doubles.log import FaultyLog
from tests.doubles.pacs import OtherStudy
from tests.unit.stream_processors.conftest import World

NO_STACK = InputRefused(RefusalCode.NO_SHORT_AXIS_CINE, "There is no short-axis cine.")
KNEE = NotApplicable(RefusalCode.NOT_CARDIAC, "A knee.")
PARTNER = b"of the partner"
CMR_STUDY = {"modality": Modality.CMR, "study_instance_uid": "1.2.8"}


class KilledHere(BaseException):
    """The process ends at this point."""


def made_world(log: FaultyLog, *others: OtherStudy, modality: Modality = Modality.CMR, **changes: Any) -> World:
    """A cardiac MR study with the given other studies beside it in the PACS."""
    world = World(log=log, modality=modality, comparer=FakeComparer(), **changes)
    world.pacs.others = list(others)
    return world


def cross_modal(world: World) -> dict[str, Any] | None:
    """What the one outcome of a run says of the check."""
    world.pipeline.run(world.announce())
    (outcome,) = world.outcomes()
    assert outcome["outcome"] == "reported"
    finding: dict[str, Any] | None = outcome["cross_modal"]
    return finding


def trees(world: World) -> str:
    """Report and companion as text."""
    return "\n".join(render_tree(dcmread(BytesIO(content))) for content in world.pacs.reports.values())


@pytest.mark.parametrize(
    ("modality", "other", "compared"),
    [
        (Modality.CMR, OtherStudy(), ("of the partner", "first")),
        (Modality.ECG, OtherStudy(modality=Modality.CMR), ("first", "of the partner")),
    ],
)
def test_whichever_study_is_second_records_the_check(
    log: FaultyLog, modality: Modality, other: OtherStudy, compared: tuple[str, str]
) -> None:
    """Both orders of arrival compare the ECG with the images, each prepared as the comparer wants it."""
    world = made_world(log, other, modality=modality)
    finding = cross_modal(world)
    assert world.comparer is not None
    assert world.comparer.compared == [compared]
    assert dict(world.pairs.asked) == {Modality.ECG: FakeComparer.ecg_spec, Modality.CMR: FakeComparer.cmr_spec}
    assert finding == {
        "partner_study_instance_uid": "1.2.9",
        "partner_modality": other.modality.value,
        "days_apart": 2,
        "bundle_sha256": "a" * 64,
        "cosine": 0.412,
        "own_percent": 64.0,
        "others_percent": 98.5,
        "below_limit": False,
        "embedding": [0.6, -0.8],
        "not_compared": None,
    }


@pytest.mark.parametrize(
    "other",
    [
        OtherStudy(study_date=date(2026, 2, 2)),
        OtherStudy(patient_id="ID-2"),
        OtherStudy(modality=Modality.ECHO),
        OtherStudy(modality=Modality.CMR),
    ],
    ids=["outside the window", "other patient", "echo", "same modality"],
)
def test_nothing_is_written_without_a_partner(log: FaultyLog, other: OtherStudy) -> None:
    """A study that is no partner leaves reports that are byte for byte those of a patient without it."""
    alone, world = World(log=log, modality=Modality.CMR), made_world(log, other)
    alone.pipeline.run(alone.announce())
    world.pipeline.run(world.announce())
    assert world.outcomes()[1]["cross_modal"] is None
    assert world.pacs.reports == alone.pacs.reports
    assert world.pacs.calls["fetch_partner"] == 0


def test_the_window_ends_after_its_last_day(log: FaultyLog) -> None:
    """As many days as the window counts; a setting moves it, to the same day at the least."""
    last = OtherStudy(study_date=date(2026, 2, 1))
    assert (cross_modal(made_world(log, last)) or {})["days_apart"] == 30


@pytest.mark.parametrize(("window_days", "found"), [(31, True), (0, False)])
def test_a_setting_takes_the_place_of_the_bundles_window(log: FaultyLog, window_days: int, found: bool) -> None:
    """The site's window counts, zero included."""
    world = made_world(log, OtherStudy(study_date=date(2026, 2, 2)), window_days=window_days)
    assert (cross_modal(world) is not None) == found


@pytest.mark.parametrize(("own", "theirs", "same"), [("A", "B", False), ("A", "A", True), ("", "A", True)])
def test_another_issuer_is_another_patient(log: FaultyLog, own: str, theirs: str, same: bool) -> None:
    """Two hospitals may give one number to two people."""
    world = made_world(log, OtherStudy(issuer=theirs))
    world.pacs.patient = ("ID-1", own)
    assert (cross_modal(world) is not None) == same


def test_of_several_the_nearest_is_taken(log: FaultyLog) -> None:
    """First the days, before or after, then the UID decide; one comparison is made."""
    far, late = OtherStudy(study_instance_uid="1.2.1"), OtherStudy(study_instance_uid="1.2.7")
    early = OtherStudy(study_instance_uid="1.2.6", study_date=date(2026, 1, 1))
    late.study_date = date(2026, 1, 3)
    world = made_world(log, far, late, early)
    assert (cross_modal(world) or {})["partner_study_instance_uid"] == "1.2.6"
    assert world.pacs.calls["fetch_partner"] == 1


def test_a_partner_without_a_heart_is_passed_over(log: FaultyLog) -> None:
    """A knee of the same patient is not what is looked for: the next study is."""
    knee = OtherStudy(**CMR_STUDY, study_date=date(2026, 1, 2), instances={"1": b"knee"})
    world = made_world(log, knee, OtherStudy(modality=Modality.CMR), modality=Modality.ECG)
    world.pairs.refusals[b"knee"] = KNEE
    assert (cross_modal(world) or {})["partner_study_instance_uid"] == "1.2.9"
    alone = made_world(log, knee, modality=Modality.ECG)
    alone.pairs.refusals[b"knee"] = KNEE
    alone.pipeline.run(alone.announce())
    assert alone.outcomes()[1]["cross_modal"] is None


def test_a_refused_partner_is_a_sentence(log: FaultyLog) -> None:
    """Why there is no number stands in event, report and companion; the answer of the engine stands beside it."""
    world = made_world(log, OtherStudy(modality=Modality.CMR), modality=Modality.ECG)
    world.pairs.refusals[PARTNER] = NO_STACK
    finding = cross_modal(world) or {}
    assert (finding["not_compared"], finding["cosine"], finding["embedding"]) == (NO_STACK.reason, None, None)
    assert f"cross_modal_not_compared={NO_STACK.reason}" in trees(world)
    expected = (
        "Cross-modal check with the cardiac MR of the same patient, 2 days apart (study 1.2.9): not compared, There"
    )
    assert expected in trees(world)
    assert "cross_modal_cosine" not in trees(world)


def test_a_study_that_only_the_engine_can_use_is_a_sentence(log: FaultyLog) -> None:
    """The engine's spec may take what the check's refuses; no partner is fetched then."""
    world = made_world(log, OtherStudy())
    world.pairs.refusals[b"first"] = NO_STACK
    finding = cross_modal(world) or {}
    assert finding["not_compared"] == f"this cardiac MR cannot be used for it: {NO_STACK.reason}"
    assert world.pacs.calls["fetch_partner"] == 0


def test_a_partner_on_its_way_is_no_refusal(log: FaultyLog) -> None:
    """Half a study that cannot be used says nothing: it is compared when it is announced itself."""
    world = made_world(log, OtherStudy(arriving=True))
    world.pairs.refusals[PARTNER] = NO_STACK
    assert cross_modal(world) is None
    whole = made_world(log, OtherStudy(arriving=True))
    whole.pipeline.run(whole.announce())
    assert whole.outcomes()[1]["cross_modal"]["cosine"] == 0.412


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InferenceError("canary"), "the comparison failed (InferenceError)"),
        (OutOfMemory("canary"), "the comparison failed (OutOfMemory)"),
        (ValueError("canary"), "the comparison failed (ValueError)"),
    ],
)
def test_a_failing_comparison_is_a_sentence(log: FaultyLog, error: Exception, said: str) -> None:
    """The report is written all the same, and quotes nothing but the kind of error."""
    world = made_world(log, OtherStudy())
    assert world.comparer is not None
    world.comparer.faults = [error]
    assert (cross_modal(world) or {})["not_compared"] == said
    assert "canary" not in trees(world)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PacsFault("fetching an instance: the PACS answers 500"), "fetching an instance: the PACS answers 500"),
        (ClaimTooLarge("too many bytes"), "too many bytes"),
        (OSError(28, "No space left on device"), "the comparison failed (OSError)"),
        (MemoryError(), "the comparison failed (MemoryError)"),
    ],
)
def test_a_partner_that_cannot_be_fetched_costs_no_report(log: FaultyLog, error: Exception, said: str) -> None:
    """Damaged, too large, or more than the disk holds: a sentence."""
    world = made_world(log, OtherStudy())
    world.pacs.faults["fetch_partner"] = [error]
    assert (cross_modal(world) or {})["not_compared"] == said


def test_a_partner_that_is_gone_meanwhile_is_none(log: FaultyLog) -> None:
    """A study deleted between listing and reading is no end of this claim: the report stands without it."""
    other = OtherStudy(instances={})
    assert cross_modal(made_world(log, other)) is None


def test_a_pacs_that_refuses_the_list_costs_no_report(log: FaultyLog) -> None:
    """Without a list there is no partner to name; the report says nothing of it."""
    world = made_world(log, OtherStudy())
    world.pacs.faults["partners_of"] = [PacsRefused("the PACS answers 400")]
    assert cross_modal(world) is None


@pytest.mark.parametrize("name", ["partners_of", "fetch_partner"])
def test_a_pacs_that_is_away_is_waited_for(log: FaultyLog, name: str) -> None:
    """Nothing is announced; the next try records the comparison."""
    world = made_world(log, OtherStudy())
    world.pacs.faults[name] = [PacsUnavailable("away")]
    record = world.announce()
    with pytest.raises(PacsUnavailable):
        world.pipeline.run(record)
    assert (world.outcomes(), world.pacs.reports) == ([], {})
    world.pipeline.run(record)
    assert world.outcomes()[0]["cross_modal"]["cosine"] == 0.412


def test_a_lost_gpu_is_not_a_sentence(log: FaultyLog) -> None:
    """Only a new process computes again: the message is left to it."""
    world = made_world(log, OtherStudy())
    assert world.comparer is not None
    world.comparer.faults = [DeviceLost("gone")]
    with pytest.raises(DeviceLost):
        world.pipeline.run(world.announce())
    assert world.outcomes() == []


@pytest.mark.parametrize(("answer", "refusal"), [("abstained", None), ("answered", NO_STACK)])
def test_without_an_answer_nothing_is_compared(log: FaultyLog, answer: str, refusal: InputRefused | None) -> None:
    """An abstention or a refusal of the engine asks for no partner."""
    world = made_world(log, OtherStudy(), answer=answer, refusal=refusal)
    world.pipeline.run(world.announce())
    assert world.outcomes()[0]["cross_modal"] is None
    assert world.pacs.calls["partners_of"] == 0


def test_an_echo_has_no_partner(log: FaultyLog) -> None:
    """Only ECG and cardiac MR are compared."""
    world = made_world(log, OtherStudy(), modality=Modality.ECHO)
    assert cross_modal(world) is None
    assert world.pacs.calls["partners_of"] == 0


def test_the_number_in_report_and_event_agree(log: FaultyLog) -> None:
    """The event says what the report says, digit for digit; only the embedding stands in the log alone."""
    world = made_world(log, OtherStudy())
    finding = cross_modal(world) or {}
    (report,) = world.pacs.measurement_reports()
    read = content_of(read_report(report)).cross_modal
    assert read is not None
    assert read.event() == {**finding, "embedding": []}
    assert "cross_modal_cosine=0.412" in render_tree(report)
    assert "embedding" not in render_tree(report)


def test_a_low_similarity_asks_to_look_at_the_patient(log: FaultyLog) -> None:
    """The companion and the table say it; the engine's numbers are those of a study without partner."""
    world = made_world(log, OtherStudy())
    assert world.comparer is not None
    world.comparer.said = UNLIKE
    finding = cross_modal(world) or {}
    assert (finding["below_limit"], finding["cosine"]) == (True, 0.0)
    assert "make sure that both studies are of this patient" in trees(world)
    alone = World(log=log, modality=Modality.CMR)
    alone.pipeline.run(alone.announce())
    first, second = world.outcomes()
    assert first["probabilities"] == second["probabilities"]
    assert first["engine"] == second["engine"]


def test_the_result_in_a_line_says_it(log: FaultyLog) -> None:
    """The table of the demo has a line for the check, compared or not."""
    world = made_world(log, OtherStudy())
    compared = cross_modal(world)
    entry: dict[str, Any] = {"measurements": [], "probabilities": world.outcomes()[0]["probabilities"]}
    line = result_text({**entry, "cross_modal": compared}).splitlines()[-1]
    assert line == "cross-modal check, ECG 2 d apart: 0.412 (above 64.0 % of one patient, 98.5 % of two)"
    low = result_text({**entry, "cross_modal": {**(compared or {}), "below_limit": True}})
    assert low.endswith("unusually little for one patient")
    none = {**(compared or {}), "cosine": None, "not_compared": "the partner is damaged"}
    assert result_text({**entry, "cross_modal": none}).endswith("2 d apart: not compared, the partner is damaged")


def test_a_second_delivery_says_the_same_without_the_embedding(log: FaultyLog) -> None:
    """The standing report gives the numbers; nobody is compared again and the event is the same one."""
    world = made_world(log, OtherStudy())
    record = world.announce()
    world.pipeline.run(record)
    world.pipeline.run(record)
    first, second = world.outcomes()
    assert second["cross_modal"] == {**first["cross_modal"], "embedding": []}
    assert second["event_id"] == first["event_id"]
    assert world.pacs.calls["partners_of"] == 1


def test_a_kill_after_the_comparison_neither_duplicates_nor_loses(log: FaultyLog) -> None:
    """Delivered again, the study is compared again and reported once."""

    def checkpoint(reached: Stage) -> None:
        if reached is Stage.CROSS_MODAL:
            raise KilledHere

    world = made_world(log, OtherStudy(), checkpoint=checkpoint)
    record = world.announce()
    with pytest.raises(KilledHere):
        world.pipeline.run(record)
    world.checkpoint = lambda _: None
    ended = world.pipeline.run(record)
    assert len(world.pacs.measurement_reports()) == 1
    assert {"cross_modal", "predict"} <= set(ended.stage_ms)


def test_the_check_gives_its_comparer_back(world: World) -> None:
    """Closing the check closes what compares."""
    comparer = FakeComparer()
    PartnerCheck(comparer, world.pacs).close()
    assert comparer.closed


def _settings(**changes: Any) -> Settings:
    return Settings(site_url="https://hospital.example", log="sqlite:///log.db", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"cross_modal": {"enabled": False}},
        {"modalities": ("echo",)},
        {"engine": {"bundles": "/nowhere"}},
    ],
    ids=["switched off", "no lane needs it", "a site without ECG bundle"],
)
def test_a_check_that_is_not_wanted_is_not_opened(world: World, changes: dict[str, Any]) -> None:
    """Nothing is loaded, and the engines answer without it."""

    def load(path: Path, preference: Sequence[str], runtimes: Any) -> FakeComparer:
        pytest.fail(f"loaded {path} for {preference} and {runtimes}")

    assert open_partner_check(_settings(**changes), world.pacs, load) is None


def test_a_bundle_that_cannot_compare_makes_no_check(world: World) -> None:
    """Older bundles hold no such part: everything is as before."""
    assert open_partner_check(_settings(), world.pacs, lambda _path, _preference, _runtimes: None) is None


def test_a_check_that_fails_its_self_test_is_left_out(world: World) -> None:
    """An operator is told; reports are written without it."""
    lines = StringIO()
    configure_logging(stream=lines)

    def load(path: Path, preference: Sequence[str], runtimes: Any) -> FakeComparer:
        raise SelfTestFailed("the golden pairs come out differently")

    assert open_partner_check(_settings(), world.pacs, load) is None
    told = json.loads(lines.getvalue())
    assert (told["event"], told["alert"]) == ("partner_check.left_out", True)
    assert told["message"] == "the golden pairs come out differently"


def test_the_check_is_that_of_the_ecg_bundle_on_the_cpu(log: FaultyLog, tmp_path: Path) -> None:
    """A lane of either modality needs it; the site's bundle, runtimes and window count."""
    (tmp_path / "ecg").mkdir()
    asked = []

    def load(path: Path, preference: Sequence[str], runtimes: Any) -> FakeComparer:
        asked.append((path, tuple(preference), runtimes["onnxruntime"].keywords))
        return FakeComparer()

    world = made_world(log, OtherStudy())
    engine = {"bundles": tmp_path, "runtimes": ("tensorrt", "onnxruntime"), "threads": 3}
    settings = _settings(modalities=("cmr",), engine=engine, cross_modal={"window_days": 1})
    check = open_partner_check(settings, world.pacs, load)
    assert check is not None
    assert asked == [(tmp_path / "ecg", ("onnxruntime",), {"threads": 3})]
    pipeline = replace(world.pipeline, partners=check)
    pipeline.run(world.announce())
    assert world.outcomes()[0]["cross_modal"] is None


def _refuse(world: World) -> None:
    world.pairs.refusals[PARTNER] = NO_STACK


def _fail(world: World) -> None:
    assert world.comparer is not None
    world.comparer.faults = [ValueError("CANARY-ID-77 CANARY^BIRD 20251231")]


def _fall_silent(world: World) -> None:
    world.pacs.faults["partners_of"] = [ValueError("CANARY-ID-77 CANARY^BIRD 20251231")]


@pytest.mark.parametrize("fault", [lambda _: None, _refuse, _fail, _fall_silent])
def test_the_patient_is_in_no_event_and_no_log_line(log: FaultyLog, fault: Callable[[World], None]) -> None:
    """Identity and dates of both studies stay in the PACS, whatever happens."""
    lines = StringIO()
    configure_logging(stream=lines)
    world = made_world(log, OtherStudy(patient_id="CANARY-ID-77"))
    world.pacs.patient = ("CANARY-ID-77", "CANARY-ISSUER")
    fault(world)
    world.pipeline.run(world.announce())
    told = lines.getvalue() + json.dumps([str(record) for record in world.log.inner.read(RESULT_TOPIC)]) + trees(world)
    assert not [word for word in ("CANARY", "20251231", "2025-12-31") if word in told]
