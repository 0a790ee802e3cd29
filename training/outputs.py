"""Raw network outputs of many hearts, heart by heart: what calibration is made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.data.batches import all_clips
from training.data.heart_arrays import HeartArrays
from training.data.splits import Indices

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class HeartOutputs:
    """Outputs and truth of H hearts.

    Args:
        clips: per output name and heart, float64 [clips of the heart, ...].
        targets: per column, float64 [H].
    """

    clips: dict[str, list[FloatArray]]
    targets: dict[str, FloatArray]

    def heart_means(self, output: str) -> FloatArray:
        """Return the mean over the clips of each heart, [H, width]."""
        return np.stack([clips.mean(axis=0) for clips in self.clips[output]])

    def all_rows(self, output: str) -> FloatArray:
        """Return every clip of every heart, [sum of clips, width]."""
        return np.concatenate(self.clips[output])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every output for one clip."""
        return {name: clips[0].shape[1:] for name, clips in self.clips.items()}


@torch.inference_mode()
def heart_outputs(model: nn.Module, arrays: HeartArrays, hearts: Indices, *, batch_size: int) -> HeartOutputs:
    """Run the network, in evaluation mode, over all clips of the usable ones among ``hearts``."""
    usable = arrays.usable(hearts)
    batches = [model(batch.inputs) for batch in all_clips(arrays, usable, batch_size=batch_size)]
    ends = np.cumsum(arrays.clips[usable], dtype=np.int64)[:-1]
    rows = {name: torch.cat([batch[name] for batch in batches]).double().numpy() for name in batches[0]}
    truth = np.asarray(arrays.targets[usable], dtype=np.float64)
    return HeartOutputs(
        clips={name: np.split(values, ends) for name, values in rows.items()},
        targets={name: truth[:, index] for index, name in enumerate(arrays.columns)},
    )
