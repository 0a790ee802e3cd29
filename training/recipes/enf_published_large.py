"""The field at the largest published size; needs a GPU. Same as ``enf_published`` with more and wider latents.

Source: Wiers et al., MIDL 2026: 128 latents of 64 numbers. A grid cut to 128 is not closed under quarter turns, so here it
is the next closed one, 144.
"""

from __future__ import annotations

from dataclasses import replace

from training.enf.config import EnfRun
from training.models.enf import EnfShape
from training.recipes import enf_published


def recipe() -> EnfRun:
    """Return the run."""
    published = enf_published.recipe()
    return replace(
        published,
        recipe="enf_published_large",
        shape=EnfShape.published(context_width=64, latents=144),
        bundle=replace(published.bundle, name="cmr-enf-published-large"),
    )
