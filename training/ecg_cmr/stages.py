"""The trainer of all five variants: masked autoencoder, towers, contrast. A run ends the same whether interrupted or not.

All randomness is drawn anew for every epoch from (seed, stage, epoch), so a checkpoint holds no generator state. A stage's
folder is named by what decides its weights, so variants that begin alike share it. What is trained stands in ``steps``;
stage B is ``tower_training``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from training.checkpoint import BEST_NAME, Progress, claim_folder, keep_best, resumed_epochs, save_checkpoint
from training.curves import Row, best_epoch, draw_rows, read_rows, write_rows
from training.ecg_cmr.alignment import Aligned
from training.ecg_cmr.config import EcgCmrRun, digest, mae_digest, run_sha256
from training.ecg_cmr.frozen import Frozen
from training.ecg_cmr.steps import ContrastStep, MaeStep, Numbers, Stage, drawn_rows
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.tower_training import TowerConfig, frozen_tower, train_tower
from training.enf.descent import descend
from training.models.ecg_vit import EcgMae, EcgVit
from training.optim import learning_rate_at, make_optimizer

Progressed = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainedEcg:
    """A finished run, on the CPU and in evaluation mode.

    Attributes:
        encoder: ECG to embedding.
        aligned: with towers and projections; None for the variant without cardiac MR.
        seconds: of stages A and C, those of earlier processes too.
    """

    encoder: EcgVit
    aligned: Aligned | None
    seconds: float


def train_ecg_cmr(  # noqa: PLR0913 - a run, its data, where it lives, and what it may use
    run: EcgCmrRun,
    store: PairStore,
    folder: Path,
    *,
    shared: Path | None = None,
    device: str = "cpu",
    progress: Progressed | None = None,
) -> TrainedEcg:
    """Train a variant to its end, from what is in its folders.

    Args:
        run: the recipe.
        store: pairs; one split by patient serves every stage.
        folder: receives ``run.json`` and the stage of the contrast with checkpoint, curve and best weights.
        shared: receives the stages that variants have in common; None for ``folder``. One process at a time.
        device: of stages A and C.
        progress: is told of every epoch.

    Raises:
        ForeignRunError: the folder holds another run.
        NonFiniteLossError: a loss is NaN or infinite.
        ValueError: the training part does not fill a batch.
    """
    tell, home = progress or _silent, shared or folder
    claim_folder(folder, _about(run, store))
    encoder, seconds = pretrained_ecg(run, store, home, device=device, progress=tell)
    if run.contrast is None:
        return TrainedEcg(encoder=encoder.cpu().eval(), aligned=None, seconds=seconds)
    towers = {name: tower_of(config, store, home) for name, config in zip(run.names, run.towers, strict=True)}
    if not run.contrast.frozen:
        towers = {name: tower.network.requires_grad_(requires_grad=True) for name, tower in towers.items()}
    torch.manual_seed(run.seed)
    network = Aligned(encoder, towers, run.contrast).to(device)
    stage = ContrastStep(run, network, store)
    seconds += run_stage(_Job(stage, store, run.seed, folder / stage.name, run_sha256(run, store.sha256)), tell)
    network.cpu().eval()
    return TrainedEcg(encoder=encoder, aligned=network, seconds=seconds)


def pretrained_ecg(
    run: EcgCmrRun, store: PairStore, home: Path, *, device: str = "cpu", progress: Progressed | None = None
) -> tuple[EcgVit, float]:
    """Return the encoder that stage A of a run leaves, training what is missing, and the seconds of all its epochs."""
    torch.manual_seed(run.seed)
    encoder = EcgVit(run.encoder)
    network = EcgMae(encoder, mask_share=run.mae.mask_share).to(device)
    stage, own = MaeStep(run, network, store), mae_digest(run, store.sha256)
    seconds = run_stage(_Job(stage, store, run.seed, home / f"mae-{own[:12]}", own), progress or _silent)
    return encoder, seconds


def tower_of(config: TowerConfig, store: PairStore, home: Path) -> Frozen:
    """Return a pre-trained tower, frozen, training what is missing."""
    folder = home / f"tower-{config.look}-{digest(config, store.sha256)[:12]}"
    train_tower(store, config, folder)
    return frozen_tower(folder, config)


@dataclass(frozen=True)
class _Job:
    """One stage at work."""

    stage: Stage
    store: PairStore
    seed: int
    home: Path
    sha256: str


def run_stage(job: _Job, progress: Progressed) -> float:
    """Run the epochs that are missing, load the weights of the best one, and return the seconds of all."""
    stage = job.stage
    optimizer = make_optimizer(stage.network, stage.optim)
    done = resumed_epochs(job.home, stage.network, optimizer, job.sha256)
    rows = read_rows(job.home)[:done]
    for epoch in range(done, stage.optim.epochs):
        rows.append(run_epoch(job, optimizer, epoch))
        write_rows(job.home, rows)
        _keep(job, optimizer, rows)
        progress(f"{stage.name} epoch {epoch + 1}/{stage.optim.epochs}: {_score(stage)} {rows[-1][_score(stage)]:.4f}")
    draw_rows(job.home, rows)
    stage.network.load_state_dict(load_file(job.home / BEST_NAME))
    return sum(row["seconds"] for row in rows)


def run_epoch(job: _Job, optimizer: torch.optim.Optimizer, epoch: int) -> Row:
    """Show the network one pair of every training patient, then measure it on the validation part.

    Raises:
        NonFiniteLossError: before the step that would have used the loss.
        ValueError: the training part does not fill one batch.
    """
    started, stage, optim = time.perf_counter(), job.stage, job.stage.optim
    order_seed, dropout_seed, change_seed = np.random.SeedSequence([job.seed, stage.number, epoch]).generate_state(3)
    torch.manual_seed(int(dropout_seed))
    generator = torch.Generator().manual_seed(int(change_seed))
    order = drawn_rows(job.store.subset("training").patients, np.random.default_rng(order_seed))
    steps, rate = len(order) // optim.batch_size, 0.0
    if steps == 0:
        raise ValueError(f"{len(order)} training patients do not fill one batch of {optim.batch_size}")
    stage.network.train()
    logged = []
    for step, rows in enumerate(order[: steps * optim.batch_size].reshape(steps, -1)):
        rate = learning_rate_at(epoch * steps + step, optim.epochs * steps, optim)
        terms = stage.terms(rows, generator)
        descend(stage.network, optimizer, terms.total, rate, optim.gradient_clip)
        logged.append(terms.logged)
    stage.network.eval()
    found = _named("train", _mean(logged)) | _named("validation", stage.validate())
    return {"epoch": epoch, "learning_rate": rate, **found, "seconds": time.perf_counter() - started}


def _mean(logged: list[Numbers]) -> Numbers:
    """Return the means over steps of equal size, which are the means over patients."""
    return {name: float(np.mean([each[name] for each in logged])) for name in logged[0]}


def _named(part: str, numbers: Numbers) -> Row:
    return {f"{part}_{name}": value for name, value in numbers.items()}


def _score(stage: Stage) -> str:
    return f"validation_{stage.score}"


def _keep(job: _Job, optimizer: torch.optim.Optimizer, rows: list[Row]) -> None:
    """Write best weights and checkpoint; killed in between, the epoch is run again and writes the same."""
    if best_epoch(rows, _score(job.stage)) == len(rows) - 1:
        keep_best(job.home, job.stage.network)
    progress = Progress(epochs_done=len(rows), run_sha256=job.sha256)
    save_checkpoint(job.home, job.stage.network, optimizer, progress)


def _about(run: EcgCmrRun, store: PairStore) -> dict[str, Any]:
    """Return config and digests of a run."""
    return {
        "run": asdict(run),
        "sha256": run_sha256(run, store.sha256),
        "mae_sha256": mae_digest(run, store.sha256),
        "store": {
            "sha256": store.sha256,
            "pairs": {name: len(store.subset(name)) for name in ("training", "validation")},
        },
    }


def _silent(_text: str) -> None:
    """Say nothing."""
