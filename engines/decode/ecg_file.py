"""Any ECG file to ``EcgRecord``: the format is recognised by content, never by the file's name.

DICOM, WFDB, CardioSoft XML (UK Biobank 20205), HL7 aECG, Philips XML and MUSE XML. To add a format, write a module with
``recognises`` and ``read`` and name it in ``_FORMATS``. Files that are no DICOM get UIDs that follow from their content.
Called by ``purkinje send --ecg`` and by data sources of the training package.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from engines.decode import ecg_aecg, ecg_cardiosoft, ecg_muse, ecg_philips, ecg_wfdb
from engines.decode.ecg import TWELVE_LEAD, decode_ecg
from engines.decode.ecg_leads import MINUS_AVR, lead_warnings, require_plausible, twelve_leads
from engines.decode.ecg_reading import (
    MAX_FILE_BYTES,
    EcgContent,
    EcgOrigin,
    EcgReading,
    malformed,
    moment_of,
    sex_code,
)
from engines.decode.headers import parsed
from engines.errors import InputRefused, RefusalCode
from engines.records import EcgRecord, SourceInstance

DICOM = "DICOM"
_PREFIX = slice(128, 132)
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://purkinje.example/ecg-files")


@dataclass(frozen=True, kw_only=True)
class EcgFormat:
    """One format: its name, how it is told from others, and its reader."""

    name: str
    recognises: Callable[[EcgContent], bool]
    read: Callable[[EcgContent], EcgReading]


@dataclass(frozen=True, kw_only=True)
class EcgFile:
    """A file that was read.

    Args:
        format: name of its format.
        record: the twelve leads, without identity.
        origin: patient and cart.
        steps_mv: size of one stored step by recorded lead; empty for DICOM.
        notch_hz: stated notch filter, or None.
        content_sha256: of everything that was read, hexadecimal.
    """

    format: str
    record: EcgRecord
    origin: EcgOrigin
    steps_mv: Mapping[str, float]
    notch_hz: float | None
    content_sha256: str


_FORMATS = (
    EcgFormat(name="CardioSoft XML", recognises=ecg_cardiosoft.recognises, read=ecg_cardiosoft.read),
    EcgFormat(name="HL7 aECG", recognises=ecg_aecg.recognises, read=ecg_aecg.read),
    EcgFormat(name="Philips XML", recognises=ecg_philips.recognises, read=ecg_philips.read),
    EcgFormat(name="MUSE XML", recognises=ecg_muse.recognises, read=ecg_muse.read),
    EcgFormat(name="WFDB", recognises=ecg_wfdb.recognises, read=ecg_wfdb.read),
)
FORMAT_NAMES = (DICOM, *(each.name for each in _FORMATS))


def format_of(content: EcgContent) -> str | None:
    """Name of a file's format, or None."""
    if content.data[_PREFIX] == b"DICM":
        return DICOM
    return next((each.name for each in _FORMATS if each.recognises(content)), None)


def read_ecg_file(path: Path) -> EcgFile:
    """Read one file; of a WFDB record, its header.

    Raises:
        FileNotFoundError: there is no such file.
        NotApplicable: a DICOM object that is no ECG.
        InputRefused: not a known format, or an ECG that cannot be analysed.
    """
    return read_ecg_content(EcgContent(path=path, data=_bytes_of(path)))


def read_ecg_content(content: EcgContent) -> EcgFile:
    """Read what was read from a file already.

    Raises:
        NotApplicable: a DICOM object that is no ECG.
        InputRefused: not a known format, or an ECG that cannot be analysed.
    """
    name = format_of(content)
    if name is None:
        raise malformed(f"not recognised as {', '.join(FORMAT_NAMES)}")
    if name == DICOM:
        return _dicom(content)
    reading = next(each for each in _FORMATS if each.name == name).read(content)
    return _file(name, reading, _digest(content, reading))


def uid_of(*parts: str) -> str:
    """UID under 2.25 that follows from its parts (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(31).join(parts)).int}"


def _bytes_of(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InputRefused(RefusalCode.LIMITS_EXCEEDED, f"the file has {size} bytes; at most {MAX_FILE_BYTES} are read")
    return path.read_bytes()


def _file(name: str, reading: EcgReading, digest: str) -> EcgFile:
    signal_mv, derived = twelve_leads(reading.signals_mv)
    require_plausible(signal_mv)
    record = EcgRecord(
        signal_mv=signal_mv.astype(np.float32),
        sampling_rate_hz=reading.sampling_rate_hz,
        source=SourceInstance(
            sop_class_uid=TWELVE_LEAD,
            sop_instance_uid=uid_of(digest, "instance"),
            series_instance_uid=uid_of(digest, "series"),
        ),
        derived_leads=derived,
        highpass_hz=reading.highpass_hz or None,
        lowpass_hz=reading.lowpass_hz or None,
        warnings=(*reading.warnings, *lead_warnings(derived, reading.lowpass_hz or None)),
    )
    steps = {("aVR" if lead == MINUS_AVR else lead): step for lead, step in reading.steps_mv.items()}
    return EcgFile(
        format=name,
        record=record,
        origin=reading.origin,
        steps_mv=steps,
        notch_hz=reading.notch_hz,
        content_sha256=digest,
    )


def _digest(content: EcgContent, reading: EcgReading) -> str:
    """Of the file and, for records of several files, of the signals; where the files lie does not count."""
    digest = hashlib.sha256(content.data)
    for lead in sorted(reading.signals_mv):
        digest.update(lead.encode() + np.ascontiguousarray(reading.signals_mv[lead], "<f8").tobytes())
    return digest.hexdigest()


def _dicom(content: EcgContent) -> EcgFile:
    record = decode_ecg([io.BytesIO(content.data)])
    return EcgFile(
        format=DICOM,
        record=record,
        origin=_dicom_origin(parsed(io.BytesIO(content.data))),
        steps_mv={},
        notch_hz=None,
        content_sha256=hashlib.sha256(content.data).hexdigest(),
    )


def _dicom_origin(dataset: Dataset) -> EcgOrigin:
    moment = (
        str(dataset.get("AcquisitionDateTime") or "") or f"{dataset.get('StudyDate', '')}{dataset.get('StudyTime', '')}"
    )
    return EcgOrigin(
        patient_id=_text(dataset, "PatientID"),
        patient_name=_text(dataset, "PatientName"),
        birth_date=_text(dataset, "PatientBirthDate"),
        sex=sex_code(_text(dataset, "PatientSex")),
        accession_number=_text(dataset, "AccessionNumber"),
        acquired_at=moment_of(moment[:4], *(moment[at : at + 2] for at in range(4, 14, 2))),
        manufacturer=_text(dataset, "Manufacturer"),
        model=_text(dataset, "ManufacturerModelName"),
        software=_text(dataset, "SoftwareVersions"),
    )


def _text(dataset: Dataset, keyword: str) -> str | None:
    return str(dataset.get(keyword) or "").strip() or None
