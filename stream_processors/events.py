"""What the processors append to the log: one outcome per announced study, and the dead letters.

``StudyOutcome`` is a CloudEvents 1.0 message in Kafka binary mode like the announcement it answers. Its id depends only
on what was concluded, so that a consumer recognises an outcome that is announced a second time. It holds UIDs, numbers
and sentences about the data, never a patient's name, ID or birth date.

``DeadLetter`` is the original message, byte for byte, with headers that say where it lay and why it was given up.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from engines.predictions import ClassProbability, Estimate, ModelIdentity
from orthanc_plugin.wire.events import DEAD_LETTER_TOPIC, RESULT_TOPIC, EventError
from orthanc_plugin.wire.log import LogRecord
from stream_processors.cross_modal import CrossModalFinding

STUDY_OUTCOME_TYPE = "org.purkinje.study.outcome.v1"
OUTCOME_SCHEMA_MINOR = 3
OUTCOME_DATA_SCHEMA = f"https://purkinje.example/schemas/study-outcome/1.{OUTCOME_SCHEMA_MINOR}.json"
PREFIX = "purkinje_"
"""Start of the header names that a dead letter adds to those of the original message."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://purkinje.example/outcomes")


class Outcome(StrEnum):
    """How an announced study ended; each announcement ends in exactly one of these."""

    REPORTED = "reported"
    """A report with numbers stands in the PACS."""
    ABSTAINED = "abstained"
    """The engine looked and declined to answer; a report that says why stands in the PACS."""
    REFUSED = "refused"
    """The data could not be analysed; a report says why, unless the site wants none or no header was readable."""
    NOT_APPLICABLE = "not_applicable"
    """Nothing in the study was meant for the engine, or the study is gone: no report."""
    SUPERSEDED = "superseded"
    """The study changed after the announcement; its newer revision is announced on its own."""
    FAILED = "failed"
    """Given up; the message lies on the dead-letter topic until somebody redrives it."""


class Stored(StrEnum):
    """Whether this run wrote the report or found it written."""

    CREATED = "created"
    ALREADY = "already"


@dataclass(frozen=True, kw_only=True)
class ReportReference:
    """Where the report stands, and the readable text beside it where the site wants one."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    companion_sop_instance_uid: str | None
    stored: Stored


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """The end of one announcement.

    Args:
        outcome: how it ended.
        modality: ``cmr``, ``echo`` or ``ecg``.
        study_instance_uid: record key; empty when the message was too broken to hold one.
        revision: of the announcement; 0 when unknown.
        claim_event_id: ``ce_id`` of the announcement.
        source: URI of the PACS the announcement named.
        reason_code: machine-readable reason of everything but ``reported``.
        reason: the same as one sentence.
        engine: which engine looked, or None when it was not asked.
        estimates: numbers with unit and interval; ``wide_interval`` is a second one, or null.
        probabilities: calibrated probabilities with interval.
        out_of_distribution_score: 0 typical, 1 the limit; None when the engine did not run or the report was found.
        report: where the report stands, or None where there is none.
        cross_modal: how alike the study and one of the same patient in another modality are, or None without one; the
            embedding is empty where the report was found.
        stage_ms: time per stage in milliseconds, and their sum as ``total``.
        completed_utc: ISO 8601, when it ended.
    """

    outcome: Outcome
    modality: str
    study_instance_uid: str
    revision: int
    claim_event_id: str
    source: str
    reason_code: str | None = None
    reason: str | None = None
    engine: ModelIdentity | None = None
    estimates: tuple[Estimate, ...] = ()
    probabilities: tuple[ClassProbability, ...] = ()
    out_of_distribution_score: float | None = None
    report: ReportReference | None = None
    cross_modal: CrossModalFinding | None = None
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    completed_utc: str = ""

    @property
    def event_id(self) -> str:
        """Same announcement, same engine, same conclusion: same id, however often it is announced."""
        said_by = self.engine.weights_sha256 if self.engine else ""
        where = self.report.sop_instance_uid if self.report else ""
        key = (self.claim_event_id, self.outcome.value, self.reason_code or "", said_by, where)
        return str(uuid.uuid5(_NAMESPACE, "\x1f".join(key)))

    def headers(self) -> dict[str, str]:
        """CloudEvents attributes as record headers; ``ce_causationid`` is the announcement."""
        return {
            "ce_specversion": "1.0",
            "ce_type": STUDY_OUTCOME_TYPE,
            "ce_source": "urn:purkinje:processors",
            "ce_id": self.event_id,
            "ce_time": self.completed_utc,
            "ce_partitionkey": self.study_instance_uid,
            "ce_correlationid": self.claim_event_id,
            "ce_causationid": self.claim_event_id,
            "ce_dataschema": OUTCOME_DATA_SCHEMA,
            "content-type": "application/json",
        }

    def value(self) -> bytes:
        """Compact JSON, keys sorted."""
        cross_modal = None if self.cross_modal is None else self.cross_modal.event()
        return json.dumps(
            {**asdict(self), "cross_modal": cross_modal}, sort_keys=True, separators=(",", ":"), allow_nan=False
        ).encode()

    @property
    def topic(self) -> str:
        """Where it is appended."""
        return RESULT_TOPIC


def parse_outcome(headers: Mapping[str, str], value: bytes) -> dict[str, Any]:
    """Read an outcome as plain JSON values; unknown fields are kept, so that a newer minor version passes through.

    Raises:
        EventError: not an outcome of this major version.
    """
    event_type = headers.get("ce_type", "")
    if event_type != STUDY_OUTCOME_TYPE:
        msg = f"event type is {event_type!r}; expected {STUDY_OUTCOME_TYPE}"
        raise EventError(msg)
    try:
        data = json.loads(value)
        Outcome(data["outcome"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        msg = f"not a well-formed {STUDY_OUTCOME_TYPE}: {type(error).__name__}"
        raise EventError(msg) from error
    return {**data, "event_id": headers.get("ce_id", "")}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a message was given up.

    ``error`` is the qualified class name; ``message`` is filled only for classes whose messages name no patient.
    """

    error: str
    message: str
    attempts: int
    first_failed_utc: str
    last_failed_utc: str
    code_version: str


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message that was given up: the original record and the reason."""

    record: LogRecord
    failure: Failure

    @property
    def letter_id(self) -> str:
        """Names the original record: ``topic/partition/offset``."""
        return f"{self.record.topic}/{self.record.partition}/{self.record.offset}"

    def headers(self) -> dict[str, str]:
        """The original headers and, under ``PREFIX``, where the record lay and why it was given up."""
        added = {
            "state": "dead",
            "topic": self.record.topic,
            "partition": str(self.record.partition),
            "offset": str(self.record.offset),
            "timestamp_ms": str(self.record.timestamp_ms),
            **{name: str(value) for name, value in asdict(self.failure).items()},
        }
        return {**self.record.headers, **{f"{PREFIX}{name}": value for name, value in added.items()}}

    @property
    def topic(self) -> str:
        """Where it is appended."""
        return DEAD_LETTER_TOPIC


def parse_dead_letter(record: LogRecord) -> DeadLetter:
    """The original record and the reason, from a record of the dead-letter topic.

    Raises:
        EventError: the record was not written by us.
    """
    ours = {name.removeprefix(PREFIX): value for name, value in record.headers.items() if name.startswith(PREFIX)}
    try:
        original = LogRecord(
            topic=ours["topic"],
            partition=int(ours["partition"]),
            offset=int(ours["offset"]),
            key=record.key,
            headers={name: value for name, value in record.headers.items() if not name.startswith(PREFIX)},
            value=record.value,
            timestamp_ms=int(ours["timestamp_ms"]),
        )
        failure = Failure(
            error=ours["error"],
            message=ours["message"],
            attempts=int(ours["attempts"]),
            first_failed_utc=ours["first_failed_utc"],
            last_failed_utc=ours["last_failed_utc"],
            code_version=ours["code_version"],
        )
    except (KeyError, ValueError) as error:
        msg = f"record {record.offset} of {record.topic} is not a dead letter of ours: {error}"
        raise EventError(msg) from error
    return DeadLetter(record=original, failure=failure)
