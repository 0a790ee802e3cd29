"""Ejection fraction by CoReEcho: the size two CPU cores train, on digital phantoms.

The comparison on 600 / 100 / 200 hearts, in seconds of one core, as measured on one: a step on 32 clips takes 0.77 (L1 end to
end: 0.71), so 26 epochs of 37 steps take 740 (680); 300 validation clips an epoch take 1.7, together 50 (45); stage 2 takes 20;
1,100 videos of phantoms at 0.26 take 290; answers and intervals 150. That is about 2,000 a seed and 6,000 for three: less
than two hours on one core, and about one on two.
"""

from __future__ import annotations

from engines.preprocess.spec import EchoCleanSpec
from engines.records import Modality
from training.config import BundleConfig, DataConfig, SplitConfig
from training.coreecho.clips import ClipShape
from training.coreecho.config import ContrastStage, CoReEchoRun, ProbeStage, Speed, StepSchedule
from training.models.uniformer import UniFormerShape
from training.recipes.view_small import echo_clean_spec

STEP_MS = 80.0


def recipe() -> CoReEchoRun:
    """Return the run: the published schedule with ten times its rate, because it starts from random weights."""
    encoder = UniFormerShape.small()
    return CoReEchoRun(
        recipe="coreecho_small",
        seed=11,
        data=DataConfig(
            modality=Modality.ECHO,
            seed=70_001,
            hearts=1600,
            preprocess=preprocess(size_px=encoder.size_px, frames=encoder.frames),
            split=SplitConfig(train=0.5, validation=0.0625, calibration=0.25, test=0.1875),
        ),
        encoder=encoder,
        weights=None,
        start_percent=45.0,
        clips=ClipShape(frames=encoder.frames, step_ms=STEP_MS),
        translation_px=3,
        validation_clips=3,
        speed=Speed(autocast_bfloat16=False, compile=False),
        dropout=0.4,
        stage1=ContrastStage(
            epochs=26,
            batch_videos=16,
            schedule=StepSchedule(learning_rate=1e-3, decay_epoch=15, decay_factor=0.1, repeated=False),
            weight_decay=1e-4,
            temperature=1.0,
        ),
        stage2=ProbeStage(
            epochs=5,
            batch_videos=16,
            schedule=StepSchedule(learning_rate=1e-3, decay_epoch=None, decay_factor=1.0, repeated=False),
            weight_decay=1e-4,
        ),
        bundle=BundleConfig(
            name="echo-ef-coreecho-small",
            version="0.2.0",
            method=(
                "A space-time Transformer learns embeddings of clips whose distances follow the distances of ejection fractions "
                "(Rank-N-Contrast); a small regressor reads them. The ejection fraction is the mean over the clips, with a "
                "split-conformal interval."
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


def preprocess(*, size_px: int, frames: int, step_ms: float = STEP_MS) -> EchoCleanSpec:
    """Return the preprocessing of all recipes of clips; they differ in size and pace of a clip."""
    spec = echo_clean_spec(size_px=size_px, clip_frames=frames, clips=3)
    return spec.model_copy(update={"frame_step_ms": step_ms})
