"""A run of the Equivariant Neural Field as one frozen value: hearts, field, fit, classifier, release.

A recipe is a function without arguments that returns an ``EnfRun``. Another task is another recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from engines.preprocess.spec import CmrSpec
from training.config import BundleConfig, DataConfig
from training.data.targets import LVEF_CONDITIONS
from training.models.enf import EnfShape
from training.models.invariant_transformer import TransformerShape


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which hearts are positive: those with the ``condition``, a key of ``LVEF_CONDITIONS``.

    All models are trained on the same targets. One slice does not tell 39 from 41 %, so a heart near the threshold is a
    target between 0 and 1: the probability that its ejection fraction, measured with an error of ``blur_percent``
    (standard deviation), lies at or below the threshold. They are judged by the condition itself.

    Raises:
        ValueError: an unknown condition, or no positive error.
    """

    condition: str
    blur_percent: float

    def __post_init__(self) -> None:
        if self.condition not in LVEF_CONDITIONS:
            msg = f"no condition is called {self.condition!r}; expected one of {', '.join(LVEF_CONDITIONS)}"
            raise ValueError(msg)
        if not self.blur_percent > 0.0:
            msg = f"blur_percent is {self.blur_percent}; expected a positive number of percentage points"
            raise ValueError(msg)

    def targets(self, lvef_percent: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return what the models are trained on, float32 [N], 0 to 1."""
        return np.asarray(ndtr((self.threshold_percent - lvef_percent) / self.blur_percent), np.float32)

    @property
    def threshold_percent(self) -> float:
        """Hearts with an ejection fraction at or below it are positive."""
        return LVEF_CONDITIONS[self.condition]


@dataclass(frozen=True, kw_only=True)
class FieldFit:
    """The inner loop: gradient steps on the contexts of one frame, poses frozen.

    Args:
        steps: T.
        learning_rate: of the contexts; the loss is the mean over pixels.
    """

    steps: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """The outer loop: the decoder learns to be fitted in ``FieldFit.steps`` steps.

    Args:
        iterations: outer steps.
        batch_frames: frames of a step.
        pixel_fraction: share of the orbits of pixels drawn for a step.
        order: "second" differentiates through the inner steps, "first" takes the fitted contexts for constants.
        learning_rate: of Adam, after warm-up, falling along a cosine.
        warmup_fraction: of the iterations.
        gradient_clip: largest norm of the gradient.
    """

    iterations: int
    batch_frames: int
    pixel_fraction: float
    order: Literal["first", "second"]
    learning_rate: float
    warmup_fraction: float
    gradient_clip: float


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Training of the classifier on the latents of turned and shifted views.

    Args:
        shape: of the Transformer.
        views: fits of each training heart: the plain view and ``views - 1`` random ones.
        epochs: passes over hearts; each takes one random view of every heart.
        batch_size: hearts of a step.
        learning_rate: of AdamW, after warm-up, falling along a cosine.
        weight_decay: of AdamW.
        noise: standard deviation of noise on the standardised contexts.
        lvef_weight: of the error of a linear estimate of the LVEF from the pooled tokens, beside the loss of the class: a
            heart says more by its LVEF than by its class. 0 trains on the class alone, as the comparison does with all models.
    """

    shape: TransformerShape
    views: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    noise: float
    lvef_weight: float


@dataclass(frozen=True, kw_only=True)
class EnfRun:
    """Everything that decides the outcome.

    Args:
        recipe: name of the module in ``training.recipes``.
        seed: of weights, batches and views.
        task: what is positive.
        data: hearts of the release; the protocol brings its own.
        shape: of the decoder.
        fit: inner loop.
        meta: outer loop.
        classifier: on the latents.
        bundle: the release.
    """

    recipe: str
    seed: int
    task: Task
    data: DataConfig
    shape: EnfShape
    fit: FieldFit
    meta: MetaConfig
    classifier: ClassifierConfig
    bundle: BundleConfig

    @property
    def preprocess(self) -> CmrSpec:
        """How the hearts are prepared."""
        spec = self.data.preprocess
        assert isinstance(spec, CmrSpec)
        return spec


def with_enf_size(run: EnfRun, *, hearts: int | None, epochs: int | None) -> EnfRun:
    """Return the same run with another number of hearts or of the classifier's epochs, for trials."""
    data = run.data if hearts is None else replace(run.data, hearts=hearts)
    classifier = run.classifier if epochs is None else replace(run.classifier, epochs=epochs)
    return replace(run, data=data, classifier=classifier)
