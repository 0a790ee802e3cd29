"""What one model probed in one way with one seed says of a test set: the file between the runs and the table.

One ``.npz`` per model, probe and seed without pickled objects, so that a study resumes and its table is made from files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from training.ecg_cmr.evaluation import Answers, Cohort

VARIANTS = {
    "ecg_only": "ECG only",
    "slice": "contrastive, one mid ED slice",
    "slice_time": "contrastive, one slice over time",
    "volume": "contrastive, 3D ED volume",
    "triplet": "triplet, 3D ED and ES volumes",
}
"""The five variants, from the least seen of the heart to the most."""
DEMOGRAPHICS = "demographics"
"""The baseline that has no ECG; no table is made without it."""
AND_DEMOGRAPHICS = "+demographics"
"""Ending of a variant whose embedding is probed together with the demographic columns."""
MODELS = {
    DEMOGRAPHICS: "demographics only, no ECG",
    **VARIANTS,
    **{f"{name}{AND_DEMOGRAPHICS}": f"{words}, and demographics" for name, words in VARIANTS.items()},
}
ProbeKind = Literal["linear", "mlp", "fine_tune"]
_ABOUT = "about"
_COHORT_WORDS = ("keys", "patients", "targets", "conditions", "demographics")
_COHORT_NUMBERS = ("truth_NT", "label_ND", "demographics_NG")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What one model says.

    Args:
        model: key of ``MODELS``.
        probe: how values were read off the embedding.
        seed: of the study.
        answers: of the test set.
        seconds: of training, pre-training included.
        chosen: hyper-parameters that the validation part chose, in words.
        notes: what the numbers do not say.
    """

    model: str
    probe: ProbeKind
    seed: int
    answers: Answers
    seconds: float
    chosen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a name the table does not know."""
        if self.model not in MODELS:
            raise ValueError(f"model {self.model!r}; expected one of {', '.join(MODELS)}")
        if self.probe not in get_args(ProbeKind):
            raise ValueError(f"probe {self.probe!r}; expected one of {', '.join(get_args(ProbeKind))}")


def write_outcome(file: Path, outcome: Outcome, made_from: str) -> None:
    """Write an outcome as one step; ``made_from`` is the digest of what decides it."""
    about = {
        "made_from": made_from,
        **{name: getattr(outcome, name) for name in ("model", "probe", "seed", "seconds")},
        "chosen": list(outcome.chosen),
        "notes": list(outcome.notes),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial.npz")
    stored: dict[str, Any] = {_ABOUT: np.asarray(json.dumps(about)), **dict(_arrays(outcome.answers))}
    np.savez_compressed(partial, **stored)
    partial.replace(file)


def _arrays(answers: Answers) -> Iterator[tuple[str, Any]]:
    for name in (*_COHORT_WORDS, *_COHORT_NUMBERS):
        value = getattr(answers.cohort, name)
        yield f"cohort.{name}", np.asarray(value, dtype=np.str_) if name in _COHORT_WORDS else value
    for item in fields(Answers):
        value = getattr(answers, item.name)
        if item.name != "cohort" and value is not None:
            yield item.name, value


def made_from_of(file: Path) -> str:
    """Return the digest an outcome was written with."""
    with np.load(file, allow_pickle=False) as stored:
        return str(json.loads(str(stored[_ABOUT]))["made_from"])


def read_outcome(file: Path) -> Outcome:
    """Return an outcome.

    Raises:
        ValueError: the file holds pickled objects, or what it holds is no outcome.
    """
    with np.load(file, allow_pickle=False) as stored:
        about = json.loads(str(stored[_ABOUT]))
        found: dict[str, Any] = {name: stored[f"cohort.{name}"] for name in (*_COHORT_WORDS, *_COHORT_NUMBERS)}
        words = {name: tuple(str(each) for each in found[name]) for name in _COHORT_WORDS}
        cohort = Cohort(**(found | words))
        values = {item.name: stored[item.name] for item in fields(Answers) if item.name in stored.files}
    return Outcome(
        **{name: about[name] for name in ("model", "probe", "seed", "seconds")},
        answers=Answers(cohort=cohort, **values),
        chosen=tuple(about["chosen"]),
        notes=tuple(about["notes"]),
    )
