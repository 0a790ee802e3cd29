"""Ejection fraction of at most 40 % from a short-axis cine: the small first network, trained on digital phantoms."""

from __future__ import annotations

from engines.preprocess.spec import CmrSpec
from engines.records import Modality
from training.config import BundleConfig, DataConfig, OptimConfig, RunConfig, SplitConfig
from training.data.augment import augment_cmr
from training.losses import risk_loss
from training.models.cmr_pair_net import CmrPairNet


def recipe() -> RunConfig:
    """Return the run: 800 hearts, mid slice at end diastole and end systole, 72 pixels of 1.8 mm."""
    return RunConfig(
        recipe="cmr_risk_small",
        seed=2,
        data=DataConfig(
            modality=Modality.CMR,
            seed=20_002,
            hearts=800,
            preprocess=CmrSpec(
                kind="cmr",
                preprocess_version=1,
                size_px=72,
                pixel_spacing_mm=1.8,
                search_spacing_mm=3.0,
                slices_min=3,
                phases_min=8,
                motion_contrast_min=3.0,
                motion_fraction_min=0.3,
                ventricle_score_min=0.2,
                slice_score_min=0.5,
                percentile_low=1.0,
                percentile_high=99.0,
            ),
            split=SplitConfig(train=0.55, validation=0.05, calibration=0.22, test=0.18),
        ),
        model=CmrPairNet.small,
        loss=risk_loss,
        augment=augment_cmr,
        optim=OptimConfig(
            epochs=70,
            batch_size=32,
            learning_rate=2e-3,
            weight_decay=0.02,
            warmup_fraction=0.08,
            gradient_clip=1.0,
            autocast_bfloat16=False,
        ),
        bundle=BundleConfig(
            name="cmr-risk-small",
            version="0.1.0",
            method=(
                "A small convolutional network reads the mid short-axis slice at end diastole and end systole; the "
                "probability of an ejection fraction of at most 40 % comes with its Venn-Abers interval."
            ),
            intended_use=(
                "Shows the way from a short-axis cine stack to a report of the probability of a reduced ejection "
                "fraction. Not for clinical use."
            ),
            training_data="digital phantoms only, no patients",
            coverage_percent=90.0,
            golden_hearts=2,
        ),
    )
