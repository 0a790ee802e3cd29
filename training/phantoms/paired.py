"""Subjects for pairs of an ECG and a cardiac MR: one digital heart with a body around it, and when it was seen.

The heart is that of ``subjects``; what is added here (body size, mass, dates) leaves its distributions alone. ``paired_ecg``
renders the ECG of the easy cohort, ``ecg`` that of the standard one, ``cmr`` the stack of both.

Effect sizes. LVEF 20 points lower counts 1 ``weak``, RVEF 15 points lower 1 ``right``, LVEDV a factor e larger 1 ``large``,
wall 2 mm thicker 1 ``thick``, sphericity 0.15 lower 1 ``round``, systole 0.05 longer 1 ``late``:

    =====================  ======================================================  =====================================
    true of the heart      trace in the standard ECG (``ecg``)                     trace in the easy ECG
    =====================  ======================================================  =====================================
    LVEF                   QRS 28 % broader, T 0.13 mV lower, axis and P           QRS 30 % broader
                           (per ``weak``); scatter ``UNSEEN`` = 0.55 of it
    LVEDV                  QRS 25 % taller per ``large``; scatter 0.55 of it,      QRS 60 % taller per ``large``
                           then 15 % (heart) and 12 % (electrodes)
    RVEF                   S wave 0.10 mV more to the right per ``right``;         S wave 0.15 mV per ``right``
                           scatter 0.55 of it; and through LVEF (r about 0.9)
    LVESV, LVSV, RVEDV,    none of their own: what follows from the above          as standard
    RVESV, RVSV
    cardiac output         the rate exactly, the stroke volume as above            as standard
    wall thickness, mass   QRS 3 % taller per millimetre, under 20 % of scatter    T 0.12 mV taller per ``thick``
    sphericity             none                                                    axis 0.25 rad per ``round``
    length of systole      none                                                    T 25 ms later per ``late``
    =====================  ======================================================  =====================================

Every link of the easy ECG carries a scatter of ``paired_ecg.SCATTER`` of its unit.

Diseases (log-odds: intercept, per 10 points of LVEF below 55, per 10 years of age above 60), and what shows them besides:

    =======================  ========================  =========================================  ===============
    disease                  log-odds                  in the ECG                                 in the CMR
    =======================  ========================  =========================================  ===============
    coronary artery disease  -1.6, 0.35, 0.40          ST 0.05 mV lower                           LVEF only
    atrial fibrillation      -2.2, 0.30, 0.60          no P, fibrillation, RR varies by 17 %      LVEF only
    sudden cardiac death     -3.6, 0.60, 0.20          LVEF only                                  LVEF only
    heart failure            -3.0, 1.20, 0.25          LVEF only                                  LVEF only
    myocardial infarction    -2.2, 0.50, 0.30          Q wave 0.35 mV deeper                      LVEF only
    cardiomyopathy           -2.6, 0.80, -0.10         LVEF only                                  LVEF only
    =======================  ========================  =========================================  ===============

Age shows in neither (it moves the diseases only), sex through LVEDV (20 % larger in men), body size through LVEDV
(``SIZE_CORRELATION``) and in no other way. Nuisance of the ECG alone: rate, baseline wander, mains, muscle noise, gain and
axis; of the CMR alone: body, coil, contrast, noise, orientation, breath-holds, triggering, regional motion, shape of the RV
(orientation and most of the noise not in the easy cohort).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import numpy as np

from training.phantoms.cycle import left_ventricle
from training.phantoms.subjects import DISEASES, Subject, draw_subject

Cohort = Literal["standard", "easy"]

MUSCLE_G_PER_ML = 1.05
"""Density of myocardium."""

SIZE_CORRELATION = 0.5
"""Correlation of height, and of BMI, with what of log LVEDV is left after sex and LVEF."""

PREVALENT_SHARE = 0.6
"""Share of the diseases that were diagnosed before the CMR; the others follow within ``INCIDENT_DAYS``."""

INCIDENT_DAYS = 5 * 365
APART_DAYS = 14
"""Most days between the ECG and the CMR, either way."""

_FIRST_DAY, _DAYS = date(2015, 1, 1), 3650
_SIZE_SD = 0.14
"""Spread of log LVEDV in ``draw_subject``."""

_APEX_CAP = 0.6
"""Thickness of the wall at the apex over that elsewhere, as ``cmr_heart`` paints it."""


@dataclass(frozen=True, kw_only=True)
class PairedSubject:
    """One patient whose heart was seen by both.

    Args:
        heart: what is true of it.
        height_cm, weight_kg: body size.
        ecg_on, cmr_on: days of the two studies, at most ``APART_DAYS`` apart.
        diagnosed_on: day of the first diagnosis of every disease that the patient has.
    """

    heart: Subject
    height_cm: float
    weight_kg: float
    ecg_on: date
    cmr_on: date
    diagnosed_on: dict[str, date]

    @property
    def left_ventricular_mass_g(self) -> float:
        """Mass of the left ventricle's muscle."""
        return muscle_mass_g(self.heart)


def draw_paired_subject(rng: np.random.Generator, cohort: Cohort) -> PairedSubject:
    """Draw one patient; in the easy cohort size, function and shape of the heart are independent and widely spread."""
    heart = draw_subject(rng) if cohort == "standard" else _wide_subject(rng)
    height_cm, weight_kg = _body(heart, rng)
    cmr_on = _FIRST_DAY + timedelta(days=int(rng.integers(_DAYS)))
    return PairedSubject(
        heart=heart,
        height_cm=height_cm,
        weight_kg=weight_kg,
        ecg_on=cmr_on + timedelta(days=int(rng.integers(-APART_DAYS, APART_DAYS + 1))),
        cmr_on=cmr_on,
        diagnosed_on=_diagnoses(heart, cmr_on, rng),
    )


def _wide_subject(rng: np.random.Generator) -> Subject:
    """A heart whose volume, function, wall and shape say little of each other; diseases as in ``draw_subject``."""
    drawn = draw_subject(rng)
    lvedv = float(np.exp(rng.uniform(np.log(85), np.log(300))))
    stroke = lvedv * drawn.lvef_percent / 100
    least, most = max(70.0, stroke / 0.75), max(75.0, min(320.0, stroke / 0.12), stroke / 0.70)
    rvedv = float(np.exp(rng.uniform(np.log(least), np.log(most))))
    return Subject(
        lvedv_ml=lvedv,
        lvesv_ml=lvedv - stroke,
        rvedv_ml=rvedv,
        rvesv_ml=rvedv - stroke,
        heart_rate_bpm=drawn.heart_rate_bpm,
        systole_fraction=float(rng.uniform(0.30, 0.46)),
        wall_mm=float(rng.uniform(6.5, 14)),
        sphericity=float(rng.uniform(1.30, 1.95)),
        age_years=drawn.age_years,
        male=drawn.male,
        diseases=drawn.diseases,
    )


def muscle_mass_g(heart: Subject) -> float:
    """Mass of the left ventricle's muscle, gram: the outer half-ellipsoid less the cavity, as ``cmr_heart`` paints them."""
    cavity = left_ventricle(heart, np.zeros(1))
    length, radius = float(cavity.length_mm[0]), float(cavity.radius_mm[0])
    outer = (radius + heart.wall_mm) ** 2 * (length + _APEX_CAP * heart.wall_mm)
    return MUSCLE_G_PER_ML * 2 / 3 * math.pi * (outer - radius**2 * length) / 1000


def size_residual(heart: Subject) -> float:
    """What of log LVEDV is left after sex and LVEF, in its own spread: standard normal in the standard cohort."""
    expected = (150 if heart.male else 125) * math.exp(0.010 * (52 - heart.lvef_percent))
    return math.log(heart.lvedv_ml / expected) / _SIZE_SD


def _body(heart: Subject, rng: np.random.Generator) -> tuple[float, float]:
    """Height in centimetre and weight in kilogram; large hearts live in large people."""
    size = float(np.clip(size_residual(heart), -2.5, 2.5))
    rest = math.sqrt(1 - SIZE_CORRELATION**2)
    tall, heavy = (SIZE_CORRELATION * size + rest * float(value) for value in rng.normal(0, 1, 2))
    height_cm = (176 if heart.male else 163) + 7.0 * tall
    return height_cm, 26.5 * math.exp(0.14 * heavy) * (height_cm / 100) ** 2


def _diagnoses(heart: Subject, cmr_on: date, rng: np.random.Generator) -> dict[str, date]:
    """A first day for every disease that is there: before the CMR, or after it."""
    days = [
        -int(rng.integers(30, 3650)) if rng.random() < PREVALENT_SHARE else int(rng.integers(1, INCIDENT_DAYS))
        for _ in DISEASES
    ]
    return {
        name: cmr_on + timedelta(days=day) for name, day in zip(DISEASES, days, strict=True) if heart.diseases[name]
    }
