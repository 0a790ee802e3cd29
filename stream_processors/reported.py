"""Reads our own reports back: what they say, which engine said it, what they follow.

An outcome event always says what the report in the PACS says, digit for digit, whether this run wrote it or an earlier
one did; so it is read from the report in both cases. A tree that does not have the form that ``reports`` writes is
``ReportUnreadable``, never guessed at. Called by ``pipeline``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from engines.predictions import ClassProbability, Estimate, Interval, ModelIdentity
from engines.records import Modality
from stream_processors.cross_modal import CrossModalFinding
from stream_processors.errors import ReportUnreadable
from stream_processors.events import Outcome
from stream_processors.part10 import UNREADABLE
from stream_processors.reports import codes
from stream_processors.reports.context import SUPPORTED_SOP_CLASSES
from stream_processors.reports.document import MANUFACTURER
from stream_processors.reports.identity import ReportKey
from stream_processors.reports.read import ReportedNumber
from stream_processors.reports.read import read_report as parse

LARGEST_REPORT_BYTES = 4 * 1024 * 1024
_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_DECISIONS = {code.meaning.lower(): said for said, code in (
    (True, codes.PRESENT), (False, codes.ABSENT), (None, codes.UNDETERMINED)
)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """What one of our reports says."""

    modality: Modality
    outcome: Outcome
    engine: ModelIdentity
    reason_code: str | None = None
    reason: str | None = None
    estimates: tuple[Estimate, ...] = ()
    probabilities: tuple[ClassProbability, ...] = ()
    out_of_distribution_score: float | None = None
    cross_modal: CrossModalFinding | None = None


def read_report(content: bytes) -> Dataset:
    """Parse a Part 10 file that should be a report of ours.

    Raises:
        ReportUnreadable: too large, deflated or compressed, or not DICOM.
    """
    if len(content) > LARGEST_REPORT_BYTES:
        msg = f"a report has {len(content)} bytes; expected at most {LARGEST_REPORT_BYTES}"
        raise ReportUnreadable(msg)
    try:
        meta = dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).file_meta
        if meta.TransferSyntaxUID not in _SYNTAXES:
            msg = f"a report has transfer syntax {meta.TransferSyntaxUID}; expected an uncompressed one"
            raise ReportUnreadable(msg)
        return dcmread(BytesIO(content))
    except UNREADABLE as error:
        msg = f"an object under a report's UID is not readable: {type(error).__name__}"
        raise ReportUnreadable(msg) from None


def content_of(report: Dataset) -> ReportContent:
    """What a measurement report of ours says.

    Raises:
        ReportUnreadable: the tree is not one that ``reports`` writes.
    """
    try:
        return _content(report)
    except UNREADABLE as error:
        # No element is read for the message: a damaged one would raise again, out of this handler.
        msg = f"an object under a report's UID has not the form we write: {type(error).__name__}"
        raise ReportUnreadable(msg) from None


def is_report_of(modality: Modality, dataset: Dataset) -> bool:
    """True for a measurement report of ours on that modality; its companion and everything else is False."""
    try:
        ours = dataset.Manufacturer == MANUFACTURER and dataset.SOPClassUID in SUPPORTED_SOP_CLASSES
        return ours and content_of(dataset).modality is modality
    except (ReportUnreadable, *UNREADABLE):
        return False


def content_time_utc(dataset: Dataset) -> datetime:
    """Content Date and Time with their offset from UTC (PS3.3 C.17.2, C.12.1).

    Raises:
        ReportUnreadable: not as ``reports`` writes them.
    """
    try:
        text = f"{dataset.ContentDate}{dataset.ContentTime}{dataset.TimezoneOffsetFromUTC}"
        return datetime.strptime(text, "%Y%m%d%H%M%S.%f%z")
    except UNREADABLE:
        msg = "a report of ours has no content time with microseconds and time zone"
        raise ReportUnreadable(msg) from None


def predecessors(candidates: Iterable[bytes], *, key: ReportKey, not_later_than: datetime) -> tuple[Dataset, ...]:
    """The earlier reports of ours on the same modality, in the order of their UIDs.

    Later ones are left out, so that replaying an old announcement does not make an old report follow a new one.
    """
    found = []
    for content in candidates:
        try:
            dataset = read_report(content)
            if is_report_of(key.modality, dataset) and content_time_utc(dataset) <= not_later_than:
                found.append(dataset)
        except ReportUnreadable:
            continue  # somebody else's object under our name is no predecessor
    others = (dataset for dataset in found if dataset.SOPInstanceUID != key.sop_instance_uid)
    return tuple(sorted(others, key=lambda dataset: str(dataset.SOPInstanceUID)))


def _content(report: Dataset) -> ReportContent:
    read = parse(report)
    score = read.model.get("out_of_distribution_score")
    return ReportContent(
        modality=read.modality,
        outcome=Outcome(read.outcome),
        engine=_engine(read.model),
        reason_code=read.reason_code,
        reason=read.reason,
        estimates=tuple(_estimate(number) for number in read.measurements),
        probabilities=tuple(_probability(number, read.model) for number in read.probabilities),
        out_of_distribution_score=None if score is None else float(score),
        cross_modal=CrossModalFinding.from_parameters(read.model),
    )


def _estimate(number: ReportedNumber) -> Estimate:
    return Estimate(
        quantity=number.quantity,
        value=number.value,
        unit=number.unit,
        interval=_interval(number, scale=1.0),
        between_clip_sd=number.between_clip_sd,
        wide_interval=_wide_interval(number),
    )


def _probability(number: ReportedNumber, parameters: Mapping[str, str]) -> ClassProbability:
    """Reports state percent, predictions 0 to 1."""
    return ClassProbability(
        condition=number.quantity,
        probability=_scaled(number.value, 0.01),
        interval=_interval(number, scale=0.01),
        threshold_probability=_scaled(float(parameters[f"{number.quantity}_threshold_percent"]), 0.01),
        decision=_DECISIONS[str(number.decision)],
    )


def _interval(number: ReportedNumber, *, scale: float) -> Interval:
    low, high = _scaled(number.interval_low, scale), _scaled(number.interval_high, scale)
    return Interval(low=low, high=high, coverage_percent=number.coverage_percent)


def _wide_interval(number: ReportedNumber) -> Interval | None:
    if number.wide_interval is None or number.wide_coverage_percent is None:
        return None
    low, high = number.wide_interval
    return Interval(low=low, high=high, coverage_percent=number.wide_coverage_percent)


def _scaled(value: float, scale: float) -> float:
    return round(value * scale, 6) + 0.0


def _engine(parameters: Mapping[str, str]) -> ModelIdentity:
    runtime, _, runtime_version = parameters["runtime"].partition(" ")
    named = {
        field.name: parameters[field.name]
        for field in fields(ModelIdentity)
        if not field.name.startswith("runtime") and (field.name in parameters or field.default is MISSING)
    }
    return ModelIdentity(**named, runtime=runtime, runtime_version=runtime_version)
