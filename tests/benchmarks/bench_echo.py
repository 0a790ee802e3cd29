"""Echo engines on a CPU: time of one clip in the engine's runtimes against eager torch, torch.compile and ONNX Runtime.

The networks are the small clip network and the space-time Transformer in two sizes, as they are released (one channel, norms
folded), in eager torch also in their published layers. Weights are untrained, which costs the same; the installed echo bundle
is measured too, in the runtimes that can read it. Each network is exported to ONNX as for a bundle, and every arm answers the
same clip before it is timed: in fp32 within ``FP32_POINTS`` EF points of eager torch, in bf16 within ``BF16_POINTS``. All arms of
a network run in one process, one after the other in every round.

The peak is a square matrix product of the same library, precision and threads in the same run: what share of it an arm reaches
says what limits it. Times are of this machine and of what else it does; the ratios are what to compare.

    python -m tests.benchmarks.bench_echo --out echo.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from torch.utils.flop_counter import FlopCounterMode

from engines.bundle.parts import TensorSpec
from engines.bundle.reader import load_bundle, released_bundle
from engines.records import Modality
from engines.runtime.open import RUNTIMES
from engines.runtime.openvino_runner import compiled
from tests.benchmarks.interleave import interleaved
from training.models.coreecho_net import CoReEchoNet, folded
from training.models.echo_clip_net import EchoClipNet
from training.models.ef_regressor import EfRegressor
from training.models.uniformer import UniFormer, UniFormerShape
from training.onnx_graph import export_graph, opened_graph

FP32_POINTS, BF16_POINTS = 1e-3, 0.1
TARGETS = {"fp32": 2.0, "bf16": 3.0}
"""How many times faster than eager torch in fp32 the engine is meant to be, by its precision."""
PEAK_SIDE = 1024
Arm = Callable[[], float]


def main() -> int:
    """Measure and write; 1 when an arm in fp32 disagrees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--networks", nargs="*", default=None, help="of those that are there; all without")
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    options = parser.parse_args()
    torch.manual_seed(0)
    makers = {name: make for name, make in networks().items() if options.networks is None or name in options.networks}
    rows = [
        row for threads in options.threads for name in makers for row in measure(name, makers[name], threads, options)
    ]
    rows += [row for threads in options.threads for row in bundle_rows(threads, options.rounds)]
    packages = ("torch", "openvino", "onnxruntime", "numpy")
    environment = {name: version(name) for name in packages} | {"machine": platform.machine()}
    options.out.write_text(json.dumps({"name": "Echo engines on a CPU", "rows": rows, "environment": environment}))
    return 0 if all(row["correct"] for row in rows if row["precision"] == "fp32") else 1


def networks() -> dict[str, Callable[[], Measured]]:
    """What is measured: name -> how to make it."""
    return {
        "EchoClipNet": lambda: Measured(network=EchoClipNet.small(), spec=clip_spec(28, 64)),
        "UniFormer small": lambda: uniformer(UniFormerShape.small()),
        "UniFormer-S": lambda: uniformer(UniFormerShape.published()),
    }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network as it is released, its input, and the same network in its published layers where they differ."""

    network: torch.nn.Module
    spec: TensorSpec
    as_published: torch.nn.Module | None = None


def uniformer(shape: UniFormerShape) -> Measured:
    """The network that would be released: one channel, norms folded; as published it has three and its norms."""
    published = CoReEchoNet(UniFormer(shape), EfRegressor(shape.widths[-1])).eval()
    return Measured(network=folded(published), spec=clip_spec(shape.frames, shape.size_px), as_published=published)


def clip_spec(frames: int, size_px: int) -> TensorSpec:
    """A clip of 8-bit grey values."""
    return TensorSpec(name="clip", dtype="uint8", shape=(-1, 1, frames, size_px, size_px))


def measure(name: str, make: Callable[[], Measured], threads: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every arm of one network on so many threads."""
    torch.set_num_threads(threads)
    made = make()
    network = made.network.eval()
    clip = np.random.default_rng(0).integers(0, 256, (1, *made.spec.shape[1:]), dtype=np.uint8)
    arms = arms_of(made, clip, threads, with_compile=not options.without_compile)
    answers = {arm: run() for arm, run in arms.items()}
    taken = interleaved(arms, options.rounds)
    gmac, peaks = gmac_of(network, clip), {precision: peak_gmac_s(precision) for precision in ("fp32", "bf16")}
    base = "eager torch, fp32"
    return [
        row(name, arm, threads, times, taken[base], abs(answers[arm] - answers[base]), gmac, peaks)
        for arm, times in taken.items()
    ]


def arms_of(made: Measured, clip: np.ndarray, threads: int, *, with_compile: bool) -> dict[str, Arm]:
    """Every way to answer, as a function that gives the ejection fraction."""
    network, published = made.network, made.as_published
    graph = export_graph(network, made.spec, ["ef", "embedding"])
    session = opened_graph(graph, threads)
    tensor = torch.from_numpy(clip)
    arms: dict[str, Arm] = {
        "engine (OpenVINO), fp32": openvino_arm(graph, clip, threads, "f32"),
        "engine (OpenVINO), bf16": openvino_arm(graph, clip, threads, "bf16"),
        "ONNX Runtime, fp32": lambda: float(session.run(["ef"], {"clip": clip})[0][0, 0]),
        "eager torch, fp32": lambda: torch_answer(network, tensor, bf16=False),
        "eager torch, bf16": lambda: torch_answer(network, tensor, bf16=True),
    }
    if published is not None:
        arms["eager torch, layers as published, fp32"] = lambda: torch_answer(published, tensor, bf16=False)
    if with_compile:
        arms["torch.compile, fp32"] = compiled_arm(network, tensor)
    return arms


def openvino_arm(graph: bytes, clip: np.ndarray, threads: int, precision: str) -> Arm:
    """The engine's own settings; only the precision may differ."""
    request = compiled(openvino, graph, threads, precision).create_infer_request()
    return lambda: float(request.infer({"clip": clip}, share_inputs=False, share_outputs=False)["ef"][0, 0])


@torch.inference_mode()
def torch_answer(network: Any, clip: torch.Tensor, *, bf16: bool) -> float:
    """The ejection fraction in torch."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return float(network(clip)["ef"][0, 0])


def compiled_arm(network: torch.nn.Module, clip: torch.Tensor) -> Arm:
    """The same network through torch.compile; a machine without a C++ compiler fails here and says so."""
    network = torch.compile(network)
    return lambda: torch_answer(network, clip, bf16=False)


@torch.inference_mode()
def gmac_of(network: torch.nn.Module, clip: np.ndarray) -> float:
    """Multiply-accumulates of one clip, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        network(torch.from_numpy(clip))
    return float(counter.get_total_flops()) / 2e9


def peak_gmac_s(precision: str) -> float:
    """The best of several square matrix products, 10^9 multiply-accumulates a second, on the threads that are set."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    left, right = (torch.rand(PEAK_SIDE, PEAK_SIDE).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        left @ right
        best = max(best, PEAK_SIDE**3 / 1e9 / (time.perf_counter() - started))
    return best


def row(  # noqa: PLR0917 - one line of a table
    name: str,
    arm: str,
    threads: int,
    times_ms: list[float],
    base_ms: list[float],
    points: float,
    gmac: float,
    peaks: dict[str, float],
) -> dict[str, Any]:
    """What one arm did."""
    precision = arm.rsplit(" ", maxsplit=1)[1]
    median = statistics.median(times_ms)
    faster = statistics.median(base / own for base, own in zip(base_ms, times_ms, strict=True))
    target = TARGETS[precision] if arm.startswith("engine") else None
    return {
        "network": name,
        "arm": arm,
        "precision": precision,
        "threads": threads,
        "median ms": median,
        "times faster than eager": faster,
        "target": "" if target is None else f"{target:g}x {'reached' if faster >= target else 'missed'}",
        "EF points off": points,
        "GMAC": gmac,
        "share of peak": gmac / median * 1000 / peaks[precision],
        "peak GMAC/s": peaks[precision],
        "correct": points <= (FP32_POINTS if precision == "fp32" else BF16_POINTS),
    }


def bundle_rows(threads: int, rounds: int) -> list[dict[str, Any]]:
    """The installed echo bundle, one clip of its golden records, in every runtime of the engine."""
    bundle = load_bundle(released_bundle(Modality.ECHO))
    case = bundle.golden()[0]
    clip, stored = case.prepared["clip"][:1], float(case.outputs["ef"][0, 0])
    runners = {name: open_runner(bundle, threads) for name, open_runner in RUNTIMES.items()}
    arms: dict[str, Arm] = {
        name: (lambda runner=runner: float(runner.run({"clip": clip})["ef"][0, 0])) for name, runner in runners.items()
    }
    points = {name: abs(arm() - stored) for name, arm in arms.items()}
    taken = interleaved(arms, rounds)
    tolerance = bundle.manifest.golden.output_tolerance["ef"]
    return [
        {
            "network": f"bundle {bundle.manifest.name} {bundle.manifest.version}",
            "arm": f"engine ({name})",
            "precision": "fp32",
            "threads": threads,
            "median ms": statistics.median(times),
            "times faster than eager": "",
            "target": "",
            "EF points off": points[name],
            "GMAC": "",
            "share of peak": "",
            "peak GMAC/s": "",
            "correct": points[name] <= tolerance,
        }
        for name, times in taken.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
