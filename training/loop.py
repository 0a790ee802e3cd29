"""The training loop: epochs over hearts, a checkpoint after each, the same numbers whether interrupted or not.

All randomness is drawn anew for every epoch from (seed, epoch), so a checkpoint holds no generator state.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
import torch
from torch import Tensor, nn

from training.checkpoint import RUN_NAME, Progress, resumed_epochs, save_checkpoint
from training.config import RunConfig, config_digest, describe
from training.data.batches import Batch, all_clips, training_batches
from training.data.heart_arrays import HeartArrays
from training.data.splits import Split
from training.optim import learning_rate_at, make_optimizer
from training.telemetry import EpochRecord, draw_curves, read_curves, write_curves

_log = structlog.get_logger()


class NonFiniteLossError(RuntimeError):
    """The loss is not a finite number; the weights are still those before this step."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one training run holds; model and optimizer change, the rest does not."""

    config: RunConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    arrays: HeartArrays
    split: Split

    @property
    def sha256(self) -> str:
        """Digest of all that decides the weights; two runs that may share a checkpoint have the same."""
        return run_digest(self.config, self.arrays)


def run_digest(config: RunConfig, arrays: HeartArrays) -> str:
    """Return the SHA-256 of a config and the data it is trained on."""
    return hashlib.sha256((config_digest(config) + arrays.sha256).encode()).hexdigest()


def train(config: RunConfig, arrays: HeartArrays, split: Split, out: Path) -> nn.Module:
    """Train to the end, from the checkpoint in ``out`` where there is one.

    Args:
        config: the run.
        arrays: prepared hearts.
        split: which hearts train and which validate.
        out: run folder; receives ``run.json``, ``checkpoint.*``, ``curves.csv`` and ``curve.png``.

    Returns:
        The trained network, in evaluation mode.

    Raises:
        ForeignRunError: when ``out`` holds another run.
        NonFiniteLossError: when a loss is NaN or infinite.
    """
    torch.manual_seed(config.seed)
    model: nn.Module = config.model()
    optimizer = make_optimizer(model, config.optim)
    run = Run(config=config, model=model, optimizer=optimizer, arrays=arrays, split=split)
    epochs_done = resumed_epochs(out, model, optimizer, run.sha256)
    if not epochs_done:
        out.mkdir(parents=True, exist_ok=True)
        (out / RUN_NAME).write_text(json.dumps(describe(config), indent=2) + "\n", encoding="utf-8")
    records = read_curves(out)[:epochs_done]
    for epoch in range(epochs_done, config.optim.epochs):
        records.append(run_epoch(run, epoch))
        write_curves(out, records)
        save_checkpoint(out, model, optimizer, Progress(epochs_done=epoch + 1, run_sha256=run.sha256))
    draw_curves(out / "curve.png", records)
    return model.eval()


def run_epoch(run: Run, epoch: int) -> EpochRecord:
    """Show the network every training heart once, then measure it on the validation hearts.

    Raises:
        NonFiniteLossError: before the step that would have used the loss.
        ValueError: when the training hearts do not fill one batch.
    """
    started = time.monotonic()
    optim = run.config.optim
    generator = _seed_epoch(run.config.seed, epoch)
    hearts = run.arrays.usable(run.split.train)
    steps = len(hearts) // optim.batch_size
    if steps == 0:
        raise ValueError(f"{len(hearts)} training hearts do not fill one batch of {optim.batch_size}")
    run.model.train()
    losses, rate = [], 0.0
    batches = training_batches(run.arrays, hearts, batch_size=optim.batch_size, seed=run.config.seed, epoch=epoch)
    for step, batch in enumerate(batches):
        rate = learning_rate_at(epoch * steps + step, optim.epochs * steps, optim)
        inputs = run.config.augment(batch.inputs, generator)
        losses.append(_step(run, Batch(inputs=inputs, targets=batch.targets), rate))
    record = EpochRecord(
        epoch=epoch, learning_rate=rate, train_loss=float(np.mean(losses)), validation_loss=_validation_loss(run)
    )
    _log_epoch(record, optim.epochs, time.monotonic() - started)
    return record


def _log_epoch(record: EpochRecord, epochs: int, elapsed_s: float) -> None:
    _log.info(
        "epoch.finished",
        epoch=f"{record.epoch + 1}/{epochs}",
        train_loss=round(record.train_loss, 4),
        validation_loss=round(record.validation_loss, 4),
        elapsed_s=round(elapsed_s, 1),
    )


def _seed_epoch(seed: int, epoch: int) -> torch.Generator:
    dropout_seed, augment_seed = np.random.SeedSequence([seed, epoch]).generate_state(2)
    torch.manual_seed(int(dropout_seed))
    return torch.Generator().manual_seed(int(augment_seed))


def _step(run: Run, batch: Batch, rate: float) -> float:
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=run.config.optim.autocast_bfloat16):
        outputs = run.model(batch.inputs)
    loss: Tensor = run.config.loss({name: value.float() for name, value in outputs.items()}, batch.targets)
    value = float(loss.item())
    if not math.isfinite(value):
        raise NonFiniteLossError(f"the loss is {value}; expected a finite number: lower the rate or check the data")
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), run.config.optim.gradient_clip, error_if_nonfinite=True)
    run.optimizer.step()
    return value


@torch.inference_mode()
def _validation_loss(run: Run) -> float:
    """Return the mean loss over all clips of the validation hearts, without augmentation."""
    run.model.eval()
    total, count = 0.0, 0
    hearts = run.arrays.usable(run.split.validation)
    for batch in all_clips(run.arrays, hearts, batch_size=run.config.optim.batch_size):
        total += float(run.config.loss(run.model(batch.inputs), batch.targets)) * len(batch.inputs)
        count += len(batch.inputs)
    return total / count
