"""The transfer part of ``purkinje-train evaluate coreecho``: CAMUS and HMC-QU beside the published rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from training.coreecho.config import AnyEchoRun
from training.coreecho.protocol import name_of
from training.coreecho.table import markdown_table
from training.coreecho.transfer import (
    Fold,
    TransferConfig,
    cross_validated,
    ef_result,
    infarction_result,
    rows_of,
)
from training.coreecho.video_sets import camus, hmc_qu, on_camus, on_hmc_qu
from training.coreecho.videos import Videos
from training.data.folds import sorted_folds, stratified_folds

Progress = Callable[[str], None]
FloatArray = NDArray[np.float64]
CAMUS_FOLDS, HMC_QU_FOLDS = 10, 5
Mode = Literal["probe", "finetune"]
Task = Literal["ef", "infarction"]
_MODES: tuple[Mode, ...] = ("probe", "finetune")

PUBLISHED_CAMUS = (
    ("Wei et al.", "scratch", "0.725", "6.50", "0.674", "7.53"),
    ("CoReEcho authors, scratch", "scratch", "0.714", "6.20", "0.538", "8.28"),
    ("EchoCoTr", "MLP probing", "0.660", "7.00", "0.401", "9.84"),
    ("CoReEcho", "MLP probing", "0.730", "6.28", "0.570", "8.42"),
    ("EchoCoTr", "fine-tuning", "0.799", "5.33", "0.599", "7.49"),
    ("CoReEcho", "fine-tuning", "0.807", "5.29", "0.693", "6.81"),
)
PUBLISHED_HMC_QU = (
    ("Degerli et al.", "scratch", "86.0", "70.1", "85.5", "85.3", "80.2"),
    ("Saeed et al.", "fine-tuning", "86.1", "78.2", "88.5", "87.1", "83.4"),
    ("EchoCoTr", "MLP probing", "72.2", "81.1", "88.6", "78.9", "75.2"),
    ("CoReEcho", "MLP probing", "93.1", "69.6", "87.2", "89.6", "85.2"),
    ("EchoCoTr", "fine-tuning", "98.6", "72.5", "88.4", "93.0", "89.8"),
    ("CoReEcho", "fine-tuning", "93.0", "86.1", "93.6", "92.9", "90.6"),
)
_CAMUS_HEAD = ("method", "training", "corr, good and medium", "MAE, good and medium", "corr, poor", "MAE, poor")
_HMC_QU_HEAD = ("method", "training", "sensitivity %", "specificity %", "precision %", "F1 %", "accuracy %")
_WORDS = {"probe": "MLP probing", "finetune": "fine-tuning"}


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """Data sets to transfer to.

    Args:
        camus: folder, or None.
        hmc_qu: folder, or None.
        epochs: of each fold; the authors do not give theirs.
        workers: processes that read videos.
        device: of training.
    """

    camus: Path | None
    hmc_qu: Path | None
    epochs: int
    workers: int
    device: str


def transfer_numbers(
    options: TransferOptions,
    runs: Sequence[AnyEchoRun],
    networks: Mapping[str, nn.Module],
    out: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return the numbers of every method, data set and mode; none where no folder was named."""
    found = []
    for run in runs:
        for mode in _MODES:
            job = _Job(options, run, networks[name_of(run)], mode, out, progress)
            found += [_camus(job, options.camus)] if options.camus is not None else []
            found += [_hmc_qu(job, options.hmc_qu)] if options.hmc_qu is not None else []
    return found


@dataclass(frozen=True)
class _Job:
    options: TransferOptions
    run: AnyEchoRun
    network: nn.Module
    mode: Mode
    out: Path
    progress: Progress


def _camus(job: _Job, root: Path) -> dict[str, Any]:
    job = replace(job, run=on_camus(job.run))
    videos = camus(root, job.run, job.out / "stores", workers=job.options.workers, progress=job.progress)
    folds = rows_of(sorted_folds(videos.keys, CAMUS_FOLDS), videos.keys)
    given = _answered(job, videos, videos.ef_percent, folds, "ef")
    return {
        "data_set": "camus",
        "model": name_of(job.run),
        "mode": job.mode,
        **ef_result(videos, videos.ef_percent, given),
    }


def _hmc_qu(job: _Job, root: Path) -> dict[str, Any]:
    job = replace(job, run=on_hmc_qu(job.run))
    videos = hmc_qu(root, job.run, job.out / "stores", workers=job.options.workers, progress=job.progress)
    labels = videos.store.targets("infarction") > 0.5
    by_key = dict(zip(videos.keys, labels.astype(int).tolist(), strict=True))
    patients = dict(zip(videos.keys, videos.patients, strict=True))
    folds = rows_of(stratified_folds(by_key, patients, folds=HMC_QU_FOLDS, seed=job.run.seed), videos.keys)
    logits = _answered(job, videos, labels.astype(np.float64), folds, "infarction")
    return {"data_set": "hmc_qu", "model": name_of(job.run), "mode": job.mode, **infarction_result(labels, logits)}


def _answered(job: _Job, videos: Videos, truth: FloatArray, folds: Sequence[Fold], task: Task) -> FloatArray:
    config = TransferConfig(
        mode=job.mode,
        task=task,
        epochs=job.options.epochs,
        batch_videos=16,
        learning_rate=1e-4,
        weight_decay=1e-4,
        seed=job.run.seed,
    )
    return cross_validated(
        job.network,
        job.run,
        videos,
        truth,
        folds,
        config,
        job.out / f"transfer-{task}-{job.run.recipe}",
        device=job.options.device,
        progress=job.progress,
    )


def transfer_markdown(numbers: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of the transfer beside the published rows, or nothing."""
    camus = [_camus_row(each) for each in numbers if each["data_set"] == "camus"]
    hmc_qu = [_hmc_qu_row(each) for each in numbers if each["data_set"] == "hmc_qu"]
    parts = []
    if camus:
        table = markdown_table(_CAMUS_HEAD, [*map(list, PUBLISHED_CAMUS), *camus])
        parts.append(f"## Transfer: CAMUS, ejection fraction, {CAMUS_FOLDS} folds\n\n{table}\n")
    if hmc_qu:
        table = markdown_table(_HMC_QU_HEAD, [*map(list, PUBLISHED_HMC_QU), *hmc_qu])
        parts.append(f"## Transfer: HMC-QU, infarction, {HMC_QU_FOLDS} folds\n\n{table}\n")
    return "\n".join(parts)


def _camus_row(numbers: Mapping[str, Any]) -> list[str]:
    cells = [
        _interval(numbers[group][metric], digits) if metric in numbers[group] else "too few videos"
        for group in ("good_and_medium", "poor")
        for metric, digits in (("correlation", 3), ("mae", 2))
    ]
    return [f"**ours: {numbers['model']}**", _WORDS[numbers["mode"]], *cells]


def _hmc_qu_row(numbers: Mapping[str, Any]) -> list[str]:
    shares = [numbers[name] for name in ("sensitivity", "specificity", "precision")]
    cells = ["undefined" if share is None else _percent(share) for share in shares]
    return [
        f"**ours: {numbers['model']}**",
        _WORDS[numbers["mode"]],
        *cells,
        f"{100 * numbers['f1']:.1f}",
        _percent(numbers["accuracy"]),
    ]


def _interval(found: Mapping[str, float], digits: int) -> str:
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _percent(found: Mapping[str, float]) -> str:
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
