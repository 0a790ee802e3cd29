"""EchoCoTr at its published size and schedule; needs a GPU.

Source: Muhtaseb and Yaqub, MICCAI 2022, and its authors' code: UniFormer-S on 36 frames 4 apart; squared error; AdamW of 1e-4
(weight decay 1e-4), a tenth of it after each 15 of 45 epochs; 25 videos a batch, one random clip each.
"""

from __future__ import annotations

from dataclasses import replace

from training.coreecho.config import BaselineRun, EndToEndStage, StepSchedule
from training.recipes import coreecho_published, echocotr_small


def recipe() -> BaselineRun:
    """Return the run."""
    small, contrast = echocotr_small.recipe(), coreecho_published.recipe()
    return replace(
        small,
        recipe="echocotr_published",
        data=contrast.data,
        encoder=contrast.encoder,
        start_percent=contrast.start_percent,
        clips=contrast.clips,
        translation_px=contrast.translation_px,
        fit=EndToEndStage(
            epochs=45,
            batch_videos=25,
            views=1,
            loss="mse",
            optimiser="adamw",
            schedule=StepSchedule(learning_rate=1e-4, decay_epoch=15, decay_factor=0.1, repeated=True),
            weight_decay=1e-4,
        ),
        bundle=replace(small.bundle, name="echo-ef-echocotr-published"),
    )
