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
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from training.enf.config import ClassifierConfig, EnfRun
from training.enf.latents import Latents
from training.models.invariant_transformer import InvariantTransformer
from training.models.latent_cloud import initial_cloud

_WARMUP = 0.1
_REPORT_EVERY = 10
_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Latents of hearts and what is known of them.

    Args:
        latents: fitted views.
        positive: bool [N].
        targets: float32 [N], 0 to 1, what the network is trained on.
    """

    latents: Latents
    positive: NDArray[np.bool_]
    targets: NDArray[np.float32]


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
    network = new_classifier(run, training.latents)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    rng, best, kept = np.random.default_rng([seed, 7]), math.inf, network.state_dict()
    for epoch in range(config.epochs):
        _epoch(network, optimizer, training, config, epoch, rng)
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


def _epoch(  # noqa: PLR0913, PLR0917 - a network, its optimiser, data, settings, time and chance
    network: InvariantTransformer,
    optimizer: torch.optim.Optimizer,
    training: Labelled,
    config: ClassifierConfig,
    epoch: int,
    rng: np.random.Generator,
) -> None:
    network.train()
    order = rng.permutation(len(training.positive))
    batches = np.array_split(order, max(1, len(order) // config.batch_size))
    for step, rows in enumerate(batches):
        done = (epoch + step / len(batches)) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = (
                config.learning_rate * min(1.0, (done + 1e-3) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
            )
        views = rng.integers(training.latents.contexts_NV2LC.shape[1], size=len(rows))
        contexts = torch.from_numpy(training.latents.contexts_NV2LC[rows, views])
        contexts = contexts + config.noise * torch.as_tensor(network.spread) * torch.randn_like(contexts)
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(network(contexts), torch.from_numpy(training.targets[rows]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()


def _loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(outputs["logit"][:, 0], targets)


def _measure(network: InvariantTransformer, validation: Labelled) -> tuple[float, float]:
    network.eval()
    logits = classifier_logits(network, validation.latents.contexts_NV2LC[:, 0])
    loss = (np.logaddexp(0.0, logits) - validation.targets * logits).mean()
    return float(loss), float(((logits > 0) == validation.positive).mean())
