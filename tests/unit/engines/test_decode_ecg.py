"""ECG decoding: the standard's formula, leads by code, the right group, and a typed refusal for everything else."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from engines.decode.ecg import AMBULATORY, ENCAPSULATED_PDF, GENERAL, GENERAL_32, TWELVE_LEAD, decode_ecg, lead_of
from engines.errors import InputRefused, NotApplicable, RefusalCode
from engines.records import LEAD_NAMES

MDC = dict(
    zip(LEAD_NAMES, ("2:1", "2:2", "2:61", "2:62", "2:63", "2:64", *(f"2:{n}" for n in range(3, 9))), strict=True)
)
RATE_HZ, SAMPLES = 500, 5000


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """A coded entry."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def channel(
    lead: str, *, sensitivity: str = "2.5", correction: str = "1", baseline: str = "0", unit: str = "uV"
) -> Dataset:
    """A channel definition (PS3.3 C.10.9)."""
    item = Dataset()
    item.ChannelSourceSequence = Sequence([code(MDC.get(lead, "2:65"), "MDC", f"Lead {lead}")])
    item.ChannelSensitivity, item.ChannelSensitivityCorrectionFactor, item.ChannelBaseline = (
        sensitivity,
        correction,
        baseline,
    )
    item.ChannelSensitivityUnitsSequence = Sequence([code(unit, "UCUM", unit)])
    return item


def group(
    stored_NC: np.ndarray, channels: list[Dataset], *, originality: str = "ORIGINAL", label: str = "RHYTHM"
) -> Dataset:
    """A multiplex group."""
    item = Dataset()
    item.WaveformOriginality, item.MultiplexGroupLabel = originality, label
    item.NumberOfWaveformSamples, item.NumberOfWaveformChannels = stored_NC.shape
    item.SamplingFrequency = str(RATE_HZ)
    item.ChannelDefinitionSequence = Sequence(channels)
    item.WaveformBitsAllocated = 8 * stored_NC.dtype.itemsize
    item.WaveformSampleInterpretation = {2: "SS", 4: "SL"}[stored_NC.dtype.itemsize]
    item.WaveformData = stored_NC.tobytes()
    return item


def instance(groups: list[Dataset], sop_class: str = TWELVE_LEAD, syntax: str = ExplicitVRLittleEndian) -> io.BytesIO:
    """A Part 10 file in memory."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "2.25.10"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "2.25.11", "2.25.12", "ECG"
    dataset.WaveformSequence = Sequence(groups)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer


def ramp(leads: int, dtype: str = "<i2") -> np.ndarray:
    """Stored values that differ by lead: 100, 101, 102 ..."""
    return np.tile(np.arange(100, 100 + leads), (SAMPLES, 1)).astype(dtype)


def refusal_of(*instances: io.BytesIO) -> RefusalCode:
    """Code of the refusal that decoding ends in."""
    with pytest.raises(InputRefused) as caught:
        decode_ecg(instances)
    return caught.value.code


def test_the_standard_formula() -> None:
    """Stored 100, sensitivity 2.5, correction 1.02, baseline 40 uV is 295 uV, not 357 (baseline scaled) or 147.1 (divided)."""
    channels = [channel(lead, correction="1.02", baseline="40") for lead in LEAD_NAMES]
    record = decode_ecg([instance([group(np.full((SAMPLES, 12), 100, "<i2"), channels)])])
    assert record.signal_mv == pytest.approx(0.295)


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1e-3), ("mV", 1.0), ("V", 1e3)])
def test_units_become_millivolt(unit: str, factor: float) -> None:
    """Each voltage unit is converted to millivolt."""
    record = decode_ecg([instance([group(ramp(12), [channel(lead, unit=unit) for lead in LEAD_NAMES])])])
    assert record.signal_mv[0, 0] == pytest.approx(250 * factor)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(12)))
def test_channel_order_does_not_matter(order: list[int]) -> None:
    """Shuffled channels give the same record: leads are found by code, never by position."""
    leads = [LEAD_NAMES[index] for index in order]
    record = decode_ecg([instance([group(ramp(12)[:, order], [channel(lead) for lead in leads])])])
    assert record.signal_mv[:, 0] == pytest.approx(np.arange(100, 112) * 0.0025)


@pytest.mark.parametrize("lead", LEAD_NAMES)
@pytest.mark.parametrize("form", ["mdc", "scpecg", "meaning", "einthoven", "label"])
def test_each_lead_by_each_name(lead: str, form: str) -> None:
    """MDC code, SCP-ECG code, code meaning and channel label all name the lead; III is not taken for I."""
    entry = {
        "mdc": code(MDC[lead], "MDC", "x"),
        "scpecg": code(MDC[lead].replace("2:", "5.6.3-9-"), "SCPECG", "x"),
        "meaning": code("?", "99X", f"Lead {lead}"),
        "einthoven": code("?", "99X", f"{lead.upper()} (Einthoven)\0"),
        "label": code("?", "99X", "?"),
    }[form]
    item = Dataset()
    item.ChannelSourceSequence = Sequence([entry])
    item.ChannelLabel = lead.lower() if form == "label" else "?"
    assert lead_of(item) == lead


def test_a_foreign_lead_is_not_taken_for_one_of_the_twelve() -> None:
    """V3R and Frank X stay unnamed."""
    for name in ("Lead V3R", "Lead X", "aVRx"):
        item = Dataset()
        item.ChannelSourceSequence = Sequence([code("2:99", "MDC", name)])
        assert lead_of(item) is None


def test_cabrera_minus_avr_is_negated() -> None:
    """Lead -aVR (2:65) becomes aVR with the opposite sign."""
    leads = ["-aVR" if lead == "aVR" else lead for lead in LEAD_NAMES]
    record = decode_ecg([instance([group(ramp(12), [channel(lead) for lead in leads])])])
    assert record.signal_mv[3, 0] == pytest.approx(-103 * 0.0025)


def test_eight_leads_give_twelve() -> None:
    """Missing limb leads follow from I and II and are named as derived."""
    eight = ["I", "II", *(f"V{n}" for n in range(1, 7))]
    record = decode_ecg([instance([group(ramp(8), [channel(lead) for lead in eight])])])
    one, two = record.signal_mv[0, 0], record.signal_mv[1, 0]
    assert record.derived_leads == {"III", "aVR", "aVL", "aVF"}
    assert record.signal_mv[2, 0] == pytest.approx(two - one)
    assert record.signal_mv[3, 0] == pytest.approx(-(one + two) / 2)
    assert any("computed from I and II" in warning for warning in record.warnings)


def test_the_median_beat_is_never_used() -> None:
    """Whatever its place, a derived or median group is passed over."""
    channels = [channel(lead) for lead in LEAD_NAMES]
    median = group(np.zeros((600, 12), "<i2"), channels, originality="DERIVED", label="MEDIAN BEAT")
    mislabelled = group(np.zeros((6000, 12), "<i2"), channels, label="Median beat")
    record = decode_ecg([instance([median, mislabelled, group(ramp(12), channels)])])
    assert record.signal_mv.shape == (12, SAMPLES)
    assert record.source.waveform_channels == ((3, 0),)
    assert refusal_of(instance([median])) is RefusalCode.NO_TWELVE_LEAD_GROUP


def test_the_padding_value_becomes_nan() -> None:
    """Samples that equal the padding value are no measurement."""
    stored = ramp(12)
    stored[10:20, 3] = -32768
    item = group(stored, [channel(lead) for lead in LEAD_NAMES])
    item.WaveformPaddingValue = np.int16(-32768).tobytes()
    record = decode_ecg([instance([item])])
    assert np.isnan(record.signal_mv[3, 10:20]).all()
    assert np.isfinite(record.signal_mv).sum() == 12 * SAMPLES - 10


def test_thirty_two_bit_samples() -> None:
    """General 32-bit ECG is read like the others."""
    record = decode_ecg([instance([group(ramp(12, "<i4") * 1000, [channel(lead) for lead in LEAD_NAMES])], GENERAL_32)])
    assert record.signal_mv[0, 0] == pytest.approx(250.0)


def four_groups_of_three() -> list[Dataset]:
    """The old print-out layout: 4 x 3 leads x 2.5 s."""
    return [
        group(ramp(3)[:1250], [channel(lead) for lead in LEAD_NAMES[start : start + 3]]) for start in range(0, 12, 3)
    ]


REFUSALS: dict[str, tuple[Callable[[], io.BytesIO], RefusalCode]] = {
    "three leads": (
        lambda: instance([group(ramp(3), [channel(lead) for lead in ("I", "II", "V1")])], GENERAL),
        RefusalCode.LEADS_MISSING,
    ),
    "no group": (lambda: instance([]), RefusalCode.NO_TWELVE_LEAD_GROUP),
    "one after the other": (lambda: instance(four_groups_of_three()), RefusalCode.LEADS_NOT_SIMULTANEOUS),
    "ambulatory": (lambda: instance([], AMBULATORY), RefusalCode.AMBULATORY_RECORD),
    "a PDF": (lambda: instance([], ENCAPSULATED_PDF), RefusalCode.NO_TWELVE_LEAD_GROUP),
    "pressure": (
        lambda: instance([group(ramp(12), [channel(lead, unit="mm[Hg]") for lead in LEAD_NAMES])]),
        RefusalCode.UNIT_UNKNOWN,
    ),
    "wrong case": (
        lambda: instance([group(ramp(12), [channel(lead, unit="mv") for lead in LEAD_NAMES])]),
        RefusalCode.UNIT_UNKNOWN,
    ),
    "no sensitivity": (
        lambda: instance([group(ramp(12), [channel(lead, sensitivity="") for lead in LEAD_NAMES])]),
        RefusalCode.UNIT_UNKNOWN,
    ),
    "an absurd sensitivity": (
        lambda: instance([group(ramp(12), [channel(lead, sensitivity="1E300") for lead in LEAD_NAMES])]),
        RefusalCode.UNDECODABLE,
    ),
    "big endian": (
        lambda: instance([group(ramp(12), [channel(lead) for lead in LEAD_NAMES])], syntax=ExplicitVRBigEndian),
        RefusalCode.UNSUPPORTED_TRANSFER_SYNTAX,
    ),
    "too few bytes": (lambda: instance([_short()]), RefusalCode.PIXEL_DATA_INCONSISTENT),
    "mu-law": (lambda: instance([_companded()]), RefusalCode.UNDECODABLE),
    "too many samples": (lambda: instance([_boasting()]), RefusalCode.LIMITS_EXCEEDED),
}


def _short() -> Dataset:
    item = group(ramp(12), [channel(lead) for lead in LEAD_NAMES])
    item.WaveformData = item.WaveformData[:-100]
    return item


def _companded() -> Dataset:
    item = group(ramp(12), [channel(lead) for lead in LEAD_NAMES])
    item.WaveformSampleInterpretation, item.WaveformBitsAllocated = "MB", 8
    return item


def _boasting() -> Dataset:
    item = group(ramp(12), [channel(lead) for lead in LEAD_NAMES])
    item.NumberOfWaveformSamples = 2**32 - 1
    return item


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    """Each unusable ECG is refused under its own code."""
    make, expected = REFUSALS[name]
    assert refusal_of(make()) is expected


def test_another_modality_is_not_applicable() -> None:
    """A study without an ECG is not refused but passed over."""
    with pytest.raises(NotApplicable):
        decode_ecg([instance([], "1.2.840.10008.5.1.4.1.1.7")])


def test_the_mortara_record(sample_data: object) -> None:
    """A real cart's file: 10 s at 1000 Hz, -1.125 to 1.9625 mV, Einthoven exact, second group (median beat) left alone."""
    with open(f"{sample_data}/ecg/dicom/mortara_12lead_1000hz.dcm", "rb") as file:  # noqa: PTH123
        record = decode_ecg([file])
    assert (record.signal_mv.shape, record.sampling_rate_hz) == ((12, 10000), 1000.0)
    assert record.signal_mv.min() == pytest.approx(-1.125)
    assert record.signal_mv.max() == pytest.approx(1.9625)
    one, two, three, avr = record.signal_mv[:4].astype(float)
    assert np.abs(two - one - three).max() < 1e-6
    assert np.abs(avr + (one + two) / 2).max() <= 0.000626
    assert record.source.waveform_channels == ((1, 0),)
    assert (record.highpass_hz, record.lowpass_hz) == (0.05, 300.0)


def test_the_ecg_toolkit_record(sample_data: object) -> None:
    """Another software's file, whose UIDs have empty components, is read all the same."""
    with open(f"{sample_data}/ecg/dicom/ecgtoolkit_12lead_500hz.dcm", "rb") as file:  # noqa: PTH123
        record = decode_ecg([file])
    assert (record.signal_mv.shape, record.sampling_rate_hz) == ((12, 4999), 500.0)


TABLE_UV = {"standard": 295.0, "baseline scaled": 357.0, "divided by the correction": (100 - 40) * 2.5 / 1.02}
"""Stored 100, sensitivity 2.5, correction 1.02, baseline 40 uV, as three public decoders read it."""


@pytest.mark.parametrize(("sop_class", "dtype"), [(TWELVE_LEAD, "<i2"), (GENERAL, "<i2"), (GENERAL_32, "<i4")])
def test_only_the_standards_formula_of_three(sop_class: str, dtype: str) -> None:
    """Of the three formulas in use every SOP class follows the standard's (PS3.3 C.10.9.1.4), and no other."""
    channels = [channel(lead, correction="1.02", baseline="40") for lead in LEAD_NAMES]
    record = decode_ecg([instance([group(np.full((SAMPLES, 12), 100, dtype), channels)], sop_class)])
    found_uv = 1000 * float(record.signal_mv[0, 0])
    assert [name for name, value in TABLE_UV.items() if abs(found_uv - value) < 0.1] == ["standard"]


def test_the_step_may_stand_in_the_correction() -> None:
    """Sensitivity 1 and correction 4.88, as a public converter writes it, is 488 uV for 100."""
    channels = [channel(lead, sensitivity="1", correction="4.88") for lead in LEAD_NAMES]
    record = decode_ecg([instance([group(np.full((SAMPLES, 12), 100, "<i2"), channels)])])
    assert record.signal_mv == pytest.approx(0.488)


def recoded(lead: str, value: str) -> Dataset:
    """A channel under another code and without a name."""
    item = channel(lead)
    item.ChannelSourceSequence = Sequence([code(value, "MDC", f"Derived Lead {lead}")])
    item.ChannelLabel = lead
    return item


def test_derived_limb_leads_count_as_computed() -> None:
    """Codes 2:111 to 2:114 are III, aVR, aVL and aVF that were computed, and the record says so."""
    codes = dict(zip(("III", "aVR", "aVL", "aVF"), ("2:111", "2:112", "2:113", "2:114"), strict=True))
    channels = [recoded(lead, codes[lead]) if lead in codes else channel(lead) for lead in LEAD_NAMES]
    record = decode_ecg([instance([group(ramp(12), channels)])])
    assert record.derived_leads == set(codes)
    assert record.signal_mv[:, 0] == pytest.approx(np.arange(100, 112) * 0.0025)


def test_synthesised_leads_are_no_leads() -> None:
    """A V1 that was derived from other electrodes (2:33) is not taken for V1, whatever its label says."""
    channels = [recoded(lead, "2:33") if lead == "V1" else channel(lead) for lead in LEAD_NAMES]
    assert refusal_of(instance([group(ramp(12), channels)])) is RefusalCode.LEADS_MISSING


@pytest.mark.parametrize("keyword", ["ChannelSampleSkew", "ChannelTimeSkew"])
def test_skew_is_undone(keyword: str) -> None:
    """A channel that starts three samples later is aligned with the others; a skew within a sample is left."""
    stored = np.tile(np.arange(SAMPLES)[:, None], (1, 12)).astype("<i2")
    stored[:, 6] -= 3
    channels = [channel(lead) for lead in LEAD_NAMES]
    for index, item in enumerate(channels):
        late = -3.0 if index == 6 else 0.0
        setattr(item, keyword, str(late if keyword == "ChannelSampleSkew" else late / RATE_HZ))
    record = decode_ecg([instance([group(stored, channels)])])
    assert record.signal_mv.shape == (12, SAMPLES - 3)
    assert np.ptp(record.signal_mv, axis=0).max() == 0
