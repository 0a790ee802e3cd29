"""The explanations of false alarms, and what happens without a validator."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_processors.reports.validate import DCIODVFY, PIXELMED, Severity, Validator, explain, standing_complaints

GROUP = (
    '/CONTAINER (126000,DCM,"Imaging Measurement Report")/CONTAINER (126010,DCM,"Imaging Measurements")'
    '/CONTAINER (125007,DCM,"Measurement Group")'
)
NUMBER = GROUP + '/NUM (18043-0,LN,"Left Ventricular Ejection Fraction by US")'
UPPER = NUMBER + '/NUM (371886008,SCT,"+, range of upper measurement uncertainty")'
WRONG = "Incorrect relationship - expected INFERRED FROM - found"
UNNAMED = "Error: Template 300 Measurement/[Row 1] NUM */[Row 9] NUM *: 1.8.1.20.3: "
PROCEDURE = '/CODE (121058,DCM,"Procedure reported")'
FALSE_ALARMS = [
    f'Error: Template 1500/[Row 4]: 1.7: {PROCEDURE}: Code (1,SCT,"12-Lead ECG") not found in context group 100',
    f"{UNNAMED}{UPPER}: {WRONG} HAS PROPERTIES",
    f"Error: Template 1419 ROIMeasurements/[Row 5] NUM */[Row 14] NUM *: 1.8: {UPPER}: {WRONG} HAS PROPERTIES",
    f'Warning: 1.8.1.5: {GROUP}/TEXT (122405,DCM,"Algorithm Manufacturer"): Content Item not in template',
    f'Warning: 1.8.1.5: {GROUP}/CODE (121052,DCM,"Presence of property"): Content Item not in template',
]
TRUE_ALARMS = [
    f"{UNNAMED}{UPPER}: {WRONG} CONTAINS",
    f'{UNNAMED}{NUMBER}/NUM (8867-4,LN,"Heart rate"): {WRONG} HAS PROPERTIES',
    "Error: Template 1410 PlanarROIMeasurements/[Row 1]: 1.8.1: Missing required content item",
    f'Warning: 1.8.1.5: {GROUP}/TEXT (121106,DCM,"Comment"): Content Item not in template',
    'Warning: 1.7: /CONTAINER (18748-4,LN,"Diagnostic Imaging Report")/IMAGE: Content Item not in template',
]


@pytest.mark.parametrize("line", FALSE_ALARMS)
def test_known_false_alarms_are_explained(line: str) -> None:
    """Each known false alarm comes with its reason."""
    assert explain(line)


@pytest.mark.parametrize("line", TRUE_ALARMS)
def test_anything_else_stands(line: str) -> None:
    """The allow-list is no wider than the explanations."""
    assert explain(line) is None


def test_the_exit_status_of_dciodvfy_counts_without_a_line() -> None:
    """A validator that dies says nothing, and that is not a pass."""
    (complaint,) = DCIODVFY.read(139, "", "Segmentation fault")
    assert complaint.counts
    assert "139" in complaint.line


def test_warnings_of_dciodvfy_do_not_stand_but_errors_do() -> None:
    """Warnings of the header check are about the source's own values."""
    found = DCIODVFY.read(1, "", "Warning - </PatientName> - dubious\nError - </StudyDate> - bad")
    assert [(complaint.severity, complaint.counts) for complaint in found] == [
        (Severity.WARNING, False),
        (Severity.ERROR, True),
    ]


def test_pixelmed_that_did_not_finish_is_an_error() -> None:
    """The program ends with 0 whatever happens; only its last line says that it looked."""
    (complaint,) = PIXELMED.read(0, "Found ComprehensiveSR IOD", "java.lang.Exception")
    assert complaint.counts
    assert PIXELMED.read(0, "IOD validation complete", "") == []


def test_a_missing_validator_names_its_package(tmp_path: Path) -> None:
    """The message says what to install."""
    absent = Validator(name="nobody", package="some-package", command=("no-such-program",), read=DCIODVFY.read)
    with pytest.raises(FileNotFoundError, match="some-package"):
        standing_complaints(tmp_path / "x.dcm", [absent])
