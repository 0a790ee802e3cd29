"""TensorRT and TensorRT-RTX on one GPU. Imported everywhere; the library and CUDA are handed in.

What overlaps. The GPU works while the processor does something else in three ways: a run waits for the stream without
holding Python's lock, so that other threads decode the next study meanwhile; copies go from and to pinned memory on the
stream, so that none of them is waited for by itself; and there are two sets of pinned memory, so that the next part of a
large batch is copied into one, and the answers of the last part out of it, while the GPU computes on the other.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.build.plan import Plan
from engines.bundle.manifest import Manifest
from engines.bundle.parts import TensorSpec
from engines.errors import DeviceLost, EngineError, InferenceError, PlanRefused
from engines.runtime.budget import MemoryNeed, buffer_bytes, require_memory
from engines.runtime.checks import check_declared
from engines.runtime.cuda import Cuda, CudaContext, Device, HostBuffer, require_device
from engines.runtime.runner import Arrays, CheckedRunner, RuntimeIdentity, mapped
from engines.runtime.tensorrt_engine import FOREIGN, TensorRtEngine

_LANES = 2
"""Sets of pinned memory: one is filled or emptied while the GPU works on the other."""


class TensorRtRunner(CheckedRunner):
    """Runs a bundle's plan with TensorRT on one GPU, on a stream of its own.

    Buffers are allocated once, for the largest batch of the plan; a larger one is run in parts. Nothing is padded: a
    plan whose smallest batch is not 1 cannot answer for a single study and is refused. Outputs are fresh arrays.
    Used by one thread at a time; which one may change.

    A lost context (``DeviceLost``) is lost for the process: every later run raises the same, and only a new process
    helps.

    Args:
        manifest: of the bundle.
        plan: of that bundle, its digest verified by whoever read it.
        trt: the module of the plan's runtime.
        cuda: as ``cuda.open_cuda`` gives it.
        device: index of the GPU.
        limit_bytes: the most GPU memory this engine may take, or None.
        log: is told one sentence when CUDA graphs cannot be captured.

    Raises:
        DeviceUnavailable: there is no such GPU, or the engine does not fit into its memory.
        PlanRefused: the plan is not the one its digest names, is for another graph, version or GPU, takes no batch of
            one, or the library does not take it.
        BundleCorrupt: the engine's tensors contradict the manifest.
        InferenceError: the GPU failed; ``OutOfMemory`` for want of memory, ``DeviceLost`` where it is lost.
    """

    def __init__(  # noqa: PLR0913  two options, keyword only
        self,
        manifest: Manifest,
        plan: Plan,
        trt: Any,
        cuda: Cuda,
        device: int = 0,
        *,
        limit_bytes: int | None = None,
        log: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        gpu = require_device(cuda, device)  # before any object of TensorRT: without a GPU it can end the process
        require_fit(manifest, plan, trt, gpu)
        super().__init__(manifest, _identity(plan, gpu), FOREIGN)
        self._batch_maximum = plan.recipe.batch_maximum
        self._busy = threading.Lock()
        self._lost: str | None = None
        self._engine: TensorRtEngine | None = None
        self._context = cuda.open(device)
        try:
            self._load(plan, trt, limit_bytes, log)
        except BaseException:
            self._abandon()
            raise

    def warm_up(self, batches: Iterable[int]) -> None:
        """Run batches of zeros, each twice, so that their CUDA graphs are captured before the first study.

        Args:
            batches: sizes, each at most the largest of the plan.

        Raises:
            InferenceError: the GPU failed.
        """
        with self._alone(), mapped(self._identity.runtime, FOREIGN, InferenceError):
            for batch in batches:
                zeros = {tensor.name: _empty(tensor, batch) for tensor in self._manifest.inputs}
                self._run_parts(zeros)
                self._run_parts(zeros)

    def _load(self, plan: Plan, trt: Any, limit_bytes: int | None, log: Callable[[str], None]) -> None:
        need = MemoryNeed(
            engine=self._manifest.name,
            batch=self._batch_maximum,
            plan=len(plan.content),
            buffers=buffer_bytes(self._manifest, self._batch_maximum),
        )
        free_bytes = self._context.free_bytes()
        require_memory(need, free_bytes=free_bytes, limit_bytes=limit_bytes)
        with mapped(self._identity.runtime, FOREIGN, PlanRefused):
            engine = self._engine = TensorRtEngine(trt, plan.content, self._context, log)
            check_declared(self._manifest, engine.tensors("INPUT"), engine.tensors("OUTPUT"))
            _require_batches(plan, engine)
            need = replace(need, activations=engine.activation_bytes)
        left = self._context.free_bytes()
        held_bytes = min(max(free_bytes - left, 0), need.plan)
        require_memory(need, free_bytes=left, limit_bytes=limit_bytes, held_bytes=held_bytes)
        self._allocate(engine)

    def _allocate(self, engine: TensorRtEngine) -> None:
        context, batch = self._context, self._batch_maximum
        tensors = (*self._manifest.inputs, *self._manifest.outputs)
        self._buffers = {tensor.name: context.allocate(_bytes(tensor, batch)) for tensor in tensors}
        self._lanes = tuple(_Lane.of(context, self._manifest, batch) for _ in range(_LANES))
        scratch = context.allocate(engine.activation_bytes) if engine.activation_bytes else None
        engine.bind({name: buffer.address for name, buffer in self._buffers.items()}, scratch)

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        with self._alone():
            return self._run_parts(inputs)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the runner, and leave its stream idle whatever happens: the next run writes to the same memory."""
        assert self._busy.acquire(blocking=False), "a TensorRT runner is used by one thread at a time"
        try:
            self._require_device()
            yield
        except DeviceLost as error:
            self._lost = self._lost or str(error)
            raise
        except BaseException:
            self._settle()
            raise
        finally:
            self._busy.release()

    def _require_device(self) -> None:
        if self._lost is not None:
            msg = f"{self._lost}; this runner does not run again"
            raise DeviceLost(msg)
        self._context.make_current()

    def _settle(self) -> None:
        """Wait for what still runs; where the library's own error hides that the GPU is lost, say so."""
        try:
            self._context.synchronize()
        except DeviceLost as error:
            self._lost = str(error)
            raise
        except InferenceError:
            pass  # the first error counts

    def _run_parts(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        batch = len(next(iter(inputs.values())))
        outputs = {tensor.name: _empty(tensor, batch) for tensor in self._manifest.outputs}
        running: tuple[_Lane, slice] | None = None
        for index, start in enumerate(range(0, batch, self._batch_maximum)):
            rows = slice(start, min(start + self._batch_maximum, batch))
            lane = self._lanes[index % _LANES]
            lane.fill(inputs, rows)  # while the part before is computed
            if running is not None:
                self._context.synchronize()
            self._enqueue(lane, rows.stop - rows.start)
            if running is not None:
                _collect(*running, outputs)  # while this part is computed
            running = (lane, rows)
        self._context.synchronize()
        assert running is not None, "an empty batch was let through"
        _collect(*running, outputs)
        return outputs

    def _enqueue(self, lane: _Lane, batch: int) -> None:
        assert self._engine is not None, "the engine is closed"
        for tensor in self._manifest.inputs:
            self._context.copy_in(self._buffers[tensor.name], lane.inputs[tensor.name], _bytes(tensor, batch))
        self._engine.enqueue(batch)
        for tensor in self._manifest.outputs:
            self._context.copy_out(lane.outputs[tensor.name], self._buffers[tensor.name], _bytes(tensor, batch))

    def _release(self) -> None:
        assert self._busy.acquire(blocking=False), "a TensorRT runner is closed while it runs"
        try:
            self._give_back()
        finally:
            self._busy.release()

    def _give_back(self) -> None:
        with suppress(InferenceError):
            self._context.make_current()
            self._context.synchronize()
        try:
            if self._engine is not None:
                self._engine.close()
        finally:
            self._engine = None
            self._context.close()

    def _abandon(self) -> None:
        # What failed first is what the caller must hear of.
        with suppress(EngineError):
            self._give_back()


@dataclass(frozen=True, kw_only=True)
class _Lane:
    """Pinned memory of one part of a batch."""

    inputs: Mapping[str, HostBuffer]
    outputs: Mapping[str, HostBuffer]

    @classmethod
    def of(cls, context: CudaContext, manifest: Manifest, batch: int) -> _Lane:
        """Allocate it for a largest batch."""

        def pinned(tensors: Iterable[TensorSpec]) -> dict[str, HostBuffer]:
            return {tensor.name: context.pinned((batch, *tensor.shape[1:]), tensor.dtype) for tensor in tensors}

        return cls(inputs=pinned(manifest.inputs), outputs=pinned(manifest.outputs))

    def fill(self, inputs: Mapping[str, NDArray[Any]], rows: slice) -> None:
        """Copy rows of the inputs into it."""
        for name, buffer in self.inputs.items():
            buffer.array[: rows.stop - rows.start] = inputs[name][rows]


def require_fit(manifest: Manifest, plan: Plan, trt: Any, gpu: Device) -> None:
    """Check, before anything of a plan is read by the library, that it is for this bundle, library and GPU.

    Raises:
        PlanRefused: with every fault found.
    """
    recipe = plan.recipe
    expected = {
        "digest": (hashlib.sha256(plan.content).hexdigest(), plan.sha256),
        "graph": (recipe.graph_sha256, manifest.files[manifest.graph].sha256),
        "runtime": (recipe.runtime, runtime_name(trt)),
        "version": (recipe.version, str(trt.__version__)),
        "target": (recipe.target, gpu.capability),
        "smallest batch": (recipe.batch_minimum, 1),
    }
    faults = [f"{name} {found} (here: {wanted})" for name, (found, wanted) in expected.items() if found != wanted]
    if faults:
        msg = f"the plan of {manifest.name} is not for this place: {'; '.join(faults)}; build it here"
        raise PlanRefused(msg)


def runtime_name(trt: Any) -> str:
    """Return the name of a module's runtime, as in a recipe."""
    return "tensorrt-rtx" if "rtx" in trt.__name__ else "tensorrt"


def _identity(plan: Plan, gpu: Device) -> RuntimeIdentity:
    recipe = plan.recipe
    return RuntimeIdentity(
        runtime=recipe.runtime,
        version=recipe.version,
        precision=f"{recipe.precision}+tf32" if recipe.tf32 else recipe.precision,
        device=f"{gpu.name} ({gpu.capability})",
        plan_sha256=plan.sha256,
    )


def _require_batches(plan: Plan, engine: TensorRtEngine) -> None:
    stated = (plan.recipe.batch_minimum, plan.recipe.batch_maximum)
    if engine.batches() != stated:
        msg = f"the engine takes batches {engine.batches()} and its recipe states {stated}; build it again"
        raise PlanRefused(msg)


def _collect(lane: _Lane, rows: slice, outputs: Arrays) -> None:
    for name, buffer in lane.outputs.items():
        outputs[name][rows] = buffer.array[: rows.stop - rows.start]


def _empty(tensor: TensorSpec, batch: int) -> NDArray[Any]:
    return np.zeros((batch, *tensor.shape[1:]), dtype=tensor.dtype)


def _bytes(tensor: TensorSpec, batch: int) -> int:
    return batch * int(np.prod(tensor.shape[1:])) * np.dtype(tensor.dtype).itemsize
