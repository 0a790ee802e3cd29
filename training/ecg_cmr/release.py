"""A run on pairs from the command line: the store it is given, its folder, and the stages that variants share."""

from __future__ import annotations

from pathlib import Path

import torch

from training.config import TrainingInputs
from training.ecg_cmr.config import EcgCmrRun, run_sha256
from training.ecg_cmr.stages import train_ecg_cmr
from training.ecg_cmr.store import PairStore

SHARED_FOLDER = "ecg_cmr-shared"


def train_on_pairs(config: EcgCmrRun, out: Path, given: TrainingInputs, *, threads: int) -> Path:
    """Train a variant below ``out`` and return its folder.

    Raises:
        PairStoreError: the folder is no whole store.
        ValueError: no store is given, or weights of another kind of network.
    """
    if given.data is None or given.weights is not None:
        raise ValueError(f"{config.recipe} trains on a store of pairs: give its folder as the data, and no weights")
    torch.set_num_threads(threads)
    store = PairStore.open(given.data)
    folder = out / f"{config.recipe}-{run_sha256(config, store.sha256)[:12]}"
    train_ecg_cmr(config, store, folder, shared=out / SHARED_FOLDER, device=given.device)
    return folder
