"""The equivariant neural field on a CPU: time of one study against its peers, and speed of training.

One study is an end-diastolic and an end-systolic image. The engine (one static graph in ONNX Runtime) is compared with
the same network in eager torch, with the fit by automatic differentiation (frozen poses, and poses that move), and with a
ResNet50 in ONNX Runtime, once and averaged over four quarter turns. All run in one process, one after the other in every
round. Before anything is timed, engine, eager network and both automatic fits must agree.

    python tests/benchmarks/bench_enf.py --out enf.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from training.enf.config import EnfRun
from training.enf.latents import frozen_field
from training.enf.meta import outer_loss
from training.models.enf import Enf
from training.models.enf_fit import FitConfig, fit
from training.models.enf_orbits import pair_tables
from training.models.enf_risk_net import EnfRiskNet
from training.models.invariant_transformer import InvariantTransformer
from training.models.latent_cloud import initial_cloud, pixel_grid
from training.models.pair_resnet import PairResNet
from training.onnx_graph import export_graph
from training.recipes.enf_small import recipe
from training.signature import input_spec

AGREEMENT = 1e-4
MOVING_RATE = 1e-12
"""Poses move, and by so little that the result is that of frozen poses: the work is the same, and it can be checked."""


def main() -> int:
    """Measure and write; 1 when the sides disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    torch.manual_seed(0)
    run = recipe()
    image = np.random.default_rng(0).random((1, 2, *[run.preprocess.size_px] * 2), np.float32)
    rows = [row for threads in options.threads for row in studies(run, image, threads, options.rounds)]
    rows += [row for threads in options.threads for row in training(run, threads, options.rounds)]
    environment = {name: version(name) for name in ("torch", "onnxruntime", "numpy")} | {"machine": platform.machine()}
    result = {"name": "Equivariant neural field on a CPU", "rows": rows, "environment": environment}
    options.out.write_text(json.dumps(result))
    return 0 if all(row["correct"] for row in rows) else 1


def studies(run: EnfRun, image: np.ndarray, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of one study for every arm, and how many times the engine's they are."""
    torch.set_num_threads(threads)
    arms, correct = study_arms(run, image, threads)
    taken = interleaved(arms, rounds)
    ours = statistics.median(taken["engine"])
    return [
        {
            "what": f"one study: {name}",
            "threads": threads,
            "median": statistics.median(times),
            "unit": "ms",
            "times the engine": statistics.median(times) / ours,
            "correct": correct,
        }
        for name, times in taken.items()
    ]


def study_arms(run: EnfRun, image: np.ndarray, threads: int) -> tuple[dict[str, Callable[[], Any]], bool]:
    """Every arm as a function without arguments, and whether they agree."""
    decoder, network = released(run)
    session = opened(export_graph(network, input_spec(run.preprocess), EnfRiskNet.OUTPUTS), threads)
    peer = PairResNet.fifty().eval()
    resnet = opened(export_graph(Named(peer), input_spec(run.preprocess), ["logit"]), threads)
    frames = torch.from_numpy(image)
    turned = [np.ascontiguousarray(np.rot90(image, turns, axes=(2, 3))) for turns in range(4)]
    arms = {
        "engine": lambda: session.run(None, {"image": image}),
        "same network, eager torch": lambda: eager(network, frames),
        "automatic gradients, poses frozen": lambda: automatic(run, decoder, frames, 0.0),
        "automatic gradients, poses moving": lambda: automatic(run, decoder, frames, MOVING_RATE),
        "ResNet50, ONNX Runtime": lambda: resnet.run(None, {"image": image}),
        "ResNet50 C4, ONNX Runtime": lambda: [resnet.run(None, {"image": each}) for each in turned],
    }
    contexts = arms["engine"]()[EnfRiskNet.OUTPUTS.index("contexts")]
    found = [arms[name]() for name in list(arms)[1:4]]
    return arms, all(np.abs(each - contexts).max() <= AGREEMENT for each in found)


class Named(torch.nn.Module):
    """A network of one output under the name of the bundle's."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the logit, [B, 1]."""
        return {"logit": self.network(image)[:, None]}


def released(run: EnfRun) -> tuple[Enf, EnfRiskNet]:
    """An untrained decoder and the network that would be released with it."""
    decoder = Enf(run.shape)
    cloud = initial_cloud(run.shape.latents, run.shape.context_width)
    ones = torch.ones(run.shape.context_width)
    classifier = InvariantTransformer(run.classifier.shape, cloud.poses, 0 * ones, 0.1 * ones)
    field = frozen_field(run, decoder, run.preprocess.size_px)
    return decoder, EnfRiskNet(field, classifier, cloud.poses).eval()


def opened(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime on the CPU."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def eager(network: EnfRiskNet, frames: torch.Tensor) -> np.ndarray:
    """Contexts of the released network in eager torch."""
    return np.asarray(network(frames)["contexts"].numpy())


def automatic(run: EnfRun, decoder: Enf, frames: torch.Tensor, pose_rate: float) -> np.ndarray:
    """Contexts of the reference fit; its classifier is left out, which favours it."""
    config = FitConfig(
        steps=run.fit.steps, lr_context=run.fit.learning_rate, lr_position=pose_rate, lr_orientation=pose_rate
    )
    cloud = initial_cloud(run.shape.latents, run.shape.context_width).to(torch.float32)
    pixels = pixel_grid(frames.shape[-1]).float()
    images = frames.flatten(0, 1).flatten(1)[..., None]
    return np.asarray(fit(decoder, images, pixels, cloud, config, create_graph=False).cloud.contexts.detach()[None])


def training(run: EnfRun, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Outer steps a second, first and second order."""
    torch.set_num_threads(threads)
    decoder = Enf(run.shape)
    size = run.preprocess.size_px
    orbits = np.arange(0, size * size // 4, round(1 / run.meta.pixel_fraction))
    tables = pair_tables(size, run.shape.latents, run.shape.neighbours, orbits)
    frames = torch.rand(run.meta.batch_frames, len(tables.pixels))

    def step(order: str) -> float:
        changed = dataclasses.replace(run, meta=dataclasses.replace(run.meta, order=order))
        loss = outer_loss(changed, decoder, frames, tables)
        loss.backward()
        return float(loss.detach())

    same = abs(step("first") - step("second")) < AGREEMENT
    taken = interleaved({order: lambda order=order: step(order) for order in ("first", "second")}, rounds)
    return [
        {
            "what": f"training, {order} order, {run.meta.batch_frames} frames",
            "threads": threads,
            "median": 1000 / statistics.median(times),
            "unit": "steps/s",
            "times the engine": "",
            "correct": same,
        }
        for order, times in taken.items()
    ]


def interleaved(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every arm in every round; one round before that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for count in range(rounds + 1):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            if count:
                taken[name].append(1000 * (time.perf_counter() - started))
    return taken


if __name__ == "__main__":
    sys.exit(main())
