"""The baseline of ``coreecho_small``: the same encoder on the same clips, trained end to end by L1 alone.

Two clips of a video in a batch and as many epochs as stage 1 has, so that both encoders take the same number of steps on the
same number of clips.
"""

from __future__ import annotations

from dataclasses import replace

from training.coreecho.config import BaselineRun, EndToEndStage
from training.recipes import coreecho_small


def recipe() -> BaselineRun:
    """Return the run."""
    contrast = coreecho_small.recipe()
    stage = contrast.stage1
    return BaselineRun(
        recipe="echocotr_small",
        seed=contrast.seed,
        data=contrast.data,
        encoder=contrast.encoder,
        weights=None,
        start_percent=contrast.start_percent,
        clips=contrast.clips,
        translation_px=contrast.translation_px,
        validation_clips=contrast.validation_clips,
        speed=contrast.speed,
        fit=EndToEndStage(
            epochs=stage.epochs,
            batch_videos=stage.batch_videos,
            views=2,
            loss="l1",
            optimiser="adamw",
            schedule=stage.schedule,
            weight_decay=stage.weight_decay,
        ),
        bundle=replace(
            contrast.bundle,
            name="echo-ef-l1-small",
            method=(
                "A space-time Transformer with a linear head, trained end to end by the absolute error. The ejection fraction is "
                "the mean over the clips, with a split-conformal interval."
            ),
        ),
    )
