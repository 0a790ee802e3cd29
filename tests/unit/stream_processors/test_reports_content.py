"""What a report contains, item by item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from engines.errors import RefusalCode
from engines.predictions import Abstention, Estimate, Interval
from engines.records import Modality
from stream_processors.reports import codes
from stream_processors.reports.measurement_report import build_reports, encode
from stream_processors.reports.read import read_report, render_tree
from stream_processors.reports.wording import result_sentences
from tests.doubles.reports import ANSWERS, make_context, make_header, make_prediction

CASES = [(modality, answer) for modality in Modality for answer in ANSWERS]


def build(modality: Modality, answer: str = "answered") -> tuple[Dataset, Dataset]:
    """Report and companion on three headers, after a round trip through bytes."""
    headers = [make_header(modality, number) for number in (1, 2, 3)]
    documents = build_reports(make_prediction(modality, answer, headers), make_context(modality, headers))
    report, companion = (dcmread(DicomBytesIO(encode(document))) for document in documents)
    return report, companion


def walk(item: Dataset) -> Iterator[Dataset]:
    """Every content item of a tree, root first."""
    yield item
    for child in item.get("ContentSequence", ()):
        yield from walk(child)


def children(item: Dataset, value: str) -> list[Dataset]:
    """Children of one concept."""
    return [child for child in item.get("ContentSequence", ()) if child.ConceptNameCodeSequence[0].CodeValue == value]


def groups(report: Dataset) -> list[Dataset]:
    """Measurement groups of a report."""
    return [group for part in children(report, "126010") for group in children(part, "125007")]


@pytest.mark.parametrize(("modality", "answer"), CASES)
def test_flags_say_complete_but_neither_verified_nor_final(modality: Modality, answer: str) -> None:
    """No software signs off a report."""
    for document in build(modality, answer):
        flags = (document.CompletionFlag, document.VerificationFlag, document.PreliminaryFlag)
        assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
        assert document.CompletionFlagDescription == "AI output, not reviewed"
        assert "VerifyingObserverSequence" not in document


@pytest.mark.parametrize(("modality", "answer"), CASES)
def test_no_container_is_continuous(modality: Modality, answer: str) -> None:
    """Viewers run the items of continuous containers together."""
    for document in build(modality, answer):
        assert {item.ContinuityOfContent for item in walk(document) if item.ValueType == "CONTAINER"} == {"SEPARATE"}


@pytest.mark.parametrize(("modality", "answer"), CASES)
def test_every_reference_is_in_the_evidence(modality: Modality, answer: str) -> None:
    """No item refers to an instance that the evidence sequence does not list."""
    report, _ = build(modality, answer)
    listed = {
        reference.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    }
    referred = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in walk(report)
        if "ReferencedSOPSequence" in item
    }
    assert referred <= listed
    assert len(listed) == 3
    assert bool(referred) == (answer in {"answered", "undecided"})


@pytest.mark.parametrize(("modality", "answer"), CASES)
def test_groups_and_numbers_are_what_viewers_can_read(modality: Modality, answer: str) -> None:
    """OHIF throws on a group without tracking identifier and UID, and on a number without children."""
    report, _ = build(modality, answer)
    assert bool(groups(report)) == (answer in {"answered", "undecided"})
    for group in groups(report):
        assert len(children(group, "112039")) == 1
        assert len(children(group, "112040")) == 1
        numbers = [item for item in group.ContentSequence if item.ValueType == "NUM"]
        assert numbers
        assert all(len(number.ContentSequence) >= 1 for number in numbers)


@pytest.mark.parametrize("modality", Modality)
def test_every_group_names_the_algorithm(modality: Modality) -> None:
    """Name, version, family, bundle, weights and runtime stand beside every number."""
    report, _ = build(modality)
    for group in groups(report):
        parameters = {item.TextValue.partition("=")[0] for item in children(group, "111002")}
        expected = {"bundle_sha256", "weights_sha256", "preprocess_sha256", "runtime", "precision", "training_data"}
        assert parameters >= expected | {"intended_use", "input_digest", "out_of_distribution_score"}
        assert children(group, "111001")[0].TextValue == f"purkinje-{modality.value}"
        assert children(group, "111000")[0].ConceptCodeSequence[0].CodeValue == "123110"


@pytest.mark.parametrize("modality", [Modality.ECHO, Modality.CMR])
def test_the_region_group_stands_alone_and_points_to_one_frame(modality: Modality) -> None:
    """The viewport opens the first group and stops at one without coordinates: there is one, on one frame."""
    report, _ = build(modality)
    (group,) = groups(report)
    assert group.ContentTemplateSequence[0].TemplateIdentifier == "1410"
    (region,) = children(group, codes.IMAGE_REGION.value)
    points = list(zip(region.GraphicData[::2], region.GraphicData[1::2], strict=True))
    assert points[::2] == [(40, 20), (600, 20), (600, 460), (40, 460), (40, 20)]
    # OHIF offers to edit a polyline of four or five points.
    assert points[1::2] == [(320, 20), (600, 240), (320, 460), (40, 240)]
    reference = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == "1.2.3.4.1"
    assert reference.get("ReferencedFrameNumber") == (3 if modality is Modality.ECHO else None)


def test_an_unstated_region_is_the_whole_frame() -> None:
    """Without a stated region the engine looked at the whole frame, and the report says so."""
    headers = [make_header(Modality.ECHO)]
    prediction = replace(make_prediction(Modality.ECHO, "answered", headers), region_px=None)
    report, _ = build_reports(prediction, make_context(Modality.ECHO, headers))
    (region,) = children(groups(report)[0], codes.IMAGE_REGION.value)
    assert max(float(value) for value in region.GraphicData) == 640


def test_without_rows_and_columns_nothing_is_drawn() -> None:
    """No coordinates are invented where the frame's size is unknown."""
    headers = [make_header(Modality.ECHO, Rows=None)]
    prediction = replace(make_prediction(Modality.ECHO, "answered", headers), region_px=None)
    report, _ = build_reports(prediction, make_context(Modality.ECHO, headers))
    (group,) = groups(report)
    assert group.ContentTemplateSequence[0].TemplateIdentifier == "1501"
    assert not [item for item in walk(report) if item.ValueType == "SCOORD"]


def test_ecg_sources_are_waveform_items_never_images() -> None:
    """Every number of an ECG report points to the multiplex group and channels it comes from."""
    report, _ = build(Modality.ECG)
    assert len(groups(report)) == 7
    assert not [item for item in walk(report) if item.ValueType == "IMAGE"]
    for group in groups(report):
        for number in [item for item in group.ContentSequence if item.ValueType == "NUM"]:
            (waveform, *_rest) = [item for item in number.ContentSequence if item.ValueType == "WAVEFORM"]
            assert waveform.RelationshipType == "INFERRED FROM"
            assert list(waveform.ReferencedSOPSequence[0].ReferencedWaveformChannels) == [1, 0]


def test_ecg_estimates_say_that_they_are_inferred() -> None:
    """Tracking identifier and derivation keep a reader from taking the number for a measurement."""
    report, _ = build(Modality.ECG)
    function = groups(report)[0]
    assert "inferred from ECG" in children(function, "112039")[0].TextValue
    (derivation,) = children(children(function, "10230-1")[0], "121401")
    assert derivation.ConceptCodeSequence[0].CodeMeaning == "Estimated"


@pytest.mark.parametrize(
    ("answer", "presence", "risk"),
    [("answered", "Present", "High risk"), ("undecided", "Undetermined", "Uncertain risk")],
)
def test_a_finding_never_stands_without_its_presence(answer: str, presence: str, risk: str) -> None:
    """A bare finding would read as a statement that it is there."""
    report, _ = build(Modality.CMR, answer)
    (group,) = groups(report)
    assert children(group, "121071")[0].ConceptCodeSequence[0].CodeValue == codes.IMPAIRED_LV_FUNCTION.value
    assert children(group, "121052")[0].ConceptCodeSequence[0].CodeMeaning == presence
    assert children(group, "395112001")[0].ConceptCodeSequence[0].CodeMeaning == risk


def test_a_bundle_of_another_threshold_says_so() -> None:
    """The same finding at 35 %: label, parameters and the values read back name 35, and nothing says 40."""
    headers = [make_header(Modality.CMR)]
    given = make_prediction(Modality.CMR, "answered", headers)
    other = replace(given, probabilities=(replace(given.probabilities[0], condition="lvef_at_most_35"),))
    report, companion = build_reports(other, make_context(Modality.CMR, headers))
    assert read_report(report).probabilities[0].quantity == "lvef_at_most_35"
    text = render_tree(report) + render_tree(companion)
    assert "ejection fraction of 35 % or less" in text
    assert "40 %" not in text
    unknown = replace(given, probabilities=(replace(given.probabilities[0], condition="heart_failure"),))
    with pytest.raises(ValueError, match="lvef_at_most_40"):
        build_reports(unknown, make_context(Modality.CMR, headers))


def test_probabilities_are_percent() -> None:
    """Viewers hide or misprint the unit 1."""
    report, _ = build(Modality.CMR)
    number = children(groups(report)[0], "122157")[0].MeasuredValueSequence[0]
    assert float(number.NumericValue) == 83.1
    assert number.MeasurementUnitsCodeSequence[0].CodeValue == "%"


@pytest.mark.parametrize("view", ["399214001", "399232001", None])
def test_the_view_is_written_only_where_the_source_states_it(view: str | None) -> None:
    """An assumed view is not written as a fact."""
    header = make_header(Modality.ECHO)
    if view:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = view, "SCT", "a view"
        header.ViewCodeSequence = [item]
    prediction = make_prediction(Modality.ECHO, "answered", [header])
    report, _ = build_reports(prediction, make_context(Modality.ECHO, [header]))
    stated = (
        [item for item in walk(report) if item.ConceptNameCodeSequence[0].CodeValue == codes.IMAGE_VIEW.value]
        if view
        else []
    )
    assert len(stated) == (1 if view == "399214001" else 0)


@pytest.mark.parametrize("modality", Modality)
@pytest.mark.parametrize(("answer", "summary"), [("abstained", "Failed"), ("refused", "Not Attempted")])
def test_no_answer_means_no_number(modality: Modality, answer: str, summary: str) -> None:
    """An abstention or refusal is a coded statement with its reason; no NUM item exists to be misread."""
    report, companion = build(modality, answer)
    assert not [item for item in walk(report) if item.ValueType == "NUM"]
    (evaluations,) = children(report, "C0034375")
    assert children(evaluations, "111065")[0].ConceptCodeSequence[0].CodeMeaning == summary
    comments = [item.TextValue for item in children(evaluations, "121106")]
    assert [comment.partition(":")[0] for comment in comments] == ["No result", "Reason code"]
    sentences = [item.TextValue for item in walk(companion) if item.ValueType == "TEXT"]
    assert comments[0] in sentences


def test_the_companion_says_what_a_reader_must_know() -> None:
    """Status, warning, number with interval, model and notes stand in the text."""
    _, companion = build(Modality.ECHO)
    sentences = [item.TextValue for item in walk(companion) if item.ValueType == "TEXT"]
    assert "AI output, not reviewed." in sentences
    assert "Trained on phantoms, not for clinical use." in sentences
    number = next(sentence for sentence in sentences if "38.2 %" in sentence)
    assert "90 % interval 35.0 to 42.8 %" in number
    assert any("purkinje-echo, version 0.1.0" in sentence for sentence in sentences)
    assert "The lead V1 is noisy \N{LESS-THAN OR EQUAL TO} 1 s." in sentences


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (20.0, 40.04, "The whole interval lies in the class 40 % or less."),
        (41.0, 49.0, "The whole interval lies in the class 41 to 49 %."),
        (50.0, 63.0, "The whole interval lies in the class 50 % or more."),
        (38.0, 42.0, "more than one class"),
        (45.0, 50.0, "more than one class"),
        (20.0, 70.0, "more than one class"),
    ],
)
def test_a_class_is_called_where_the_whole_interval_lies_in_it(low: float, high: float, said: str) -> None:
    """An interval that straddles calls no class; the numbers compared are those that are printed."""
    estimate = Estimate(
        quantity="lvef", value=(low + high) / 2, unit="%", interval=Interval(low=low, high=high, coverage_percent=90.0)
    )
    prediction = replace(
        make_prediction(Modality.ECHO, "answered", [make_header(Modality.ECHO)]), estimates=(estimate,)
    )
    assert said in " ".join(result_sentences(prediction))


@pytest.mark.parametrize("modality", Modality)
def test_companion_prints_under_headings_only(modality: Modality) -> None:
    """The text view prints TEXT items under containers and nothing deeper, so there is nothing deeper."""
    _, companion = build(modality)
    assert companion.ConceptNameCodeSequence[0].CodeValue == "18748-4"
    for section in [item for item in companion.ContentSequence if item.ValueType == "CONTAINER"]:
        assert all(item.ValueType == "TEXT" and "ContentSequence" not in item for item in section.ContentSequence)


def test_all_times_are_the_event_time() -> None:
    """Nothing in a report comes from a clock."""
    report, companion = build(Modality.ECG)
    for document in (report, companion):
        stamps = {
            (document[f"{kind}Date"].value, document[f"{kind}Time"].value)
            for kind in ("InstanceCreation", "Series", "Content")
        }
        assert stamps == {("20260102", "030405.000678")}
        assert document.TimezoneOffsetFromUTC == "+0000"
        assert document.ContributingEquipmentSequence[-1].ContributionDateTime == "20260102030405.000678+0000"


def test_times_follow_the_time_zone_that_the_source_states() -> None:
    """Timezone Offset speaks for the study's times too, so ours are written in the study's zone."""
    headers = [make_header(Modality.ECHO, TimezoneOffsetFromUTC="-0530")]
    report, _ = build_reports(make_prediction(Modality.ECHO, "answered", headers), make_context(Modality.ECHO, headers))
    assert (report.TimezoneOffsetFromUTC, report.ContentDate, report.ContentTime) == (
        "-0530",
        "20260101",
        "213405.000678",
    )


def test_predecessors_are_listed() -> None:
    """A report of a newer engine points back to the one it follows."""
    headers = [make_header(Modality.ECHO)]
    prediction = make_prediction(Modality.ECHO, "answered", headers)
    old, _ = build_reports(prediction, make_context(Modality.ECHO, headers))
    new, _ = build_reports(prediction, make_context(Modality.ECHO, headers, model_version="2", predecessors=(old,)))
    reference = new.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == old.SOPInstanceUID != new.SOPInstanceUID
    assert new.SeriesInstanceUID != old.SeriesInstanceUID


def test_series_descriptions_keep_the_warning() -> None:
    """However long the name of the model, the study list shows that it is not for clinical use."""
    headers = [make_header(Modality.ECHO)]
    prediction = make_prediction(Modality.ECHO, "answered", headers)
    model = replace(prediction.model, name="m" * 64)
    for document in build_reports(replace(prediction, model=model), make_context(Modality.ECHO, headers)):
        assert len(document.SeriesDescription) <= 64
        assert document.SeriesDescription.endswith(", not for clinical use")


@pytest.mark.parametrize(("answer", "expected"), [("answered", False), ("abstained", True), ("refused", True)])
def test_study_lists_show_that_there_is_no_result(answer: str, expected: bool) -> None:
    """The first words of the series description tell an abstention from an answer."""
    for document in build(Modality.ECHO, answer):
        assert ("no result" in document.SeriesDescription[:25]) == expected


def test_own_output_is_recognisable_and_in_series_of_its_own() -> None:
    """The intake knows our objects by manufacturer and modality; each stands alone in its series."""
    report, companion = build(Modality.CMR)
    assert {report.Manufacturer, companion.Manufacturer} == {"Purkinje"}
    assert {report.Modality, companion.Modality} == {"SR"}
    assert report.SeriesInstanceUID != companion.SeriesInstanceUID
    assert min(report.SeriesNumber, companion.SeriesNumber) > 9000


def test_contributing_equipment_names_scanner_and_engine() -> None:
    """Both the device that acquired and the algorithm that analysed are listed, the latter with a device UID."""
    report, _ = build(Modality.ECG)
    acquisition, processing = report.ContributingEquipmentSequence
    assert acquisition.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert acquisition.Manufacturer == "Scanner Works"
    assert processing.ManufacturerModelName == "purkinje-ecg"
    assert processing.DeviceUID.startswith("2.25.")


def test_bytes_begin_with_a_zero_preamble() -> None:
    """Nothing of the writing machine hides in the preamble."""
    headers = [make_header(Modality.ECHO)]
    report, _ = build_reports(make_prediction(Modality.ECHO, "answered", headers), make_context(Modality.ECHO, headers))
    assert encode(report).startswith(b"\0" * 128 + b"DICM")


@pytest.mark.parametrize(
    ("modality", "donor"), [(Modality.ECHO, Modality.CMR), (Modality.CMR, Modality.ECHO), (Modality.CMR, Modality.ECG)]
)
def test_a_prediction_of_another_kind_is_refused(modality: Modality, donor: Modality) -> None:
    """A number that the report of its modality has no place for is an error, not a silent omission."""
    headers = [make_header(modality)]
    wrong = make_prediction(donor, "answered", headers)
    prediction = replace(wrong, modality=modality)
    with pytest.raises(ValueError, match="states one"):
        build_reports(prediction, make_context(modality, headers))


def test_an_unknown_ecg_quantity_is_refused() -> None:
    """A quantity without a code cannot be reported."""
    headers = [make_header(Modality.ECG)]
    prediction = make_prediction(Modality.ECG, "answered", headers)
    estimates = (replace(prediction.estimates[0], quantity="mood"),)
    with pytest.raises(ValueError, match="mood"):
        build_reports(replace(prediction, estimates=estimates), make_context(Modality.ECG, headers))


def test_a_unit_that_differs_from_the_code_table_is_refused() -> None:
    """A number in another unit is never printed under ours."""
    headers = [make_header(Modality.ECG)]
    prediction = make_prediction(Modality.ECG, "answered", headers)
    estimates = (replace(prediction.estimates[2], unit="ml/min"),)
    with pytest.raises(ValueError, match="ml/min"):
        build_reports(replace(prediction, estimates=estimates), make_context(Modality.ECG, headers))


def test_key_and_prediction_must_agree() -> None:
    """A report cannot carry the identity of another modality."""
    headers = [make_header(Modality.ECG)]
    with pytest.raises(ValueError, match="must agree"):
        build_reports(make_prediction(Modality.ECG, "answered", headers), make_context(Modality.ECHO, headers))


def test_context_needs_a_time_zone_and_a_class_that_fits() -> None:
    """A naive time, no evidence, or a class that cannot hold the tree is refused at once."""
    headers = [make_header(Modality.ECG)]
    with pytest.raises(ValueError, match="time zone"):
        make_context(Modality.ECG, headers, event_time_utc=datetime(2026, 1, 2))  # noqa: DTZ001 - the point of the test
    with pytest.raises(ValueError, match="no evidence"):
        make_context(Modality.ECG, [])
    with pytest.raises(ValueError, match="cannot hold"):
        make_context(Modality.ECG, headers, sop_class_uid="1.2.840.10008.5.1.4.1.1.88.11")


def test_clips_that_disagree_are_an_abstention() -> None:
    """An engine that ran and found its clips at odds abstained; nothing was refused."""
    headers = [make_header(Modality.ECHO)]
    prediction = make_prediction(Modality.ECHO, "refused", headers)
    abstention = Abstention(code=RefusalCode.CLIPS_DISAGREE, reason="The clips differ by 30 %.")
    report, _ = build_reports(replace(prediction, abstention=abstention), make_context(Modality.ECHO, headers))
    assert children(children(report, "C0034375")[0], "111065")[0].ConceptCodeSequence[0].CodeMeaning == "Failed"


def test_the_text_of_a_probability_says_how_to_read_it() -> None:
    """What the probability of a cardiac MR report means, and what was not measured, follow the number."""
    _, companion = build(Modality.CMR)
    sentences = [item.TextValue for item in walk(companion) if item.ValueType == "TEXT"]
    number = next(index for index, sentence in enumerate(sentences) if "probability 83.1 %" in sentence)
    assert "about 83 of 100 with this probability have the finding" in sentences[number + 1]
    assert "No volume and no ejection fraction was measured." in sentences[number + 1]
