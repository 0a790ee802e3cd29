"""A run of the method as one frozen value: five variants that differ in what they look at, of one trainer.

A recipe is a function without arguments that returns an ``EcgCmrRun``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from training.config import OptimConfig
from training.ecg_cmr.augment import EcgAugment
from training.ecg_cmr.losses import EQUAL, ContrastForm, PairWeights
from training.ecg_cmr.tower_inputs import CmrAugment
from training.ecg_cmr.tower_training import TowerConfig
from training.models.ecg_vit import EcgVitShape

ONE, BOTH = ("cmr",), ("ed", "es")
"""Names of the modalities beside the ECG: one tower, or one for each phase."""


@dataclass(frozen=True, kw_only=True)
class MaeStage:
    """Stage A: the encoder learns to rebuild what is hidden.

    Args:
        optim: of this stage.
        mask_share: of the patches, hidden.
        correlation_weight: of 1 - r in the loss.
    """

    optim: OptimConfig
    mask_share: float = 0.7
    correlation_weight: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ContrastStage:
    """Stage C: the ECG's embedding learns to find the cardiac MR of its patient.

    There is no accumulation over micro-batches: the batch is the set of negatives.

    Args:
        optim: of this stage; its batch is in patients.
        form: of the loss; ``pairwise`` for one tower, the others for two.
        temperature: tau, or where it starts.
        learned_temperature: whether it is learned.
        weights: of the pairs in the ``triplet`` form.
        margin: of the ``margin`` form, in cosines.
        hidden, width: of the projections that are thrown away afterwards.
        frozen: whether the towers stay as stage B left them.
        cmr_augment: random change of the images, the same for both phases; None lets frozen towers be asked only once.
    """

    optim: OptimConfig
    form: ContrastForm
    temperature: float = 0.07
    learned_temperature: bool = False
    weights: PairWeights = field(default_factory=lambda: EQUAL)
    margin: float = 0.2
    hidden: int
    width: int = 128
    frozen: bool = True
    cmr_augment: CmrAugment | None = None


@dataclass(frozen=True, kw_only=True)
class EcgCmrRun:
    """One variant.

    Args:
        recipe: name of the module in ``training.recipes``.
        seed: of weights, order, masks and random changes of stages A and C.
        encoder: sizes.
        augment: random change of the ECG in stages A and C; None for none.
        mae: stage A.
        towers: stage B, one for each tower: none, one, or end-diastole and end-systole in this order.
        contrast: stage C; None where there is no tower.

    Raises:
        ValueError: towers and form do not belong together.
    """

    recipe: str
    seed: int
    encoder: EcgVitShape
    augment: EcgAugment | None
    mae: MaeStage
    towers: tuple[TowerConfig, ...]
    contrast: ContrastStage | None

    def __post_init__(self) -> None:
        looks = tuple(tower.look for tower in self.towers)
        form = None if self.contrast is None else self.contrast.form
        two = looks == ("ed_volume", "es_volume")
        fits = {None: not looks, "pairwise": len(looks) == 1}.get(form, two)
        if not fits:
            msg = (
                f"towers look at {looks} and the contrast is {form}; expected no tower without contrast, one for the pairwise "
                "form, and ed_volume and es_volume for the others"
            )
            raise ValueError(msg)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the modalities beside the ECG, one a tower."""
        return BOTH if len(self.towers) == 2 else ONE[: len(self.towers)]


def digest(*parts: Any) -> str:
    """Return the SHA-256 of frozen dataclasses and texts."""
    plain = [part if isinstance(part, str | int) else asdict(part) for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def mae_digest(run: EcgCmrRun, store_sha256: str) -> str:
    """Return the SHA-256 of what decides stage A; variants that share it share the stage."""
    changes: Sequence[Any] = () if run.augment is None else (run.augment,)
    return digest("mae", run.seed, run.encoder, run.mae, *changes, store_sha256)


def run_sha256(run: EcgCmrRun, store_sha256: str) -> str:
    """Return the SHA-256 of what decides the weights of a run."""
    return digest(run, store_sha256)


def with_seed(run: EcgCmrRun, seed: int) -> EcgCmrRun:
    """Return the same run with another seed in every stage."""
    return replace(run, seed=seed, towers=tuple(replace(tower, seed=seed) for tower in run.towers))


def with_ecg_cmr_epochs(run: EcgCmrRun, epochs: int | None) -> EcgCmrRun:
    """Return the same run with another number of epochs in every stage, for trials; None leaves it as it is."""
    if epochs is None:
        return run
    contrast = run.contrast
    return replace(
        run,
        mae=replace(run.mae, optim=replace(run.mae.optim, epochs=epochs)),
        towers=tuple(replace(tower, optim=replace(tower.optim, epochs=epochs)) for tower in run.towers),
        contrast=None if contrast is None else replace(contrast, optim=replace(contrast.optim, epochs=epochs)),
    )
