"""A GPU that is none: the functions of cuda-python, over memory of the host.

``CudaDouble`` is the product's own ``PythonCuda`` over ``Cudart``, so that its handling of error codes is under test
wherever a GPU is needed. It is stricter than a real GPU where that finds more: work on a stream runs only when somebody
waits for it, fresh memory is full of NaN, freed memory too, every copy is checked against what is allocated, and what
is never given back stays in ``live``.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from engines.runtime.cuda import PythonCuda

GIB = 1 << 30
_POISON = 0xFF
"""Four of these bytes are a NaN of float32."""


class CudaError(IntEnum):
    """Some of CUDA's codes, as cuda-python names them."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInitializationError = 3
    cudaErrorInsufficientDriver = 35
    cudaErrorDevicesUnavailable = 46
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorECCUncorrectable = 214
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorContextIsDestroyed = 709
    cudaErrorLaunchFailure = 719
    cudaErrorNotSupported = 801
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorUnknown = 999


OK = CudaError.cudaSuccess
STICKY = frozenset({3, 46, 214, 700, 709, 719, 999})
Work = Callable[[], CudaError]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What a device states of itself."""

    name: str = "NVIDIA Double 9000"
    major: int = 9
    minor: int = 0
    total_bytes: int = GIB


@dataclass(eq=False)
class _Stream:
    device: int
    queue: list[Work] = field(default_factory=list)
    capturing: list[Work] | None = None
    invalid: bool = False


@dataclass(eq=False)
class _Memory:
    bytes: np.ndarray
    device: int | None

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data


class Cudart:
    """The functions of ``cuda.bindings.runtime`` that the product calls; each returns a tuple that starts with a code.

    Args:
        gpus: visible devices.
        driver: as ``cudaDriverGetVersion`` states it; 0 = none.
    """

    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, gpus: tuple[Gpu, ...], driver: int) -> None:
        self.gpus = gpus
        self.driver = driver
        self.lost: CudaError | None = None
        self.last: CudaError = OK
        self.calls: Counter[str] = Counter()
        self.memory: dict[int, _Memory] = {}
        self.streams: dict[int, _Stream] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self._failures: dict[str, list[CudaError]] = {}
        self._graveyard: list[_Memory] = []
        self._thread = threading.local()
        self._handles = iter(range(1, 1 << 30))

    # -- what tests ask and do ----------------------------------------------------------------------------------------

    @property
    def live(self) -> dict[str, int]:
        """What was made and not given back, by kind; empty when nothing leaks."""
        counts = {
            "device": sum(memory.device is not None for memory in self.memory.values()),
            "pinned": sum(memory.device is None for memory in self.memory.values()),
            "streams": len(self.streams),
            "graphs": len(self.graphs),
            "executables": len(self.executables),
        }
        return {kind: count for kind, count in counts.items() if count}

    def fail(self, name: str, code: CudaError, *, after: int = 0, times: int = 1) -> None:
        """Let ``times`` calls of a function fail, after ``after`` that do not."""
        self._failures[name] = [OK] * after + [code] * times

    def used_bytes(self, device: int) -> int:
        """Memory of a device that is held."""
        return sum(memory.bytes.nbytes for memory in self.memory.values() if memory.device == device)

    # -- what the double of TensorRT calls ----------------------------------------------------------------------------

    def view(self, address: int, size: int) -> np.ndarray | None:
        """Return bytes of the device, or None where they are not all allocated."""
        for memory in self.memory.values():
            offset = address - memory.address
            if offset >= 0 and offset + size <= memory.bytes.nbytes:
                return memory.bytes[offset : offset + size]
        return None

    def put(self, stream: int, work: Work) -> CudaError:
        """Put work on a stream, or into the graph it captures."""
        if self.lost is not None:
            return self.lost
        found = self.streams.get(stream)
        if found is None or found.device != self.current:
            return CudaError.cudaErrorInvalidResourceHandle
        (found.queue if found.capturing is None else found.capturing).append(work)
        return OK

    def capturing(self, stream: int) -> bool:
        """Whether a stream captures instead of running."""
        return self.streams[stream].capturing is not None

    def invalidate(self, stream: int) -> None:
        """Spoil the capture of a stream, as a call does that cannot be captured."""
        self.streams[stream].invalid = True

    @property
    def current(self) -> int:
        """Device of the calling thread; a new thread starts with the first."""
        return getattr(self._thread, "device", 0)

    def malloc(self, size: int, device: int | None) -> int | None:
        """Take poisoned memory; None where there is none left."""
        if device is not None and self.used_bytes(device) + size > self.gpus[device].total_bytes:
            return None
        # Aligned, as CUDA's own.
        raw = np.full(size + 256, _POISON, dtype=np.uint8)
        offset = -raw.ctypes.data % 256
        memory = _Memory(bytes=raw[offset : offset + size], device=device)
        self.memory[memory.address] = memory
        return memory.address

    def free(self, address: int) -> bool:
        """Poison memory and give it back."""
        memory = self.memory.pop(address, None)
        if memory is None:
            return False
        memory.bytes[:] = _POISON
        self._graveyard.append(memory)
        return True

    # -- CUDA ---------------------------------------------------------------------------------------------------------

    def cudaGetDeviceCount(self) -> tuple[CudaError, int | None]:
        code = self._code("cudaGetDeviceCount")
        if code is OK and not self.gpus:
            code = CudaError.cudaErrorNoDevice if self.driver else CudaError.cudaErrorInsufficientDriver
        return code, None if code else len(self.gpus)

    def cudaDriverGetVersion(self) -> tuple[CudaError, int]:
        return self._code("cudaDriverGetVersion"), self.driver

    def cudaGetDeviceProperties(self, index: int) -> tuple[CudaError, Any]:
        gpu = self.gpus[index]
        stated = SimpleNamespace(
            name=gpu.name.encode() + b"\0\0", major=gpu.major, minor=gpu.minor, totalGlobalMem=gpu.total_bytes
        )
        return self._code("cudaGetDeviceProperties"), stated

    def cudaGetLastError(self) -> tuple[CudaError]:
        found, self.last = self.lost or self.last, OK
        return (found,)

    def cudaGetErrorString(self, code: CudaError) -> tuple[CudaError, bytes]:
        return OK, f"{code.name} in words".encode()

    def cudaSetDevice(self, device: int) -> tuple[CudaError]:
        code = self._code("cudaSetDevice")
        if code is OK and not 0 <= device < len(self.gpus):
            code = CudaError.cudaErrorInvalidDevice
        if code is OK:
            self._thread.device = device
        return (code,)

    def cudaMemGetInfo(self) -> tuple[CudaError, int, int]:
        total = self.gpus[self.current].total_bytes
        return self._code("cudaMemGetInfo"), total - self.used_bytes(self.current), total

    def cudaMalloc(self, size: int) -> tuple[CudaError, int | None]:
        return self._malloc("cudaMalloc", size, self.current)

    def cudaHostAlloc(self, size: int, _flags: int) -> tuple[CudaError, int | None]:
        return self._malloc("cudaHostAlloc", size, None)

    def cudaFree(self, address: int) -> tuple[CudaError]:
        return (self._freed("cudaFree", address),)

    def cudaFreeHost(self, address: int) -> tuple[CudaError]:
        return (self._freed("cudaFreeHost", address),)

    def cudaStreamCreateWithFlags(self, _flags: int) -> tuple[CudaError, int | None]:
        code = self._code("cudaStreamCreateWithFlags")
        return self._made(code, self.streams, _Stream(device=self.current))

    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]:
        return (self._destroyed("cudaStreamDestroy", self.streams, stream),)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, _kind: int, stream: int) -> tuple[CudaError]:
        code = self._code("cudaMemcpyAsync")
        return (code or self.put(stream, lambda: self._copied(target, source, size)),)

    def cudaStreamSynchronize(self, stream: int) -> tuple[CudaError]:
        code = self._code("cudaStreamSynchronize")
        if code:
            return (code,)
        if self.capturing(stream):
            self.invalidate(stream)
            return (CudaError.cudaErrorStreamCaptureUnsupported,)
        queue, self.streams[stream].queue = self.streams[stream].queue, []
        return (self._ran(queue),)

    def cudaStreamBeginCapture(self, stream: int, _mode: int) -> tuple[CudaError]:
        code = self._code("cudaStreamBeginCapture")
        if code is OK:
            self.streams[stream].capturing, self.streams[stream].invalid = [], False
        return (code,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[CudaError, int | None]:
        code = self._code("cudaStreamEndCapture")
        captured, self.streams[stream].capturing = self.streams[stream].capturing, None
        if code is OK and (captured is None or self.streams[stream].invalid):
            code = CudaError.cudaErrorStreamCaptureInvalidated
        return self._made(code, self.graphs, captured)

    def cudaGraphInstantiate(self, graph: int, _flags: int) -> tuple[CudaError, int | None]:
        code = self._code("cudaGraphInstantiate")
        return self._made(code, self.executables, self.graphs[graph])

    def cudaGraphDestroy(self, graph: int) -> tuple[CudaError]:
        return (self._destroyed("cudaGraphDestroy", self.graphs, graph),)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[CudaError]:
        code = self._code("cudaGraphLaunch")
        return (code or self.put(stream, lambda: self._ran(self.executables[executable])),)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[CudaError]:
        return (self._destroyed("cudaGraphExecDestroy", self.executables, executable),)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _code(self, name: str) -> CudaError:
        self.calls[name] += 1
        planned = self._failures.get(name) or [OK]
        code = self.lost or planned.pop(0)
        return self._noted(code)

    def _noted(self, code: CudaError) -> CudaError:
        if code in STICKY and self.gpus:
            self.lost = code
        self.last = code or self.last
        return code

    def _malloc(self, name: str, size: int, device: int | None) -> tuple[CudaError, int | None]:
        code = self._code(name)
        if code is OK and any(stream.capturing is not None for stream in self.streams.values()):
            code = CudaError.cudaErrorStreamCaptureUnsupported
        address = None if code else self.malloc(size, device)
        if not code and address is None:
            code = CudaError.cudaErrorMemoryAllocation
        return self._noted(code), address

    def _freed(self, name: str, address: int) -> CudaError:
        # A lost context frees nothing by itself: only what was asked to be freed leaves ``live``.
        code = self._code(name)
        known = self.free(address) if code is OK or self.lost else True
        return code or (OK if known else CudaError.cudaErrorInvalidValue)

    def _made(self, code: CudaError, table: dict[int, Any], value: Any) -> tuple[CudaError, int | None]:
        if code:
            return code, None
        handle = next(self._handles)
        table[handle] = value
        return OK, handle

    def _destroyed(self, name: str, table: dict[int, Any], handle: int) -> CudaError:
        code = self._code(name)
        known = table.pop(handle, None) is not None if code is OK or self.lost else True
        return code or (OK if known else CudaError.cudaErrorInvalidResourceHandle)

    def _copied(self, target: int, source: int, size: int) -> CudaError:
        if self.view(target, size) is None or self.view(source, size) is None:
            return CudaError.cudaErrorIllegalAddress
        ctypes.memmove(target, source, size)
        return OK

    def _ran(self, queue: list[Work]) -> CudaError:
        for work in queue:
            code = self._noted(work())
            if code:
                return code
        return OK


class CudaDouble(PythonCuda):
    """The product's CUDA over a double of the library; ``CudaDouble()`` is a machine without a driver."""

    def __init__(self, *gpus: Gpu, driver: int = 0) -> None:
        self.cudart = Cudart(gpus, driver or (13000 if gpus else 0))
        super().__init__(self.cudart)
