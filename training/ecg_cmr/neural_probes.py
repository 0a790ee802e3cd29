"""The MLP probe on embeddings, and fine-tuning of a whole encoder: one loop, one masked loss, chosen on validation.

Called by the study. Frozen means frozen: no gradient and no batch statistic of the encoder moves. The loss that is reported
is the mean over the values that are known, whatever the sizes of the batches.

Letters: N rows, B rows of a batch, E width of the embedding, T targets, D conditions.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.ecg_cmr.evaluation import Answers
from training.ecg_cmr.probes import Part, Parts, Probed, Scale

_ASK_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a head, or a head and its encoder, is trained.

    Args:
        learning_rates, weight_decays: the grid; the validation part chooses.
        batch_rows: of a step.
        epochs: at most.
        patience: epochs without a better validation loss before training ends.
        seed: of weights and order.
        device: where it runs.
    """

    learning_rates: tuple[float, ...] = (1e-3, 1e-4)
    weight_decays: tuple[float, ...] = (1e-4,)
    batch_rows: int = 64
    epochs: int = 200
    patience: int = 15
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse a grid without a point."""
        if not (self.learning_rates and self.weight_decays) or min(self.batch_rows, self.epochs, self.patience) < 1:
            raise ValueError("expected at least one learning rate, weight decay, row, epoch and epoch of patience")


PEER_MLP = FitOptions()
"""AdamW, at most 200 epochs, patience 15, batch 64: the published MLP probe."""
FINE_TUNING = replace(PEER_MLP, learning_rates=(1e-4, 3e-5), epochs=50, patience=8)


class Probe(nn.Module):
    """Encoder and head; a frozen encoder stays in evaluation mode whatever mode is asked for."""

    def __init__(self, encoder: nn.Module, head: nn.Module, *, frozen: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.frozen = encoder, head, frozen
        for weight in encoder.parameters():
            weight.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Probe:  # noqa: FBT002 - torch's own signature
        """Set the mode of the head, and of an encoder that is trained."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return standardised targets and logits, [B, T + D]."""
        return self.head(self.encoder(inputs))


def mlp_probe(parts: Parts, options: FitOptions = PEER_MLP) -> Probed:
    """Return an MLP of two hidden layers (E/2, E/4, GELU) on frozen embeddings [N, E]."""
    scale = Scale.of(parts.train.inputs)
    scaled = Parts(**{name: _scaled(getattr(parts, name), scale) for name in ("train", "validation", "test")})
    width, outputs = parts.train.inputs.shape[1], _outputs(parts.train)

    def build() -> Probe:
        wide, narrow = max(width // 2, 8), max(width // 4, 8)
        layers = [nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, narrow), nn.GELU(), nn.Linear(narrow, outputs)]
        return Probe(nn.Identity(), nn.Sequential(*layers), frozen=True)

    return _probed(build, scaled, options)


def _scaled(part: Part, scale: Scale) -> Part:
    return Part(inputs=scale.to(part.inputs).astype(np.float32), cohort=part.cohort)


def fine_tune(
    encoder: nn.Module, embedding_size: int, parts: Parts, *, frozen: bool = False, options: FitOptions = FINE_TUNING
) -> Probed:
    """Return a linear head on an encoder that is trained with it, or on the same encoder frozen.

    Args:
        encoder: ECGs to embeddings [B, E]; it is copied, the one given stays as it is.
        embedding_size: E.
        parts: ECGs as the encoder takes them, float32; no augmentation is drawn in any part.
        frozen: leave the encoder as it is.
        options: of the training.
    """
    outputs = _outputs(parts.train)

    def build() -> Probe:
        return Probe(copy.deepcopy(encoder), nn.Linear(embedding_size, outputs), frozen=frozen)

    return _probed(build, parts, options)


def _outputs(part: Part) -> int:
    return len(part.cohort.targets) + len(part.cohort.conditions)


def _probed(build: Callable[[], Probe], parts: Parts, options: FitOptions) -> Probed:
    """The best point of the grid on the validation part, asked about the test part."""
    scale = Scale.of(parts.train.cohort.truth_NT)
    tried = [
        (*_trained(build, parts, scale, replace(options, learning_rates=(rate,), weight_decays=(decay,))), rate, decay)
        for rate, decay in itertools.product(options.learning_rates, options.weight_decays)
    ]
    loss, epoch, network, rate, decay = min(tried, key=lambda each: each[0])
    words = f"learning rate {rate:g}, weight decay {decay:g}, epoch {epoch} of at most {options.epochs}, validation loss {loss:.4f}"
    return Probed(answers=_answers(network, parts.test, scale, options.device), chosen=(words,))


def _trained(build: Callable[[], Probe], parts: Parts, scale: Scale, options: FitOptions) -> tuple[float, int, Probe]:
    """Lowest validation loss, its epoch, and the network as it was then."""
    torch.manual_seed(options.seed)
    network = build().to(options.device)
    optimizer = torch.optim.AdamW(
        [weight for weight in network.parameters() if weight.requires_grad],
        lr=options.learning_rates[0],
        weight_decay=options.weight_decays[0],
    )
    best, weights = (math.inf, 0), copy.deepcopy(network.state_dict())
    for epoch in range(1, options.epochs + 1):
        train_epoch(network, parts.train, scale, optimizer, replace(options, seed=options.seed + epoch))
        loss = mean_loss(network, parts.validation, scale, options.device)
        if loss < best[0]:
            best, weights = (loss, epoch), copy.deepcopy(network.state_dict())
        if epoch - best[1] >= options.patience:
            break
    if not best[1]:
        raise ValueError("no validation loss is finite: the validation part knows no target and no condition")
    network.load_state_dict(weights)
    return (*best, network)


def train_epoch(
    network: nn.Module, part: Part, scale: Scale, optimizer: torch.optim.Optimizer, options: FitOptions
) -> float:
    """Take one step a batch over all rows once, and return the mean loss over the known values.

    Raises:
        FloatingPointError: a loss is not finite; no step was taken with it.
    """
    network.train()
    order = np.random.default_rng(options.seed).permutation(len(part.inputs))
    total, count = 0.0, 0
    for rows in np.array_split(order, math.ceil(len(order) / options.batch_rows)):
        summed, known = _loss(network, part, rows, scale, options.device)
        if not known:
            continue
        if not torch.isfinite(summed):
            raise FloatingPointError(f"the loss of a probe is {summed.item()}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        (summed / known).backward()
        optimizer.step()
        total, count = total + summed.item(), count + known
    return total / count if count else math.nan


@torch.inference_mode()
def mean_loss(network: nn.Module, part: Part, scale: Scale, device: str) -> float:
    """Return the mean loss over the known values of a part, network in evaluation mode; NaN where none is known."""
    network.eval()
    found = [_loss(network, part, rows, scale, device) for rows in _chunks(part)]
    count = sum(known for _, known in found)
    return float(sum(summed.item() for summed, _ in found) / count) if count else math.nan


def _chunks(part: Part) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(part.inputs), _ASK_ROWS):
        yield np.arange(start, min(start + _ASK_ROWS, len(part.inputs)))


def _loss(network: nn.Module, part: Part, rows: NDArray[np.int64], scale: Scale, device: str) -> tuple[Tensor, int]:
    """Sum over the known values of squared error (standardised targets) and cross-entropy (labels), and their number."""
    cohort = part.cohort
    wanted = np.concatenate([scale.to(cohort.truth_NT[rows]), cohort.label_ND[rows]], axis=1)
    known = torch.from_numpy(np.isfinite(wanted)).to(device)
    truth = torch.from_numpy(np.nan_to_num(wanted).astype(np.float32)).to(device)
    given = network(_tensor(part.inputs[rows], device)).float()
    count = len(cohort.targets)
    squared = (given[:, :count] - truth[:, :count]) ** 2
    entropy = nn.functional.binary_cross_entropy_with_logits(given[:, count:], truth[:, count:], reduction="none")
    each = torch.where(known, torch.cat([squared, entropy], dim=1), 0.0)
    return each.sum(), int(known.sum())


def _tensor(inputs: NDArray[np.floating], device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(inputs, np.float32)).to(device)


@torch.inference_mode()
def _answers(network: nn.Module, part: Part, scale: Scale, device: str) -> Answers:
    network.eval()
    given = torch.cat([network(_tensor(part.inputs[rows], device)).double().cpu() for rows in _chunks(part)])
    count = len(part.cohort.targets)
    return Answers(
        cohort=part.cohort,
        given_NT=scale.back(given[:, :count].numpy()),
        probability_ND=torch.sigmoid(given[:, count:]).numpy(),
    )
