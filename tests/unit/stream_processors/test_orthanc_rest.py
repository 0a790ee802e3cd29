"""Orthanc's REST interface, against a transport in memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from orthanc_plugin.wire.events import SeriesClaim, StudyReady
from stream_processors.errors import (
    ClaimExpired,
    ClaimSuperseded,
    ClaimTooLarge,
    PacsFault,
    PacsRefused,
    PacsUnauthorized,
    PacsUnavailable,
    SettingsInvalid,
    StoreUnverified,
)
from stream_processors.events import Stored
from stream_processors.pacs import orthanc_rest
from stream_processors.pacs.client import EncodedReport
from stream_processors.pacs.orthanc_rest import OrthancRest
from stream_processors.settings import RestSettings

SERIES_ID = "0a9b3153-2512774b-2d9580de-1fc3dcf6-3bd83918"
REPORT = EncodedReport(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
    sop_instance_uid="2.25.1",
    series_instance_uid="2.25.2",
    study_instance_uid="1.2.3",
    content=b"DICM",
)


def _id(number: int) -> str:
    return f"{number:08x}-00000000-00000000-00000000-00000000"


class Sink:
    """Takes instances; remembers them and the largest piece it was given."""

    def __init__(self) -> None:
        self.instances: list[bytes] = []
        self.largest_chunk = 0

    def append(self, chunks: Any) -> None:
        pieces = list(chunks)
        self.largest_chunk = max(self.largest_chunk, *map(len, pieces), 0)
        self.instances.append(b"".join(pieces))


class Orthanc:
    """Answers like Orthanc 1.10.1 for one series; ``answers`` overrides single paths."""

    def __init__(self, instances: dict[str, bytes]) -> None:
        self.instances = dict(sorted(instances.items(), reverse=True))
        self.answers: dict[str, Callable[[httpx.Request], httpx.Response]] = {}
        self.asked: list[str] = []
        self.authorization: set[str | None] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.gone: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.asked.append(request.url.path)
            self.authorization.add(request.headers.get("authorization"))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self.answers.get(request.url.path, self._usual)(request)
        finally:
            with self._lock:
                self.at_once -= 1

    def _usual(self, request: httpx.Request) -> httpx.Response:
        ids = {_id(number): uid for number, uid in enumerate(self.instances)}
        path = request.url.path.split("/")
        if request.url.path == f"/series/{SERIES_ID}/instances" and "series" not in self.gone:
            return httpx.Response(200, json=[self._entry(one, uid) for one, uid in ids.items()])
        if path[1] == "instances" and path[3:] == ["file"] and ids[path[2]] not in self.gone:
            time.sleep(0.005)
            return httpx.Response(200, content=self.instances[ids[path[2]]])
        return httpx.Response(404)

    def _entry(self, pacs_id: str, uid: str) -> dict[str, Any]:
        return {"ID": pacs_id, "FileSize": len(self.instances[uid]), "MainDicomTags": {"SOPInstanceUID": uid}}


def _client(orthanc: Orthanc, *, largest: int = 10**9, **settings: Any) -> OrthancRest:
    rest = RestSettings(url="http://pacs.example:8042", **settings)
    return OrthancRest(rest, largest_study_bytes=largest, transport=httpx.MockTransport(orthanc))


def _claim(count: int, series_id: str = SERIES_ID) -> StudyReady:
    series = SeriesClaim(
        series_instance_uid="1.2.3.4", pacs_series_id=series_id, instance_count=count, sop_class_uids=(), digest=""
    )
    return StudyReady(
        source="urn:orthanc:test",
        study_instance_uid="1.2.3",
        pacs_study_id=SERIES_ID,
        modality="cmr",
        revision=1,
        supersedes=None,
        series=(series,),
        content_digest="0" * 64,
        completeness_rule="test",
        last_received_utc="",
        announced_utc="",
        sequence=1,
    )


@pytest.fixture
def orthanc() -> Orthanc:
    """Thirty small instances, listed in reverse."""
    return Orthanc({f"1.2.3.{number:02d}": f"instance {number}".encode() for number in range(30)})


def test_instances_arrive_sorted_whatever_the_list_says(orthanc: Orthanc) -> None:
    """The same study gives the same spool: sorted by SOP Instance UID, each with its own bytes."""
    sink = Sink()
    uids = _client(orthanc).fetch(_claim(30), sink)
    assert list(uids) == sorted(orthanc.instances)
    assert sink.instances == [orthanc.instances[uid] for uid in uids]


def test_small_instances_are_fetched_a_few_at_a_time(orthanc: Orthanc) -> None:
    """Several requests run beside each other, never more than the settings allow."""
    _client(orthanc, connections=3).fetch(_claim(30), Sink())
    assert 1 < orthanc.most_at_once <= 3


def test_a_large_instance_passes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance above the limit is never held as a whole, and keeps its place among small ones."""
    monkeypatch.setattr(orthanc_rest, "_AHEAD_BYTES", 1000)
    orthanc = Orthanc({"1.1": b"a" * 10, "1.2": b"b" * 900_000, "1.3": b"c" * 10})
    sink = Sink()
    _client(orthanc).fetch(_claim(3), sink)
    assert [instance[:1] for instance in sink.instances] == [b"a", b"b", b"c"]
    assert sink.largest_chunk <= orthanc_rest._CHUNK_BYTES < 900_000
    assert len(sink.instances[1]) == 900_000


def test_a_study_above_the_limit_is_not_fetched(orthanc: Orthanc) -> None:
    """The sizes are summed before the first byte is asked for."""
    with pytest.raises(ClaimTooLarge, match="largest_study_bytes"):
        _client(orthanc, largest=100).fetch(_claim(30), Sink())
    assert not any(path.endswith("/file") for path in orthanc.asked)


def test_another_number_of_instances_is_another_study(orthanc: Orthanc) -> None:
    """A late instance supersedes the claim before anything is fetched."""
    with pytest.raises(ClaimSuperseded, match="29 instances were announced, the PACS now holds 30"):
        _client(orthanc).fetch(_claim(29), Sink())


def test_a_study_that_is_gone_is_expired(orthanc: Orthanc) -> None:
    """Nothing left of the claim is not the same as a changed study."""
    orthanc.gone.add("series")
    with pytest.raises(ClaimExpired):
        _client(orthanc).fetch(_claim(30), Sink())


def test_an_instance_deleted_while_reading_supersedes(orthanc: Orthanc) -> None:
    """One file missing between list and read: the study changed."""
    orthanc.gone.add("1.2.3.07")
    with pytest.raises(ClaimSuperseded, match="while the study was being read"):
        _client(orthanc).fetch(_claim(30), Sink())


def test_a_study_deleted_while_reading_is_expired(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything missing between list and read: the study is gone."""
    monkeypatch.setattr(orthanc_rest, "_AHEAD_BYTES", 0)

    def vanish(_request: httpx.Request) -> httpx.Response:
        orthanc.gone.add("series")
        return httpx.Response(404)

    orthanc.answers[f"/instances/{_id(29)}/file"] = vanish
    with pytest.raises(ClaimExpired, match="while it was being read"):
        _client(orthanc).fetch(_claim(30), Sink())


@pytest.mark.parametrize("series_id", ["../../system", "", "0A9B3153-2512774b-2d9580de-1fc3dcf6-3bd83918", "x" * 44])
def test_a_claim_never_chooses_the_address(orthanc: Orthanc, series_id: str) -> None:
    """An identifier that is not of Orthanc's form does not become part of a request."""
    with pytest.raises(PacsRefused, match="not of Orthanc's form"):
        _client(orthanc).fetch(_claim(30, series_id), Sink())
    assert orthanc.asked == []


@pytest.mark.parametrize("uid", ["../x", "1.2.3/../..", "", "1" * 65, ".1.2", "1.2\n"])
def test_a_uid_is_checked_before_it_travels(orthanc: Orthanc, uid: str) -> None:
    """Only well-formed UIDs are looked up (PS3.5 9.1)."""
    with pytest.raises(PacsRefused, match="not well formed"):
        _client(orthanc).find(uid)
    assert orthanc.asked == []


@pytest.mark.parametrize(
    ("status", "reading", "writing"),
    [
        (500, PacsFault, PacsUnavailable),
        (507, PacsFault, PacsUnavailable),
        (503, PacsUnavailable, PacsUnavailable),
        (429, PacsUnavailable, PacsUnavailable),
        (401, PacsUnauthorized, PacsUnauthorized),
        (403, PacsUnauthorized, PacsUnauthorized),
        (400, PacsRefused, PacsRefused),
        (415, PacsRefused, PacsRefused),
    ],
)
def test_a_status_code_means_what_can_be_done_about_it(
    orthanc: Orthanc, status: int, reading: type[Exception], writing: type[Exception]
) -> None:
    """A damaged file ends after some tries, a full disk is waited for, a bad object is given up."""
    orthanc.answers[f"/series/{SERIES_ID}/instances"] = lambda _: httpx.Response(status)
    orthanc.answers["/instances"] = lambda _: httpx.Response(status)
    with pytest.raises(reading) as read:
        _client(orthanc).fetch(_claim(30), Sink())
    with pytest.raises(writing) as written:
        _client(orthanc).store(REPORT)
    assert (type(read.value), type(written.value)) == (reading, writing)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("x"), httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x"), httpx.PoolTimeout("x")]
)
def test_a_network_error_is_waited_for(orthanc: Orthanc, error: httpx.TransportError) -> None:
    """Whatever the network does is PacsUnavailable, in lists, in small and in streamed files."""

    def fail(_request: httpx.Request) -> httpx.Response:
        raise error

    orthanc.answers[f"/instances/{_id(3)}/file"] = fail
    with pytest.raises(PacsUnavailable):
        _client(orthanc).fetch(_claim(30), Sink())
    orthanc.answers["/system"] = fail
    with pytest.raises(PacsUnavailable):
        _client(orthanc).ping()


def test_a_stream_that_breaks_off_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that dies in the middle of a large file is no damaged file."""
    monkeypatch.setattr(orthanc_rest, "_AHEAD_BYTES", 0)

    def broken() -> Any:
        yield b"half"
        raise httpx.ReadError("reset")

    orthanc = Orthanc({"1.1": b"x" * 10})
    orthanc.answers[f"/instances/{_id(0)}/file"] = lambda _: httpx.Response(200, content=broken())
    with pytest.raises(PacsUnavailable):
        _client(orthanc).fetch(_claim(1), Sink())


@pytest.mark.parametrize(("said", "stored"), [("Success", Stored.CREATED), ("AlreadyStored", Stored.ALREADY)])
def test_a_store_says_whether_it_was_the_first(orthanc: Orthanc, said: str, stored: Stored) -> None:
    """Orthanc keeps the first copy and says so."""
    orthanc.answers["/instances"] = lambda _: httpx.Response(200, json={"ID": _id(1), "Status": said})
    assert _client(orthanc).store(REPORT) is stored


def test_a_store_that_a_filter_swallowed_is_refused(orthanc: Orthanc) -> None:
    """A site's own filter in Orthanc may drop our report; that is not success."""
    orthanc.answers["/instances"] = lambda _: httpx.Response(200, json={"Status": "FilteredOut"})
    with pytest.raises(PacsRefused, match="FilteredOut"):
        _client(orthanc).store(REPORT)


def test_verification_looks_the_report_up(orthanc: Orthanc) -> None:
    """A report that was stored and is not found is not verified."""
    found: list[dict[str, str]] = [{"Type": "Instance", "ID": _id(1)}]
    orthanc.answers["/tools/lookup"] = lambda _: httpx.Response(200, json=found)
    _client(orthanc).verify(REPORT)
    found.clear()
    with pytest.raises(StoreUnverified):
        _client(orthanc).verify(REPORT)


def test_a_report_is_found_by_its_uid(orthanc: Orthanc) -> None:
    """Only an instance counts; a study or series that happens to have the UID does not."""
    hits = [{"Type": "Study", "ID": _id(9)}, {"Type": "Instance", "ID": _id(1)}]
    orthanc.answers["/tools/lookup"] = lambda _: httpx.Response(200, json=hits)
    assert _client(orthanc).find("2.25.1") == orthanc.instances[list(orthanc.instances)[1]]
    del hits[1]
    assert _client(orthanc).find("2.25.1") is None


def test_earlier_reports_are_asked_for_by_manufacturer(orthanc: Orthanc) -> None:
    """Only structured reports of ours in this study are downloaded."""
    queries: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        queries.append(json.loads(request.content))
        return httpx.Response(200, json=[{"Instances": [_id(2), _id(1)]}])

    orthanc.answers["/tools/find"] = answer
    reports = _client(orthanc).reports_of("1.2.3", manufacturer="Purkinje")
    uids = list(orthanc.instances)
    assert reports == (orthanc.instances[uids[1]], orthanc.instances[uids[2]])
    assert queries[0]["Query"] == {"StudyInstanceUID": "1.2.3", "Modality": "SR", "Manufacturer": "Purkinje"}


def test_an_answer_that_is_no_json_is_no_orthanc(orthanc: Orthanc) -> None:
    """A proxy's error page is named as such, without credentials."""
    orthanc.answers["/system"] = lambda _: httpx.Response(200, text="<html>")
    with pytest.raises(PacsUnavailable, match="not JSON"):
        _client(orthanc).ping()


def test_credentials_are_sent_and_never_told(orthanc: Orthanc) -> None:
    """The password goes into the header and into no message."""
    client = _client(orthanc, username="u", password="hunter2")
    orthanc.answers["/system"] = lambda _: httpx.Response(401)
    with pytest.raises(PacsUnauthorized) as refused:
        client.ping()
    assert "hunter2" not in str(refused.value)
    assert orthanc.authorization == {"Basic dTpodW50ZXIy"}


def test_an_address_that_is_none_is_a_wrong_setting() -> None:
    """A URL that cannot be used stops the process instead of being retried."""
    with pytest.raises(SettingsInvalid):
        OrthancRest(RestSettings(url="http://[::"), largest_study_bytes=1)
    client = OrthancRest(RestSettings(url="ftp://pacs"), largest_study_bytes=1)
    with pytest.raises(SettingsInvalid):
        client.ping()


def test_a_plugin_that_is_not_loaded_is_seen(orthanc: Orthanc) -> None:
    """Without the announcing plugin there is no status, which is not an error of the PACS."""
    assert _client(orthanc).plugin_status() is None
