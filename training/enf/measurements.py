"""Outcomes measured: one plain document of numbers per comparison, ready for JSON.

``document`` is the only place where outcomes become numbers; ``training.enf.table`` turns it into Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.enf.outcome import BoolArray, FloatArray, Kind, ModelOutcome, Turned
from training.enf.statistics import (
    SeedSummary,
    Share,
    TurnEffect,
    adjusted_mcnemar_p,
    area_under_curve,
    over_seeds,
    pooled,
    right_decisions,
    turn_effect,
)

Document = dict[str, Any]

PHANTOM_CAUTION = "digital phantoms, not for clinical use"

_UNITS: dict[Kind, str] = {"quarter": "°", "angle": "°", "shift": " px"}
_KIND_WORDS: dict[Kind, str] = {"quarter": "turn", "angle": "turn", "shift": "shift"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the outcomes cannot say of themselves.

    Attributes:
        data_set: where the hearts come from and how they were drawn.
        train_hearts: size of the training set.
        condition: what a positive logit says, in words.
        command: makes the table again.
        caution: what the numbers must not be used for.
        settings: further lines, such as sizes of the networks and iterations.
    """

    data_set: str
    train_hearts: int
    condition: str
    command: str
    caution: str
    settings: tuple[str, ...] = ()


def document(outcomes: Sequence[ModelOutcome], comparison: Comparison) -> Document:
    """Return every number of the comparison, models in the order of their first outcome.

    Raises:
        ValueError: when there is no outcome, a model has one seed twice, models of one seed were tested on different
            hearts, or seeds of one model saw different changes.
    """
    _require_comparable(outcomes)
    by_model: dict[str, list[ModelOutcome]] = {}
    for outcome in outcomes:
        by_model.setdefault(outcome.model, []).append(outcome)
    return {
        "comparison": asdict(comparison) | {"settings": list(comparison.settings)},
        "seeds": sorted({outcome.seed for outcome in outcomes}),
        "validation_hearts": sorted({len(outcome.validation_labels) for outcome in outcomes}),
        "test_hearts": sorted({len(outcome.test_labels) for outcome in outcomes}),
        "models": [_model(sorted(group, key=lambda outcome: outcome.seed)) for group in by_model.values()],
    }


def _require_comparable(outcomes: Sequence[ModelOutcome]) -> None:
    if not outcomes:
        raise ValueError("no outcome to tabulate; run at least one model")
    labels: dict[int, BoolArray] = {}
    for index, outcome in enumerate(outcomes):
        if any((other.model, other.seed) == (outcome.model, outcome.seed) for other in outcomes[:index]):
            raise ValueError(f"{outcome.model} has seed {outcome.seed} twice; give each outcome once")
        first = labels.setdefault(outcome.seed, outcome.test_labels)
        if first.tolist() != outcome.test_labels.tolist():
            raise ValueError(f"{outcome.model}, seed {outcome.seed}: other test hearts than the models before it")
    _require_same_changes(outcomes)


def _require_same_changes(outcomes: Sequence[ModelOutcome]) -> None:
    seen: dict[str, list[str]] = {}
    for outcome in outcomes:
        names = [turned.name for turned in outcome.turned]
        if seen.setdefault(outcome.model, names) != names:
            raise ValueError(
                f"{outcome.model}: seed {outcome.seed} has changes {names}, expected {seen[outcome.model]}"
            )


def _model(outcomes: Sequence[ModelOutcome]) -> Document:
    validation = [(item.validation_labels, item.validation_logits) for item in outcomes]
    test = [(item.test_labels, item.test_logits) for item in outcomes]
    return {
        "model": outcomes[0].model,
        "seeds": [outcome.seed for outcome in outcomes],
        "validation": _decisions(validation),
        "test": _decisions(test),
        "quarter_turns": _quarter_turns(outcomes),
        "changes": [_change(outcomes, kind, amount) for kind, amount in _amounts(outcomes[0].turned)],
        "seconds": {
            part: _summary(over_seeds([item.seconds[part] for item in outcomes]))
            for part in ("train", "per_study")
            if all(part in item.seconds for item in outcomes)
        },
        "notes": list(dict.fromkeys(note for outcome in outcomes for note in outcome.notes)),
    }


def _decisions(sets: Sequence[tuple[BoolArray, FloatArray]]) -> Document:
    shares = [right_decisions(labels, logits) for labels, logits in sets]
    return {
        **_accuracy(shares),
        "auroc": _summary(over_seeds([area_under_curve(labels, logits) for labels, logits in sets])),
    }


def _accuracy(shares: Sequence[Share]) -> Document:
    return {
        "accuracy": _summary(over_seeds([share.measured.value for share in shares])),
        "accuracy_pooled_over_seeds": _share(pooled(shares)),
        "right_of_each_seed": [[share.count, share.of] for share in shares],
    }


def _quarter_turns(outcomes: Sequence[ModelOutcome]) -> Document | None:
    turns = [outcome.of_kind("quarter") for outcome in outcomes]
    return _effects(outcomes, turns) if turns[0] else None


def _change(outcomes: Sequence[ModelOutcome], kind: Kind, amount: str) -> Document:
    changes = [_matching(outcome, kind, amount) for outcome in outcomes]
    names = [turned.name for turned in changes[0]]
    label = _label(kind, amount)
    return {"kind": kind, "amount": amount, "label": label, "names": names} | _effects(outcomes, changes)


def _effects(outcomes: Sequence[ModelOutcome], changes: Sequence[Sequence[Turned]]) -> Document:
    """Return the effect of some changes, pooled; ``changes`` has those of each outcome."""
    pairs = list(zip(outcomes, changes, strict=True))
    effects = [_effect(outcome, group) for outcome, group in pairs]
    single = [[_effect(outcome, [turned]) for turned in group] for outcome, group in pairs]
    return {
        **_accuracy([effect.right for effect in effects]),
        "flips": _share(pooled([effect.flips for effect in effects])),
        "hearts_flipped": _share(pooled([effect.hearts_flipped for effect in effects])),
        "lost": sum(effect.lost for effect in effects),
        "gained": sum(effect.gained for effect in effects),
        "mcnemar_p_of_each_seed": [_number(adjusted_mcnemar_p(group)) for group in single],
        "mcnemar_p_pairs_pooled_of_each_seed": [_number(effect.mcnemar_p) for effect in effects],
        "max_change_sd": _over_defined([effect.max_change_sd for effect in effects], max),
        "mean_change_sd": _over_defined([effect.mean_change_sd for effect in effects], _mean),
    }


def _effect(outcome: ModelOutcome, changes: Sequence[Turned]) -> TurnEffect:
    return turn_effect(outcome.test_labels, outcome.test_logits, [turned.logits for turned in changes])


def _matching(outcome: ModelOutcome, kind: Kind, amount: str) -> list[Turned]:
    return [turned for turned in outcome.turned if (turned.kind, turned.amount) == (kind, amount)]


def _amounts(changes: Sequence[Turned]) -> list[tuple[Kind, str]]:
    return list(dict.fromkeys((turned.kind, turned.amount) for turned in changes))


def _label(kind: Kind, amount: str) -> str:
    unit = _UNITS[kind] if amount.lstrip("+-").replace(".", "", 1).isdigit() else ""
    return f"{_KIND_WORDS[kind]} {amount}{unit}".strip()


def _over_defined(values: Sequence[float | None], reduce: Callable[[Sequence[float]], float]) -> float | None:
    """Return the reduced value; None as soon as one seed has none, for then the others do not speak for the model."""
    defined = [value for value in values if value is not None]
    return _number(reduce(defined)) if len(defined) == len(values) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _share(share: Share) -> Document:
    measured = share.measured
    return {
        "count": share.count,
        "of": share.of,
        "value": _number(measured.value),
        "low": _number(measured.low),
        "high": _number(measured.high),
    }


def _summary(summary: SeedSummary) -> Document:
    return {name: None if value is None else _number(value) for name, value in asdict(summary).items()}


def _number(value: float) -> float:
    """Return the number with six significant digits: the one rounding of the document."""
    return float(f"{value:.6g}")
