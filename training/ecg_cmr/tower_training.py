"""Supervised pre-training of one CMR tower: what the heart measures, standardised, with what was not measured left out.

The trained tower is frozen afterwards (``frozen``) and the ECG learns to agree with it. A run resumes from its last epoch
to the same bits; all randomness is drawn anew for every epoch from (seed, epoch).

Letters: B subjects of a batch, N of a part, T targets, E width of the embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.checkpoint import Progress, load_checkpoint, resumed_epochs, save_checkpoint
from training.config import OptimConfig
from training.ecg_cmr.frozen import Frozen
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.tower_inputs import KIND, CmrAugment, Look, Seen, changed_alike, seen_by
from training.enf.descent import descend
from training.models.cmr_towers import SLICES, TowerSize, build_tower
from training.optim import learning_rate_at, make_optimizer
from training.telemetry import EpochRecord, read_curves, write_curves

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One tower's pre-training.

    Args:
        look: what it sees.
        size: of the tower.
        targets: names in the store.
        seed: of weights, order and random changes.
        optim: AdamW, warm-up, cosine.
        augment: random changes of training; None for none. Validation never has any.
        slices: of a volume.
    """

    look: Look
    size: TowerSize
    targets: tuple[str, ...]
    seed: int
    optim: OptimConfig
    augment: CmrAugment | None = field(default_factory=CmrAugment)
    slices: int = SLICES

    def tower(self) -> nn.Module:
        """Return the untrained tower."""
        return build_tower(KIND[self.look], self.size, slices=self.slices)


class SupervisedTower(nn.Module):
    """A tower, a linear head, and the scale of its targets.

    Args:
        tower: to [B, E].
        targets: T.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, tower: nn.Module, targets: int) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.width, targets)
        self.register_buffer("mean", torch.zeros(targets))
        self.register_buffer("spread", torch.ones(targets))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the targets in standard deviations from their mean, [B, T]."""
        standard: Tensor = self.head(self.tower(*inputs))
        return standard

    def in_units(self, *inputs: Tensor) -> Tensor:
        """Return the targets in their own units, [B, T]."""
        return self(*inputs) * self.spread + self.mean

    def standardised(self, targets_BT: Tensor) -> Tensor:
        """Return targets in standard deviations from the mean of the training part; NaN stays NaN."""
        return (targets_BT - self.mean) / self.spread


def masked_squares(predicted_BT: Tensor, target_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of squared errors over what was measured, and how many numbers that are.

    A missing number leaves out itself and nothing else of its subject.
    """
    measured = torch.isfinite(target_BT)
    error = torch.where(measured, predicted_BT - target_BT, 0.0)
    return error.square().sum(), measured.sum()


def target_scale(targets_NT: NDArray[np.float64], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each target over what was measured, [T] each.

    Raises:
        ValueError: a target was measured less than twice, or always with one value.
    """
    measured = np.isfinite(targets_NT)
    few = [name for name, count in zip(names, measured.sum(axis=0), strict=True) if count < 2]
    if few:
        raise ValueError(f"{', '.join(few)}: measured in less than two training subjects; leave it out of the targets")
    mean, spread = np.nanmean(targets_NT, axis=0), np.nanstd(targets_NT, axis=0)
    if constant := [name for name, value in zip(names, spread, strict=True) if value == 0]:
        raise ValueError(f"{', '.join(constant)}: the same in all training subjects; leave it out of the targets")
    return torch.from_numpy(mean).float(), torch.from_numpy(spread).float()


def train_tower(store: PairStore, config: TowerConfig, folder: Path) -> SupervisedTower:
    """Train to the end, from the checkpoint in ``folder`` where there is one; return it in evaluation mode.

    Only the training part of the store is learned from and scaled by, and only its validation part is measured on.

    Raises:
        ForeignRunError: ``folder`` holds another run.
        NonFiniteLossError: a loss is not finite.
        ValueError: the training part does not fill one batch, or a target cannot be scaled.
    """
    run = _Run.begun(store, config)
    done = resumed_epochs(folder, run.model, run.optimizer, run.sha256)
    records = read_curves(folder)[:done]
    for epoch in range(done, config.optim.epochs):
        records.append(_epoch(run, epoch))
        write_curves(folder, records)
        progress = Progress(epochs_done=epoch + 1, run_sha256=run.sha256)
        save_checkpoint(folder, run.model, run.optimizer, progress)
    return run.model.eval()


def frozen_tower(folder: Path, config: TowerConfig) -> Frozen:
    """Return the trained tower of a finished run, frozen; each tower has a folder of its own and none stands in for another.

    Raises:
        FileNotFoundError: no run in ``folder``.
        ValueError: the run is not finished.
    """
    model = SupervisedTower(config.tower(), len(config.targets))
    progress = load_checkpoint(folder, model, None)
    if progress is None:
        raise FileNotFoundError(f"no trained {config.look} tower in {folder}; train it first")
    if progress.epochs_done < config.optim.epochs:
        raise ValueError(f"{folder} holds {progress.epochs_done} of {config.optim.epochs} epochs; train it to the end")
    return Frozen(model.tower)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What does not change over a run, and the model and optimiser that do."""

    config: TowerConfig
    train: PairStore
    validation: PairStore
    standard_NT: Tensor
    model: SupervisedTower
    optimizer: torch.optim.AdamW
    sha256: str

    @classmethod
    def begun(cls, store: PairStore, config: TowerConfig) -> _Run:
        train, validation = store.subset("training"), store.subset("validation")
        if len(train) < config.optim.batch_size:
            raise ValueError(f"{len(train)} training subjects do not fill one batch of {config.optim.batch_size}")
        torch.manual_seed(config.seed)
        model = SupervisedTower(config.tower(), len(config.targets))
        targets_NT = train.targets(config.targets)
        model.mean, model.spread = target_scale(targets_NT, config.targets)
        return cls(
            config=config,
            train=train,
            validation=validation,
            standard_NT=model.standardised(torch.from_numpy(targets_NT).float()),
            model=model,
            optimizer=make_optimizer(model, config.optim),
            sha256=_digest(config, store.sha256),
        )


def _digest(config: TowerConfig, store_sha256: str) -> str:
    text = json.dumps(asdict(config) | {"store": store_sha256}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _epoch(run: _Run, epoch: int) -> EpochRecord:
    """Show every training subject once, then measure on the validation part without random changes."""
    config, optim = run.config, run.config.optim
    rng = np.random.default_rng([config.seed, epoch])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    torch.manual_seed(int(rng.integers(2**62)))
    order = rng.permutation(len(run.train))
    steps = len(order) // optim.batch_size
    squares, rate = np.zeros(2), 0.0
    run.model.train()
    for step, rows in enumerate(order[: steps * optim.batch_size].reshape(steps, -1)):
        rate = learning_rate_at(epoch * steps + step, optim.epochs * steps, optim)
        (seen,) = changed_alike([seen_by(run.train, config.look, rows.tolist())], config.augment, generator)
        total, count = _compared(run, seen, run.standard_NT[rows])
        if count > 0:
            loss = descend(run.model, run.optimizer, total / count, rate, optim.gradient_clip)
            squares += (loss * int(count), int(count))
    record = EpochRecord(
        epoch=epoch,
        learning_rate=rate,
        train_loss=float(squares[0] / max(squares[1], 1)),
        validation_loss=validation_loss(run.model, run.validation, config),
    )
    _log.info(
        "tower.epoch", look=config.look, epoch=f"{epoch + 1}/{optim.epochs}", loss=round(record.validation_loss, 4)
    )
    return record


def _compared(run: _Run, seen: Seen, standard_BT: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=run.config.optim.autocast_bfloat16):
        predicted_BT = run.model(*seen.arguments())
    return masked_squares(predicted_BT.float(), standard_BT)


@torch.inference_mode()
def validation_loss(model: SupervisedTower, store: PairStore, config: TowerConfig, *, batch: int = 32) -> float:
    """Return the mean squared error over every number that was measured, in variances; whatever the batch.

    Raises:
        ValueError: nothing was measured.
    """
    model.eval()
    total, count = 0.0, 0
    for predicted_BT, targets_BT in _answers(model, store, config, batch):
        squares, measured = masked_squares(predicted_BT, model.standardised(targets_BT))
        total, count = total + float(squares), count + int(measured)
    if count == 0:
        raise ValueError(f"none of {', '.join(config.targets)} was measured in {len(store)} validation subjects")
    return total / count


def _answers(
    model: SupervisedTower, store: PairStore, config: TowerConfig, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    targets_NT = torch.from_numpy(store.targets(config.targets)).float()
    for start in range(0, len(store), batch):
        rows = list(range(start, min(start + batch, len(store))))
        yield model(*seen_by(store, config.look, rows).arguments()).float(), targets_NT[rows]


@torch.inference_mode()
def measured_by(
    model: SupervisedTower, store: PairStore, config: TowerConfig, *, batch: int = 32
) -> NDArray[np.float64]:
    """Return what a trained tower measures, float64 [N, T] in the units of the store."""
    model.eval()
    found = [standard * model.spread + model.mean for standard, _ in _answers(model, store, config, batch)]
    return torch.cat(found).double().numpy()
