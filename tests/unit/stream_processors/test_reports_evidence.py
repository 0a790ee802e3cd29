"""Headers as archives really hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from engines.records import Modality
from stream_processors.reports.evidence import normalise_evidence
from stream_processors.reports.measurement_report import build_reports, encode
from stream_processors.reports.read import render_tree
from tests.doubles.reports import make_context, make_header, make_prediction, make_source

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")
CHARSETS = ["chrFrenMulti.dcm", "chrH31.dcm", "chrH32.dcm", "chrI2.dcm", "chrJapMulti.dcm", "chrKoreanMulti.dcm"]
CHARSETS += ["chrJapMultiExplicitIR6.dcm", "chrX1.dcm", "chrX2.dcm"]
TYPE_2 = ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"]
TYPE_2 += ["AccessionNumber", "ReferringPhysicianName"]


def report_on(header: Dataset) -> Dataset:
    """Answered echo report on one header, after a round trip through bytes."""
    prediction = make_prediction(Modality.ECHO, "answered", [header])
    report, _ = build_reports(prediction, make_context(Modality.ECHO, [header]))
    return dcmread(DicomBytesIO(encode(report)))


@pytest.mark.parametrize("keyword", TYPE_2)
def test_a_missing_type_2_attribute_becomes_empty(keyword: str) -> None:
    """The report has every attribute that must be there, without inventing a value."""
    report = report_on(make_header(Modality.ECHO, **{keyword: None}))
    assert keyword in report
    assert not report[keyword].value


@pytest.mark.parametrize(
    ("keyword", "odd", "expected"),
    [
        ("PatientSex", "W", ""),
        ("PatientSex", "O", "O"),
        ("PatientBirthDate", "1950.01.02", ""),
        ("PatientBirthDate", "19500231", ""),
        ("StudyTime", "25", ""),
        ("StudyTime", "0304", "0304"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_odd_values_are_left_out(keyword: str, odd: str, expected: str) -> None:
    """A sex, date or time outside its value set is not passed on."""
    assert report_on(make_header(Modality.ECHO, **{keyword: odd}))[keyword].value == expected


@pytest.mark.filterwarnings("ignore:The value length")
def test_the_keys_of_the_archive_are_never_changed() -> None:
    """An overlong patient ID is copied as it is: a shortened one could be another patient."""
    from pydicom import config
    from pydicom.dataelem import DataElement

    header = make_header(Modality.ECHO)
    header[0x00100020] = DataElement(0x00100020, "LO", "X" * 70, validation_mode=config.IGNORE)
    assert report_on(header).PatientID == "X" * 70


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 192", "Иванов^Иван"),
    ],
)
def test_names_survive_every_character_set(charset: str | list[str], name: str) -> None:
    """Whatever the source's character set, the report says the same name in UTF-8."""
    header = make_header(Modality.ECHO)
    header.SpecificCharacterSet = charset
    header.PatientName = name
    report = report_on(header)
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert str(report.PatientName) == name


@pytest.mark.sample_data
@pytest.mark.parametrize("file", CHARSETS)
def test_names_of_real_files_survive(sample_data: Path, file: str) -> None:
    """Real multi-byte files give the name that pydicom reads from them."""
    source = dcmread(sample_data / "malformed" / "charset" / file, stop_before_pixels=True)
    header = make_header(Modality.ECHO)
    header.SpecificCharacterSet = source.SpecificCharacterSet
    header.PatientName = source.PatientName
    assert str(report_on(header).PatientName) == str(source.PatientName)


def test_malformed_uids_are_not_referred_to_and_counted() -> None:
    """Readers reject a whole report for one malformed UID: it is left out, and the report says how many were."""
    headers = [make_header(Modality.CMR, 1), make_header(Modality.CMR, 2)]
    headers[1].SOPInstanceUID = "1.2.3.04"
    sources = [make_source(header, Modality.CMR) for header in headers]
    evidence = normalise_evidence(headers, sources)
    assert [instance.sop_instance_uid for instance in evidence.instances] == ["1.2.3.4.1"]
    assert (len(evidence.sources), evidence.unreferenced) == (1, 1)
    prediction = make_prediction(Modality.CMR, "answered", headers)
    _, companion = build_reports(prediction, make_context(Modality.CMR, headers))
    assert "1 of 2 source instances have malformed UIDs" in render_tree(companion)


def test_a_report_without_any_referable_source_still_stands() -> None:
    """The number is reported, without region and without references."""
    headers = [make_header(Modality.ECHO)]
    headers[0].SOPInstanceUID = "1.2.3.04"
    report = report_on(headers[0])
    assert "CurrentRequestedProcedureEvidenceSequence" not in report
    assert "38.2" in str(report)


def test_sources_are_evidence_even_without_their_headers() -> None:
    """An analysed instance whose header was not kept is listed all the same."""
    headers = [make_header(Modality.CMR, number) for number in (1, 2)]
    evidence = normalise_evidence(headers[:1], [make_source(header, Modality.CMR) for header in headers])
    assert [instance.sop_instance_uid for instance in evidence.instances] == ["1.2.3.4.1", "1.2.3.4.2"]


def test_instances_of_another_study_are_other_evidence() -> None:
    """What belongs to another study is listed as such, and the report stays in the study of the first header."""
    headers = [make_header(Modality.ECHO, 1), make_header(Modality.ECHO, 2, StudyInstanceUID="1.2.9")]
    prediction = make_prediction(Modality.ECHO, "abstained", headers[:1])
    report, _ = build_reports(prediction, make_context(Modality.ECHO, headers))
    assert report.StudyInstanceUID == "1.2.3"
    assert report.PertinentOtherEvidenceSequence[0].StudyInstanceUID == "1.2.9"


def test_a_header_without_uids_is_refused() -> None:
    """A report cannot refer to an instance without UIDs."""
    with pytest.raises(ValueError, match="SeriesInstanceUID"):
        normalise_evidence([make_header(Modality.ECHO, SeriesInstanceUID=None)], [])
