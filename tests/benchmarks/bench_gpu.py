"""Every engine on a GPU: plans and their gate, latency of all sides, studies an hour, training steps, and what goes wrong.

One command of under 25 minutes. Each section has a time budget, and all of them together stay
under 25 minutes. It runs with whatever is installed, and says what was left out and why. Correct first: a side that does
not answer as the golden vectors say scores nothing, and the exit code is 1. Results are written as they come.

    python -m tests.benchmarks.bench_gpu --out out/bench-gpu
    python -m tests.benchmarks.bench_gpu --out out/bench-gpu --device cpu      # a quick look at the benchmark itself
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engines.bundle.reader import Bundle, load_bundle, released_bundle
from engines.errors import DeviceUnavailable, InferenceError
from engines.records import Modality
from engines.runtime.cuda import Device, open_cuda
from tests.benchmarks.on_gpu.arms import Arm, host_arms
from tests.benchmarks.on_gpu.latency import Turns, measure_latency
from tests.benchmarks.on_gpu.load import measure_load
from tests.benchmarks.on_gpu.peaks import PEAKS, Peak, dense_fp16_peak
from tests.benchmarks.on_gpu.plans import Plans, Workshop, make_plans, open_workshop, tensorrt_arms
from tests.benchmarks.on_gpu.recovery import measure_foreign_plan, measure_recovery
from tests.benchmarks.on_gpu.results import Recorder, Results
from tests.benchmarks.on_gpu.studies import Load, measure_studies
from tests.benchmarks.on_gpu.training_steps import measure_training, works_for

ROOT = Path(__file__).resolve().parents[2]
TOTAL_S = 23.5 * 60
"""Of all sections; loading libraries and closing engines come on top."""
MODALITIES = tuple(modality.value for modality in Modality)
_PACKAGES = (
    "torch",
    "triton",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "onnx",
    "cuda-bindings",
    "tensorrt",
    "tensorrt-cu13-bindings",
    "tensorrt-cu12-bindings",
    "tensorrt-rtx-cu13-bindings",
    "numpy",
)


@dataclass
class Bench:
    """What the sections share.

    Args:
        options: of the command line.
        bundles: to measure.
        gpu: the device, or None on a CPU.
        extra_arms: further sides; tests put wrong ones here.
        workshop, plans: once the first section has made them.
    """

    options: argparse.Namespace
    bundles: list[Bundle]
    gpu: Device | None
    extra_arms: tuple[Arm, ...] = ()
    workshop: Workshop | None = None
    plans: Plans = field(default_factory=Plans)

    @property
    def folder(self) -> Path:
        """Of the plans."""
        return Path(self.options.plans or self.options.out / "plans")

    @property
    def peak(self) -> Peak | None:
        """Of the device, or None where it is not known."""
        return dense_fp16_peak(self.gpu.name) if self.gpu else None

    def make_plans(self, section: Recorder) -> None:
        """Build and verify; everything after this runs without plans where there is no GPU."""
        if self.options.device == "cpu":
            section.leave_out("TensorRT, TensorRT-RTX", "they need a GPU, and --device is cpu")
            return
        self.workshop = open_workshop(self.folder, max(self.options.batches), section)
        if self.workshop is not None:
            self.plans = make_plans(self.workshop, self.bundles, self.options.precisions, section)

    def latency(self, section: Recorder) -> None:
        """All sides at all batch sizes."""
        options = self.options
        section.leave_out("UniFormer-S", _uniformer())
        if self.gpu is not None and self.peak is None:
            known = ", ".join(peak.part for peak in PEAKS)
            section.leave_out("% of FP16 peak", f"the peak of {self.gpu.name} is not known here; known: {known}")
        arms = [*self.extra_arms, *host_arms(options.device, options.precisions, section, compiled=options.compile)]
        if self.workshop is not None:
            arms += tensorrt_arms(self.workshop, self.plans, options.precisions, section)
        turns = Turns(rounds=options.rounds, repeats=options.repeats, seed=options.seed)
        measure_latency(self.bundles, arms, section, batches=options.batches, turns=turns, peak=self.peak)

    def studies(self, section: Recorder) -> None:
        """DICOM to prediction."""
        load = Load(studies=self.options.studies, repeats=2, readers=self.options.readers)
        measure_studies(self.bundles, self.workshop, self.plans, load, section)

    def training(self, section: Recorder) -> None:
        """Steps a second."""
        options = self.options
        measure_training(works_for(options.device), options.device, options.steps, section, compiled=options.compile)

    def load(self, section: Recorder) -> None:
        """Poisson arrivals."""
        measure_load(self.bundles, self.workshop, self.plans, section)

    def foreign(self, section: Recorder) -> None:
        """TensorRT-RTX on a GPU that is not among its targets."""
        measure_foreign_plan(self.bundles[0], self.options.device, self.folder, max(self.options.batches), section)

    def recovery(self, section: Recorder) -> None:
        """Killed, starved, lost."""
        measure_recovery(self.bundles[0], self.options.device, self.folder, max(self.options.batches), section)


@dataclass(frozen=True)
class Part:
    """A section: its title, its seconds at most, and what fills it."""

    title: str
    budget_s: float
    fill: Callable[[Bench, Recorder], None]


PARTS = {
    "plans": Part("Plans: build and parity gate", 360, Bench.make_plans),
    "latency": Part("Latency from host to host, and time of the GPU", 480, Bench.latency),
    "studies": Part("Studies an hour, from DICOM to a prediction", 150, Bench.studies),
    "training": Part("Training steps a second", 180, Bench.training),
    "load": Part("Cross-study batching, Poisson load", 100, Bench.load),
    "rtx": Part("Plans of TensorRT-RTX on this GPU", 50, Bench.foreign),
    "recovery": Part("Killed, out of GPU memory, context lost", 90, Bench.recovery),
}
OPTIONAL = ("load", "rtx", "recovery")
"""Last, so that want of time costs these."""


def main(arguments: list[str] | None = None, extra_arms: Iterable[Arm] = ()) -> int:
    """Measure and write; 1 where something computes something else."""
    options = _options(arguments)
    gpu, absence = _gpu(options.device)
    if options.device == "cuda" and gpu is None:
        _say(f"no GPU: {absence}; --device cpu shows the benchmark itself")
        return 2
    results = Results(options.out, _environment(gpu), total_s=TOTAL_S * options.patience, say=_say)
    bundles = [load_bundle(released_bundle(Modality(name))) for name in options.engines]
    bench = Bench(options=options, bundles=bundles, gpu=gpu, extra_arms=tuple(extra_arms))
    for name, part in PARTS.items():
        if name in options.sections:
            with results.section(name, part.title, part.budget_s * options.patience) as section:
                if section.has_time("the whole section"):
                    part.fill(bench, section)
    results.finish()
    _say(f"written to {options.out}/results.json and results.md")
    return 1 if results.any_wrong else 0


def _uniformer() -> str:
    """Why the goals stated for it are not measured."""
    names = [module.name for module in pkgutil.iter_modules([str(ROOT / "training" / "models")])]
    there = any("uniformer" in name for name in names)
    return f"{'no bundle of it is released' if there else 'training.models has no such network'}; its goals are not measured"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--sections", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--engines", nargs="+", choices=MODALITIES, default=["ecg", "echo", "cmr"])
    parser.add_argument(
        "--precisions", nargs="+", choices=["fp32", "fp32+tf32", "fp16", "bf16"], default=["fp32", "fp16"]
    )
    parser.add_argument("--batches", nargs="+", type=int, help="default 1 2 4 8 16 32; on a CPU 1 2")
    parser.add_argument("--rounds", type=int, help="turns of each side; default 5, on a CPU 2")
    parser.add_argument("--repeats", type=int, help="timed runs in a turn; default 40, on a CPU 1")
    parser.add_argument("--steps", type=int, help="of training; default 20, on a CPU 1")
    parser.add_argument("--studies", type=int, help="different ones per modality; default 4, on a CPU 1")
    parser.add_argument("--readers", type=int, help="processes that read; default one fewer than cores, on a CPU none")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default yes, on a CPU no")
    parser.add_argument("--plans", type=Path, help="folder of plans; default beside the results")
    parser.add_argument("--patience", type=float, help="times the seconds of all sections; default 1, on a CPU 10")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the turns")
    options = parser.parse_args(arguments)
    for name, (on_gpu, on_cpu) in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, on_cpu if options.device == "cpu" else on_gpu)
    return options


_DEFAULTS: dict[str, tuple[Any, Any]] = {
    "batches": ([1, 2, 4, 8, 16, 32], [1, 2]),
    "rounds": (5, 2),
    "repeats": (40, 1),
    "steps": (20, 1),
    "studies": (4, 1),
    "readers": (min(8, max(1, (os.cpu_count() or 2) - 1)), 0),
    "compile": (True, False),
    "patience": (1.0, 10.0),
}


def _gpu(device: str) -> tuple[Device | None, str | None]:
    """The first GPU, or why there is none."""
    if device == "cpu":
        return None, None
    try:
        cuda = open_cuda()
        found = cuda.devices()
        return (found[0], None) if found else (None, cuda.absence())
    except (DeviceUnavailable, InferenceError) as error:
        return None, str(error)


def _environment(gpu: Device | None) -> dict[str, Any]:
    peak = dense_fp16_peak(gpu.name) if gpu else None
    stated = {"dense FP16 peak": f"{peak.tflops:g} TFLOP/s ({peak.source})" if peak else "unknown"} if gpu else {}
    device = (
        {"GPU": f"{gpu.name} ({gpu.capability})", "CUDA of the driver": gpu.driver_version} if gpu else {"GPU": "none"}
    )
    return (
        device
        | stated
        | dict(_smi() if gpu else ())
        | dict(_versions())
        | {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "load before": round(os.getloadavg()[0], 2),
        }
    )


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _smi() -> Iterator[tuple[str, str]]:
    """Driver, clocks and power limit, where nvidia-smi says them."""
    fields = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return
    yield from zip(fields, (part.strip() for part in done.stdout.splitlines()[0].split(",")), strict=False)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
