"""Writes the rendered records as DICOM: classic MR series, ultrasound multi-frame, 12-lead ECG waveform.

Everything follows from the seed, UIDs included. The patient is plainly a phantom unless the caller names another one.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit

from engines.records import LEAD_NAMES, EcgRecord
from training.phantoms import cmr, echo
from training.phantoms.subjects import Subject

TWELVE_LEAD_ECG = "1.2.840.10008.5.1.4.1.1.9.1.1"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://purkinje.example/phantoms")
_EPOCH = datetime(2025, 1, 1, 8)  # noqa: DTZ001 - DICOM times are local
_JPEG_QUALITY = 92
_MDC_LEADS = ("2:1", "2:2", "2:61", "2:62", "2:63", "2:64", "2:3", "2:4", "2:5", "2:6", "2:7", "2:8")
_ECG_STEP_UV = 1.25


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Who the phantom pretends to be."""

    name: str = "PHANTOM^PURKINJE"
    patient_id: str = "PHANTOM"
    birth_date: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Identity of one study; ``key`` decides every UID."""

    key: str
    number: int
    patient: Patient
    subject: Subject
    description: str

    def uid(self, *role: object) -> str:
        """UID under 2.25 for a part of the study (PS3.5 B.2)."""
        return f"2.25.{uuid.uuid5(_NAMESPACE, chr(31).join((self.key, *map(str, role)))).int}"

    @property
    def moment(self) -> datetime:
        """When it was recorded, local time."""
        return _EPOCH + timedelta(minutes=7 * self.number)


def write_cmr(
    study: Study, scan: cmr.MrScan, images_SPHW: NDArray[np.uint16], times_ms: NDArray[np.float64], out: Path
) -> list[Path]:
    """Write a classic MR series (PS3.3 A.4), or one series per slice, instance by instance."""
    row, column = np.array(scan.orientation[:3]), np.array(scan.orientation[3:])
    normal = np.cross(row, column)
    half = (scan.size_px - 1) / 2 * scan.spacing_mm
    corner = np.array(scan.origin_mm) - half * row - half * column
    corner += (np.dot(scan.origin_mm, normal) - np.dot(corner, normal)) * normal
    paths = []
    slices, phases = images_SPHW.shape[:2]
    for s in range(slices):
        for p in range(phases):
            dataset = _mr_image(study, scan, images_SPHW[s, p], (s, p), phases)
            dataset.ImagesInAcquisition = phases if scan.one_series_per_slice else slices * phases
            dataset.ImagePositionPatient = _decimals(corner + s * scan.slice_distance_mm * normal)
            dataset.TriggerTime = f"{times_ms[s, p]:.1f}"
            paths.append(_save(dataset, out / f"mr_{s:02d}_{p:02d}.dcm"))
    return paths


def _mr_image(
    study: Study, scan: cmr.MrScan, image_HW: NDArray[np.uint16], where: tuple[int, int], phases: int
) -> FileDataset:
    s, p = where
    dataset = _general(study, cmr.MR_IMAGE_STORAGE, study.uid("mr", s, p), "MR")
    dataset.SeriesInstanceUID = study.uid("series", s if scan.one_series_per_slice else "all")
    dataset.SeriesNumber = 10 + s if scan.one_series_per_slice else 10
    dataset.SeriesDescription = f"CINE_segmented_SAX_b{s + 1}" if scan.one_series_per_slice else "CINE SAX"
    dataset.InstanceNumber = p + 1 if scan.one_series_per_slice else s * phases + p + 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.FrameOfReferenceUID = study.uid("frame-of-reference")
    dataset.PositionReferenceIndicator = ""
    dataset.Laterality = ""
    dataset.PatientPosition = "HFS"
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions, dataset.MRAcquisitionType = (
        "GR",
        "SS",
        "CG",
        "2D",
    )
    dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength, dataset.FlipAngle = "3.4", "1.5", "1", "50"
    dataset.CardiacNumberOfImages = phases
    dataset.HeartRate = round(study.subject.heart_rate_bpm)
    dataset.NominalInterval = round(60000 / study.subject.heart_rate_bpm)
    dataset.SliceThickness = f"{min(8.0, scan.slice_distance_mm)}"
    dataset.SpacingBetweenSlices = f"{scan.slice_distance_mm}"
    dataset.PixelSpacing = [f"{scan.spacing_mm}", f"{scan.spacing_mm}"]
    dataset.ImageOrientationPatient = _decimals(np.array(scan.orientation))
    _pixels(dataset, image_HW.shape, bits=16)
    dataset.PixelData = image_HW.astype("<u2").tobytes()
    return dataset


def write_turned(files: Iterable[Path], quarter_turns: int, out: Path) -> list[Path]:
    """Write MR images again with their stored pixels turned counter-clockwise, as a study of its own.

    Rows, columns and pixel spacing follow the pixels; patient, position, orientation and everything else stay, so that
    only the picture differs. UIDs of study, series and instance are new ones that follow from the old.

    Args:
        files: MR images as ``write_cmr`` makes them.
        quarter_turns: 1, 2 or 3, as in ``numpy.rot90``.
        out: folder of the new files, which keep their names.
    """
    return [_save(_turned(dcmread(file), quarter_turns), out / file.name) for file in files]


def _turned(dataset: FileDataset, quarter_turns: int) -> FileDataset:
    pixels_HW = np.rot90(dataset.pixel_array, quarter_turns)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        name = chr(31).join(("turned", str(quarter_turns), str(dataset[keyword].value)))
        dataset[keyword].value = UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Rows, dataset.Columns = pixels_HW.shape
    if quarter_turns % 2:
        dataset.PixelSpacing = dataset.PixelSpacing[::-1]
    dataset.PixelData = np.ascontiguousarray(pixels_HW).astype("<u2").tobytes()
    return dataset


def write_echo(study: Study, scan: echo.UltrasoundScan, frames_THW: NDArray[np.uint8], out: Path) -> list[Path]:
    """Write one ultrasound multi-frame image, JPEG baseline, YBR_FULL_422 (PS3.3 A.7)."""
    dataset = _general(study, echo.US_MULTIFRAME, study.uid("us"), "US", syntax=JPEGBaseline8Bit)
    dataset.SeriesInstanceUID, dataset.SeriesNumber, dataset.InstanceNumber = study.uid("series"), 1, 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "TTE", "0001"]
    dataset.Laterality = dataset.PatientOrientation = ""
    dataset.NumberOfFrames = len(frames_THW)
    dataset.HeartRate = round(study.subject.heart_rate_bpm)
    _time_base(dataset, scan, len(frames_THW))
    if scan.states_view:
        dataset.ViewCodeSequence = Sequence([_code("399214001", "SCT", "Apical four chamber")])
    dataset.SequenceOfUltrasoundRegions = Sequence([_region(scan)])
    _pixels(dataset, frames_THW.shape[1:], bits=8)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    encoded = [_jpeg(frame) for frame in frames_THW]
    dataset.LossyImageCompressionRatio = f"{3 * frames_THW.nbytes / sum(map(len, encoded)):.2f}"
    dataset.PixelData = encapsulate(encoded)
    return [_save(dataset, out / "us.dcm")]


def _time_base(dataset: Dataset, scan: echo.UltrasoundScan, frames: int) -> None:
    if scan.time_vector:
        dataset.FrameIncrementPointer = 0x00181065
        dataset.FrameTimeVector = ["0", *[f"{scan.frame_ms}"] * (frames - 1)]
    else:
        dataset.FrameIncrementPointer = 0x00181063
        dataset.FrameTime = f"{scan.frame_ms}"


def _region(scan: echo.UltrasoundScan) -> Dataset:
    """Two-dimensional tissue region (PS3.3 C.8.5.5)."""
    region, (x0, y0, x1, y1) = Dataset(), scan.region_px
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = x0, y0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x1 - 1, y1 - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = scan.spacing_mm / 10
    return region


def _jpeg(frame_HW: NDArray[np.uint8]) -> bytes:
    """One colour frame; the ECG trace below the region is green as on a scanner's screen, of the same luma."""
    buffer = io.BytesIO()
    grey = np.full((*frame_HW.shape, 3), 128, np.uint8)
    grey[..., 0] = frame_HW
    trace = np.zeros_like(frame_HW, bool)
    trace[-20:] = frame_HW[-20:] > 128
    grey[trace, 1:] = (60, 60)
    Image.fromarray(grey, "YCbCr").save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:2:2")
    return buffer.getvalue()


def write_ecg(study: Study, record: EcgRecord, rng: np.random.Generator, out: Path) -> list[Path]:
    """Write a 12-lead ECG waveform (PS3.3 A.34.3); a share carries a median beat as a second, derived group."""
    dataset = _general(study, TWELVE_LEAD_ECG, study.uid("ecg"), "ECG")
    dataset.SeriesInstanceUID, dataset.SeriesNumber, dataset.InstanceNumber = study.uid("series"), 1, 1
    dataset.AcquisitionContextSequence = Sequence([])
    dataset.AcquisitionDateTime = study.moment.strftime("%Y%m%d%H%M%S")
    dataset.SynchronizationTrigger, dataset.AcquisitionTimeSynchronized = "NO TRIGGER", "N"
    dataset.SynchronizationFrameOfReferenceUID = study.uid("synchronization")
    groups = [_group(record.signal_mv, record.sampling_rate_hz, "ORIGINAL", "RHYTHM")]
    if rng.random() < 0.3:
        beat = record.signal_mv[:, : int(1.2 * record.sampling_rate_hz)]
        groups.append(_group(beat, record.sampling_rate_hz, "DERIVED", "MEDIAN BEAT"))
    dataset.WaveformSequence = Sequence(groups)
    return [_save(dataset, out / "ecg.dcm")]


def _group(signal_mv: NDArray[np.float32], rate_hz: float, originality: str, label: str) -> Dataset:
    group = Dataset()
    group.WaveformOriginality, group.MultiplexGroupLabel = originality, label
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = signal_mv.shape
    group.SamplingFrequency = f"{rate_hz:g}"
    group.ChannelDefinitionSequence = Sequence(
        [_channel(name, code) for name, code in zip(LEAD_NAMES, _MDC_LEADS, strict=True)]
    )
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    steps = np.round(signal_mv * 1000 / _ECG_STEP_UV)
    assert np.abs(steps).max() < 2**15
    group.WaveformData = np.ascontiguousarray(steps.T.astype("<i2")).tobytes()
    return group


def _channel(name: str, code: str) -> Dataset:
    channel = Dataset()
    channel.ChannelSourceSequence = Sequence([_code(code, "MDC", f"Lead {name}")])
    channel.ChannelSensitivity = f"{_ECG_STEP_UV}"
    channel.ChannelSensitivityUnitsSequence = Sequence([_code("uV", "UCUM", "microvolt")])
    channel.ChannelSensitivityCorrectionFactor = "1"
    channel.ChannelBaseline, channel.ChannelTimeSkew, channel.WaveformBitsStored = "0", "0", 16
    channel.FilterLowFrequency, channel.FilterHighFrequency = "0.05", "150"
    return channel


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _pixels(dataset: Dataset, shape: tuple[int, ...], *, bits: int) -> None:
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0


def _general(
    study: Study, sop_class: str, sop_instance: str, modality: str, syntax: str = ExplicitVRLittleEndian
) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(sop_instance)
    meta.TransferSyntaxUID = UID(syntax)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop_class, sop_instance, modality
    dataset.PatientName, dataset.PatientID = study.patient.name, study.patient.patient_id
    dataset.PatientBirthDate, dataset.PatientSex = study.patient.birth_date, "M" if study.subject.male else "F"
    dataset.PatientAge = f"{study.subject.age_years:03.0f}Y"
    dataset.StudyInstanceUID, dataset.StudyID, dataset.StudyDescription = (
        study.uid("study"),
        str(study.number),
        study.description,
    )
    dataset.AccessionNumber, dataset.ReferringPhysicianName = "", ""
    day, time = study.moment.strftime("%Y%m%d"), study.moment.strftime("%H%M%S")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = day
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = time
    dataset.Manufacturer, dataset.ManufacturerModelName = "Digital heart phantoms", "phantom"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "1", "1"
    return dataset


def _decimals(values: NDArray[np.float64]) -> list[str]:
    """Decimal strings of at most 16 characters (PS3.5 6.2)."""
    return [f"{value:.6f}" for value in values]


def _save(dataset: FileDataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path
