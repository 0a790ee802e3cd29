"""The TensorRT runner on the doubles: what it refuses, what it holds, what it survives and what it gives back."""

from __future__ import annotations

import gc
import hashlib
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle.reader import Bundle, load_bundle
from engines.errors import (
    BundleCorrupt,
    DeviceLost,
    DeviceUnavailable,
    EngineError,
    InferenceError,
    OutOfMemory,
    PlanRefused,
)
from engines.records import Modality
from engines.runtime import tensorrt_engine
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.tensorrt_runner import TensorRtRunner
from tests.doubles import bundles, runners
from tests.doubles.cuda import GIB, CudaDouble, CudaError, Gpu
from tests.doubles.tensorrt import ErrorCodeTRT, TensorRtDouble, plan_content, plan_of

CAPTURE_CALLS = ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"]
STICKY = [CudaError.cudaErrorIllegalAddress, CudaError.cudaErrorECCUncorrectable, CudaError.cudaErrorLaunchFailure]


@pytest.fixture(scope="module")
def ecg(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny ECG bundle."""
    return load_bundle(bundles.write_tiny(tmp_path_factory.mktemp("bundle") / "ecg", Modality.ECG))


class Place:
    """One machine with a GPU, and what was opened on it."""

    def __init__(self, bundle: Bundle, *, gpus: tuple[Gpu, ...] = (Gpu(),), rtx: bool = False) -> None:
        self.bundle = bundle
        self.cuda = CudaDouble(*gpus)
        self.cudart = self.cuda.cudart
        self.trt = TensorRtDouble(self.cuda, rtx=rtx)
        self.said: list[str] = []

    def open(self, device: int = 0, limit_bytes: int | None = None, plan: Any = None, **changes: Any) -> TensorRtRunner:
        """Open the bundle's plan; ``changes`` are of its recipe."""
        made = plan or plan_of(self.bundle, **changes)
        return TensorRtRunner(
            self.bundle.manifest, made, self.trt, self.cuda, device, limit_bytes=limit_bytes, log=self.said.append
        )

    @property
    def leaks(self) -> dict[str, int]:
        """Whatever of CUDA and TensorRT was not given back; tracebacks are dropped first."""
        if self.trt.leaks:
            gc.collect()
        return {**self.cudart.live, **self.trt.leaks}


@pytest.fixture
def place(ecg: Bundle) -> Iterator[Place]:
    """A machine with one GPU."""
    return Place(ecg)


def _input(batch: int = 1, seed: int = 3) -> dict[str, np.ndarray]:
    return {"ecg": np.random.default_rng(seed).normal(size=(batch, 12, 200)).astype(np.float32)}


def _agrees(runner: TensorRtRunner, bundle: Bundle, batch: int = 1, seed: int = 3) -> None:
    inputs = _input(batch, seed)
    expected, found = OnnxRunner(bundle).run(inputs), runner.run(inputs)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6)


def _failure(kind: type[Exception], action: Callable[[], object], match: str | None = None) -> str:
    """Return the message and drop the traceback, which keeps frames alive."""
    with pytest.raises(kind, match=match) as caught:
        action()
    assert type(caught.value) is kind
    return str(caught.value)


def test_library_has_what_is_called() -> None:
    """Every call and constant that the product and the double name exists in the installed TensorRT-RTX."""
    library = pytest.importorskip("tensorrt_rtx_bindings")
    source = inspect.getsource(tensorrt_engine)
    owners = {
        r"self\._runtime\.(\w+)": library.Runtime,
        r"[. ](?:_)?engine\.(\w+)": library.ICudaEngine,
        r"[. (]context\.(\w+)": library.IExecutionContext,
        r"[ (]config\.(\w+)": library.IRuntimeConfig,
        r"trt\.(\w+)": library,
    }
    found = {owner: set(re.findall(pattern, source)) for pattern, owner in owners.items()}
    assert {"execute_async_v3", "set_input_shape", "set_tensor_address"} <= found[library.IExecutionContext]
    assert {"get_tensor_profile_shape", "device_memory_size_v2"} <= found[library.ICudaEngine]
    missing = [(owner, name) for owner, names in found.items() for name in names if not hasattr(owner, name)]
    assert missing == []
    assert {"USER_MANAGED"} <= library.ExecutionContextAllocationStrategy.__members__.keys()
    assert {"FLOAT", "HALF", "BF16", "UINT8"} <= library.DataType.__members__.keys()
    assert {"INPUT", "OUTPUT"} <= library.TensorIOMode.__members__.keys()
    assert {code.name for code in ErrorCodeTRT} <= library.ErrorCodeTRT.__members__.keys()
    assert hasattr(library.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(library.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE")


def test_error_recorder_works_with_the_library() -> None:
    """The error recorder derives from the library's own class and keeps what the library tells it until it is taken."""
    library = pytest.importorskip("tensorrt_rtx_bindings")
    recorder = tensorrt_engine._recorder(library)
    recorder.report_error(library.ErrorCodeTRT.FAILED_ALLOCATION, "4096\nbytes")
    assert (recorder.num_errors(), recorder.get_error_desc(0), recorder.has_overflowed()) == (1, "4096\nbytes", False)
    assert recorder.get_error_code(0) is library.ErrorCodeTRT.FAILED_ALLOCATION
    assert recorder.taken() == ["out of memory: 4096 bytes"]
    recorder.report_error(library.ErrorCodeTRT.INVALID_STATE, "x")
    recorder.clear()
    assert recorder.taken() == []


# -- what it says -----------------------------------------------------------------------------------------------------


def test_identity_states_library_gpu_and_plan(place: Place) -> None:
    """The identity names runtime, version, precision, GPU with capability, and the digest of the plan."""
    plan = plan_of(place.bundle, precision="fp16")
    identity = place.open(plan=plan).identity
    assert (identity.runtime, identity.version, identity.precision) == ("tensorrt", "10.15.1.29", "fp16")
    assert identity.device == "NVIDIA Double 9000 (sm_90)"
    assert identity.plan_sha256 == hashlib.sha256(plan.content).hexdigest()
    assert identity.fallback is None


def test_tf32_is_not_called_fp32(place: Place) -> None:
    """A plan that may round to TF32 does not claim fp32."""
    assert place.open(tf32=True).identity.precision == "fp32+tf32"


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"version": "10.14.0"}, r"version 10.14.0 \(here: 10.15.1.29\)"),
        ({"runtime": "tensorrt-rtx"}, r"runtime tensorrt-rtx \(here: tensorrt\)"),
        ({"target": "sm_89"}, r"target sm_89 \(here: sm_90\)"),
        ({"graph_sha256": "0" * 64}, "graph 0000"),
        ({"batch_minimum": 2}, r"smallest batch 2 \(here: 1\)"),
    ],
)
def test_foreign_plan_is_refused_unread(changes: dict[str, Any], fault: str, place: Place) -> None:
    """A plan for another graph, runtime, version, GPU, or without a batch of one never reaches the library."""
    _failure(PlanRefused, lambda: place.open(**changes), f"{fault}.*build it here")
    assert place.trt.made == {}
    assert place.leaks == {}


def test_altered_plan_is_refused_unread(place: Place) -> None:
    """A plan that is not the one its digest names is never deserialised: it is executable code."""
    plan = replace(plan_of(place.bundle), content=plan_content(place.bundle.graph()) + b"\0")
    _failure(PlanRefused, lambda: place.open(plan=plan), "digest")
    assert place.trt.made == {}


def test_all_faults_are_named(place: Place) -> None:
    """A plan that fits in nothing is told so once."""
    message = _failure(PlanRefused, lambda: place.open(version="9.0", target="sm_75"))
    assert "version 9.0" in message
    assert "target sm_75" in message


def test_no_gpu_no_object_of_the_library(ecg: Bundle) -> None:
    """Without a GPU the reason is given before any object of TensorRT is made."""
    place = Place(ecg, gpus=())
    _failure(DeviceUnavailable, place.open, "no driver is installed; install")
    assert place.trt.made == {}


def test_library_that_does_not_take_the_plan(place: Place) -> None:
    """A plan the library cannot read is refused with the library's own reason, and nothing is left."""
    plan = plan_of(place.bundle, content=b"something else")
    _failure(PlanRefused, lambda: place.open(plan=plan), "deserialize_cuda_engine: the plan cannot be read")
    assert place.leaks == {}


def test_engine_that_contradicts_the_manifest(place: Place) -> None:
    """An engine with other tensors than the manifest is refused, and nothing is left."""
    inputs, outputs = bundles.signature(Modality.ECG)
    graph = bundles.graph(inputs, outputs[:-1])
    plan = plan_of(place.bundle, content=plan_content(graph))
    _failure(BundleCorrupt, lambda: place.open(plan=plan), "contradicts its manifest: tensors")
    assert place.leaks == {}


def test_engine_with_another_profile(place: Place) -> None:
    """An engine whose batches are not those of its recipe is refused."""
    plan = plan_of(place.bundle, content=plan_content(place.bundle.graph(), (1, 2, 3)))
    _failure(PlanRefused, lambda: place.open(plan=plan), r"takes batches \(1, 3\).*\(1, 4\)")
    assert place.leaks == {}


# -- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 8, 9, 13])
def test_every_batch_gives_what_the_cpu_gives(batch: int, place: Place) -> None:
    """Batches up to the plan's largest in one piece and larger ones in parts agree with the CPU, at every repetition."""
    runner = place.open()
    for seed in range(4):
        _agrees(runner, place.bundle, batch, seed)


@pytest.mark.parametrize(("batch", "parts"), [(1, 1), (4, 1), (5, 2), (9, 3)])
def test_nothing_is_padded(batch: int, parts: int, place: Place) -> None:
    """The GPU computes exactly the rows it is given, in as few parts as the plan allows."""
    rows: list[int] = []
    place.trt.distortion = lambda outputs: rows.append(len(outputs["embedding"])) or outputs
    place.open().run(_input(batch))
    assert sum(rows) == batch
    assert len(rows) == parts


def test_other_modalities_run(tmp_path: Path) -> None:
    """Eight-bit frames go through the same buffers."""
    bundle = load_bundle(bundles.write_tiny(tmp_path / "echo", Modality.ECHO))
    runner = Place(bundle).open()
    for case in bundle.golden():
        for name, expected in case.outputs.items():
            np.testing.assert_allclose(runner.run(case.prepared)[name], expected, atol=1e-4)


def test_outputs_survive_the_runner(place: Place) -> None:
    """Answers lie in memory of their own: neither the next run nor closing changes them."""
    runner = place.open()
    first = runner.run(_input(5))
    kept = {name: array.copy() for name, array in first.items()}
    runner.run(_input(5, seed=4))
    runner.close()
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


@pytest.mark.parametrize("distortion", runners.DISTORTIONS[1:2])
def test_numbers_that_are_none_never_leave(distortion: runners.Distortion, place: Place) -> None:
    """A NaN that the GPU computes is an error, in the first run and from a graph."""
    runner = place.open()
    runner.run(_input())
    place.trt.distortion = distortion
    for _ in range(3):
        _failure(InferenceError, lambda: runner.run(_input()), "not finite")
    place.trt.distortion = None
    _agrees(runner, place.bundle)


def test_next_part_is_copied_while_one_runs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next part of a large batch is in pinned memory before the runner waits for the part that runs."""
    runner = place.open()
    journal: list[str] = []
    lane, context = type(runner._lanes[0]), runner._context
    fill, wait = lane.fill, context.synchronize
    monkeypatch.setattr(lane, "fill", lambda *arguments: (journal.append("fill"), fill(*arguments)))
    monkeypatch.setattr(context, "synchronize", lambda: (journal.append("wait"), wait()))
    runner.run(_input(12))
    assert journal == ["fill", "fill", "wait", "fill", "wait", "wait"]


def test_one_set_of_pinned_memory_would_be_overwritten(place: Place) -> None:
    """With a single set of pinned memory the answers of a batch in parts would be wrong: the double sees it."""
    runner = place.open()
    runner._lanes = (runner._lanes[0],) * 2
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        _agrees(runner, place.bundle, 12)


def test_buffers_are_allocated_once(place: Place) -> None:
    """Running allocates neither device nor pinned memory."""
    runner = place.open()
    held = (place.cudart.calls["cudaMalloc"], place.cudart.calls["cudaHostAlloc"])
    for batch in (1, 2, 3, 4, 9):
        runner.run(_input(batch))
    assert (place.cudart.calls["cudaMalloc"], place.cudart.calls["cudaHostAlloc"]) == held


def test_it_may_move_between_threads(ecg: Bundle) -> None:
    """A runner of the second GPU runs in one thread and closes in another, neither of which ever chose a GPU."""
    place = Place(ecg, gpus=(Gpu(), Gpu()))
    runner = place.open(device=1)
    failures: list[BaseException] = []

    def work(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    for action in (lambda: _agrees(runner, ecg, 3), runner.close):
        thread = threading.Thread(target=work, args=(action,))
        thread.start()
        thread.join()
    assert failures == []
    assert place.leaks == {}


def test_two_threads_at_once_are_refused(place: Place) -> None:
    """A second thread in the middle of a run, or closing then, is our own mistake and stops at once."""
    runner = place.open()
    refused: list[str] = []

    def intrude(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for action in (lambda: runner.run(_input()), runner._release):
            try:
                action()
            except AssertionError as error:
                refused.append(str(error))
        return outputs

    place.trt.distortion = intrude
    runner.run(_input())
    assert refused == [
        "a TensorRT runner is used by one thread at a time",
        "a TensorRT runner is closed while it runs",
    ]


# -- CUDA graphs ------------------------------------------------------------------------------------------------------


def test_each_batch_size_is_captured_once(place: Place) -> None:
    """A batch size runs plainly, is captured at its second run, and is launched from then on."""
    runner = place.open()
    for batch in (1, 2):
        for _ in range(4):
            _agrees(runner, place.bundle, batch)
    assert (place.trt.journal["execute"], place.trt.journal["capture"]) == (2, 2)
    assert place.cudart.calls["cudaGraphLaunch"] == 6
    assert place.said == []


def test_warm_up_captures_before_the_first_study(place: Place) -> None:
    """After the warm-up a run only launches."""
    runner = place.open()
    runner.warm_up([1, 4])
    before = place.trt.journal.copy()
    _agrees(runner, place.bundle, 5)
    assert place.trt.journal == before


@pytest.mark.parametrize("call", CAPTURE_CALLS)
@pytest.mark.parametrize("code", [CudaError.cudaErrorNotSupported, CudaError.cudaErrorMemoryAllocation])
def test_without_graphs_it_runs_plainly(call: str, code: CudaError, place: Place) -> None:
    """Where a graph cannot be captured or made, every batch is enqueued by itself, right, and this is said once."""
    runner = place.open()
    place.cudart.fail(call, code)
    for batch in (1, 2):
        for _ in range(3):
            _agrees(runner, place.bundle, batch)
    assert len(place.said) == 1
    assert place.said[0].startswith(f"no CUDA graphs, every batch is enqueued by itself: {call} failed: {code.name}")
    assert place.trt.journal["execute"] == 6
    runner.close()
    assert place.leaks == {}


def test_library_that_cannot_be_captured_runs_plainly(place: Place) -> None:
    """Where the library refuses to be captured, the answer comes without a graph."""
    runner = place.open()
    place.trt.refuse["capture"] = (ErrorCodeTRT.INVALID_STATE, "a loop is not capturable")
    for _ in range(3):
        _agrees(runner, place.bundle)
    assert place.said == [
        "no CUDA graphs, every batch is enqueued by itself: execute_async_v3: a loop is not capturable"
    ]


@pytest.mark.parametrize("call", CAPTURE_CALLS)
def test_lost_device_in_a_capture_is_no_fallback(call: str, place: Place) -> None:
    """A device that is lost while capturing is lost."""
    runner = place.open()
    runner.run(_input())
    place.cudart.fail(call, CudaError.cudaErrorLaunchFailure)
    _failure(DeviceLost, lambda: runner.run(_input()), "start a new process")
    assert place.said == []


def test_few_graphs_are_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch size unused for longest gives its graph and its context back."""
    monkeypatch.setattr(tensorrt_engine, "GRAPHS_MAX", 2)
    runner = place.open()
    for batch in (1, 1, 2, 2, 1, 3, 3):
        _agrees(runner, place.bundle, batch)
    assert (place.cudart.live["executables"], place.trt.live["context"]) == (2, 2)
    assert place.trt.journal["capture"] == 3
    _agrees(runner, place.bundle, 1)
    assert place.trt.journal["execute"] == 3
    _agrees(runner, place.bundle, 2)
    assert place.trt.journal["execute"] == 4


def test_rtx_captures_by_itself(ecg: Bundle) -> None:
    """TensorRT-RTX is told to capture, to compile for a shape at once and once for all contexts; we capture nothing."""
    place = Place(ecg, rtx=True)
    runner = place.open(runtime="tensorrt-rtx")
    for batch in (1, 2, 1, 2):
        _agrees(runner, ecg, batch)
    assert place.trt.journal["capture"] == 0
    (config,) = place.trt.configurations
    assert (config.cuda_graph_strategy, config.dynamic_shapes_kernel_specialization_strategy) == ("whole", "eager")
    assert config.cache is not None
    assert runner.identity.runtime == "tensorrt-rtx"
    runner.close()
    del config
    assert place.leaks == {}


# -- errors -----------------------------------------------------------------------------------------------------------

REFUSALS = ["create_execution_context", "set_input_shape", "set_tensor_address", "execute"]


@pytest.mark.parametrize("call", REFUSALS)
def test_refusal_of_the_library_is_told(call: str, place: Place) -> None:
    """A False or a None of the library is an error with the library's own reason, and the runner goes on after it."""
    runner = place.open()
    place.trt.refuse[call] = (ErrorCodeTRT.FAILED_EXECUTION, "two words")
    message = _failure(InferenceError, lambda: runner.run(_input()), "two words")
    assert message.startswith("tensorrt failed: ")
    place.trt.refuse.clear()
    _agrees(runner, place.bundle)
    runner.close()
    assert place.leaks == {}


@pytest.mark.parametrize("call", REFUSALS)
def test_want_of_memory_in_the_library(call: str, place: Place) -> None:
    """The library's own code for want of memory becomes OutOfMemory, and the runner goes on after it."""
    runner = place.open()
    place.trt.refuse[call] = (ErrorCodeTRT.FAILED_ALLOCATION, "4096 bytes")
    _failure(OutOfMemory, lambda: runner.run(_input()), "out of memory: 4096 bytes")
    place.trt.refuse.clear()
    _agrees(runner, place.bundle, 5)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphLaunch"])
def test_error_in_the_middle_of_a_batch(call: str, part: int, place: Place) -> None:
    """An error at any part of a large batch leaves nothing on the stream that the next run could meet."""
    runner = place.open()
    runner.warm_up([4])
    per_part = {"cudaMemcpyAsync": 4, "cudaStreamSynchronize": 1, "cudaGraphLaunch": 1}[call]
    place.cudart.fail(call, CudaError.cudaErrorNotSupported, after=part * per_part)
    _failure(InferenceError, lambda: runner.run(_input(12)), f"{call} failed")
    assert all(not stream.queue for stream in place.cudart.streams.values())
    _agrees(runner, place.bundle, 12, seed=5)


@pytest.mark.parametrize("code", STICKY)
@pytest.mark.parametrize("runs", [0, 3])
def test_lost_context_refuses_for_good(code: CudaError, runs: int, place: Place) -> None:
    """When the work on the stream kills the context, this run and every later one says that a new process is needed."""
    runner = place.open()
    for _ in range(runs):
        runner.run(_input())
    place.trt.execution_error = code
    _failure(DeviceLost, lambda: runner.run(_input()), f"{code.name}.*start a new process")
    place.trt.execution_error = CudaError.cudaSuccess
    place.cudart.lost = None  # even if the device answered again
    calls = place.cudart.calls.copy()
    _failure(DeviceLost, lambda: runner.run(_input()), f"{code.name}.*start a new process; this runner does not run")
    assert place.cudart.calls == calls
    runner.close()
    assert place.leaks == {}


def test_lost_context_behind_a_refusal_is_found(place: Place) -> None:
    """The library says only that it failed: the runner asks the device, and it is the device that is lost."""
    runner = place.open()
    place.trt.refuse["execute"] = (ErrorCodeTRT.FAILED_EXECUTION, "CUDA runtime error")
    place.cudart.fail("cudaStreamSynchronize", CudaError.cudaErrorIllegalAddress)
    _failure(DeviceLost, lambda: runner.run(_input()), "cudaErrorIllegalAddress")
    _failure(DeviceLost, lambda: runner.run(_input()), "does not run again")


def test_lost_device_closes_in_silence(place: Place) -> None:
    """A runner on a lost device can be closed, twice, without an error of its own."""
    runner = place.open()
    runner.run(_input(5))
    place.cudart.lost = CudaError.cudaErrorECCUncorrectable
    runner.close()
    runner.close()
    assert place.leaks == {}


# -- what it gives back -----------------------------------------------------------------------------------------------


def test_close_gives_everything_back(place: Place) -> None:
    """After closing, also twice, nothing is held: no memory, stream, graph, context, engine or runtime."""
    runner = place.open()
    for batch in (1, 1, 5, 5, 3):
        runner.run(_input(batch))
    held = {"device", "pinned", "streams", "executables", "context", "engine", "runtime"}
    assert place.leaks.keys() == held
    runner.close()
    runner.close()
    assert place.leaks == {}


def test_close_does_not_wait_for_references(place: Place) -> None:
    """What a traceback still refers to does not keep memory of the GPU."""
    runner = place.open()
    runner.warm_up([1])
    engine = runner._engine
    runner.close()
    assert place.leaks == {}
    assert engine is not None


@pytest.mark.parametrize("content", [b"something else", plan_content(b"no graph")])
def test_kept_error_of_opening_holds_nothing(content: bytes, place: Place) -> None:
    """While somebody keeps the error of a plan that could not be opened, nothing of the GPU is kept with it."""
    plan = plan_of(place.bundle, content=content)
    with pytest.raises(PlanRefused) as kept:
        place.open(plan=plan)
    assert place.leaks == {}
    assert kept.value.__traceback__ is not None


def test_close_after_an_error_gives_everything_back(place: Place) -> None:
    """A run that failed leaves nothing that closing misses."""
    runner = place.open()
    place.cudart.fail("cudaMemcpyAsync", CudaError.cudaErrorNotSupported, after=6)
    _failure(InferenceError, lambda: runner.run(_input(9)))
    runner.close()
    assert place.leaks == {}


def test_close_that_fails_gives_the_rest_back(place: Place) -> None:
    """What cannot be given back is reported; the rest has been given back."""
    runner = place.open()
    runner.run(_input())
    place.cudart.fail("cudaFreeHost", CudaError.cudaErrorInvalidValue)
    _failure(InferenceError, runner.close, "cudaFreeHost failed")
    assert place.leaks == {"pinned": 1}


CONSTRUCTION = ["cudaStreamCreateWithFlags", "cudaMemGetInfo", "cudaMalloc", "cudaHostAlloc", "cudaSetDevice"]


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("call", CONSTRUCTION)
@pytest.mark.parametrize("code", [CudaError.cudaErrorMemoryAllocation, CudaError.cudaErrorIllegalAddress])
def test_error_while_opening_leaves_nothing(code: CudaError, call: str, after: int, place: Place) -> None:
    """Whichever call fails while a runner is opened, the error is ours and nothing that was made is left."""
    place.cudart.fail(call, code, after=after)
    try:
        runner = place.open()
    except EngineError as error:
        assert type(error) in {OutOfMemory, DeviceLost}  # noqa: PT017 - not every call is made so often
    else:
        assert place.cudart.calls[call] <= after
        runner.close()
    assert place.leaks == {}


def test_want_of_memory_while_the_library_loads(place: Place) -> None:
    """Where the library has no memory for the weights, that is want of memory and nothing is left."""
    place.trt.refuse["deserialize_cuda_engine"] = (ErrorCodeTRT.FAILED_ALLOCATION, "weights do not fit")
    _failure(OutOfMemory, place.open, "weights do not fit")
    assert place.leaks == {}


# -- the memory budget ------------------------------------------------------------------------------------------------


def test_over_the_limit_is_refused_before_loading(place: Place) -> None:
    """An engine over the site's limit is refused before the library reads its plan, with numbers and what to do."""
    message = _failure(DeviceUnavailable, lambda: place.open(limit_bytes=1000))
    assert "tiny-ecg needs" in message
    assert "the limit for it is 0.0 MiB: raise the limit" in message
    assert "smaller largest batch" in message
    assert place.trt.made == {}
    assert place.leaks == {}


def test_what_the_engine_states_counts(place: Place) -> None:
    """Memory that only the loaded engine states is held against the limit, and nothing is left."""
    _failure(
        DeviceUnavailable,
        lambda: place.open(limit_bytes=GIB // 4, activation_bytes=GIB // 2),
        r"activations 512\.0 MiB.*limit for it is 256\.0 MiB",
    )
    assert place.trt.journal["deserialize"] == 1
    assert place.leaks == {}


def test_full_device_is_refused(ecg: Bundle) -> None:
    """Where others hold the GPU's memory, the message says how much is free and how much is missing."""
    place = Place(ecg, gpus=(Gpu(total_bytes=140 << 20),))
    other = place.cuda.open(0)
    other.allocate(40 << 20)
    _failure(DeviceUnavailable, place.open, r"128\.0 MiB stay in reserve; 100\.0 MiB are free, \d+\.\d MiB too few")
    assert place.trt.made == {}
    other.close()
    place.open().close()
    assert place.leaks == {}
