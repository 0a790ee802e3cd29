"""A run as one frozen value: data, network, loss, optimiser and what the bundle will say.

A recipe is a function without arguments that returns a ``RunConfig``; nothing else configures a run.
Imports no torch: the callables that do are held, not called.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pydantic

from engines.preprocess.spec import PreprocessSpec
from engines.records import Modality

if TYPE_CHECKING:
    from training.coreecho.config import AnyEchoRun
    from training.ecg_cmr.config import EcgCmrRun
    from training.enf.config import EnfRun

RECIPES_PACKAGE = "training.recipes"


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Shares of the hearts, by heart, in this order; together 1."""

    train: float
    validation: float
    calibration: float
    test: float

    def __post_init__(self) -> None:
        shares = dataclasses.astuple(self)
        if min(shares) <= 0 or abs(sum(shares) - 1.0) > 1e-9:
            raise ValueError(f"split shares are {shares}; expected four positive numbers that sum to 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which digital hearts are drawn and how their records become arrays.

    Args:
        modality: which rendering of the heart.
        seed: names the set of hearts; heart i of a seed is always the same.
        hearts: how many.
        preprocess: the specification that travels with the weights.
        split: shares by heart.
    """

    modality: Modality
    seed: int
    hearts: int
    preprocess: PreprocessSpec
    split: SplitConfig


@dataclass(frozen=True, kw_only=True)
class ViewDataConfig(DataConfig):
    """Loops of all views instead of hearts: every second one is apical four-chamber, the others take turns.

    Args:
        frames: looked at in each loop, by training and by the view check alike.
    """

    frames: int


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Epochs, batch and AdamW; ``autocast_bfloat16`` runs the network's convolutions in half the bytes."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_fraction: float
    gradient_clip: float
    autocast_bfloat16: bool


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """What the manifest and the model card say of the engine; ``coverage_percent`` is that of the intervals of estimates."""

    name: str
    version: str
    method: str
    intended_use: str
    training_data: str
    coverage_percent: float | None
    golden_hearts: int


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What a run may be trained with besides its recipe.

    Args:
        data: folder of a data set or of a store, or None for the recipe's digital hearts.
        weights: file of published weights to start from, or None.
        device: such as ``cuda``.
    """

    data: Path | None = None
    weights: Path | None = None
    device: str = "cpu"


FROM_PHANTOMS = TrainingInputs()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the outcome of a training run.

    Args:
        recipe: name of the module in ``training.recipes``.
        seed: of the weights, the order of the hearts, dropout and augmentation.
        data: the hearts.
        model: makes the untrained network.
        loss: of named outputs and named targets.
        augment: of a batch of inputs and a generator; training only.
        optim: the optimiser.
        bundle: the release.
    """

    recipe: str
    seed: int
    data: DataConfig
    model: Callable[[], Any]
    loss: Callable[..., Any]
    augment: Callable[..., Any]
    optim: OptimConfig
    bundle: BundleConfig


if TYPE_CHECKING:
    AnyRun: TypeAlias = RunConfig | EnfRun | AnyEchoRun | EcgCmrRun


def load_recipe(name: str) -> AnyRun:
    """Return the run of a recipe: one network trained end to end, a neural field, a run on echo clips or on pairs.

    Raises:
        ValueError: when there is no such recipe.
    """
    if name not in recipe_names():
        raise ValueError(f"no recipe named {name!r}; expected one of {', '.join(recipe_names())}")
    config: AnyRun = importlib.import_module(f"{RECIPES_PACKAGE}.{name}").recipe()
    return config


def load_run(name: str) -> RunConfig:
    """Return the run config of a recipe that is one network trained end to end.

    Raises:
        ValueError: no such recipe.
        TypeError: another kind of run.
    """
    config = load_recipe(name)
    if not isinstance(config, RunConfig):
        raise TypeError(f"{name} is a {type(config).__name__}; expected a run of one network")
    return config


def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes, sorted."""
    package = importlib.import_module(RECIPES_PACKAGE)
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def with_size(config: RunConfig, *, hearts: int | None, epochs: int | None) -> RunConfig:
    """Return the same run with another number of hearts or epochs, for trials."""
    data = config.data if hearts is None else dataclasses.replace(config.data, hearts=hearts)
    optim = config.optim if epochs is None else dataclasses.replace(config.optim, epochs=epochs)
    return dataclasses.replace(config, data=data, optim=optim)


def describe(config: AnyRun) -> dict[str, Any]:
    """Return the run as plain JSON values: callables by name, the preprocess specification field by field."""
    described = _plain(config)
    assert isinstance(described, dict)
    return described


def describe_data(config: DataConfig) -> dict[str, Any]:
    """Return what decides the arrays of a data set, as plain JSON values (the split does not)."""
    described = _plain(config)
    assert isinstance(described, dict)
    return {name: value for name, value in described.items() if name != "split"}


def config_digest(config: AnyRun) -> str:
    """Return the SHA-256 of the described run."""
    return hashlib.sha256(json.dumps(describe(config), sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', repr(value))}"
    return value
