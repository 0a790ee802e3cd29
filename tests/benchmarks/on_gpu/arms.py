"""The sides of the comparison that need no plan: torch, ONNX Runtime, and the runtimes of the CPU.

Each side is a runner with its own answers, checked like the one that serves. All are timed from arrays of the host to
arrays of the host; those that can also say how long the GPU itself computes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from engines.build.plan import Precision
from engines.build.precision import require_precision
from engines.bundle.reader import Bundle
from engines.runtime.open import RUNTIMES
from engines.runtime.runner import Arrays, Runner, RuntimeIdentity
from tests.benchmarks.on_gpu.onnx_cuda import CUDA_PROVIDER, OnnxCudaRunner
from tests.benchmarks.on_gpu.results import Recorder
from tests.benchmarks.on_gpu.torch_runner import AUTOCAST, TorchRunner

Named = Mapping[str, NDArray[Any]]


class TimedRunner(Protocol):
    """A runner, of which some can time the GPU."""

    @property
    def identity(self) -> RuntimeIdentity:
        """Which software computes."""

    def run(self, inputs: Named) -> Arrays:
        """From the host to the host."""

    def gpu_ms(self, inputs: Named) -> float | None:
        """Time of the GPU for these inputs, without copies, or None where it cannot be told."""

    def close(self) -> None:
        """Give back the memory."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side.

    Args:
        name: of the software.
        precision: asked for.
        graph: whether the work of the GPU is captured once and launched as one; None where that means nothing.
        open: makes the runner of a bundle.
    """

    name: str
    precision: str
    graph: bool | None
    open: Callable[[Bundle], TimedRunner]

    def __str__(self) -> str:
        graph = {None: "", True: ", CUDA graph", False: ", no CUDA graph"}[self.graph]
        return f"{self.name} {self.precision}{graph}"


class HostTimed:
    """A runner that cannot time the GPU."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.run, self.close = runner.run, runner.close

    @property
    def identity(self) -> RuntimeIdentity:
        """Of the runner."""
        return self._runner.identity

    def gpu_ms(self, inputs: Named) -> float | None:
        """Not known."""


def host_arms(device: str, precisions: Iterable[str], section: Recorder, *, compiled: bool) -> list[Arm]:
    """Return every side but TensorRT that this machine has; what it has not is left out with the reason."""
    wanted = [precision for precision in precisions if precision in AUTOCAST or precision == "fp32"]
    arms = _cpu_arms() if device == "cpu" else _cuda_provider_arms(section)
    if importlib.util.find_spec("torch") is None:
        section.leave_out("torch eager, torch.compile", "torch is not installed: pip install 'purkinje[train]'")
        return arms
    if device == "cpu":
        section.leave_out("CUDA graphs, ONNX Runtime CUDA, TensorRT", "they need a GPU, and --device is cpu")
        wanted = ["fp32"]
    elif not _torch_sees_gpu():
        section.leave_out("torch eager, torch.compile", "torch sees no GPU")
        return arms
    kinds = ["torch eager", *(["torch.compile"] if compiled else [])]
    if not compiled:
        section.leave_out("torch.compile", "it was not asked for (--compile)")
    return arms + [
        _torch_arm(kind, precision, device, graph)
        for kind in kinds
        for precision in wanted
        for graph in ([None] if device == "cpu" else [False, True])
    ]


def _torch_sees_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _cpu_arms() -> list[Arm]:
    def opener(name: str) -> Callable[[Bundle], TimedRunner]:
        return lambda bundle: HostTimed(RUNTIMES[name](bundle))

    return [Arm(name=f"{name} CPU", precision="fp32", graph=None, open=opener(name)) for name in RUNTIMES]


def _cuda_provider_arms(section: Recorder) -> list[Arm]:
    import onnxruntime

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        reason = (
            f"the installed onnxruntime {onnxruntime.__version__} has no {CUDA_PROVIDER}: pip install onnxruntime-gpu"
        )
        section.leave_out("ONNX Runtime CUDA", reason)
        return []
    return [
        Arm(name="ONNX Runtime CUDA", precision="fp32", graph=graph, open=_cuda_opener(graph=graph))
        for graph in (False, True)
    ]


def _cuda_opener(*, graph: bool) -> Callable[[Bundle], TimedRunner]:
    return lambda bundle: OnnxCudaRunner(bundle, graph=graph)


def _torch_arm(kind: str, precision: str, device: str, graph: bool | None) -> Arm:
    def opened(bundle: Bundle) -> TimedRunner:
        require_precision(bundle.manifest, cast("Precision", precision))
        return TorchRunner(
            bundle, device=device, precision=precision, compiled=kind == "torch.compile", graph=bool(graph)
        )

    return Arm(name=kind, precision=precision, graph=graph, open=opened)
