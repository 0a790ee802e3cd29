"""Training steps a second of the triplet: from the store with towers asked once, against a loader that does all of it each time.

Digital pairs, the triplet recipe that two CPU cores train. Every arm takes the same step, loss and gradients, on the same
patients: with the memory-mapped store and what the frozen towers said once; with the store and the towers asked every step;
with one compressed file a pair and the towers asked every step; and with the ECG decoded and prepared from its DICOM file
besides. Before anything is timed all arms must have the same loss. Sides are interleaved in one process, on one thread;
processor time is what is counted.

    python -m tests.benchmarks.bench_pair_training --out pair_training.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.decode.ecg import decode_ecg
from engines.preprocess.registry import prepare
from tests.benchmarks.interleave import interleaved
from training.config import load_recipe
from training.data.sources.paired_subjects import draw_patient, ecg_of
from training.ecg_cmr.alignment import Aligned, contrast_of
from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.frozen import Frozen
from training.ecg_cmr.pair_source import PhantomPairs
from training.ecg_cmr.preparation import phantom_pairs
from training.ecg_cmr.steps import ContrastStep
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.store_build import build_pair_store
from training.models.ecg_vit import EcgVit
from training.phantoms.dicom import Patient, Study, write_ecg

SAME_LOSS = 1e-3
Arm = Callable[[], float]


def main() -> int:
    """Measure and write; 1 where the losses differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--patients", type=int, default=60, help="drawn, of whom 70 % train")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Pairs.written(Path(folder), options.patients), options.batch, options.rounds)
    environment = {name: version(name) for name in ("torch", "numpy")} | {"machine": platform.machine()}
    options.out.write_text(
        json.dumps({"name": "Training steps of the triplet", "rows": rows, "environment": environment})
    )
    return 0 if all(row["correct"] for row in rows) else 1


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The same pairs in three forms: a store, one compressed file each, one DICOM file each."""

    source: PhantomPairs
    whole: PairStore
    folder: Path

    @classmethod
    def written(cls, folder: Path, patients: int) -> Pairs:
        """Render and write them."""
        source = phantom_pairs(seed=5, patients=patients, cohort="standard")
        pairs = cls(source=source, whole=build_pair_store(source, folder / "store"), folder=folder)
        for row in range(len(pairs.store)):
            pairs._write(row)
        return pairs

    @cached_property
    def store(self) -> PairStore:
        """Those that train."""
        return self.whole.subset("training")

    def _write(self, row: int) -> None:
        arrays = {name: self.store.read(name, [row])[0] for name in ("volumes", "slice_mask")}
        np.savez_compressed(self.folder / f"{row}.npz", ecg=self.store.read("ecg", [row])[0], **arrays)
        index = [entry.key for entry in self.source.entries()].index(self.store.keys[row])
        patient = draw_patient(self.source.seed, index, self.source.cohort)
        record = ecg_of(patient, self.source.seed, index, self.source.cohort)
        study = Study(key=str(row), number=row, patient=Patient(), subject=patient.heart, description="ECG")
        (path,) = write_ecg(study, record, np.random.default_rng(row), self.folder)
        path.rename(self.folder / f"{row}.dcm")

    def file(self, row: int) -> dict[str, NDArray[Any]]:
        """The arrays of a pair from its compressed file."""
        with np.load(self.folder / f"{row}.npz") as archive:
            return {name: archive[name] for name in archive.files}

    def decoded(self, row: int) -> NDArray[np.float32]:
        """The ECG of a pair from its DICOM file, [12, samples]."""
        record = decode_ecg([BytesIO((self.folder / f"{row}.dcm").read_bytes())])
        return prepare(record, self.source.ecg).arrays["ecg"][0]


def measured(pairs: Pairs, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Steps a second of every arm."""
    arms = arms_of(pairs, np.arange(min(batch, len(pairs.store))))
    losses = {name: arm() for name, arm in arms.items()}
    taken = interleaved(arms, rounds, clock=process_time)
    first = next(iter(arms))
    return [
        {
            "what": name,
            "steps a second": 1000 / statistics.median(times),
            "the store is faster by": statistics.median(
                time / own for time, own in zip(times, taken[first], strict=True)
            ),
            "loss": losses[name],
            "correct": abs(losses[name] - losses[first]) <= SAME_LOSS,
        }
        for name, times in taken.items()
    ]


def arms_of(pairs: Pairs, rows: NDArray[np.int64]) -> dict[str, Arm]:
    """Every way to take the same step, as a function that gives its loss."""
    run = load_recipe("ecg_cmr_triplet_small")
    assert isinstance(run, EcgCmrRun)
    network = untrained(run)
    step = ContrastStep(run, network, pairs.whole)
    known = step._train.known

    def taken(ecg: NDArray[np.float32], cmr: dict[str, torch.Tensor]) -> float:
        network.zero_grad()
        projected = network(torch.from_numpy(ecg), cmr)
        found = contrast_of(projected, torch.arange(len(rows)), step._stage)
        found.total.backward()
        return float(found.total.detach())

    def asked(volumes: NDArray[np.float16], mask: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
        images, slices = torch.from_numpy(volumes).float(), torch.from_numpy(mask).float()
        with torch.no_grad():
            return {
                name: network.towers[name](images[:, at, None], slices).float() for at, name in enumerate(run.names)
            }

    def from_files(*, decode: bool) -> float:
        read = [pairs.file(int(row)) for row in rows]
        ecg = [pairs.decoded(int(row)) if decode else each["ecg"] for row, each in zip(rows, read, strict=True)]
        images, masks = (np.stack([each[name] for each in read]) for name in ("volumes", "slice_mask"))
        return taken(np.stack(ecg).astype(np.float32), asked(images, masks))

    def stored(name: str) -> NDArray[Any]:
        return pairs.store.read(name, rows.tolist())

    assert known is not None
    return {
        "store, towers asked once": lambda: taken(stored("ecg"), {name: each[rows] for name, each in known.items()}),
        "store, towers every step": lambda: taken(stored("ecg"), asked(stored("volumes"), stored("slice_mask"))),
        "a file a pair, towers every step": lambda: from_files(decode=False),
        "a file a pair, ECG decoded, towers every step": lambda: from_files(decode=True),
    }


def untrained(run: EcgCmrRun) -> Aligned:
    """The network of a run before its first step; dropout is off, so that all arms have one loss."""
    assert run.contrast is not None
    torch.manual_seed(0)
    towers = {name: Frozen(config.tower()) for name, config in zip(run.names, run.towers, strict=True)}
    return Aligned(EcgVit(run.encoder), towers, run.contrast).eval()


if __name__ == "__main__":
    sys.exit(main())
