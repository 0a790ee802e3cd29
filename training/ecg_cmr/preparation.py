"""Pairs of ECG and cardiac MR in the sizes two CPU cores train, on digital hearts: how both are prepared.

Measured on one core with the coarse scanner: 0.36 s and 0.5 MB a patient, so 1,500 patients take five minutes on two cores.
"""

from __future__ import annotations

from engines.preprocess.cmr_volume import CmrVolumeSpec
from engines.preprocess.spec import EcgSpec
from training.ecg_cmr.pair_source import PhantomPairs
from training.phantoms.paired import Cohort
from training.recipes import ecg_cmr_small, enf_small


def phantom_pairs(*, seed: int, patients: int, cohort: Cohort) -> PhantomPairs:
    """Return digital hearts seen by both, with the coarse scanner and the small preparation."""
    return PhantomPairs(seed=seed, patients=patients, cohort=cohort, ecg=ecg_of_pairs(), cmr=cmr_volume_small())


def ecg_of_pairs() -> EcgSpec:
    """Return the preparation of the ECG: that of the served network."""
    spec = ecg_cmr_small.recipe().data.preprocess
    assert isinstance(spec, EcgSpec)
    return spec


def cmr_volume_small() -> CmrVolumeSpec:
    """Return volumes of 12 slices 10 mm apart, 56 pixels of 3 mm (168 mm), and a cine of 16 phases."""
    return CmrVolumeSpec(
        kind="cmr_volume",
        preprocess_version=1,
        heart=enf_small.preprocess(size_px=56).model_copy(update={"pixel_spacing_mm": 3.0}),
        slices=12,
        slice_distance_mm=10.0,
        phases=16,
        ventricle_slices_min=6,
        slice_gap_max=1.5,
        outside_fraction_max=0.15,
    )


def cmr_volume_published() -> CmrVolumeSpec:
    """Return volumes of 12 slices 10 mm apart, 96 pixels of 1.8 mm (173 mm), and a cine of 50 phases."""
    small = cmr_volume_small()
    return small.model_copy(update={"heart": enf_small.preprocess(size_px=96), "phases": 50})
