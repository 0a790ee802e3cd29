"""As ``enf_small``, for an ejection fraction of at most 30 %."""

from __future__ import annotations

from training.enf.config import EnfRun
from training.recipes import enf_small


def recipe() -> EnfRun:
    """Return the run."""
    return enf_small.recipe_of(
        "lvef_at_most_30", name="enf_small_lvef_at_most_30", bundle="cmr-enf-small-lvef-at-most-30"
    )
