"""GE CardioSoft XML, root ``CardiologyXML``: the resting ECG of the UK Biobank (field 20205).

``StripData`` holds the rhythm strip: ``SampleRate``, ``Resolution`` in microvolt per step, one ``WaveformData`` per lead with
comma-separated steps. Some versions put it into ``Strip``. ``FullDisclosure`` is the exercise ECG (field 6025), which is
another examination and refused; ``MedianSamples`` is a derived beat and never read. Called by ``ecg_file``.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

from engines.decode.ecg_leads import Signal, lead_named
from engines.decode.ecg_reading import (
    EcgContent,
    EcgOrigin,
    EcgReading,
    cut_off,
    date_code,
    moment_of,
    person_name,
    require_rate,
    sex_code,
)
from engines.decode.ecg_xml import number_of, parsed_xml, root_name, sample_values, text_of
from engines.errors import InputRefused, RefusalCode

ROOT = "CardiologyXML"
_UNIT = "uvperlsb"
_DATE, _TIME = ("Year", "Month", "Day"), ("Hour", "Minute", "Second")


def recognises(content: EcgContent) -> bool:
    """True for a document of CardioSoft."""
    return root_name(content.data) == ROOT


def read(content: EcgContent) -> EcgReading:
    """Read the rhythm strip with the most leads.

    Raises:
        InputRefused: no resting ECG, no unit, no rate, or leads cut short.
    """
    root = parsed_xml(content.data)
    strip = _strip(root)
    step_mv = _step_mv(strip)
    rate_hz = require_rate(number_of(text_of(strip, "SampleRate")))
    steps = _steps(strip)
    filters = next(root.iter("FilterSetting"), None)
    return EcgReading(
        signals_mv={lead: values * step_mv for lead, values in steps.items()},
        sampling_rate_hz=rate_hz,
        steps_mv=dict.fromkeys(steps, step_mv),
        highpass_hz=number_of(text_of(filters, "HighPass")),
        lowpass_hz=number_of(text_of(filters, "LowPass")),
        notch_hz=_notch_hz(filters),
        warnings=_warnings(root),
        origin=_origin(root),
    )


def _strip(root: Element) -> Element:
    strips = [strip for strip in root.iter("StripData") if strip.find("WaveformData") is not None]
    if not strips:
        exercise = next(root.iter("FullDisclosureData"), None) is not None
        found = "an exercise ECG (FullDisclosure) was found" if exercise else "no rhythm strip (StripData) was found"
        raise InputRefused(
            RefusalCode.NO_TWELVE_LEAD_GROUP, f"{found}; a resting ECG is expected (UK Biobank: field 20205)"
        )
    return max(strips, key=lambda strip: len(strip.findall("WaveformData")))


def _step_mv(strip: Element) -> float:
    resolution = strip.find("Resolution")
    step = number_of(text_of(strip, "Resolution"))
    unit = "" if resolution is None else resolution.get("units", "")
    if step is None or step <= 0 or unit.replace("\u00b5", "u").strip().lower() != _UNIT:
        raise InputRefused(
            RefusalCode.UNIT_UNKNOWN, f"the resolution is {step} in {unit[:16]!r}; expected a number in 'uVperLsb'"
        )
    return step / 1000.0


def _steps(strip: Element) -> dict[str, Signal]:
    found: dict[str, Signal] = {}
    promised = number_of(text_of(strip, "ChannelSampleCountTotal"))
    for element in strip.findall("WaveformData"):
        lead = lead_named(element.get("lead", ""))
        if lead is None or lead in found:
            continue
        values = sample_values(element.text, f"lead {lead}")
        if promised is not None and len(values) < promised:
            raise cut_off(f"lead {lead} has {len(values)} samples of {promised:.0f}")
        found[lead] = values
    return found


def _notch_hz(filters: Element | None) -> float | None:
    on = [
        hz for hz in (50.0, 60.0) if (text_of(filters, f"Filter{hz:.0f}Hz") or "").lower() in {"yes", "true", "on", "1"}
    ]
    return on[0] if on else None


def _warnings(root: Element) -> tuple[str, ...]:
    statements = " ".join(element.text or "" for element in root.iter("DiagnosisText")).lower()
    return ("The cart itself calls the quality of this ECG poor.",) if "poor data quality" in statements else ()


def _origin(root: Element) -> EcgOrigin:
    patient, device = next(root.iter("PatientInfo"), None), next(root.iter("DeviceInfo"), None)
    observed = root.find("ObservationDateTime")
    born = patient.find("BirthDateTime") if patient is not None else None
    return EcgOrigin(
        patient_id=text_of(patient, "PID"),
        patient_name=person_name(text_of(patient, "Name/FamilyName"), text_of(patient, "Name/GivenName")),
        birth_date=date_code(*(text_of(born, part) for part in _DATE)),
        sex=sex_code(text_of(patient, "Gender")),
        acquired_at=moment_of(*(text_of(observed, part) for part in (*_DATE, *_TIME))),
        manufacturer="GE",
        model=text_of(device, "Desc"),
        software=text_of(device, "SoftwareVer"),
    )
