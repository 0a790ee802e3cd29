"""As ``enf_small``, for an ejection fraction of at most 35 %."""

from __future__ import annotations

from training.enf.config import EnfRun
from training.recipes import enf_small


def recipe() -> EnfRun:
    """Return the run."""
    return enf_small.recipe_of(
        "lvef_at_most_35", name="enf_small_lvef_at_most_35", bundle="cmr-enf-small-lvef-at-most-35"
    )
