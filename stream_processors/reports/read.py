"""One of our reports back into plain values, and as a tree for the terminal.

Reads with pydicom alone: highdicom cannot parse WAVEFORM items. Understands what ``measurement_report`` writes and
nothing else. Used by the demo's summary, by ``make verify`` and by the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from engines.records import Modality
from stream_processors.reports import codes


class NotOurReport(ValueError):
    """The document is no measurement report of ours."""


@dataclass(frozen=True, kw_only=True)
class ReportedNumber:
    """One number with its interval, in ``unit``.

    ``quantity`` is the key of the prediction (``lvef``, ``heart_failure``); ``between_clip_sd`` is the spread of what
    was averaged; ``decision`` is present, absent or undetermined for a probability, None for an estimate. ``wide_interval``
    is (low, high) of the second interval and what it covers stands beside it; both None where the report states one.
    """

    quantity: str
    name: str
    value: float
    unit: str
    interval_low: float
    interval_high: float
    coverage_percent: float
    between_clip_sd: float | None = None
    decision: str | None = None
    wide_interval: tuple[float, float] | None = None
    wide_coverage_percent: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """What a report says.

    ``outcome`` is reported, abstained or refused. ``model`` holds name, version and every algorithm parameter.
    ``picture_sop_instance_uid`` is the image that shows what carries the answer, None without one.
    """

    modality: Modality
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    outcome: str
    reason_code: str | None
    reason: str | None
    measurements: tuple[ReportedNumber, ...]
    probabilities: tuple[ReportedNumber, ...]
    model: dict[str, str]
    predecessors: tuple[str, ...]
    picture_sop_instance_uid: str | None


_OUTCOMES = {codes.FAILED.value: "abstained", codes.NOT_ATTEMPTED.value: "refused"}
_QUANTITY_KEYS = {(modality, quantity.concept.value): key for (modality, key), quantity in codes.QUANTITIES.items()}
_MODALITIES = {procedure.value: modality for modality, procedure in codes.PROCEDURES.items()}


def read_report(report: Dataset) -> ReadReport:
    """Read a measurement report.

    Raises:
        NotOurReport: the root, the procedure or a part that every report of ours has is missing.
    """
    if _name(report) != codes.IMAGING_MEASUREMENT_REPORT.value:
        expected = codes.IMAGING_MEASUREMENT_REPORT
        msg = f"root concept is {_name(report)!r}; expected {expected.value} ({expected.meaning})"
        raise NotOurReport(msg)
    modality = _modality(report)
    summary = _first(report, codes.QUALITATIVE_EVALUATIONS)
    groups = [] if summary is not None else _groups(report)
    model = _model(_required(summary, codes.SUMMARY_OF_ANALYSES) if summary is not None else groups[0])
    numbers = [number for group in groups for number in _numbers(modality, group, model)]
    return ReadReport(
        modality=modality,
        study_instance_uid=str(report.StudyInstanceUID),
        series_instance_uid=str(report.SeriesInstanceUID),
        sop_instance_uid=str(report.SOPInstanceUID),
        outcome="reported" if summary is None else _OUTCOMES[_answer(summary, codes.SUMMARY_OF_ANALYSES)],
        reason_code=_comment(summary, "Reason code: "),
        reason=_comment(summary, "No result: "),
        measurements=tuple(number for number in numbers if number.decision is None),
        probabilities=tuple(number for number in numbers if number.decision is not None),
        model=model,
        predecessors=tuple(_predecessors(report)),
        picture_sop_instance_uid=next(_pictures(groups), None),
    )


def render_tree(document: Dataset | bytes) -> str:
    """The content tree of a report or companion as indented lines, one for each item.

    Args:
        document: parsed, or as Part 10 bytes.
    """
    parsed = dcmread(BytesIO(document)) if isinstance(document, bytes) else document
    return "\n".join(_lines(parsed, 0))


def _lines(item: Dataset, depth: int) -> Iterator[str]:
    value = _value(item)
    name = item.ConceptNameCodeSequence[0].CodeMeaning if item.get("ConceptNameCodeSequence") else item.ValueType
    yield f"{'  ' * depth}{name}" + (f": {value}" if value else "")
    for child in item.get("ContentSequence", ()):
        yield from _lines(child, depth + 1)


def _value(item: Dataset) -> str:
    """Value of a content item as one line (PS3.3 C.17.3, C.18)."""
    readers = {
        "TEXT": lambda: str(item.TextValue),
        "UIDREF": lambda: str(item.UID),
        "CODE": lambda: str(item.ConceptCodeSequence[0].CodeMeaning),
        "NUM": lambda: _number_text(item),
        "SCOORD": lambda: f"{item.GraphicType} {[float(value) for value in item.GraphicData]}",
        "IMAGE": lambda: _reference_text(item, "ReferencedFrameNumber", "frames"),
        "WAVEFORM": lambda: _reference_text(item, "ReferencedWaveformChannels", "channels"),
    }
    return readers.get(item.ValueType, str)()


def _number_text(item: Dataset) -> str:
    measured = item.MeasuredValueSequence[0]
    return f"{measured.NumericValue} {measured.MeasurementUnitsCodeSequence[0].CodeValue}"


def _reference_text(item: Dataset, keyword: str, word: str) -> str:
    reference = item.ReferencedSOPSequence[0]
    selected = _list(reference.get(keyword))
    chosen = f" {word} {_ranges([int(number) for number in selected])}" if selected else ""
    return f"{reference.ReferencedSOPInstanceUID}{chosen}"


def _ranges(numbers: list[int]) -> str:
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(str(number) for number in numbers)


def _groups(report: Dataset) -> list[Dataset]:
    measurements = _required(report, codes.IMAGING_MEASUREMENTS)
    groups = [item for item in measurements.ContentSequence if _name(item) == codes.MEASUREMENT_GROUP.value]
    if not groups:
        msg = "the report has no measurement group and says nothing else; expected at least one"
        raise NotOurReport(msg)
    return groups


def _modality(report: Dataset) -> Modality:
    procedure = _answer(report, codes.PROCEDURE_REPORTED)
    if procedure not in _MODALITIES:
        msg = f"the procedure reported is {procedure!r}; expected one of {sorted(_MODALITIES)}"
        raise NotOurReport(msg)
    return _MODALITIES[procedure]


def _numbers(modality: Modality, group: Dataset, model: dict[str, str]) -> Iterator[ReportedNumber]:
    finding = _first(group, codes.FINDING)
    for item in group.ContentSequence:
        if item.ValueType != "NUM":
            continue
        if finding is None:
            key, decision = _QUANTITY_KEYS[modality, _name(item)], None
            name = str(item.ConceptNameCodeSequence[0].CodeMeaning)
        else:
            key = _condition(str(finding.ConceptCodeSequence[0].CodeValue), model)
            presence = _required(group, codes.PRESENCE_OF_PROPERTY)
            decision = str(presence.ConceptCodeSequence[0].CodeMeaning).lower()
            name = codes.CONDITIONS[key].label
        yield _number(item, key, name, decision, model)


def _condition(finding: str, model: dict[str, str]) -> str:
    """Key of a finding; conditions that share a finding are told apart by the threshold that the report states."""
    for key, condition in codes.CONDITIONS.items():
        if condition.finding.value == finding and f"{key}_threshold_percent" in model:
            return key
    msg = f"finding {finding} is none of {sorted(codes.CONDITIONS)} with a threshold"
    raise NotOurReport(msg)


def _number(item: Dataset, quantity: str, name: str, decision: str | None, model: dict[str, str]) -> ReportedNumber:
    value, spread = _numeric(item), _first(item, codes.STANDARD_DEVIATION)
    wide_interval, wide_coverage = _wide(quantity, model)
    return ReportedNumber(
        quantity=quantity,
        name=name,
        value=value,
        unit=str(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue),
        interval_low=round(value - _numeric(_required(item, codes.LOWER_UNCERTAINTY)), 1) + 0.0,
        interval_high=round(value + _numeric(_required(item, codes.UPPER_UNCERTAINTY)), 1) + 0.0,
        coverage_percent=float(model[f"{quantity}_interval_coverage_percent"]),
        between_clip_sd=None if spread is None else _numeric(spread),
        decision=decision,
        wide_interval=wide_interval,
        wide_coverage_percent=wide_coverage,
    )


def _wide(quantity: str, model: dict[str, str]) -> tuple[tuple[float, float] | None, float | None]:
    """The second interval and its coverage, which stand among the parameters of the algorithm."""
    stated = model.get(f"{quantity}_wide_interval")
    if stated is None:
        return None, None
    low, _, high = stated.partition(" to ")
    return (float(low), float(high)), float(model[f"{quantity}_wide_interval_coverage_percent"])


def _model(parent: Dataset) -> dict[str, str]:
    model = {
        "name": str(_required(parent, codes.ALGORITHM_NAME).TextValue),
        "version": str(_required(parent, codes.ALGORITHM_VERSION).TextValue),
    }
    for item in parent.ContentSequence:
        if _name(item) == codes.ALGORITHM_PARAMETERS.value:
            key, _, value = str(item.TextValue).partition("=")
            model[key] = value
    return model


def _comment(summary: Dataset | None, prefix: str) -> str | None:
    for item in [] if summary is None else summary.ContentSequence:
        if _name(item) == codes.COMMENT.value and str(item.TextValue).startswith(prefix):
            return str(item.TextValue).removeprefix(prefix)
    return None


def _predecessors(report: Dataset) -> Iterator[str]:
    for study in report.get("PredecessorDocumentsSequence", ()):
        for series in study.ReferencedSeriesSequence:
            for reference in series.ReferencedSOPSequence:
                yield str(reference.ReferencedSOPInstanceUID)


def _pictures(groups: list[Dataset]) -> Iterator[str]:
    for group in groups:
        item = _first(group, codes.VISUAL_EXPLANATION)
        if item is not None:
            yield str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)


def _first(parent: Dataset, concept: Code) -> Dataset | None:
    return next((item for item in parent.get("ContentSequence", ()) if _name(item) == concept.value), None)


def _required(parent: Dataset, concept: Code) -> Dataset:
    item = _first(parent, concept)
    if item is None:
        msg = f"the report has no {concept.meaning!r} ({concept.value}); every report of ours has one"
        raise NotOurReport(msg)
    return item


def _answer(parent: Dataset, concept: Code) -> str:
    return str(_required(parent, concept).ConceptCodeSequence[0].CodeValue)


def _name(item: Dataset) -> str:
    sequence = item.get("ConceptNameCodeSequence")
    return str(sequence[0].CodeValue) if sequence else ""


def _numeric(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].NumericValue)


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
