"""The message that announces a finished study, and the names of the topics it travels on.

CloudEvents 1.0 in Kafka binary mode: the attributes are ``ce_*`` headers, the value is compact JSON
(claim check: UIDs, counts and digests, never pixels, never a patient's name, ID or birth date).
A compatible change keeps the type and raises ``SCHEMA_MINOR``; a breaking one makes a new type ``.v2``.

Used by the announcer (writes) and by ``stream_processors`` (reads). Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

STUDY_READY_TYPE = "org.purkinje.study.ready.v1"
STUDY_READY_FAMILY = "org.purkinje.study.ready"
SCHEMA_MINOR = 0
DATA_SCHEMA = f"https://purkinje.example/schemas/study-ready/1.{SCHEMA_MINOR}.json"
MODALITIES = ("cmr", "echo", "ecg")
RESULT_TOPIC = "purkinje.study.outcome.v1"
DEAD_LETTER_TOPIC = "purkinje.dead-letter.v1"
MAX_VALUE_BYTES = 64 * 1024
"""Limit of an event's value, as CloudEvents 1.0 recommends for interoperability."""

_EVENT_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://purkinje.example/events")
_UID = re.compile(r"[0-9][0-9.]{0,63}")  # PS3.5 9.1 without its finer rules: carts write empty components
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PACS_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_TEXT = re.compile(r"[\x20-\x7e]{1,256}")


class EventError(ValueError):
    """The message is not one of ours, or not well formed; it goes to the dead-letter topic."""


class UnsupportedVersion(EventError):
    """The message is ours, but of a major version this software does not read."""


def ready_topic(modality: str) -> str:
    """Topic of the studies of one modality (``cmr``, ``echo``, ``ecg``): a slow queue never starves another."""
    if modality not in MODALITIES:
        msg = f"modality is {modality!r}; expected one of {', '.join(MODALITIES)}"
        raise ValueError(msg)
    return f"purkinje.study.ready.{modality}.v1"


READY_TOPICS = tuple(ready_topic(modality) for modality in MODALITIES)
ALL_TOPICS = (*READY_TOPICS, RESULT_TOPIC, DEAD_LETTER_TOPIC)
"""Everything ``Log.ensure_topics`` has to make."""


@dataclass(frozen=True)
class SeriesClaim:
    """One series to fetch: everything in it, and what it must hash to.

    ``digest`` is ``content_digest`` over the series' instances.
    """

    series_instance_uid: str
    pacs_series_id: str
    instance_count: int
    sop_class_uids: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class StudyReady:
    """A study has everything one engine needs (PS3.3 A.1.2 for the levels).

    Args:
        source: URI of the PACS that holds it, ``urn:orthanc:<database id>``.
        study_instance_uid: record key; orders the messages of one study.
        pacs_study_id: the PACS's own identifier, for its REST interface.
        modality: ``cmr``, ``echo`` or ``ecg``.
        revision: 1 for the first announcement of this study and modality, then counting.
        supersedes: event id of the revision before, or None.
        series: what to fetch.
        content_digest: ``content_digest`` over every instance of the claim.
        completeness_rule: why the study counts as finished.
        last_received_utc: ISO 8601, when its last instance arrived; also the time written in the report.
        announced_utc: ISO 8601, when the message was made.
        sequence: position in the change log of the PACS.
    """

    source: str
    study_instance_uid: str
    pacs_study_id: str
    modality: str
    revision: int
    supersedes: str | None
    series: tuple[SeriesClaim, ...]
    content_digest: str
    completeness_rule: str
    last_received_utc: str
    announced_utc: str
    sequence: int

    def __post_init__(self) -> None:
        _check(self.modality in MODALITIES, f"modality {self.modality!r} is none of {MODALITIES}")
        _check(is_uid(self.study_instance_uid), "study_instance_uid is not a DICOM UID (PS3.5 9.1)")
        _check(self.revision >= 1, "revision starts at 1")
        _check(bool(self.series), "a claim names at least one series")
        _check(all(is_uid(each.series_instance_uid) for each in self.series), "series_instance_uid is not a DICOM UID")
        _check(bool(_DIGEST.fullmatch(self.content_digest)), "content_digest is not a SHA-256 in hexadecimal")

    @property
    def event_id(self) -> str:
        """Same study, same content: same id, however often it is announced."""
        key = f"{self.source}\x1f{self.study_instance_uid}\x1f{self.modality}\x1f{self.content_digest}"
        return str(uuid.uuid5(_EVENT_NAMESPACE, key))

    def headers(self) -> dict[str, str]:
        """CloudEvents attributes as record headers (Kafka protocol binding 1.0, binary mode)."""
        return {
            "ce_specversion": "1.0",
            "ce_type": STUDY_READY_TYPE,
            "ce_source": self.source,
            "ce_id": self.event_id,
            "ce_time": self.last_received_utc,
            "ce_recordedtime": self.announced_utc,
            "ce_sequence": f"{self.sequence:012d}",
            "ce_partitionkey": self.study_instance_uid,
            "ce_correlationid": self.event_id,
            "ce_dataschema": DATA_SCHEMA,
            "content-type": "application/json",
        }

    def value(self) -> bytes:
        """Compact JSON, keys sorted; raises EventError above ``MAX_VALUE_BYTES``."""
        value = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        _check(len(value) <= MAX_VALUE_BYTES, f"the event has {len(value)} bytes; the limit is {MAX_VALUE_BYTES}")
        return value

    @property
    def topic(self) -> str:
        """Where it is appended."""
        return ready_topic(self.modality)


def parse_study_ready(headers: Mapping[str, str], value: bytes) -> StudyReady:
    """Read a message; unknown fields are ignored (a newer minor version may add some).

    Raises:
        UnsupportedVersion: another major version of ours.
        EventError: anything else that is not a well-formed announcement.
    """
    event_type = headers.get("ce_type", "")
    if event_type != STUDY_READY_TYPE:
        if event_type.startswith(STUDY_READY_FAMILY):
            msg = f"event type is {event_type}; this version reads {STUDY_READY_TYPE}: upgrade the processors"
            raise UnsupportedVersion(msg)
        msg = f"event type is {event_type!r}; expected {STUDY_READY_TYPE}"
        raise EventError(msg)
    _check(len(value) <= MAX_VALUE_BYTES, f"the event has {len(value)} bytes; the limit is {MAX_VALUE_BYTES}")
    try:
        return _trusted(_study_ready(json.loads(value)))
    except EventError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        msg = f"not a well-formed {STUDY_READY_TYPE}: {type(error).__name__}: {error}"
        raise EventError(msg) from error


def content_digest(instances: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over (SOPInstanceUID, MD5 of the stored file) pairs, independent of their order."""
    lines = sorted(f"{sop_instance_uid} {md5}" for sop_instance_uid, md5 in instances)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def is_uid(text: str) -> bool:
    """True for digits and dots only, at most 64; anything else never becomes part of a path or URL."""
    return isinstance(text, str) and bool(_UID.fullmatch(text))


def _study_ready(data: dict[str, Any]) -> StudyReady:
    series = tuple(
        SeriesClaim(
            series_instance_uid=_text(claim["series_instance_uid"]),
            pacs_series_id=_text(claim["pacs_series_id"]),
            instance_count=_number(claim["instance_count"]),
            sop_class_uids=tuple(_text(uid) for uid in claim["sop_class_uids"]),
            digest=_text(claim["digest"]),
        )
        for claim in data["series"]
    )
    return StudyReady(
        source=_text(data["source"]),
        study_instance_uid=_text(data["study_instance_uid"]),
        pacs_study_id=_text(data["pacs_study_id"]),
        modality=_text(data["modality"]),
        revision=_number(data["revision"]),
        supersedes=None if data["supersedes"] is None else _text(data["supersedes"]),
        series=series,
        content_digest=_text(data["content_digest"]),
        completeness_rule=_text(data["completeness_rule"]),
        last_received_utc=_text(data["last_received_utc"]),
        announced_utc=_text(data["announced_utc"]),
        sequence=_number(data["sequence"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        msg = f"found {type(value).__name__} where a text is expected"
        raise TypeError(msg)
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"found {type(value).__name__} where a whole number is expected"
        raise TypeError(msg)
    return value


def _trusted(event: StudyReady) -> StudyReady:
    """Refuse what came over the wire and could mislead a URL, a log line or a fetch."""
    for name in ("source", "completeness_rule", "last_received_utc", "announced_utc", "supersedes"):
        text = getattr(event, name)
        _check(text is None or bool(_TEXT.fullmatch(text)), f"{name} is not 1 to 256 printable ASCII characters")
    _check(event.sequence >= 0, "sequence is negative")
    _check(bool(_PACS_ID.fullmatch(event.pacs_study_id)), "pacs_study_id is not safe as a part of a URL")
    for each in event.series:
        _check(bool(_PACS_ID.fullmatch(each.pacs_series_id)), "pacs_series_id is not safe as a part of a URL")
        _check(each.instance_count >= 1, "a series to fetch has no instance")
        _check(all(map(is_uid, each.sop_class_uids)), "sop_class_uids holds something else than DICOM UIDs")
        _check(bool(_DIGEST.fullmatch(each.digest)), "digest of a series is not a SHA-256 in hexadecimal")
    return event


def _check(condition: bool, expectation: str) -> None:
    if not condition:
        raise EventError(expectation)
