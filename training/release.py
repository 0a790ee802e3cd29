"""From a recipe to a bundle in one go: arrays, training, export. Each step takes up where it was interrupted.

Called by the command line.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.config import FROM_PHANTOMS, RunConfig, TrainingInputs, ViewDataConfig
from training.coreecho.config import AnyEchoRun, EchoRun
from training.coreecho.release import evaluate_echo, release_echo, train_echo_run
from training.data.heart_arrays import HeartArrays, heart_arrays
from training.data.sources.labelled_loops import labelled_loops, with_labelled_loops
from training.data.splits import Split, split_hearts
from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.release import evaluate_ecg_cmr, release_ecg_cmr, train_on_pairs
from training.enf.config import EnfRun
from training.enf.release import evaluate_enf, release_enf, train_enf
from training.evaluate import evaluate_bundle
from training.export import Release, export_bundle
from training.loop import run_digest, train
from training.signature import input_of, input_spec
from training.view_gate import export_gate, read_gate

ARRAYS_FOLDER = "arrays"
AnyRun = RunConfig | EnfRun | AnyEchoRun | EcgCmrRun


__all__ = ["evaluate_run", "release_run", "run_folder", "train_run"]


def train_run(config: AnyRun, out: Path, *, workers: int, threads: int, given: TrainingInputs = FROM_PHANTOMS) -> Path:
    """Train a run below ``out`` and return its folder.

    Raises:
        ValueError: a data set, weights or a device for a run that is not on clips.
    """
    if isinstance(config, EchoRun):
        return train_echo_run(config, out, given, workers=workers, threads=threads)
    if isinstance(config, EcgCmrRun):
        return train_on_pairs(config, out, given, threads=threads)
    if given != FROM_PHANTOMS:
        raise ValueError(f"{config.recipe} is no recipe on clips; leave out the data set, the weights and the device")
    if isinstance(config, EnfRun):
        return train_enf(config, out, workers=workers, threads=threads)
    torch.set_num_threads(threads)
    arrays, split = _hearts(config, out, workers)
    folder = run_folder(config, arrays, out)
    train(config, arrays, split, folder)
    return folder


def release_run(  # noqa: PLR0913 - what, where from, where to, and how
    config: AnyRun,
    out: Path,
    bundle: Path,
    *,
    workers: int,
    threads: int,
    gate: Path | None = None,
    clips: Path | None = None,
) -> Path:
    """Train where needed, then write the bundle; returns its folder.

    A view network becomes a gate: a folder that ``gate`` of the release of an echo engine takes. ``clips`` holds real clips
    of a named view that train it too.

    Raises:
        ValueError: real clips for a network that tells no views, or a broken folder of them.
    """
    if isinstance(config, RunConfig) and isinstance(config.data, ViewDataConfig):
        return _release_gate(config, config.data, out, bundle, workers=workers, threads=threads, clips=clips)
    if clips is not None:
        raise ValueError(f"{config.recipe} tells no views; leave out the clips")
    if isinstance(config, EchoRun):
        return release_echo(config, out, bundle, workers=workers, threads=threads, gate=gate)
    if isinstance(config, EnfRun):
        return release_enf(config, out, bundle, workers=workers, threads=threads)
    if isinstance(config, EcgCmrRun):
        return release_ecg_cmr(config, out, bundle, workers=workers, threads=threads)
    torch.set_num_threads(threads)
    arrays, split = _hearts(config, out, workers)
    network = train(config, arrays, split, run_folder(config, arrays, out))
    part = None if gate is None else read_gate(gate)
    release = Release(data=config.data, bundle=config.bundle, batch_size=config.optim.batch_size, gate=part)
    return export_bundle(release, network, arrays, split, bundle)


def _release_gate(  # noqa: PLR0913 - as above
    config: RunConfig, data: ViewDataConfig, out: Path, folder: Path, *, workers: int, threads: int, clips: Path | None
) -> Path:
    torch.set_num_threads(threads)
    arrays, split = _hearts(config, out, workers)
    if clips is None:
        return export_gate(config, train(config, arrays, split, run_folder(config, arrays, out)), arrays, split, folder)
    loops = labelled_loops(clips, data)
    shown, shown_split = with_labelled_loops(arrays, split, loops)
    network = train(config, shown, shown_split, run_folder(config, shown, out))
    return export_gate(config, network, arrays, split, folder, real_loops=len(loops.views))


def evaluate_run(config: AnyRun, out: Path, bundle: Path, *, workers: int) -> dict[str, float]:
    """Return the metrics of a bundle on the test hearts of a run."""
    if isinstance(config, EchoRun):
        return evaluate_echo(config, out, bundle, workers=workers)
    if isinstance(config, EnfRun):
        return evaluate_enf(config, out, bundle, workers=workers)
    if isinstance(config, EcgCmrRun):
        return evaluate_ecg_cmr(config, out, bundle, workers=workers)
    arrays, split = _hearts(config, out, workers)
    return evaluate_bundle(bundle, arrays, split.test, input_spec(config.data.preprocess))


def run_folder(config: RunConfig, arrays: HeartArrays, out: Path) -> Path:
    """Return where a run lives; another config or other data has another folder."""
    return out / f"{config.recipe}-{run_digest(config, arrays)[:12]}"


def _hearts(config: RunConfig, out: Path, workers: int) -> tuple[HeartArrays, Split]:
    spec = input_of(config.data)
    arrays = heart_arrays(out / ARRAYS_FOLDER, config.data, spec, workers=workers)
    return arrays, split_hearts(config.data.hearts, config.data.split, config.data.seed)
