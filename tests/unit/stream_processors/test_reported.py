"""Our own reports read back say what was predicted, digit for digit as written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from engines.predictions import Interval, Prediction
from engines.records import Modality
from stream_processors.errors import ReportUnreadable
from stream_processors.events import Outcome
from stream_processors.reported import content_of, content_time_utc, is_report_of, predecessors, read_report
from stream_processors.reports.measurement_report import build_reports, encode
from tests.doubles.reports import make_context, make_header, make_model, make_prediction

LATER = datetime(2030, 1, 1, tzinfo=UTC)


def _written(modality: Modality, answer: str, **changes: Any) -> tuple[Prediction, bytes, bytes]:
    headers = [make_header(modality)]
    prediction = make_prediction(modality, answer, headers)
    report, companion = build_reports(prediction, make_context(modality, headers, **changes))
    return prediction, encode(report), encode(companion)


REPORT = _written(Modality.ECHO, "answered")[1]


def _rounded(interval: Interval | None) -> tuple[float, float, float] | None:
    return interval and (round(interval.low, 1), round(interval.high, 1), interval.coverage_percent)


@pytest.mark.parametrize("modality", Modality)
@pytest.mark.parametrize("answer", ["answered", "undecided"])
def test_numbers_read_back_to_the_digits_of_the_report(modality: Modality, answer: str) -> None:
    """Values, intervals, coverage, thresholds and decisions come back, rounded as the report rounds."""
    prediction, report, _ = _written(modality, answer)
    content = content_of(read_report(report))
    assert content.outcome is Outcome.REPORTED
    assert content.modality is modality
    assert [estimate.quantity for estimate in content.estimates] == [one.quantity for one in prediction.estimates]
    for read, said in zip(content.estimates, prediction.estimates, strict=True):
        assert (read.value, read.unit) == (round(said.value, 1), said.unit)
        assert read.interval.low == pytest.approx(round(said.interval.low, 1))
        assert read.interval.high == pytest.approx(round(said.interval.high, 1))
        assert read.interval.coverage_percent == said.interval.coverage_percent
        assert read.between_clip_sd == said.between_clip_sd
        assert _rounded(read.wide_interval) == _rounded(said.wide_interval)
        assert (read.wide_interval is None) == (modality is not Modality.ECG)
    for seen, stated in zip(content.probabilities, prediction.probabilities, strict=True):
        assert seen.condition == stated.condition
        assert seen.probability == pytest.approx(stated.probability, abs=0.0005)
        assert seen.interval.low == pytest.approx(stated.interval.low, abs=0.0005)
        assert (seen.threshold_probability, seen.decision) == (stated.threshold_probability, stated.decision)
    assert content.out_of_distribution_score == prediction.out_of_distribution_score


@pytest.mark.parametrize("modality", Modality)
@pytest.mark.parametrize(("answer", "outcome"), [("abstained", Outcome.ABSTAINED), ("refused", Outcome.REFUSED)])
def test_a_report_without_number_reads_back_with_its_reason(modality: Modality, answer: str, outcome: Outcome) -> None:
    """Abstained and refused are told apart, with code and sentence."""
    prediction, report, _ = _written(modality, answer)
    content = content_of(read_report(report))
    assert prediction.abstention is not None
    assert (content.outcome, content.reason_code) == (outcome, prediction.abstention.code.value)
    assert content.reason == prediction.abstention.reason
    assert (content.estimates, content.probabilities) == ((), ())


@pytest.mark.parametrize("modality", Modality)
def test_the_engine_reads_back_whole(modality: Modality) -> None:
    """The report alone identifies the engine with every digest, and on what it ran."""
    _, report, _ = _written(modality, "answered")
    assert content_of(read_report(report)).engine == make_model(modality)


def test_the_companion_and_other_modalities_are_no_report() -> None:
    """Only a measurement report on the asked modality counts."""
    _, report, companion = _written(Modality.ECHO, "answered")
    assert is_report_of(Modality.ECHO, read_report(report))
    assert not is_report_of(Modality.ECG, read_report(report))
    assert not is_report_of(Modality.ECHO, read_report(companion))


def test_somebody_elses_report_is_none_of_ours() -> None:
    """A measurement report of another manufacturer is not followed."""
    _, report, _ = _written(Modality.ECHO, "answered")
    dataset = read_report(report)
    dataset.Manufacturer = "Somebody"
    assert not is_report_of(Modality.ECHO, dataset)


def test_the_content_time_is_the_event_time() -> None:
    """The time survives the time zone it is written in."""
    event_time = datetime(2026, 1, 2, 23, 4, 5, 678, tzinfo=UTC)
    headers = [make_header(Modality.ECG, TimezoneOffsetFromUTC="+0530")]
    prediction = make_prediction(Modality.ECG, "answered", headers)
    report, _ = build_reports(prediction, make_context(Modality.ECG, headers, event_time_utc=event_time))
    assert content_time_utc(report) == event_time


def test_predecessors_are_the_earlier_reports_of_the_same_modality() -> None:
    """Older engines and revisions are followed; later reports, the own one, companions and junk are not."""
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    _, old, companion = _written(Modality.ECHO, "answered", event_time_utc=now - timedelta(hours=1))
    _, older_engine, _ = _written(Modality.ECHO, "abstained", event_time_utc=now, model_version="0.0.9")
    _, later, _ = _written(Modality.ECHO, "answered", event_time_utc=now + timedelta(hours=1), model_version="9")
    _, other, _ = _written(Modality.ECG, "answered", event_time_utc=now)
    own = make_context(Modality.ECHO, [make_header(Modality.ECHO)], content_digest="e" * 64).key
    candidates = (old, companion, older_engine, later, other, b"junk")
    found = predecessors(candidates, key=own, not_later_than=now)
    expected = {dcmread(BytesIO(one)).SOPInstanceUID for one in (old, older_engine)}
    assert {dataset.SOPInstanceUID for dataset in found} == expected
    itself = make_context(Modality.ECHO, [make_header(Modality.ECHO)]).key
    assert predecessors([old], key=itself, not_later_than=LATER) == ()


@given(st.binary(max_size=300))
def test_bytes_that_are_no_report_are_unreadable(content: bytes) -> None:
    """Whatever lies under our UID, the answer is one error of ours."""
    with pytest.raises(ReportUnreadable):
        content_of(read_report(bytes(128) + b"DICM" + content))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(place=st.integers(132, len(REPORT) - 1), byte=st.sampled_from([b"", b"\x00", b"\xff"]))
def test_a_damaged_report_is_unreadable_or_says_what_it_says(place: int, byte: bytes) -> None:
    """A flipped or missing byte never raises anything but ReportUnreadable."""
    damaged = REPORT[:place] + byte + REPORT[place + 1 :]
    try:
        content_of(read_report(damaged))
    except ReportUnreadable:
        return


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "Manufacturer", "SOPClassUID", "ContentTime"])
def test_an_element_without_a_known_representation_is_unreadable(keyword: str) -> None:
    """An element whose VR is destroyed raises nothing but ReportUnreadable, not even while the error is written."""
    report = dcmread(BytesIO(REPORT))
    report[keyword] = RawDataElement(Tag(keyword), "0x49", 4, b"1.2\0", 0, False, True)  # noqa: FBT003 - pydicom's tuple
    del report.ConceptNameCodeSequence
    assert not is_report_of(Modality.ECHO, report)
    for read in (content_of, content_time_utc) if keyword == "ContentTime" else (content_of,):
        with pytest.raises(ReportUnreadable):
            read(report)


def test_a_deflated_object_is_not_inflated() -> None:
    """A bomb under our UID is refused by its transfer syntax, before anything is inflated."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.33", "2.25.1"
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    with pytest.raises(ReportUnreadable, match=r"1\.2\.840\.10008\.1\.2\.1\.99"):
        read_report(buffer.getvalue())


def test_an_object_far_too_large_is_not_parsed() -> None:
    """Reports are small; what is not is none."""
    with pytest.raises(ReportUnreadable, match="at most"):
        read_report(bytes(5 * 1024 * 1024))
