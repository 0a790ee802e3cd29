"""Outcomes measured: one plain document of numbers per study, ready for JSON.

``document`` is the only place where outcomes become numbers of the table; ``training.ecg_cmr.table`` formats them. Every
interval is the 95 % percentile interval of drawings of patients; over seeds it is that of the mean over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.ecg_cmr.drawn_metrics import Drawn, as_json, mean_of, measured
from training.ecg_cmr.evaluation import AVERAGE, DRAWS, cohort_weights, numbers, require_targets, same_cohort
from training.ecg_cmr.outcome import AND_DEMOGRAPHICS, DEMOGRAPHICS, MODELS, VARIANTS, Outcome
from training.ecg_cmr.subgroups import LEAST_PATIENTS, subgroups

Document = dict[str, Any]
FloatArray = NDArray[np.float64]
PAIRS = (
    ("triplet", "volume"),
    ("volume", "slice"),
    ("slice_time", "slice"),
    ("triplet", "slice"),
    *((variant, "ecg_only") for variant in VARIANTS if variant != "ecg_only"),
    *((variant, DEMOGRAPHICS) for variant in VARIANTS),
    *((f"{variant}{AND_DEMOGRAPHICS}", DEMOGRAPHICS) for variant in VARIANTS),
)
"""(model, less) whose differences are measured on the same drawings of the same patients."""
COMPARED = ("r2", "auroc", "ecg_to_cmr_top1")
ORDERED = ((AVERAGE, "r2"), ("lvef", "r2"))
"""What the variants are put in order by."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the outcomes cannot say of themselves.

    Args:
        data_set: in words.
        caution: what the numbers are not.
        sizes: patients for training, validation and test.
        command: that makes the table again.
        settings: sizes, budgets and whatever else decides the numbers.
    """

    data_set: str
    caution: str
    sizes: tuple[int, int, int]
    command: str
    settings: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """One model with one probe: its outcomes by seed, and their numbers under the drawings of each seed."""

    outcomes: Mapping[int, Outcome]
    drawn: Mapping[int, dict[str, Drawn]]

    def over(self, seeds: Sequence[int]) -> dict[str, Drawn]:
        """Return the drawing-wise mean over seeds."""
        names = self.drawn[seeds[0]]
        return {name: mean_of([self.drawn[seed][name] for seed in seeds]) for name in names}


def document(outcomes: Sequence[Outcome], comparison: Comparison, *, draws: int = DRAWS) -> Document:
    """Return every number of the study, probes and models in the order of ``MODELS``.

    Raises:
        ValueError: no outcome, the demographics-only baseline of a seed is missing, a model has one seed twice, models of
            one seed answered for other patients, or a target is constant.
    """
    require_comparable(outcomes)
    weights = {
        outcome.seed: cohort_weights(outcome.answers.cohort, draws=draws, seed=outcome.seed) for outcome in outcomes
    }
    groups = _groups(outcomes, weights)
    cohort = outcomes[0].answers.cohort
    return {
        "comparison": asdict(comparison) | {"settings": list(comparison.settings), "sizes": list(comparison.sizes)},
        "draws": draws,
        "seeds": sorted(weights),
        "targets": list(cohort.targets),
        "conditions": list(cohort.conditions),
        "demographics": list(cohort.demographics),
        "models": [_model(name, group, weights) for name, group in groups.items()],
        "differences": list(_differences(groups)),
        "order": list(_orders(groups)),
    }


def require_comparable(outcomes: Sequence[Outcome]) -> None:
    """Refuse outcomes that no table may be made of; see ``document``."""
    if not outcomes:
        raise ValueError("no outcome to tabulate; run at least the demographics-only baseline and one variant")
    _require_baseline(outcomes)
    first: dict[int, Outcome] = {}
    seen = set()
    for outcome in outcomes:
        name = (outcome.model, outcome.probe, outcome.seed)
        if name in seen:
            raise ValueError(f"{outcome.model}, {outcome.probe} probe has seed {outcome.seed} twice; give each once")
        seen.add(name)
        require_targets(outcome.answers.cohort)
        one = first.setdefault(outcome.seed, outcome)
        if not same_cohort(one.answers.cohort, outcome.answers.cohort):
            raise ValueError(f"{outcome.model}, seed {outcome.seed}: other patients or truths than {one.model}")
        if outcome.answers.cohort.targets != outcomes[0].answers.cohort.targets:
            raise ValueError(f"seed {outcome.seed} has another list of targets; an average over both means nothing")


def _require_baseline(outcomes: Sequence[Outcome]) -> None:
    """Volumes and mass are mostly body size and sex: what an ECG adds is only seen beside them."""
    seeds = {outcome.seed for outcome in outcomes}
    missing = sorted(seeds - {outcome.seed for outcome in outcomes if outcome.model == DEMOGRAPHICS})
    if missing:
        raise ValueError(
            f"the baseline of demographics only is missing for seed {', '.join(map(str, missing))}; no table is made"
            " without it: probe the demographic columns of the same patients"
        )


def _groups(outcomes: Sequence[Outcome], weights: Mapping[int, FloatArray]) -> dict[tuple[str, str], _Group]:
    places = {name: place for place, name in enumerate(MODELS)}
    names = sorted({(each.model, each.probe) for each in outcomes}, key=lambda name: (name[1], places[name[0]]))
    found: dict[tuple[str, str], _Group] = {}
    for name in names:
        mine = {each.seed: each for each in outcomes if (each.model, each.probe) == name}
        drawn = {seed: numbers(each.answers, weights[seed]) for seed, each in sorted(mine.items())}
        found[name] = _Group(outcomes=mine, drawn=drawn)
    return found


def _model(name: tuple[str, str], group: _Group, weights: Mapping[int, FloatArray]) -> Document:
    seeds = list(group.drawn)
    outcomes = [group.outcomes[seed] for seed in seeds]
    return {
        "model": name[0],
        "probe": name[1],
        "seeds": seeds,
        "patients": [len(set(each.answers.cohort.patients)) for each in outcomes],
        "numbers": _summary(group.over(seeds), [group.drawn[seed] for seed in seeds]),
        "of_each_seed": [_summary(group.drawn[seed], [group.drawn[seed]]) for seed in seeds],
        "subgroups": _subgroups(outcomes, weights),
        "seconds": float(np.mean([each.seconds for each in outcomes])),
        "chosen": list(dict.fromkeys(words for each in outcomes for words in each.chosen)),
        "notes": list(dict.fromkeys(words for each in outcomes for words in each.notes)),
    }


def _summary(mean: Mapping[str, Drawn], of_seeds: Sequence[Mapping[str, Drawn]]) -> Document:
    return {
        name: {
            metric: as_json(measured(values)) | {"sd": _spread([float(each[name][metric][0]) for each in of_seeds])}
            for metric, values in metrics.items()
        }
        for name, metrics in mean.items()
    }


def _spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation over seeds; None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None


def _subgroups(outcomes: Sequence[Outcome], weights: Mapping[int, FloatArray]) -> Document:
    """Numbers of each subgroup, mean over seeds; where a seed has too few patients of it, how many there are."""
    masks = [subgroups(each.answers.cohort) for each in outcomes]
    found: Document = {}
    for name in masks[0]:
        pairs = list(zip(outcomes, (mask[name] for mask in masks), strict=True))
        counts = [len({each.answers.cohort.patients[row] for row in np.flatnonzero(mask)}) for each, mask in pairs]
        found[name] = {"patients": counts}
        if min(counts) >= LEAST_PATIENTS:
            drawn = [numbers(each.answers, weights[each.seed] * mask) for each, mask in pairs]
            found[name]["numbers"] = _summary({key: mean_of([one[key] for one in drawn]) for key in drawn[0]}, drawn)
    return found


def _differences(groups: Mapping[tuple[str, str], _Group]) -> Iterator[Document]:
    """Metric of a model less that of another, on the same drawings of the same patients, mean over the seeds both have."""
    for (model, less), probe in ((pair, probe) for probe in _probes(groups) for pair in PAIRS):
        ours, theirs = groups.get((model, probe)), _of(groups, less, probe)
        seeds = [seed for seed in ours.drawn if seed in theirs.drawn] if ours and theirs else []
        if ours and theirs and seeds:
            one, other = ours.over(seeds), theirs.over(seeds)
            yield {"model": model, "less": less, "probe": probe, "seeds": seeds, "numbers": _less(one, other)}


def _probes(groups: Mapping[tuple[str, str], _Group]) -> list[str]:
    return list(dict.fromkeys(probe for _, probe in groups))


def _of(groups: Mapping[tuple[str, str], _Group], model: str, probe: str) -> _Group | None:
    """The group of a model with a probe; the baseline has no encoder, so any probe of it serves where its own is missing."""
    if (model, probe) in groups or model != DEMOGRAPHICS:
        return groups.get((model, probe))
    return next(group for (name, _), group in groups.items() if name == DEMOGRAPHICS)


def _less(one: Mapping[str, Drawn], other: Mapping[str, Drawn]) -> Document:
    shared = ((name, metric) for name in one for metric in COMPARED if name in other and metric in one[name])
    return {name: {metric: as_json(measured(one[name][metric] - other[name][metric]))} for name, metric in shared}


def _orders(groups: Mapping[tuple[str, str], _Group]) -> Iterator[Document]:
    """Variants from best to worst by a metric, each with the share of drawings in which it is above the next."""
    for probe, (name, metric) in ((probe, by) for probe in _probes(groups) for by in ORDERED):
        drawn = {variant: _metric(groups.get((variant, probe)), name, metric) for variant in VARIANTS}
        values = {variant: each for variant, each in drawn.items() if each is not None}
        ranked = sorted(values, key=lambda variant: -float(values[variant][0]))
        if ranked:
            yield {"probe": probe, "of": name, "metric": metric, "variants": list(_ranked(ranked, values))}


def _metric(group: _Group | None, name: str, metric: str) -> FloatArray | None:
    if group is None or name not in (drawn := group.over(list(group.drawn))):
        return None
    return drawn[name][metric]


def _ranked(ranked: Sequence[str], values: Mapping[str, FloatArray]) -> Iterator[Document]:
    for place, variant in enumerate(ranked):
        below = ranked[place + 1] if place + 1 < len(ranked) else None
        above = None if below is None else float(np.mean(values[variant][1:] > values[below][1:]))
        yield {"variant": variant, **as_json(measured(values[variant])), "above_next_share": above}
