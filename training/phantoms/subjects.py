"""One digital heart per subject: every distribution of the phantoms, stated once.

A subject is drawn from a seeded generator and holds what is true of the heart. ``cmr``, ``echo`` and ``ecg`` render it;
each adds nuisance of its own that no other modality sees. All volumes, outputs and rates are consistent by construction:
``SV = EDV - ESV``, ``EF = SV / EDV``, ``CO = SV x HR``; the right ventricle ejects the left one's stroke volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""Arrays of real numbers, single or double precision."""

DISEASES = (
    "coronary_artery_disease",
    "atrial_fibrillation",
    "sudden_cardiac_death",
    "heart_failure",
    "myocardial_infarction",
    "cardiomyopathy",
)

# Log-odds of each disease: intercept, per 10 points of LVEF below 55 %, per 10 years of age above 60.
_RISK = {
    "coronary_artery_disease": (-1.6, 0.35, 0.40),
    "atrial_fibrillation": (-2.2, 0.30, 0.60),
    "sudden_cardiac_death": (-3.6, 0.60, 0.20),
    "heart_failure": (-3.0, 1.20, 0.25),
    "myocardial_infarction": (-2.2, 0.50, 0.30),
    "cardiomyopathy": (-2.6, 0.80, -0.10),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is true of one heart.

    Args:
        lvedv_ml, lvesv_ml: left ventricular volumes, millilitre.
        rvedv_ml, rvesv_ml: right ventricular volumes, millilitre.
        heart_rate_bpm: mean rate, beats a minute.
        systole_fraction: end-systole as a fraction of the RR interval.
        wall_mm: end-diastolic thickness of the left ventricular wall.
        sphericity: long axis over short axis at end-diastole.
        age_years, male: demographics.
        diseases: flags by name, in the order of ``DISEASES``.
    """

    lvedv_ml: float
    lvesv_ml: float
    rvedv_ml: float
    rvesv_ml: float
    heart_rate_bpm: float
    systole_fraction: float
    wall_mm: float
    sphericity: float
    age_years: float
    male: bool
    diseases: dict[str, bool]

    @property
    def lvef_percent(self) -> float:
        """Left ventricular ejection fraction."""
        return 100.0 * (self.lvedv_ml - self.lvesv_ml) / self.lvedv_ml

    @property
    def rvef_percent(self) -> float:
        """Right ventricular ejection fraction."""
        return 100.0 * (self.rvedv_ml - self.rvesv_ml) / self.rvedv_ml

    @property
    def cardiac_output_l_min(self) -> float:
        """Cardiac output, litre a minute."""
        return (self.lvedv_ml - self.lvesv_ml) * self.heart_rate_bpm / 1000.0


def draw_subject(rng: np.random.Generator) -> Subject:
    """Draw one heart; LVEF is 12 to 78 % and about half of the hearts have 40 % or less."""
    ef = _draw_ejection_fraction(rng)
    age, male = float(rng.uniform(30, 88)), bool(rng.random() < 0.55)
    lvedv = float(np.clip((150 if male else 125) * np.exp(0.010 * (52 - ef)) * np.exp(rng.normal(0, 0.14)), 70, 380))
    stroke = lvedv * ef / 100
    rvef = float(np.clip(0.55 * ef + 26 + rng.normal(0, 5.0), 15, 75))
    rvedv = stroke / (rvef / 100)
    rate = float(np.clip(62 + 0.25 * (60 - ef) + rng.normal(0, 9), 42, 118))
    return Subject(
        lvedv_ml=lvedv,
        lvesv_ml=lvedv - stroke,
        rvedv_ml=rvedv,
        rvesv_ml=rvedv - stroke,
        heart_rate_bpm=rate,
        systole_fraction=float(np.clip(0.38 + 0.0012 * (rate - 70) + rng.normal(0, 0.02), 0.30, 0.48)),
        wall_mm=float(np.clip(rng.normal(9.5, 1.4), 6.5, 14)),
        sphericity=float(np.clip(rng.normal(1.68, 0.10) - 0.005 * (55 - ef), 1.25, 1.95)),
        age_years=age,
        male=male,
        diseases=_draw_diseases(rng, ef, age),
    )


def _draw_ejection_fraction(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.42:
        return float(12 + 28 * rng.beta(2.6, 1.8))
    if kind < 0.60:
        return float(rng.uniform(34, 52))
    return float(42 + 34 * rng.beta(2.2, 2.6))


def _draw_diseases(rng: np.random.Generator, ef: float, age: float) -> dict[str, bool]:
    def flag(name: str) -> bool:
        intercept, per_ef, per_age = _RISK[name]
        log_odds = intercept + per_ef * (55 - ef) / 10 + per_age * (age - 60) / 10
        return bool(rng.random() < 1 / (1 + np.exp(-log_odds)))

    return {name: flag(name) for name in DISEASES}
