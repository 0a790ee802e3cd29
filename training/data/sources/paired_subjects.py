"""Digital hearts seen twice: patient i of a seed is always the same heart, with an ECG and a cardiac MR of it.

The heart, the ECG and the stack have random streams of their own, so the nuisance of one modality never moves the other.
What the two share, and how strongly, stands in ``training.phantoms.paired``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from enum import IntEnum

import numpy as np

from engines.records import CineStack, EcgRecord
from training.data.targets import DISEASES
from training.phantoms.cmr import MrScan, draw_scan, rendered
from training.phantoms.cmr_view import APEX_TO_BASE, TO_FEET, TO_RIGHT_VENTRICLE
from training.phantoms.ecg import ecg_record
from training.phantoms.paired import Cohort, PairedSubject, draw_paired_subject
from training.phantoms.paired_ecg import linked_ecg

TARGETS = (
    "lvedv",
    "lvesv",
    "lvsv",
    "lvef",
    "cardiac_output",
    "lv_mass",
    "rvedv",
    "rvesv",
    "rvsv",
    "rvef",
    "wall_thickness",
)
"""Millilitre, percent, litre a minute, gram, millimetre; in the order of the UK Biobank fields 24100 to 24109 and 24140."""

DEMOGRAPHICS = ("age_years", "male", "height_cm", "weight_kg")

PLAIN_NOISE = 0.01
"""Of the stacks of the easy cohort."""

_STREAM = 0x70616972
"""Sets these hearts apart from those of every other set, whatever its seed."""


class _Purpose(IntEnum):
    """What a random stream is for."""

    HEART = 0
    ECG = 1
    CMR = 2


@dataclass(frozen=True, kw_only=True)
class CoarseScan:
    """Scanner settings that take the place of the drawn ones, so that many stacks render soon.

    Args:
        size_px, spacing_mm: square matrix and pixel.
        phases: of the heart beat.
        slice_distance_mm: between the slices.
    """

    size_px: int = 108
    spacing_mm: float = 2.6
    phases: int = 16
    slice_distance_mm: float = 10.0

    def of(self, scan: MrScan) -> MrScan:
        """Return the scan with these settings; view, place, noise and grey scale stay."""
        return replace(
            scan,
            size_px=self.size_px,
            spacing_mm=self.spacing_mm,
            phases=self.phases,
            slice_distance_mm=self.slice_distance_mm,
        )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One ECG and one cardiac MR of the same patient, and what is true of the heart.

    Args:
        patient: names the patient.
        ecg_on, cmr_on: days of the studies.
        ecg, cmr: the records that serving would decode.
        targets: by name, see ``TARGETS``.
        diseases: flags by name, whether the diagnosis came before the CMR or after it.
        diagnosed_on: first days of the diseases that are there.
        demographics: by name, see ``DEMOGRAPHICS``.
    """

    patient: str
    ecg_on: date
    cmr_on: date
    ecg: EcgRecord
    cmr: CineStack
    targets: Mapping[str, float]
    diseases: Mapping[str, bool]
    diagnosed_on: Mapping[str, date]
    demographics: Mapping[str, float]


def plain(scan: MrScan) -> MrScan:
    """Return the scan of the easy cohort: the standard view of the usual long axis, hardly any noise."""
    axis, feet, right_ventricle = (np.array(each) for each in (APEX_TO_BASE, TO_FEET, TO_RIGHT_VENTRICLE))
    axis /= np.linalg.norm(axis)
    column = feet - (feet @ axis) * axis
    column /= np.linalg.norm(column)
    row = np.cross(column, axis)
    a, b, c, d, e, f = (float(value) for value in np.round([*row, *column], 6))
    return replace(
        scan,
        orientation=(a, b, c, d, e, f),
        turn_rad=float(np.arctan2(right_ventricle @ column, right_ventricle @ row)),
        apex_first=True,
        noise=PLAIN_NOISE,
    )


def draw_patient(seed: int, index: int, cohort: Cohort) -> PairedSubject:
    """Return patient ``index`` of a seed without rendering anything."""
    return draw_paired_subject(_generator(seed, index, _Purpose.HEART), cohort)


def draw_pair(seed: int, index: int, cohort: Cohort, scan: CoarseScan | None = None) -> Pair:
    """Return both studies of patient ``index`` of a seed.

    Args:
        seed: names the set.
        index: of the patient, from 0.
        cohort: ``standard`` hearts with standard ECGs, or ``easy`` ones whose ECGs tell all.
        scan: coarse scanner settings; None draws those of a clinical scanner.
    """
    patient = draw_patient(seed, index, cohort)
    return Pair(
        patient=f"paired-{cohort}-{seed}-{index:06d}",
        ecg_on=patient.ecg_on,
        cmr_on=patient.cmr_on,
        ecg=ecg_of(patient, seed, index, cohort),
        cmr=stack_of(patient, seed, index, cohort, scan),
        targets=targets_of(patient),
        diseases={name: patient.heart.diseases[name] for name in DISEASES},
        diagnosed_on=patient.diagnosed_on,
        demographics=demographics_of(patient),
    )


def ecg_of(patient: PairedSubject, seed: int, index: int, cohort: Cohort) -> EcgRecord:
    """Render the ECG of a patient."""
    render = ecg_record if cohort == "standard" else linked_ecg
    return render(patient.heart, _generator(seed, index, _Purpose.ECG))


def stack_of(patient: PairedSubject, seed: int, index: int, cohort: Cohort, scan: CoarseScan | None) -> CineStack:
    """Render the short-axis cine stack of a patient; in the easy cohort every stack has the ``plain`` view."""
    rng = _generator(seed, index, _Purpose.CMR)
    drawn = draw_scan(rng) if scan is None else scan.of(draw_scan(rng))
    return rendered(patient.heart, drawn if cohort == "standard" else plain(drawn), rng)


def targets_of(patient: PairedSubject) -> dict[str, float]:
    """Return what is true of the heart, by the names of ``TARGETS``."""
    heart = patient.heart
    values = (
        heart.lvedv_ml,
        heart.lvesv_ml,
        heart.lvedv_ml - heart.lvesv_ml,
        heart.lvef_percent,
        heart.cardiac_output_l_min,
        patient.left_ventricular_mass_g,
        heart.rvedv_ml,
        heart.rvesv_ml,
        heart.rvedv_ml - heart.rvesv_ml,
        heart.rvef_percent,
        heart.wall_mm,
    )
    return dict(zip(TARGETS, values, strict=True))


def demographics_of(patient: PairedSubject) -> dict[str, float]:
    """Return age, sex and body size, by the names of ``DEMOGRAPHICS``."""
    heart = patient.heart
    values = (heart.age_years, float(heart.male), patient.height_cm, patient.weight_kg)
    return dict(zip(DEMOGRAPHICS, values, strict=True))


def _generator(seed: int, index: int, purpose: _Purpose) -> np.random.Generator:
    return np.random.default_rng([_STREAM, seed, index, int(purpose)])
