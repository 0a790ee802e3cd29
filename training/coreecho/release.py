"""From a recipe on clips to a bundle: videos of digital hearts, both stages, calibration, one graph.

The network is trained on videos and released on what the serving path prepares: both are the same pixels of the same hearts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import structlog
import torch

from training.config import TrainingInputs
from training.coreecho.config import AnyEchoRun, CoReEchoRun, training_digest, with_weights
from training.coreecho.networks import EchoNetwork
from training.coreecho.stages import train_echo
from training.coreecho.video_sets import Parts, echonet, release_phantoms
from training.data.heart_arrays import HeartArrays, heart_arrays
from training.data.splits import Split, split_hearts
from training.evaluate import evaluate_bundle
from training.export import Release, export_bundle
from training.signature import input_spec
from training.view_gate import GatePart, read_gate

_BATCH_CLIPS = 16
_ARRAYS, _STORES = "arrays", "stores"
_log = structlog.get_logger()


def train_echo_run(run: AnyEchoRun, out: Path, options: TrainingInputs, *, workers: int, threads: int) -> Path:
    """Train a run below ``out``, or finish it; returns its folder."""
    own = with_weights(run, options.weights)
    if options.data is None:
        videos = release_videos(own, out, workers)
    else:
        videos = echonet(options.data, own, out / _STORES, workers=workers, progress=_say)
    _trained(own, videos, out, threads, options.device)
    return run_folder(own, videos, out)


def release_echo(  # noqa: PLR0913 - what, where from, where to, and how
    run: AnyEchoRun, out: Path, bundle: Path, *, workers: int, threads: int, gate: Path | None = None
) -> Path:
    """Train where needed, then write the bundle, with the view check of the folder ``gate``; returns its folder."""
    network = _trained(run, release_videos(run, out, workers), out, threads, "cpu")
    arrays, split = _hearts(run, out, workers)
    part = None if gate is None else read_gate(gate)
    release = release_with(run, part)
    return export_bundle(release, _deployable(run, network), arrays, split, bundle)


def release_with(run: AnyEchoRun, gate: GatePart | None) -> Release:
    """Return what the bundle of a run says; real clips that trained its view check are named with the training data."""
    if gate is None:
        return Release(data=run.data, bundle=run.bundle, batch_size=_BATCH_CLIPS)
    words = run.bundle
    if gate.real_loops:
        clips = "1 real clip" if gate.real_loops == 1 else f"{gate.real_loops} real clips"
        words = replace(words, training_data=f"digital phantoms (its view check also on {clips})")
    metrics = {f"view_check_{name}": value for name, value in gate.metrics.items()}
    return Release(data=run.data, bundle=words, batch_size=_BATCH_CLIPS, gate=gate, metrics=metrics)


def evaluate_echo(run: AnyEchoRun, out: Path, bundle: Path, *, workers: int) -> dict[str, float]:
    """Return the metrics of a bundle on the test hearts of a run."""
    arrays, split = _hearts(run, out, workers)
    return evaluate_bundle(bundle, arrays, split.test, input_spec(run.preprocess))


def release_videos(run: AnyEchoRun, out: Path, workers: int) -> Parts:
    """Return the videos of the hearts of a release, made where missing."""
    return release_phantoms(run, out / _STORES, workers=workers)


def run_folder(run: AnyEchoRun, videos: Parts, out: Path) -> Path:
    """Return where a run lives; another config or other videos have another folder."""
    digest = training_digest(run, videos.train.sha256, videos.validation.sha256)
    return out / f"{run.recipe}-{digest[:12]}"


def _trained(run: AnyEchoRun, videos: Parts, out: Path, threads: int, device: str) -> EchoNetwork:
    torch.set_num_threads(threads)
    folder = run_folder(run, videos, out)
    return train_echo(run, videos.train, videos.validation, folder, device=device, progress=_say).network


def _say(text: str) -> None:
    _log.info("echo.progress", done=text)


def _deployable(run: AnyEchoRun, network: EchoNetwork) -> EchoNetwork:
    """Return CoReEcho with every normalisation folded into its neighbours; another network as it is."""
    if not isinstance(run, CoReEchoRun):
        return network
    from training.models.coreecho_net import folded

    return folded(network)


def _hearts(run: AnyEchoRun, out: Path, workers: int) -> tuple[HeartArrays, Split]:
    arrays = heart_arrays(out / _ARRAYS, run.data, input_spec(run.preprocess), workers=workers)
    return arrays, split_hearts(run.data.hearts, run.data.split, run.data.seed)
