"""Outcomes and dead letters keep their form, for ever readable and recognisable."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from engines.predictions import Estimate, Interval, ModelIdentity
from engines.predictors.similarity import Similarity
from engines.records import Modality
from orthanc_plugin.wire.events import DEAD_LETTER_TOPIC, EventError
from orthanc_plugin.wire.log import LogRecord
from stream_processors.cross_modal import CrossModalFinding
from stream_processors.events import (
    DeadLetter,
    Failure,
    Outcome,
    ReportReference,
    Stored,
    StudyOutcome,
    parse_dead_letter,
    parse_outcome,
)

GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "outcomes").glob("*.json"))
ENGINE = ModelIdentity(
    name="purkinje-echo",
    version="0.1.0",
    method="phantom network",
    bundle_sha256="a" * 64,
    weights_sha256="b" * 64,
    preprocess_sha256="c" * 64,
    runtime="tensorrt",
    runtime_version="10.15.1.29",
    precision="fp16",
    device="NVIDIA L4, sm_89",
    training_data="Phantoms",
    intended_use="Not for clinical use",
    plan_sha256="d" * 64,
    fallback="a batch of 8 did not fit the memory of the GPU",
)
REPORTED = StudyOutcome(
    outcome=Outcome.REPORTED,
    modality="echo",
    study_instance_uid="1.2.3",
    revision=1,
    claim_event_id="6f0a5b7e-0000-5000-8000-000000000001",
    source="urn:orthanc:test",
    engine=ENGINE,
    estimates=(
        Estimate(
            quantity="lvef",
            value=38.2,
            unit="%",
            interval=Interval(low=30.0, high=46.4, coverage_percent=90.0),
            wide_interval=Interval(low=25.5, high=50.9, coverage_percent=95.0),
        ),
    ),
    out_of_distribution_score=0.4,
    report=ReportReference(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
        sop_instance_uid="2.25.1",
        series_instance_uid="2.25.2",
        companion_sop_instance_uid="2.25.3",
        stored=Stored.CREATED,
    ),
    cross_modal=CrossModalFinding(
        partner_study_instance_uid="1.2.9",
        partner_modality=Modality.CMR,
        days_apart=2,
        bundle_sha256="e" * 64,
        similarity=Similarity(cosine=0.412, own_percent=64.0, others_percent=98.5, below_limit=False),
        embedding=(0.6, -0.8),
    ),
    stage_ms={"fetch": 10.5, "total": 100.0},
    completed_utc="2026-03-01T10:00:05.000000+00:00",
)
RECORD = LogRecord(
    topic="purkinje.study.ready.echo.v1",
    partition=2,
    offset=17,
    key="1.2.3",
    headers={"ce_id": "abc", "ce_type": "x"},
    value=b"\x00not json",
    timestamp_ms=1_770_000_000_000,
)
FAILURE = Failure(
    error="builtins.ZeroDivisionError",
    message="",
    attempts=1,
    first_failed_utc="2026-03-01T10:00:00+00:00",
    last_failed_utc="2026-03-01T10:00:00+00:00",
    code_version="0.1.0",
)


def test_an_outcome_that_is_announced_again_has_the_same_id() -> None:
    """Time, stage times and whether the report was found do not change the id; the conclusion does."""
    assert REPORTED.report is not None
    again = replace(
        REPORTED,
        stage_ms={"total": 1.0},
        completed_utc="2027-01-01T00:00:00+00:00",
        report=replace(REPORTED.report, stored=Stored.ALREADY),
    )
    assert again.event_id == REPORTED.event_id
    for change in (
        {"outcome": Outcome.ABSTAINED},
        {"claim_event_id": "other"},
        {"reason_code": "lead_off"},
        {"engine": replace(ENGINE, weights_sha256="d" * 64)},
        {"report": replace(REPORTED.report, sop_instance_uid="2.25.9")},
    ):
        assert replace(REPORTED, **change).event_id != REPORTED.event_id


def test_an_outcome_reads_back_as_it_was_written() -> None:
    """Headers and value carry everything the outcome holds."""
    data = parse_outcome(REPORTED.headers(), REPORTED.value())
    assert data.pop("event_id") == REPORTED.event_id
    assert REPORTED.cross_modal is not None
    assert data == json.loads(json.dumps({**asdict(REPORTED), "cross_modal": REPORTED.cross_modal.event()}))


def test_an_outcome_points_at_its_announcement() -> None:
    """Cause and correlation are the id of the announcement; the key orders by study."""
    headers = REPORTED.headers()
    assert headers["ce_causationid"] == headers["ce_correlationid"] == REPORTED.claim_event_id
    assert headers["ce_partitionkey"] == "1.2.3"
    assert all(isinstance(value, str) for value in headers.values())


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        ({"ce_type": "org.purkinje.study.outcome.v2"}, b"{}"),
        ({}, b"{}"),
        (REPORTED.headers(), b"{}"),
        (REPORTED.headers(), b"\xff"),
        (REPORTED.headers(), b'{"outcome": "maybe"}'),
        (REPORTED.headers(), b"[]"),
    ],
)
def test_what_is_no_outcome_is_refused(headers: dict[str, str], value: bytes) -> None:
    """Another version, no JSON or an unknown outcome is an error of the message."""
    with pytest.raises(EventError):
        parse_outcome(headers, value)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_outcomes_are_read_for_ever(path: Path) -> None:
    """Every outcome any released version wrote is still readable, with the same id."""
    golden = json.loads(path.read_text())
    data = parse_outcome(golden["headers"], json.dumps(golden["value"]).encode())
    assert data["outcome"] == golden["value"]["outcome"]
    assert data["event_id"] == golden["headers"]["ce_id"]


def test_an_outcome_names_the_plan_and_the_fallback() -> None:
    """From minor version 1 on an outcome says which plan computed and why a fallback did; both are null where there is none."""
    assert REPORTED.headers()["ce_dataschema"].endswith("/1.3.json")
    engine = json.loads(REPORTED.value())["engine"]
    assert (engine["plan_sha256"], engine["fallback"]) == (ENGINE.plan_sha256, ENGINE.fallback)
    plain = replace(REPORTED, engine=replace(ENGINE, plan_sha256=None, fallback=None))
    assert (engine := json.loads(plain.value())["engine"])["plan_sha256"] is None
    assert engine["fallback"] is None


def test_an_outcome_states_the_second_interval() -> None:
    """Minor version 2 gives each estimate a second interval, which is null where the engine states one."""
    (first,) = json.loads(REPORTED.value())["estimates"]
    assert first["wide_interval"] == {"low": 25.5, "high": 50.9, "coverage_percent": 95.0}
    (plain,) = (replace(each, wide_interval=None) for each in REPORTED.estimates)
    assert json.loads(replace(REPORTED, estimates=(plain,)).value())["estimates"][0]["wide_interval"] is None


def test_an_outcome_states_the_cross_modal_check() -> None:
    """Minor version 3 says how alike the patient's other study is, or why not; it is null where there is no such study."""
    said = json.loads(REPORTED.value())["cross_modal"]
    assert (said["partner_study_instance_uid"], said["partner_modality"], said["days_apart"]) == ("1.2.9", "cmr", 2)
    assert (said["cosine"], said["own_percent"], said["others_percent"]) == (0.412, 64.0, 98.5)
    assert (said["below_limit"], said["embedding"], said["not_compared"]) == (False, [0.6, -0.8], None)
    assert REPORTED.cross_modal is not None
    without = replace(REPORTED.cross_modal, similarity=None, not_compared="it is damaged")
    told = json.loads(replace(REPORTED, cross_modal=without).value())["cross_modal"]
    assert told == {**dict.fromkeys(said), "days_apart": 2, "partner_modality": "cmr"} | {
        "partner_study_instance_uid": "1.2.9",
        "bundle_sha256": "e" * 64,
        "not_compared": "it is damaged",
    }
    assert json.loads(replace(REPORTED, cross_modal=None).value())["cross_modal"] is None


def test_the_newest_golden_outcome_is_what_is_written_now() -> None:
    """A change of the form makes a new golden file; the written form never changes by accident."""
    golden = json.loads(GOLDEN[-1].read_text())
    assert golden == {"headers": REPORTED.headers(), "value": json.loads(REPORTED.value())}


def test_a_dead_letter_keeps_the_message_byte_for_byte() -> None:
    """Redriving needs the original: place, headers and value come back as they were."""
    letter = DeadLetter(record=RECORD, failure=FAILURE)
    lying = LogRecord(DEAD_LETTER_TOPIC, 0, 5, RECORD.key, letter.headers(), RECORD.value, 1)
    assert parse_dead_letter(lying) == letter
    assert letter.letter_id == "purkinje.study.ready.echo.v1/2/17"


def test_a_record_that_is_no_dead_letter_is_refused() -> None:
    """Somebody else's record on the topic is an error, not a crash."""
    with pytest.raises(EventError, match="not a dead letter"):
        parse_dead_letter(RECORD)


def test_nan_never_leaves() -> None:
    """A number that is none does not become JSON that nobody can read."""
    with pytest.raises(ValueError, match="Out of range"):
        replace(REPORTED, stage_ms={"fetch": float("nan")}).value()
