"""The five variants at two sizes: what they have in common stands once, so that they differ in what they look at alone.

Called by the recipes. Published: arXiv 2602.12883 and its predecessors; where a published value is a defect (targets that are
not scaled, end-systole taken for half of the beat, changes of the validation images) ours differs, as the modules say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from training.config import OptimConfig
from training.ecg_cmr.augment import EcgAugment
from training.ecg_cmr.config import ContrastStage, EcgCmrRun, MaeStage
from training.ecg_cmr.tower_inputs import ED_TARGETS, TARGETS, CmrAugment, Look
from training.ecg_cmr.tower_training import TowerConfig
from training.models.cmr_towers import TowerSize
from training.models.ecg_vit import EcgVitShape

Variant = Literal["ecg_only", "slice", "slice_time", "volume", "triplet"]

LOOKS: dict[Variant, tuple[Look, ...]] = {
    "ecg_only": (),
    "slice": ("slice",),
    "slice_time": ("slice_time",),
    "volume": ("ed_volume",),
    "triplet": ("ed_volume", "es_volume"),
}
_SEED = 21
_MILD = EcgAugment(gain=(0.95, 1.05), snr_db=(15.0, 35.0), lead_off_probability=0.02)
"""Of the small variants. Amplitude tells of the size of a heart: the gain changes by what a cart may be off (IEC 60601-2-25),
and noise and missing leads stay within what the quality gate lets pass."""
_SEEN: dict[Look, tuple[str, ...]] = {
    **TARGETS,
    "slice_time": (*ED_TARGETS, "lvesv", "lvsv", "rvesv", "rvsv", "lvef", "rvef"),
    "es_volume": ("lvesv", "rvesv", "lv_mass"),
}
"""Of the small variants: what the images show themselves. A stroke volume is in no single phase, an output in no image: they are
noise to a tower that trains on a thousand hearts."""


def small(variant: Variant) -> EcgCmrRun:
    """Return a variant that two CPU cores train: frozen towers are asked once, so a step costs what its ECGs cost."""
    return _run(
        f"ecg_cmr_{variant}_small",
        variant,
        "small",
        encoder=EcgVitShape.small(),
        mae=MaeStage(optim=_optim(epochs=20, batch=64, rate=1e-3, decay=0.05)),
        tower=_optim(epochs=30, batch=32, rate=1e-3, decay=0.05),
        contrast=_contrast(_optim(epochs=30, batch=64, rate=5e-4, decay=0.05), hidden=128, width=64),
        augment=_MILD,
        targets=_SEEN,
    )


def published(variant: Variant) -> EcgCmrRun:
    """Return a variant at the published sizes, for a GPU: size M of the ECG, ResNet50 of the images."""
    contrast = _contrast(_optim(epochs=200, batch=64, rate=1e-5, decay=1e-5), hidden=768, width=128)
    return _run(
        f"ecg_cmr_{variant}_published",
        variant,
        "published",
        encoder=EcgVitShape.medium(),
        mae=MaeStage(optim=_optim(epochs=250, batch=64, rate=1e-4, decay=1e-4, autocast=True)),
        tower=_optim(epochs=200, batch=96, rate=1e-4, decay=1e-5, autocast=True),
        contrast=replace(contrast, optim=replace(contrast.optim, autocast_bfloat16=True), cmr_augment=CmrAugment()),
    )


def _run(  # noqa: PLR0913 - the parts of a run
    recipe: str,
    variant: Variant,
    size: TowerSize,
    *,
    encoder: EcgVitShape,
    mae: MaeStage,
    tower: OptimConfig,
    contrast: ContrastStage,
    augment: EcgAugment | None = None,
    targets: Mapping[Look, tuple[str, ...]] = TARGETS,
) -> EcgCmrRun:
    looks = LOOKS[variant]
    towers = tuple(TowerConfig(look=look, size=size, targets=targets[look], seed=_SEED, optim=tower) for look in looks)
    form = replace(contrast, form="triplet" if len(looks) == 2 else "pairwise")
    return EcgCmrRun(
        recipe=recipe,
        seed=_SEED,
        encoder=encoder,
        augment=augment or EcgAugment(),
        mae=mae,
        towers=towers,
        contrast=form if looks else None,
    )


def _contrast(optim: OptimConfig, *, hidden: int, width: int) -> ContrastStage:
    return ContrastStage(optim=optim, form="pairwise", hidden=hidden, width=width)


def _optim(*, epochs: int, batch: int, rate: float, decay: float, autocast: bool = False) -> OptimConfig:
    return OptimConfig(
        epochs=epochs,
        batch_size=batch,
        learning_rate=rate,
        weight_decay=decay,
        warmup_fraction=0.1,
        gradient_clip=1.0,
        autocast_bfloat16=autocast,
    )
