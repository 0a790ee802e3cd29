"""What is stepped in each stage, and by which loss: the contrast, the probe, and the baseline.

``stages`` runs them over epochs. Every loss is known before any weight moves; one that is not finite stops the run.

Source: CoReEcho (Maani et al., MICCAI 2024) for the two stages; EchoCoTr (Muhtaseb and Yaqub, MICCAI 2022) for the baseline.

Letters: B clips, T frames, S pixels, E width of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.coreecho.config import AnyEchoRun, BaselineRun, CoReEchoRun, StepSchedule
from training.coreecho.distributed import gathered, parallel
from training.coreecho.networks import EchoNetwork, freeze
from training.coreecho.rank_n_contrast import rank_n_contrast_loss, rank_n_contrast_loss_sorted
from training.loop import NonFiniteLossError
from training.models.coreecho_net import normalised

_DENSE_MAX = 256
"""Clips up to which all triples are compared at once; more are sorted."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of one step; ``contrast`` is NaN in a stage without it."""

    contrast: float
    regression: float


class Stage(Protocol):
    """A part of a run: what is stepped, on how many clips, for how long."""

    @property
    def name(self) -> str:
        """Of its folder."""

    @property
    def number(self) -> int:
        """Sets its random numbers apart."""

    @property
    def epochs(self) -> int:
        """Passes over the videos."""

    @property
    def batch_videos(self) -> int:
        """Of all processes together."""

    @property
    def views(self) -> int:
        """Clips of a video in a batch."""

    @property
    def schedule(self) -> StepSchedule:
        """Of every optimiser."""

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By the name of what they step."""

    def begin_epoch(self) -> None:
        """Put every part into training or evaluation mode."""

    def step(self, clips_B1TSS: Tensor, ef_B: Tensor) -> Losses:
        """Take one step and return its losses.

        Raises:
            NonFiniteLossError: before any weight is changed.
        """


class ContrastStep:
    """Stage 1. The regressor sees detached embeddings, so the encoder learns by the contrast alone."""

    name, number, views = "stage1", 1, 2

    def __init__(self, run: CoReEchoRun, network: EchoNetwork) -> None:
        stage = run.stage1
        self.epochs, self.batch_videos, self.schedule = stage.epochs, stage.batch_videos, stage.schedule
        self._run, self._network = run, network
        self.optimizers = {
            "encoder": _adamw(network.encoder, stage.schedule, stage.weight_decay),
            "regressor": _adamw(network.regressor, stage.schedule, stage.weight_decay),
        }
        self._encoder = _fast(parallel(network.encoder), run)
        self._regressor = parallel(network.regressor)

    def begin_epoch(self) -> None:
        """Train both parts."""
        self._network.train()

    def step(self, clips_B1TSS: Tensor, ef_B: Tensor) -> Losses:
        """Step the encoder by the contrast, then the regressor by L1 on the embeddings from before that step.

        Both losses are known before either step, so that one that is not finite leaves every weight as it was.
        """
        embeddings_BE = _embeddings(self._encoder, clips_B1TSS, self._run)
        contrast = contrast_loss(embeddings_BE, ef_B, self._run.stage1.temperature)
        regression = functional.l1_loss(self._regressor(embeddings_BE.detach())[:, 0], ef_B)
        losses = _finite(contrast=contrast, regression=regression)
        _descend(self.optimizers["encoder"], contrast)
        _descend(self.optimizers["regressor"], regression)
        return losses


class ProbeStep:
    """Stage 2. The encoder is frozen in evaluation mode; the regressor goes on by L1."""

    name, number, views = "stage2", 2, 1

    def __init__(self, run: CoReEchoRun, network: EchoNetwork) -> None:
        stage = run.stage2
        self.epochs, self.batch_videos, self.schedule = stage.epochs, stage.batch_videos, stage.schedule
        self._run, self._network = run, network
        freeze(network.encoder)
        self.optimizers = {"regressor": _adamw(network.regressor, stage.schedule, stage.weight_decay)}
        self._regressor = parallel(network.regressor)

    def begin_epoch(self) -> None:
        """Train the regressor alone."""
        self._network.encoder.eval()
        self._network.regressor.train()

    def step(self, clips_B1TSS: Tensor, ef_B: Tensor) -> Losses:
        """Step the regressor."""
        with torch.no_grad():
            embeddings_BE = _embeddings(self._network.encoder, clips_B1TSS, self._run)
        regression = functional.l1_loss(self._regressor(embeddings_BE)[:, 0], ef_B)
        losses = _finite(regression=regression)
        _descend(self.optimizers["regressor"], regression)
        return losses


class EndToEndStep:
    """The baseline: everything by one loss on the ejection fraction."""

    name, number = "fit", 1

    def __init__(self, run: BaselineRun, network: EchoNetwork) -> None:
        stage = run.fit
        self.epochs, self.batch_videos, self.schedule = stage.epochs, stage.batch_videos, stage.schedule
        self.views = stage.views
        self._run, self._network = run, network
        make = _adamw if stage.optimiser == "adamw" else _sgd
        self.optimizers = {"network": make(network, stage.schedule, stage.weight_decay)}
        self._parallel = _fast(parallel(network), run)
        self._loss = functional.l1_loss if stage.loss == "l1" else functional.mse_loss

    def begin_epoch(self) -> None:
        """Train everything."""
        self._network.train()

    def step(self, clips_B1TSS: Tensor, ef_B: Tensor) -> Losses:
        """Step the network."""
        with _autocast(self._run, clips_B1TSS.device):
            given_B1 = self._parallel(clips_B1TSS)["ef"]
        regression = self._loss(given_B1[:, 0].float(), ef_B)
        losses = _finite(regression=regression)
        _descend(self.optimizers["network"], regression)
        return losses


def contrast_loss(embeddings_BE: Tensor, ef_B: Tensor, temperature: float) -> Tensor:
    """Return Rank-N-Contrast over the clips of all processes, in single precision."""
    rows, labels = gathered(embeddings_BE.float()), gathered(ef_B)
    loss = rank_n_contrast_loss if len(rows) <= _DENSE_MAX else rank_n_contrast_loss_sorted
    return loss(rows, labels, temperature=temperature)


def _embeddings(encoder: nn.Module, clips_B1TSS: Tensor, run: AnyEchoRun) -> Tensor:
    with _autocast(run, clips_B1TSS.device):
        embeddings: Tensor = encoder(normalised(clips_B1TSS)).embedding
    return embeddings.float()


def _autocast(run: AnyEchoRun, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.speed.autocast_bfloat16)


def _fast(network: nn.Module, run: AnyEchoRun) -> nn.Module:
    compiled: nn.Module = torch.compile(network) if run.speed.compile else network
    return compiled


def _adamw(network: nn.Module, schedule: StepSchedule, weight_decay: float) -> torch.optim.Optimizer:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=schedule.learning_rate, weight_decay=weight_decay)


def _sgd(network: nn.Module, schedule: StepSchedule, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=schedule.learning_rate, momentum=0.9, weight_decay=weight_decay)


def _finite(*, regression: Tensor, contrast: Tensor | None = None) -> Losses:
    losses = Losses(
        contrast=float("nan") if contrast is None else float(contrast.detach()), regression=float(regression.detach())
    )
    named = {"regression": losses.regression} if contrast is None else vars(losses)
    wrong = {name: value for name, value in named.items() if not np.isfinite(value)}
    if wrong:
        raise NonFiniteLossError(f"losses are {wrong}; expected finite numbers: lower the rate or check the data")
    return losses


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step; a gradient that is not finite stops the run before it."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(gradients, float("inf"))
    if not bool(torch.isfinite(norm)):
        raise NonFiniteLossError(f"the norm of the gradient is {float(norm)}; expected a finite number")
    optimizer.step()
