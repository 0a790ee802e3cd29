"""A deserialised plan: what it states of itself, and how one batch of it is put on a stream.

Written against what TensorRT 10, 11 and TensorRT-RTX have in common; the module is handed in. Refusals of the library (a
False, a None) become ``RuntimeError`` with its own reason; ``tensorrt_runner``, the only caller, maps them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engines.build.flavour import listener
from engines.errors import DeviceLost, InferenceError
from engines.runtime.checks import Declared
from engines.runtime.cuda import CudaContext, CudaGraph, DeviceBuffer

FOREIGN = (RuntimeError, ValueError, TypeError, LookupError, OSError)
"""The library has no exception classes: these are what its bindings translate to."""

GRAPHS_MAX = 16
"""Batch sizes whose execution is kept; the one unused for longest makes room. As many as a predictor's batch is large."""

_DTYPES = {"float": "float32", "half": "float16", "bf16": "bfloat16"}


@dataclass
class _Execution:
    """One batch size: TensorRT wants a context of its own for each captured graph."""

    context: Any
    runs: int = 0
    graph: CudaGraph | None = None


class TensorRtEngine:
    """A plan on the GPU. Nothing of it runs while one of its methods is called. Used by one thread at a time.

    The work of a batch size is run plainly the first time, captured as a CUDA graph the second time and launched from
    then on. TensorRT-RTX captures by itself, since it compiles for a shape while it runs. All contexts share one piece
    of device memory for what they compute in between.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        content: of the plan, its digest verified: a plan is executable code.
        cuda: the device it was compiled for is current.
        log: is told one sentence when graphs cannot be captured.

    Raises:
        RuntimeError: the library does not take the plan.
    """

    def __init__(self, trt: Any, content: bytes, cuda: CudaContext, log: Callable[[str], None]) -> None:
        self._trt = trt
        self._cuda = cuda
        self._log = log
        self._recorder = _recorder(trt)
        self._executions: OrderedDict[int, _Execution] = OrderedDict()
        self._addresses: dict[str, int] = {}
        self._scratch: DeviceBuffer | None = None
        self._runtime: Any = None
        self._engine: Any = None
        self._config: Any = None
        try:
            self._open(content)
        except BaseException:
            self.close()  # else the traceback keeps it
            raise
        self._captures = self._config is None

    def tensors(self, mode: str) -> list[Declared]:
        """Return name, dtype and shape of the tensors of a mode, ``INPUT`` or ``OUTPUT``."""
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        chosen = [name for name in names if engine.get_tensor_mode(name).name == mode]
        return [(name, _dtype(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name))) for name in chosen]

    def batches(self) -> tuple[int, int]:
        """Return the smallest and the largest batch of its profile that every input takes."""
        shapes = [self._engine.get_tensor_profile_shape(name, 0) for name, _dtype, _shape in self.tensors("INPUT")]
        return max(minimum[0] for minimum, _, _ in shapes), min(maximum[0] for _, _, maximum in shapes)

    @property
    def activation_bytes(self) -> int:
        """Device memory for what is computed in between, at the largest batch."""
        return int(self._engine.device_memory_size_v2)

    def bind(self, addresses: Mapping[str, int], scratch: DeviceBuffer | None) -> None:
        """Say where inputs, outputs and what is in between lie; once, before the first ``enqueue``."""
        self._addresses = dict(addresses)
        self._scratch = scratch

    def enqueue(self, batch: int) -> None:
        """Put one batch on the stream.

        Raises:
            RuntimeError: the library refuses.
            InferenceError: CUDA does.
        """
        execution = self._execution(batch)
        if execution.graph is None and execution.runs and self._captures:
            execution.graph = self._captured(execution)
        if execution.graph is None:
            self._execute(execution)
        else:
            execution.graph.launch()
        execution.runs += 1

    def close(self) -> None:
        """Release graphs, contexts, engine and runtime, in this order."""
        while self._executions:
            self._forget_oldest()
        self._config = None
        self._engine = None
        self._runtime = None

    def _open(self, content: bytes) -> None:
        self._runtime = self._trt.Runtime(listener(self._trt))
        self._runtime.error_recorder = self._recorder
        self._engine = self._required(self._runtime.deserialize_cuda_engine(content), "deserialize_cuda_engine")
        self._config = _runtime_config(self._trt, self._engine)

    def _execution(self, batch: int) -> _Execution:
        execution = self._executions.get(batch)
        if execution is None:
            if len(self._executions) >= GRAPHS_MAX:
                self._forget_oldest()
            execution = self._executions[batch] = _Execution(context=self._context(batch))
        self._executions.move_to_end(batch)
        return execution

    def _forget_oldest(self) -> None:
        _batch, execution = self._executions.popitem(last=False)
        if execution.graph is not None:
            execution.graph.close()

    def _context(self, batch: int) -> Any:
        chosen = self._config or self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._required(self._engine.create_execution_context(chosen), "create_execution_context")
        if self._scratch is not None:
            context.set_device_memory(self._scratch.address, self._scratch.bytes)
        for name, _dtype, shape in self.tensors("INPUT"):
            self._required(context.set_input_shape(name, (batch, *shape[1:])), f"set_input_shape of {name}")
        for name, address in self._addresses.items():
            self._required(context.set_tensor_address(name, address), f"set_tensor_address of {name}")
        self._required(not context.infer_shapes(), "infer_shapes")
        self._require_shapes(context, batch)
        return context

    def _require_shapes(self, context: Any, batch: int) -> None:
        for name, _dtype, shape in self.tensors("OUTPUT"):
            found = tuple(context.get_tensor_shape(name))
            if found != (batch, *shape[1:]):
                msg = f"output {name} has shape {found} at batch {batch}"
                raise RuntimeError(msg)

    def _execute(self, execution: _Execution) -> None:
        self._required(execution.context.execute_async_v3(self._cuda.stream), "execute_async_v3")

    def _captured(self, execution: _Execution) -> CudaGraph | None:
        try:
            with self._cuda.capture() as graph:
                self._execute(execution)
        except DeviceLost:
            raise
        except (InferenceError, *FOREIGN) as error:
            self._captures = False
            self._log(f"no CUDA graphs, every batch is enqueued by itself: {' '.join(str(error).split())[:300]}")
            return None
        return graph

    def _required(self, result: Any, call: str) -> Any:
        reasons = self._recorder.taken()
        if result is None or result is False:
            msg = f"{call}: {'; '.join(reasons) or 'no reason is given'}"
            raise RuntimeError(msg)
        return result


def _dtype(stated: Any) -> str:
    name = str(stated.name).lower()
    return _DTYPES.get(name, name)


def _runtime_config(trt: Any, engine: Any) -> Any:
    """Return what makes TensorRT-RTX compile for a shape at once, once for all contexts, and capture; None for TensorRT."""
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return None
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    config.set_runtime_cache(config.create_runtime_cache())
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return config


def _recorder(trt: Any) -> Any:
    """Return an error recorder: unlike the logger, of which a process has one, each runtime has its own."""

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors: list[tuple[Any, str]] = []

        def taken(self) -> list[str]:
            errors, self._errors = self._errors, []
            return [_stated(code, text) for code, text in errors]

        def num_errors(self) -> int:
            return len(self._errors)

        def get_error_code(self, index: int) -> Any:
            return self._errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self._errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self._errors = []

        def report_error(self, code: Any, text: str) -> bool:
            self._errors.append((code, text))
            return True

    return Recorder()


def _stated(code: Any, text: str) -> str:
    memory = "out of memory: " if code.name == "FAILED_ALLOCATION" else ""
    return f"{memory}{' '.join(text.split())}"
