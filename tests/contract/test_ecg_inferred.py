"""A number that an ECG suggests never passes for one that was measured: not for a program, not for a reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from engines.predictions import Estimate, Interval, Prediction
from engines.records import Modality
from stream_processors.reports import codes
from stream_processors.reports.measurement_report import build_reports
from stream_processors.reports.read import read_report
from stream_processors.reports.wording import result_sentences
from tests.doubles.reports import make_context, make_header, make_prediction
from training.data.targets import ESTIMATES
from training.postprocess import RANGES, UNITS

QUANTITIES = tuple(key for modality, key in codes.QUANTITIES if modality is Modality.ECG)
MEASURED = (codes.LVEF_BY_US, codes.LVEF_BY_MR)
"""Concepts that state a method of imaging; an ECG may fill none of them."""


def everything() -> Prediction:
    """Every quantity that an ECG engine may estimate, each with two intervals."""
    estimates = tuple(
        Estimate(
            quantity=quantity,
            value=50.0,
            unit=codes.QUANTITIES[Modality.ECG, quantity].unit.value,
            interval=Interval(low=41.26, high=58.7, coverage_percent=80.0),
            wide_interval=Interval(low=33.33, high=66.6, coverage_percent=95.0),
        )
        for quantity in QUANTITIES
    )
    return replace(make_prediction(Modality.ECG, "answered", [make_header(Modality.ECG)]), estimates=estimates)


@pytest.fixture(scope="module")
def report() -> Dataset:
    """The measurement report of ``everything``."""
    found, _ = build_reports(everything(), make_context(Modality.ECG, [make_header(Modality.ECG)]))
    return found


def walk(item: Dataset) -> Iterator[Dataset]:
    """Every content item of a tree, root first."""
    yield item
    for child in item.get("ContentSequence", ()):
        yield from walk(child)


def concept(item: Dataset) -> tuple[str, str]:
    """Scheme and value of the concept name."""
    name = item.ConceptNameCodeSequence[0]
    return str(name.CodingSchemeDesignator), str(name.CodeValue)


def key(code: Code) -> tuple[str, str]:
    """Scheme and value of a code."""
    return code.scheme_designator, code.value


def estimates(report: Dataset) -> list[Dataset]:
    """The number of every estimate."""
    wanted = {key(codes.QUANTITIES[Modality.ECG, quantity].concept) for quantity in QUANTITIES}
    return [item for item in walk(report) if item.get("ValueType") == "NUM" and concept(item) in wanted]


def test_every_number_says_that_an_ecg_is_its_method(report: Dataset) -> None:
    """Each estimate is modified as estimated, by 12-lead ECG, and inferred from waveforms, never from images."""
    found = estimates(report)
    assert len(found) == len(QUANTITIES) == 8
    for number in found:
        said = {concept(item): item for item in number.ContentSequence if item.ValueType == "CODE"}
        for name, value in ((codes.DERIVATION, codes.ESTIMATED), (codes.MEASUREMENT_METHOD, codes.TWELVE_LEAD_ECG)):
            assert said[key(name)].ConceptCodeSequence[0].CodeValue == value.value
            assert said[key(name)].RelationshipType == "HAS CONCEPT MOD"
        sources = [item.ValueType for item in number.ContentSequence if item.RelationshipType == "INFERRED FROM"]
        assert sources == ["WAVEFORM"]


def test_no_concept_of_a_measured_ejection_fraction_is_filled(report: Dataset) -> None:
    """LVEF by ultrasound and by MR stand nowhere in an ECG report, and in no entry of its table."""
    forbidden = {key(code) for code in MEASURED}
    assert not forbidden & {concept(item) for item in walk(report) if "ConceptNameCodeSequence" in item}
    assert not forbidden & {key(codes.QUANTITIES[Modality.ECG, quantity].concept) for quantity in QUANTITIES}


def test_every_sentence_with_a_number_says_inferred_from_ecg(report: Dataset) -> None:
    """Whoever reads the text, or the label of the group, learns where the number comes from and how sure it is."""
    numbers = result_sentences(everything())[: len(QUANTITIES)]
    assert all(", inferred from ECG: 50.0 " in sentence for sentence in numbers)
    assert numbers[0].endswith("50.0 % (80 % interval 41.3 to 58.7 %, 95 % interval 33.3 to 66.6 %).")
    labels = [
        str(item.TextValue) for item in walk(report) if item.get("ValueType") == "TEXT" and "ECG" in item.TextValue
    ]
    assert "Cardiac function, inferred from ECG (AI)" in labels


def test_quantities_read_back_apart_from_each_other(report: Dataset) -> None:
    """No two quantities share a concept: each comes back under its own name with both of its intervals."""
    numbers = read_report(report).measurements
    assert tuple(number.quantity for number in numbers) == QUANTITIES
    assert {(number.interval_low, number.interval_high, number.coverage_percent) for number in numbers} == {
        (41.3, 58.7, 80.0)
    }
    assert {(number.wide_interval, number.wide_coverage_percent) for number in numbers} == {((33.3, 66.6), 95.0)}


def test_what_can_be_trained_can_be_reported() -> None:
    """Every quantity that the exporter knows has a code, in the unit that the exporter writes."""
    assert set(ESTIMATES) <= set(UNITS) == set(RANGES) == set(QUANTITIES)
    units = {quantity: codes.QUANTITIES[Modality.ECG, quantity].unit.value for quantity in QUANTITIES}
    assert units == UNITS
