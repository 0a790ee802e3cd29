"""Training on clips: Rank-N-Contrast, then probing; or one network end to end. A run ends the same whether interrupted or not.

All randomness is drawn anew for every epoch from (seed, stage, epoch), so a checkpoint holds no generator state. The weights
of the smallest validation error are kept beside the checkpoint.

Source: CoReEcho (Maani et al., MICCAI 2024) for the two stages; EchoCoTr (Muhtaseb and Yaqub, MICCAI 2022) for the baseline.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.config import describe
from training.coreecho.answers import answers_of
from training.coreecho.config import AnyEchoRun, BaselineRun, CoReEchoRun, StepSchedule, training_digest
from training.coreecho.curves import Point, best_epoch, draw_points, read_points, write_points
from training.coreecho.distributed import gathered, joined, own_share, parallel, processes, summed, synchronised, wait
from training.coreecho.networks import EchoNetwork, build_network, freeze
from training.coreecho.pretrained import load_kinetics
from training.coreecho.rank_n_contrast import rank_n_contrast_loss, rank_n_contrast_loss_sorted
from training.coreecho.videos import Videos, training_clips
from training.loop import ForeignRunError, NonFiniteLossError
from training.models.coreecho_net import normalised

BEST_NAME = "best.safetensors"
_DENSE_MAX = 256
_log = structlog.get_logger()
Progressed = Callable[[str], None]


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


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run: the network with the chosen weights, in evaluation mode on the CPU, and the seconds it took."""

    network: EchoNetwork
    seconds: float


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
        _write_run(folder, run, train, validation, digest)
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
    done = _resume(job, digest)
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


def _resume(job: _Job, digest: str) -> int:
    found = load_checkpoint(job.home, job.network, job.stage.optimizers)
    if found is None:
        return 0
    if found.run_sha256 != digest:
        msg = f"{job.home} holds a run with another config or other data; choose another folder or remove it"
        raise ForeignRunError(msg)
    _log.info("stage.resumed", stage=job.stage.name, epochs_done=found.epochs_done)
    return found.epochs_done


def _keep(job: _Job, points: Sequence[Point], digest: str) -> None:
    """Write best weights, curve and checkpoint; killed in between, the epoch is run again and writes the same."""
    write_points(job.home, points)
    if best_epoch(points) == points[-1].epoch:
        partial = job.home / f"{BEST_NAME}.partial"
        save_file({name: value.contiguous() for name, value in job.network.state_dict().items()}, partial)
        partial.replace(job.home / BEST_NAME)
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


def _require_truths(*parts: Videos) -> None:
    for part in parts:
        wrong = np.flatnonzero(~np.isfinite(part.ef_percent))
        if len(wrong):
            raise ValueError(f"{part.keys[wrong[0]]} has no ejection fraction; expected a number for every video")


def _write_run(folder: Path, run: AnyEchoRun, train: Videos, validation: Videos, digest: str) -> None:
    """Write what the run is; where it is written already, it must be this one."""
    file = folder / "run.json"
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8"))["sha256"] != digest:
            raise ForeignRunError(
                f"{folder} holds a run with another config or other data; choose another folder or remove it"
            )
        return
    if not processes().first:
        return
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "run": describe(run),
        "sha256": digest,
        "data": {
            name: {"videos": len(part.keys), "sha256": part.sha256}
            for name, part in (("train", train), ("validation", validation))
        },
    }
    file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _silent(_text: str) -> None:
    """Say nothing."""
