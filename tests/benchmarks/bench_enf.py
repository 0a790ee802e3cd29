"""The equivariant neural field on a CPU: time of one study against its peers, and speed of training.

Two images, end-diastole and end-systole: the engine (one static graph in OpenVINO, with the settings it is served with) is
compared with the same graph in ONNX Runtime, with the same network in eager torch, with the fit by automatic
differentiation in eager torch (poses frozen, layers folded or as published; poses that move), and with a ResNet50 in ONNX
Runtime, once and averaged over four quarter turns. A decoded stack to its class: the same preprocessing, then the field or
the ResNet50. Training: whole outer steps (batch, tables, loss, gradients, optimiser), first and second order.

All run in one process, one after the other in every round. Before anything is timed, engine, eager network and both
automatic fits must agree, both networks must answer the stack as eager torch does, and both orders must start from the
same error. Times are of this machine and of what else it does; the ratios are what to compare.

    python -m tests.benchmarks.bench_enf --out enf.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch

from engines.preprocess.registry import prepare
from engines.records import CineStack
from engines.runtime.openvino_runner import compiled
from tests.benchmarks.interleave import interleaved
from training.enf.config import EnfRun
from training.enf.latents import frozen_field
from training.enf.meta import MetaState, outer_step
from training.enf.pairs import Pairs
from training.models.enf import Enf, Geometry, rows_near
from training.models.enf_fit import FitConfig, fit
from training.models.enf_risk_net import EnfRiskNet
from training.models.invariant_transformer import InvariantTransformer
from training.models.latent_cloud import initial_cloud, pixel_grid
from training.models.pair_resnet import PairResNet
from training.onnx_graph import export_graph
from training.phantoms.cmr import cmr_stack
from training.phantoms.subjects import draw_subject
from training.recipes.enf_small import recipe
from training.signature import input_spec

AGREEMENT = 1e-4
AT_LEAST = 4.0
"""How many times faster than eager torch and than the form with moving poses the engine is meant to be."""
PEERS = (
    "images: same network, eager torch",
    "images: eager torch, automatic gradients, poses frozen",
    "images: eager torch, layers as published, poses frozen",
    "images: eager torch, automatic gradients, poses moving",
)
BASES = {"images": "images: engine", "stack to class": "stack to class: engine"}
"""The arm that the others of its kind are compared with."""
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
    stack = cmr_stack(draw_subject(np.random.default_rng(0)), np.random.default_rng(0))
    rows = [row for threads in options.threads for row in studies(run, image, stack, threads, options.rounds)]
    rows += [row for threads in options.threads for row in training(run, threads, options.rounds)]
    environment = {name: version(name) for name in ("torch", "openvino", "onnxruntime", "numpy")} | {
        "machine": platform.machine()
    }
    result = {"name": "Equivariant neural field on a CPU", "rows": rows, "environment": environment}
    options.out.write_text(json.dumps(result))
    return 0 if all(row["correct"] for row in rows) else 1


def studies(run: EnfRun, image: np.ndarray, stack: CineStack, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of one study for every arm, how many times the engine's they are, and whether that is enough."""
    torch.set_num_threads(threads)
    arms, correct = study_arms(run, image, stack, threads)
    taken = interleaved(arms, rounds)
    ratios = {name: times_engine(taken, name) for name in arms}
    return [
        {
            "what": name,
            "threads": threads,
            "median": statistics.median(taken[name]),
            "unit": "ms",
            "times the engine": ratios[name],
            "at least 4x": "" if name not in PEERS else "yes" if ratios[name] >= AT_LEAST else "no",
            "correct": correct,
        }
        for name in arms
    ]


def times_engine(taken: dict[str, list[float]], name: str) -> float:
    """How many times as long an arm takes as the engine on the same input: the median over the rounds of their ratio."""
    base = BASES[name.split(":", maxsplit=1)[0]]
    return statistics.median(time / engine for time, engine in zip(taken[name], taken[base], strict=True))


def study_arms(
    run: EnfRun, image: np.ndarray, stack: CineStack, threads: int
) -> tuple[dict[str, Callable[[], Any]], bool]:
    """Every arm as a function without arguments, and whether they agree."""
    decoder, network = released(run)
    published = AsPublished(run.shape)
    published.load_state_dict(decoder.state_dict())
    graph = export_graph(network, input_spec(run.preprocess), EnfRiskNet.OUTPUTS)
    engine, session = served(graph, threads), opened(graph, threads)
    peer = Named(PairResNet.fifty()).eval()
    resnet = opened(export_graph(peer, input_spec(run.preprocess), ["logit"]), threads)
    frames, contexts_at = torch.from_numpy(image), EnfRiskNet.OUTPUTS.index("contexts")

    def resnet_logit(x: np.ndarray) -> Any:
        return resnet.run(["logit"], {"image": x})[0]

    turned = [np.ascontiguousarray(np.rot90(image, turns, axes=(2, 3))) for turns in range(4)]
    arms = {
        "images: engine": lambda: engine(image)["contexts"],
        "images: same graph, ONNX Runtime": lambda: session.run(None, {"image": image})[contexts_at],
        "images: same network, eager torch": lambda: eager(network, frames),
        "images: eager torch, automatic gradients, poses frozen": lambda: automatic(run, decoder, frames, 0.0),
        "images: eager torch, layers as published, poses frozen": lambda: automatic(run, published, frames, 0.0),
        "images: eager torch, automatic gradients, poses moving": lambda: automatic(run, decoder, frames, MOVING_RATE),
        "images: ResNet50, ONNX Runtime": lambda: resnet.run(None, {"image": image}),
        "images: ResNet50 C4, ONNX Runtime": lambda: [resnet.run(None, {"image": each}) for each in turned],
        "stack to class: preprocessing alone": lambda: prepare(stack, run.preprocess),
        "stack to class: engine": lambda: stack_logit(run, stack, lambda x: engine(x)["logit"]),
        "stack to class: ResNet50, ONNX Runtime": lambda: stack_logit(run, stack, resnet_logit),
    }
    contexts = arms["images: engine"]()
    found = [arms[name]() for name in list(arms)[1:6]]
    fits_agree = all(np.abs(each - contexts).max() <= AGREEMENT for each in found)
    answers = ((lambda x: engine(x)["logit"], network), (resnet_logit, peer))
    return arms, fits_agree and all(answers_as(run, stack, *pair) for pair in answers)


Answer = Callable[[np.ndarray], Any]
"""Image [1, 2, S, S] to its logit [1, 1]."""


def stack_logit(run: EnfRun, stack: CineStack, answer: Answer) -> float:
    """Logit of a decoded stack; its sign is the class."""
    return float(answer(prepare(stack, run.preprocess).arrays["image"])[0, 0])


@torch.inference_mode()
def answers_as(run: EnfRun, stack: CineStack, answer: Answer, network: torch.nn.Module) -> bool:
    """Whether a graph answers a stack as its network does in eager torch."""
    image = torch.from_numpy(prepare(stack, run.preprocess).arrays["image"])
    expected = float(network(image)["logit"])
    return abs(stack_logit(run, stack, answer) - expected) <= AGREEMENT * max(1.0, abs(expected))


class AsPublished(Enf):
    """The same decoder with its layers one after the other, as the paper writes them: nothing is folded beforehand."""

    def folded_query(self, a: torch.Tensor) -> torch.Tensor:
        """Return the queries themselves, [G, P, K, H, A]."""
        return self.query(self.query_embedding(a)).unflatten(-1, (self.shape.heads, -1))

    def decode(self, geometry: Geometry, contexts_BNC: torch.Tensor) -> torch.Tensor:
        """Return [B, P, O]."""
        near = rows_near(contexts_BNC, geometry.index)  # [B, P, K, C]
        keys = self.key(near).unflatten(-1, (self.shape.heads, -1))  # [B, P, K, H, A]
        asked = (geometry.query * keys).sum(dim=-1) + geometry.window_logit[..., None]
        film = self.value(near) * (1.0 + geometry.scale) + geometry.shift
        hidden = torch.nn.functional.gelu(self.value_hidden(film), approximate="tanh")
        values = self.value_out(hidden).unflatten(-1, (self.shape.heads, -1))  # [B, P, K, H, E]
        return self.head((torch.softmax(asked, dim=2)[..., None] * values).sum(dim=2).flatten(2))


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


def served(graph: bytes, threads: int) -> Callable[[np.ndarray], Any]:
    """OpenVINO with the settings of the runner that serves: an image to all outputs by name."""
    request = compiled(openvino, graph, threads).create_infer_request()
    return lambda image: request.infer({"image": image}, share_inputs=False, share_outputs=False)


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
    """Whole outer steps a second, first and second order, each with a decoder and an optimiser of its own."""
    torch.set_num_threads(threads)
    pairs = noise_hearts(run)
    steps = {order: outer_steps(run, order, pairs) for order in ("first", "second")}
    first, second = (step() for step in steps.values())
    taken = interleaved(steps, rounds)
    return [
        {
            "what": f"training: outer step, {order} order, {run.meta.batch_frames} frames",
            "threads": threads,
            "median": 1000 / statistics.median(times),
            "unit": "steps/s",
            "times the engine": "",
            "at least 4x": "",
            "correct": abs(first - second) < AGREEMENT,
        }
        for order, times in taken.items()
    ]


def outer_steps(run: EnfRun, order: str, pairs: Pairs) -> Callable[[], float]:
    """Return what takes the next outer step of a run of its own and gives its error before the step."""
    changed = dataclasses.replace(run, meta=dataclasses.replace(run.meta, order=order))
    torch.manual_seed(run.seed)
    decoder = Enf(run.shape)
    state = MetaState(enf=decoder, optimizer=torch.optim.Adam(decoder.parameters(), lr=run.meta.learning_rate))

    def step() -> float:
        error = outer_step(changed, state, pairs)
        state.iteration += 1
        return error

    return step


def noise_hearts(run: EnfRun, count: int = 8) -> Pairs:
    """Wide crops of noise: what a view costs does not depend on what it shows."""
    wide = 2 * run.preprocess.size_px
    return Pairs(
        wide_N2WW=np.random.default_rng(0).random((count, 2, wide, wide), np.float32),
        lvef_percent=np.linspace(20.0, 60.0, count),
        keys=tuple(f"noise {number}" for number in range(count)),
        spec=run.preprocess,
    )


if __name__ == "__main__":
    sys.exit(main())
