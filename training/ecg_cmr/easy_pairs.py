"""The easy set without nuisance: hearts that differ in nothing but themselves, seen by one cart and one scanner.

Every record is rendered with the same random numbers, so noise, rhythm, chest, contrast and breath-holds are the same for all,
and so is the scatter of every link: the ECG is a function of the heart. What a correct contrast cannot find here it finds
nowhere. Called by the study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.data.heart_arrays import bare_code
from training.data.sources.paired_subjects import CoarseScan, draw_patient, plain, targets_of
from training.ecg_cmr.config import digest
from training.ecg_cmr.pair_source import Arrays, PairEntry, PhantomPairs, prepared_pair
from training.ecg_cmr.preparation import cmr_volume_small, ecg_of_pairs
from training.phantoms.cmr import draw_scan, rendered
from training.phantoms.paired import Cohort, PairedSubject
from training.phantoms.paired_ecg import linked_ecg

EASY_SHARES = {"training": 88, "validation": 6, "test": 6}
"""Percent; what the easy set is asked for is retrieval, and the gallery is its test part."""
RATE_BPM, FIBRILLATION = 60.0, "atrial_fibrillation"
_SAME = 20_260_101
"""Seed of the random numbers that all records share."""


@dataclass(frozen=True, kw_only=True)
class EasyPairs(PhantomPairs):
    """The easy cohort at one heart rate, without atrial fibrillation and without nuisance; arrays as ``prepared_pair`` says."""

    cohort: Cohort = "easy"
    shares: Mapping[str, int] = field(default_factory=lambda: dict(EASY_SHARES))

    def __post_init__(self) -> None:
        if self.scan is None:
            raise ValueError("no settings of the scanner; expected those that all stacks share")

    @property
    def name(self) -> str:
        return f"{super().name}, without nuisance"

    @property
    def spec(self) -> Mapping[str, Any]:
        code = super().spec
        return {**code, "code_sha256": digest(str(code["code_sha256"]), bare_code(Path(__file__)))}

    def read(self, number: int) -> Arrays:
        heart = self._patient(self.first + number).heart
        ecg = linked_ecg(heart, np.random.default_rng(_SAME))
        rng = np.random.default_rng(_SAME)
        cmr = rendered(heart, plain(self._scanner.of(draw_scan(rng))), rng)
        return prepared_pair(ecg, cmr, ecg_spec=self.ecg, cmr_spec=self.cmr)

    @property
    def _scanner(self) -> CoarseScan:
        assert self.scan is not None
        return self.scan

    def _patient(self, index: int) -> PairedSubject:
        """The patient of the easy cohort, at the rate and in the rhythm that all have."""
        drawn = draw_patient(self.seed, index, self.cohort)
        diseases = drawn.heart.diseases | {FIBRILLATION: False}
        first_days = {name: day for name, day in drawn.diagnosed_on.items() if name != FIBRILLATION}
        heart = replace(drawn.heart, heart_rate_bpm=RATE_BPM, diseases=diseases)
        return replace(drawn, heart=heart, diagnosed_on=first_days)

    def _entry(self, index: int) -> PairEntry:
        patient = self._patient(index)
        return replace(
            super()._entry(index),
            targets=targets_of(patient),
            diseases=patient.heart.diseases,
            diagnosed_on=patient.diagnosed_on,
        )


def easy_pairs(*, seed: int, patients: int) -> EasyPairs:
    """Return hearts of the easy set, with the small preparation."""
    return EasyPairs(seed=seed, patients=patients, ecg=ecg_of_pairs(), cmr=cmr_volume_small())
