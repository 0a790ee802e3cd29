"""What a trained run says of the pairs of a store: embeddings for the probes, projections for the retrieval.

Called by the study. Letters: N pairs, E width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from training.ecg_cmr.alignment import Aligned, embed_ecg
from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.tower_inputs import seen_by
from training.models.ecg_vit import EcgVit

FloatArray = NDArray[np.float64]
_AT_ONCE = 64


def embeddings(encoder: EcgVit, store: PairStore, *, device: str = "cpu") -> FloatArray:
    """Return the embedding of every ECG, [N, E]."""
    encoder.to(device)
    found = [embed_ecg(encoder, torch.from_numpy(_ecg(store, rows)).to(device)).cpu() for rows in _chunks(store)]
    return np.asarray(torch.cat(found).double().numpy())


@torch.inference_mode()
def projections(
    run: EcgCmrRun, aligned: Aligned, store: PairStore, *, device: str = "cpu"
) -> tuple[FloatArray, FloatArray]:
    """Return where ECGs and images lie in the space they share, [N, E] each.

    Of two towers the unit vectors stand side by side, and the ECG's twice, so that the cosine is the mean of both cosines.
    """
    aligned.to(device).eval()
    pairs = [_projected(run, aligned, store, rows, device) for rows in _chunks(store)]
    ecg, *cmr = (torch.cat(parts).double().cpu() for parts in zip(*pairs, strict=True))
    unit = [torch.nn.functional.normalize(each, dim=1) for each in cmr]
    mine = torch.nn.functional.normalize(ecg, dim=1)
    return torch.cat([mine] * len(unit), dim=1).numpy(), torch.cat(unit, dim=1).numpy()


def _projected(
    run: EcgCmrRun, aligned: Aligned, store: PairStore, rows: list[int], device: str
) -> tuple[torch.Tensor, ...]:
    """Projections of some ECGs, then of what each tower sees, never changed at random."""
    seen = {name: seen_by(store, tower.look, rows) for name, tower in zip(run.names, run.towers, strict=True)}
    cmr = {
        name: aligned.towers[name](*(part.to(device) for part in each.arguments())).float()
        for name, each in seen.items()
    }
    projected = aligned(torch.from_numpy(_ecg(store, rows)).to(device), cmr)
    return tuple(projected[name] for name in ("ecg", *run.names))


def _ecg(store: PairStore, rows: list[int]) -> NDArray[np.float32]:
    return np.asarray(store.read("ecg", rows), np.float32)


def _chunks(store: PairStore) -> Iterator[list[int]]:
    for start in range(0, len(store), _AT_ONCE):
        yield list(range(start, min(start + _AT_ONCE, len(store))))
