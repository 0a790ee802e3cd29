"""The picture of a report: a Secondary Capture of the same study that the report refers to, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import DataElement, dcmread
from pydicom.dataset import Dataset

from engines.decode.headers import header_extract
from engines.predictions import Picture
from engines.predictors.latent_picture import Latents, latent_picture
from engines.records import Modality
from orthanc_plugin.intake import Exclusions, modality_of_series
from stream_processors.reported import content_of
from stream_processors.reports.measurement_report import build_reports, encode, picture_of
from stream_processors.reports.read import read_report, render_tree
from stream_processors.reports.validate import DCIODVFY, FAST, standing_complaints
from tests.doubles.reports import make_context, make_header, make_picture, make_prediction

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


USUAL = [0.70711, 0.70711, 0.0, -0.40825, 0.40825, -0.81650]
"""Rows to the left and back, columns to the feet: a short-axis plane as it is shown."""
MIRRORED = [-0.70711, -0.70711, 0.0, -0.40825, 0.40825, -0.81650]
TURNED = [0.40825, -0.40825, 0.81650, 0.70711, 0.70711, 0.0]


def objects(answer: str = "answered", drawn: Picture | None = None, **header: Any) -> tuple[Dataset, Dataset, Dataset]:
    """Report, companion and picture of a cardiac MR study, after a round trip through bytes."""
    headers = [make_header(Modality.CMR, number, **header) for number in (1, 2)]
    prediction = replace(make_prediction(Modality.CMR, answer, headers), picture=drawn or make_picture())
    context = make_context(Modality.CMR, headers)
    picture = picture_of(prediction, context)
    assert picture is not None
    report, companion, read = (
        dcmread(BytesIO(encode(made))) for made in (*build_reports(prediction, context), picture)
    )
    return report, companion, read


def references(report: Dataset) -> set[str]:
    """Every instance that the evidence sequence lists."""
    return {
        reference.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    }


@pytest.mark.parametrize("answer", ["answered", "undecided"])
def test_the_report_refers_to_its_picture(answer: str) -> None:
    """The group holds one IMAGE item named Visual explanation, and the evidence lists the instance in its series."""
    report, companion, picture = objects(answer)
    (group,) = report.ContentSequence[-1].ContentSequence
    items = [item for item in group.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "130401"]
    (reference,) = [item.ReferencedSOPSequence[0] for item in items]
    assert [item.RelationshipType for item in items] == ["CONTAINS"]
    assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
        picture.SOPClassUID,
        picture.SOPInstanceUID,
    )
    assert references(report) == {"1.2.3.4.1", "1.2.3.4.2", picture.SOPInstanceUID}
    assert read_report(report).picture_sop_instance_uid == picture.SOPInstanceUID
    assert picture.SOPInstanceUID not in references(companion)
    assert "The series AI picture of this study shows what carries the result." in render_tree(companion)


def test_the_report_reads_back_as_without_a_picture() -> None:
    """What the outcome event says does not depend on the picture."""
    headers = [make_header(Modality.CMR, number) for number in (1, 2)]
    prediction = make_prediction(Modality.CMR, "answered", headers)
    plain, _ = build_reports(prediction, make_context(Modality.CMR, headers))
    assert content_of(objects()[0]) == content_of(plain)


def test_the_picture_is_of_the_same_patient_and_study_and_of_its_own_series() -> None:
    """Identity and times are those of the report; modality and series keep it apart from acquired images."""
    report, companion, picture = objects()
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber", "ContentTime", "Manufacturer"):
        assert picture[keyword].value == report[keyword].value
    assert (picture.SOPClassUID, picture.Modality, picture.ConversionType) == (SECONDARY_CAPTURE, "OT", "WSD")
    assert list(picture.ImageType) == ["DERIVED", "SECONDARY"]
    assert len({each.SeriesInstanceUID for each in (report, companion, picture)}) == 3
    assert len({each.SeriesNumber for each in (report, companion, picture)}) == 3
    assert picture.SeriesDescription.startswith("AI picture cmr")
    assert picture.SeriesDescription.endswith("not for clinical use")


def test_the_picture_says_what_it_is_and_where_it_comes_from() -> None:
    """Caption, sources, qualification, and no text that names a patient."""
    _, _, picture = objects()
    assert picture.DerivationDescription == "Red speaks for it, blue against it."
    assert [item.ReferencedSOPInstanceUID for item in picture.SourceImageSequence] == ["1.2.3.4.1", "1.2.3.4.2"]
    assert picture.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert (picture.BurnedInAnnotation, picture.ContentQualification) == ("NO", "RESEARCH")
    assert picture.ImageComments == "AI output, not reviewed"


def test_the_pixels_are_those_of_the_picture() -> None:
    """Rows, columns and every colour come back, also from an odd number of bytes."""
    _, _, picture = objects()
    assert np.array_equal(picture.pixel_array, make_picture().rgb_HW3)
    assert len(picture.PixelData) % 2 == 0


def test_a_clinical_engine_does_not_say_research() -> None:
    """The qualification follows the intended use of the model."""
    headers = [make_header(Modality.CMR)]
    prediction = replace(make_prediction(Modality.CMR, "answered", headers), picture=make_picture())
    prediction = replace(prediction, model=replace(prediction.model, intended_use="Assists the reader"))
    picture = picture_of(prediction, make_context(Modality.CMR, headers))
    assert picture is not None
    assert "ContentQualification" not in picture


def latents_drawn() -> Picture:
    """The picture of a network with latents."""
    poses = np.zeros((4, 3))
    latents = Latents(images_FSS=np.zeros((2, 16, 16)), poses_N3=poses, relevance_FN=np.ones((2, 4)))
    return latent_picture(latents, condition="c", warning="w")


@pytest.mark.parametrize("stored", [USUAL, MIRRORED, TURNED])
def test_the_picture_says_which_way_the_patient_lies(stored: list[float]) -> None:
    """However the images were stored: letters are drawn, the attribute says the same, the caption explains them."""
    _, _, picture = objects(drawn=latents_drawn(), ImageOrientationPatient=stored)
    assert list(picture.PatientOrientation) == ["LP", "FRP"]
    assert not np.array_equal(picture.pixel_array, latents_drawn().rgb_HW3)
    assert picture.DerivationDescription.endswith("H head, F foot.")


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        ["1", "0", "0"],
        [1.0, 0, 0, 1.0, 0, 0],
        [0.57735, -0.57735, -0.57735, 0.40825, -0.40825, 0.81650],
    ],
)
def test_an_unknown_view_is_not_marked(stored: list[Any] | None) -> None:
    """Without a sound orientation of a short-axis plane nothing is drawn or stated; the report is still written."""
    header = {} if stored is None else {"ImageOrientationPatient": stored}
    _, _, picture = objects(drawn=latents_drawn(), **header)
    assert not picture.PatientOrientation
    assert np.array_equal(picture.pixel_array, latents_drawn().rgb_HW3)


@pytest.mark.parametrize("element", [("DS", 1.0), ("LO", ["left"] * 6), ("SQ", [Dataset()])])
def test_an_orientation_of_no_numbers_is_not_marked(element: tuple[str, Any]) -> None:
    """A header that holds something else under the tag of the orientation costs the marks, not the report."""
    header = make_header(Modality.CMR)
    header[0x00200037] = DataElement(0x00200037, *element)
    prediction = replace(make_prediction(Modality.CMR, "answered", [header]), picture=latents_drawn())
    picture = picture_of(prediction, make_context(Modality.CMR, [header]))
    assert picture is not None
    assert not picture.PatientOrientation


def test_the_first_source_decides_the_view() -> None:
    """Another instance of the study, of another plane, has no say."""
    headers = [
        make_header(Modality.CMR, 1, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        make_header(Modality.CMR, 2, ImageOrientationPatient=USUAL),
    ]
    prediction = replace(make_prediction(Modality.CMR, "answered", headers[1:]), picture=latents_drawn())
    picture = picture_of(prediction, make_context(Modality.CMR, headers))
    assert picture is not None
    assert list(picture.PatientOrientation) == ["LP", "FRP"]


def test_a_picture_without_panels_has_no_orientation() -> None:
    """What another engine draws is in a view of its own."""
    _, _, picture = objects(ImageOrientationPatient=USUAL)
    assert not picture.PatientOrientation
    assert np.array_equal(picture.pixel_array, make_picture().rgb_HW3)


def test_the_headers_that_reach_a_report_hold_the_orientation() -> None:
    """The extract that leaves the child process keeps what the marks follow from."""
    content = header_extract(make_header(Modality.CMR, ImageOrientationPatient=USUAL))
    assert content is not None
    assert list(dcmread(BytesIO(content)).ImageOrientationPatient) == USUAL


@pytest.mark.parametrize(("stated", "expected"), [(None, "00"), ("00", "00"), ("01", "01")])
def test_a_lossy_source_makes_a_lossy_picture(stated: str | None, expected: str) -> None:
    """What was once compressed with loss stays so in everything derived from it."""
    _, _, picture = objects(**({} if stated is None else {"LossyImageCompression": stated}))
    assert picture.LossyImageCompression == expected


def test_the_picture_follows_from_the_arguments() -> None:
    """Same study, same engine: same bytes; another engine: other UIDs."""
    one, two = (objects() for _ in range(2))
    assert [encode(made) for made in one] == [encode(made) for made in two]
    headers = [make_header(Modality.CMR, number) for number in (1, 2)]
    prediction = replace(make_prediction(Modality.CMR, "answered", headers), picture=make_picture())
    other = picture_of(prediction, make_context(Modality.CMR, headers, model_version="2"))
    assert other is not None
    assert other.SOPInstanceUID != one[2].SOPInstanceUID
    assert other.SeriesInstanceUID != one[2].SeriesInstanceUID


def test_the_picture_never_triggers_the_engines() -> None:
    """The intake drops it by its manufacturer, and would find no modality in it without."""
    _, _, picture = objects()
    header = {"Modality": picture.Modality, "Manufacturer": picture.Manufacturer}
    assert modality_of_series(header, picture.SOPClassUID, Exclusions()) is None
    assert modality_of_series({**header, "Manufacturer": "other"}, picture.SOPClassUID, Exclusions()) is None


@pytest.mark.parametrize("answer", ["answered", "abstained", "refused"])
def test_without_a_picture_nothing_refers_to_one(answer: str) -> None:
    """An engine that draws none leaves no trace of one."""
    headers = [make_header(Modality.CMR)]
    prediction, context = make_prediction(Modality.CMR, answer, headers), make_context(Modality.CMR, headers)
    assert picture_of(prediction, context) is None
    report, companion = build_reports(prediction, context)
    assert "Visual explanation" not in render_tree(report)
    assert "AI picture" not in render_tree(companion)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"PatientName": None, "PatientSex": "X", "StudyTime": "03:04:05"},
        {"SOPInstanceUID": "1.2.3.4.01"},
        {"drawn": latents_drawn(), "ImageOrientationPatient": USUAL},
    ],
)
def test_a_validator_that_is_not_ours_accepts_all_three(header: dict[str, Any], tmp_path: Path) -> None:
    """No error of dciodvfy in report, companion and picture, also on odd headers; dcmtk reads the documents."""
    missing = [validator.package for validator in FAST if not validator.is_available]
    if missing:
        pytest.skip(f"validators are missing (Debian: {', '.join(missing)})")
    for name, made in zip(("report", "companion", "picture"), objects(**header), strict=True):
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(encode(made))
        found = standing_complaints(path, [DCIODVFY] if name == "picture" else FAST)
        assert [complaint.line for complaint in found] == []
