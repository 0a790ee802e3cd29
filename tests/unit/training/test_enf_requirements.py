"""What must hold of the comparison is held against what was measured, and each violation is said."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from training.enf.requirements import as_markdown, requirements


def model(name: str, accuracy: float, flips: int = 0, change_sd: float | None = 1e-6) -> dict[str, Any]:
    """The part of the document of one model that is looked at."""
    return {
        "model": name,
        "validation": {"accuracy": {"mean": accuracy}},
        "quarter_turns": {"flips": {"count": flips}, "max_change_sd": change_sd},
    }


GOOD = {"models": [model("ENF", 0.9), model("ResNet50", 0.9, flips=30, change_sd=2.0)]}
FURTHER = {"dicom": {"ENF": {"changed_answers": 0, "largest_logit_change_sd": 1e-6}}}


def test_a_good_comparison_holds() -> None:
    """Six lines, all met; the peer may flip as it likes."""
    found = requirements(GOOD, FURTHER, phantoms=True)
    assert len(found) == 6
    assert all(each.met for each in found)
    assert as_markdown(found).count("| yes |") == 6


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        (("models", 0, "quarter_turns", "flips", "count"), 1, 0),
        (("models", 0, "quarter_turns", "max_change_sd"), 2e-3, 1),
        (("models", 0, "quarter_turns", "max_change_sd"), None, 1),
        (("dicom", "ENF", "changed_answers"), 1, 2),
        (("dicom", "ENF", "largest_logit_change_sd"), 2e-3, 3),
        (("models", 0, "validation", "accuracy", "mean"), 0.84, 4),
        (("models", 1, "validation", "accuracy", "mean"), 0.84, 5),
        (("models", 1, "validation", "accuracy", "mean"), 0.96, 5),
    ],
)
def test_each_violation_is_said(place: tuple[Any, ...], value: object, line: int) -> None:
    """One wrong number breaks its own line and no other."""
    measured, further = copy.deepcopy(GOOD), copy.deepcopy(FURTHER)
    part: Any = measured if place[0] == "models" else further
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    found = requirements(measured, further, phantoms=True)
    assert [each.met for each in found] == [index != line for index in range(6)]
    assert "**no**" in as_markdown(found)


def test_patients_are_held_to_the_invariance_only() -> None:
    """How hard a data set is was not set by us."""
    found = requirements({"models": [model("ENF", 0.6), model("ResNet50", 0.6)]}, {}, phantoms=False)
    assert [each.met for each in found] == [True, True]
