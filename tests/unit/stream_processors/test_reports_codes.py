"""The code table against pydicom's copy of PS3.16, or against check digits."""

from __future__ import annotations

import pytest
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.coding import Code

from engines.errors import RefusalCode
from engines.records import Modality
from stream_processors.reports import codes

TABLE = {name: value for name, value in vars(codes).items() if isinstance(value, Code)}
DISEASES = codes.CONDITIONS.keys() - codes.LVEF_CONDITIONS.keys()


def meanings(code: Code) -> set[str]:
    """Every meaning that pydicom's dictionary gives a code value, without SNOMED CT's '(finding)' and the like."""
    scheme = concepts.get(code.scheme_designator, {})
    return {values[code.value][0].partition(" (")[0] for values in scheme.values() if code.value in values}


def verhoeff_is_valid(digits: str) -> bool:
    """Check digit of a SNOMED CT identifier."""
    permutation = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    check = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(position % 8):
            value = permutation[value]
        check = dihedral(check, value)
    return check == 0


def dihedral(a: int, b: int) -> int:
    """Product in the dihedral group of order ten."""
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
    return 5 + (a - b) % 5 if b < 5 else (a - b) % 5


def loinc_is_valid(code: str) -> bool:
    """Check digit (modulus 10) of a LOINC code."""
    number, _, check = code.partition("-")
    total = sum(
        sum(divmod(2 * int(digit), 10)) if index % 2 == 0 else int(digit)
        for index, digit in enumerate(reversed(number))
    )
    return (10 - total % 10) % 10 == int(check)


@pytest.mark.parametrize("name", sorted(TABLE.keys()))
def test_every_code_is_in_the_dictionary_or_listed_as_outside(name: str) -> None:
    """Value, scheme and meaning are those of PS3.16 unless the table lists the code as outside."""
    code = TABLE[name]
    assert (code.meaning in meanings(code)) != (code in codes.OUTSIDE_DICOM)


@pytest.mark.parametrize("code", [code for code in TABLE.values() if code.scheme_designator in {"SCT", "LN"}])
def test_snomed_and_loinc_codes_have_valid_check_digits(code: Code) -> None:
    """A mistyped digit is caught, also where no dictionary lists the code."""
    assert (verhoeff_is_valid if code.scheme_designator == "SCT" else loinc_is_valid)(code.value)


def test_check_digits_find_the_known_wrong_code() -> None:
    """The checks fail on a wrong digit (PS3.16's own ECG Report code is wrong in LOINC)."""
    assert not loinc_is_valid("11524-0")
    assert not verhoeff_is_valid("95281008")


def test_ecg_estimates_do_not_claim_a_method() -> None:
    """What an ECG suggests is not coded as measured by ultrasound or MR."""
    concept = codes.QUANTITIES[Modality.ECG, "lvef"].concept
    assert concept.value == "10230-1"
    assert "inferred from ECG" in codes.QUANTITIES[Modality.ECG, "lvef"].label


def test_the_six_diseases_have_distinct_findings() -> None:
    """Two diseases never share a code, nor one with a low ejection fraction, so that a report reads back."""
    assert len(DISEASES) == 6
    findings = {codes.CONDITIONS[name].finding.value for name in DISEASES} | {codes.IMPAIRED_LV_FUNCTION.value}
    assert len(findings) == 7


def test_undecided_is_undetermined_and_uncertain() -> None:
    """An engine that cannot decide is neither present nor absent, neither high nor low risk."""
    assert codes.presence_of(None) == codes.UNDETERMINED
    assert codes.risk_of(None) == codes.UNCERTAIN_RISK


def test_a_view_check_that_declines_is_an_abstention() -> None:
    """The engine looked and declined: the report says failed, not that nothing was attempted."""
    assert {RefusalCode.NOT_A4C, RefusalCode.VIEW_UNCERTAIN} <= codes.RAN_AND_ABSTAINED
    assert RefusalCode.SECTOR_IMPLAUSIBLE not in codes.RAN_AND_ABSTAINED
