"""Ejection fraction from an apical four-chamber clip: the small first network, trained on digital phantoms."""

from __future__ import annotations

from engines.preprocess.spec import EchoSpec
from engines.records import Modality
from training.config import BundleConfig, DataConfig, OptimConfig, RunConfig, SplitConfig
from training.data.augment import augment_echo
from training.losses import ejection_fraction_loss
from training.models.echo_clip_net import EchoClipNet


def recipe() -> RunConfig:
    """Return the run: 700 hearts, clips of 28 frames 50 ms apart, 64 pixels square."""
    return RunConfig(
        recipe="echo_ef_small",
        seed=1,
        data=DataConfig(
            modality=Modality.ECHO,
            seed=20_001,
            hearts=700,
            preprocess=EchoSpec(
                kind="echo",
                preprocess_version=1,
                size_px=64,
                clip_frames=28,
                clips=3,
                frame_step_ms=50.0,
                frame_interval_max_ms=80.0,
                frames_min=16,
                duration_min_ms=700.0,
                short_loop="black_end",
                sector_frames=16,
                sector_deviation_min=2.0,
                sector_area_min=0.08,
                sector_area_max=0.95,
                margin_fraction=0.02,
                chroma_spread_max=6.0,
            ),
            split=SplitConfig(train=0.57, validation=0.04, calibration=0.22, test=0.17),
        ),
        model=EchoClipNet.small,
        loss=ejection_fraction_loss,
        augment=augment_echo,
        optim=OptimConfig(
            epochs=24,
            batch_size=16,
            learning_rate=2e-3,
            weight_decay=0.02,
            warmup_fraction=0.08,
            gradient_clip=1.0,
            autocast_bfloat16=True,
        ),
        bundle=BundleConfig(
            name="echo-ef-small",
            version="0.1.0",
            method=(
                "A small convolutional network reads each frame of a clip and pools over time; the ejection fraction "
                "is the mean over the clips, with a split-conformal interval."
            ),
            intended_use=(
                "Shows the way from an apical four-chamber clip to a report of the left ventricular ejection fraction. "
                "Not for clinical use."
            ),
            training_data="digital phantoms only, no patients",
            coverage_percent=90.0,
            golden_hearts=2,
        ),
    )
