"""GE MUSE XML, root ``RestingECG``: the waveform of type Rhythm.

Each lead is base64 of little-endian 16-bit steps, ``LeadAmplitudeUnitsPerBit`` in ``LeadAmplitudeUnits``; the rate is
``SampleBase x 10^SampleExponent``. III and the augmented leads are not stored. High-pass edges are in hundredths of a hertz.
Ampersands and angle brackets in free text may stand unescaped; they are escaped before a second try. Called by ``ecg_file``.
"""

from __future__ import annotations

import base64
import binascii
import re
from xml.etree.ElementTree import Element

import numpy as np

from engines.decode.ecg_leads import Signal, lead_named, millivolt_per
from engines.decode.ecg_reading import (
    EcgContent,
    EcgOrigin,
    EcgReading,
    cut_off,
    date_code,
    malformed,
    moment_of,
    person_name,
    require_rate,
    sex_code,
)
from engines.decode.ecg_xml import number_of, parsed_xml, root_name, text_of
from engines.errors import InputRefused, RefusalCode

ROOT = "RestingECG"
_BARE_AMPERSAND = re.compile(rb"&(?!(?:#\d+|#x[0-9A-Fa-f]+|amp|lt|gt|quot|apos);)")
_BARE_BRACKET = re.compile(rb"<(?![A-Za-z_/!?])")
_SAMPLE_BYTES = 2


def recognises(content: EcgContent) -> bool:
    """True for a document of MUSE."""
    return root_name(content.data) == ROOT


def read(content: EcgContent) -> EcgReading:
    """Read the rhythm.

    Raises:
        InputRefused: no rhythm, leads missing or cut short, no unit, no rate.
    """
    root = _parsed(content.data)
    rhythm = _rhythm(root)
    signals, steps, off = {}, {}, []
    for element in rhythm.findall("LeadData"):
        lead = lead_named(text_of(element, "LeadID") or "")
        if lead is None or lead in signals:
            continue
        steps[lead] = _step_mv(lead, element)
        signals[lead] = _samples(lead, element) * steps[lead]
        if (text_of(element, "LeadOff") or "").upper() == "TRUE":
            off.append(lead)
    highpass = number_of(text_of(rhythm, "HighPassFilter"))
    return EcgReading(
        signals_mv=signals,
        sampling_rate_hz=_rate_hz(rhythm),
        steps_mv=steps,
        highpass_hz=None if highpass is None else highpass / 100.0,
        lowpass_hz=number_of(text_of(rhythm, "LowPassFilter")),
        notch_hz=number_of(text_of(rhythm, "ACFilter")) or None,
        warnings=(f"The cart itself calls these electrodes off: {', '.join(off)}.",) if off else (),
        origin=_origin(root),
    )


def _parsed(data: bytes) -> Element:
    try:
        return parsed_xml(data)
    except InputRefused as refusal:
        mended = _BARE_BRACKET.sub(b"&lt;", _BARE_AMPERSAND.sub(b"&amp;", data))
        if refusal.code is not RefusalCode.UNDECODABLE or mended == data:
            raise
        return parsed_xml(mended)


def _rhythm(root: Element) -> Element:
    for waveform in root.findall("Waveform"):
        if (text_of(waveform, "WaveformType") or "").upper() == "RHYTHM":
            return waveform
    raise InputRefused(
        RefusalCode.NO_TWELVE_LEAD_GROUP, "the document holds no waveform of type Rhythm; one is expected"
    )


def _rate_hz(rhythm: Element) -> float:
    base, exponent = number_of(text_of(rhythm, "SampleBase")), number_of(text_of(rhythm, "SampleExponent"))
    if base is None or exponent is None or abs(exponent) > 9:
        return require_rate(None)
    return require_rate(base * 10.0**exponent)


def _step_mv(lead: str, element: Element) -> float:
    step = number_of(text_of(element, "LeadAmplitudeUnitsPerBit"))
    if step is None or step <= 0:
        raise InputRefused(
            RefusalCode.UNIT_UNKNOWN, f"lead {lead} states no units per bit; without it its amplitude is unknown"
        )
    return step * millivolt_per(text_of(element, "LeadAmplitudeUnits"))


def _samples(lead: str, element: Element) -> Signal:
    """Stored steps of a lead, float64 [N]."""
    if number_of(text_of(element, "LeadSampleSize")) != _SAMPLE_BYTES:
        raise malformed(f"lead {lead} does not state samples of {_SAMPLE_BYTES} bytes")
    if number_of(text_of(element, "LeadOffsetFirstSample")) or number_of(text_of(element, "LeadTimeOffset")):
        raise InputRefused(
            RefusalCode.LEADS_NOT_SIMULTANEOUS,
            f"lead {lead} starts later than others; twelve simultaneous leads are expected",
        )
    try:
        data = base64.b64decode("".join((text_of(element, "WaveFormData") or "").split()), validate=True)
    except (binascii.Error, ValueError):
        raise malformed(f"the samples of lead {lead} are no base64") from None
    promised = number_of(text_of(element, "LeadSampleCountTotal"))
    count = len(data) // _SAMPLE_BYTES
    if count == 0 or (promised is not None and count < promised):
        raise cut_off(f"lead {lead} has {count} samples of {promised or 'some'}")
    return np.frombuffer(data, "<i2", count=count).astype(np.float64)


def _origin(root: Element) -> EcgOrigin:
    patient, test = root.find("PatientDemographics"), root.find("TestDemographics")
    born = (text_of(patient, "DateofBirth") or "").split("-")  # MM-DD-YYYY
    day = (text_of(test, "AcquisitionDate") or "").split("-")
    time = (text_of(test, "AcquisitionTime") or "").split(":")
    return EcgOrigin(
        patient_id=text_of(patient, "PatientID"),
        patient_name=person_name(text_of(patient, "PatientLastName"), text_of(patient, "PatientFirstName")),
        birth_date=date_code(born[2], born[0], born[1]) if len(born) == 3 else None,
        sex=sex_code(text_of(patient, "Gender")),
        acquired_at=moment_of(day[2], day[0], day[1], *time[:3]) if len(day) == 3 else None,
        manufacturer="GE",
        model=text_of(test, "AcquisitionDevice"),
        software=text_of(test, "AcquisitionSoftwareVersion"),
    )
