"""Whatever CUDA or TensorRT raises while a study is computed ends in one of our classes, and that in the right action."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle.reader import Bundle, load_bundle
from engines.errors import (
    BundleError,
    DeviceLost,
    DeviceUnavailable,
    EngineError,
    InferenceError,
    OutOfMemory,
    PlanBuildFailed,
    PlanRefused,
)
from engines.records import Modality
from engines.runtime.cuda_errors import LOST, error_from_code
from engines.runtime.runner import mapped
from engines.runtime.tensorrt_engine import FOREIGN
from engines.runtime.tensorrt_runner import TensorRtRunner
from stream_processors.disposition import Action, rule_for
from tests.doubles.bundles import write_tiny
from tests.doubles.cuda import CudaDouble, CudaError, Gpu
from tests.doubles.tensorrt import ErrorCodeTRT, TensorRtDouble, plan_of

MEMORY = "cudaErrorMemoryAllocation"
RUN_CALLS = ["cudaSetDevice", "cudaMemcpyAsync", "cudaGraphLaunch", "cudaStreamSynchronize"]
"""Calls of CUDA that a study makes once the engine is warm."""


def _codes() -> list[str]:
    """Every code of the installed cuda-python, else those that we name."""
    try:
        library = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return sorted({*LOST, *CudaError.__members__} - {"cudaSuccess"})
    return sorted({*LOST, *library.cudaError_t.__members__} - {"cudaSuccess"})


def _expected(code: str) -> tuple[type[EngineError], Action, Action]:
    """Class, first action and the action when it keeps happening."""
    if code == MEMORY:
        return OutOfMemory, Action.RETRY, Action.DEAD_LETTER
    if code in LOST:
        return DeviceLost, Action.NEW_PROCESS, Action.NEW_PROCESS
    return InferenceError, Action.RETRY, Action.DEAD_LETTER


def _assert_disposition(error: Exception, code: str) -> None:
    cls, first, last = _expected(code)
    assert type(error) is cls
    assert (rule_for(error).action_after(1), rule_for(error).action_after(10**6)) == (first, last)


@pytest.mark.parametrize("code", _codes())
def test_every_code_of_cuda_has_an_action(code: str) -> None:
    """A lost GPU is left to a new process, everything else is tried again, but not for ever."""
    _assert_disposition(error_from_code(code, "text", "cudaX"), code)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny ECG bundle."""
    return load_bundle(write_tiny(tmp_path_factory.mktemp("bundle") / "ecg", Modality.ECG))


class Warm:
    """A runner on doubles that has its graphs captured."""

    def __init__(self, bundle: Bundle) -> None:
        self.cuda = CudaDouble(Gpu())
        self.trt = TensorRtDouble(self.cuda)
        self.runner = TensorRtRunner(bundle.manifest, plan_of(bundle), self.trt, self.cuda)
        self.runner.warm_up([1])

    def error(self) -> Exception:
        """What a study gets to see."""
        with pytest.raises(EngineError) as caught:
            self.runner.run({"ecg": np.zeros((1, 12, 200), np.float32)})
        return caught.value


@pytest.mark.parametrize("call", RUN_CALLS)
@pytest.mark.parametrize("code", [code for code in CudaError if code], ids=lambda code: code.name)
def test_every_call_of_a_study_keeps_the_code(bundle: Bundle, call: str, code: CudaError) -> None:
    """Wherever CUDA fails under a running study, the study sees the class of the code."""
    warm = Warm(bundle)
    warm.cuda.cudart.fail(call, code)
    _assert_disposition(warm.error(), code.name)


@pytest.mark.parametrize("code", [code for code in CudaError if code], ids=lambda code: code.name)
def test_an_error_of_the_work_itself_keeps_the_code(bundle: Bundle, code: CudaError) -> None:
    """What goes wrong on the stream, after every call has returned, is seen too."""
    warm = Warm(bundle)
    warm.trt.execution_error = code
    _assert_disposition(warm.error(), code.name)


@pytest.mark.parametrize("kind", FOREIGN, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("text", "code"), [("some fault", "other"), ("out of memory", MEMORY)])
def test_every_exception_of_the_bindings_is_one_of_ours(
    bundle: Bundle, kind: type[Exception], text: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library has no classes of its own: what its bindings raise becomes ours, want of memory by its words."""
    warm = Warm(bundle)

    def fail(*_: Any) -> None:
        raise kind(text)

    monkeypatch.setattr(warm.runner._engine, "enqueue", fail)
    _assert_disposition(warm.error(), code)


@pytest.mark.parametrize("foreign", [*FOREIGN, MemoryError], ids=lambda kind: kind.__name__)
def test_no_exception_of_the_bindings_reaches_the_table_of_bugs(foreign: type[Exception]) -> None:
    """Mapped, none of them is a bug that buries the study at once."""
    with pytest.raises(InferenceError) as caught, mapped("TensorRT", FOREIGN, InferenceError):
        raise foreign("x")
    assert rule_for(caught.value).action is Action.RETRY


@pytest.mark.parametrize("stated", list(ErrorCodeTRT), ids=lambda stated: stated.name)
def test_a_refusal_of_tensorrt_is_tried_again(bundle: Bundle, stated: ErrorCodeTRT) -> None:
    """A False with a reason in the error recorder is an error like any other."""
    warm = Warm(bundle)
    warm.trt.refuse["execute"] = (stated, "the reason")
    with pytest.raises(InferenceError, match="the reason") as caught:
        warm.runner.run({"ecg": np.zeros((3, 12, 200), np.float32)})
    assert rule_for(caught.value).action_after(1) is Action.RETRY
    assert rule_for(caught.value).action_after(10**6) is Action.DEAD_LETTER


@pytest.mark.parametrize("cls", [PlanBuildFailed, PlanRefused, DeviceUnavailable])
def test_what_keeps_an_engine_off_the_gpu_would_stop_a_lane(cls: type[BundleError]) -> None:
    """Should one ever escape from where the CPU takes over, an operator looks; no study is buried for it."""
    assert rule_for(cls("x")).action is Action.STOP


def test_a_plan_that_the_library_refuses_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """Loading fails with the class that sends the engine to the CPU."""
    cuda = CudaDouble(Gpu())
    trt = TensorRtDouble(cuda)
    trt.refuse["deserialize_cuda_engine"] = (ErrorCodeTRT.INVALID_ARGUMENT, "not a plan")
    with pytest.raises(PlanRefused, match="not a plan"):
        TensorRtRunner(bundle.manifest, plan_of(bundle), trt, cuda)
