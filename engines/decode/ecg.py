"""DICOM ECG waveforms to ``EcgRecord``: leads by code, millivolt by the standard's formula, never the median beat.

``value = stored x sensitivity x correction + baseline``, in the channel's unit (PS3.3 C.10.9.1.4). The only place that
reads waveform data. Lead codes are those of CID 3001 in MDC and SCP-ECG form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from engines.decode.ecg_leads import (
    INDEPENDENT_LEADS,
    MINUS_AVR,
    Signal,
    lead_named,
    lead_warnings,
    require_independent,
    require_plausible,
    twelve_leads,
)
from engines.decode.headers import PARSER_ERRORS, number, parsed, source_of, texts, undecodable
from engines.errors import InputRefused, NotApplicable, RefusalCode
from engines.records import LEAD_NAMES, EcgRecord

TWELVE_LEAD, GENERAL, AMBULATORY, GENERAL_32 = (f"1.2.840.10008.5.1.4.1.1.9.1.{last}" for last in (1, 2, 3, 4))
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
MAX_SAMPLES = 2_000_000
MAX_CHANNELS = 24

_CODES = (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)
_LEAD_OF_CODE = {f"2:{code}": lead for code, lead in zip(_CODES, LEAD_NAMES, strict=True)}
_LEAD_OF_CODE |= {f"5.6.3-9-{code}": lead for code, lead in zip(_CODES, LEAD_NAMES, strict=True)}
_LEAD_OF_CODE |= {"2:65": MINUS_AVR}
_COMPUTED_CODES = {f"2:{code}": lead for code, lead in zip((111, 112, 113, 114), LEAD_NAMES[2:6], strict=True)}
"""Derived limb leads: as good as computed here. Derived leads I, II and V1 to V6 (EASI and the like) are not the leads."""
_SYNTHESISED_CODES = frozenset(f"2:{code}" for code in (31, 32, *range(33, 39)))
_MILLIVOLT_PER_UNIT = {"uV": 1e-3, "mV": 1.0, "V": 1e3, "nV": 1e-6}  # UCUM is case-sensitive
_DTYPES = {("SB", 8): "i1", ("UB", 8): "u1", ("SS", 16): "<i2", ("US", 16): "<u2", ("SL", 32): "<i4", ("UL", 32): "<u4"}


def decode_ecg(instances: Sequence[BinaryIO]) -> EcgRecord:
    """Decode the first usable twelve-lead recording.

    Raises:
        NotApplicable: no ECG among the instances.
        InputRefused: an ECG that cannot be analysed; the first reason found.
    """
    refusals: list[InputRefused] = []
    for instance in instances:
        try:
            return _record(parsed(instance))
        except NotApplicable:
            continue
        except InputRefused as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]
    raise NotApplicable(RefusalCode.NOT_CARDIAC, "no ECG waveform among the instances")


def _record(dataset: Dataset) -> EcgRecord:
    _check_kind(dataset)
    _check_byte_order(dataset)
    try:
        index, group, leads = _rhythm_group(dataset)
        signals = _aligned(group, leads, _millivolts(group, leads))
        computed = {
            lead
            for lead, channel in leads.items()
            if _code(group.ChannelDefinitionSequence[channel]) in _COMPUTED_CODES
        }
    except PARSER_ERRORS as error:
        raise undecodable(f"the waveform is not readable ({type(error).__name__})") from None
    signal_mv, derived = twelve_leads(signals)
    require_plausible(signal_mv)
    derived |= computed
    lowpass_hz = _edge(group, "FilterHighFrequency", min)
    return EcgRecord(
        signal_mv=signal_mv.astype(np.float32),
        sampling_rate_hz=_sampling_rate(group),
        source=replace(source_of(dataset), waveform_channels=((index + 1, 0),)),
        derived_leads=derived,
        highpass_hz=_edge(group, "FilterLowFrequency", max),
        lowpass_hz=lowpass_hz,
        warnings=lead_warnings(derived, lowpass_hz),
    )


def _check_kind(dataset: Dataset) -> None:
    sop_class = str(dataset.SOPClassUID)
    if sop_class == AMBULATORY:
        raise InputRefused(
            RefusalCode.AMBULATORY_RECORD,
            "an ambulatory ECG was found; a resting twelve-lead ECG of about 10 s is expected",
        )
    if sop_class == ENCAPSULATED_PDF and "ECG" in texts(dataset, "Modality"):
        raise InputRefused(
            RefusalCode.NO_TWELVE_LEAD_GROUP, "the ECG came as a PDF; send the waveform (12-lead ECG Waveform Storage)"
        )
    if sop_class not in (TWELVE_LEAD, GENERAL, GENERAL_32):
        raise NotApplicable(RefusalCode.NOT_CARDIAC, "not an ECG waveform")


def _check_byte_order(dataset: Dataset) -> None:
    """Samples are read as little endian; big endian is retired (PS3.5 A.3) and would be read as noise."""
    _, little_endian = dataset.original_encoding
    if not little_endian:
        raise InputRefused(
            RefusalCode.UNSUPPORTED_TRANSFER_SYNTAX,
            "the waveform is in Explicit VR Big Endian, which is retired; send it in little endian",
        )


def _rhythm_group(dataset: Dataset) -> tuple[int, Dataset, dict[str, int]]:
    """Index, group and leads of the longest original multiplex group with the independent leads."""
    groups = enumerate(dataset.get("WaveformSequence") or [])
    original = [(index, group, _leads(group)) for index, group in groups if not _is_derived(group)]
    usable = [each for each in original if set(INDEPENDENT_LEADS) <= set(each[2])]
    if usable:
        return max(usable, key=lambda each: _duration_s(each[1]))
    found = [sorted(leads) for _, _, leads in original]
    together = {lead for leads in found for lead in leads}
    if len(found) > 1 and set(INDEPENDENT_LEADS) <= together:
        raise InputRefused(
            RefusalCode.LEADS_NOT_SIMULTANEOUS,
            f"the leads lie in {len(found)} groups recorded one after the other; twelve simultaneous leads are expected",
        )
    require_independent(together)
    msg = "one group with the independent leads is usable, and none was found"
    raise AssertionError(msg)


def _is_derived(group: Dataset) -> bool:
    median = any("MEDIAN" in label for label in texts(group, "MultiplexGroupLabel"))
    return median or texts(group, "WaveformOriginality") == ("DERIVED",)


def _duration_s(group: Dataset) -> float:
    return int(group.NumberOfWaveformSamples) / _sampling_rate(group)


def _sampling_rate(group: Dataset) -> float:
    rate = number(group, "SamplingFrequency")
    if rate is None or not 0 < rate <= 100_000:
        raise InputRefused(
            RefusalCode.SAMPLING_RATE_UNSUPPORTED,
            f"sampling frequency is {rate}; expected 200 to 1000 Hz in (003A,001A)",
        )
    return rate


def _leads(group: Dataset) -> dict[str, int]:
    """Channel index of each lead that could be named; -aVR stands under its own name."""
    channels = list(group.get("ChannelDefinitionSequence") or [])[:MAX_CHANNELS]
    named = ((lead_of(channel), index) for index, channel in enumerate(channels))
    leads: dict[str, int] = {}
    for lead, index in named:
        if lead is not None:
            leads.setdefault(lead, index)
    return leads


def lead_of(channel: Dataset) -> str | None:
    """Lead of a channel: by code (CID 3001), else by the code's meaning, else by the channel label; None when unknown."""
    code = _code(channel)
    if code in _SYNTHESISED_CODES:
        return None
    if code in _LEAD_OF_CODE or code in _COMPUTED_CODES:
        return (_LEAD_OF_CODE | _COMPUTED_CODES)[code]
    source = (channel.get("ChannelSourceSequence") or [Dataset()])[0]
    named = (lead_named(text) for text in (*texts(source, "CodeMeaning"), *texts(channel, "ChannelLabel")))
    return next((lead for lead in named if lead is not None), None)


def _code(channel: Dataset) -> str:
    source = (channel.get("ChannelSourceSequence") or [Dataset()])[0]
    return next(iter(texts(source, "CodeValue")), "").rstrip("\0").strip()


def _samples(group: Dataset) -> NDArray[np.generic]:
    """Stored values, [samples, channels]."""
    channels, samples = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    if not (0 < channels <= MAX_CHANNELS and 0 < samples <= MAX_SAMPLES):
        raise InputRefused(
            RefusalCode.LIMITS_EXCEEDED,
            f"{channels} channels of {samples} samples; at most {MAX_CHANNELS} of {MAX_SAMPLES} are read",
        )
    kind = (str(group.WaveformSampleInterpretation), int(group.WaveformBitsAllocated))
    if kind not in _DTYPES:
        raise InputRefused(
            RefusalCode.UNDECODABLE,
            f"samples are {kind[0]} of {kind[1]} bits; expected linear 8, 16 or 32-bit integers",
        )
    data, dtype = bytes(group.WaveformData), np.dtype(_DTYPES[kind])
    expected = channels * samples * dtype.itemsize
    if len(data) < expected:
        raise InputRefused(
            RefusalCode.PIXEL_DATA_INCONSISTENT, f"{len(data)} bytes of waveform data; the header promises {expected}"
        )
    return np.frombuffer(data, dtype, count=channels * samples).reshape(samples, channels)


def _millivolts(group: Dataset, leads: dict[str, int]) -> dict[str, Signal]:
    """Each named channel in millivolt; NaN where the stored value is the padding value."""
    stored, padding = _samples(group), group.get("WaveformPaddingValue")
    gap = None if padding is None else np.frombuffer(bytes(padding)[: stored.itemsize], stored.dtype)[0]
    channels = group.ChannelDefinitionSequence
    return {lead: _millivolt(channels[index], stored[:, index], gap) for lead, index in leads.items()}


def _millivolt(channel: Dataset, stored: NDArray[np.generic], gap: np.generic | None) -> Signal:
    values = stored.astype(np.float64) * _sensitivity(channel) + (number(channel, "ChannelBaseline") or 0.0)
    if gap is not None:
        values[stored == gap] = np.nan
    return np.asarray(values * _unit_mv(channel))


def _sensitivity(channel: Dataset) -> float:
    sensitivity, correction = (
        number(channel, "ChannelSensitivity"),
        number(channel, "ChannelSensitivityCorrectionFactor"),
    )
    if sensitivity is None:
        raise InputRefused(
            RefusalCode.UNIT_UNKNOWN, "a channel states no sensitivity (003A,0210); without it the amplitude is unknown"
        )
    return sensitivity * (1.0 if correction is None else correction)


def _unit_mv(channel: Dataset) -> float:
    units = channel.get("ChannelSensitivityUnitsSequence") or [Dataset()]
    unit = str(units[0].get("CodeValue", "")).strip("\0 ")
    if unit not in _MILLIVOLT_PER_UNIT:
        raise InputRefused(
            RefusalCode.UNIT_UNKNOWN,
            f"a channel's unit is {unit[:16]!r}; expected a UCUM voltage (uV, mV) in (003A,0211)",
        )
    return _MILLIVOLT_PER_UNIT[unit]


def _aligned(group: Dataset, leads: dict[str, int], signals: dict[str, Signal]) -> dict[str, Signal]:
    """The part that all channels cover, where one starts more than a sample after another (PS3.3 C.10.9.1.4.3)."""
    rate_hz = _sampling_rate(group)
    skews = {lead: _skew_samples(group.ChannelDefinitionSequence[index], rate_hz) for lead, index in leads.items()}
    latest = max(skews.values())
    if latest - min(skews.values()) <= 1.0:
        return signals
    starts = {lead: round(latest - skew) for lead, skew in skews.items()}
    length = min(len(signal) - starts[lead] for lead, signal in signals.items())
    if length < 1:
        raise undecodable("the channels do not overlap in time: their skew is longer than the recording")
    return {lead: signal[starts[lead] : starts[lead] + length] for lead, signal in signals.items()}


def _skew_samples(channel: Dataset, rate_hz: float) -> float:
    samples = number(channel, "ChannelSampleSkew")
    return samples if samples is not None else (number(channel, "ChannelTimeSkew") or 0.0) * rate_hz


def _edge(group: Dataset, keyword: str, worst: Callable[[list[float]], float]) -> float | None:
    """The narrowest stated filter edge over the channels, Hz."""
    stated = [number(channel, keyword) for channel in group.ChannelDefinitionSequence]
    edges = [edge for edge in stated if edge]
    return worst(edges) if edges else None
