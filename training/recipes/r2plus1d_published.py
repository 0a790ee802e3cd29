"""The network of EchoNet-Dynamic at its published size and schedule; needs a GPU.

Source: Ouyang et al., Nature 580 (2020), 252-256, and its authors' code: R(2+1)D-18 on 32 frames 2 apart; squared error; SGD of
1e-4 with momentum 0.9 (weight decay 1e-4), a tenth of it after each 15 of 45 epochs; 20 videos a batch, one random clip each.
"""

from __future__ import annotations

from dataclasses import replace

from training.coreecho.clips import ClipShape
from training.coreecho.config import BaselineRun, R2Plus1dShape
from training.recipes import coreecho_small, echocotr_published

_FRAMES, _SIZE_PX, _STEP_MS = 32, 112, 40.0


def recipe() -> BaselineRun:
    """Return the run."""
    published = echocotr_published.recipe()
    return replace(
        published,
        recipe="r2plus1d_published",
        data=replace(
            published.data,
            preprocess=coreecho_small.preprocess(size_px=_SIZE_PX, frames=_FRAMES, step_ms=_STEP_MS),
        ),
        encoder=R2Plus1dShape(size="published"),
        clips=ClipShape(frames=_FRAMES, period_frames=2),
        fit=replace(published.fit, batch_videos=20, optimiser="sgd"),
        bundle=replace(
            published.bundle,
            name="echo-ef-r2plus1d-published",
            method=(
                "A residual network of factorised space and time convolutions with a linear head, trained end to end by the "
                "squared error. The ejection fraction is the mean over the clips, with a split-conformal interval."
            ),
        ),
    )
