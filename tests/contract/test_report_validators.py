"""Every kind of report, on every kind of evidence, before validators that are not ours."""

from __future__ import annotations

import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from engines.predictors.similarity import Similarity
from engines.records import Modality
from stream_processors.cross_modal import CrossModalFinding
from stream_processors.reports.context import SUPPORTED_SOP_CLASSES
from stream_processors.reports.measurement_report import build_reports, encode
from stream_processors.reports.validate import FAST, standing_complaints
from tests.doubles.reports import ANSWERS, make_context, make_header, make_prediction

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")
TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")


def plain(header: Dataset) -> None:
    """A complete header."""


def bare(header: Dataset) -> None:
    """No type 2 attribute at all."""
    for keyword in (*TYPE_2, "AccessionNumber", "ReferringPhysicianName", "Manufacturer", "ManufacturerModelName"):
        delattr(header, keyword)


def latin(header: Dataset) -> None:
    """Umlauts in Latin-1."""
    header.PatientName, header.StudyDescription = "Müller^Jürgen", "Größe"


def japanese(header: Dataset) -> None:
    """Three component groups, first value of the character set empty."""
    header.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    header.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def odd_sex(header: Dataset) -> None:
    """A sex outside the enumerated values, and dates of another century's format."""
    header.PatientSex, header.PatientBirthDate, header.StudyTime = "X", "1950.01.02", "03:04:05"


def malformed_uid(header: Dataset) -> None:
    """An instance UID with a leading zero in a component."""
    header.SOPInstanceUID = header.SOPInstanceUID + ".01"


SIMILAR = Similarity(cosine=-0.2, own_percent=1.0, others_percent=40.0, below_limit=True)
VARIANTS: tuple[Callable[[Dataset], None], ...] = (bare, latin, japanese, odd_sex, malformed_uid)
CASES = [(modality, answer, plain) for modality in Modality for answer in ANSWERS]
CASES += [(modality, answer, odd) for modality in Modality for answer in ("answered", "refused") for odd in VARIANTS]


@pytest.fixture(scope="session")
def validators() -> None:
    """The fast validators; absent ones skip, and fail in continuous integration."""
    missing = [f"{validator.name} (Debian: {validator.package})" for validator in FAST if not validator.is_available]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"validators are missing: {', '.join(missing)}")
    if missing:
        pytest.skip(f"validators are missing: {', '.join(missing)}")


def complaints(modality: Modality, answer: str, headers: list[Dataset], folder: Path, **context: Any) -> list[str]:
    """What stands against report and companion."""
    found = []
    documents = build_reports(make_prediction(modality, answer, headers), make_context(modality, headers, **context))
    for document in documents:
        path = folder / f"{document.SOPInstanceUID}.dcm"
        path.write_bytes(encode(document))
        found += [complaint.line for complaint in standing_complaints(path, FAST)]
    return found


@pytest.mark.usefixtures("validators")
@pytest.mark.parametrize(("modality", "answer", "variant"), CASES)
def test_every_report_passes(
    modality: Modality, answer: str, variant: Callable[[Dataset], None], tmp_path: Path
) -> None:
    """No error of dciodvfy, and dcmtk reads and renders both documents."""
    headers = [make_header(modality, number) for number in (1, 2)]
    for header in headers:
        variant(header)
    assert complaints(modality, answer, headers, tmp_path) == []


@pytest.mark.usefixtures("validators")
@pytest.mark.parametrize("sop_class_uid", SUPPORTED_SOP_CLASSES)
@pytest.mark.parametrize("modality", Modality)
def test_the_same_tree_is_legal_in_every_supported_class(
    modality: Modality, sop_class_uid: str, tmp_path: Path
) -> None:
    """A site whose archive lacks Comprehensive SR can choose another class."""
    headers = [make_header(modality)]
    assert complaints(modality, "answered", headers, tmp_path, sop_class_uid=sop_class_uid) == []


@pytest.mark.usefixtures("validators")
@pytest.mark.parametrize("modality", [Modality.CMR, Modality.ECG])
@pytest.mark.parametrize("said", [{"similarity": SIMILAR}, {"not_compared": "there is no short-axis cine (é)"}])
def test_a_cross_modal_check_passes(modality: Modality, said: dict[str, Any], tmp_path: Path) -> None:
    """What the check adds is legal, compared or not."""
    finding = CrossModalFinding(
        partner_study_instance_uid="1.2.9", partner_modality=Modality.ECG, days_apart=2, bundle_sha256="e" * 64, **said
    )
    assert complaints(modality, "answered", [make_header(modality)], tmp_path, cross_modal=finding) == []


@pytest.mark.usefixtures("validators")
@pytest.mark.sample_data
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(
    ("modality", "file"),
    [
        (Modality.ECHO, "us/echo_a4c_acuson_sequoia_65f_jpegbaseline.dcm"),
        (Modality.ECG, "ecg/dicom/mortara_12lead_1000hz.dcm"),
    ],
)
def test_reports_on_real_headers_pass(
    modality: Modality, file: str, answer: str, tmp_path: Path, sample_data: Path
) -> None:
    """Headers that devices wrote give reports without error."""
    header = dcmread(sample_data / file, stop_before_pixels=True)
    assert complaints(modality, answer, [header], tmp_path) == []


@pytest.mark.usefixtures("validators")
@pytest.mark.sample_data
def test_a_malformed_study_uid_is_the_only_complaint(tmp_path: Path, sample_data: Path) -> None:
    """A report cannot leave the study of its source, so it inherits the study's malformed UID and nothing else."""
    header = dcmread(sample_data / "ecg/dicom/ecgtoolkit_12lead_500hz.dcm", stop_before_pixels=True)
    found = complaints(Modality.ECG, "answered", [header], tmp_path)
    assert len(found) == 2
    assert all("</StudyInstanceUID(0020,000d)[1]>" in line for line in found)


@pytest.mark.usefixtures("validators")
@pytest.mark.sample_data
@pytest.mark.parametrize("answer", ["answered", "refused"])
def test_reports_on_a_real_stack_pass(answer: str, tmp_path: Path, sample_data: Path) -> None:
    """A stack in which many instances have malformed UIDs gives a report without error."""
    assert complaints(Modality.CMR, answer, real_stack(sample_data), tmp_path) == []


def real_stack(sample_data: Path) -> list[Dataset]:
    """Headers of the first twenty images of a real short-axis stack."""
    headers = []
    path = sample_data / "cmr" / "SCD0000301_SC-HF-I-4" / "dicom.tar.xz"
    with lzma.open(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                headers.append(dcmread(DicomBytesIO(content.read()), stop_before_pixels=True))
            if len(headers) == 20:
                return headers
    return headers


@pytest.mark.usefixtures("validators")
def test_the_validators_find_a_broken_report(tmp_path: Path) -> None:
    """A report without completion flag and with an illegal relationship does not pass."""
    headers = [make_header(Modality.ECHO)]
    report, _ = build_reports(make_prediction(Modality.ECHO, "answered", headers), make_context(Modality.ECHO, headers))
    del report.CompletionFlag
    report.ContentSequence[-1].RelationshipType = "SELECTED FROM"
    path = tmp_path / "broken.dcm"
    path.write_bytes(encode(report))
    assert {complaint.validator for complaint in standing_complaints(path, FAST)} == {"dciodvfy", "dsrdump", "dsr2html"}
