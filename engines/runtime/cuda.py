"""The GPU as the runtimes need it: which devices, memory, one stream, copies, captured graphs.

The only module that imports cuda-python, and only when ``open_cuda`` is called. Every error code is looked at: want of
memory is ``OutOfMemory``; an error after which every call fails is ``DeviceLost``; any other is ``InferenceError``.
Ask ``devices`` before any object of TensorRT is made: a builder or a runtime made without a driver can end the process.
Called by ``tensorrt_runner``, ``budget`` and whoever asks what this machine has.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.errors import DeviceLost, DeviceUnavailable, InferenceError
from engines.runtime.cuda_errors import ABSENCES, LOOK, error_from_code

_MODULES = ("cuda.bindings.runtime", "cuda.cudart")
"""Of cuda-python, the newer name first."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU.

    Args:
        index: as CUDA counts the visible ones, from 0.
        name: such as ``NVIDIA H100 80GB HBM3``.
        capability: such as ``sm_90``.
        total_bytes: its memory.
        driver_version: newest CUDA version that the installed driver serves, such as ``13.0``.
    """

    index: int
    name: str
    capability: str
    total_bytes: int
    driver_version: str


class DeviceBuffer(Protocol):
    """Memory of the GPU; what it holds is not defined before the first copy."""

    @property
    def address(self) -> int:
        """On the device, aligned to 256 bytes."""

    @property
    def bytes(self) -> int:
        """Size."""

    def close(self) -> None:
        """Give the memory back; twice is once."""


class HostBuffer(Protocol):
    """Pinned memory of the host: the GPU copies from and to it while Python goes on."""

    @property
    def array(self) -> NDArray[Any]:
        """The memory itself, in its shape; not to be touched between a copy and the ``synchronize`` after it."""

    def close(self) -> None:
        """Give the memory back; twice is once. ``array`` must not be used any more."""


class CudaGraph(Protocol):
    """Work captured once and launched as one."""

    def launch(self) -> None:
        """Put the captured work on the stream.

        Raises:
            InferenceError: it cannot be launched.
        """

    def close(self) -> None:
        """Give it back; twice is once."""


class CudaContext(Protocol):
    """One stream of one device, with all that was allocated through it. Used by one thread at a time.

    Every method but ``close`` raises ``OutOfMemory``, ``DeviceLost`` or ``InferenceError``. An error of the work on the
    stream is raised by a later call, ``synchronize`` at the latest.
    """

    @property
    def device(self) -> Device:
        """The GPU."""

    @property
    def stream(self) -> int:
        """Handle of the stream, as TensorRT takes it."""

    def make_current(self) -> None:
        """Choose this device for the calling thread; needed wherever the thread may have changed."""

    def free_bytes(self) -> int:
        """Return the memory of the device that nobody holds now."""

    def allocate(self, bytes_count: int) -> DeviceBuffer:
        """Take memory of the device."""

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> HostBuffer:
        """Take pinned memory of the host."""

    def copy_in(self, target: DeviceBuffer, source: HostBuffer, bytes_count: int | None = None) -> None:
        """Put a copy to the device on the stream: the first bytes of ``source``, all where not stated."""

    def copy_out(self, target: HostBuffer, source: DeviceBuffer, bytes_count: int | None = None) -> None:
        """Put a copy to the host on the stream: the first bytes of ``target``, all where not stated."""

    def synchronize(self) -> None:
        """Wait until all work on the stream is done; other threads of Python run meanwhile."""

    def capture(self) -> AbstractContextManager[CudaGraph]:
        """Capture what the body puts on the stream instead of running it; the graph can be launched afterwards."""

    def close(self) -> None:
        """Give back every graph and buffer that is left, then the stream; twice is once.

        Raises:
            InferenceError: something could not be given back, although the context lives; the rest has been.
        """


class Cuda(Protocol):
    """What of CUDA this machine has."""

    def devices(self) -> tuple[Device, ...]:
        """Return the visible GPUs; none without a driver, never an exception."""

    def absence(self) -> str | None:
        """Say why there is no device and what adds one; None where there is one."""

    def free_bytes(self, device: int) -> int:
        """Return the memory of a device that nobody holds now.

        Raises:
            DeviceUnavailable: there is no such device.
            InferenceError: it does not answer.
        """

    def open(self, device: int) -> CudaContext:
        """Return a new stream on a device.

        Raises:
            DeviceUnavailable: there is no such device.
            InferenceError: it does not answer.
        """


def open_cuda() -> Cuda:
    """Return CUDA through cuda-python; works without a GPU, then with no devices.

    Raises:
        DeviceUnavailable: cuda-python is not installed.
    """
    return PythonCuda(_imported())


def require_device(cuda: Cuda, index: int) -> Device:
    """Return one GPU.

    Raises:
        DeviceUnavailable: there is no such device; the message says what is missing and what adds it.
    """
    devices = cuda.devices()
    if 0 <= index < len(devices):
        return devices[index]
    reason = cuda.absence() or f"this machine has GPUs 0 to {len(devices) - 1}; name one of them"
    msg = f"GPU {index} is not there: {reason}"
    raise DeviceUnavailable(msg)


class PythonCuda:
    """CUDA through a module with the functions of ``cuda.bindings.runtime``."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def devices(self) -> tuple[Device, ...]:
        code, count = self._runtime.cudaGetDeviceCount()
        if int(code):
            self._runtime.cudaGetLastError()
            return ()
        try:
            return tuple(self._device(index) for index in range(count))
        except InferenceError:  # a GPU that does not even state its name is none
            return ()

    def absence(self) -> str | None:
        if self.devices():
            return None
        code, _count = self._runtime.cudaGetDeviceCount()
        self._runtime.cudaGetLastError()
        driver = self._driver_version()
        name = "cudaErrorNoDevice" if not int(code) else _name(code)
        if name == "cudaErrorInsufficientDriver" and driver is not None:
            return f"its driver serves CUDA {driver} and is too old for the installed cuda-python; update the driver"
        return ABSENCES.get(name, f"CUDA says {name}; {LOOK}")

    def free_bytes(self, device: int) -> int:
        require_device(self, device)
        _call(self._runtime, "cudaSetDevice", device)
        free, _total = _call(self._runtime, "cudaMemGetInfo")
        return int(free)

    def open(self, device: int) -> CudaContext:
        return _Context(self._runtime, require_device(self, device))

    def _device(self, index: int) -> Device:
        (properties,) = _call(self._runtime, "cudaGetDeviceProperties", index)
        name = properties.name
        return Device(
            index=index,
            name=name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name),
            capability=f"sm_{properties.major}{properties.minor}",
            total_bytes=int(properties.totalGlobalMem),
            driver_version=self._driver_version() or "none",
        )

    def _driver_version(self) -> str | None:
        code, version = self._runtime.cudaDriverGetVersion()
        return None if int(code) or not version else f"{version // 1000}.{version % 1000 // 10}"


class _Held:
    """Something of CUDA that is given back once; the context it belongs to remembers it until then."""

    def __init__(self, held: dict[int, _Held], release: Callable[[], object]) -> None:
        self._held = held
        self._release = release
        held[id(self)] = self

    def close(self) -> None:
        """Give it back; where the context is lost it went with it."""
        if self._held.pop(id(self), None) is not None:
            with suppress(DeviceLost):
                self._release()


class _DeviceBuffer(_Held):
    def __init__(self, context: _Context, bytes_count: int) -> None:
        (address,) = context.call("cudaMalloc", bytes_count)
        self.address = int(address)
        self.bytes = bytes_count
        super().__init__(context.held, lambda: context.call("cudaFree", address))


class _HostBuffer(_Held):
    def __init__(self, context: _Context, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        (address,) = context.call("cudaHostAlloc", self.bytes, context.runtime.cudaHostAllocDefault)
        self.address = int(address)
        memory = (ctypes.c_byte * self.bytes).from_address(self.address)
        self.array: NDArray[Any] = np.frombuffer(memoryview(memory), dtype=dtype).reshape(shape)
        super().__init__(context.held, lambda: context.call("cudaFreeHost", address))


class _Graph(_Held):
    def __init__(self, context: _Context) -> None:
        self._context = context
        self._executable: Any = None
        super().__init__(context.held, self._destroy)

    def launch(self) -> None:
        if self._executable is None:
            msg = "the CUDA graph is not captured yet, or closed; capture it first"
            raise InferenceError(msg)
        self._context.call("cudaGraphLaunch", self._executable, self._context.handle)

    def instantiate(self, captured: Any) -> None:
        """Make what was captured fit to launch."""
        (self._executable,) = self._context.call("cudaGraphInstantiate", captured, 0)

    def _destroy(self) -> None:
        executable, self._executable = self._executable, None
        if executable is not None:
            self._context.call("cudaGraphExecDestroy", executable)


class _Context:
    """Buffers and graphs are remembered here, so that ``close`` misses none, also after an error half way."""

    def __init__(self, runtime: Any, device: Device) -> None:
        self.runtime = runtime
        self.device = device
        self.held: dict[int, _Held] = {}
        self._open = True
        self.make_current()
        # Not blocking: no other stream of the process waits for this one.
        (self.handle,) = self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        _Held(self.held, lambda: self.call("cudaStreamDestroy", self.handle))

    @property
    def stream(self) -> int:
        return int(self.handle)

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of CUDA and return what it gives besides the error code."""
        if not self._open:  # CUDA itself would read what lay at the stream's address
            msg = "this CUDA context is closed; open a new one"
            raise InferenceError(msg)
        return _call(self.runtime, name, *arguments)

    def make_current(self) -> None:
        self.call("cudaSetDevice", self.device.index)

    def free_bytes(self) -> int:
        free, _total = self.call("cudaMemGetInfo")
        return int(free)

    def allocate(self, bytes_count: int) -> DeviceBuffer:
        return _DeviceBuffer(self, bytes_count)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> HostBuffer:
        return _HostBuffer(self, shape, dtype)

    def copy_in(self, target: DeviceBuffer, source: HostBuffer, bytes_count: int | None = None) -> None:
        size = source.array.nbytes if bytes_count is None else bytes_count
        _require_size(size, target.bytes, source.array.nbytes)
        self._copy(target.address, source.array.ctypes.data, size, "cudaMemcpyHostToDevice")

    def copy_out(self, target: HostBuffer, source: DeviceBuffer, bytes_count: int | None = None) -> None:
        size = target.array.nbytes if bytes_count is None else bytes_count
        _require_size(size, target.array.nbytes, source.bytes)
        self._copy(target.array.ctypes.data, source.address, size, "cudaMemcpyDeviceToHost")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        self.call("cudaMemcpyAsync", target, source, size, getattr(self.runtime.cudaMemcpyKind, kind), self.handle)

    def synchronize(self) -> None:
        self.call("cudaStreamSynchronize", self.handle)

    @contextmanager
    def capture(self) -> Iterator[CudaGraph]:
        # Thread-local: what other threads allocate meanwhile does not end the capture.
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.handle, mode)
        graph = _Graph(self)
        try:
            yield graph
        except BaseException:
            self._abandon_capture()
            graph.close()
            raise
        try:
            self._end_capture(graph)
        except InferenceError:
            graph.close()
            raise

    def _end_capture(self, graph: _Graph) -> None:
        (captured,) = self.call("cudaStreamEndCapture", self.handle)
        try:
            graph.instantiate(captured)
        except InferenceError:
            with suppress(InferenceError):  # the first error counts
                self.call("cudaGraphDestroy", captured)
            raise
        self.call("cudaGraphDestroy", captured)

    def _abandon_capture(self) -> None:
        # The body's own error counts; an invalidated capture ends with one more, and with no graph.
        with suppress(InferenceError):
            (captured,) = self.call("cudaStreamEndCapture", self.handle)
            self.call("cudaGraphDestroy", captured)

    def close(self) -> None:
        failures = []
        with suppress(InferenceError):
            self.make_current()
        for held in reversed(tuple(self.held.values())):  # graphs before the buffers they use, the stream last
            try:
                held.close()
            except InferenceError as error:
                failures.append(error)
        self._open = False
        if failures:
            raise failures[0]


def _imported() -> Any:
    failures = []
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # the binding is there, a library beside it is not
            failures.append(str(error))
    msg = f"cuda-python cannot be imported ({failures[0]}); install it: pip install 'purkinje[tensorrt]'"
    raise DeviceUnavailable(msg)


def _call(runtime: Any, name: str, *arguments: Any) -> tuple[Any, ...]:
    code, *results = getattr(runtime, name)(*arguments)
    if int(code):
        runtime.cudaGetLastError()  # else an error that passes would be found again by the next call that looks
        raise error_from_code(_name(code), _text(runtime, code), name)
    return tuple(results)


def _name(code: Any) -> str:
    return str(getattr(code, "name", f"error {int(code)}"))


def _text(runtime: Any, code: Any) -> str:
    _code, text = runtime.cudaGetErrorString(code)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _require_size(size: int, *limits: int) -> None:
    if not 0 < size <= min(limits):
        msg = (
            f"a copy of {size} bytes between buffers of {' and '.join(map(str, limits))}; expected at most the smaller"
        )
        raise ValueError(msg)
