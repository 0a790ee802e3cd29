"""Small generated studies, with what the plugin looks at and no pixels, and how to send them by C-STORE."""

from __future__ import annotations

import socket
import uuid
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt

from stream_processors.local.orthanc import LocalOrthanc

MR = "1.2.840.10008.5.1.4.1.1.4"
US_CLIP = "1.2.840.10008.5.1.4.1.1.3.1"
ECG = "1.2.840.10008.5.1.4.1.1.9.1.1"
SR = "1.2.840.10008.5.1.4.1.1.88.33"
CT = "1.2.840.10008.5.1.4.1.1.2"
NAME, PATIENT_ID, BIRTH_DATE = "CANARY^BIRD", "CANARY-ID-77", "19010203"
"""A patient who must not leave the PACS."""


def new_study() -> str:
    """A Study Instance UID that leaves room for the series' suffix."""
    return f"2.25.{uuid.uuid4().int >> 32}"


def instance(sop_class_uid: str, modality: str, study: str, series: str = "1", **elements: Any) -> Dataset:
    """A small dataset of a class; what the plugin looks at, and a patient who must not leave the PACS."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.{series}"
    dataset.Modality = modality
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, PATIENT_ID, BIRTH_DATE
    dataset.Manufacturer = "Tests"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def stack(study: str, slices: int = 4, phases: int = 5, *, stated: bool = True) -> list[Dataset]:
    """A short-axis cine stack whose header states how many images it has, or does not."""
    more = {"ImagesInAcquisition": slices * phases} if stated else {}
    return [
        instance(
            MR,
            "MR",
            study,
            CardiacNumberOfImages=phases,
            ImagePositionPatient=[0, 0, 8 * z],
            TriggerTime=40 * t,
            **more,
        )
        for z in range(slices)
        for t in range(phases)
    ]


def send(orthanc: LocalOrthanc, *datasets: Dataset) -> None:
    """C-STORE; every instance must be accepted."""
    entity = AE(ae_title="TESTS")
    for sop_class_uid in {dataset.SOPClassUID for dataset in datasets}:
        entity.add_requested_context(sop_class_uid, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", orthanc.dicom_port, evt_handlers=[(evt.EVT_CONN_OPEN, _no_delay)])
    assert association.is_established
    for dataset in datasets:
        assert association.send_c_store(dataset).Status == 0x0000
    association.release()


def _no_delay(event: Any) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
