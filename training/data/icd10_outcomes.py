"""The six diseases as lists of ICD-10 codes, and whether a disease came before or after the heart was imaged.

Pure functions; called by ``training.data.sources.ukbb_ecg``. The lists differ from those published with the method, which
take I25 (chronic ischaemic disease) for infarction and I47 (paroxysmal tachycardia) for sudden death, miss hypertensive heart
failure, and call a disease prevalent that was first coded years after the images.

Source: WHO, ICD-10, 2019, chapter IX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

OUTCOMES: Mapping[str, tuple[str, ...]] = {
    "coronary_artery_disease": ("I20", "I21", "I22", "I23", "I24", "I25"),
    "atrial_fibrillation": ("I48",),
    "sudden_cardiac_death": ("I46", "I490"),
    "heart_failure": ("I50", "I110", "I130", "I132"),
    "myocardial_infarction": ("I21", "I22", "I23", "I252"),
    "cardiomyopathy": ("I42", "I43"),
}
"""Codes by disease, in the order of ``training.data.targets.DISEASES``; a code stands for all codes that begin with it."""

APART: Mapping[str, tuple[str, ...]] = {
    "ventricular_tachycardia": ("I472",),
    "hypertrophic_cardiomyopathy": ("I421", "I422"),
}
"""Reported beside the six: tachycardia is no sudden death, and hypertrophic hearts are unlike other cardiomyopathies."""

_CODE = re.compile(r"([A-Z]\d\d)\.?([0-9A-Z]{0,3})(?=$|[\s:-])")
_PLACEHOLDERS = {date(1900, 1, 1), date(1901, 1, 1), date(2037, 7, 7)}
"""What UK Biobank writes where an event has no date, or one before birth or in the future (data coding 819)."""


class When(StrEnum):
    """When a disease was first coded, seen from the day of imaging."""

    ABSENT = "absent"
    PREVALENT = "prevalent"
    INCIDENT = "incident"
    UNDATED = "undated"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One code of a patient and its first date; None where the table has none."""

    code: str
    first: date | None


@dataclass(frozen=True, kw_only=True)
class Occurrence:
    """When a disease was first coded; ``days`` after imaging (0 or below: prevalent), None where absent or undated."""

    when: When
    days: int | None = None


def plain_code(text: str) -> str:
    """Return a code as the lists spell it: capitals, without the dot, ``I25.1 ...`` as ``I251``.

    Raises:
        ValueError: it is no code of ICD-10.
    """
    match = _CODE.match(text.strip().upper())
    if match is None:
        raise ValueError(
            f"{text.strip()[:12]!r} is no code of ICD-10; expected a letter and two digits first, such as I251"
        )
    return match[1] + match[2]


def is_of(code: str, prefixes: Iterable[str]) -> bool:
    """Whether a code is one of a list, or below one."""
    return code.startswith(tuple(prefixes))


def occurrences(
    diagnoses: Iterable[Diagnosis], imaged: date, lists: Mapping[str, tuple[str, ...]] = OUTCOMES
) -> dict[str, Occurrence]:
    """Return when each disease was first coded.

    On the day of imaging or before is prevalent, after it incident. A dated code before imaging settles it; otherwise a code
    without a date leaves open whether it came before, and the disease is undated.

    Args:
        diagnoses: of one patient, main and secondary.
        imaged: the day of the images.
        lists: prefixes by disease.

    Raises:
        ValueError: a code is none of ICD-10.
    """
    known = [(plain_code(each.code), None if each.first in _PLACEHOLDERS else each.first) for each in diagnoses]
    return {name: _first([day for code, day in known if is_of(code, codes)], imaged) for name, codes in lists.items()}


def _first(days: list[date | None], imaged: date) -> Occurrence:
    if not days:
        return Occurrence(when=When.ABSENT)
    dated = [(day - imaged).days for day in days if day is not None]
    first = min(dated, default=None)
    if first is not None and first <= 0:
        return Occurrence(when=When.PREVALENT, days=first)
    if first is None or len(dated) < len(days):
        return Occurrence(when=When.UNDATED)
    return Occurrence(when=When.INCIDENT, days=first)


_PREVALENT = {When.PREVALENT: 1.0, When.INCIDENT: 0.0, When.ABSENT: 0.0, When.UNDATED: math.nan}
_INCIDENT = {When.PREVALENT: math.nan, When.INCIDENT: 1.0, When.ABSENT: 0.0, When.UNDATED: math.nan}


def prevalent_label(found: Occurrence) -> float:
    """Return 1 where the disease was there when the heart was imaged, 0 where not (yet), NaN where that is not known."""
    return _PREVALENT[found.when]


def incident_label(found: Occurrence) -> float:
    """Return 1 where the disease came after imaging, 0 where it never did, NaN where it was there before or is undated."""
    return _INCIDENT[found.when]
