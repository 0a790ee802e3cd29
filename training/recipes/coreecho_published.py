"""CoReEcho at its published size and schedule; needs a GPU.

Source: Maani et al., MICCAI 2024, and the command its authors give: UniFormer-S on 36 frames 4 apart, 112 pixels; AdamW of 1e-4
(weight decay 1e-4) for 26 epochs, a tenth of it from epoch index 15; 16 videos, so 32 clips, a batch; temperature 1; then
5 epochs of the regressor alone. They start from weights of Kinetics-400, which this project
does not carry: ``--weights FILE`` names them.
"""

from __future__ import annotations

from dataclasses import replace

from training.coreecho.clips import ClipShape
from training.coreecho.config import CoReEchoRun, StepSchedule
from training.models.uniformer import UniFormerShape
from training.recipes import coreecho_small


def recipe() -> CoReEchoRun:
    """Return the run."""
    small = coreecho_small.recipe()
    encoder = UniFormerShape.published()
    return replace(
        small,
        recipe="coreecho_published",
        data=replace(small.data, preprocess=coreecho_small.preprocess(size_px=encoder.size_px, frames=encoder.frames)),
        encoder=encoder,
        clips=ClipShape(frames=encoder.frames, period_frames=4),
        translation_px=6,
        start_percent=55.6,
        stage1=replace(
            small.stage1,
            schedule=StepSchedule(learning_rate=1e-4, decay_epoch=15, decay_factor=0.1, repeated=False),
        ),
        stage2=replace(
            small.stage2,
            schedule=StepSchedule(learning_rate=1e-4, decay_epoch=None, decay_factor=1.0, repeated=False),
        ),
        bundle=replace(small.bundle, name="echo-ef-coreecho-published"),
    )
