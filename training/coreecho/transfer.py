"""Transfer to another data set by cross-validation: a new head on frozen embeddings, or everything trained further.

CAMUS: ejection fraction, ten folds of the sorted patients. HMC-QU: infarction, five folds with the share of infarctions of the
whole. Nothing is chosen on a fold that is reported: the number of epochs is fixed and the last weights answer.

Source: CoReEcho (Maani et al., MICCAI 2024), protocol of its tables; its authors do not give the epochs and rates of transfer.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.coreecho.config import AnyEchoRun
from training.coreecho.evaluation import PUBLISHED_DRAWS, over_draws
from training.coreecho.networks import embedding_width, freeze
from training.coreecho.videos import Videos, fixed_clips, training_clips
from training.loop import NonFiniteLossError
from training.metrics import mean_absolute_error, patient_draws, wilson_interval
from training.models.coreecho_net import normalised
from training.models.ef_regressor import EfRegressor

FloatArray = NDArray[np.float64]
Rows = NDArray[np.int64]
Fold = tuple[Rows, Rows]
GOOD = ("Good", "Medium")
POOR = ("Poor",)


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How a pre-trained encoder goes on.

    Args:
        mode: "probe" trains a head on embeddings of fixed clips, "finetune" trains encoder and head on random clips.
        task: "ef" in percent by L1, or "infarction" by cross-entropy.
        epochs: all of them; the last weights answer.
        batch_videos: a last batch of one is dropped, because it has no statistics.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        seed: of heads, batches, clips and folds.
    """

    mode: Literal["probe", "finetune"]
    task: Literal["ef", "infarction"]
    epochs: int
    batch_videos: int
    learning_rate: float
    weight_decay: float
    seed: int


def rows_of(folds: Sequence[tuple[Sequence[str], Sequence[str]]], keys: Sequence[str]) -> list[Fold]:
    """Return folds of keys as folds of rows."""
    place = {key: row for row, key in enumerate(keys)}
    return [
        (np.array([place[key] for key in train], np.int64), np.array([place[key] for key in held_out], np.int64))
        for train, held_out in folds
    ]


def cross_validated(  # noqa: PLR0913, PLR0917 - a network, data, how it goes on, and where it is kept
    network: nn.Module,
    run: AnyEchoRun,
    videos: Videos,
    truth: FloatArray,
    folds: Sequence[Fold],
    config: TransferConfig,
    folder: Path,
    *,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> FloatArray:
    """Return the answer for every video by the network that did not see it: percent, or a logit, [N].

    Each fold is written when it is known, so that a run resumes.

    Args:
        network: pre-trained; its encoder is copied for each fold and itself left as it is.
        run: says how clips are cut.
        videos: of the new data set.
        truth: percent, or 0 and 1, [N].
        folds: training and held-out rows; every video is held out once.
        config: how it goes on.
        folder: of the answers of each fold.
        device: where it trains.
        progress: is told of every fold.

    Raises:
        ValueError: a video is held out never or twice, or lies on both sides of a fold.
        NonFiniteLossError: a loss is not finite.
    """
    _require_partition(folds, len(videos.keys))
    found = np.full(len(truth), np.nan)
    for number, (train, held_out) in enumerate(folds):
        made_from = _digest(network, run, videos, (truth[train], train, held_out), config)
        file = folder / f"{config.mode}-fold-{number}.json"
        if not file.exists() or json.loads(file.read_text())["made_from"] != made_from:
            answers = _of_fold(_Fold(network, run, videos, config, device), truth[train], train, held_out)
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"made_from": made_from, "answers": answers.tolist()}) + "\n", encoding="utf-8")
        found[held_out] = json.loads(file.read_text())["answers"]
        if progress is not None:
            progress(f"{config.mode} fold {number + 1}/{len(folds)}")
    return found


@dataclass(frozen=True)
class _Fold:
    network: nn.Module
    run: AnyEchoRun
    videos: Videos
    config: TransferConfig
    device: str


def _of_fold(fold: _Fold, truth: FloatArray, train: Rows, held_out: Rows) -> FloatArray:
    """Train on the training rows and answer the held-out ones; their truth is not even here."""
    config = fold.config
    torch.manual_seed(config.seed)
    encoder = copy.deepcopy(fold.network.encoder).to(fold.device)
    start = float(truth.mean()) if config.task == "ef" else 0.0
    head = EfRegressor(embedding_width(encoder), start_percent=start).to(fold.device)
    if config.mode == "probe":
        freeze(encoder)
        _probe(fold, encoder, head, truth, train)
    else:
        freeze(encoder.head)
        _finetune(fold, encoder, head, truth, train)
    clips = (fixed_clips(fold.videos, int(row), fold.run) for row in held_out)
    encoder.eval(), head.eval()
    with torch.inference_mode():
        means = [head(_embedded(encoder, each, fold.device))[:, 0].mean() for each in clips]
    return torch.stack(means).double().cpu().numpy()


def _probe(fold: _Fold, encoder: nn.Module, head: nn.Module, truth: FloatArray, train: Rows) -> None:
    """Train the head on one fixed clip of each video and epoch; embeddings are computed once, without augmentation."""
    encoder.eval()
    with torch.no_grad():
        known = [_embedded(encoder, fixed_clips(fold.videos, int(row), fold.run), fold.device) for row in train]

    def embed(places: Rows, rng: np.random.Generator, _epoch: int) -> Tensor:
        return torch.stack([known[place][rng.integers(len(known[place]))] for place in places])

    _train(fold, head, [head], truth, embed)


def _finetune(fold: _Fold, encoder: nn.Module, head: nn.Module, truth: FloatArray, train: Rows) -> None:
    """Train encoder and head on one random, shifted clip of each video and epoch."""

    def embed(places: Rows, _rng: np.random.Generator, epoch: int) -> Tensor:
        clips = training_clips(fold.videos, train[places], fold.run, views=1, epoch=epoch)
        return _embedded(encoder, clips, fold.device)

    _train(fold, head, [encoder, head], truth, embed)


Embed = Callable[[Rows, np.random.Generator, int], Tensor]


def _train(fold: _Fold, head: nn.Module, parts: Sequence[nn.Module], truth: FloatArray, embed: Embed) -> None:
    config, count = fold.config, len(truth)
    weights = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    targets = torch.from_numpy(truth).float().to(fold.device)
    loss_of = functional.l1_loss if config.task == "ef" else functional.binary_cross_entropy_with_logits
    for epoch in range(config.epochs):
        for part in parts:
            part.train()
        rng = np.random.default_rng([config.seed, epoch])
        order = rng.permutation(count)
        batches = [order[start : start + config.batch_videos] for start in range(0, count, config.batch_videos)]
        for places in (batch for batch in batches if len(batch) > 1):
            loss = loss_of(head(embed(places, rng, epoch))[:, 0], targets[torch.from_numpy(places).to(fold.device)])
            if not bool(torch.isfinite(loss)):
                raise NonFiniteLossError(f"the loss is {float(loss)}; expected a finite number")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def _embedded(encoder: nn.Module, clips_B1TSS: NDArray[np.uint8], device: str) -> Tensor:
    embedding: Tensor = encoder(normalised(torch.from_numpy(clips_B1TSS).to(device))).embedding
    return embedding


def ef_result(videos: Videos, truth: FloatArray, given: FloatArray) -> dict[str, Any]:
    """Return correlation and mean absolute error of good and medium, and of poor image quality, each with its interval."""
    groups = {"good_and_medium": GOOD, "poor": POOR}
    return {name: _of_quality(videos, truth, given, qualities) for name, qualities in groups.items()}


def _of_quality(videos: Videos, truth: FloatArray, given: FloatArray, qualities: tuple[str, ...]) -> dict[str, Any]:
    rows = np.flatnonzero(np.isin(np.asarray(videos.qualities), qualities)).tolist()
    if len(rows) < 3:
        return {"videos": len(rows)}
    drawn = patient_draws([videos.patients[row] for row in rows], draws=PUBLISHED_DRAWS.errors, seed=0)
    return {
        "videos": len(rows),
        "correlation": over_draws(_pearson, truth[rows], given[rows], drawn).as_dict(),
        "mae": over_draws(mean_absolute_error, truth[rows], given[rows], drawn).as_dict(),
    }


def _pearson(truth: FloatArray, given: FloatArray) -> float:
    if np.ptp(given) == 0:
        return 0.0
    return float(np.corrcoef(truth, given)[0, 1])


def infarction_result(labels: NDArray[np.bool_], logits: FloatArray) -> dict[str, Any]:
    """Return sensitivity, specificity, precision and accuracy with Wilson intervals, and F1, pooled over the folds."""
    positive = logits > 0
    right = positive == labels
    true_positive, called = int(np.sum(positive & labels)), int(positive.sum())
    shares = {
        "sensitivity": (true_positive, int(labels.sum())),
        "specificity": (int(np.sum(~positive & ~labels)), int(np.sum(~labels))),
        "precision": (true_positive, called),
        "accuracy": (int(right.sum()), len(labels)),
    }
    found: dict[str, Any] = {
        name: wilson_interval(count, of).as_dict() if of else None for name, (count, of) in shares.items()
    }
    wrong = int(np.sum(~right))
    return {**found, "f1": 2 * true_positive / (2 * true_positive + wrong) if true_positive + wrong else 0.0}


def _require_partition(folds: Sequence[Fold], count: int) -> None:
    held_out = np.concatenate([fold[1] for fold in folds])
    if sorted(held_out.tolist()) != list(range(count)):
        raise ValueError(f"the folds hold out {len(held_out)} of {count} videos; expected each of them once")
    if any(np.intersect1d(*fold).size for fold in folds):
        raise ValueError("a video trains the fold that holds it out; expected disjoint rows")


def _digest(network: nn.Module, run: AnyEchoRun, videos: Videos, rows: tuple[Any, ...], config: TransferConfig) -> str:
    found = hashlib.sha256(json.dumps([asdict(config), repr(run.clips), videos.sha256], sort_keys=True).encode())
    for part in rows:
        found.update(np.ascontiguousarray(part).tobytes() + b"|")
    for name, value in sorted(network.encoder.state_dict().items()):
        found.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return found.hexdigest()
