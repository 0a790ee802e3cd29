"""The shell around what we write: patient, study, series, equipment, general SR attributes, and the bytes on disk.

One shell for the documents (measurement report and companion) and the picture, so that identity, times and flags agree. Every value
follows from the arguments: no clock, no random number, no version of a library. Knows nothing of what a report says.
"""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import groupby

from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from engines.predictions import ModelIdentity
from stream_processors.reports.codes import PROCESSING_EQUIPMENT
from stream_processors.reports.context import ReportContext
from stream_processors.reports.evidence import Evidence, EvidenceInstance, code_item, put
from stream_processors.reports.identity import uid_from

MANUFACTURER = "Purkinje"
"""Manufacturer of every object we write; the intake of the plugin knows our own output by it."""
IMPLEMENTATION_CLASS_UID = uid_from(uuid.NAMESPACE_URL, "https://purkinje.example/implementation/1")
IMPLEMENTATION_VERSION_NAME = "PURKINJE_1"
COMPLETION_DESCRIPTION = "AI output, not reviewed"
_LONG_STRING = 64  # PS3.5 6.2, VR LO


@dataclass(frozen=True, kw_only=True)
class Shell:
    """What distinguishes one object of a report from the others.

    Args:
        modality: Modality of the series (PS3.3 C.7.3.1.1.1): ``SR``, and ``OT`` for the picture.
        sop_class_uid, sop_instance_uid, series_instance_uid: identity.
        series_number: 9001 and above, where no scanner counts.
        series_description: what the study list shows; cut to 64 characters.
    """

    modality: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    series_number: int
    series_description: str


def build_document(
    root: Dataset, shell: Shell, evidence: Evidence, context: ReportContext, model: ModelIdentity
) -> Dataset:
    """Put a content tree into an SR instance (PS3.3 A.35.2, A.35.3).

    Args:
        root: CONTAINER item without relationship; every CONTAINER in it becomes SEPARATE, since viewers run the items
            of CONTINUOUS ones together.
        shell: identity and series.
        evidence: patient, study, references, acquisition equipment.
        context: time, node, version, predecessors.
        model: the engine, as contributing equipment.
    """
    document = begin_object(shell, evidence, context, model)
    document.ReferencedPerformedProcedureStepSequence = []
    _add_document_general(document, evidence, context)
    separate(root)
    document.update(root)
    return document


def begin_object(shell: Shell, evidence: Evidence, context: ReportContext, model: ModelIdentity) -> Dataset:
    """What every object of ours has: patient, study, series, equipment, times and file meta information."""
    started = Dataset()
    started.update(evidence.subject)
    started.file_meta = _file_meta(shell)
    started.SpecificCharacterSet = "ISO_IR 192"
    started.SOPClassUID = shell.sop_class_uid
    started.SOPInstanceUID = shell.sop_instance_uid
    _add_series(started, shell)
    _add_equipment(started, evidence, context, model)
    _add_times(started, context.event_time_utc, evidence.utc_offset)
    return started


def encode(document: Dataset) -> bytes:
    """Part 10 bytes (PS3.10 7): zero preamble, Explicit VR Little Endian, the same for the same document."""
    buffer = io.BytesIO()
    dcmwrite(buffer, document, enforce_file_format=True)
    return buffer.getvalue()


def separate(item: Dataset) -> None:
    """Make every CONTAINER of a tree SEPARATE (PS3.3 C.18.8)."""
    if item.ValueType == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
    for child in item.get("ContentSequence", ()):
        separate(child)


def _file_meta(shell: Shell) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(shell.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(shell.sop_instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def _add_series(document: Dataset, shell: Shell) -> None:
    document.Modality = shell.modality
    document.SeriesInstanceUID = shell.series_instance_uid
    document.SeriesNumber = shell.series_number
    document.SeriesDescription = shell.series_description[:_LONG_STRING].rstrip()
    document.InstanceNumber = 1


def _add_equipment(document: Dataset, evidence: Evidence, context: ReportContext, model: ModelIdentity) -> None:
    document.Manufacturer = MANUFACTURER
    put(document, "ManufacturerModelName", model.name[:_LONG_STRING])
    put(document, "SoftwareVersions", context.software_version[:_LONG_STRING])
    document.ContributingEquipmentSequence = [*evidence.equipment, _processing_item(context, model)]


def _processing_item(context: ReportContext, model: ModelIdentity) -> Dataset:
    """One item for the algorithm, with a Device UID that changes with its weights."""
    item = Dataset()
    item.Manufacturer = MANUFACTURER
    put(item, "ManufacturerModelName", model.name[:_LONG_STRING])
    put(item, "SoftwareVersions", [context.software_version[:_LONG_STRING], model.version[:_LONG_STRING]])
    item.DeviceUID = context.key.algorithm_uid
    item.ContributionDateTime = context.event_time_utc.strftime("%Y%m%d%H%M%S.%f+0000")
    item.ContributionDescription = f"{model.method}, {model.runtime} {model.runtime_version}, {model.precision}"
    item.PurposeOfReferenceCodeSequence = [code_item(PROCESSING_EQUIPMENT)]
    return item


def _add_times(document: Dataset, event_time_utc: datetime, utc_offset: str) -> None:
    """Write the event time in the time zone of the study, which Timezone Offset declares for all its attributes."""
    local = event_time_utc.astimezone(_zone(utc_offset))
    date, time = local.strftime("%Y%m%d"), local.strftime("%H%M%S.%f")
    document.TimezoneOffsetFromUTC = utc_offset
    for prefix in ("InstanceCreation", "Series", "Content"):
        setattr(document, f"{prefix}Date", date)
        setattr(document, f"{prefix}Time", time)


def _zone(utc_offset: str) -> timezone:
    minutes = int(utc_offset[1:3]) * 60 + int(utc_offset[3:5])
    return timezone(timedelta(minutes=-minutes if utc_offset[0] == "-" else minutes))


def _add_document_general(document: Dataset, evidence: Evidence, context: ReportContext) -> None:
    """SR Document General (PS3.3 C.17.2): complete, but neither verified nor final; only a person makes it so."""
    document.CompletionFlag = "COMPLETE"
    document.CompletionFlagDescription = COMPLETION_DESCRIPTION
    document.VerificationFlag = "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"
    document.PerformedProcedureCodeSequence = []
    study = evidence.subject.StudyInstanceUID
    same_study = [instance for instance in evidence.instances if instance.study_instance_uid == study]
    other_study = [instance for instance in evidence.instances if instance.study_instance_uid != study]
    if same_study:
        document.CurrentRequestedProcedureEvidenceSequence = _references(same_study)
    if other_study:
        document.PertinentOtherEvidenceSequence = _references(other_study)
    predecessors = [_predecessor(dataset) for dataset in context.predecessors]
    if predecessors:
        document.PredecessorDocumentsSequence = _references(sorted(predecessors))


def _predecessor(dataset: Dataset) -> EvidenceInstance:
    return EvidenceInstance(
        study_instance_uid=str(dataset.StudyInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
    )


def _references(instances: list[EvidenceInstance]) -> list[Dataset]:
    """Hierarchical SOP Instance Reference macro (PS3.3 C.17.2.1) over sorted instances."""
    items = []
    for study, of_study in groupby(instances, key=lambda instance: instance.study_instance_uid):
        item = Dataset()
        item.StudyInstanceUID = study
        item.ReferencedSeriesSequence = [
            _series_reference(series, list(of_series))
            for series, of_series in groupby(of_study, key=lambda instance: instance.series_instance_uid)
        ]
        items.append(item)
    return items


def _series_reference(series_instance_uid: str, instances: list[EvidenceInstance]) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = series_instance_uid
    item.ReferencedSOPSequence = [_instance_reference(instance) for instance in instances]
    return item


def _instance_reference(instance: EvidenceInstance) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = instance.sop_class_uid
    item.ReferencedSOPInstanceUID = instance.sop_instance_uid
    return item
