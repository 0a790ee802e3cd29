"""What independent validators say of a document, with every known false alarm explained.

dciodvfy (dicom3tools), dsrdump and dsr2html (dcmtk) and PixelMed's DicomSRValidator, each optional. dciodvfy checks the
header, dcmtk the relationships, PixelMed the templates: none of them sees everything. Used by the tests and by
``purkinje check``; the pipeline never waits for it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

PIXELMED_JAR: Final = Path("/usr/share/java/pixelmed.jar")
_TIMEOUT_S: Final = 120.0


class Severity(StrEnum):
    """How a validator ranks what it found."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, kw_only=True)
class Complaint:
    """One line of a validator.

    Args:
        validator: which one.
        severity: its own ranking.
        line: its own words.
        explanation: why this is no fault of the document, or None.
    """

    validator: str
    severity: Severity
    line: str
    explanation: str | None

    @property
    def counts(self) -> bool:
        """True when it stands against the document: an error, or a template warning, that nothing explains."""
        return self.explanation is None and (self.severity is Severity.ERROR or self.validator == "pixelmed")


@dataclass(frozen=True, kw_only=True)
class Validator:
    """One external program.

    Args:
        name: as in ``Complaint.validator``.
        package: Debian package that brings it.
        command: arguments before the path of the document.
        read: exit status, standard output and standard error to complaints.
    """

    name: str
    package: str
    command: tuple[str, ...]
    read: Callable[[int, str, str], list[Complaint]]

    @property
    def is_available(self) -> bool:
        """True when the program, and the archive it runs, are installed."""
        archives = [Path(argument) for argument in self.command if argument.endswith(".jar")]
        return shutil.which(self.command[0]) is not None and all(archive.exists() for archive in archives)

    def complaints(self, path: Path) -> list[Complaint]:
        """Run it on one Part 10 file.

        Raises:
            FileNotFoundError: it is not installed; the message names the package.
            subprocess.TimeoutExpired: it did not finish within two minutes.
        """
        if not self.is_available:
            msg = f"{self.name} is not installed; expected from the Debian package {self.package}: apt-get install it"
            raise FileNotFoundError(msg)
        done = subprocess.run(
            [*self.command, str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
        return self.read(done.returncode, done.stdout, done.stderr)


_UNNAMED_ROWS = (
    "An item of TID 310 under a NUM: HAS PROPERTIES is the relationship of TID 310. The validator compares it with "
    "rows of the enclosing template that name no concept and therefore match every item first."
)
ALLOW_LIST: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (
        re.compile(r"^Error: .*CODE \(121058,DCM,.*not found in context group 100"),
        "Procedure reported: CID 100 is a baseline group (BCID), other procedures are allowed.",
    ),
    (
        re.compile(
            r"^Error: Template (300 Measurement|1419 ROIMeasurements)/"
            r"\[Row \d+\] NUM \*/\[Row (9|10|13|14)\] NUM \*: .*NUM \((37188(4006|6008|5007)|386136009),SCT,.*"
            r"expected INFERRED FROM - found HAS PROPERTIES"
        ),
        _UNNAMED_ROWS,
    ),
    (
        re.compile(
            r"^Error: Template (300 Measurement|1419 ROIMeasurements)/\[Row \d+\] NUM \*/\[Row (2|6)\] CODE \*: .*"
            r"CODE \(121404,DCM,.*expected HAS CONCEPT MOD - found HAS PROPERTIES"
        ),
        _UNNAMED_ROWS,
    ),
    (
        re.compile(r"^Warning: .*/TEXT \(122405,DCM,.Algorithm Manufacturer.\): Content Item not in template"),
        "Algorithm Manufacturer came into TID 4019 after this build of the validator.",
    ),
    (
        re.compile(
            r"^Warning: .*\(125007,DCM,.Measurement Group.\)/CODE \((121052,DCM|395112001,SCT),.*"
            r"Content Item not in template"
        ),
        "Qualitative evaluations of a measurement group are switched off in this build of the validator.",
    ),
    (
        re.compile(
            r"^Warning: .*/CODE \(111065,DCM,.Summary of Analyses.\)/(TEXT \(11100[123],DCM|CODE \(111000,DCM),.*"
            r"Content Item not in template"
        ),
        "TID 1500 is extensible: TID 4019 says which algorithm the summary is about.",
    ),
    (
        re.compile(
            r"^Warning: .*/CONTAINER \((59776-5|55112-7|55111-9),LN,[^/]*\)(/TEXT \(1210(71|77|65),DCM,.*)?: "
            r"Content Item not in template"
        ),
        "This build holds CID 7001 of 2005, whose headings have no LOINC codes yet, and knows nothing under ours.",
    ),
)
"""What PixelMed's validator complains of without cause, each with the reason; nothing else is waved through."""


def explain(line: str) -> str | None:
    """Reason why a line of PixelMed's validator is a false alarm, or None."""
    return next((reason for pattern, reason in ALLOW_LIST if pattern.search(line)), None)


def _read_dciodvfy(status: int, out: str, err: str) -> list[Complaint]:
    lines = [line for line in (out + "\n" + err).splitlines() if line.startswith(("Error", "Warning"))]
    found = [_complaint("dciodvfy", line, None) for line in lines]
    if status != 0 and not any(complaint.severity is Severity.ERROR for complaint in found):
        found.append(_failure("dciodvfy", status, err))
    return found


def _dcmtk_reader(name: str) -> Callable[[int, str, str], list[Complaint]]:
    def read(status: int, _out: str, err: str) -> list[Complaint]:
        return [] if status == 0 else [_failure(name, status, err)]

    return read


def _read_pixelmed(status: int, out: str, err: str) -> list[Complaint]:
    lines = (out + "\n" + err).splitlines()
    found = [_complaint("pixelmed", line, explain(line)) for line in lines if line.startswith(("Error", "Warning"))]
    # The program ends with 0 whatever happens; without its last line it did not finish.
    if status != 0 or "IOD validation complete" not in out:
        found.append(_failure("pixelmed", status, err or out))
    return found


def _complaint(validator: str, line: str, explanation: str | None) -> Complaint:
    severity = Severity.ERROR if line.startswith("Error") else Severity.WARNING
    return Complaint(validator=validator, severity=severity, line=line, explanation=explanation)


def _failure(validator: str, status: int, output: str) -> Complaint:
    line = f"exit status {status}: {output.strip()[-500:]}"
    return Complaint(validator=validator, severity=Severity.ERROR, line=line, explanation=None)


DCIODVFY: Final = Validator(name="dciodvfy", package="dicom3tools", command=("dciodvfy", "-new"), read=_read_dciodvfy)
DSRDUMP: Final = Validator(name="dsrdump", package="dcmtk", command=("dsrdump",), read=_dcmtk_reader("dsrdump"))
DSR2HTML: Final = Validator(name="dsr2html", package="dcmtk", command=("dsr2html",), read=_dcmtk_reader("dsr2html"))
PIXELMED: Final = Validator(
    name="pixelmed",
    package="libpixelmed-java, default-jre-headless",
    command=(
        "java",
        # The compiled templates are larger than what the JDK's XPath limits allow (JAXP0801003).
        "-Djdk.xml.xpathTotalOpLimit=0",
        "-Djdk.xml.xpathExprOpLimit=0",
        "-Djdk.xml.xpathExprGrpLimit=0",
        "-cp",
        str(PIXELMED_JAR),
        "com.pixelmed.validate.DicomSRValidator",
    ),
    read=_read_pixelmed,
)
FAST: Final = (DCIODVFY, DSRDUMP, DSR2HTML)
"""Validators that take a fraction of a second; PixelMed takes several."""


def standing_complaints(path: Path, validators: Sequence[Validator]) -> list[Complaint]:
    """Everything that stands against a document after the explanations.

    Raises:
        FileNotFoundError: a validator is not installed.
    """
    return [complaint for validator in validators for complaint in validator.complaints(path) if complaint.counts]
