"""A run on echo clips as one frozen value: CoReEcho in two stages, or one network trained end to end.

A recipe is a function without arguments that returns a ``CoReEchoRun`` or a ``BaselineRun``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from engines.preprocess.spec import EchoSpec
from training.config import BundleConfig, DataConfig, describe
from training.coreecho.clips import ClipShape
from training.models.uniformer import UniFormerShape


@dataclass(frozen=True, kw_only=True)
class R2Plus1dShape:
    """R(2+1)D with 18 layers at its published widths, or a small one of the same kind."""

    size: Literal["published", "small"]


EncoderShape = UniFormerShape | R2Plus1dShape


@dataclass(frozen=True, kw_only=True)
class StepSchedule:
    """A learning rate that falls by a factor at an epoch, counted from 0, and again each time as many epochs have passed.

    Args:
        learning_rate: of the first epochs.
        decay_epoch: first epoch of the lower rate; None keeps the rate.
        decay_factor: what the rate is multiplied with.
        repeated: again after each further ``decay_epoch`` epochs.
    """

    learning_rate: float
    decay_epoch: int | None
    decay_factor: float
    repeated: bool

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        if self.decay_epoch is None:
            return self.learning_rate
        falls = epoch // self.decay_epoch
        return self.learning_rate * self.decay_factor ** (falls if self.repeated else min(falls, 1))


@dataclass(frozen=True, kw_only=True)
class ContrastStage:
    """Stage 1: the encoder learns by Rank-N-Contrast, the regressor by L1 on detached embeddings.

    Args:
        epochs: passes over the videos.
        batch_videos: of all processes together; each video gives two clips.
        schedule: of both optimisers.
        weight_decay: of AdamW, on everything.
        temperature: tau of the contrast.
    """

    epochs: int
    batch_videos: int
    schedule: StepSchedule
    weight_decay: float
    temperature: float


@dataclass(frozen=True, kw_only=True)
class ProbeStage:
    """Stage 2: the encoder is frozen, the regressor goes on from its weights of stage 1 by L1, one clip a video."""

    epochs: int
    batch_videos: int
    schedule: StepSchedule
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class EndToEndStage:
    """The baseline: encoder and its linear head by one loss on the ejection fraction.

    Args:
        epochs: passes over the videos.
        batch_videos: of all processes together.
        views: clips of a video in a batch, 1 or 2.
        loss: absolute or squared error.
        optimiser: AdamW, or SGD with a momentum of 0.9.
        schedule: of the optimiser.
        weight_decay: on everything.
    """

    epochs: int
    batch_videos: int
    views: Literal[1, 2]
    loss: Literal["l1", "mse"]
    optimiser: Literal["adamw", "sgd"]
    schedule: StepSchedule
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a GPU may do to be faster; the weights differ in their last digits."""

    autocast_bfloat16: bool
    compile: bool


@dataclass(frozen=True, kw_only=True)
class EchoRun:
    """What both kinds of run have.

    Args:
        recipe: name of the module in ``training.recipes``.
        seed: of weights, clips, order of the videos and dropout.
        data: hearts of the release, and how a loop becomes clips at serving.
        encoder: shape of the network.
        weights: file of published weights that the encoder starts from; None for random ones.
        start_percent: what an untrained network answers, about.
        clips: frames of a clip and the time between them.
        translation_px: largest random shift of a training clip, the same for all its frames.
        validation_clips: fixed clips of a video whose answers are averaged.
        speed: switches for a GPU.
        bundle: the release.
    """

    recipe: str
    seed: int
    data: DataConfig
    encoder: EncoderShape
    weights: str | None
    start_percent: float
    clips: ClipShape
    translation_px: int
    validation_clips: int
    speed: Speed
    bundle: BundleConfig

    @property
    def preprocess(self) -> EchoSpec:
        """How loops are prepared."""
        spec = self.data.preprocess
        assert isinstance(spec, EchoSpec)
        return spec


@dataclass(frozen=True, kw_only=True)
class CoReEchoRun(EchoRun):
    """Contrast, then probing; ``dropout`` is that of the regressor."""

    dropout: float
    stage1: ContrastStage
    stage2: ProbeStage


@dataclass(frozen=True, kw_only=True)
class BaselineRun(EchoRun):
    """One network trained end to end."""

    fit: EndToEndStage


AnyEchoRun = CoReEchoRun | BaselineRun


def with_echo_size(run: AnyEchoRun, *, hearts: int | None, epochs: int | None) -> AnyEchoRun:
    """Return the same run with another number of hearts or of epochs of its main stage, for trials."""
    sized = run if hearts is None else replace(run, data=replace(run.data, hearts=hearts))
    if epochs is None:
        return sized
    if isinstance(sized, CoReEchoRun):
        return replace(sized, stage1=replace(sized.stage1, epochs=epochs))
    return replace(sized, fit=replace(sized.fit, epochs=epochs))


def with_weights(run: AnyEchoRun, weights: Path | None) -> AnyEchoRun:
    """Return the same run from a file of published weights; None leaves it as it is."""
    return run if weights is None else replace(run, weights=str(weights))


def with_speed(run: AnyEchoRun, *, fast: bool) -> AnyEchoRun:
    """Return the same run in bfloat16 and compiled; without ``fast`` as it is."""
    return replace(run, speed=Speed(autocast_bfloat16=True, compile=True)) if fast else run


def training_digest(run: AnyEchoRun, *data_sha256: str) -> str:
    """Return the SHA-256 of what decides the weights: the run without its release, the file it starts from, the videos."""
    described = {name: value for name, value in describe(run).items() if name not in {"bundle", "data", "weights"}}
    weights = None if run.weights is None else hashlib.sha256(Path(run.weights).read_bytes()).hexdigest()
    text = json.dumps([described, describe(run)["data"]["preprocess"], weights, data_sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
