"""Training on clips: Rank-N-Contrast, then probing; or one network end to end. A run ends the same whether interrupted or not.

All randomness is drawn anew for every epoch from (seed, stage, epoch), so a checkpoint holds no generator state. The weights
of the smallest validation error are kept beside the checkpoint. What is stepped stands in ``steps``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from training.checkpoint import BEST_NAME, Progress, claim_folder, keep_best, resumed_epochs, save_checkpoint
from training.config import describe
from training.coreecho.answers import answers_of
from training.coreecho.config import AnyEchoRun, BaselineRun, CoReEchoRun, training_digest
from training.coreecho.curves import Point, best_epoch, draw_points, read_points, write_points
from training.coreecho.distributed import joined, own_share, processes, summed, synchronised, wait
from training.coreecho.networks import EchoNetwork, build_network
from training.coreecho.pretrained import load_kinetics
from training.coreecho.steps import ContrastStep, EndToEndStep, ProbeStep, Stage
from training.coreecho.videos import Videos, training_clips

Progressed = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run: the network with the chosen weights, in evaluation mode on the CPU, and the seconds it took."""

    network: EchoNetwork
    seconds: float


def train_echo(  # noqa: PLR0913 - a run, its two parts of the data, where it lives, and what it may use
    run: AnyEchoRun,
    train: Videos,
    validation: Videos,
    folder: Path,
    *,
    device: str = "cpu",
    progress: Progressed | None = None,
) -> Trained:
    """Train a run to its end, from what is in ``folder``.

    Args:
        run: the recipe.
        train: videos that train.
        validation: videos by which the weights are chosen.
        folder: receives ``run.json`` and a folder for each stage with checkpoint, curve and the best weights.
        device: such as ``cuda``; a checkpoint goes on on any.
        progress: is told of every epoch.

    Raises:
        ForeignRunError: the folder holds another run.
        NonFiniteLossError: a loss is NaN or infinite.
        ValueError: the videos do not fill a batch, or a truth is no number.
    """
    _require_truths(train, validation)
    digest = training_digest(run, train.sha256, validation.sha256)
    with joined(device) as own:
        _claim(folder, _about(run, train, validation, digest))
        network = synchronised(_untrained(run).to(own))
        seconds = 0.0
        for make in _STAGES[type(run)]:
            stage = make(run, network)
            job = _Job(run=run, network=network, stage=stage, train=train, validation=validation, folder=folder)
            seconds += _run_stage(job, digest, progress or _silent)
    return Trained(network=network.cpu().eval(), seconds=seconds)


def _untrained(run: AnyEchoRun) -> EchoNetwork:
    network = build_network(run)
    if run.weights is not None:
        load_kinetics(network.encoder, Path(run.weights))
    return network


_STAGES: dict[type, tuple[Callable[..., Stage], ...]] = {
    CoReEchoRun: (ContrastStep, ProbeStep),
    BaselineRun: (EndToEndStep,),
}


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One stage at work."""

    run: AnyEchoRun
    network: EchoNetwork
    stage: Stage
    train: Videos
    validation: Videos
    folder: Path

    @property
    def home(self) -> Path:
        """Folder of this stage."""
        return self.folder / self.stage.name


def _run_stage(job: _Job, digest: str, progress: Progressed) -> float:
    """Run the epochs that are missing, load the weights of the best one, and return the seconds of all."""
    done = resumed_epochs(job.home, job.network, job.stage.optimizers, digest)
    points = read_points(job.home)[:done]
    for epoch in range(done, job.stage.epochs):
        points.append(run_epoch(job, epoch))
        if processes().first:
            _keep(job, points, digest)
        wait()
        last = points[-1]
        progress(f"{job.stage.name} epoch {epoch + 1}/{job.stage.epochs}: validation MAE {last.validation_mae:.2f}")
    if processes().first:
        draw_points(job.home, points)
    job.network.load_state_dict(load_file(job.home / BEST_NAME))
    return sum(point.seconds for point in points)


def _keep(job: _Job, points: Sequence[Point], digest: str) -> None:
    """Write best weights, curve and checkpoint; killed in between, the epoch is run again and writes the same."""
    write_points(job.home, points)
    if best_epoch(points) == points[-1].epoch:
        keep_best(job.home, job.network)
    progress = Progress(epochs_done=len(points), run_sha256=digest)
    save_checkpoint(job.home, job.network, job.stage.optimizers, progress)


def run_epoch(job: _Job, epoch: int) -> Point:
    """Show the network every training video once, then measure it on the validation videos.

    Raises:
        NonFiniteLossError: before the step that would have used the loss.
    """
    started = time.perf_counter()
    stage, device = job.stage, next(job.network.parameters()).device
    rate = stage.schedule.rate(epoch)
    for group in (group for optimizer in stage.optimizers.values() for group in optimizer.param_groups):
        group["lr"] = rate
    order = _seeded_order(job, epoch)
    stage.begin_epoch()
    losses = []
    for start in range(0, len(order) - stage.batch_videos + 1, stage.batch_videos):
        rows = own_share(order[start : start + stage.batch_videos])
        clips = training_clips(job.train, rows, job.run, views=stage.views, epoch=_draw_number(job, epoch))
        ef = torch.from_numpy(np.tile(job.train.ef_percent[rows], stage.views)).float()
        losses.append(stage.step(torch.from_numpy(clips).to(device), ef.to(device)))
    return Point(
        epoch=epoch,
        learning_rate=rate,
        contrast=float(np.mean([loss.contrast for loss in losses])),
        regression=float(np.mean([loss.regression for loss in losses])),
        validation_mae=_validation_mae(job, device),
        seconds=time.perf_counter() - started,
    )


def _draw_number(job: _Job, epoch: int) -> int:
    """Return what the clips of an epoch are drawn by: stages never share it."""
    return 10_000 * (job.stage.number - 1) + epoch


def _seeded_order(job: _Job, epoch: int) -> np.ndarray:
    """Seed dropout and return the order of the videos."""
    count, batch = len(job.train.keys), job.stage.batch_videos
    if count < batch or batch % processes().count:
        raise ValueError(
            f"{count} videos, batches of {batch}, {processes().count} processes; expected enough videos for a batch, and a "
            "batch that the processes can share"
        )
    order_seed, dropout_seed = np.random.SeedSequence([job.run.seed, job.stage.number, epoch]).generate_state(2)
    torch.manual_seed(int(dropout_seed) + processes().rank)
    return np.random.default_rng(order_seed).permutation(count)


def _validation_mae(job: _Job, device: torch.device) -> float:
    """Return the mean absolute error over the fixed clips of the validation videos; each process answers its share."""
    rows = own_share(np.arange(len(job.validation.keys)))
    answers = answers_of(job.network, job.validation, job.run, rows=rows, device=str(device))
    errors = np.abs(answers.ef_percent - answers.truth_percent)
    total, count = summed(torch.tensor([errors.sum(), len(errors)], dtype=torch.float64, device=device)).tolist()
    return total / count


def _require_truths(*parts: Videos) -> None:
    for part in parts:
        wrong = np.flatnonzero(~np.isfinite(part.ef_percent))
        if len(wrong):
            raise ValueError(f"{part.keys[wrong[0]]} has no ejection fraction; expected a number for every video")


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Write what the run is, the first process alone; the others read what it wrote."""
    if not processes().first:
        wait()
    claim_folder(folder, about)
    if processes().first:
        wait()


def _about(run: AnyEchoRun, train: Videos, validation: Videos, digest: str) -> dict[str, Any]:
    """Return config and digests of a run."""
    return {
        "run": describe(run),
        "sha256": digest,
        "data": {
            name: {"videos": len(part.keys), "sha256": part.sha256}
            for name, part in (("train", train), ("validation", validation))
        },
    }


def _silent(_text: str) -> None:
    """Say nothing."""
