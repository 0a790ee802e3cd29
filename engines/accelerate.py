"""Opens an engine on this machine's GPU, or says why the CPU serves instead.

A GPU is looked for, then the TensorRT that is installed, then the plan for this very GPU: in the folder of plans, or
built now. A plan serves only after its parity gate passed on this kind of GPU with this driver, and after it has
reproduced the golden vectors at this start. Whatever is missing or fails, the verified runner on the CPU serves, and its
identity carries the reason. A machine without a GPU pays for a look at three files.

Called by ``stream_processors.routes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from engines.build.cache import PlanCache, StandingPlan
from engines.build.compile import BatchRange, compile_plan, plan_recipe
from engines.build.flavour import Flavour, Probe, load_flavour
from engines.build.gate import COUNT_MIN, gate
from engines.build.plan import PlanRecipe, Precision, RuntimeName
from engines.bundle.reader import Bundle
from engines.errors import (
    BundleError,
    DeviceLost,
    DeviceUnavailable,
    EngineError,
    InferenceError,
    PlanRefused,
    SelfTestFailed,
)
from engines.runtime.cuda import Cuda, Device, open_cuda, require_device
from engines.runtime.fallback import FallbackRunner
from engines.runtime.runner import Arrays, Runner, RuntimeIdentity
from engines.runtime.tensorrt_runner import TensorRtRunner
from engines.selftest import check_preprocessing, check_runner

Say = Callable[[str], None]
FlavourName = Literal["auto", "tensorrt", "tensorrt-rtx"]

GATE_SEED = 20250101
"""Of the inputs that nobody has seen: the same at every site, so that a verdict can be repeated."""
_TRACES = ("proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1")
"""Files that a machine with NVIDIA's driver has, below the root."""
_INSTALL = "install the driver, then check with nvidia-smi"


def gpu_seen(root: Path = Path("/")) -> bool:
    """Whether there are traces of a GPU's driver; imports nothing, touches no device."""
    return any((root / trace).exists() for trace in _TRACES)


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """How an engine is to run on a GPU.

    Args:
        device: index of the GPU.
        flavour: which TensorRT; ``auto`` takes TensorRT where it is installed, else TensorRT-RTX.
        precisions: what is tried, best first; the next one where the gate refuses a plan.
        batch: rows a plan takes.
        plans: folder of the plans.
        cache_bytes: of all plans in it.
        memory_bytes: of the GPU that the engine may take, or None.
        expected: whether a machine without a GPU is something to report.
        build: whether a missing plan may be built and verified now; else it counts as missing.
    """

    device: int
    flavour: FlavourName
    precisions: tuple[Precision, ...]
    batch: BatchRange
    plans: Path
    cache_bytes: int
    memory_bytes: int | None
    expected: bool = False
    build: bool = True


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What opening is made of; tests put doubles in their place."""

    seen: Callable[[], bool] = gpu_seen
    open_cuda: Callable[[], Cuda] = open_cuda
    load_flavour: Callable[[RuntimeName, Probe], Flavour] = load_flavour
    compile_plan: Callable[..., bytes] = compile_plan
    make_runner: Callable[..., TensorRtRunner] = TensorRtRunner


PARTS = Parts()


def open_accelerated(  # noqa: PLR0913 - what it opens, what stands behind it, and who is told
    bundle: Bundle, options: GpuOptions, *, cpu: Runner, log: Say, building: Say | None = None, parts: Parts = PARTS
) -> Runner:
    """Open a bundle on the GPU, with the CPU behind it; or on the CPU alone, with the reason in its identity.

    Args:
        bundle: verified.
        options: of the site.
        cpu: a runner of this bundle that agrees with its golden vectors, in FP32; belongs to the result from now on.
        log: is told one sentence for what an operator may wonder about.
        building: is told while a plan is built or verified, which may take minutes; ``log`` where None.
        parts: doubles in tests.

    Raises:
        DeviceLost: the GPU's context is gone; only a new process gets a new one.
    """
    if not options.expected and not parts.seen():
        return cpu
    try:
        opening = _Opening(bundle=bundle, options=options, cpu=cpu, log=log, building=building or log, parts=parts)
        runner = opening.runner()
    except BundleError as error:
        log(f"{bundle.manifest.name} is served by the CPU: {error}")
        return SubstituteRunner(cpu, _sentence(error))
    except BaseException:
        cpu.close()
        raise
    return AcceleratedRunner(runner, cpu)


class SubstituteRunner:
    """A runner that serves in place of a preferred one, and says why.

    Args:
        runner: that computes.
        reason: one sentence.
    """

    def __init__(self, runner: Runner, reason: str) -> None:
        self._runner = runner
        self._reason = reason

    @property
    def identity(self) -> RuntimeIdentity:
        """Of the runner that computes, with the reason."""
        return replace(self._runner.identity, fallback=self._reason)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph once; see ``Runner.run``."""
        return self._runner.run(inputs)

    def close(self) -> None:
        """Give back the memory."""
        self._runner.close()


class AcceleratedRunner(FallbackRunner):
    """A runner on the GPU; the verified one on the CPU stands ready behind it, and is closed with it.

    Args:
        primary: on the GPU.
        cpu: opened already, so that no study waits for it.
    """

    def __init__(self, primary: Runner, cpu: Runner) -> None:
        super().__init__(primary, lambda: cpu)
        self._cpu = cpu

    def close(self) -> None:
        """Close both, also where the CPU was never needed."""
        try:
            super().close()
        finally:
            self._cpu.close()


@dataclass(frozen=True, kw_only=True)
class _Opening:
    """One engine on its way to the GPU."""

    bundle: Bundle
    options: GpuOptions
    cpu: Runner
    log: Say
    building: Say
    parts: Parts

    def runner(self) -> TensorRtRunner:
        """Return the engine on the GPU, verified and warm.

        Raises:
            DeviceUnavailable, PlanBuildFailed, PlanRefused, SelfTestFailed: why there is none.
            DeviceLost: the GPU's context is gone.
        """
        if not self.parts.seen():
            msg = f"no driver of an NVIDIA GPU is installed on this machine; {_INSTALL}"
            raise DeviceUnavailable(msg)
        cuda = self.parts.open_cuda()
        device = require_device(cuda, self.options.device)
        flavour = self._flavour(device)
        refusals = []
        for precision in self.options.precisions:
            try:
                return self._in(precision, flavour, cuda, device)
            except (PlanRefused, SelfTestFailed, _TooCoarse) as refusal:
                refusals.append(f"{precision}: {refusal}")
                self.log(f"no plan of {self.bundle.manifest.name} serves in {refusals[-1]}")
        raise PlanRefused("; ".join(refusals))

    def _flavour(self, device: Device) -> Flavour:
        """The first TensorRT that is installed and compiles for this GPU."""
        wanted: tuple[RuntimeName, ...] = ("tensorrt", "tensorrt-rtx")
        if self.options.flavour != "auto":
            wanted = (self.options.flavour,)
        missing = []
        for name in wanted:
            try:
                flavour = self.parts.load_flavour(name, lambda: device.capability)
                flavour.require_target(device.capability)
            except (DeviceUnavailable, ValueError) as error:
                missing.append(str(error))
            else:
                return flavour
        raise DeviceUnavailable("; ".join(missing))

    def _in(self, precision: Precision, flavour: Flavour, cuda: Cuda, device: Device) -> TensorRtRunner:
        recipe = self._recipe(precision, flavour, device)
        cache = PlanCache(self.options.plans, self.options.cache_bytes, log=self.log)
        with self._said_of(device):
            standing = self._standing(cache, recipe, flavour)
            runner = self._made(standing, flavour, cuda)
            with _closed_on_failure(runner):
                self._require_verdict(cache, standing, runner, device)
                check_runner(self.bundle, runner, check_preprocessing(self.bundle))
                runner.warm_up(sorted({1, recipe.batch_optimum}))
        return runner

    @contextmanager
    def _said_of(self, device: Device) -> Iterator[None]:
        """A GPU that fails while an engine is opened is not there for it; a lost one is another matter."""
        try:
            yield
        except DeviceLost:
            raise
        except InferenceError as error:
            msg = f"{device.name} failed while {self.bundle.manifest.name} was opened on it: {error}"
            raise DeviceUnavailable(msg) from error

    def _recipe(self, precision: Precision, flavour: Flavour, device: Device) -> PlanRecipe:
        try:
            return plan_recipe(flavour, self.bundle, device.capability, precision, self.options.batch)
        except ValueError as error:
            raise _TooCoarse(str(error)) from error

    def _standing(self, cache: PlanCache, recipe: PlanRecipe, flavour: Flavour) -> StandingPlan:
        if self.options.build:
            return cache.get_or_build(recipe, lambda: self._built(recipe, flavour))
        standing = cache.get(recipe)
        if standing is None:
            msg = f"{cache.missing(recipe)}; `purkinje run` builds it when it starts"
            raise DeviceUnavailable(msg)
        return standing

    def _built(self, recipe: PlanRecipe, flavour: Flavour) -> bytes:
        self.building(f"{recipe.target} {recipe.precision}: building a plan with {flavour.title} {flavour.version}")
        folder = self.options.plans
        return self.parts.compile_plan(
            flavour,
            self.bundle.graph(),
            recipe,
            timing_cache=folder / f"{recipe.runtime}-{recipe.version}-{recipe.target}.timing",
            log=(folder / recipe.plan_name).with_suffix(".log"),
            progress=self.building,
        )

    def _made(self, standing: StandingPlan, flavour: Flavour, cuda: Cuda) -> TensorRtRunner:
        return self.parts.make_runner(
            self.bundle.manifest,
            standing.plan,
            flavour.module,
            cuda,
            self.options.device,
            limit_bytes=self.options.memory_bytes,
            log=self.log,
        )

    def _require_verdict(
        self, cache: PlanCache, standing: StandingPlan, runner: TensorRtRunner, device: Device
    ) -> None:
        """Let a plan pass that passed here before; put any other through its gate, and keep what is found."""
        verdict = cache.verdict(standing.plan, device)
        if verdict is None:
            if not self.options.build:
                msg = (
                    f"{standing.path.name} is not verified on {device.name} yet; `purkinje run` does it when it starts"
                )
                raise DeviceUnavailable(msg)
            self.building(f"{device.capability} {standing.plan.recipe.precision}: verifying the plan on {device.name}")
            verdict = gate(self.bundle, runner, self.cpu, count=COUNT_MIN, seed=GATE_SEED, device=device)
            cache.record(standing.plan, verdict)
        if not verdict.passed:
            msg = f"{standing.path.name} failed its parity gate on {verdict.device}: {'; '.join(verdict.reasons)}"
            raise PlanRefused(msg)


@contextmanager
def _closed_on_failure(runner: TensorRtRunner) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(EngineError):  # what failed first is what the caller must hear of
            runner.close()
        raise


class _TooCoarse(BundleError):
    """The numbers of this bundle do not hold in this precision."""


def _sentence(error: BundleError) -> str:
    """One line of a length that fits a report."""
    text = " ".join(str(error).split())
    return text if len(text) <= _SENTENCE_MAX else f"{text[: _SENTENCE_MAX - 3]}..."


_SENTENCE_MAX = 400
