"""The six diseases from codes and dates: each list, each published mistake, and before or after imaging."""

from __future__ import annotations

import math
from datetime import date, timedelta

import pytest

from training.data.icd10_outcomes import (
    APART,
    OUTCOMES,
    Diagnosis,
    Occurrence,
    When,
    incident_label,
    occurrences,
    plain_code,
    prevalent_label,
)
from training.data.targets import DISEASES

IMAGED = date(2016, 5, 4)
BEFORE, AFTER = IMAGED - timedelta(days=30), IMAGED + timedelta(days=400)


def diseases(*codes: str, first: date | None = BEFORE) -> set[str]:
    """Those of the six, and those beside them, that the codes mean."""
    found = occurrences([Diagnosis(code=code, first=first) for code in codes], IMAGED, {**OUTCOMES, **APART})
    return {name for name, each in found.items() if each.when is not When.ABSENT}


def test_the_lists_are_of_the_six_diseases_of_the_engine() -> None:
    """Same names, same order: a column of the network is a list of codes."""
    assert tuple(OUTCOMES) == DISEASES


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("coronary_artery_disease", ("I209", "I214", "I229", "I230", "I249", "I250", "I259"), ("I26", "I519")),
        ("atrial_fibrillation", ("I48", "I480", "I489"), ("I471", "I498")),
        ("sudden_cardiac_death", ("I460", "I461", "I469", "I490"), ("I491", "I470", "I471", "I472", "I479")),
        ("heart_failure", ("I500", "I501", "I509", "I110", "I130", "I132"), ("I119", "I131", "I139", "I420", "I51")),
        ("myocardial_infarction", ("I210", "I219", "I221", "I236", "I252"), ("I251", "I259", "I248", "I20")),
        ("cardiomyopathy", ("I420", "I429", "I430", "I438"), ("I411", "I44", "I255")),
    ],
)
def test_each_disease_is_its_codes_and_no_other(name: str, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    """Every code of the list means the disease, and its neighbours do not."""
    assert all(name in diseases(code) for code in inside)
    assert not any(name in diseases(code) for code in outside)


def test_chronic_ischaemia_is_no_infarction() -> None:
    """Published mistake: I25 for infarction. Only I25.2, the old one, is."""
    assert diseases("I251") == {"coronary_artery_disease"}
    assert diseases("I252") == {"coronary_artery_disease", "myocardial_infarction"}


def test_a_tachycardia_is_no_sudden_death() -> None:
    """Published mistake: I47 for sudden death. I47.2 is reported beside the six, I47.1 not at all."""
    assert diseases("I471") == set()
    assert diseases("I472") == {"ventricular_tachycardia"}


def test_i249_and_i250_both_match() -> None:
    """Published mistake: a missing comma made one code of the two, which nothing matched."""
    assert diseases("I249") == diseases("I250") == {"coronary_artery_disease"}


def test_hypertensive_heart_failure_is_heart_failure() -> None:
    """Published mistake: I50 alone. Hypertensive heart disease without failure is none."""
    assert diseases("I110") == diseases("I130") == diseases("I132") == {"heart_failure"}
    assert diseases("I119") == set()


def test_hypertrophic_hearts_are_counted_apart_too() -> None:
    """I42.1 and I42.2 are cardiomyopathy, and reported by themselves."""
    assert diseases("I421") == diseases("I422") == {"cardiomyopathy", "hypertrophic_cardiomyopathy"}
    assert diseases("I420") == {"cardiomyopathy"}


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        ((-1,), Occurrence(when=When.PREVALENT, days=-1)),
        ((0,), Occurrence(when=When.PREVALENT, days=0)),
        ((1,), Occurrence(when=When.INCIDENT, days=1)),
        ((400, -30), Occurrence(when=When.PREVALENT, days=-30)),
        ((400, 90), Occurrence(when=When.INCIDENT, days=90)),
        ((-30, None), Occurrence(when=When.PREVALENT, days=-30)),
        ((400, None), Occurrence(when=When.UNDATED)),
        ((None,), Occurrence(when=When.UNDATED)),
        ((), Occurrence(when=When.ABSENT)),
    ],
)
def test_before_or_after_imaging_is_told_by_the_first_date(days: tuple[int | None, ...], expected: Occurrence) -> None:
    """Published mistake: no dates. The first code decides; one without a date leaves open what no dated one settles."""
    dates = [None if day is None else IMAGED + timedelta(days=day) for day in days]
    found = occurrences([Diagnosis(code="I500", first=day) for day in dates], IMAGED)
    assert found["heart_failure"] == expected


def test_a_disease_after_imaging_is_no_prevalent_label() -> None:
    """Prevalent: 1, 0 or not known; incident: of those who did not have it before."""
    labels = {
        when: (prevalent_label(Occurrence(when=when)), incident_label(Occurrence(when=when)))
        for when in (When.PREVALENT, When.INCIDENT, When.ABSENT, When.UNDATED)
    }
    assert labels[When.INCIDENT] == (0.0, 1.0)
    assert labels[When.ABSENT] == (0.0, 0.0)
    assert labels[When.PREVALENT][0] == 1.0
    assert math.isnan(labels[When.PREVALENT][1])
    assert all(math.isnan(label) for label in labels[When.UNDATED])


def test_a_placeholder_is_no_date() -> None:
    """1900-01-01 stands for no date, and does not make a disease prevalent."""
    found = occurrences([Diagnosis(code="I48", first=date(1900, 1, 1))], IMAGED)
    assert found["atrial_fibrillation"].when is When.UNDATED


@pytest.mark.parametrize(
    ("text", "code"),
    [("I251", "I251"), ("i25.1", "I251"), (" I48 ", "I48"), ("I25.1 Atherosclerotic heart disease", "I251")],
)
def test_codes_are_read_as_tables_spell_them(text: str, code: str) -> None:
    """With or without the dot, and before its meaning."""
    assert plain_code(text) == code


@pytest.mark.parametrize("text", ["", "251", "heart failure", "I2", "I25,1", "NA"])
def test_what_is_no_code_is_refused(text: str) -> None:
    """A word, a number or ICD-9 is not silently a healthy patient."""
    with pytest.raises(ValueError, match="no code of ICD-10"):
        plain_code(text)
