"""The field at its published size; needs a GPU. Same data, task and release as ``enf_small``.

Source: Wiers et al., MIDL 2026: hidden width and key width 256, 3 heads, frequencies of 30 and 60, 64 latents of 32 numbers,
25,000 iterations of 16 frames on a quarter of the pixels, 77 pixels of 1.8 mm. Here the image has 78 pixels, because an
even image has no pixel in its centre, and the cloud is closed under quarter turns.
"""

from __future__ import annotations

from dataclasses import replace

from training.enf.config import EnfRun, FieldFit, MetaConfig
from training.models.enf import EnfShape
from training.models.invariant_transformer import TransformerShape
from training.recipes import enf_small


def recipe() -> EnfRun:
    """Return the run."""
    small = enf_small.recipe()
    return replace(
        small,
        recipe="enf_published",
        data=replace(small.data, preprocess=enf_small.preprocess(size_px=78)),
        shape=EnfShape.published(context_width=32, latents=64),
        fit=FieldFit(steps=3, learning_rate=60.0),
        meta=MetaConfig(
            iterations=25_000,
            batch_frames=16,
            pixel_fraction=0.25,
            order="second",
            learning_rate=5e-4,
            warmup_fraction=0.02,
            gradient_clip=1.0,
        ),
        classifier=replace(
            small.classifier, shape=TransformerShape(width=128, layers=3, heads=4, dropout=0.1), views=20, epochs=100
        ),
        bundle=replace(small.bundle, name="cmr-enf-published"),
    )
