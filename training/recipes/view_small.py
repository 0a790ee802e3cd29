"""The view check of echo engines: is a loop an apical four-chamber view? Trained on phantoms of six views.

``purkinje-train release view_small`` writes a gate, which the release of an echo engine takes with ``--gate``. Its frames must
be prepared as those of that engine: they have the size of ``coreecho_small``'s clips and the sector parameters of
``echo_clean_spec``. Real clips of a named view may train it too, with ``--clips``.
"""

from __future__ import annotations

from engines.preprocess.spec import EchoCleanSpec
from engines.records import Modality
from training.config import BundleConfig, OptimConfig, RunConfig, SplitConfig, ViewDataConfig
from training.data.augment import augment_view
from training.losses import view_loss
from training.models.uniformer import UniFormerShape
from training.models.view_net import ViewNet


def echo_clean_spec(*, size_px: int, clip_frames: int, clips: int) -> EchoCleanSpec:
    """Return the specification of echo preprocessing version 2 at 80 ms a frame, for networks of one size."""
    return EchoCleanSpec(
        kind="echo",
        preprocess_version=2,
        size_px=size_px,
        clip_frames=clip_frames,
        clips=clips,
        frame_step_ms=80.0,
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
        loops_max=24,
        overlay_colour_min=24.0,
        overlay_still_max=3.0,
        overlay_bright_min=70.0,
        overlay_stroke_px=6,
        overlay_grow_px=1,
        colour_fraction_max=0.05,
        opening_degrees_min=30.0,
        opening_degrees_max=130.0,
        apex_column_min=0.3,
        apex_column_max=0.7,
        apex_row_max=0.2,
        saturated_level=250,
        saturated_fraction_max=0.3,
    )


def recipe() -> RunConfig:
    """Return the run: 1200 loops of about a second, 8 frames each, 64 pixels square."""
    spec = echo_clean_spec(size_px=UniFormerShape.small().size_px, clip_frames=16, clips=1)
    # What stands on its head or lies on its side must be seen in training: only the engine's own spec refuses it before.
    anywhere = {"apex_column_min": -1e9, "apex_column_max": 1e9, "apex_row_max": 1e9}
    lenient = {**anywhere, "opening_degrees_min": -180.0, "opening_degrees_max": 180.0}
    return RunConfig(
        recipe="view_small",
        seed=1,
        data=ViewDataConfig(
            modality=Modality.ECHO,
            seed=30_001,
            hearts=1200,
            preprocess=spec.model_copy(update=lenient),
            split=SplitConfig(train=0.60, validation=0.08, calibration=0.16, test=0.16),
            frames=8,
        ),
        model=ViewNet.small,
        loss=view_loss,
        augment=augment_view,
        optim=OptimConfig(
            epochs=40,
            batch_size=32,
            learning_rate=3e-3,
            weight_decay=0.02,
            warmup_fraction=0.08,
            gradient_clip=1.0,
            autocast_bfloat16=False,
        ),
        bundle=BundleConfig(
            name="echo-view-small",
            version="0.1.0",
            method="A small convolutional network classifies single frames; the probabilities are averaged over the frames.",
            intended_use="Keeps an echo engine from estimating an ejection fraction from another view. Not for clinical use.",
            training_data="digital phantoms only, no patients",
            coverage_percent=None,
            golden_hearts=2,
        ),
    )
