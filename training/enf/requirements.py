"""What the comparison on phantoms must show, held against what it measured: each line is met or not, and the command says so.

Called by ``study``. A data set of patients is held to the invariance only: how hard its hearts are is not ours to set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from training.enf.measurements import Document

CHANGE_MAX_SD = 1e-3
FIELD_ACCURACY_MIN = 0.85
RESNET_ACCURACY = (0.85, 0.95)


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One line: what must hold, what was found, and whether it holds."""

    wanted: str
    found: str
    met: bool


def requirements(measured: Document, further: Mapping[str, Any], *, phantoms: bool) -> list[Requirement]:
    """Return every requirement.

    Args:
        measured: from ``training.enf.measurements.document``.
        further: what stands beside the table; ``dicom`` where studies were written turned.
        phantoms: whether the hearts are phantoms, whose difficulty was set.
    """
    return [*_invariance(measured, further), *(_difficulty(measured) if phantoms else ())]


def as_rows(found: list[Requirement]) -> list[dict[str, Any]]:
    """Return the requirements as plain values for the JSON file."""
    return [asdict(each) for each in found]


def as_markdown(found: list[Requirement]) -> str:
    """Return the requirements as a section of the table's page."""
    rows = [f"| {each.wanted} | {each.found} | {'yes' if each.met else '**no**'} |" for each in found]
    return "\n".join(["## What must hold", "", "| wanted | found | met |", "| --- | --- | --- |", *rows]) + "\n"


def _invariance(measured: Document, further: Mapping[str, Any]) -> Iterator[Requirement]:
    quarter = _model(measured, "ENF")["quarter_turns"]
    flips, change = quarter["flips"]["count"], quarter["max_change_sd"]
    yield _none("ENF: no decision flips over quarter turns of the stack", flips)
    yield _small("ENF: logit under quarter turns of the stack", change)
    if "dicom" in further:
        turns = further["dicom"]["ENF"]
        yield _none("ENF: no answer changes over quarter turns written as DICOM", turns["changed_answers"])
        yield _small("ENF: logit under quarter turns written as DICOM", turns["largest_logit_change_sd"])


def _difficulty(measured: Document) -> Iterator[Requirement]:
    field = _model(measured, "ENF")["validation"]["accuracy"]["mean"]
    yield Requirement(
        wanted=f"ENF: validation accuracy at least {FIELD_ACCURACY_MIN:g}",
        found=f"{field:.3f}",
        met=field >= FIELD_ACCURACY_MIN,
    )
    low, high = RESNET_ACCURACY
    peer = _model(measured, "ResNet50")["validation"]["accuracy"]["mean"]
    yield Requirement(
        wanted=f"ResNet50: validation accuracy from {low:g} to {high:g}, by which the difficulty was set",
        found=f"{peer:.3f}",
        met=low <= peer <= high,
    )


def _none(wanted: str, count: int) -> Requirement:
    return Requirement(wanted=wanted, found=str(count), met=count == 0)


def _small(what: str, change_sd: float | None) -> Requirement:
    """A logit that is the same for all hearts has no standard deviation, and no answer either."""
    met = change_sd is not None and change_sd <= CHANGE_MAX_SD
    found = "constant" if change_sd is None else f"{change_sd:.1e} sd"
    return Requirement(wanted=f"{what}: change at most {CHANGE_MAX_SD:g} sd", found=found, met=met)


def _model(measured: Document, name: str) -> Document:
    found: Document = next(model for model in measured["models"] if model["model"] == name)
    return found
