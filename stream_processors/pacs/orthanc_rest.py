"""Orthanc's REST interface as study reader and report writer; works from Orthanc 1.10.1 on.

Instances stream into the sink in bounded memory: small ones are fetched ahead, a few at a time over kept-alive
connections, large ones pass through piece by piece. Nothing from a message becomes part of a URL before its form was
checked. Every error of httpx and every status code leaves as one of ``stream_processors.errors``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import httpx

from engines.records import Modality
from stream_processors.errors import (
    ClaimEnded,
    ClaimExpired,
    ClaimSuperseded,
    ClaimTooLarge,
    PacsError,
    PacsFault,
    PacsRefused,
    PacsUnauthorized,
    PacsUnavailable,
    StoreUnverified,
    from_foreign,
)
from stream_processors.events import Stored
from stream_processors.pacs.client import EncodedReport, InstanceSink, Partner, ToFetch
from stream_processors.pacs.identifiers import checked_pacs_id, checked_uid
from stream_processors.pacs.partners import find_partners
from stream_processors.settings import RestSettings

_AHEAD_BYTES = 4 * 1024 * 1024
"""Instances up to this size are held in memory while they wait for their turn; at most ``connections`` of them."""
_CHUNK_BYTES = 256 * 1024
_GET_STATUS = {401: PacsUnauthorized, 403: PacsUnauthorized, 429: PacsUnavailable, 503: PacsUnavailable}


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """One instance as Orthanc lists it."""

    sop_instance_uid: str
    pacs_id: str
    size_bytes: int


class OrthancRest:
    """One client per process; safe to use from several threads.

    Args:
        settings: address, credentials, time-outs, connections.
        largest_study_bytes: a claim above this is not fetched.
        transport: replaces the network in tests.
    """

    def __init__(
        self, settings: RestSettings, *, largest_study_bytes: int, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._largest_study_bytes = largest_study_bytes
        self._connections = settings.connections
        auth = None
        if settings.username is not None and settings.password is not None:
            auth = httpx.BasicAuth(settings.username, settings.password.get_secret_value())
        with _translated("opening the PACS client"):
            self._http = httpx.Client(
                base_url=settings.url,
                auth=auth,
                transport=transport,
                timeout=httpx.Timeout(settings.read_timeout_s, connect=settings.connect_timeout_s),
                limits=httpx.Limits(max_keepalive_connections=4 * settings.connections),
                trust_env=False,
            )

    def ping(self) -> str:
        system = self._json("/system", "asking the PACS for its version")
        return f"{system.get('Name', 'Orthanc')} {system.get('Version', 'of unknown version')} at {self._http.base_url}"

    def plugin_status(self) -> dict[str, Any] | None:
        """What the announcing plugin says of itself, or None where it is not loaded."""
        response = self._get("/purkinje/status", "asking the plugin for its status")
        return None if response is None else dict(_parsed(response, "asking the plugin for its status"))

    def fetch(self, claim: ToFetch, sink: InstanceSink) -> tuple[str, ...]:
        instances = self._list(claim)
        size_bytes = sum(instance.size_bytes for instance in instances)
        if size_bytes > self._largest_study_bytes:
            msg = f"the claim has {size_bytes} bytes; pacs.largest_study_bytes allows {self._largest_study_bytes}"
            raise ClaimTooLarge(msg)
        try:
            self._download(instances, sink)
        except _Gone:
            raise self._changed(claim) from None
        return tuple(instance.sop_instance_uid for instance in instances)

    def find(self, sop_instance_uid: str) -> bytes | None:
        pacs_id = self._instance_id(sop_instance_uid)
        if pacs_id is None:
            return None
        response = self._get(f"/instances/{pacs_id}/file", "reading a stored report")
        return None if response is None else response.content

    def reports_of(self, study_instance_uid: str, *, manufacturer: str) -> tuple[bytes, ...]:
        query = {"StudyInstanceUID": checked_uid(study_instance_uid), "Modality": "SR", "Manufacturer": manufacturer}
        doing = "looking for earlier reports"
        found = self._post("/tools/find", doing, json={"Level": "Series", "Query": query, "Expand": True})
        instances = sorted(checked_pacs_id(one) for series in _parsed(found, doing) for one in series["Instances"])
        files = (self._get(f"/instances/{pacs_id}/file", "reading an earlier report") for pacs_id in instances)
        return tuple(response.content for response in files if response is not None)

    def partners_of(self, study_instance_uid: str, modality: Modality, *, window_days: int) -> tuple[Partner, ...]:
        return find_partners(self, checked_uid(study_instance_uid), modality, window_days=window_days)

    def studies(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Orthanc's description of every study with these elements; ``*``, ``?`` and a backslash select several."""
        asked = {"Level": "Study", "Query": query, "Expand": True, "CaseSensitive": True}
        return list(_parsed(self._post("/tools/find", "looking for studies", json=asked), "looking for studies"))

    def series_of(self, pacs_study_id: str) -> list[dict[str, Any]]:
        """Orthanc's description of every series of a study; none where it is gone."""
        response = self._get(f"/studies/{checked_pacs_id(pacs_study_id)}/series", "listing a study")
        return [] if response is None else list(_parsed(response, "listing a study"))

    def element(self, pacs_instance_id: str, tag: str) -> str:
        """Value of one element of an instance, empty where it has none (``0010-0021``)."""
        response = self._get(f"/instances/{checked_pacs_id(pacs_instance_id)}/content/{tag}", "reading one element")
        return "" if response is None else response.content.decode("latin-1").strip(" \0")

    def store(self, report: EncodedReport) -> Stored:
        headers = {"content-type": "application/dicom"}
        response = self._post("/instances", "storing the report", content=report.content, headers=headers)
        status = _parsed(response, "storing the report").get("Status")
        if status == "Success":
            return Stored.CREATED
        if status == "AlreadyStored":
            return Stored.ALREADY
        msg = f"storing the report: Orthanc answers {status!r}; expected 'Success' or 'AlreadyStored'"
        raise PacsRefused(msg)

    def verify(self, report: EncodedReport) -> None:
        if self._instance_id(report.sop_instance_uid) is None:
            msg = f"report {report.sop_instance_uid} was stored but the PACS does not find it"
            raise StoreUnverified(msg)

    def close(self) -> None:
        self._http.close()

    def _list(self, claim: ToFetch) -> list[_Listed]:
        listed = [self._list_series(series.pacs_series_id) for series in claim.series]
        if all(instances is None for instances in listed):
            msg = "none of the announced series is left in the PACS"
            raise ClaimExpired(msg)
        instances = [instance for series in listed for instance in series or ()]
        expected = sum(series.instance_count for series in claim.series)
        if len(instances) != expected:
            msg = f"{expected} instances were announced, the PACS now holds {len(instances)}"
            raise ClaimSuperseded(msg)
        return sorted(instances, key=lambda instance: instance.sop_instance_uid)

    def _list_series(self, pacs_series_id: str) -> list[_Listed] | None:
        path = f"/series/{checked_pacs_id(pacs_series_id)}/instances"
        response = self._get(path, "listing a series")
        return None if response is None else [_listed(entry) for entry in _parsed(response, "listing a series")]

    def _download(self, instances: Sequence[_Listed], sink: InstanceSink) -> None:
        with ThreadPoolExecutor(self._connections, thread_name_prefix="fetch") as pool:
            for instance, ahead in _fetched_ahead(pool, instances, self._small, self._connections):
                if ahead is None:
                    self._stream(instance, sink)
                else:
                    sink.append((ahead.result(),))

    def _small(self, instance: _Listed) -> bytes:
        response = self._get(f"/instances/{instance.pacs_id}/file", "fetching an instance")
        if response is None:
            raise _Gone
        return response.content

    def _stream(self, instance: _Listed, sink: InstanceSink) -> None:
        path = f"/instances/{instance.pacs_id}/file"
        with _translated("fetching an instance"), self._http.stream("GET", path) as response:
            if response.status_code == httpx.codes.NOT_FOUND:
                raise _Gone
            _check(response, "fetching an instance", reading=True)
            sink.append(response.iter_bytes(_CHUNK_BYTES))

    def _changed(self, claim: ToFetch) -> ClaimEnded:
        left = (self._list_series(series.pacs_series_id) for series in claim.series)
        if all(instances is None for instances in left):
            return ClaimExpired("the study was deleted while it was being read")
        return ClaimSuperseded("an instance was deleted while the study was being read")

    def _instance_id(self, sop_instance_uid: str) -> str | None:
        checked_uid(sop_instance_uid)
        found = self._post("/tools/lookup", "looking for a report", content=sop_instance_uid.encode())
        hits = _parsed(found, "looking for a report")
        return next((checked_pacs_id(one["ID"]) for one in hits if one["Type"] == "Instance"), None)

    def _json(self, path: str, doing: str) -> dict[str, Any]:
        response = self._get(path, doing)
        if response is None:
            msg = f"{doing}: {path} is not there; expected Orthanc's REST interface at {self._http.base_url}"
            raise PacsUnavailable(msg)
        return dict(_parsed(response, doing))

    def _get(self, path: str, doing: str) -> httpx.Response | None:
        with _translated(doing):
            response = self._http.get(path)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return _check(response, doing, reading=True)

    def _post(self, path: str, doing: str, **body: Any) -> httpx.Response:
        with _translated(doing):
            response = self._http.post(path, **body)
        return _check(response, doing, reading=False)


class _Gone(Exception):
    """An instance vanished between listing and reading."""


def _fetched_ahead(
    pool: ThreadPoolExecutor, instances: Sequence[_Listed], small: Any, window: int
) -> Iterator[tuple[_Listed, Future[bytes] | None]]:
    """Every instance in order; small ones with a future that started at most ``window`` places ago."""

    def begin(instance: _Listed) -> tuple[_Listed, Future[bytes] | None]:
        return instance, pool.submit(small, instance) if instance.size_bytes <= _AHEAD_BYTES else None

    waiting = iter(instances)
    started = [begin(instance) for instance in islice(waiting, window)]
    try:
        while started:
            yield started.pop(0)
            started.extend(begin(instance) for instance in islice(waiting, 1))
    finally:
        for _, future in started:
            if future is not None:
                future.cancel()


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError) as error:
        translated = from_foreign(error, doing)
        assert translated is not None
        raise translated from None


def _check(response: httpx.Response, doing: str, *, reading: bool) -> httpx.Response:
    """Return a good response; raise what the status code means.

    A failure while reading is about this one object (its file may be damaged) and ends after some tries; a failure
    while writing is mostly a full disk and is waited for.
    """
    if response.is_success:
        return response
    status = response.status_code
    error_class: type[PacsError] = PacsRefused
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        error_class = PacsFault if reading else PacsUnavailable
    error_class = _GET_STATUS.get(status, error_class)
    msg = f"{doing}: the PACS answers {status} {response.reason_phrase}"
    raise error_class(msg)


def _parsed(response: httpx.Response, doing: str) -> Any:
    try:
        return response.json()
    except ValueError:
        msg = f"{doing}: the answer is not JSON; is {response.request.url.copy_with(userinfo=b'')} an Orthanc?"
        raise PacsUnavailable(msg) from None


def _listed(entry: dict[str, Any]) -> _Listed:
    return _Listed(
        sop_instance_uid=str(entry["MainDicomTags"]["SOPInstanceUID"]),
        pacs_id=checked_pacs_id(entry["ID"]),
        size_bytes=int(entry["FileSize"]),
    )
