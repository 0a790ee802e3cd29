"""Batches of one epoch, a function of (seed, epoch) and nothing else: a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data.heart_arrays import HeartArrays
from training.data.splits import Indices


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs [B, ...] and targets by column name, each float32 [B]."""

    inputs: Tensor
    targets: dict[str, Tensor]


def training_batches(
    arrays: HeartArrays, hearts: Indices, *, batch_size: int, seed: int, epoch: int
) -> Iterator[Batch]:
    """Yield every heart once in random order, each with one of its clips; a last short batch is dropped."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(hearts)
    clips = rng.integers(0, arrays.clips[order])
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield _batch(arrays, order[start : start + batch_size], clips[start : start + batch_size])


def all_clips(arrays: HeartArrays, hearts: Indices, *, batch_size: int) -> Iterator[Batch]:
    """Yield every clip of every heart, heart by heart, in the given order."""
    counts = arrays.clips[hearts]
    rows = np.repeat(hearts, counts)
    clips = np.concatenate([np.arange(count) for count in counts])
    for start in range(0, len(rows), batch_size):
        yield _batch(arrays, rows[start : start + batch_size], clips[start : start + batch_size])


def _batch(arrays: HeartArrays, rows: Indices, clips: Indices) -> Batch:
    columns = torch.from_numpy(np.asarray(arrays.targets[rows]).T.copy())
    inputs = torch.from_numpy(np.stack([arrays.inputs[row, clip] for row, clip in zip(rows, clips, strict=True)]))
    return Batch(inputs=inputs, targets=dict(zip(arrays.columns, columns, strict=True)))
