"""The view check for engines on clips of 112 pixels: ``view_small`` on frames of that size."""

from __future__ import annotations

from dataclasses import replace

from training.config import RunConfig
from training.models.uniformer import UniFormerShape
from training.recipes import view_small


def recipe() -> RunConfig:
    """Return the run."""
    run = view_small.recipe()
    sized = run.data.preprocess.model_copy(update={"size_px": UniFormerShape.published().size_px})
    return replace(
        run,
        recipe="view_published",
        data=replace(run.data, preprocess=sized),
        bundle=replace(run.bundle, name="echo-view-published"),
    )
