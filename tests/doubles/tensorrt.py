"""TensorRT without a GPU: the calls the runner makes, answered by ONNX Runtime on memory of ``tests.doubles.cuda``.

``TensorRtDouble`` stands for the module. It breaks where the library does: an execution context whose shapes change
spoils the graphs captured from it, a capture needs one plain run of its context first, work reads and writes device
memory when the stream runs it and not before, and a refusal is a False or a None with the reason in the error recorder.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from engines.build.plan import Plan, PlanRecipe
from engines.bundle.manifest import Manifest
from engines.bundle.reader import Bundle
from engines.runtime.onnx_runner import _session, onnxruntime_errors
from engines.runtime.tensorrt_runner import TensorRtRunner
from tests.doubles.cuda import OK, CudaDouble, CudaError, Gpu

VERSION = "10.15.1.29"
_MAGIC = b"PLAN-OF-THE-DOUBLE\n"
Outputs = dict[str, np.ndarray]


class ErrorCodeTRT(IntEnum):
    """Codes an error recorder is told."""

    UNSPECIFIED_ERROR = 1
    INVALID_ARGUMENT = 3
    FAILED_ALLOCATION = 5
    FAILED_EXECUTION = 7
    INVALID_STATE = 9


# TensorRT has no FLOAT64; it stands for whatever the product does not know.
DataType = Enum("DataType", ["FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8", "FP8", "FLOAT64"])
TensorIOMode = Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
Allocation = Enum("Allocation", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
_TYPES = {"tensor(float)": "FLOAT", "tensor(uint8)": "UINT8", "tensor(double)": "FLOAT64", "tensor(float16)": "HALF"}
_NUMPY = {"FLOAT": "float32", "UINT8": "uint8", "FLOAT64": "float64", "HALF": "float16"}


def plan_content(graph: bytes, batches: tuple[int, int, int] = (1, 2, 4), *, activation_bytes: int = 4096) -> bytes:
    """Return what the double deserialises: the graph and what an engine states of itself."""
    header = {"batches": batches, "activation_bytes": activation_bytes}
    return _MAGIC + json.dumps(header).encode() + b"\n" + graph


def recipe_of(manifest: Manifest, **changes: Any) -> PlanRecipe:
    """Return the recipe of a plan that fits the double on its first GPU."""
    fields = {
        "schema_version": 2,
        "runtime": "tensorrt",
        "version": VERSION,
        "target": "sm_90",
        "precision": "fp32",
        "tf32": False,
        "batch_minimum": 1,
        "batch_optimum": 2,
        "batch_maximum": 4,
        "graph_sha256": manifest.files[manifest.graph].sha256,
    }
    return PlanRecipe.model_validate({**fields, **changes})


def plan_of(bundle: Bundle, *, content: bytes | None = None, activation_bytes: int = 4096, **changes: Any) -> Plan:
    """Return a bundle's plan for the double; ``changes`` are of its recipe."""
    recipe = recipe_of(bundle.manifest, **changes)
    batches = (recipe.batch_minimum, recipe.batch_optimum, recipe.batch_maximum)
    made = content or plan_content(bundle.graph(), batches, activation_bytes=activation_bytes)
    return Plan(recipe=recipe, content=made, sha256=hashlib.sha256(made).hexdigest())


def open_double(bundle: Bundle, **changes: Any) -> TensorRtRunner:
    """Return the TensorRT runner of a bundle, on doubles of its own."""
    cuda = CudaDouble(Gpu())
    return TensorRtRunner(bundle.manifest, plan_of(bundle, **changes), TensorRtDouble(cuda), cuda)


class TensorRtDouble:
    """The module ``tensorrt`` on a double of CUDA.

    Args:
        cuda: whose memory and streams it uses.
        version: it states.
        rtx: whether it is TensorRT-RTX, which has a runtime configuration and captures graphs itself.

    Attributes:
        made, live: how many of each object there were and are.
        journal: calls worth counting: ``execute``, ``capture``, ``deserialize``.
        distortion: what becomes of the outputs before they are written, None for nothing.
        refuse: name of a call -> code and text it fails with from now on.
        execution_error: what the work on the stream ends with.
    """

    def __init__(self, cuda: CudaDouble, *, version: str = VERSION, rtx: bool = False) -> None:
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        self.__version__ = version
        self.cudart = cuda.cudart
        self.made: Counter[str] = Counter()
        self.live: Counter[str] = Counter()
        self.journal: Counter[str] = Counter()
        self.distortion: Callable[[Outputs], Outputs] | None = None
        self.refuse: dict[str, tuple[ErrorCodeTRT, str]] = {}
        self.execution_error: CudaError = OK
        self.configurations: list[Any] = []
        self.DataType, self.TensorIOMode, self.ErrorCodeTRT = DataType, TensorIOMode, ErrorCodeTRT
        self.ExecutionContextAllocationStrategy = Allocation
        self.Logger, self.ILogger, self.IErrorRecorder = _Logger, _Logger, _ErrorRecorder
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    @property
    def leaks(self) -> dict[str, int]:
        """Objects that are not released; empty when nothing leaks."""
        return {kind: count for kind, count in self.live.items() if count}

    def Runtime(self, logger: Any) -> _Runtime:
        """Make a runtime; without a device the library ends the process, so the double fails the test."""
        assert self.cudart.gpus, "a runtime was made on a machine without a GPU"
        return _Runtime(self, logger)


class _Logger:
    Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"])
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self, *_arguments: Any) -> None:
        pass


class _ErrorRecorder:
    """Base class of the library; its own methods must not be reached."""


class _Counted:
    def __init__(self, trt: TensorRtDouble, kind: str) -> None:
        self._trt, self._kind = trt, kind
        self._device = trt.cudart.current
        trt.made[kind] += 1
        trt.live[kind] += 1

    def __del__(self) -> None:
        # The library frees memory of the device that is current, whichever that is.
        if self._trt.cudart.current == self._device:
            self._trt.live[self._kind] -= 1


class _Runtime(_Counted):
    error_recorder: Any = None

    def __init__(self, trt: TensorRtDouble, logger: Any) -> None:
        super().__init__(trt, "runtime")
        assert logger is not None

    def deserialize_cuda_engine(self, content: bytes) -> _Engine | None:
        self._trt.journal["deserialize"] += 1
        if not content.startswith(_MAGIC):
            self.error_recorder.report_error(ErrorCodeTRT.INVALID_ARGUMENT, "the plan cannot be read")
            return None
        if _refused(self._trt, "deserialize_cuda_engine", self.error_recorder):
            return None
        header, _, graph = content.removeprefix(_MAGIC).partition(b"\n")
        weights = self._trt.cudart.malloc(len(graph), self._trt.cudart.current)
        if weights is None:
            self.error_recorder.report_error(ErrorCodeTRT.FAILED_ALLOCATION, "weights do not fit")
            return None
        return self._engine(json.loads(header), graph, weights)

    def _engine(self, header: Mapping[str, Any], graph: bytes, weights: int) -> _Engine | None:
        try:
            session = _session(onnxruntime, graph, 1)
        except onnxruntime_errors() as error:
            self._trt.cudart.free(weights)
            self.error_recorder.report_error(ErrorCodeTRT.INVALID_ARGUMENT, str(error))
            return None
        return _Engine(self._trt, self, header, session, weights)


class _Engine(_Counted):
    def __init__(
        self, trt: TensorRtDouble, runtime: _Runtime, header: Mapping[str, Any], session: Any, weights: int
    ) -> None:
        super().__init__(trt, "engine")
        self._runtime = runtime
        self._weights = weights
        self.session = session
        self.batches = tuple(header["batches"])
        self.device_memory_size_v2 = header["activation_bytes"]
        self.nodes = {node.name: node for node in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.num_io_tensors = len(self.nodes)
        self.num_optimization_profiles = 1

    def __del__(self) -> None:
        self._trt.cudart.free(self._weights)
        super().__del__()

    @property
    def error_recorder(self) -> Any:
        return self._runtime.error_recorder

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[_TYPES[self.nodes[name].type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.nodes[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (profile, name in self.inputs) == (0, True)
        return [(size, *self.get_tensor_shape(name)[1:]) for size in self.batches]

    def create_runtime_config(self) -> Any:
        config = _RuntimeConfig()
        self._trt.configurations.append(config)
        return config

    def create_execution_context(self, chosen: Any) -> _Context | None:
        strategy = chosen.strategy if isinstance(chosen, _RuntimeConfig) else chosen
        assert strategy is Allocation.USER_MANAGED
        if _refused(self._trt, "create_execution_context", self.error_recorder):
            return None
        return _Context(self._trt, self)


class _RuntimeConfig:
    strategy: Any = None
    cache: Any = None
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        return SimpleNamespace()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class _Context(_Counted):
    def __init__(self, trt: TensorRtDouble, engine: _Engine) -> None:
        super().__init__(trt, "context")
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] = (0, 0)
        self._state = 0
        self._warm = -1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        minimum, _optimum, maximum = self._engine.get_tensor_profile_shape(name, 0)
        inside = minimum[0] <= shape[0] <= maximum[0] and tuple(shape[1:]) == tuple(minimum[1:])
        if not inside or _refused(self._trt, "set_input_shape", self._engine.error_recorder):
            return False
        self._shapes[name] = tuple(shape)
        self._state += 1
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self._shapes.values()))[0]
        return (batch, *self._engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        if _refused(self._trt, "set_tensor_address", self._engine.error_recorder):
            return False
        self._addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self._memory = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        kind = "capture" if self._trt.cudart.capturing(stream) else "execute"
        self._trt.journal[kind] += 1
        reason = self._fault(kind)
        if reason:
            self._engine.error_recorder.report_error(ErrorCodeTRT.INVALID_STATE, reason)
        if reason or _refused(self._trt, kind, self._engine.error_recorder):
            if kind == "capture":
                self._trt.cudart.invalidate(stream)
            return False
        if kind == "execute":
            self._warm = self._state
        return self._trt.cudart.put(stream, self._work()) is OK

    def _fault(self, kind: str) -> str | None:
        if self._trt.cudart.last:
            return f"an earlier call left {self._trt.cudart.last.name}"
        if self._addresses.keys() != self._engine.nodes.keys() or self.infer_shapes():
            return "an address or a shape is missing"
        if self._memory[1] < self._engine.device_memory_size_v2:
            return "device memory is missing"
        return "no run before the capture" if kind == "capture" and self._warm != self._state else None

    def _work(self) -> Callable[[], CudaError]:
        """What the stream runs later; it must not keep the context alive, as no stream does."""
        trt, engine, reference, state = self._trt, self._engine, weakref.ref(self), self._state
        addresses, shapes, memory = dict(self._addresses), dict(self._shapes), self._memory

        def run() -> CudaError:
            context = reference()
            scratch = trt.cudart.view(*memory)
            if context is None or context._state != state or scratch is None:
                return CudaError.cudaErrorIllegalAddress  # with the library anything may happen
            scratch[:] = 0xFF
            return _computed(trt, engine, addresses, shapes)

        return run


def _computed(
    trt: TensorRtDouble, engine: _Engine, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> CudaError:
    if trt.execution_error:
        return trt.execution_error
    inputs = {}
    for name, shape in shapes.items():
        dtype = np.dtype(_NUMPY[engine.get_tensor_dtype(name).name])
        view = trt.cudart.view(addresses[name], int(np.prod(shape)) * dtype.itemsize)
        if view is None:
            return CudaError.cudaErrorIllegalAddress
        inputs[name] = view.view(dtype).reshape(shape).copy()
    names = [name for name in engine.nodes if name not in engine.inputs]
    outputs = dict(zip(names, engine.session.run(names, inputs), strict=True))
    return _written(trt, addresses, trt.distortion(outputs) if trt.distortion else outputs)


def _written(trt: TensorRtDouble, addresses: Mapping[str, int], outputs: Outputs) -> CudaError:
    for name, array in outputs.items():
        view = trt.cudart.view(addresses[name], array.nbytes)
        if view is None:
            return CudaError.cudaErrorIllegalAddress
        view[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    return OK


def _refused(trt: TensorRtDouble, call: str, recorder: Any) -> bool:
    stated = trt.refuse.get(call)
    if stated is not None:
        recorder.report_error(*stated)
    return stated is not None
