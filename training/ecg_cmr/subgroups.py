"""Who a number holds for: rows by sex, age and body mass index.

Pure numpy. Called by ``training.ecg_cmr.measurements``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.ecg_cmr.evaluation import Cohort

LEAST_PATIENTS = 20
"""A subgroup of fewer is counted and not measured."""
_AGES = (("below 55 years", -np.inf, 55.0), ("55 to 64 years", 55.0, 65.0), ("65 years and above", 65.0, np.inf))
_BMI = (("BMI below 25", -np.inf, 25.0), ("BMI 25 to below 30", 25.0, 30.0), ("BMI 30 and above", 30.0, np.inf))


def subgroups(cohort: Cohort) -> dict[str, NDArray[np.bool_]]:
    """Return the rows of each subgroup by its words; a row that does not state the quantity is in none of its groups."""
    columns = {name: cohort.demographics_NG[:, place] for place, name in enumerate(cohort.demographics)}
    found: dict[str, NDArray[np.bool_]] = {}
    if "male" in columns:
        found |= {"women": columns["male"] == 0, "men": columns["male"] == 1}
    if "age_years" in columns:
        found |= {words: _within(columns["age_years"], low, high) for words, low, high in _AGES}
    bmi = body_mass_index(cohort)
    if bmi is not None:
        found |= {words: _within(bmi, low, high) for words, low, high in _BMI}
    return found


def body_mass_index(cohort: Cohort) -> NDArray[np.float64] | None:
    """Return kg/m2 [N] as stated, else from height and weight; None where the cohort states neither."""
    columns = {name: cohort.demographics_NG[:, place] for place, name in enumerate(cohort.demographics)}
    if "bmi_kg_m2" in columns:
        return columns["bmi_kg_m2"]
    if {"height_cm", "weight_kg"} <= columns.keys():
        return np.asarray(columns["weight_kg"] / (columns["height_cm"] / 100.0) ** 2)
    return None


def _within(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    return np.asarray((values >= low) & (values < high))
