"""Studies of the same patient in another modality, asked of Orthanc's REST interface in memory."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from engines.records import Modality
from stream_processors.errors import PacsRefused, PacsUnavailable
from stream_processors.pacs import partners
from stream_processors.pacs.client import Partner
from stream_processors.pacs.orthanc_rest import OrthancRest
from stream_processors.settings import RestSettings

OWN = "1.2.3"
CANARY = "CANARY-ID-77"


def _id(number: int) -> str:
    return f"{number:08x}-00000000-00000000-00000000-00000000"


class Orthanc:
    """Answers like Orthanc 1.10.1, wildcards in a Patient ID included; each study has one series.

    ``broken`` answers with a status code instead, by the start of a path.
    """

    def __init__(self) -> None:
        self.studies: list[dict[str, Any]] = []
        self.series: dict[str, list[dict[str, Any]]] = {}
        self.issuers: dict[str, str] = {}
        self.asked: list[httpx.Request] = []
        self.broken: dict[str, int] = {}

    def add(
        self,
        uid: str,
        modality: str,
        study_date: str = "20260102",
        *,
        patient_id: str = CANARY,
        issuer: str = "",
        instances: int = 1,
        stable: bool = True,
    ) -> None:
        number = 100 * (len(self.studies) + 1)
        held = [_id(number + each) for each in range(2, 2 + instances)]
        study = {"StudyInstanceUID": uid, **({"StudyDate": study_date} if study_date else {})}
        self.studies.append(
            {
                "ID": _id(number),
                "IsStable": stable,
                "MainDicomTags": study,
                "PatientMainDicomTags": {"PatientID": patient_id, "PatientName": "CANARY^BIRD"},
            }
        )
        self.series[_id(number)] = [
            {"ID": _id(number + 1), "MainDicomTags": {"Modality": modality}, "Instances": held},
            {"ID": _id(number + 50), "MainDicomTags": {"Modality": "SR"}, "Instances": [_id(number + 51)]},
        ]
        self.issuers |= dict.fromkeys(held, issuer) if issuer else {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        path = request.url.path
        status = next((code for start, code in self.broken.items() if path.startswith(start)), None)
        if status is not None:
            return httpx.Response(status)
        if path == "/tools/find":
            return httpx.Response(200, json=self._found(json.loads(request.content)))
        _, kind, pacs_id, *rest = path.split("/")
        if (kind, rest) == ("studies", ["series"]) and pacs_id in self.series:
            return httpx.Response(200, json=self.series[pacs_id])
        if (kind, rest) == ("instances", ["content", "0010-0021"]) and pacs_id in self.issuers:
            return httpx.Response(200, content=self.issuers[pacs_id].encode() + b" ")
        return httpx.Response(404)

    def _found(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        assert (asked["Level"], asked["Expand"], asked["CaseSensitive"]) == ("Study", True, True)
        query = asked["Query"]
        if "StudyInstanceUID" in query:
            return [
                one for one in self.studies if one["MainDicomTags"]["StudyInstanceUID"] == query["StudyInstanceUID"]
            ]
        first, last = query["StudyDate"].split("-")
        wanted = query["PatientID"].partition("*")[0]
        return [
            one
            for one in self.studies
            if one["PatientMainDicomTags"]["PatientID"].startswith(wanted)
            and first <= one["MainDicomTags"].get("StudyDate", "") <= last
        ]


@pytest.fixture
def orthanc() -> Orthanc:
    """The ECG that is asked about, and nothing beside it."""
    made = Orthanc()
    made.add(OWN, "ECG")
    return made


def ask(orthanc: Orthanc, window_days: int = 30, modality: Modality = Modality.CMR) -> tuple[Partner, ...]:
    """The partners the client finds."""
    client = OrthancRest(
        RestSettings(url="http://pacs.example:8042"), largest_study_bytes=1, transport=httpx.MockTransport(orthanc)
    )
    return client.partners_of(OWN, modality, window_days=window_days)


def uids(found: tuple[Partner, ...]) -> list[str]:
    """Their studies, in order."""
    return [partner.study_instance_uid for partner in found]


def test_a_study_of_the_same_patient_is_found(orthanc: Orthanc) -> None:
    """Only the series of the modality that is asked for are named, with what they hold and how far apart it is."""
    orthanc.add("1.2.4", "MR", "20260112", instances=3, stable=False)
    (found,) = ask(orthanc)
    assert (found.study_instance_uid, found.days_apart, found.arriving) == ("1.2.4", 10, True)
    assert [(one.pacs_series_id, one.instance_count) for one in found.series] == [(_id(201), 3)]
    assert ask(orthanc, modality=Modality.ECHO) == ()


def test_the_other_order_is_found_too() -> None:
    """An ECG is found for cardiac MR as cardiac MR is for an ECG, in the very study too."""
    orthanc = Orthanc()
    orthanc.add(OWN, "MR")
    orthanc.add("1.2.4", "ECG", "20260101")
    assert uids(ask(orthanc, modality=Modality.ECG)) == ["1.2.4"]
    orthanc.series[_id(100)].append({"ID": _id(9), "MainDicomTags": {"Modality": "ECG"}, "Instances": [_id(10)]})
    found = ask(orthanc, modality=Modality.ECG)
    assert uids(found) == [OWN, "1.2.4"]
    assert [one.pacs_series_id for one in found[0].series] == [_id(9)]


def test_the_nearest_comes_first_then_the_smallest_uid(orthanc: Orthanc) -> None:
    """Before or after does not matter; studies beyond the window are left out."""
    for uid, day in (("1.2.9", "20260105"), ("1.2.8", "20251230"), ("1.2.7", "20260103"), ("1.2.6", "20260109")):
        orthanc.add(uid, "MR", day)
    assert uids(ask(orthanc, window_days=6)) == ["1.2.7", "1.2.8", "1.2.9"]
    assert uids(ask(orthanc, window_days=7)) == ["1.2.7", "1.2.8", "1.2.9", "1.2.6"]
    assert ask(orthanc, window_days=0) == ()


def test_the_search_ends(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many studies of a patient nor an identifier that many share make it long."""
    for number in range(10, 22):
        orthanc.add(f"1.2.{number}", "MR")
    assert len(ask(orthanc)) == partners.MOST_PARTNERS
    monkeypatch.setattr(partners, "MOST_STUDIES", 2)
    assert len(ask(orthanc)) == 2


@pytest.mark.parametrize("patient_id", ["CANARY*", "canary-id-77", "CANARY-ID-777", "CANARY-ID-7", ""])
def test_another_patient_is_never_a_partner(orthanc: Orthanc, patient_id: str) -> None:
    """Patient IDs are compared as they stand, whatever the PACS takes for the same."""
    orthanc.add("1.2.4", "MR", patient_id=patient_id)
    assert ask(orthanc) == ()


def test_a_wildcard_in_an_identifier_selects_nobody_else() -> None:
    """A PACS reads it as a pattern; what it finds is compared with the identifier itself."""
    orthanc = Orthanc()
    orthanc.add(OWN, "ECG", patient_id="CAN*")
    orthanc.add("1.2.4", "MR", patient_id=CANARY)
    orthanc.add("1.2.5", "MR", patient_id="CAN*")
    assert uids(ask(orthanc)) == ["1.2.5"]


@pytest.mark.parametrize(
    ("own", "theirs", "same"), [("A", "B", False), ("A", "A", True), ("", "B", True), ("A", "", True)]
)
def test_two_issuers_are_two_patients(own: str, theirs: str, same: bool) -> None:
    """Where both studies state who gave the identifier, it must be the same one."""
    orthanc = Orthanc()
    orthanc.add(OWN, "ECG", issuer=own)
    orthanc.add("1.2.4", "MR", issuer=theirs)
    assert (uids(ask(orthanc)) == ["1.2.4"]) == same


@pytest.mark.parametrize("changes", [{"study_date": ""}, {"study_date": "2026.01.02"}, {"study_date": "20260231"}])
def test_a_study_without_a_date_has_no_partner(changes: dict[str, str]) -> None:
    """Neither side is compared when nobody can tell how far apart they are."""
    orthanc = Orthanc()
    orthanc.add(OWN, "ECG", **changes)
    orthanc.add("1.2.4", "MR")
    assert ask(orthanc) == ()
    other = Orthanc()
    other.add(OWN, "ECG")
    other.add("1.2.4", "MR", **changes)
    assert ask(other) == ()


def test_a_study_without_a_patient_has_no_partner() -> None:
    """An empty Patient ID would select everybody."""
    orthanc = Orthanc()
    orthanc.add(OWN, "ECG", patient_id="")
    orthanc.add("1.2.4", "MR", patient_id="")
    assert ask(orthanc) == ()
    assert len(orthanc.asked) == 1


@pytest.mark.parametrize("patient_id", ["ID-2", ""])
def test_one_study_of_two_patients_has_no_partner(orthanc: Orthanc, patient_id: str) -> None:
    """Where the PACS holds a study under two patients, or once without one, nobody knows whose it is."""
    orthanc.add(OWN, "ECG", patient_id=patient_id)
    orthanc.add("1.2.4", "MR")
    assert ask(orthanc) == ()


def test_a_window_may_reach_beyond_the_calendar() -> None:
    """A date from a broken clock is no crash."""
    orthanc = Orthanc()
    orthanc.add(OWN, "ECG", "00010105")
    orthanc.add("1.2.4", "MR", "00010106")
    assert uids(ask(orthanc, window_days=36_525)) == ["1.2.4"]


def test_the_patient_is_never_part_of_an_address(orthanc: Orthanc) -> None:
    """The identifier travels in a body; addresses, which proxies write down, hold identifiers of Orthanc only."""
    orthanc.add("1.2.4", "MR")
    (found,) = ask(orthanc)
    assert any(CANARY in request.content.decode() for request in orthanc.asked)
    assert not [request.url for request in orthanc.asked if "CANARY" in str(request.url)]
    assert "CANARY" not in repr(found)


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [("/tools/find", 503, PacsUnavailable), ("/studies", 503, PacsUnavailable), ("/tools/find", 400, PacsRefused)],
)
def test_a_pacs_that_fails_says_so(orthanc: Orthanc, path: str, status: int, error: type[Exception]) -> None:
    """What it answers is told apart as everywhere: wait, or give up."""
    orthanc.add("1.2.4", "MR")
    orthanc.broken[path] = status
    with pytest.raises(error) as caught:
        ask(orthanc)
    assert "CANARY" not in str(caught.value)


def test_a_study_that_the_pacs_describes_oddly_is_no_partner(orthanc: Orthanc) -> None:
    """Whatever an Orthanc leaves out of its answer, no report is lost over it."""
    orthanc.add("1.2.4", "MR")
    orthanc.add("1.2.5", "MR")
    del orthanc.series[_id(200)][0]["MainDicomTags"]
    assert uids(ask(orthanc)) == ["1.2.5"]
    del orthanc.studies[0]["PatientMainDicomTags"]
    assert ask(orthanc) == ()


def test_a_study_that_vanishes_is_no_partner(orthanc: Orthanc) -> None:
    """Deleted between both requests, it is simply not there."""
    orthanc.add("1.2.4", "MR")
    orthanc.series.clear()
    assert ask(orthanc) == ()
