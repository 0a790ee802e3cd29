"""What is sent in a demo or a verification: the user's files or new phantom studies, grouped by study.

Phantoms come from the training package as a separate program: workers never import each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from stream_processors.errors import ProcessorError

PHANTOM_METHODS = ("cmr", "echo", "ecg")


class InputUnusable(ProcessorError):
    """There is nothing to send, and why."""


@dataclass(frozen=True)
class Arrival:
    """The files of one study, in the order in which they are sent."""

    study_instance_uid: str
    files: tuple[Path, ...]


def arrivals_in(path: Path) -> list[Arrival]:
    """Every DICOM file at or below a path, grouped by Study Instance UID.

    Raises:
        InputUnusable: the path does not exist or holds no DICOM file.
    """
    if not path.exists():
        raise InputUnusable(f"{path} does not exist; give a DICOM file or a folder with DICOM files")
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    studies: dict[str, list[Path]] = {}
    for file in files:
        uid = _study_of(file)
        if uid is not None:
            studies.setdefault(uid, []).append(file)
    if not studies:
        raise InputUnusable(f"{path}: none of {len(files)} files is DICOM with a Study Instance UID")
    return [Arrival(uid, tuple(members)) for uid, members in studies.items()]


def make_phantoms(  # noqa: PLR0913 - what, which, how many, where, and which variants
    methods: Sequence[str], *, seed: int, count: int, out: Path, turned: bool = False, evenly: bool = False
) -> list[dict[str, Any]]:
    """Make ``count`` studies of each method below ``out/<method>``; return their truths, files as absolute paths.

    Args:
        methods: kinds of study.
        seed: which hearts.
        count: studies of each method.
        out: folder to write to.
        turned: of each cardiac MR study also the three that hold its pixels turned by 90, 180 and 270 degrees.
        evenly: spread the ejection fractions, and what an ECG shows of them, as the population's are.

    Raises:
        InputUnusable: the phantom program failed; the message carries its words.
    """
    more = [option for option, asked in (("--evenly", evenly), ("--turned", turned)) if asked]
    return [truth for method in methods for truth in _make(method, seed, count, out / method, more)]


def of_truths(truths: Iterable[dict[str, Any]]) -> list[Arrival]:
    """The studies the truths speak of."""
    return [Arrival(truth["study_instance_uid"], tuple(Path(file) for file in truth["files"])) for truth in truths]


def _make(method: str, seed: int, count: int, out: Path, more: Sequence[str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "training.cli", "phantoms", "make"]
    options = ["--method", method, "--seed", str(seed), "--n", str(count), "--out", str(out)]
    done = subprocess.run([*command, *options, *more], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputUnusable(f"no {method} phantoms could be made:\n{done.stderr[-2000:]}")
    truths: list[dict[str, Any]] = json.loads((out / "truth.json").read_text())
    for truth in truths:
        truth["files"] = [str(out / file) for file in truth["files"]]
    return truths


def _study_of(file: Path) -> str | None:
    try:
        header = dcmread(file, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
    except (InvalidDicomError, OSError, AttributeError, ValueError, EOFError):
        return None
    return str(header.get("StudyInstanceUID", "")) or None
