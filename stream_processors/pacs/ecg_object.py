"""An ECG file as a DICOM object, so that a cart without DICOM reaches the PACS: 12-Lead ECG Waveform Storage (PS3.3 A.34.3).

Twelve channels of 16-bit steps in microvolt, the stored step of the file wherever it states one, so that what is decoded again
is what the file held. Limb leads that were computed carry the codes of derived leads. Longer records than the 12-Lead object
holds become General ECG objects (A.34.4). UIDs follow from content and patient: a second sending is the same study. Called by
``send``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from engines.decode.ecg import GENERAL, TWELVE_LEAD
from engines.decode.ecg_file import DICOM, EcgFile, read_ecg_file, uid_of
from engines.decode.ecg_reading import EcgOrigin
from engines.errors import InputRefused, RefusalCode
from engines.records import LEAD_NAMES, EcgRecord

TWELVE_LEAD_SAMPLES = 16_384
"""Most samples of a 12-Lead ECG object (PS3.3 A.34.3.4.5)."""
RATE_MIN_HZ, RATE_MAX_HZ = 200.0, 1000.0
_RECORDED = dict(zip(LEAD_NAMES, (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8), strict=True))
_COMPUTED = dict(zip(LEAD_NAMES[2:6], (111, 112, 113, 114), strict=True))
_LARGEST, _PADDING = 32_767, -32_768
_UNSTATED_STEP_MV = 0.001


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the sender states; it wins over what the file says."""

    patient_id: str | None = None
    patient_name: str | None = None
    accession_number: str | None = None


def ecg_object(path: Path, identity: Identity) -> FileDataset:
    """Build the DICOM object of a file.

    Args:
        path: a file that ``read_ecg_file`` reads and that is no DICOM yet.
        identity: what the sender states.

    Raises:
        InputRefused: the file cannot be read, or no object can hold it.
        ValueError: it is DICOM already, or nobody states whose ECG it is.
    """
    file = read_ecg_file(path)
    if file.format == DICOM:
        msg = f"{path} is a DICOM object already; send it without --ecg"
        raise ValueError(msg)
    origin = _stated(file.origin, identity)
    if not origin.patient_id:
        msg = f"{path} does not say whose ECG it is; state it with --patient-id"
        raise ValueError(msg)
    _require_rate(file.record)
    return _dataset(file, origin)


def _stated(origin: EcgOrigin, identity: Identity) -> EcgOrigin:
    stated = {name: value for name, value in vars(identity).items() if value is not None}
    return replace(origin, **stated)


def _require_rate(record: EcgRecord) -> None:
    if not RATE_MIN_HZ <= record.sampling_rate_hz <= RATE_MAX_HZ:
        raise InputRefused(
            RefusalCode.SAMPLING_RATE_UNSUPPORTED,
            f"the ECG is sampled at {record.sampling_rate_hz:g} Hz; a DICOM ECG holds {RATE_MIN_HZ:g} to {RATE_MAX_HZ:g} Hz "
            "(PS3.3 A.34.3.4.4); export it at its full rate",
        )


def _dataset(file: EcgFile, origin: EcgOrigin) -> FileDataset:
    key = (
        file.content_sha256,
        *(str(value) for value in (origin.patient_id, origin.patient_name, origin.accession_number)),
    )
    sop_class = TWELVE_LEAD if file.record.signal_mv.shape[1] <= TWELVE_LEAD_SAMPLES else GENERAL
    dataset = _file_dataset(sop_class, uid_of(*key, "instance"))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid_of(*key, "study"), uid_of(*key, "series")
    _patient(dataset, origin)
    _study(dataset, origin)
    dataset.SynchronizationFrameOfReferenceUID = uid_of(*key, "synchronization")
    dataset.WaveformSequence = Sequence([_group(file)])
    return dataset


def _file_dataset(sop_class: str, sop_instance: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(sop_instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop_class, sop_instance, "ECG"
    return dataset


def _patient(dataset: Dataset, origin: EcgOrigin) -> None:
    """PS3.3 C.7.1.1; what is unknown stays empty."""
    dataset.PatientID, dataset.PatientName = _short(origin.patient_id, 64), _short(origin.patient_name, 64)
    dataset.PatientBirthDate, dataset.PatientSex = origin.birth_date or "", origin.sex or ""


def _study(dataset: Dataset, origin: EcgOrigin) -> None:
    """Study, series, equipment and acquisition; a file without a date has none here."""
    day, time = _day_and_time(origin.acquired_at)
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = day
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = time
    dataset.AcquisitionDateTime = f"{day}{time}"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = _short(origin.accession_number, 16), ""
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "", 1, 1
    dataset.StudyDescription = dataset.SeriesDescription = "12-lead ECG"
    dataset.Manufacturer, dataset.ManufacturerModelName = (
        _short(origin.manufacturer, 64),
        _short(origin.model, 64) or "unknown",
    )
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "unknown", _short(origin.software, 64) or "unknown"
    dataset.AcquisitionContextSequence = Sequence([])
    dataset.SynchronizationTrigger, dataset.AcquisitionTimeSynchronized = "NO TRIGGER", "N"


def _day_and_time(moment: datetime | None) -> tuple[str, str]:
    return (moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")) if moment else ("", "")


def _short(text: str | None, length: int) -> str:
    """A value within its VR's length (PS3.5 6.2), without the value separator."""
    return (text or "").replace("\\", " ").strip()[:length].strip()


def _group(file: EcgFile) -> Dataset:
    record = file.record
    steps_uv = np.array(
        [1000 * _step_mv(lead, record.signal_mv[row], file.steps_mv) for row, lead in enumerate(LEAD_NAMES)]
    )
    steps_uv = np.array([float(_decimal(step)) for step in steps_uv])
    group = Dataset()
    group.WaveformOriginality, group.MultiplexGroupLabel = "ORIGINAL", "RHYTHM"
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = record.signal_mv.shape
    group.SamplingFrequency = _decimal(record.sampling_rate_hz)
    group.ChannelDefinitionSequence = Sequence(
        [_channel(lead, step, file) for lead, step in zip(LEAD_NAMES, steps_uv, strict=True)]
    )
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    stored = np.rint(record.signal_mv.astype(np.float64) * 1000 / steps_uv[:, None])
    if np.isnan(stored).any():
        group.WaveformPaddingValue = _PADDING.to_bytes(2, "little", signed=True)
        group["WaveformPaddingValue"].VR = "OW"
    group.WaveformData = np.where(np.isnan(stored), _PADDING, stored).T.astype("<i2").tobytes()
    group["WaveformData"].VR = "OW"
    return group


def _step_mv(lead: str, signal_mv: NDArray[np.float32], stated_mv: Mapping[str, float]) -> float:
    """The file's own step; half of it for a computed lead; more where 16 bits would not hold the lead."""
    limb = min((stated_mv[each] for each in ("I", "II") if each in stated_mv), default=_UNSTATED_STEP_MV)
    step = stated_mv.get(lead, limb / 2)
    largest = float(np.nanmax(np.abs(signal_mv), initial=0.0))
    return max(step, 1.001 * largest / _LARGEST)


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    return f"{value:.10g}"


def _channel(lead: str, step_uv: float, file: EcgFile) -> Dataset:
    """PS3.3 C.10.9.1.4."""
    computed = lead in file.record.derived_leads
    code, meaning = (_COMPUTED[lead], f"Derived Lead {lead}") if computed else (_RECORDED[lead], f"Lead {lead}")
    channel = Dataset()
    channel.ChannelLabel = lead
    channel.ChannelSourceSequence = Sequence([_code(f"2:{code}", "MDC", meaning)])
    if computed:
        channel.ChannelDerivationDescription = "Computed from leads I and II"
    channel.ChannelSensitivity = _decimal(step_uv)
    channel.ChannelSensitivityUnitsSequence = Sequence([_code("uV", "UCUM", "microvolt")])
    channel.ChannelSensitivityCorrectionFactor = "1"
    channel.ChannelBaseline, channel.ChannelSampleSkew, channel.WaveformBitsStored = "0", "0", 16
    edges = {
        "FilterLowFrequency": file.record.highpass_hz,
        "FilterHighFrequency": file.record.lowpass_hz,
        "NotchFilterFrequency": file.notch_hz,
    }
    for keyword, edge_hz in edges.items():
        if edge_hz:
            setattr(channel, keyword, _decimal(edge_hz))
    return channel


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def part10_bytes(dataset: FileDataset) -> bytes:
    """The object as a Part 10 file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
