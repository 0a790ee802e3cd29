"""Prepared ECGs of digital hearts without their images: who calibrates and who is asked needs no cardiac MR.

The same patients as those of the pairs of a seed, a tenth of the time each. Kept as one file a set, made at once and renamed
into place, so that a release that is started again finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import structlog
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from engines.errors import Refusal
from engines.preprocess.registry import prepare
from engines.records import LEAD_NAMES
from training.data.heart_arrays import REFUSED, HeartArrays
from training.data.patient_split import part_of
from training.data.sources.paired_subjects import DEMOGRAPHICS, draw_patient, ecg_of
from training.data.splits import Split
from training.data.worker_pool import worker_pool
from training.ecg_cmr.config import digest
from training.ecg_cmr.evaluation import Cohort
from training.ecg_cmr.pair_source import PairEntry, PhantomPairs
from training.ecg_cmr.release_plan import ReleasePlan

_REPORT_EVERY = 500
_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, eq=False)
class ReleasePatients:
    """All patients of a release, one row each, those whose ECG was refused too.

    Args:
        entries: what is known of them.
        arrays: their ECGs, and their truths by the names of the plan.
        split: their parts.
    """

    entries: Sequence[PairEntry]
    arrays: HeartArrays
    split: Split

    def usable(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those whose ECG was not refused."""
        return self.arrays.usable(rows)

    def cohort(self, rows: NDArray[np.int64], plan: ReleasePlan) -> Cohort:
        """Return what is known of some rows, in the columns of a plan."""
        chosen = [self.entries[row] for row in rows]
        return Cohort(
            keys=tuple(entry.key for entry in chosen),
            patients=tuple(entry.patient for entry in chosen),
            targets=plan.quantities,
            truth_NT=np.array([[entry.targets[name] for name in plan.quantities] for entry in chosen]),
            conditions=plan.diseases,
            label_ND=np.array([[float(entry.diseases[name]) for name in plan.diseases] for entry in chosen]),
            demographics=DEMOGRAPHICS,
            demographics_NG=np.array([[entry.demographics[name] for name in DEMOGRAPHICS] for entry in chosen]),
        )


def release_patients(plan: ReleasePlan, folder: Path, *, workers: int) -> ReleasePatients:
    """Return the patients of a release, preparing the ECGs that are not in the folder.

    Args:
        plan: who they are.
        folder: of all sets.
        workers: processes that render ECGs.
    """
    entries = plan.ecgs.entries()
    inputs, clips = _ecgs(plan.ecgs, folder, workers)
    columns = (*plan.quantities, *plan.diseases)
    truths = np.array([_truths(entry, plan) for entry in entries], np.float32)
    arrays = HeartArrays(inputs=inputs, targets=truths, clips=clips, sha256="", columns=columns)
    return ReleasePatients(entries=entries, arrays=arrays, split=_split(plan, entries))


def _truths(entry: PairEntry, plan: ReleasePlan) -> list[float]:
    return [entry.targets[name] for name in plan.quantities] + [float(entry.diseases[name]) for name in plan.diseases]


def _split(plan: ReleasePlan, entries: Sequence[PairEntry]) -> Split:
    """The parts that the store of the pairs gives its patients, then those who calibrate, then those who are asked."""
    source = plan.pairs
    parts = np.array([part_of(entry.patient, source.salt, source.shares) for entry in entries[: plan.paired]])
    edge = plan.paired + plan.calibration
    return Split(
        train=np.flatnonzero(parts == "training"),
        validation=np.flatnonzero(parts == "validation"),
        calibration=np.arange(plan.paired, edge),
        test=np.arange(edge, len(entries)),
    )


def _ecgs(source: PhantomPairs, folder: Path, workers: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """ECGs [N, 1, 12, samples] and what became of each, ``REFUSED`` where the preprocessing refused it."""
    name = digest(source.name, source.first, source.patients, repr(dict(source.spec)))[:16]
    made, clips = folder / f"ecgs-{name}.npy", folder / f"ecgs-{name}.usable.npy"
    if not clips.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = _render(source, made, workers)
        partial_clips = clips.with_suffix(".partial.npy")
        np.save(partial_clips, found)
        partial_clips.replace(clips)  # last: the set counts once this file stands
    return np.load(made, mmap_mode="r"), np.load(clips)


def _render(source: PhantomPairs, path: Path, workers: int) -> NDArray[np.uint8]:
    shape = (source.patients, 1, len(LEAD_NAMES), source.ecg.window_samples)
    inputs = open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    clips = np.full(source.patients, REFUSED, np.uint8)
    numbers = range(source.patients)
    make = partial(prepared_ecg, source)
    if workers == 1:
        _fill(map(make, numbers), inputs, clips)
    else:
        with worker_pool(workers) as pool:
            _fill(pool.imap(make, numbers, chunksize=8), inputs, clips)
    inputs.flush()
    return clips


def _fill(made: Iterable[NDArray[np.float32] | None], inputs: NDArray[np.float32], clips: NDArray[np.uint8]) -> None:
    for row, ecg in enumerate(made):
        if ecg is not None:
            inputs[row, 0], clips[row] = ecg, 1
        if (row + 1) % _REPORT_EVERY == 0 or row + 1 == len(clips):
            _log.info("ecgs.made", done=row + 1, total=len(clips), refused=int((clips[: row + 1] == REFUSED).sum()))


def prepared_ecg(source: PhantomPairs, number: int) -> NDArray[np.float32] | None:
    """Return the ECG of one patient as the network takes it, [12, samples], or None where it was refused."""
    index = source.first + number
    patient = draw_patient(source.seed, index, source.cohort)
    try:
        prepared = prepare(ecg_of(patient, source.seed, index, source.cohort), source.ecg)
    except Refusal as refusal:
        _log.info("ecg.refused", patient=number, code=refusal.code.value, reason=refusal.reason)
        return None
    return np.asarray(prepared.arrays["ecg"][0], np.float32)
