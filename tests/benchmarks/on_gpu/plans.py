"""Plans of every bundle for the GPU that is there: built, put through the gate, and opened with and without CUDA graphs.

What serves is measured: the product's own builder, cache, gate and runner. A plan whose gate failed is never timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from engines.build.cache import PlanCache
from engines.build.compile import BatchRange, build_plan, plan_recipe
from engines.build.flavour import Flavour, load_flavour
from engines.build.gate import COUNT_MIN, Verdict, gate
from engines.build.plan import Plan, PlanRecipe, Precision, RuntimeName
from engines.bundle.reader import Bundle
from engines.errors import BundleError, DeviceUnavailable, EngineError
from engines.runtime.cuda import Cuda, Device, open_cuda, require_device
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.runner import Arrays, RuntimeIdentity
from engines.runtime.tensorrt_runner import TensorRtRunner
from tests.benchmarks.on_gpu.arms import Arm, Named, TimedRunner
from tests.benchmarks.on_gpu.results import Recorder

FLAVOURS: tuple[RuntimeName, ...] = ("tensorrt", "tensorrt-rtx")
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_TF32 = "+tf32"
_BUILD_NEEDS_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What plans are made with.

    Args:
        cuda, device: the GPU.
        flavours: installed libraries that compile for it.
        folder: of the plans.
        batch: sizes a plan takes.
        build: makes a plan or finds it; tests put a double here.
        inputs: of the gate besides the golden ones.
    """

    cuda: Cuda
    device: Device
    flavours: tuple[Flavour, ...]
    folder: Path
    batch: BatchRange
    build: Callable[..., Any] = build_plan
    inputs: int = COUNT_MIN


@dataclass
class Plans:
    """What may be timed: (bundle, flavour, precision) -> plan that passed its gate."""

    passed: dict[tuple[str, str, str], Plan] = field(default_factory=dict)

    def best(self, bundle: Bundle, flavour: str) -> Plan | None:
        """Return the plan of the fewest bits."""
        found = [self.passed.get((bundle.manifest.name, flavour, precision)) for precision in _BEST_FIRST]
        return next((plan for plan in found if plan is not None), None)


_BEST_FIRST = ("fp16", "bf16", f"fp32{_TF32}", "fp32")


def open_workshop(folder: Path, batch_max: int, section: Recorder) -> Workshop | None:
    """Return what plans can be made with on this machine; what is missing is left out with the reason."""
    try:
        cuda = open_cuda()
        device = require_device(cuda, 0)
    except DeviceUnavailable as error:
        section.leave_out("TensorRT, TensorRT-RTX", error)
        return None
    flavours = tuple(_usable(FLAVOURS, device, section))
    if not flavours:
        return None
    return Workshop(cuda=cuda, device=device, flavours=flavours, folder=folder, batch=batch_range(batch_max))


def batch_range(batch_max: int) -> BatchRange:
    """Return the sizes that every plan of a run takes, so that one plan serves all sections."""
    return BatchRange(minimum=1, optimum=max(1, batch_max // 4), maximum=batch_max)


def _usable(names: Iterable[RuntimeName], device: Device, section: Recorder) -> Iterator[Flavour]:
    for name in names:
        try:
            flavour = load_flavour(name, lambda: device.capability)
            flavour.require_target(device.capability)
        except (DeviceUnavailable, ValueError) as error:
            section.leave_out(TITLES[name], error)
        else:
            yield flavour


def make_plans(workshop: Workshop, bundles: Iterable[Bundle], precisions: Iterable[str], section: Recorder) -> Plans:
    """Build every plan and put it through its gate, one row each."""
    plans = Plans()
    asked = list(precisions)
    for bundle in bundles:
        for flavour in workshop.flavours:
            for precision in asked:
                what = f"{bundle.manifest.name}, {TITLES[flavour.name]} {precision}"
                if section.has_time(what, _BUILD_NEEDS_S):
                    _make(workshop, bundle, flavour, precision, plans, section)
    return plans


def _make(  # noqa: PLR0917 - one plan of one bundle, and where it goes
    workshop: Workshop, bundle: Bundle, flavour: Flavour, precision: str, plans: Plans, section: Recorder
) -> None:
    what = f"{bundle.manifest.name}, {TITLES[flavour.name]} {precision}"
    cache = PlanCache(workshop.folder)
    try:
        recipe = _recipe(workshop, bundle, flavour, precision)
        started_s = time.perf_counter()
        standing = workshop.build(cache, workshop.folder, flavour, bundle, recipe)
        built_s = time.perf_counter() - started_s
        verdict, gate_s, gpu_bytes = _judged(workshop, bundle, flavour, standing.plan)
        cache.record(standing.plan, verdict)
    except (EngineError, ValueError) as error:
        section.leave_out(what, error)
        return
    if not verdict.passed:
        section.reject(what, "; ".join(verdict.reasons))
    else:
        plans.passed[bundle.manifest.name, flavour.name, precision] = standing.plan
    worst = max((one.value / one.limit for one in verdict.differences if not one.at_least and one.limit), default=None)
    section.row(
        engine=bundle.manifest.name,
        runtime=f"{TITLES[flavour.name]} {flavour.version}",
        precision=precision,
        **{
            "build s": built_s if standing.built else None,
            "plan MB": len(standing.plan.content) / 1e6,
            "GPU MB": gpu_bytes / 1e6,
            "gate": "passed" if verdict.passed else "FAILED",
            "worst share of a limit": worst,
            "inputs": verdict.golden_records + verdict.inputs,
            "gate s": gate_s,
        },
    )


def _recipe(workshop: Workshop, bundle: Bundle, flavour: Flavour, precision: str) -> PlanRecipe:
    kind = cast("Precision", precision.removesuffix(_TF32))
    return plan_recipe(
        flavour, bundle, workshop.device.capability, kind, workshop.batch, tf32=precision.endswith(_TF32)
    )


def _judged(workshop: Workshop, bundle: Bundle, flavour: Flavour, plan: Plan) -> tuple[Verdict, float, int]:
    """Gate, its seconds, and the memory of the GPU that the open engine takes."""
    reference = OnnxRunner(bundle)
    free_bytes = workshop.cuda.free_bytes(workshop.device.index)
    started_s = time.perf_counter()
    with opened(workshop, bundle, flavour, plan) as runner:
        taken = free_bytes - workshop.cuda.free_bytes(workshop.device.index)
        verdict = gate(bundle, runner, reference, count=workshop.inputs, device=workshop.device)
    reference.close()
    return verdict, time.perf_counter() - started_s, taken


@contextmanager
def opened(workshop: Workshop, bundle: Bundle, flavour: Flavour, plan: Plan) -> Iterator[TensorRtRunner]:
    """Open a plan for a while."""
    runner = TensorRtRunner(bundle.manifest, plan, flavour.module, workshop.cuda, workshop.device.index)
    try:
        yield runner
    finally:
        runner.close()


def tensorrt_arms(workshop: Workshop, plans: Plans, precisions: Iterable[str], section: Recorder) -> list[Arm]:
    """Return the sides that run a plan; TensorRT-RTX captures by itself and has no side without."""
    asked, arms = list(precisions), []
    for flavour in workshop.flavours:
        if flavour.ahead_of_time:
            section.leave_out("TensorRT-RTX without CUDA graph", "the library captures by itself")
        for precision in asked:
            for graph in (True,) if flavour.ahead_of_time else (False, True):
                opener = _opener(workshop, plans, flavour, precision, graph=graph)
                arms.append(Arm(name=TITLES[flavour.name], precision=precision, graph=graph, open=opener))
    return arms


def _opener(
    workshop: Workshop, plans: Plans, flavour: Flavour, precision: str, *, graph: bool
) -> Callable[[Bundle], TimedRunner]:
    def open_plan(bundle: Bundle) -> TimedRunner:
        plan = plans.passed.get((bundle.manifest.name, flavour.name, precision))
        if plan is None:
            msg = f"no {precision} plan of {bundle.manifest.name} passed its gate"
            raise BundleError(msg)
        runner = TensorRtRunner(bundle.manifest, plan, flavour.module, workshop.cuda, workshop.device.index)
        return PlanTimed(runner, graph=graph)

    return open_plan


class PlanTimed:
    """The runner that serves, whose work can be timed between two events.

    Args:
        runner: belongs to this object from now on.
        graph: whether it may capture.
    """

    def __init__(self, runner: TensorRtRunner, *, graph: bool) -> None:
        self._runner = runner
        self.run, self.close = runner.run, runner.close
        self._context: Any = runner._context
        if not graph:
            assert runner._engine is not None
            runner._engine._captures = False
        self._events = tuple(self._context.call("cudaEventCreate")[0] for _ in range(2))

    @property
    def identity(self) -> RuntimeIdentity:
        """Of the runner."""
        return self._runner.identity

    def gpu_ms(self, inputs: Named) -> float | None:
        """Of one batch on what the last run left in the device's memory."""
        context, engine = self._context, self._runner._engine
        assert engine is not None
        first, last = self._events
        context.call("cudaEventRecord", first, context.handle)
        engine.enqueue(len(next(iter(inputs.values()))))
        context.call("cudaEventRecord", last, context.handle)
        context.synchronize()
        (milliseconds,) = context.call("cudaEventElapsedTime", first, last)
        return float(milliseconds)


def answers_of(runner: TimedRunner, inputs: Named) -> Arrays:
    """Return the third answer: the first runs plainly, the second captures, from then on it is launched."""
    for _ in range(2):
        runner.run(inputs)
    return runner.run(inputs)
