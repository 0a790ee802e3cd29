"""Content items that all measurement reports share: numbers with their interval, algorithm, groups, sources.

TID 300, 310, 320, 321, 4019 and 4108 of PS3.16, built by highdicom where it can. What a modality says with them stands
in ``echo_ef``, ``cmr_risk`` and ``ecg_cmr``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr import RelationshipTypeValues as Relationship
from numpy.typing import NDArray
from pydicom.sr.coding import Code

from engines.predictions import ClassProbability, Estimate, Interval, ModelIdentity, Prediction
from engines.records import Modality, SourceInstance
from stream_processors.reports import codes
from stream_processors.reports.context import ReportContext
from stream_processors.reports.document import MANUFACTURER
from stream_processors.reports.evidence import Evidence

SINGLE_FRAME_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.6.1"})
"""MR Image and Ultrasound Image: a reference to them carries no frame number (PS3.3 10.3)."""
_DECIMALS = 1

Items = list[Any]
"""Content items of highdicom, which ships no types."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Everything a content function needs besides the numbers."""

    prediction: Prediction
    context: ReportContext
    evidence: Evidence


def reported(value: float) -> float:
    """Value as the report states it: one decimal, never minus zero."""
    return round(float(value), _DECIMALS) + 0.0


@dataclass(frozen=True, kw_only=True)
class Number:
    """Value and interval, both in ``unit``, under the name ``concept``."""

    concept: Code
    unit: Code
    value: float
    interval: Interval


def measurement(number: Number, modifiers: Items, properties: Items, sources: Items) -> Any:
    """NUM item (TID 300) with its interval as upper and lower uncertainty (TID 310, CID 225).

    The bounds are distances from the value, in its unit, computed from the rounded numbers: the bounds that the
    companion prints are the ones that a program computes.

    Args:
        number: what to state.
        modifiers: HAS CONCEPT MOD items.
        properties: HAS PROPERTIES items besides the interval.
        sources: INFERRED FROM items.
    """
    stated = reported(number.value)
    upper = _property(codes.UPPER_UNCERTAINTY, reported(number.interval.high) - stated, number.unit)
    lower = _property(codes.LOWER_UNCERTAINTY, stated - reported(number.interval.low), number.unit)
    item = hd.sr.Measurement(number.concept, stated, number.unit)
    item[0].ContentSequence = hd.sr.ContentSequence([*modifiers, upper, lower, *properties, *sources])
    return item


def _property(name: Code, value: float, unit: Code) -> Any:
    return hd.sr.NumContentItem(name, reported(value), unit, relationship_type=Relationship.HAS_PROPERTIES)


def modifier(name: Code, value: Code) -> Any:
    """CODE item that modifies the concept of its parent."""
    return hd.sr.CodeContentItem(name, value, relationship_type=Relationship.HAS_CONCEPT_MOD)


def code_property(name: Code, value: Code) -> Any:
    """CODE item that is a property of its parent (TID 310)."""
    return hd.sr.CodeContentItem(name, value, relationship_type=Relationship.HAS_PROPERTIES)


def text(name: Code, value: str) -> Any:
    """TEXT item contained in its parent."""
    return hd.sr.TextContentItem(name, value, relationship_type=Relationship.CONTAINS)


def estimate_number(estimate: Estimate, quantity: codes.Quantity, modifiers: Items, sources: Items) -> Any:
    """NUM item of one estimate; a mean of several clips says so, with their spread.

    The spread is a property of the number, not a number of its own: viewers would print it under the same name.

    Raises:
        ValueError: the unit of the estimate is not the one its code is reported in.
    """
    if estimate.unit != quantity.unit.value:
        msg = f"{estimate.quantity} comes in {estimate.unit!r}; the report states it in {quantity.unit.value!r}"
        raise ValueError(msg)
    properties = []
    if estimate.between_clip_sd is not None:
        properties = [
            code_property(codes.SELECTION_STATUS, codes.MEAN_VALUE_CHOSEN),
            _property(codes.STANDARD_DEVIATION, estimate.between_clip_sd, quantity.unit),
        ]
    number = Number(concept=quantity.concept, unit=quantity.unit, value=estimate.value, interval=estimate.interval)
    return measurement(number, modifiers, properties, sources)


def probability_number(probability: ClassProbability, sources: Items) -> Any:
    """NUM item of one probability, in percent (viewers hide or misprint the unit 1)."""
    interval = Interval(
        low=100 * probability.interval.low,
        high=100 * probability.interval.high,
        coverage_percent=probability.interval.coverage_percent,
    )
    number = Number(
        concept=codes.PROBABILITY, unit=codes.PERCENT, value=100 * probability.probability, interval=interval
    )
    return measurement(number, [modifier(codes.DERIVATION, codes.ESTIMATED)], [], sources)


def algorithm(subject: Subject) -> Any:
    """Algorithm Identification (TID 4019): enough to find the bytes of the engine again."""
    prediction, model = subject.prediction, subject.prediction.model
    parameters = {
        "method": model.method,
        "bundle_sha256": model.bundle_sha256,
        "weights_sha256": model.weights_sha256,
        "preprocess_sha256": model.preprocess_sha256,
        "runtime": f"{model.runtime} {model.runtime_version}",
        "precision": model.precision,
        "device": model.device,
        **_plan_parameters(model),
        "training_data": model.training_data,
        "intended_use": model.intended_use,
        "input_digest": subject.context.key.content_digest,
        **_calibration_parameters(prediction),
        **({} if subject.context.cross_modal is None else subject.context.cross_modal.parameters()),
    }
    if subject.evidence.unreferenced:
        parameters["unreferenced_instances"] = str(subject.evidence.unreferenced)
    return hd.sr.AlgorithmIdentification(
        name=model.name,
        version=model.version,
        parameters=[f"{key}={value}" for key, value in parameters.items()],
        family=codes.ARTIFICIAL_INTELLIGENCE,
        manufacturer=MANUFACTURER,
    )


def _plan_parameters(model: ModelIdentity) -> dict[str, str]:
    """Digest of the plan, and why a preferred runtime did not compute; only where they exist."""
    stated = {"plan_sha256": model.plan_sha256, "fallback": model.fallback}
    return {name: value for name, value in stated.items() if value is not None}


def _calibration_parameters(prediction: Prediction) -> dict[str, str]:
    parameters = {}
    for estimate in prediction.estimates:
        parameters[f"{estimate.quantity}_interval_coverage_percent"] = f"{estimate.interval.coverage_percent:g}"
        parameters |= _wide_interval_parameters(estimate)
    for probability in prediction.probabilities:
        condition = probability.condition
        parameters[f"{condition}_interval_coverage_percent"] = f"{probability.interval.coverage_percent:g}"
        parameters[f"{condition}_threshold_percent"] = f"{100 * probability.threshold_probability:g}"
    if prediction.out_of_distribution_score is not None:
        parameters["out_of_distribution_score"] = f"{prediction.out_of_distribution_score:.3f}"
        parameters["out_of_distribution_limit"] = "1"
    return parameters


def _wide_interval_parameters(estimate: Estimate) -> dict[str, str]:
    """The second interval of an estimate, in its unit; a number has one upper and one lower uncertainty (TID 310)."""
    wide = estimate.wide_interval
    if wide is None:
        return {}
    return {
        f"{estimate.quantity}_wide_interval": f"{reported(wide.low)} to {reported(wide.high)}",
        f"{estimate.quantity}_wide_interval_coverage_percent": f"{wide.coverage_percent:g}",
    }


def tracking(subject: Subject, quantity: str, label: str) -> Any:
    """Tracking Identifier and UID (TID 4108); OHIF reads no group without both."""
    return hd.sr.TrackingIdentifier(uid=subject.context.key.tracking_uid(quantity), identifier=f"{label} (AI)")


def image_sources(sources: Sequence[SourceInstance]) -> Items:
    """INFERRED FROM items (TID 320): the images and frames a number comes from."""
    return [
        hd.sr.SourceImageForMeasurement(source.sop_class_uid, source.sop_instance_uid, _frames(source))
        for source in sources
    ]


def waveform_sources(sources: Sequence[SourceInstance], relationship: Relationship) -> Items:
    """WAVEFORM items (TID 321): the multiplex group and channels a number comes from; never IMAGE items."""
    return [
        hd.sr.value_types.WaveformContentItem(
            codes.SOURCE if relationship is Relationship.CONTAINS else codes.SOURCE_OF_MEASUREMENT,
            source.sop_class_uid,
            source.sop_instance_uid,
            source.waveform_channels or None,
            relationship_type=relationship,
        )
        for source in sources
    ]


def region(subject: Subject) -> Any | None:
    """Image Region (TID 1410): the analysed rectangle on the first analysed frame of the first source.

    Where the engine states no region the whole frame was analysed; without rows and columns there is none to draw. Of a
    cardiac MR stack any source will do, since the same crop was taken of all of them.
    """
    source = _source_to_show(subject)
    if source is None:
        return None
    corners = subject.prediction.region_px or _whole_frame(subject, source)
    if corners is None:
        return None
    polyline = _outline(*corners)
    frames = None if source.sop_class_uid in SINGLE_FRAME_CLASSES else [(_frames(source) or [1])[0]]
    image = hd.sr.SourceImageForRegion(source.sop_class_uid, source.sop_instance_uid, frames)
    return hd.sr.ImageRegion(hd.sr.GraphicTypeValues.POLYLINE, polyline, image)


def _outline(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.float64]:
    """Rectangle as a closed polyline, (column, row) [9, 2]: corners and the middles of the sides.

    Without the middles OHIF takes it for a rectangle that a person drew, and offers to edit it.
    """
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    corners = [(x0, y0), (x, y0), (x1, y0), (x1, y), (x1, y1), (x, y1), (x0, y1), (x0, y), (x0, y0)]
    return np.array(corners, dtype=np.float64)


def _source_to_show(subject: Subject) -> SourceInstance | None:
    sources, referable = subject.prediction.sources, subject.evidence.sources
    if referable and (referable[0] == sources[0] or subject.prediction.modality is Modality.CMR):
        return referable[0]
    return None


def _whole_frame(subject: Subject, source: SourceInstance) -> tuple[int, int, int, int] | None:
    for header in subject.context.evidence:
        if header.get("SOPInstanceUID") == source.sop_instance_uid and header.get("Rows") and header.get("Columns"):
            return 0, 0, int(header.Columns), int(header.Rows)
    return None


def _frames(source: SourceInstance) -> list[int] | None:
    if source.sop_class_uid in SINGLE_FRAME_CLASSES or not source.frame_numbers:
        return None
    return list(source.frame_numbers)


def group(subject: Subject, quantity: str, label: str, **content: Any) -> Any:
    """Measurement group: TID 1410 on the analysed region, or TID 1501 where no region can be drawn.

    A report holds one region group and nothing else, or only groups without region: OHIF opens the first group of a
    report and stops at one without coordinates, and validators read a mixture as broken TID 1410 groups.
    """
    shared = {
        "tracking_identifier": tracking(subject, quantity, label),
        "algorithm_id": algorithm(subject),
        **content,
    }
    drawn = region(subject)
    if drawn is None:
        return hd.sr.MeasurementsAndQualitativeEvaluations(**shared)
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=drawn, **shared)
