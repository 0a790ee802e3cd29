"""Devices are found or their absence explained; every error code becomes our exception; nothing is left allocated."""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import DeviceLost, DeviceUnavailable, InferenceError, OutOfMemory
from engines.runtime import cuda as module
from engines.runtime import cuda_errors
from engines.runtime.cuda import CudaContext, Device, PythonCuda, open_cuda, require_device
from tests.doubles.cuda import GIB, CudaDouble, CudaError, Gpu


def _capture(context: CudaContext) -> Any:
    with context.capture() as graph:
        pass
    return graph


LOST_CODES = [CudaError(code) for code in (3, 46, 214, 700, 709, 719, 999)]
USES: dict[str, Callable[[CudaContext], object]] = {
    "cudaSetDevice": lambda context: context.make_current(),
    "cudaMemGetInfo": lambda context: context.free_bytes(),
    "cudaMalloc": lambda context: context.allocate(16),
    "cudaHostAlloc": lambda context: context.pinned((4,), "float32"),
    "cudaMemcpyAsync": lambda context: context.copy_in(context.allocate(16), context.pinned((4,), "float32")),
    "cudaStreamSynchronize": lambda context: context.synchronize(),
    "cudaStreamBeginCapture": _capture,
    "cudaStreamEndCapture": _capture,
    "cudaGraphInstantiate": _capture,
    "cudaGraphLaunch": lambda context: _capture(context).launch(),
}


@pytest.fixture
def gpu() -> CudaDouble:
    """A machine with one GPU."""
    return CudaDouble(Gpu())


def _text(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value)


def test_devices_state_name_capability_and_memory() -> None:
    """A GPU is described by what CUDA states of it."""
    cuda = CudaDouble(Gpu(), Gpu(name="NVIDIA L4", major=8, minor=9, total_bytes=24 * GIB), driver=12080)
    assert cuda.devices()[1] == Device(
        index=1, name="NVIDIA L4", capability="sm_89", total_bytes=24 * GIB, driver_version="12.8"
    )
    assert cuda.absence() is None


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [
        (CudaDouble(), "no driver is installed; install NVIDIA's driver"),
        (CudaDouble(driver=12080), "no GPU is visible; look at `nvidia-smi`"),
    ],
)
def test_absence_says_what_is_missing(cuda: CudaDouble, reason: str) -> None:
    """Without a driver or a GPU there are no devices, no exception, and a sentence that says what adds one."""
    assert cuda.devices() == ()
    assert reason in str(cuda.absence())
    for use in (cuda.open, cuda.free_bytes, lambda index: require_device(cuda, index)):
        with pytest.raises(DeviceUnavailable, match="GPU 0 is not there") as caught:
            use(0)
        assert reason in _text(caught)


def test_old_driver_is_told_from_none(gpu: CudaDouble) -> None:
    """A driver that is too old for the library is to be updated, not installed."""
    gpu.cudart.driver = 11040
    gpu.cudart.fail("cudaGetDeviceCount", CudaError.cudaErrorInsufficientDriver, times=9)
    assert "serves CUDA 11.4 and is too old" in str(gpu.absence())


def test_unknown_reason_is_named(gpu: CudaDouble) -> None:
    """A code that no table knows stands in the sentence."""
    gpu.cudart.fail("cudaGetDeviceCount", CudaError.cudaErrorNotSupported, times=9)
    assert "CUDA says cudaErrorNotSupported" in str(gpu.absence())


def test_gpu_that_does_not_answer_is_none(gpu: CudaDouble) -> None:
    """A GPU that is counted and does not state its name is not offered."""
    gpu.cudart.fail("cudaGetDeviceProperties", CudaError.cudaErrorECCUncorrectable)
    assert gpu.devices() == ()


def test_wrong_index_is_refused(gpu: CudaDouble) -> None:
    """An index beyond the GPUs of this machine says which there are."""
    for index in (1, -1):
        with pytest.raises(DeviceUnavailable, match="GPUs 0 to 0"):
            gpu.open(index)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cuda-python, opening says so and how to get it."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    with pytest.raises(DeviceUnavailable, match=r"cuda-python cannot be imported.*pip install 'purkinje\[tensorrt\]'"):
        open_cuda()


def test_older_name_of_the_library_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the older name of cuda-python's module exists, that one is used."""
    double = CudaDouble(Gpu())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", double.cudart)
    assert open_cuda().devices() == double.devices()


def test_installed_library_answers_without_a_gpu() -> None:
    """The installed cuda-python, on whatever machine this is, gives devices or the reason for none."""
    pytest.importorskip("cuda.bindings.runtime")
    cuda = open_cuda()
    if cuda.devices():
        assert cuda.absence() is None
        return
    assert cuda.absence()
    with pytest.raises(DeviceUnavailable, match="GPU 0 is not there"):
        cuda.open(0)


def test_only_one_module_names_the_library(root: Path) -> None:
    """cuda-python is named in one module of the packages, and imported there alone."""
    packages = ("engines", "stream_processors", "orthanc_plugin")
    files = [path for package in packages for path in (root / package).rglob("*.py")]
    pattern = re.compile(r"cuda\.(bindings|cudart)|^\s*(import|from) cuda\b", re.MULTILINE)
    found = [path.relative_to(root).as_posix() for path in files if pattern.search(path.read_text())]
    assert found == ["engines/runtime/cuda.py"]


def test_library_and_double_have_what_is_called() -> None:
    """Every function and code that the product names exists in the installed cuda-python and in the double."""
    library = pytest.importorskip("cuda.bindings.runtime")
    source = inspect.getsource(module)
    functions = set(re.findall(r"[^\w](cuda(?!Error|Memcpy[HD]|python)[A-Z]\w+)", source))
    assert {"cudaMalloc", "cudaGraphExecDestroy", "cudaStreamNonBlocking"} <= functions
    for name in functions - {"cudaStreamCaptureModeThreadLocal"}:
        assert hasattr(library, name), name
        assert hasattr(CudaDouble().cudart, name), name
    assert hasattr(library.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    codes = cuda_errors.LOST | cuda_errors.ABSENCES.keys() | {"cudaErrorMemoryAllocation"}
    assert codes <= {code.name for code in library.cudaError_t}
    assert all(library.cudaError_t(int(code)).name == code.name for code in CudaError)


@pytest.mark.parametrize("call", USES)
@pytest.mark.parametrize("code", [CudaError.cudaErrorMemoryAllocation, CudaError.cudaErrorNotSupported, *LOST_CODES])
def test_every_code_of_every_call_is_mapped(call: str, code: CudaError, gpu: CudaDouble) -> None:
    """Whichever call fails, want of memory, a lost device and the rest are told apart, with code and call named."""
    context = gpu.open(0)
    gpu.cudart.fail(call, code)
    with pytest.raises(InferenceError, match=f"{call} failed: {code.name} ") as caught:
        USES[call](context)
    lost = DeviceLost if code in LOST_CODES else InferenceError
    assert type(caught.value) is (OutOfMemory if code is CudaError.cudaErrorMemoryAllocation else lost)
    assert caught.value.retriable
    assert ("start a new process" in _text(caught)) == (lost is DeviceLost)


def test_an_error_that_passed_is_not_found_again(gpu: CudaDouble) -> None:
    """After an error that is no lost device, a library that asks CUDA for its last error finds none."""
    context = gpu.open(0)
    with pytest.raises(OutOfMemory):
        context.allocate(2 * GIB)
    assert gpu.cudart.cudaGetLastError() == (CudaError.cudaSuccess,)
    gpu.cudart.fail("cudaGetDeviceCount", CudaError.cudaErrorNotSupported, times=3)
    assert gpu.absence()
    assert gpu.cudart.cudaGetLastError() == (CudaError.cudaSuccess,)


def test_failing_open_leaves_nothing(gpu: CudaDouble) -> None:
    """A stream that cannot be made leaves nothing behind."""
    gpu.cudart.fail("cudaStreamCreateWithFlags", CudaError.cudaErrorMemoryAllocation)
    with pytest.raises(OutOfMemory):
        gpu.open(0)
    assert gpu.cudart.live == {}


def test_copies_go_there_and_back(gpu: CudaDouble) -> None:
    """What is copied in and out again comes back, once the stream is done and not before."""
    context = gpu.open(0)
    host, back = context.pinned((2, 3), "float32"), context.pinned((2, 3), "float32")
    buffer = context.allocate(24)
    host.array[:] = np.arange(6).reshape(2, 3)
    context.copy_in(buffer, host)
    context.copy_out(back, buffer, 12)
    assert np.isnan(back.array).all()
    context.synchronize()
    assert back.array[0].tolist() == [0, 1, 2]
    assert np.isnan(back.array[1]).all()


@pytest.mark.parametrize("size", [0, -4, 20, 100])
def test_copy_beyond_a_buffer_is_refused(size: int, gpu: CudaDouble) -> None:
    """A copy larger than either buffer, or of nothing, never reaches CUDA."""
    context = gpu.open(0)
    buffer, host = context.allocate(16), context.pinned((8,), "float32")
    for copy in (lambda: context.copy_in(buffer, host, size), lambda: context.copy_out(host, buffer, size)):
        with pytest.raises(ValueError, match=f"a copy of {size} bytes"):
            copy()


def test_graph_repeats_what_was_captured(gpu: CudaDouble) -> None:
    """Captured work does not run when it is captured, and runs at every launch."""
    context = gpu.open(0)
    buffer, host = context.allocate(4), context.pinned((1,), "float32")
    with context.capture() as graph:
        context.copy_in(buffer, host)
        context.copy_out(host, buffer)
    host.array[:] = 7
    graph.launch()
    context.synchronize()
    assert gpu.cudart.view(buffer.address, 4).view("float32") == [7]
    graph.close()
    with pytest.raises(InferenceError, match="not captured yet, or closed"):
        graph.launch()


def test_failed_body_ends_the_capture(gpu: CudaDouble) -> None:
    """An error while capturing is the one that is raised; the stream runs again and nothing is left."""
    context = gpu.open(0)

    def failing() -> None:
        with context.capture():
            raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        failing()
    context.synchronize()
    assert gpu.cudart.live == {"streams": 1}


def test_captured_graph_needs_its_executable_only(gpu: CudaDouble) -> None:
    """The description of a graph is given back as soon as it can be launched, and also where it cannot."""
    context = gpu.open(0)
    _capture(context)
    assert gpu.cudart.live == {"streams": 1, "executables": 1}
    gpu.cudart.fail("cudaGraphInstantiate", CudaError.cudaErrorMemoryAllocation)
    with pytest.raises(OutOfMemory):
        _capture(context)
    assert gpu.cudart.live == {"streams": 1, "executables": 1}


def test_close_gives_everything_back(gpu: CudaDouble) -> None:
    """Closing a context gives back buffers, graphs and the stream, once; what was closed before is not closed again."""
    context = gpu.open(0)
    first, _second, host = context.allocate(16), context.allocate(16), context.pinned((4,), "float32")
    _capture(context)
    for _ in range(2):
        first.close()
        host.close()
    context.close()
    context.close()
    assert gpu.cudart.live == {}
    with pytest.raises(InferenceError, match="context is closed"):
        context.synchronize()


def test_close_goes_on_after_a_failure(gpu: CudaDouble) -> None:
    """What cannot be given back is reported after all the rest has been given back."""
    context = gpu.open(0)
    for _ in range(3):
        context.allocate(16)
    gpu.cudart.fail("cudaFree", CudaError.cudaErrorInvalidValue)
    with pytest.raises(InferenceError, match="cudaFree failed"):
        context.close()
    assert gpu.cudart.live == {"device": 1}


def test_close_of_a_lost_context_is_silent(gpu: CudaDouble) -> None:
    """On a lost device closing still tries everything and raises nothing: it is gone with the context."""
    context = gpu.open(0)
    context.allocate(16)
    _capture(context)
    gpu.cudart.lost = CudaError.cudaErrorIllegalAddress
    context.close()
    assert gpu.cudart.live == {}


def test_every_thread_chooses_the_device() -> None:
    """A thread that never chose a device works on the first, so a context of another is made current in it."""
    cuda = CudaDouble(Gpu(), Gpu())
    context = cuda.open(1)
    buffer, host = context.allocate(4), context.pinned((1,), "float32")
    outcomes: list[object] = []

    def work(current: bool) -> None:
        try:
            if current:
                context.make_current()
            outcomes.append(context.copy_in(buffer, host))
        except InferenceError as error:
            outcomes.append(str(error).split()[2])

    for current in (False, True):
        thread = threading.Thread(target=work, args=(current,))
        thread.start()
        thread.join()
    assert outcomes == ["cudaErrorInvalidResourceHandle", None]


def test_free_memory_counts_what_is_held() -> None:
    """Free memory falls by what is allocated, and an allocation beyond it is want of memory."""
    gpu = CudaDouble(Gpu(total_bytes=3000))
    context = gpu.open(0)
    context.allocate(1000)
    assert gpu.free_bytes(0) == context.free_bytes() == 2000
    with pytest.raises(OutOfMemory, match="no memory left"):
        context.allocate(2001)


def test_installed_library_passes_through_the_same_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The double is the product's own class over another library, so what is tested over it is what runs on a GPU."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", CudaDouble(Gpu()).cudart)
    assert type(open_cuda()) is PythonCuda
    assert issubclass(CudaDouble, PythonCuda)
