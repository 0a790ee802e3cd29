"""From the headers of the sources to what a report takes over: patient, study, references, acquisition equipment.

Tolerant on input (missing type 2 attributes, any character set, odd sex or dates), strict on output. Patient ID,
accession number and study ID are the PACS's keys: they are copied as they are, however odd. Never touches pixel or
waveform data. Called by ``measurement_report``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.coding import Code
from pydicom.uid import UID

from engines.records import SourceInstance
from stream_processors.reports.codes import ACQUISITION_EQUIPMENT

_KEYS = ("PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID")
_NAMES = ("PatientName", "ReferringPhysicianName")
_DATES = ("PatientBirthDate", "StudyDate")
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_EQUIPMENT = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "StationName")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")  # PS3.5 6.2, VR TM
_OFFSET = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
_LONG_STRING = 64  # PS3.5 6.2, VR LO


@dataclass(frozen=True, kw_only=True, order=True)
class EvidenceInstance:
    """One SOP instance of the evidence sequences (PS3.3 C.17.2.1)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a report takes over from its sources.

    Args:
        subject: Patient and General Study attributes, complete and valid.
        instances: what was looked at, each once, sorted; the study of ``subject`` and perhaps others.
        sources: what the numbers were inferred from, in the order of the prediction.
        unreferenced: number of instances left out because their own UIDs are malformed (PS3.5 9.1): readers of the
            report would reject it for them.
        equipment: one Contributing Equipment item (PS3.3 C.12.1.1.5) for each device that acquired the sources.
        utc_offset: Timezone Offset From UTC that the sources state, ``+0000`` where they state none.
    """

    subject: Dataset
    instances: tuple[EvidenceInstance, ...]
    sources: tuple[SourceInstance, ...]
    unreferenced: int
    equipment: tuple[Dataset, ...]
    utc_offset: str


def normalise_evidence(headers: Sequence[Dataset], sources: Sequence[SourceInstance]) -> Evidence:
    """Read what a report needs; the order of the headers after the first does not matter.

    Args:
        headers: headers of source instances; the study of the first one is the study of the report.
        sources: the instances that were analysed, of that same study.

    Raises:
        ValueError: a header has no Study, Series or SOP Instance UID.
    """
    for header in headers:
        _require_uids(header)
    study_instance_uid = str(headers[0].StudyInstanceUID)
    of_study = [header for header in headers if str(header.StudyInstanceUID) == study_instance_uid]
    of_study.sort(key=lambda header: str(header.SOPInstanceUID))
    instances = _instances(headers, sources, study_instance_uid)
    referable = tuple(sorted(instance for instance in instances if _is_referable(instance)))
    uids = {instance.sop_instance_uid for instance in referable}
    return Evidence(
        subject=_subject(of_study[0]),
        instances=referable,
        sources=tuple(source for source in sources if source.sop_instance_uid in uids),
        unreferenced=len(instances) - len(referable),
        equipment=_equipment(of_study),
        utc_offset=_utc_offset(of_study[0]),
    )


def put(dataset: Dataset, keyword: str, value: object) -> None:
    """Set an element without judging its value: what the PACS uses as a key is not ours to correct."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    dataset[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE)


def first_value(dataset: Dataset, keyword: str) -> str:
    """Value as text without padding, the first one where there are several, empty when absent."""
    value = dataset.get(keyword)
    if isinstance(value, (MultiValue, list, tuple)):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip(" \0")


def _require_uids(header: Dataset) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not header.get(keyword):
            msg = f"a header of the evidence has no {keyword}; a report cannot refer to it: leave it out"
            raise ValueError(msg)


def _subject(header: Dataset) -> Dataset:
    subject = Dataset()
    put(subject, "StudyInstanceUID", str(header.StudyInstanceUID))
    for keyword in _TYPE_2:
        put(subject, keyword, "")
    for keyword in _KEYS:
        if header.get(keyword):
            value = header[keyword].value
            put(subject, keyword, list(value) if isinstance(value, MultiValue) else str(value))
    for keyword in _NAMES:
        put(subject, keyword, first_value(header, keyword))
    for keyword in _DATES:
        put(subject, keyword, _date(first_value(header, keyword)))
    put(subject, "StudyTime", _time(first_value(header, "StudyTime")))
    put(subject, "PatientSex", _sex(first_value(header, "PatientSex")))
    description = first_value(header, "StudyDescription")[:_LONG_STRING]
    if description:
        put(subject, "StudyDescription", description)
    return subject


def _instances(
    headers: Iterable[Dataset], sources: Iterable[SourceInstance], study_instance_uid: str
) -> list[EvidenceInstance]:
    by_uid = {
        str(header.SOPInstanceUID): EvidenceInstance(
            study_instance_uid=str(header.StudyInstanceUID),
            series_instance_uid=str(header.SeriesInstanceUID),
            sop_class_uid=str(header.SOPClassUID),
            sop_instance_uid=str(header.SOPInstanceUID),
        )
        for header in headers
    }
    for source in sources:
        instance = EvidenceInstance(
            study_instance_uid=study_instance_uid,
            series_instance_uid=source.series_instance_uid,
            sop_class_uid=source.sop_class_uid,
            sop_instance_uid=source.sop_instance_uid,
        )
        by_uid.setdefault(source.sop_instance_uid, instance)
    return list(by_uid.values())


def _is_referable(instance: EvidenceInstance) -> bool:
    """True when every UID of the reference is well formed; real archives hold some that are not."""
    uids = (instance.sop_class_uid, instance.series_instance_uid, instance.sop_instance_uid)
    return all(UID(uid).is_valid for uid in uids)


def _equipment(headers: Iterable[Dataset]) -> tuple[Dataset, ...]:
    described = {tuple(first_value(header, keyword)[:_LONG_STRING] for keyword in _EQUIPMENT) for header in headers}
    return tuple(_acquisition_item(values) for values in sorted(described) if values[0])


def _acquisition_item(values: Sequence[str]) -> Dataset:
    item = Dataset()
    for keyword, value in zip(_EQUIPMENT, values, strict=True):
        if value:
            put(item, keyword, value[:16] if keyword == "StationName" else value)
    item.PurposeOfReferenceCodeSequence = [code_item(ACQUISITION_EQUIPMENT)]
    return item


def code_item(code: Code) -> Dataset:
    """Item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _utc_offset(header: Dataset) -> str:
    offset = first_value(header, "TimezoneOffsetFromUTC")
    return offset if _OFFSET.fullmatch(offset) and offset != "-0000" else "+0000"


def _date(text: str) -> str:
    if not re.fullmatch(r"\d{8}", text):
        return ""
    try:
        datetime.strptime(text, "%Y%m%d")  # noqa: DTZ007 - a calendar date has no time zone
    except ValueError:
        return ""
    return text


def _time(text: str) -> str:
    return text if _TIME.fullmatch(text) else ""


def _sex(text: str) -> str:
    return text if text in {"M", "F", "O"} else ""
