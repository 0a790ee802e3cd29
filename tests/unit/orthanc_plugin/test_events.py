"""The announcement: what is written is read, for ever; nothing of the patient is in it; nothing hostile gets past it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthanc_plugin.wire import events
from orthanc_plugin.wire.events import (
    MAX_VALUE_BYTES,
    SCHEMA_MINOR,
    EventError,
    SeriesClaim,
    StudyReady,
    UnsupportedVersion,
    content_digest,
    is_uid,
    parse_study_ready,
    ready_topic,
)

GOLDEN = Path(events.__file__).parent / "golden"

# Every name an announcement may use. A new one is added here with a reason; none may say who the patient is.
ALLOWED_FIELDS = {
    "source", "study_instance_uid", "pacs_study_id", "modality", "revision", "supersedes", "series", "content_digest",
    "completeness_rule", "last_received_utc", "announced_utc", "sequence",
    "series_instance_uid", "pacs_series_id", "instance_count", "sop_class_uids", "digest",
}  # fmt: skip
ALLOWED_HEADERS = {
    "ce_specversion", "ce_type", "ce_source", "ce_id", "ce_time", "ce_recordedtime", "ce_sequence", "ce_partitionkey",
    "ce_correlationid", "ce_dataschema", "content-type",
}  # fmt: skip

uids = st.lists(st.integers(0, 10**6), min_size=1, max_size=6).map(lambda parts: ".".join(map(str, parts)))
digests = st.integers(0, 16**64 - 1).map(lambda number: f"{number:064x}")
md5s = st.integers(0, 16**32 - 1).map(lambda number: f"{number:032x}")
pacs_ids = st.integers(0, 16**40 - 1).map(lambda number: f"{number:040x}")
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40)
claims = st.builds(
    SeriesClaim,
    series_instance_uid=uids,
    pacs_series_id=pacs_ids,
    instance_count=st.integers(1, 10**6),
    sop_class_uids=st.lists(uids, max_size=3).map(tuple),
    digest=digests,
)
announcements = st.builds(
    StudyReady,
    source=texts,
    study_instance_uid=uids,
    pacs_study_id=pacs_ids,
    modality=st.sampled_from(events.MODALITIES),
    revision=st.integers(1, 10**6),
    supersedes=st.none() | texts,
    series=st.lists(claims, min_size=1, max_size=3).map(tuple),
    content_digest=digests,
    completeness_rule=texts,
    last_received_utc=texts,
    announced_utc=texts,
    sequence=st.integers(0, 10**12),
)
EXAMPLE = StudyReady(
    source="urn:orthanc:db",
    study_instance_uid="1.2.3",
    pacs_study_id="study-1",
    modality="ecg",
    revision=1,
    supersedes=None,
    series=(SeriesClaim("1.2.3.4", "series-1", 1, ("1.2.840.10008.5.1.4.1.1.9.1.1",), "a" * 64),),
    content_digest="b" * 64,
    completeness_rule="at_once",
    last_received_utc="2026-01-02T03:04:05Z",
    announced_utc="2026-01-02T03:04:06Z",
    sequence=7,
)


def changed(event: StudyReady = EXAMPLE, /, **fields: Any) -> bytes:
    """Value of an event with some fields replaced by anything."""
    return json.dumps({**json.loads(event.value()), **fields}).encode()


@given(announcements)
def test_round_trip(event: StudyReady) -> None:
    """What is written is read back the same."""
    assert parse_study_ready(event.headers(), event.value()) == event


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_events_are_still_read(path: Path) -> None:
    """An event of every minor version so far is read, and has the id it was given then."""
    golden = json.loads(path.read_text(encoding="utf-8"))
    event = parse_study_ready(golden["headers"], golden["value"].encode())
    assert event.event_id == golden["headers"]["ce_id"]
    assert event.study_instance_uid == golden["headers"]["ce_partitionkey"]
    assert len(event.series) == 2
    assert event.revision == 2


def test_every_minor_version_has_a_golden_event() -> None:
    """Nobody raises the minor version without keeping an example of it."""
    assert [path.name for path in sorted(GOLDEN.glob("*.json"))] == [
        f"study-ready-1.{minor}.json" for minor in range(SCHEMA_MINOR + 1)
    ]


def test_the_present_version_writes_its_golden_event() -> None:
    """The golden event of the present version is what the present code writes, byte for byte."""
    golden = json.loads((GOLDEN / f"study-ready-1.{SCHEMA_MINOR}.json").read_text(encoding="utf-8"))
    event = parse_study_ready(golden["headers"], golden["value"].encode())
    assert event.headers() == golden["headers"]
    assert event.value().decode() == golden["value"]


def test_only_allowed_names_travel() -> None:
    """No field or header is written that is not on the list: none of them is the patient's."""
    fields = {field.name for kind in (StudyReady, SeriesClaim) for field in dataclasses.fields(kind)}
    assert fields == ALLOWED_FIELDS
    assert set(EXAMPLE.headers()) == ALLOWED_HEADERS
    assert set(json.loads(EXAMPLE.value())) <= ALLOWED_FIELDS
    assert not any("patient" in name or "birth" in name for name in fields)


@pytest.mark.parametrize("kind", ["org.purkinje.study.ready.v2", "org.purkinje.study.ready.v10"])
def test_another_major_version(kind: str) -> None:
    """Another major version of ours is told apart from rubbish, so that the operator knows to upgrade."""
    with pytest.raises(UnsupportedVersion, match="upgrade"):
        parse_study_ready({**EXAMPLE.headers(), "ce_type": kind}, b"whatever it is")


@pytest.mark.parametrize("headers", [{}, {"ce_type": "com.example.other"}, {"ce_type": ""}])
def test_a_foreign_message(headers: dict[str, str]) -> None:
    """A message that is not ours is refused, and not as a version of ours."""
    with pytest.raises(EventError, match="event type") as caught:
        parse_study_ready(headers, EXAMPLE.value())
    assert not isinstance(caught.value, UnsupportedVersion)


def test_unknown_fields_are_ignored() -> None:
    """A newer minor version may add fields and headers; this one reads past them."""
    value = changed(urgency="routine", series=[{**json.loads(EXAMPLE.value())["series"][0], "weight": 1}])
    assert parse_study_ready({**EXAMPLE.headers(), "ce_new": "x"}, value) == EXAMPLE


def test_an_oversize_event_is_neither_written_nor_read() -> None:
    """Above 64 KiB an event is refused on both sides, before it is parsed."""
    many = dataclasses.replace(EXAMPLE, series=EXAMPLE.series * 1000)
    with pytest.raises(EventError, match="limit"):
        many.value()
    with pytest.raises(EventError, match="limit"):
        parse_study_ready(EXAMPLE.headers(), b" " * (MAX_VALUE_BYTES + 1))


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_rubbish_is_refused(value: bytes) -> None:
    """Whatever the bytes are, the answer is an event or an EventError."""
    with pytest.raises(EventError):
        parse_study_ready(EXAMPLE.headers(), value)


@pytest.mark.parametrize("name", sorted(json.loads(EXAMPLE.value())))
@pytest.mark.parametrize(
    "bad", [[], {}, True, "", "a\nb", "\ud800", -1, 1.5, float("inf"), float("nan"), "9" * 5000, ["x"]], ids=repr
)
def test_a_bad_field_is_refused(name: str, bad: Any) -> None:
    """A field of the wrong kind, an endless number, a line break or half a character is refused, never a crash."""
    with pytest.raises(EventError):
        parse_study_ready(EXAMPLE.headers(), changed(**{name: bad}))


@pytest.mark.parametrize("name", ["study_instance_uid", "pacs_study_id", "modality", "series", "content_digest"])
@pytest.mark.parametrize("bad", ["../../patients", "a/b", "..", "1 2", None], ids=repr)
def test_nothing_that_names_something_can_be_a_path(name: str, bad: str | None) -> None:
    """What becomes part of an address is refused when it could lead elsewhere."""
    with pytest.raises(EventError):
        parse_study_ready(EXAMPLE.headers(), changed(**{name: bad}))


@pytest.mark.parametrize("name", sorted(json.loads(EXAMPLE.value())))
def test_a_missing_field_is_refused(name: str) -> None:
    """No field has a default."""
    data = json.loads(EXAMPLE.value())
    del data[name]
    with pytest.raises(EventError):
        parse_study_ready(EXAMPLE.headers(), json.dumps(data).encode())


def test_an_endless_number_is_refused() -> None:
    """A number of a million digits is refused, not computed."""
    value = EXAMPLE.value().replace(b'"revision":1', b'"revision":' + b"9" * 20_000)
    with pytest.raises(EventError):
        parse_study_ready(EXAMPLE.headers(), value)


@pytest.mark.parametrize(
    "bad",
    [
        {"pacs_series_id": "../../instances"}, {"pacs_series_id": ""}, {"pacs_series_id": "a/b"},
        {"series_instance_uid": "1.2/3"}, {"instance_count": 0}, {"instance_count": float("inf")},
        {"sop_class_uids": ["x"]}, {"sop_class_uids": "CT"}, {"sop_class_uids": 3}, {"digest": "short"},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_series_is_refused(bad: dict[str, Any]) -> None:
    """A series that could mislead a URL or a fetch is refused."""
    series = {**json.loads(EXAMPLE.value())["series"][0], **bad}
    with pytest.raises(EventError):
        parse_study_ready(EXAMPLE.headers(), changed(series=[series]))


@given(announcements)
def test_headers_are_text_that_http_and_kafka_carry(event: StudyReady) -> None:
    """Every CloudEvents attribute is a non-empty printable text."""
    assert all(value and value.isprintable() for value in event.headers().values())


def test_the_id_says_what_was_announced() -> None:
    """The same content has the same id at any time and revision; other content, source or modality has another."""
    later = dataclasses.replace(EXAMPLE, revision=3, announced_utc="2030-01-01T00:00:00Z", sequence=99)
    assert later.event_id == EXAMPLE.event_id
    others = [
        dataclasses.replace(EXAMPLE, content_digest="c" * 64),
        dataclasses.replace(EXAMPLE, source="urn:orthanc:other"),
        dataclasses.replace(EXAMPLE, modality="cmr"),
        dataclasses.replace(EXAMPLE, study_instance_uid="1.2.4"),
    ]
    assert len({EXAMPLE.event_id, *(event.event_id for event in others)}) == 5


@given(st.lists(st.tuples(uids, md5s), max_size=8), st.randoms())
def test_the_digest_does_not_depend_on_order(instances: list[tuple[str, str]], random: Any) -> None:
    """The same instances in any order have the same digest."""
    shuffled = list(instances)
    random.shuffle(shuffled)
    assert content_digest(shuffled) == content_digest(instances)


@given(st.lists(st.tuples(uids, md5s), min_size=1, max_size=8, unique=True))
def test_the_digest_sees_every_change(instances: list[tuple[str, str]]) -> None:
    """One instance less, or one with other bytes, gives another digest."""
    (uid, md5), *rest = instances
    other = md5[1:] + ("0" if md5[0] != "0" else "1")
    assert content_digest(rest) != content_digest(instances)
    if (uid, other) not in instances:
        assert content_digest([(uid, other), *rest]) != content_digest(instances)


@pytest.mark.parametrize("text", ["", ".1", "1.2/3", "1.2 ", "1.2\n", "../x", "1" * 65, "\uff11.2", 12, None], ids=repr)
def test_is_uid_refuses(text: Any) -> None:
    """What is no UID, or could be part of a path or a second line, is none."""
    assert not is_uid(text)


@pytest.mark.parametrize("text", ["1", "1.2.840.10008.1.1", "2.25." + "9" * 59])
def test_is_uid_accepts(text: str) -> None:
    """UIDs up to 64 characters are accepted."""
    assert is_uid(text)


def test_topics() -> None:
    """Each modality has its own topic; another modality is refused."""
    assert len({ready_topic(modality) for modality in events.MODALITIES}) == 3
    assert EXAMPLE.topic == "purkinje.study.ready.ecg.v1"
    with pytest.raises(ValueError, match="modality"):
        ready_topic("ct")
    with pytest.raises(EventError, match="modality"):
        dataclasses.replace(EXAMPLE, modality="ct")


@pytest.mark.parametrize(
    "bad", [{"revision": 0}, {"series": ()}, {"content_digest": "B" * 64}, {"study_instance_uid": "a"}], ids=str
)
def test_an_invalid_announcement_cannot_be_built(bad: dict[str, Any]) -> None:
    """An event is valid once built."""
    with pytest.raises(EventError):
        dataclasses.replace(EXAMPLE, **bad)


def test_the_topics_to_make_are_all_topics() -> None:
    """The list for a hospital's Kafka names every topic, each in several copies of which two must be there."""
    plan = json.loads((Path(__file__).parents[3] / "deploy" / "kafka" / "topics.json").read_text(encoding="utf-8"))
    assert sorted(plan["topics"]) == sorted(events.ALL_TOPICS)
    assert plan["defaults"]["replication_factor"] == 3
    assert plan["defaults"]["configs"]["min.insync.replicas"] == "2"
