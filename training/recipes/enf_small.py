"""Ejection fraction of at most 40 % by an Equivariant Neural Field: the size two CPU cores train, on digital phantoms."""

from __future__ import annotations

from engines.preprocess.spec import CmrSpec
from engines.records import Modality
from training.config import BundleConfig, DataConfig, SplitConfig
from training.data.targets import LVEF_CONDITIONS
from training.enf.config import ClassifierConfig, EnfRun, FieldFit, MetaConfig, Task
from training.models.enf import EnfShape
from training.models.invariant_transformer import TransformerShape


def recipe() -> EnfRun:
    """Return the run: 64 latents of 16 numbers, 64 pixels of 1.8 mm, three inner steps."""
    return recipe_of("lvef_at_most_40", name="enf_small", bundle="cmr-enf-small")


def recipe_of(condition: str, *, name: str, bundle: str) -> EnfRun:
    """Return the same run for another task, a key of ``LVEF_CONDITIONS``; it draws the same hearts."""
    return EnfRun(
        recipe=name,
        seed=5,
        task=Task(condition=condition, blur_percent=5.0),
        data=DataConfig(
            modality=Modality.CMR,
            seed=50_001,
            hearts=2000,
            preprocess=preprocess(size_px=64),
            split=SplitConfig(train=0.70, validation=0.06, calibration=0.14, test=0.10),
        ),
        shape=EnfShape.small(),
        fit=FieldFit(steps=3, learning_rate=60.0),
        meta=MetaConfig(
            iterations=400,
            batch_frames=8,
            pixel_fraction=0.25,
            order="second",
            learning_rate=1e-3,
            warmup_fraction=0.05,
            gradient_clip=1.0,
        ),
        classifier=ClassifierConfig(
            shape=TransformerShape(width=96, layers=3, heads=4, dropout=0.1),
            views=16,
            epochs=70,
            batch_size=32,
            learning_rate=1e-3,
            weight_decay=0.05,
            noise=0.1,
            lvef_weight=3.0,
        ),
        bundle=BundleConfig(
            name=bundle,
            version="0.3.0",
            method=(
                "An equivariant neural field is fitted to the mid short-axis slice at end diastole and end systole; a small "
                "Transformer reads the fitted latents by their relative poses only, so that the answer does not turn with "
                f"the image. The probability of an ejection fraction of at most {LVEF_CONDITIONS[condition]:g} % comes with "
                "its Venn-Abers interval."
            ),
            intended_use=(
                "Shows the way from a short-axis cine stack to a report of the probability of a reduced ejection "
                "fraction. Not for clinical use."
            ),
            training_data="digital phantoms only, no patients",
            coverage_percent=None,
            golden_hearts=2,
        ),
    )


def preprocess(*, size_px: int) -> CmrSpec:
    """Return the preprocessing of all recipes of this method; they differ in the side of the crop."""
    return CmrSpec(
        kind="cmr",
        preprocess_version=2,
        size_px=size_px,
        pixel_spacing_mm=1.8,
        search_spacing_mm=3.0,
        slices_min=3,
        phases_min=8,
        motion_contrast_min=3.0,
        motion_fraction_min=0.3,
        ventricle_score_min=0.05,
        slice_score_min=0.15,
        percentile_low=1.0,
        percentile_high=99.0,
    )
