"""What one model said of one test set, unturned and turned: the file between the runs and the table.

One JSON file per model and seed, so that a run resumes and the table is made again from files alone.
The protocol writes these; ``training.enf.table`` and ``training.enf.figures`` read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Kind = Literal["quarter", "angle", "shift"]

SCHEMA_VERSION = 2
_SECONDS = ({"per_study"}, {"train", "per_study"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Turned:
    """Logits of the test set after one change of the image.

    Attributes:
        name: unique within an outcome, such as ``shift 5 px right``.
        kind: quarter turn, other angle or shift.
        amount: degrees or pixels as text; changes of one kind and amount are counted together.
        logits: [N], positive means that the heart has the task's condition.
    """

    name: str
    kind: Kind
    amount: str
    logits: FloatArray

    def __post_init__(self) -> None:
        """Check the kind and the numbers."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.name}: kind {self.kind!r} is unknown; expected one of {get_args(Kind)}")
        _require_finite(f"logits of {self.name}", self.logits)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelOutcome:
    """Everything the table needs of one model trained with one seed.

    Attributes:
        model: name in the table.
        seed: of the training run.
        made_from: digest of the model's settings, all hearts and the changes; another digest is another outcome.
        validation_logits: [V], positive means that the heart has the task's condition.
        validation_labels: [V], True means that it has.
        test_labels: [N].
        test_logits: [N], of the images as they are.
        turned: the same N hearts in the same order, changed.
        seconds: ``per_study``, from the decoded stack to the answer; ``train`` in all, left out by a model that is trained
            once for all seeds.
        notes: sentences that belong under the table.
    """

    model: str
    seed: int
    made_from: str
    validation_logits: FloatArray
    validation_labels: BoolArray
    test_labels: BoolArray
    test_logits: FloatArray
    turned: tuple[Turned, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that lengths, labels, names and times fit each other.

        Raises:
            ValueError: when they do not; the message names the part.
        """
        self._require_arrays()
        names = [turned.name for turned in self.turned]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.model}: two changes share a name in {names}; give each its own")
        if set(self.seconds) not in _SECONDS:
            raise ValueError(
                f"{self.model}: seconds has {sorted(self.seconds)}; expected per_study, with or without train"
            )

    def _require_arrays(self) -> None:
        _require_labels("validation", self.validation_labels)
        _require_labels("test", self.test_labels)
        _require_logits("validation", self.validation_logits, len(self.validation_labels))
        _require_logits("test", self.test_logits, len(self.test_labels))
        for turned in self.turned:
            _require_logits(turned.name, turned.logits, len(self.test_labels))

    def of_kind(self, kind: Kind) -> tuple[Turned, ...]:
        """Return the changes of one kind, in their order."""
        return tuple(turned for turned in self.turned if turned.kind == kind)


def write_outcome(path: Path, outcome: ModelOutcome) -> None:
    """Write an outcome as JSON; the file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_document(outcome), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def made_from_of(path: Path) -> str | None:
    """Return the digest that an outcome's file states, or None where it states none."""
    found = json.loads(path.read_text(encoding="utf-8")).get("made_from")
    return found if isinstance(found, str) else None


def read_outcome(path: Path) -> ModelOutcome:
    """Return an outcome from its file; every number is the one that was written.

    Raises:
        ValueError: when the file has another schema version or breaks a rule of ``ModelOutcome``.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema_version") != SCHEMA_VERSION:
        found = document.get("schema_version")
        raise ValueError(f"{path.name}: schema version {found}, expected {SCHEMA_VERSION}; run that model again")
    return _outcome(document)


def _document(outcome: ModelOutcome) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "model": outcome.model,
        "seed": outcome.seed,
        "made_from": outcome.made_from,
        "seconds": dict(outcome.seconds),
        "notes": list(outcome.notes),
        "validation_labels": outcome.validation_labels.tolist(),
        "validation_logits": outcome.validation_logits.tolist(),
        "test_labels": outcome.test_labels.tolist(),
        "test_logits": outcome.test_logits.tolist(),
        "turned": [
            {"name": item.name, "kind": item.kind, "amount": item.amount, "logits": item.logits.tolist()}
            for item in outcome.turned
        ],
    }


def _outcome(document: Mapping[str, Any]) -> ModelOutcome:
    return ModelOutcome(
        model=document["model"],
        seed=document["seed"],
        made_from=document["made_from"],
        validation_logits=np.array(document["validation_logits"], dtype=np.float64),
        validation_labels=np.array(document["validation_labels"], dtype=np.bool_),
        test_labels=np.array(document["test_labels"], dtype=np.bool_),
        test_logits=np.array(document["test_logits"], dtype=np.float64),
        turned=tuple(_turned(item) for item in document["turned"]),
        seconds=document["seconds"],
        notes=tuple(document["notes"]),
    )


def _turned(item: Mapping[str, Any]) -> Turned:
    logits = np.array(item["logits"], dtype=np.float64)
    return Turned(name=item["name"], kind=item["kind"], amount=item["amount"], logits=logits)


def _require_labels(part: str, labels: BoolArray) -> None:
    if labels.dtype != np.bool_ or labels.ndim != 1 or not len(labels):
        raise ValueError(f"{part} labels are {labels.dtype} {labels.shape}; expected bool [N] with N > 0")


def _require_logits(part: str, logits: FloatArray, expected: int) -> None:
    if logits.shape != (expected,):
        raise ValueError(f"{part} logits have shape {logits.shape}; expected ({expected},), one per labelled heart")
    _require_finite(f"logits of {part}", logits)


def _require_finite(part: str, values: FloatArray) -> None:
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise ValueError(
            f"{part}: {bad} of {values.size} are not finite; every heart needs a number, or a new test set"
        )
