"""Looks for studies of the same patient in another modality, through Orthanc's REST interface.

Who the patient is, is asked of the PACS and told to nobody: the identity travels in the body of a request, and what
leaves this module are UIDs and distances in days. Called by ``orthanc_rest``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice
from typing import Any, Final, Protocol

from engines.records import Modality
from orthanc_plugin.wire.events import is_uid
from stream_processors.pacs.client import Partner, PartnerSeries

MOST_PARTNERS: Final = 4
"""A study without the images that are wanted (a knee) is passed over, but not for ever."""
MOST_STUDIES: Final = 32
"""Of one patient, nearest first; an identifier that many share (``ANONYMOUS``) does not make a search through all."""
_STATED: Final = {Modality.CMR: "MR", Modality.ECG: "ECG", Modality.ECHO: "US"}
_ISSUER: Final = "0010-0021"


class Catalogue(Protocol):
    """What is asked of the PACS: ``orthanc_rest.OrthancRest``."""

    def studies(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Studies with these elements."""

    def series_of(self, pacs_study_id: str) -> list[dict[str, Any]]:
        """Series of a study."""

    def element(self, pacs_instance_id: str, tag: str) -> str:
        """One element of an instance."""


@dataclass(frozen=True, kw_only=True)
class _Study:
    """A study as Orthanc describes it."""

    study_instance_uid: str
    pacs_study_id: str
    patient_id: str
    study_date: date
    arriving: bool


def find_partners(
    catalogue: Catalogue, study_instance_uid: str, modality: Modality, *, window_days: int
) -> tuple[Partner, ...]:
    """See ``client.StudyReader.partners_of``; at most ``MOST_PARTNERS`` of them."""
    described = [_study(entry) for entry in catalogue.studies({"StudyInstanceUID": study_instance_uid})]
    known = [study for study in described if study is not None]
    if len(described) != 1 or len(known) != 1:
        return ()  # two patients under one study, or none that is named and dated: nobody is the same patient
    (study,) = known
    return tuple(islice(_partners(catalogue, study, modality, window_days), MOST_PARTNERS))


def _partners(catalogue: Catalogue, study: _Study, modality: Modality, window_days: int) -> Iterator[Partner]:
    issuer = None
    for candidate in _of_same_patient(catalogue, study, window_days):
        series = catalogue.series_of(candidate.pacs_study_id)
        wanted = [one for one in series if _holds(one, modality)]
        if not wanted:
            continue
        issuer = _issuer(catalogue, catalogue.series_of(study.pacs_study_id)) if issuer is None else issuer
        if _differ(issuer, _issuer(catalogue, wanted)):
            continue
        yield Partner(
            study_instance_uid=candidate.study_instance_uid,
            days_apart=_days_apart(study, candidate),
            series=tuple(_series(one) for one in wanted),
            arriving=candidate.arriving,
        )


def _of_same_patient(catalogue: Catalogue, study: _Study, window_days: int) -> list[_Study]:
    """Studies within the window, nearest first.

    The PACS reads ``*``, ``?`` and a backslash in a Patient ID as wildcards (PS3.4 C.2.2.2): what it finds is compared.
    """
    query = {"PatientID": study.patient_id, "StudyDate": _window(study.study_date, window_days)}
    found = [each for entry in catalogue.studies(query) if (each := _study(entry)) is not None]
    same = [each for each in found if each.patient_id == study.patient_id and _days_apart(study, each) <= window_days]
    return sorted(same, key=lambda each: (_days_apart(study, each), each.study_instance_uid))[:MOST_STUDIES]


def _study(entry: Mapping[str, Any]) -> _Study | None:
    """A study, or None where it has no usable UID, patient or date."""
    tags, patient = entry.get("MainDicomTags", {}), entry.get("PatientMainDicomTags", {})
    uid, patient_id = str(tags.get("StudyInstanceUID", "")), str(patient.get("PatientID", "")).strip(" \0")
    study_date = _date(str(tags.get("StudyDate", "")).strip(" \0"))
    if not is_uid(uid) or not patient_id or study_date is None:
        return None
    return _Study(
        study_instance_uid=uid,
        pacs_study_id=str(entry["ID"]),
        patient_id=patient_id,
        study_date=study_date,
        arriving=not entry.get("IsStable", True),
    )


def _date(text: str) -> date | None:
    """A date of the form YYYYMMDD (PS3.5 6.2), or None."""
    try:
        return datetime.strptime(text, "%Y%m%d").date() if len(text) == len("YYYYMMDD") else None  # noqa: DTZ007
    except ValueError:
        return None


def _window(middle: date, days: int) -> str:
    first = date.fromordinal(max(date.min.toordinal(), middle.toordinal() - days))
    last = date.fromordinal(min(date.max.toordinal(), middle.toordinal() + days))
    return f"{first.year:04d}{first:%m%d}-{last.year:04d}{last:%m%d}"


def _days_apart(one: _Study, other: _Study) -> int:
    return abs((one.study_date - other.study_date).days)


def _holds(series: Mapping[str, Any], modality: Modality) -> bool:
    stated = str(series.get("MainDicomTags", {}).get("Modality", "")).strip().upper()
    return stated == _STATED[modality] and bool(series["Instances"])


def _series(entry: Mapping[str, Any]) -> PartnerSeries:
    return PartnerSeries(pacs_series_id=str(entry["ID"]), instance_count=len(entry["Instances"]))


def _issuer(catalogue: Catalogue, series: Sequence[Mapping[str, Any]]) -> str:
    """Issuer of Patient ID, which Orthanc does not keep in its database; empty where the study states none."""
    instances = (str(instance) for each in series for instance in each["Instances"])
    first = next(instances, None)
    return "" if first is None else catalogue.element(first, _ISSUER)


def _differ(issuer: str, other: str) -> bool:
    return bool(issuer) and bool(other) and issuer != other
