"""What a variant is released with: its patients, what the bundle states, and the words of the model card.

A value of its own and no part of the run, so that a run keeps its digest and its checkpoints whatever is released.
Called by ``release``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engines.predictors.similarity import LEAST_PATIENTS
from engines.records import Modality
from training.config import BundleConfig, DataConfig, SplitConfig
from training.data.targets import DISEASES
from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.pair_source import PhantomPairs
from training.ecg_cmr.preparation import cmr_volume_small, ecg_clean

QUANTITIES = ("lvef", "rvef", "cardiac_output", "lvedv", "lvesv", "rvedv", "rvesv", "lv_mass")
TRAINING_SHARES = {"training": 90, "validation": 10}
"""Percent of the pairs; who calibrates and who is asked at the end has an ECG only and is in no store."""
_SEED = 24_011
_PAIRS, _CALIBRATION, _TEST = 1500, 4000, 2000
_COVERAGE_PERCENT, _WIDE_COVERAGE_PERCENT = 80.0, 95.0
_GOLDEN_HEARTS = 3
_CROSS_MODAL_PAIRS, _WINDOW_DAYS = 400, 7
_METHODS = {
    "ecg_cmr_ecg_only_small": "pre-trained on ECGs alone",
    "ecg_cmr_slice_small": "pre-trained beside one slice of cardiac MR at end-diastole",
    "ecg_cmr_slice_time_small": "pre-trained beside one slice of cardiac MR over the beat",
    "ecg_cmr_volume_small": "pre-trained beside cardiac MR volumes at end-diastole",
    "ecg_cmr_triplet_small": "pre-trained beside cardiac MR volumes at end-diastole and end-systole",
}
"""How the encoder of each variant that can be released learned, by recipe."""


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """Who trains, calibrates and is asked, and what the bundle states.

    Args:
        pairs: patients with both studies, who train and choose.
        ecgs: patients with an ECG: first those of ``pairs``, then those who calibrate, then those who are asked.
        calibration, test: how many.
        cross_modal_pairs: first of those who calibrate whose images are made too, so that known pairs tell how alike an ECG and
            images of one patient are; 0 where no network compares them.
        window_days: how far apart both studies of a patient may lie to be compared at a site; a day of a phantom means nothing.
        quantities: estimated, in the order of the columns; the first three are those of every ECG bundle.
        diseases: whose probability is stated, likewise.
        wide_coverage_percent: of the second interval; that of the first stands in ``bundle``.
        bundle: names and words.
    """

    pairs: PhantomPairs
    ecgs: PhantomPairs
    calibration: int
    test: int
    cross_modal_pairs: int
    window_days: int
    quantities: tuple[str, ...]
    diseases: tuple[str, ...]
    wide_coverage_percent: float
    bundle: BundleConfig

    def __post_init__(self) -> None:
        """Refuse parts that do not fit into the patients, and other preparations of the two sets.

        Raises:
            ValueError: as said.
        """
        if self.paired < 2 or min(self.calibration, self.test) < 1:
            msg = (
                f"{self.ecgs.patients} patients, {self.calibration} calibrate and {self.test} are asked; too few train"
            )
            raise ValueError(msg)
        paired = tuple(entry.patient for entry in self.pairs.entries())
        if paired != tuple(entry.patient for entry in self.ecgs.entries()[: self.paired]):
            raise ValueError("the patients of the pairs are not the first with an ECG; expected the same, in one order")
        if self.cross_modal_pairs and not LEAST_PATIENTS <= self.cross_modal_pairs <= self.calibration:
            msg = (
                f"{self.cross_modal_pairs} of {self.calibration} patients who calibrate tell how similar pairs are; expected "
                f"{LEAST_PATIENTS} to {self.calibration}, or 0 for a bundle without the check"
            )
            raise ValueError(msg)
        if self.pairs.ecg != self.ecgs.ecg:
            raise ValueError("pairs and ECGs are prepared differently; give both the specification of the bundle")

    @property
    def paired(self) -> int:
        """Patients with both studies."""
        return self.ecgs.patients - self.calibration - self.test

    @property
    def known_pairs(self) -> PhantomPairs:
        """Patients with both studies whom nothing was trained or chosen on."""
        return replace(self.pairs, first=self.pairs.first + self.paired, patients=self.cross_modal_pairs)

    @property
    def data(self) -> DataConfig:
        """The hearts as the exporter takes them."""
        total, shares = self.ecgs.patients, self.pairs.shares
        chooses = self.paired * shares["validation"] / 100
        return DataConfig(
            modality=Modality.ECG,
            seed=self.ecgs.seed,
            hearts=total,
            preprocess=self.ecgs.ecg,
            split=SplitConfig(
                train=(self.paired - chooses) / total,
                validation=chooses / total,
                calibration=self.calibration / total,
                test=self.test / total,
            ),
        )


def release_plan(run: EcgCmrRun) -> ReleasePlan:
    """Return what a small variant is released with, on digital hearts.

    Raises:
        ValueError: the run is another one; published sizes are trained on a data set.
    """
    if run.recipe not in _METHODS:
        msg = f"{run.recipe} is trained on a store of its user and makes no bundle here; release one of {', '.join(_METHODS)}"
        raise ValueError(msg)
    total = _PAIRS + _CALIBRATION + _TEST
    return ReleasePlan(
        pairs=_phantoms(_PAIRS),
        ecgs=_phantoms(total),
        calibration=_CALIBRATION,
        test=_TEST,
        cross_modal_pairs=_CROSS_MODAL_PAIRS if run.towers else 0,
        window_days=_WINDOW_DAYS,
        quantities=QUANTITIES,
        diseases=DISEASES,
        wide_coverage_percent=_WIDE_COVERAGE_PERCENT,
        bundle=_bundle(run.recipe),
    )


def _phantoms(patients: int) -> PhantomPairs:
    return PhantomPairs(
        seed=_SEED,
        patients=patients,
        cohort="standard",
        ecg=ecg_clean(),
        cmr=cmr_volume_small(),
        shares=TRAINING_SHARES,
    )


def _bundle(recipe: str) -> BundleConfig:
    return BundleConfig(
        name=recipe.replace("_", "-"),
        version="0.2.0",
        method=(
            f"A vision transformer, {_METHODS[recipe]} of the same patient, reads ten seconds of twelve leads; linear probes "
            "on its embedding estimate what cardiac MR would measure, with two split-conformal intervals, and probabilities "
            "of disease with Venn-Abers intervals. Nothing is measured on images."
        ),
        intended_use=(
            "Shows the way from a resting ECG to a report of function, volumes and mass as an ECG suggests them, and of the "
            "probability of six conditions. Not validated in paced rhythm. Not for clinical use."
        ),
        training_data="digital phantoms only, no patients",
        coverage_percent=_COVERAGE_PERCENT,
        golden_hearts=_GOLDEN_HEARTS,
    )
