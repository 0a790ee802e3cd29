"""Reads headers within bounds: the first code that touches bytes from outside.

Every error of pydicom becomes a typed refusal. Deflated datasets are not inflated: 400 kB can become 400 MB.
Called by the decoders and by the child process, which returns header extracts for the report.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from typing import BinaryIO

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from engines.errors import InputRefused, RefusalCode
from engines.records import SourceInstance

PARSER_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise on files that are not what they say."""

WAVEFORM_SEQUENCE = Tag(0x5400, 0x0100)
_META_BYTES = 8192
_PREAMBLE_BYTES = 132
_LONG_VRS = {b"OB", b"OW", b"UN", b"UT", b"SQ"}
_UID = re.compile(r"[0-9][0-9.]{0,63}")  # PS3.5 9.1 without its finer rules: carts write empty components
_REQUIRED_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")

REPORT_KEYWORDS = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "SeriesDate",
    "ContentDate",
    "StudyTime",
    "SeriesTime",
    "ContentTime",
    "TimezoneOffsetFromUTC",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "StationName",
    "InstitutionName",
    "ReferringPhysicianName",
    "StudyDescription",
    "SeriesDescription",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyID",
    "SeriesNumber",
    "InstanceNumber",
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "LossyImageCompression",
)
"""Elements of a source that a report may need; everything else stays in the child."""


def parsed(instance: BinaryIO) -> Dataset:
    """The dataset of one instance up to the pixel data.

    Raises:
        InputRefused: not DICOM, deflated, broken, or without the UIDs that name it.
    """
    _refuse_deflated(instance)
    instance.seek(0)
    try:
        dataset = dcmread(instance, stop_before_pixels=True)
        missing = [name for name in _REQUIRED_UIDS if not is_uid(str(dataset.get(name, "")))]
    except PARSER_ERRORS as error:
        raise undecodable(f"the instance is not readable as DICOM ({type(error).__name__})") from None
    if missing:
        raise undecodable(f"the instance has no valid {', '.join(missing)}")
    return dataset


def undecodable(found: str) -> InputRefused:
    """A refusal for bytes that are not what they say."""
    return InputRefused(RefusalCode.UNDECODABLE, f"{found}; send the study again from its source")


def is_uid(uid: str) -> bool:
    """True for digits and dots only, at most 64: tolerant of odd components, safe in any address."""
    return bool(_UID.fullmatch(uid))


def source_of(dataset: Dataset) -> SourceInstance:
    """The instance as evidence."""
    return SourceInstance(
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
    )


def number(dataset: Dataset, keyword: str) -> float | None:
    """A single finite number, or None when absent, empty, several or not a number."""
    try:
        value = dataset.get(keyword)
        found = math.nan if value is None or value == "" or isinstance(value, MultiValue) else float(value)
    except PARSER_ERRORS:
        return None
    return found if math.isfinite(found) else None


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of a text element, upper case; empty when absent or unreadable."""
    try:
        value = dataset.get(keyword)
    except PARSER_ERRORS:
        return ()
    if value is None:
        return ()
    return tuple(str(each).strip().upper() for each in (value if isinstance(value, MultiValue) else [value]))


def heart_rate_bpm(dataset: Dataset) -> float | None:
    """Heart rate (0018,1088) where plausible; scanners write 0 and 511 into it."""
    rate = number(dataset, "HeartRate")
    return rate if rate is not None and 30 <= rate <= 220 else None


def header_extract(dataset: Dataset) -> bytes | None:
    """Part 10 bytes of the elements in ``REPORT_KEYWORDS``, or None where they cannot be written."""
    extract = Dataset()
    for keyword in REPORT_KEYWORDS:
        try:
            if keyword in dataset:
                extract[keyword] = dataset[keyword]
        except PARSER_ERRORS:
            continue
    return _written(extract)


def _written(extract: Dataset) -> bytes | None:
    extract.file_meta = FileMetaDataset()
    extract.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    try:
        extract.file_meta.MediaStorageSOPClassUID = extract.SOPClassUID
        extract.file_meta.MediaStorageSOPInstanceUID = extract.SOPInstanceUID
        extract.save_as(buffer, enforce_file_format=True)
    except PARSER_ERRORS:
        return None
    return buffer.getvalue()


def _refuse_deflated(instance: BinaryIO) -> None:
    """The transfer syntax stands in the file meta, which is never deflated (PS3.10 7.1)."""
    instance.seek(0)
    if _transfer_syntax(instance.read(_META_BYTES)) == DeflatedExplicitVRLittleEndian:
        raise InputRefused(
            RefusalCode.UNSUPPORTED_TRANSFER_SYNTAX,
            "the instance is deflated (1.2.840.10008.1.2.1.99), which is not inflated here; send it uncompressed",
        )


def _transfer_syntax(head: bytes) -> str | None:
    """Value of (0002,0010), found element by element: a preamble or another value may hold the same bytes."""
    position = _PREAMBLE_BYTES
    while position + 12 <= len(head):
        group, element, vr, length = struct.unpack_from("<HH2sH", head, position)
        position += 8
        if vr in _LONG_VRS:  # two reserved bytes, then a length of four (PS3.5 7.1.2)
            (length,) = struct.unpack_from("<I", head, position)
            position += 4
        if group != 2:
            return None
        if element == 0x0010:
            return head[position : position + length].rstrip(b"\0 ").decode("ascii", "replace")
        position += length
    return None
