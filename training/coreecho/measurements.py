"""Answers measured: one plain document of numbers per comparison, ready for JSON.

``document`` is the only place where answers become numbers of the table; ``training.coreecho.table`` formats them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from training.coreecho.evaluation import (
    PUBLISHED_DRAWS,
    Answers,
    Draws,
    difference,
    measured,
    order_difference,
)
from training.metrics import mean_absolute_error

Document = dict[str, Any]
METRICS = ("mae", "rmse", "r2", "slope", "order")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What one method trained with one seed says of every test set.

    Args:
        model: name in the table.
        seed: of the comparison.
        domains: answers by name of the test set; names ending in ``_all_clips`` are of every clip.
        seconds: of training.
        notes: what the numbers do not say.
    """

    model: str
    seed: int
    domains: Mapping[str, Answers]
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the outcomes cannot say of themselves."""

    data_set: str
    caution: str
    sizes: tuple[int, int, int]
    command: str
    settings: tuple[str, ...] = field(default=())


def document(outcomes: Sequence[Outcome], comparison: Comparison, draws: Draws = PUBLISHED_DRAWS) -> Document:
    """Return every number of the comparison, models in the order of their first outcome.

    Raises:
        ValueError: no outcome, a model has one seed twice, or models of one seed answered other videos.
    """
    _require_comparable(outcomes)
    by_model: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_model.setdefault(outcome.model, []).append(outcome)
    ordered = [sorted(group, key=lambda outcome: outcome.seed) for group in by_model.values()]
    return {
        "comparison": asdict(comparison) | {"settings": list(comparison.settings), "sizes": list(comparison.sizes)},
        "seeds": sorted({outcome.seed for outcome in outcomes}),
        "models": [_model(group, draws) for group in ordered],
        "differences": _differences(ordered, draws),
    }


def _require_comparable(outcomes: Sequence[Outcome]) -> None:
    if not outcomes:
        raise ValueError("no outcome to tabulate; run at least one method")
    keys: dict[tuple[int, str], tuple[str, ...]] = {}
    seen = set()
    for outcome in outcomes:
        if (outcome.model, outcome.seed) in seen:
            raise ValueError(f"{outcome.model} has seed {outcome.seed} twice; give each outcome once")
        seen.add((outcome.model, outcome.seed))
        for domain, answers in outcome.domains.items():
            if keys.setdefault((outcome.seed, domain), answers.keys) != answers.keys:
                raise ValueError(
                    f"{outcome.model}, seed {outcome.seed}: other {domain} videos than the models before it"
                )


def _model(outcomes: Sequence[Outcome], draws: Draws) -> Document:
    return {
        "model": outcomes[0].model,
        "seeds": [outcome.seed for outcome in outcomes],
        "domains": {
            domain: _domain([outcome.domains[domain] for outcome in outcomes], draws) for domain in outcomes[0].domains
        },
        "seconds": {"mean": float(np.mean([outcome.seconds for outcome in outcomes]))},
        "notes": list(dict.fromkeys(note for outcome in outcomes for note in outcome.notes)),
    }


def _domain(answers: Sequence[Answers], draws: Draws) -> Document:
    of_seeds = [measured(each, draws) for each in answers]
    bins = list(of_seeds[0]["mae_by_bin"])
    return {
        **{metric: _summary([each[metric]["value"] for each in of_seeds]) for metric in METRICS},
        "mae_by_bin": {
            name: _summary(
                [each["mae_by_bin"][name]["value"] for each in of_seeds if each["mae_by_bin"][name]["videos"]]
            )
            for name in bins
        },
        "clip_sd_median": _summary([each["clip_sd_median"] for each in of_seeds]),
        "of_each_seed": of_seeds,
    }


def _summary(values: Sequence[float]) -> Document:
    """Mean and sample standard deviation over seeds; None where there is nothing to take them of."""
    return {
        "mean": float(np.mean(values)) if values else None,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }


def _differences(models: Sequence[Sequence[Outcome]], draws: Draws) -> list[Document]:
    """First model less each other, seed by seed on the same draws of patients."""
    return [
        {
            "less": theirs.model,
            "seed": ours.seed,
            "domain": domain,
            "mae": difference(
                mean_absolute_error, ours.domains[domain], theirs.domains[domain], draws=draws.errors
            ).as_dict(),
            "order": order_difference(ours.domains[domain], theirs.domains[domain], draws=draws.order).as_dict(),
        }
        for group in models[1:]
        for theirs in group
        for ours in models[0]
        if ours.seed == theirs.seed
        for domain in ours.domains
        if not domain.endswith("_all_clips")
    ]
