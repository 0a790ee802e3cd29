"""HL7 annotated ECG, root ``AnnotatedECG``: the rhythm series of one sequence set.

``value = digits x scale + origin`` in the stated unit; the rate is one over the increment of the time sequence. Leads are codes
``MDC_ECG_LEAD_*``. Derived series (representative beats) are never read. Called by ``ecg_file``.
"""

from __future__ import annotations

from datetime import datetime
from xml.etree.ElementTree import Element

from engines.decode.ecg_leads import INDEPENDENT_LEADS, Signal, lead_named, millivolt_per
from engines.decode.ecg_reading import (
    EcgContent,
    EcgOrigin,
    EcgReading,
    malformed,
    moment_of,
    person_name,
    require_rate,
    sex_code,
)
from engines.decode.ecg_xml import number_of, parsed_xml, root_name, sample_values, text_of
from engines.errors import InputRefused, RefusalCode

ROOT = "AnnotatedECG"
_LEAD = "MDC_ECG_LEAD_"
_TIMES = ("TIME_ABSOLUTE", "TIME_RELATIVE")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_FILTER = "MDC_ECG_CTL_VBL_ATTR_FILTER_"


def recognises(content: EcgContent) -> bool:
    """True for an annotated ECG of HL7 version 3."""
    return root_name(content.data) == ROOT


def read(content: EcgContent) -> EcgReading:
    """Read the sequence set of the rhythm series that has all independent leads.

    Raises:
        InputRefused: no rhythm, leads missing or one after the other, no unit, no rate.
    """
    root = parsed_xml(content.data)
    series = _rhythm(root)
    sequences = _sequence_set(series)
    signals, steps = {}, {}
    for lead, value in sequences.items():
        signals[lead], steps[lead] = _millivolt(lead, value)
    return EcgReading(
        signals_mv=signals,
        sampling_rate_hz=_rate_hz(series, sequences),
        steps_mv=steps,
        highpass_hz=_filter_hz(series, "HIGH_PASS"),
        lowpass_hz=_filter_hz(series, "LOW_PASS"),
        notch_hz=_filter_hz(series, "NOTCH"),
        origin=_origin(root, series),
    )


def _rhythm(root: Element) -> Element:
    for series in root.findall("component/series"):
        code = series.find("code")
        if code is not None and code.get("code", "").upper() == "RHYTHM":
            return series
    raise InputRefused(RefusalCode.NO_TWELVE_LEAD_GROUP, "the annotated ECG holds no rhythm series; one is expected")


def _sequence_set(series: Element) -> dict[str, Element]:
    """Value element by lead, of the set with the most leads."""
    sets = [_values(each) for each in series.findall("component/sequenceSet")]
    best = max(sets, key=len, default={})
    together = set().union(*sets)
    independent = set(INDEPENDENT_LEADS)
    if not independent <= set(best) and independent <= together:
        raise InputRefused(
            RefusalCode.LEADS_NOT_SIMULTANEOUS,
            f"the leads lie in {len(sets)} sequence sets, one after the other; twelve simultaneous leads are expected",
        )
    return best


def _values(sequence_set: Element) -> dict[str, Element]:
    found: dict[str, Element] = {}
    for sequence in sequence_set.findall("component/sequence"):
        code, value = sequence.find("code"), sequence.find("value")
        name = code.get("code", "").upper() if code is not None else ""
        lead = lead_named(name.removeprefix(_LEAD)) if name.startswith(_LEAD) else None
        if lead is not None and value is not None:
            found.setdefault(lead, value)
    return found


def _millivolt(lead: str, value: Element) -> tuple[Signal, float]:
    """Signal and stored step of a lead."""
    parts = {}
    for name in ("origin", "scale"):
        element = value.find(name)
        number = number_of(element.get("value")) if element is not None else None
        if element is None or number is None:
            raise InputRefused(
                RefusalCode.UNIT_UNKNOWN, f"lead {lead} states no {name}; without it its amplitude is unknown"
            )
        parts[name] = number * millivolt_per(element.get("unit"))
    if parts["scale"] == 0:
        raise malformed(f"the scale of lead {lead} is 0")
    digits = sample_values(text_of(value, "digits"), f"lead {lead}")
    return digits * parts["scale"] + parts["origin"], abs(parts["scale"])


def _rate_hz(series: Element, sequences: dict[str, Element]) -> float:
    """One over the increment of the set that holds the leads."""
    wanted = {id(value) for value in sequences.values()}
    for each in series.findall("component/sequenceSet"):
        if any(id(value) in wanted for value in each.iterfind("component/sequence/value")):
            return require_rate(_stated_rate(each))
    return require_rate(None)


def _stated_rate(sequence_set: Element) -> float | None:
    for sequence in sequence_set.findall("component/sequence"):
        code, increment = sequence.find("code"), sequence.find("value/increment")
        if code is None or increment is None or code.get("code", "").upper() not in _TIMES:
            continue
        seconds, step = _SECONDS.get(increment.get("unit", "")), number_of(increment.get("value"))
        return 1.0 / (seconds * step) if seconds and step and step > 0 else None
    return None


def _filter_hz(series: Element, kind: str) -> float | None:
    for control in series.iterfind("controlVariable//controlVariable"):
        code = control.find("code")
        if code is not None and code.get("code", "").upper().startswith(_FILTER + kind):
            value = control.find("component/controlVariable/value")
            return number_of(value.get("value")) if value is not None and value.get("unit") == "Hz" else None
    return None


def _origin(root: Element, series: Element) -> EcgOrigin:
    subject = next(root.iter("trialSubject"), None)
    person = subject.find("subjectDemographicPerson") if subject is not None else None
    author = series.find("author/seriesAuthor")
    return EcgOrigin(
        patient_id=_attribute(subject, "id", "extension") or _attribute(subject, "id", "root"),
        patient_name=person_name(text_of(person, "name"), None),
        birth_date=_digits(_attribute(person, "birthTime", "value"), 8),
        sex=sex_code(_attribute(person, "administrativeGenderCode", "code")),
        acquired_at=_moment(
            _attribute(series, "effectiveTime/low", "value") or _attribute(root, "effectiveTime/center", "value")
        ),
        manufacturer=text_of(author, "manufacturerOrganization/name"),
        model=text_of(author, "manufacturedSeriesDevice/manufacturerModelName"),
        software=text_of(author, "manufacturedSeriesDevice/softwareName"),
    )


def _attribute(element: Element | None, path: str, name: str) -> str | None:
    found = element.find(path) if element is not None else None
    return found.get(name) if found is not None else None


def _digits(text: str | None, count: int) -> str | None:
    head = (text or "")[:count]
    return head if len(head) == count and head.isascii() and head.isdigit() else None


def _moment(text: str | None) -> datetime | None:
    """HL7 time stamp ``YYYYMMDDHHMMSS``."""
    head = _digits(text, 14)
    return moment_of(head[:4], *(head[at : at + 2] for at in range(4, 14, 2))) if head else None
