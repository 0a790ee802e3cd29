"""A report reads back to what was predicted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from engines.predictions import Interval
from engines.records import Modality
from stream_processors.reports.measurement_report import build_reports, encode
from stream_processors.reports.read import NotOurReport, ReadReport, read_report, render_tree
from tests.doubles.reports import make_context, make_header, make_prediction

PERCENT = st.floats(0, 100)


def build(modality: Modality, answer: str) -> tuple[Dataset, Dataset]:
    """Report and companion after a round trip through bytes."""
    headers = [make_header(modality, number) for number in (1, 2)]
    documents = build_reports(make_prediction(modality, answer, headers), make_context(modality, headers))
    report, companion = (dcmread(DicomBytesIO(encode(document))) for document in documents)
    return report, companion


@pytest.mark.parametrize("modality", Modality)
def test_an_answer_reads_back(modality: Modality) -> None:
    """Every quantity, value, unit, interval and decision of the prediction is in the report."""
    read = read_report(build(modality, "answered")[0])
    prediction = make_prediction(modality, "answered", [make_header(modality)])
    assert (read.modality, read.outcome, read.reason_code) == (modality, "reported", None)
    assert [(number.quantity, number.unit) for number in read.measurements] == [
        (estimate.quantity, estimate.unit) for estimate in prediction.estimates
    ]
    for number, estimate in zip(read.measurements, prediction.estimates, strict=True):
        expected = (round(estimate.value, 1), round(estimate.interval.low, 1), round(estimate.interval.high, 1))
        assert (number.value, number.interval_low, number.interval_high) == expected
        assert number.coverage_percent == 90
        assert number.between_clip_sd == estimate.between_clip_sd
        if estimate.wide_interval is None:
            assert (number.wide_interval, number.wide_coverage_percent) == (None, None)
        else:
            wide = estimate.wide_interval
            assert number.wide_interval == (round(wide.low, 1), round(wide.high, 1))
            assert number.wide_coverage_percent == 95
    assert [(number.quantity, number.value, number.decision) for number in read.probabilities] == [
        (probability.condition, 83.1, "present") for probability in prediction.probabilities
    ]
    assert read.model["name"] == prediction.model.name
    assert read.model["bundle_sha256"] == prediction.model.bundle_sha256
    assert read.picture_sop_instance_uid is None


@pytest.mark.parametrize("modality", Modality)
@pytest.mark.parametrize(("answer", "code"), [("abstained", "out_of_distribution"), ("refused", "undecodable")])
def test_an_abstention_reads_back(modality: Modality, answer: str, code: str) -> None:
    """Outcome, machine-readable code and sentence come back, and no number."""
    read = read_report(build(modality, answer)[0])
    assert (read.outcome, read.reason_code) == (answer, code)
    assert read.reason == make_prediction(modality, answer, []).abstention.reason
    assert read.measurements == read.probabilities == ()
    assert read.model["weights_sha256"] == "b" * 64


def test_undecided_reads_back_as_undetermined() -> None:
    """A probability without a decision is not turned into one."""
    assert {number.decision for number in read_report(build(Modality.ECG, "undecided")[0]).probabilities} == {
        "undetermined"
    }


@settings(max_examples=30, deadline=None)
@given(value=PERCENT, bounds=st.tuples(PERCENT, PERCENT))
def test_bounds_read_back_as_the_companion_prints_them(value: float, bounds: tuple[float, float]) -> None:
    """The interval that a program computes from the report equals the rounded one, whatever the numbers."""
    low, high = sorted(bounds)
    headers = [make_header(Modality.ECHO)]
    prediction = make_prediction(Modality.ECHO, "answered", headers)
    interval = Interval(low=low, high=high, coverage_percent=90)
    estimate = replace(prediction.estimates[0], value=value, interval=interval)
    report, companion = build_reports(replace(prediction, estimates=(estimate,)), make_context(Modality.ECHO, headers))
    (number,) = read_report(report).measurements
    assert (number.value, number.interval_low, number.interval_high) == (round(value, 1), round(low, 1), round(high, 1))
    assert f"{number.value} % (90 % interval {number.interval_low} to {number.interval_high} %)" in render_tree(
        companion
    )


def test_nothing_is_minus_zero() -> None:
    """A value that rounds to zero from below is printed as zero."""
    headers = [make_header(Modality.ECHO)]
    prediction = make_prediction(Modality.ECHO, "answered", headers)
    interval = Interval(low=-0.04, high=-0.01, coverage_percent=90)
    estimate = replace(prediction.estimates[0], value=-0.02, interval=interval)
    documents = build_reports(replace(prediction, estimates=(estimate,)), make_context(Modality.ECHO, headers))
    assert not [document for document in documents if "-0.0" in render_tree(document)]


def test_predecessors_read_back() -> None:
    """The chain of reports can be followed."""
    headers = [make_header(Modality.ECHO)]
    prediction = make_prediction(Modality.ECHO, "abstained", headers)
    old, _ = build_reports(prediction, make_context(Modality.ECHO, headers))
    new, _ = build_reports(prediction, make_context(Modality.ECHO, headers, model_version="2", predecessors=(old,)))
    assert read_report(new).predecessors == (old.SOPInstanceUID,)


def test_a_companion_or_a_foreign_document_is_not_our_report() -> None:
    """Only measurement reports of ours are read."""
    _, companion = build(Modality.ECHO, "answered")
    with pytest.raises(NotOurReport, match="18748-4"):
        read_report(companion)
    with pytest.raises(NotOurReport):
        read_report(Dataset())


def test_a_report_with_a_part_missing_is_not_read() -> None:
    """A damaged report is an error, not a report without numbers."""
    report, _ = build(Modality.ECHO, "answered")
    del report.ContentSequence[-1]
    with pytest.raises(NotOurReport, match="Imaging Measurements"):
        read_report(report)


@pytest.mark.parametrize("modality", Modality)
def test_the_tree_prints_every_item(modality: Modality) -> None:
    """One line for each item, indented by depth, with value and unit."""
    for document in build(modality, "answered"):
        tree = render_tree(document)
        items = [item for item in document.iterall() if item.keyword == "ValueType"]
        assert len(tree.splitlines()) == len(items)
    report, _ = build(modality, "answered")
    assert "  Measurement Group" in render_tree(report)
    assert render_tree(encode(report)) == render_tree(report)


def test_read_values_are_plain() -> None:
    """What is read holds plain values that JSON can carry."""
    import json
    from dataclasses import asdict

    read = read_report(build(Modality.ECG, "answered")[0])
    assert isinstance(read, ReadReport)
    assert json.loads(json.dumps(asdict(read)))["modality"] == "ecg"
