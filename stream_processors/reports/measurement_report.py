"""A prediction becomes two DICOM documents: the measurement report for programs, the companion for people.

TID 1500 through highdicom, for an answer as measurement groups, for an abstention or refusal as a coded statement with
its reason and no number at all. Where the engine drew a picture the report refers to it, and ``picture_of`` makes it.
The pipeline calls ``build_reports``, ``picture_of`` and ``encode``; nothing here stores or sends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import highdicom as hd
from highdicom.sr import RelationshipTypeValues as Relationship
from pydicom.dataset import Dataset

from engines.predictions import Abstention, Prediction
from engines.records import Modality
from stream_processors.reports import cmr_risk, codes, ecg_cmr, echo_ef
from stream_processors.reports.companion import COMPANION_SOP_CLASS_UID, companion_root
from stream_processors.reports.content import Items, Subject, algorithm, text
from stream_processors.reports.context import ReportContext
from stream_processors.reports.document import MANUFACTURER, Shell, build_document, encode
from stream_processors.reports.evidence import Evidence, normalise_evidence
from stream_processors.reports.picture import PICTURE_SOP_CLASS_UID, build_picture, picture_instance

__all__ = ["ReportContext", "build_reports", "encode", "picture_of"]

_GROUPS: Final[dict[Modality, Callable[[Subject], Items]]] = {
    Modality.ECHO: echo_ef.groups,
    Modality.CMR: cmr_risk.groups,
    Modality.ECG: ecg_cmr.groups,
}
_FIRST_SERIES_NUMBER: Final = {Modality.ECHO: 9001, Modality.CMR: 9011, Modality.ECG: 9021}
_NOT_CLINICAL: Final = ", not for clinical use"
_LONG_STRING: Final = 64  # PS3.5 6.2, VR LO


def build_reports(prediction: Prediction, context: ReportContext) -> tuple[Dataset, Dataset]:
    """Build the measurement report and its readable companion.

    Args:
        prediction: the answer, or the abstention or refusal, of one engine for one study.
        context: study, time, node, identity.

    Returns:
        (measurement report, companion), the same bytes for the same arguments.

    Raises:
        ValueError: the modality of key and prediction differ, the prediction holds something the report of its modality
            has no place for, or the evidence lacks UIDs.
    """
    if context.key.modality != prediction.modality:
        msg = f"the key says {context.key.modality}, the prediction {prediction.modality}; they must agree"
        raise ValueError(msg)
    evidence = normalise_evidence(context.evidence, prediction.sources)
    subject = Subject(prediction=prediction, context=context, evidence=evidence)
    referred = _with_picture(subject)
    report = build_document(_report_root(subject), _report_shell(subject), referred, context, prediction.model)
    observed = [*_language(), *_observation_context(subject)]
    readable = companion_root(prediction, evidence, observed, context.cross_modal)
    companion = build_document(readable, _companion_shell(subject), evidence, context, prediction.model)
    return report, companion


def picture_of(prediction: Prediction, context: ReportContext) -> Dataset | None:
    """The picture that the measurement report refers to, or None where the engine drew none.

    Raises:
        ValueError: the evidence lacks UIDs.
    """
    if prediction.picture is None:
        return None
    evidence = normalise_evidence(context.evidence, prediction.sources)
    subject = Subject(prediction=prediction, context=context, evidence=evidence)
    return build_picture(prediction.picture, _picture_shell(subject), subject)


def _with_picture(subject: Subject) -> Evidence:
    """What the measurement report refers to: its sources, and the picture where there is one."""
    evidence = subject.evidence
    if subject.prediction.picture is None:
        return evidence
    picture = picture_instance(subject.context.key, str(evidence.subject.StudyInstanceUID))
    return replace(evidence, instances=tuple(sorted((*evidence.instances, picture))))


def ran_and_abstained(prediction: Prediction, abstention: Abstention) -> bool:
    """True when the engine ran and declined to answer; False when its input was refused before."""
    return prediction.out_of_distribution_score is not None or abstention.code in codes.RAN_AND_ABSTAINED


def _report_root(subject: Subject) -> Dataset:
    if subject.prediction.abstention is not None:
        return _statement_without_result(subject, subject.prediction.abstention)
    report = hd.sr.MeasurementReport(
        observation_context=_observation_context(subject),
        procedure_reported=codes.PROCEDURES[subject.prediction.modality],
        imaging_measurements=_GROUPS[subject.prediction.modality](subject),
        title=codes.IMAGING_MEASUREMENT_REPORT,
        language_of_content_item_and_descendants=_language(),
    )
    root: Dataset = report[0]
    return root


def _statement_without_result(subject: Subject, abstention: Abstention) -> Dataset:
    """TID 1500 with Qualitative Evaluations instead of measurements: no number, not even an empty one."""
    ran = ran_and_abstained(subject.prediction, abstention)
    evaluations = hd.sr.ContainerContentItem(codes.QUALITATIVE_EVALUATIONS, relationship_type=Relationship.CONTAINS)
    summary = hd.sr.CodeContentItem(
        codes.SUMMARY_OF_ANALYSES,
        codes.FAILED if ran else codes.NOT_ATTEMPTED,
        relationship_type=Relationship.CONTAINS,
    )
    summary.ContentSequence = algorithm(subject)
    evaluations.ContentSequence = hd.sr.ContentSequence(
        [
            summary,
            text(codes.COMMENT, f"No result: {abstention.reason}"),
            text(codes.COMMENT, f"Reason code: {abstention.code.value}"),
        ]
    )
    root = hd.sr.ContainerContentItem(codes.IMAGING_MEASUREMENT_REPORT, template_id="1500")
    procedure = hd.sr.CodeContentItem(
        codes.PROCEDURE_REPORTED,
        codes.PROCEDURES[subject.prediction.modality],
        relationship_type=Relationship.HAS_CONCEPT_MOD,
    )
    root.ContentSequence = hd.sr.ContentSequence([*_language(), *_observation_context(subject), procedure, evaluations])
    statement: Dataset = root
    return statement


def _language() -> Any:
    return hd.sr.LanguageOfContentItemAndDescendants(hd.sr.CodedConcept("en", "RFC5646", "English"))


def _observation_context(subject: Subject) -> Any:
    """Device observer (TID 1004): the processing node; no person has seen the report."""
    context = subject.context
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=context.key.device_observer_uid(context.node),
        name=context.node,
        manufacturer_name=MANUFACTURER,
        model_name=f"{subject.prediction.model.name} {subject.prediction.model.version}",
    )
    observer = hd.sr.ObserverContext(observer_type=codes.DEVICE, observer_identifying_attributes=device)
    return hd.sr.ObservationContext(observer_device_context=observer)


def _report_shell(subject: Subject) -> Shell:
    key = subject.context.key
    return Shell(
        modality="SR",
        sop_class_uid=key.sop_class_uid,
        sop_instance_uid=key.sop_instance_uid,
        series_instance_uid=key.series_instance_uid,
        series_number=_FIRST_SERIES_NUMBER[key.modality],
        series_description=_series_description(subject, "AI"),
    )


def _companion_shell(subject: Subject) -> Shell:
    key = subject.context.key
    return Shell(
        modality="SR",
        sop_class_uid=COMPANION_SOP_CLASS_UID,
        sop_instance_uid=key.companion_sop_instance_uid,
        series_instance_uid=key.companion_series_instance_uid,
        series_number=_FIRST_SERIES_NUMBER[key.modality] + 1,
        series_description=_series_description(subject, "AI text"),
    )


def _picture_shell(subject: Subject) -> Shell:
    key = subject.context.key
    return Shell(
        modality="OT",
        sop_class_uid=PICTURE_SOP_CLASS_UID,
        sop_instance_uid=key.picture_sop_instance_uid,
        series_instance_uid=key.picture_series_instance_uid,
        series_number=_FIRST_SERIES_NUMBER[key.modality] + 2,
        series_description=_series_description(subject, "AI picture"),
    )


def _series_description(subject: Subject, prefix: str) -> str:
    """Kind, model and version; the warning stays whole, the name of the model is what gets cut.

    Study lists show the beginning, so that an abstention is known without opening it.
    """
    model = subject.prediction.model
    kind = subject.prediction.modality.value + (" no result" if subject.prediction.abstention is not None else "")
    warning = _NOT_CLINICAL if "not for clinical use" in model.intended_use.lower() else ""
    described = f"{prefix} {kind} {model.name} {model.version}"
    return described[: _LONG_STRING - len(warning)] + warning
