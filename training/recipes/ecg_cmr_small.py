"""Ventricular function and disease from a twelve-lead ECG: the small first network, trained on digital phantoms."""

from __future__ import annotations

from engines.preprocess.spec import EcgSpec
from engines.records import Modality
from training.config import BundleConfig, DataConfig, OptimConfig, RunConfig, SplitConfig
from training.data.augment import augment_ecg
from training.losses import ecg_loss
from training.models.ecg_resnet import EcgResNet


def recipe() -> RunConfig:
    """Return the run: 3,600 hearts, ten seconds at 500 Hz."""
    return RunConfig(
        recipe="ecg_cmr_small",
        seed=3,
        data=DataConfig(
            modality=Modality.ECG,
            seed=20_003,
            hearts=3600,
            preprocess=EcgSpec(
                kind="ecg",
                preprocess_version=1,
                profile="ecg_spine_v1",
                sampling_rate_hz=500,
                window_samples=5000,
                window_min_s=9.5,
                window_step_s=1.0,
                source_rate_min_hz=100.0,
                source_rate_max_hz=1000.0,
                highpass_hz=0.5,
                highpass_order=2,
                scale_mv=1.0,
                flat_deviation_mv=0.005,
                flat_fraction_max=0.2,
                amplitude_max_mv=10.0,
                saturated_fraction_max=0.001,
                saturated_run_ms=10.0,
                consistency_max_mv=0.05,
            ),
            split=SplitConfig(train=0.5, validation=0.04, calibration=0.28, test=0.18),
        ),
        model=EcgResNet.small,
        loss=ecg_loss,
        augment=augment_ecg,
        optim=OptimConfig(
            epochs=24,
            batch_size=32,
            learning_rate=2e-3,
            weight_decay=0.05,
            warmup_fraction=0.08,
            gradient_clip=1.0,
            autocast_bfloat16=False,
        ),
        bundle=BundleConfig(
            name="ecg-cmr-small",
            version="0.1.0",
            method=(
                "A small residual network reads ten seconds of twelve leads; estimates of what cardiac MR would "
                "measure come with split-conformal intervals, probabilities of disease with Venn-Abers intervals."
            ),
            intended_use=(
                "Shows the way from a resting ECG to a report of estimated ventricular function and of the probability "
                "of six conditions. Not for clinical use."
            ),
            training_data="digital phantoms only, no patients",
            coverage_percent=80.0,
            golden_hearts=3,
        ),
    )
