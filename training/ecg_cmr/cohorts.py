"""Entries of a data set as a cohort of columns: targets, conditions and demographics by name, never by place.

Called by the study between the data set and the probes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.sources.ecg_sets import EcgEntry
from training.data.targets import LVEF_CONDITIONS
from training.ecg_cmr.evaluation import Cohort

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
