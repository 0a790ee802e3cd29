"""One seed on one set of pairs: five variants of one budget, every probe of each, and the baseline without an ECG.

The masked autoencoder and the towers are trained once a seed and shared by the variants. Each answer is a file of its own
beside the digest of what decides it, so that a study resumes; what was answered by other settings is asked again, and a
folder with another run is refused.

Source: figure 2 of Bujalance Gomez et al., EHJ Digital Health 2025, doi 10.1093/ehjdh/ztaf143.053.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.ecg_cmr.cohorts import Columns, cohort_of_store, complete, usable
from training.ecg_cmr.config import EcgCmrRun, digest
from training.ecg_cmr.embeddings import embeddings, projections
from training.ecg_cmr.neural_probes import FitOptions, fine_tune, mlp_probe
from training.ecg_cmr.outcome import (
    AND_DEMOGRAPHICS,
    DEMOGRAPHICS,
    Outcome,
    ProbeKind,
    made_from_of,
    read_outcome,
    write_outcome,
)
from training.ecg_cmr.probes import (
    Part,
    Parts,
    Probed,
    demographics_only,
    each_part,
    linear_probe,
    with_demographics,
)
from training.ecg_cmr.stages import TrainedEcg, train_ecg_cmr
from training.ecg_cmr.store import PairStore

Progress = Callable[[str], None]
PARTS = ("training", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Probing:
    """How values are read off an embedding.

    Args:
        kinds: of the probes, ``linear`` first.
        mlp: how the MLP probe is trained.
        fine_tuning: how encoder and head are trained together.
    """

    kinds: tuple[ProbeKind, ...]
    mlp: FitOptions
    fine_tuning: FitOptions


@dataclass(frozen=True, kw_only=True)
class Job:
    """One seed on one set of pairs; it travels to other processes.

    Args:
        name: of set and seed, for the progress.
        seed: of the study; the runs have theirs already.
        runs: by variant.
        store: folder of the pairs.
        store_sha256: what they have to be.
        columns: what is estimated, and the inputs of the baseline.
        probing: of every embedding.
        folder: of everything that is kept between runs.
        device: of training, such as ``cuda``.
        threads: of torch.
    """

    name: str
    seed: int
    runs: Mapping[str, EcgCmrRun]
    store: Path
    store_sha256: str
    columns: Columns
    probing: Probing
    folder: Path
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The pairs of a study by part, those of which all demographics are known, and the columns that they can be asked for.

    Args:
        stores: by part.
        columns: without what cannot be learnt or measured on these parts.
    """

    stores: Mapping[str, PairStore]
    columns: Columns

    @classmethod
    def of(cls, store: PairStore, asked: Columns) -> Pairs:
        """Return the parts of a store.

        Raises:
            ValueError: a part is empty, or a column of the baseline is stated of nobody.
        """
        none = replace(asked, targets=(), conditions=())
        stores = {}
        for name in PARTS:
            part = store.subset(name)
            stores[name] = part.only(complete(cohort_of_store(part, none)).tolist())
        return cls(stores=stores, columns=usable(list(stores.values()), asked))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Patients by part."""
        train, validation, test = (len(set(each.patients)) for each in self.stores.values())
        return train, validation, test

    def parts(self, inputs: Callable[[PairStore], NDArray[np.floating]]) -> Parts:
        """Return the parts with what is made of each pair."""
        train, validation, test = (
            Part(inputs=inputs(each), cohort=cohort_of_store(each, self.columns)) for each in self.stores.values()
        )
        return Parts(train=train, validation=validation, test=test)


def run_job(job: Job, progress: Progress) -> list[Outcome]:
    """Train and ask what is missing, and return everything of this seed.

    Raises:
        ForeignRunError: a folder holds a run of other settings or other pairs.
        PairStoreError: the store is another one.
    """
    torch.set_num_threads(job.threads)
    store = PairStore.open(job.store, sha256=job.store_sha256, check_arrays=False)
    pairs = Pairs.of(store, job.columns)
    tell = partial(_tell, progress, job.name)
    found = _answered(job, (DEMOGRAPHICS,), lambda: _baseline(job, pairs), digest(DEMOGRAPHICS))
    for variant, run in job.runs.items():
        models = (variant, f"{variant}{AND_DEMOGRAPHICS}")
        make = partial(_variant, job, variant, (store, pairs), tell)
        found += _answered(job, models, make, digest(run))
    return found


def files_of(job: Job, models: tuple[str, ...]) -> dict[tuple[str, ProbeKind], Path]:
    """Return where the answers of some models lie; only a variant by itself has an encoder to fine-tune."""
    return {
        (model, kind): job.folder / "outcomes" / f"{model}-{kind}.npz"
        for model in models
        for kind in job.probing.kinds
        if kind != "fine_tune" or model in job.runs
    }


def _answered(job: Job, models: tuple[str, ...], make: Callable[[], list[Outcome]], decided_by: str) -> list[Outcome]:
    """Read the outcomes of some models made by these settings, or make and keep them."""
    files = files_of(job, models)
    made_from = digest(decided_by, job.store_sha256, job.columns, job.probing, job.seed)
    if not all(file.exists() and made_from_of(file) == made_from for file in files.values()):
        for outcome in make():
            write_outcome(files[outcome.model, outcome.probe], outcome, made_from)
    return [read_outcome(file) for file in files.values()]


def _baseline(job: Job, pairs: Pairs) -> list[Outcome]:
    parts = each_part(pairs.parts(lambda store: np.empty((len(store), 0))), lambda part: demographics_only(part.cohort))
    return [
        _outcome(job, DEMOGRAPHICS, kind, _probe(job, kind, parts), seconds=0.0)
        for model, kind in files_of(job, (DEMOGRAPHICS,))
    ]


def _variant(job: Job, variant: str, data: tuple[PairStore, Pairs], tell: Progress) -> list[Outcome]:
    """Train a variant and ask it by every probe; the linear one carries the projections of the test patients."""
    (store, pairs), run = data, job.runs[variant]
    trained = train_ecg_cmr(
        run,
        store,
        job.folder / variant,
        shared=job.folder / "shared",
        device=job.device,
        progress=lambda text: tell(f"{variant}: {text}"),
    )
    embedded = pairs.parts(lambda part: embeddings(trained.encoder, part, device=job.device))
    beside = each_part(embedded, with_demographics)
    found = []
    for model, kind in files_of(job, (variant, f"{variant}{AND_DEMOGRAPHICS}")):
        tell(f"{model}: {kind} probe")
        if kind == "fine_tune":
            probed = _fine_tuned(job, run, trained, pairs)
        else:
            probed = _probe(job, kind, embedded if model == variant else beside)
        found.append(_outcome(job, model, kind, probed, seconds=trained.seconds))
    return [_with_projections(job, run, trained, pairs, each) for each in found]


def _probe(job: Job, kind: ProbeKind, parts: Parts) -> Probed:
    return linear_probe(parts) if kind == "linear" else mlp_probe(parts, replace(job.probing.mlp, seed=job.seed))


def _fine_tuned(job: Job, run: EcgCmrRun, trained: TrainedEcg, pairs: Pairs) -> Probed:
    parts = pairs.parts(lambda part: np.asarray(part.read("ecg"), np.float32))
    options = replace(job.probing.fine_tuning, seed=job.seed, device=job.device)
    return fine_tune(trained.encoder, run.encoder.width, parts, options=options)


def _outcome(job: Job, model: str, kind: ProbeKind, probed: Probed, *, seconds: float) -> Outcome:
    return Outcome(
        model=model, probe=kind, seed=job.seed, answers=probed.answers, seconds=seconds, chosen=probed.chosen
    )


def _with_projections(job: Job, run: EcgCmrRun, trained: TrainedEcg, pairs: Pairs, outcome: Outcome) -> Outcome:
    """Retrieval asks the contrast itself and no probe, so it stands once: beside the first probe of the embedding alone."""
    if trained.aligned is None or outcome.model not in job.runs or outcome.probe != job.probing.kinds[0]:
        return outcome
    ecg, cmr = projections(run, trained.aligned, pairs.stores["test"], device=job.device)
    answers = replace(outcome.answers, ecg_projection_NE=ecg, cmr_projection_NE=cmr)
    return replace(outcome, answers=answers)


def _tell(progress: Progress, name: str, text: str) -> None:
    progress(f"{name}: {text}")
