"""What one method trained with one seed says of every test set: the file between the runs and the table.

One ``.npz`` per method and seed without pickled objects, so that a comparison resumes and its table is made again from files.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from training.coreecho.evaluation import Answers
from training.coreecho.measurements import Outcome

_ABOUT = "about"


def write_outcome(file: Path, outcome: Outcome, made_from: str) -> None:
    """Write an outcome as one step; ``made_from`` is the digest of what decides it."""
    about = {
        "made_from": made_from,
        "model": outcome.model,
        "seed": outcome.seed,
        "seconds": outcome.seconds,
        "notes": list(outcome.notes),
        "domains": list(outcome.domains),
    }
    arrays = {
        f"{domain}.{item.name}": np.asarray(getattr(answers, item.name))
        for domain, answers in outcome.domains.items()
        for item in fields(Answers)
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial.npz")
    stored: dict[str, Any] = {_ABOUT: np.asarray(json.dumps(about)), **arrays}
    np.savez_compressed(partial, **stored)
    partial.replace(file)


def made_from_of(file: Path) -> str:
    """Return the digest an outcome was written with."""
    with np.load(file, allow_pickle=False) as stored:
        return str(json.loads(str(stored[_ABOUT]))["made_from"])


def read_outcome(file: Path) -> Outcome:
    """Return an outcome."""
    with np.load(file, allow_pickle=False) as stored:
        about = json.loads(str(stored[_ABOUT]))
        domains = {domain: _answers(stored, domain) for domain in about["domains"]}
    return Outcome(
        model=about["model"],
        seed=about["seed"],
        domains=domains,
        seconds=about["seconds"],
        notes=tuple(about["notes"]),
    )


def _answers(stored: np.lib.npyio.NpzFile, domain: str) -> Answers:
    found: dict[str, Any] = {item.name: stored[f"{domain}.{item.name}"] for item in fields(Answers)}
    words = {name: tuple(str(each) for each in found[name]) for name in ("keys", "patients")}
    return Answers(**(found | words))
