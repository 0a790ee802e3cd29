"""Entries of a data set as a cohort of columns: targets, conditions and demographics by name, never by place.

Called by the study between the data set and the probes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.sources.ecg_sets import EcgEntry
from training.data.targets import LVEF_CONDITIONS
from training.ecg_cmr.evaluation import Cohort
from training.ecg_cmr.store import PairStore

FloatArray = NDArray[np.float64]


def cohort_of(
    entries: Sequence[EcgEntry], *, targets: Sequence[str], conditions: Sequence[str], demographics: Sequence[str]
) -> Cohort:
    """Return the columns of some entries, NaN where an entry does not state a value.

    A condition of ``training.data.targets.LVEF_CONDITIONS`` is made of the target ``lvef``, where that was measured.

    Raises:
        ValueError: no entry states a column at all: a name is misspelt, or the data set does not have it.
    """
    columns = (
        (targets, [entry.targets for entry in entries]),
        (conditions, [_labels(entry) for entry in entries]),
        (demographics, [entry.demographics for entry in entries]),
    )
    truth, label, people = (_values(names, rows) for names, rows in columns)
    return Cohort(
        keys=tuple(entry.key for entry in entries),
        patients=tuple(entry.patient for entry in entries),
        targets=tuple(targets),
        truth_NT=truth,
        conditions=tuple(conditions),
        label_ND=label,
        demographics=tuple(demographics),
        demographics_NG=people,
    )


def _labels(entry: EcgEntry) -> dict[str, float]:
    """Labels as stated, and those that follow from the measured ejection fraction."""
    lvef = entry.targets.get("lvef")
    thresholds: Mapping[str, float] = {} if lvef is None else LVEF_CONDITIONS
    derived = {name: float(lvef <= percent) for name, percent in thresholds.items()} if lvef is not None else {}
    return {name: float(value) for name, value in entry.labels.items()} | derived


def _values(names: Sequence[str], rows: Iterable[Mapping[str, float]]) -> FloatArray:
    values = np.array([[row.get(name, math.nan) for name in names] for row in rows], np.float64)
    empty = [name for name, column in zip(names, values.T, strict=True) if np.isnan(column).all()]
    if empty:
        raise ValueError(f"no entry states {', '.join(empty)}; compare the names with those of the data set")
    return values


def complete(cohort: Cohort) -> NDArray[np.int64]:
    """Return the rows that state all demographics: those the baseline and so every model is compared on."""
    return np.flatnonzero(np.isfinite(cohort.demographics_NG).all(axis=1))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of what is estimated, of the diseases, and of the baseline's inputs."""

    targets: tuple[str, ...]
    conditions: tuple[str, ...]
    demographics: tuple[str, ...]


def cohort_of_store(store: PairStore, columns: Columns) -> Cohort:
    """Return the columns of a part of a store, NaN where a pair does not state a value."""
    return Cohort(
        keys=store.keys,
        patients=store.patients,
        targets=columns.targets,
        truth_NT=store.targets(columns.targets),
        conditions=columns.conditions,
        label_ND=store.labels(columns.conditions),
        demographics=columns.demographics,
        demographics_NG=store.demographics(columns.demographics),
    )


def usable(parts: Sequence[PairStore], asked: Columns) -> Columns:
    """Return those targets and conditions that can be learnt and measured.

    A target needs two different values in every part, a condition both classes in the first part, from which is learnt,
    and a known label in the others.
    """
    targets = [_different(parts, "targets", name) for name in asked.targets]
    labels = [_different(parts, "diseases", name) for name in asked.conditions]
    return Columns(
        targets=_named(asked.targets, [min(different) >= 2 for different in targets]),
        conditions=_named(asked.conditions, [one[0] == 2 and min(one) >= 1 for one in labels]),
        demographics=asked.demographics,
    )


def in_all(columns: Sequence[Columns]) -> Columns:
    """Return what all have, in the order of the first."""
    first = columns[0]
    return Columns(
        targets=_named(first.targets, [all(name in each.targets for each in columns) for name in first.targets]),
        conditions=_named(
            first.conditions, [all(name in each.conditions for each in columns) for name in first.conditions]
        ),
        demographics=first.demographics,
    )


def _different(parts: Sequence[PairStore], group: str, name: str) -> list[int]:
    """How many different values each part knows."""
    known: list[list[Mapping[str, float]]] = [[getattr(pair, group) for pair in part.pairs] for part in parts]
    return [len({float(values[name]) for values in pairs if name in values}) for pairs in known]


def _named(names: Sequence[str], keep: Sequence[bool]) -> tuple[str, ...]:
    return tuple(name for name, kept in zip(names, keep, strict=True) if kept)
