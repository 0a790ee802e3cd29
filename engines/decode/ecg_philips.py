"""Philips Sierra ECG XML, root ``restingecgdata``, versions 1.03 and 1.04: XLI-compressed rhythm.

XLI (LZW over second differences, limb leads as departures from Einthoven's and Goldberger's laws) is undone by the library
``sierraecg``. A record of 11 s ends in one second of calibration, which is left out. Called by ``ecg_file``.
"""

from __future__ import annotations

import io
from typing import Any
from xml.etree.ElementTree import Element
from xml.parsers.expat import ExpatError

import numpy as np

from engines.decode.ecg_leads import Signal, lead_named, require_independent
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
from engines.records import LEAD_NAMES

ROOT = "restingecgdata"
CALIBRATED_MS, CALIBRATION_MS = 11_000, 1_000
MAX_LEADS, MAX_DURATION_MS = 16, 60_000
_BYTES_PER_SAMPLE = 2


def recognises(content: EcgContent) -> bool:
    """True for a document of a Philips cart."""
    return root_name(content.data) == ROOT


def read(content: EcgContent) -> EcgReading:
    """Read the rhythm.

    Raises:
        InputRefused: another compression or version, no unit, no rate, leads missing or cut short.
    """
    root = parsed_xml(content.data)
    waveforms, traits = root.find(".//parsedwaveforms"), root.find(".//signalcharacteristics")
    if waveforms is None:
        raise InputRefused(
            RefusalCode.NO_TWELVE_LEAD_GROUP, "the document holds no parsedwaveforms; a rhythm is expected"
        )
    rate_hz = require_rate(number_of(text_of(traits, "samplingrate") or waveforms.get("samplespersecond")))
    step_mv = _step_mv(waveforms, traits)
    duration_ms = _checked_duration_ms(waveforms, rate_hz)
    _check_labels(waveforms)
    kept_ms = duration_ms - CALIBRATION_MS if duration_ms == CALIBRATED_MS else duration_ms
    steps = _steps(content.data, round(duration_ms * rate_hz / 1000), round(kept_ms * rate_hz / 1000))
    return EcgReading(
        signals_mv={lead: values * step_mv for lead, values in steps.items()},
        sampling_rate_hz=rate_hz,
        steps_mv=dict.fromkeys(steps, step_mv),
        highpass_hz=number_of(text_of(traits, "hipass")),
        lowpass_hz=number_of(text_of(traits, "lowpass")),
        notch_hz=number_of(text_of(traits, "acsetting")) if text_of(traits, "notchfiltered") == "True" else None,
        origin=_origin(root),
    )


def _step_mv(waveforms: Element, traits: Element | None) -> float:
    """The resolution is in microvolt per step by definition of the format."""
    step_uv = number_of(text_of(traits, "resolution") or waveforms.get("resolution"))
    if step_uv is None or step_uv <= 0:
        raise InputRefused(
            RefusalCode.UNIT_UNKNOWN, "the document states no resolution; without it the amplitude is unknown"
        )
    return step_uv / 1000.0


def _checked_duration_ms(waveforms: Element, rate_hz: float) -> float:
    """Duration of a lead; bounds what is decompressed."""
    compression = waveforms.get("compressmethod", waveforms.get("compression", "none"))
    if waveforms.get("dataencoding") != "Base64" or compression != "XLI":
        raise malformed(f"the rhythm is compressed by {compression[:16]!r}; expected XLI in Base64")
    duration_ms, leads = number_of(waveforms.get("durationperchannel")), number_of(waveforms.get("numberofleads", "12"))
    if duration_ms is None or leads is None:
        raise malformed("the rhythm does not state its duration and its leads")
    largest = leads * duration_ms * rate_hz / 1000 * _BYTES_PER_SAMPLE
    text = len(waveforms.text or "")
    if not (0 < leads <= MAX_LEADS and 0 < duration_ms <= MAX_DURATION_MS) or text * 3 / 4 > 2 * largest:
        raise InputRefused(
            RefusalCode.LIMITS_EXCEEDED,
            f"{leads:.0f} leads of {duration_ms:.0f} ms in {text} characters; at most {MAX_LEADS} of {MAX_DURATION_MS} ms are read",
        )
    return duration_ms


def _check_labels(waveforms: Element) -> None:
    """The limb leads are restored by position, so they must be where the format has them."""
    labels = [lead_named(label) for label in waveforms.get("leadlabels", "").split()]
    if labels:
        require_independent(label for label in labels if label is not None)
        if tuple(labels[:6]) != LEAD_NAMES[:6]:
            raise malformed("the limb leads are not in the order I, II, III, aVR, aVL, aVF")


def _steps(data: bytes, promised: int, kept: int) -> dict[str, Signal]:
    """Stored steps by lead, float64 [kept]."""
    found: dict[str, Signal] = {}
    for each in _decompressed(data):
        lead = lead_named(each.label)
        if lead is None:
            continue
        if len(each.samples) < promised:
            raise cut_off(f"lead {lead} has {len(each.samples)} samples of {promised}")
        found[lead] = np.asarray(each.samples[:kept], np.float64)
    return found


def _decompressed(data: bytes) -> list[Any]:
    from defusedxml import DefusedXmlException
    from sierraecg import read_file

    try:
        leads: list[Any] = read_file(io.BytesIO(data)).leads
    except (
        ArithmeticError,
        DefusedXmlException,
        ExpatError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise malformed(f"the rhythm cannot be decompressed ({type(error).__name__})") from None
    return leads


def _origin(root: Element) -> EcgOrigin:
    patient, acquired = root.find(".//generalpatientdata"), root.find("dataacquisition")
    machine = acquired.find("machine") if acquired is not None else None
    born = (text_of(patient, "age/dateofbirth") or "").split("-")
    day, time = ("", "") if acquired is None else (acquired.get("date", ""), acquired.get("time", ""))
    return EcgOrigin(
        patient_id=text_of(patient, "patientid") or text_of(patient, "MRN"),
        patient_name=person_name(text_of(patient, "name/lastname"), text_of(patient, "name/firstname")),
        birth_date=date_code(*born) if len(born) == 3 else None,
        sex=sex_code(text_of(patient, "sex")),
        acquired_at=moment_of(*day.split("-"), *time.split(":")) if time else None,
        manufacturer="Philips",
        model=text_of(machine, "."),
        software=machine.get("detaildescription") if machine is not None else None,
    )
