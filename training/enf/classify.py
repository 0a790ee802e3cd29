"""Training of the invariant Transformer on the contexts of fitted views."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from training.data.targets import CENTRES, SPREADS
from training.enf.config import ClassifierConfig, EnfRun
from training.enf.latents import Latents
from training.models.invariant_transformer import InvariantTransformer
from training.models.latent_cloud import initial_cloud

_WARMUP = 0.1
_REPORT_EVERY = 10
_LVEF_BETA = 0.3
"""Spreads of the LVEF below which its error counts squared."""
_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Latents of hearts and what is known of them.

    Args:
        latents: fitted views.
        positive: bool [N].
        targets: float32 [N], 0 to 1, what the network is trained on.
        lvef_percent: float64 [N].
    """

    latents: Latents
    positive: NDArray[np.bool_]
    targets: NDArray[np.float32]
    lvef_percent: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Learner:
    """What is trained: the network, beside it a linear estimate of the LVEF that is not kept, and their optimiser."""

    network: InvariantTransformer
    estimate: nn.Linear | None
    optimizer: torch.optim.Optimizer

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of both."""
        return [*self.network.parameters(), *(self.estimate.parameters() if self.estimate is not None else ())]


def train_classifier(
    run: EnfRun,
    training: Labelled,
    validation: Labelled,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> InvariantTransformer:
    """Return the network of the epoch with the lowest validation loss on plain views."""
    torch.manual_seed(seed)
    config = run.classifier
    learner = _learner(run, training.latents)
    network = learner.network
    rng, best, kept = np.random.default_rng([seed, 7]), math.inf, network.state_dict()
    for epoch in range(config.epochs):
        _epoch(learner, training, config, epoch, rng)
        loss, accuracy = _measure(network, validation)
        if loss < best:
            best, kept = loss, copy.deepcopy(network.state_dict())
        if (epoch + 1) % _REPORT_EVERY == 0:
            _log.info("classifier.epoch", epoch=epoch + 1, validation_loss=round(loss, 4), accuracy=round(accuracy, 3))
            if progress is not None:
                progress(epoch + 1, config.epochs)
    network.load_state_dict(kept)
    return network.eval()


@torch.inference_mode()
def classifier_logits(network: InvariantTransformer, contexts_N2LC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return float64 [N]."""
    batches = torch.from_numpy(contexts_N2LC).split(64)
    return np.asarray(torch.cat([network(batch)["logit"][:, 0] for batch in batches]).double().numpy())


def new_classifier(run: EnfRun, latents: Latents) -> InvariantTransformer:
    """Return an untrained classifier that knows mean and spread of the training contexts."""
    contexts = torch.from_numpy(latents.contexts_NV2LC).flatten(0, -2)
    poses = initial_cloud(run.shape.latents, run.shape.context_width).poses
    spread = contexts.std(dim=0).clamp_min(1e-6)
    return InvariantTransformer(run.classifier.shape, poses, contexts.mean(dim=0), spread)


def _learner(run: EnfRun, latents: Latents) -> _Learner:
    config, network = run.classifier, new_classifier(run, latents)
    estimate = nn.Linear(config.shape.width, 1) if config.lvef_weight > 0.0 else None
    parameters = [*network.parameters(), *(estimate.parameters() if estimate is not None else ())]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return _Learner(network=network, estimate=estimate, optimizer=optimizer)


def _epoch(
    learner: _Learner, training: Labelled, config: ClassifierConfig, epoch: int, rng: np.random.Generator
) -> None:
    network = learner.network.train()
    order = rng.permutation(len(training.positive))
    batches = np.array_split(order, max(1, len(order) // config.batch_size))
    for step, rows in enumerate(batches):
        done = (epoch + step / len(batches)) / config.epochs
        for group in learner.optimizer.param_groups:
            group["lr"] = (
                config.learning_rate * min(1.0, (done + 1e-3) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
            )
        views = rng.integers(training.latents.contexts_NV2LC.shape[1], size=len(rows))
        contexts = torch.from_numpy(training.latents.contexts_NV2LC[rows, views])
        contexts = contexts + config.noise * torch.as_tensor(network.spread) * torch.randn_like(contexts)
        learner.optimizer.zero_grad(set_to_none=True)
        loss = _loss(learner, network(contexts), training, rows, config.lvef_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters, 1.0, error_if_nonfinite=True)
        learner.optimizer.step()


def _loss(
    learner: _Learner, outputs: dict[str, Tensor], training: Labelled, rows: NDArray[np.int64], lvef_weight: float
) -> Tensor:
    loss = binary_cross_entropy_with_logits(outputs["logit"][:, 0], torch.from_numpy(training.targets[rows]))
    if learner.estimate is None:
        return loss
    wanted = (training.lvef_percent[rows] - CENTRES["lvef"]) / SPREADS["lvef"]
    found = learner.estimate(outputs["pooled"])[:, 0]
    return loss + lvef_weight * smooth_l1_loss(found, torch.from_numpy(wanted.astype(np.float32)), beta=_LVEF_BETA)


def _measure(network: InvariantTransformer, validation: Labelled) -> tuple[float, float]:
    network.eval()
    logits = classifier_logits(network, validation.latents.contexts_NV2LC[:, 0])
    loss = (np.logaddexp(0.0, logits) - validation.targets * logits).mean()
    return float(loss), float(((logits > 0) == validation.positive).mean())
