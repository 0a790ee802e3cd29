"""Predictions, headers and contexts for the tests of the reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from engines.errors import RefusalCode
from engines.predictions import Abstention, ClassProbability, Estimate, Interval, ModelIdentity, Picture, Prediction
from engines.records import Modality, SourceInstance
from stream_processors.reports.identity import TEMPLATE_VERSION, ReportKey
from stream_processors.reports.measurement_report import ReportContext

COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
SOP_CLASSES = {
    Modality.ECHO: "1.2.840.10008.5.1.4.1.1.3.1",
    Modality.CMR: "1.2.840.10008.5.1.4.1.1.4",
    Modality.ECG: "1.2.840.10008.5.1.4.1.1.9.1.1",
}
DISEASES = (
    "coronary_artery_disease",
    "atrial_fibrillation",
    "sudden_cardiac_death",
    "heart_failure",
    "myocardial_infarction",
    "cardiomyopathy",
)
ANSWERS = ("answered", "undecided", "abstained", "refused")


def make_header(modality: Modality, number: int = 1, **changes: Any) -> Dataset:
    """Header of one source instance, complete; a change to None leaves the attribute out."""
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.SOPClassUID = SOP_CLASSES[modality]
    header.SOPInstanceUID = f"1.2.3.4.{number}"
    header.SeriesInstanceUID = "1.2.3.4"
    header.StudyInstanceUID = "1.2.3"
    header.PatientName = "Doe^Jane"
    header.PatientID = "ID-1"
    header.PatientBirthDate = "19500102"
    header.PatientSex = "F"
    header.StudyDate, header.StudyTime = "20260102", "030405.123"
    header.StudyID, header.AccessionNumber = "S1", "A1"
    header.ReferringPhysicianName = "Ref^Doctor"
    header.Manufacturer = "Scanner Works"
    header.ManufacturerModelName = "Model 1"
    if modality is not Modality.ECG:
        header.Rows, header.Columns = 480, 640
    for keyword, value in changes.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    return header


def make_source(header: Dataset, modality: Modality) -> SourceInstance:
    """Reference to a header, with frames or channels as its modality has them."""
    return SourceInstance(
        sop_class_uid=str(header.SOPClassUID),
        sop_instance_uid=str(header.SOPInstanceUID),
        series_instance_uid=str(header.SeriesInstanceUID),
        frame_numbers=tuple(range(3, 35)) if modality is Modality.ECHO else (),
        waveform_channels=((1, 0),) if modality is Modality.ECG else (),
    )


def make_model(modality: Modality) -> ModelIdentity:
    """A released engine trained on phantoms."""
    return ModelIdentity(
        name=f"purkinje-{modality.value}",
        version="0.1.0",
        method="phantom network",
        bundle_sha256="a" * 64,
        weights_sha256="b" * 64,
        preprocess_sha256="c" * 64,
        runtime="onnxruntime",
        runtime_version="1.20.0",
        precision="fp32",
        device="cpu",
        training_data="Phantoms, 2000 subjects",
        intended_use="Demonstration, not for clinical use",
    )


def make_prediction(modality: Modality, answer: str, headers: Sequence[Dataset]) -> Prediction:
    """What an engine says: ``answered``, ``undecided``, ``abstained`` or ``refused``."""
    empty = Prediction(
        modality=modality,
        model=make_model(modality),
        sources=tuple(make_source(header, modality) for header in headers),
        abstention=Abstention(code=RefusalCode.OUT_OF_DISTRIBUTION, reason="Unlike everything the engine has seen."),
        out_of_distribution_score=1.8,
        notes=("The lead V1 is noisy \N{LESS-THAN OR EQUAL TO} 1 s.",),
    )
    if answer == "abstained":
        return empty
    if answer == "refused":
        reason = Abstention(code=RefusalCode.UNDECODABLE, reason="The pixel data ends too early.")
        return replace(empty, abstention=reason, out_of_distribution_score=None, sources=())
    decided = answer == "answered"
    content = {
        Modality.ECHO: {"estimates": (_estimate("lvef", 38.24, "%", 2.0 if decided else None),)},
        Modality.CMR: {"probabilities": (_probability("lvef_at_most_40", decided),)},
        Modality.ECG: {
            "estimates": (
                _twice(_estimate("lvef", 55.2, "%")),
                _twice(_estimate("rvef", 50, "%")),
                _twice(_estimate("cardiac_output", 5, "l/min")),
            ),
            "probabilities": tuple(_probability(disease, decided) for disease in DISEASES),
        },
    }[modality]
    region = None if modality is Modality.ECG else (40, 20, 600, 460)
    return replace(empty, abstention=None, region_px=region, out_of_distribution_score=0.4, **content)


def make_picture() -> Picture:
    """A small picture of an odd number of bytes: red above, blue below."""
    pixels = np.zeros((5, 3, 3), np.uint8)
    pixels[:3, :, 0], pixels[3:, :, 2] = 255, 200
    return Picture(rgb_HW3=pixels, caption="Red speaks for it, blue against it.")


def make_context(modality: Modality, headers: Sequence[Dataset], **changes: Any) -> ReportContext:
    """Surroundings of a report on these headers."""
    key = ReportKey(
        site_url="https://hospital.example",
        modality=modality,
        sop_class_uid=changes.pop("sop_class_uid", COMPREHENSIVE_SR),
        template_version=TEMPLATE_VERSION,
        content_digest=changes.pop("content_digest", "d" * 64),
        model_name=f"purkinje-{modality.value}",
        model_version=changes.pop("model_version", "0.1.0"),
        weights_sha256="b" * 64,
    )
    return ReportContext(
        key=key,
        event_time_utc=changes.pop("event_time_utc", datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)),
        evidence=tuple(headers),
        predecessors=changes.pop("predecessors", ()),
        node=changes.pop("node", "node-1"),
        software_version="0.1.0",
        cross_modal=changes.pop("cross_modal", None),
    )


def _estimate(quantity: str, value: float, unit: str, between_clip_sd: float | None = None) -> Estimate:
    interval = Interval(low=value - 3.21, high=value + 4.56, coverage_percent=90)
    return Estimate(quantity=quantity, value=value, unit=unit, interval=interval, between_clip_sd=between_clip_sd)


def _twice(estimate: Estimate) -> Estimate:
    """The estimate with a second interval."""
    wide = Interval(low=estimate.interval.low - 1.11, high=estimate.interval.high + 2.22, coverage_percent=95)
    return replace(estimate, wide_interval=wide)


def _probability(condition: str, decided: bool) -> ClassProbability:
    return ClassProbability(
        condition=condition,
        probability=0.831 if decided else 0.52,
        interval=Interval(low=0.7 if decided else 0.4, high=0.9, coverage_percent=95),
        threshold_probability=0.5,
        decision=True if decided else None,
    )
