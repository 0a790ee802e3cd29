"""From a variant to a bundle: pairs of digital hearts, the encoder, probes, calibration, one graph, measured.

Besides, a run on pairs from the command line: the store it is given, its folder, and the stages that variants share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.config import TrainingInputs
from training.ecg_cmr.alignment import embed_ecg
from training.ecg_cmr.config import EcgCmrRun, digest, run_sha256
from training.ecg_cmr.cross_modal import cross_modal_release
from training.ecg_cmr.evaluation import Cohort
from training.ecg_cmr.phantom_ecgs import ReleasePatients, release_patients
from training.ecg_cmr.probes import LinearHeads, Part, demographics_only, linear_heads
from training.ecg_cmr.release_plan import ReleasePlan, release_plan
from training.ecg_cmr.stages import TrainedEcg, train_ecg_cmr
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.store_build import build_pair_store
from training.evaluate import evaluate_bundle
from training.export import CrossModalRelease, Release, export_bundle
from training.metrics import Measured, auroc, bootstrap, r_squared
from training.models.ecg_vit import EcgVit, EcgVitNet
from training.signature import input_spec

SHARED_FOLDER = "ecg_cmr-shared"
_STORES, _ARRAYS = "stores", "arrays"
_BATCH_ECGS = 32
_PARITY_TOLERANCE = 1e-3
"""Millilitres come in hundreds: single precision holds them to 2e-5, and sums over the embedding to a few times that."""
_log = structlog.get_logger()


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
    folder = run_folder(config, store, out)
    train_ecg_cmr(config, store, folder, shared=out / SHARED_FOLDER, device=given.device)
    return folder


def run_folder(config: EcgCmrRun, store: PairStore, out: Path) -> Path:
    """Return where a run lives; another config or other pairs have another folder."""
    return out / f"{config.recipe}-{run_sha256(config, store.sha256)[:12]}"


def release_ecg_cmr(  # noqa: PLR0913 - what, where from, where to, and how
    run: EcgCmrRun, out: Path, bundle: Path, *, workers: int, threads: int, plan: ReleasePlan | None = None
) -> Path:
    """Build the pairs, train, fit the probes, calibrate, measure and write the bundle; what is there already is kept.

    Args:
        run: the variant.
        out: folder of stores, runs and arrays.
        bundle: folder of the bundle.
        workers: processes that render hearts.
        threads: of torch.
        plan: of the release; None for that of the recipe.

    Raises:
        ValueError: the variant is not released on digital hearts, or a part lacks patients.
        ParityError: graph and network disagree.
    """
    chosen = plan or release_plan(run)
    torch.set_num_threads(threads)
    trained = _trained(run, chosen, out, workers)
    patients = release_patients(chosen, out / _ARRAYS, workers=workers)
    probed = probed_network(trained.encoder, patients, chosen)
    for words in probed.heads.chosen:
        _log.info("probe.fitted", chosen=words)
    release = Release(
        data=chosen.data,
        bundle=chosen.bundle,
        batch_size=_BATCH_ECGS,
        estimates=chosen.quantities,
        diseases=chosen.diseases,
        wide_coverage_percent=chosen.wide_coverage_percent,
        parity_tolerance=_PARITY_TOLERANCE,
        metrics=without_ecg(patients, chosen),
        cross_modal=_cross_modal(run, trained, chosen, out, workers),
    )
    return export_bundle(release, probed.network, patients.arrays, patients.split, bundle)


def evaluate_ecg_cmr(run: EcgCmrRun, out: Path, bundle: Path, *, workers: int) -> dict[str, float]:
    """Return the metrics of a bundle on the patients that a release asks at its end, and those of the baseline."""
    plan = release_plan(run)
    patients = release_patients(plan, out / _ARRAYS, workers=workers)
    measured = evaluate_bundle(bundle, patients.arrays, patients.split.test, input_spec(plan.ecgs.ecg))
    return measured | without_ecg(patients, plan)


def _trained(run: EcgCmrRun, plan: ReleasePlan, out: Path, workers: int) -> TrainedEcg:
    name = digest(plan.pairs.name, len(plan.pairs.entries()), repr(dict(plan.pairs.spec)))[:12]
    store = build_pair_store(plan.pairs, out / _STORES / f"pairs-{name}", workers=workers)
    folder = run_folder(run, store, out)
    return train_ecg_cmr(run, store, folder, shared=out / SHARED_FOLDER, progress=_say)


def _cross_modal(
    run: EcgCmrRun, trained: TrainedEcg, plan: ReleasePlan, out: Path, workers: int
) -> CrossModalRelease | None:
    """What the bundle compares an ECG with images by; None where the encoder never saw any, or the plan wants none."""
    if trained.aligned is None or not plan.cross_modal_pairs:
        return None
    source = plan.known_pairs
    name = digest(source.name, source.first, source.patients, repr(dict(source.spec)))[:12]
    store = build_pair_store(source, out / _STORES / f"known-pairs-{name}", workers=workers)
    return cross_modal_release(run, trained.aligned, store, plan)


def _say(text: str) -> None:
    _log.info("ecg_cmr.progress", done=text)


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbedNetwork:
    """The network that is served, and the heads that were put on its embedding."""

    network: EcgVitNet
    heads: LinearHeads


def probed_network(encoder: EcgVit, patients: ReleasePatients, plan: ReleasePlan) -> ProbedNetwork:
    """Put linear probes on an encoder: fitted on the training patients, chosen on the validation patients.

    Who calibrates and who is asked is not looked at.

    Raises:
        ValueError: a part lacks a quantity, or has one class only of a condition.
    """
    train, validation = (
        Part(inputs=_embeddings(encoder, patients, rows), cohort=patients.cohort(rows, plan))
        for rows in _learning_rows(patients)
    )
    heads = linear_heads(train, validation)
    probes = {
        "estimates": _linear(heads.targets_ET, heads.bias_T),
        "disease_logits": _linear(heads.conditions_ED, heads.bias_D),
    }
    return ProbedNetwork(network=EcgVitNet(encoder, probes).eval(), heads=heads)


def _learning_rows(patients: ReleasePatients) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return patients.usable(patients.split.train), patients.usable(patients.split.validation)


def _embeddings(encoder: EcgVit, patients: ReleasePatients, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return torch.cat([embed_ecg(encoder, ecg_BLN) for ecg_BLN in _batches(patients, rows)]).double().numpy()


def _batches(patients: ReleasePatients, rows: NDArray[np.int64]) -> Iterator[Tensor]:
    """ECGs of some rows; the whole set lies in a file and would not fit memory on every machine."""
    for start in range(0, len(rows), _BATCH_ECGS):
        yield torch.from_numpy(np.array(patients.arrays.inputs[rows[start : start + _BATCH_ECGS], 0]))


def _linear(weights_EC: NDArray[np.float64], bias_C: NDArray[np.float64]) -> nn.Linear:
    linear = nn.Linear(*weights_EC.shape)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weights_EC.T))
        linear.bias.copy_(torch.from_numpy(bias_C))
    return linear


def without_ecg(patients: ReleasePatients, plan: ReleasePlan) -> dict[str, float]:
    """Return R2 of each quantity and AUROC of each condition from age, sex, height and weight alone.

    The same probes, fitted on the same training patients and asked about the same test patients as the network's: what an
    ECG adds is only seen beside them.
    """
    train, validation = (patients.cohort(rows, plan) for rows in _learning_rows(patients))
    heads = linear_heads(demographics_only(train), demographics_only(validation))
    test = patients.cohort(patients.usable(patients.split.test), plan)
    return dict(_measured(test, heads))


def _measured(test: Cohort, heads: LinearHeads) -> Iterator[tuple[str, float]]:
    values, logits = heads.values(test.demographics_NG), heads.logits(test.demographics_NG)
    for at, name in enumerate(test.targets):
        yield from _named(
            f"{name}_demographics_only_r_squared", bootstrap(r_squared, test.truth_NT[:, at], values[:, at])
        )
    for at, name in enumerate(test.conditions):
        label = test.label_ND[:, at]
        if 0 < label.sum() < len(label):
            yield from _named(f"{name}_demographics_only_auroc", bootstrap(auroc, label, logits[:, at]))


def _named(name: str, measured: Measured) -> Iterator[tuple[str, float]]:
    yield name, round(measured.value, 4)
    yield f"{name}_low", round(measured.low, 4)
    yield f"{name}_high", round(measured.high, 4)
