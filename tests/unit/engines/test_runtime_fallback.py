"""Out of memory: halves once, then the CPU, then the GPU again; the identity is that of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle.reader import load_bundle
from engines.errors import BundleError, DeviceLost, InferenceError, OutOfMemory, SelfTestFailed
from engines.records import Modality
from engines.runtime.fallback import RETRY_AFTER, FallbackRunner
from engines.runtime.runner import Arrays, CheckedRunner, RuntimeIdentity
from engines.runtime.tensorrt_runner import TensorRtRunner
from tests.doubles import bundles
from tests.doubles.cuda import CudaDouble, Gpu
from tests.doubles.tensorrt import ErrorCodeTRT, TensorRtDouble, plan_of

MANIFEST = bundles.draft(Modality.ECG)
GPU = RuntimeIdentity(runtime="tensorrt", version="1", precision="fp16", device="GPU", plan_sha256="ab")
CPU = RuntimeIdentity(runtime="onnxruntime", version="2", precision="fp32", device="CPU")


class Counting(CheckedRunner):
    """Answers each row with its first value; fails for batches of more than ``rows_max``."""

    def __init__(self, identity: RuntimeIdentity, rows_max: float = 99, error: Exception | None = None) -> None:
        super().__init__(MANIFEST, identity, (RuntimeError,))
        self.rows_max = rows_max
        self.error = error or OutOfMemory("cudaMalloc failed: no memory")
        self.batches: list[int] = []
        self.closes = 0

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        rows = len(inputs["ecg"])
        self.batches.append(rows)
        if rows > self.rows_max:
            raise self.error
        first = inputs["ecg"][:, 0, :1]
        return {tensor.name: np.repeat(first, tensor.shape[1], axis=1) for tensor in MANIFEST.outputs}

    def _release(self) -> None:
        self.closes += 1


class Opening:
    """Opens the runner on the CPU; counts how often."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runner = Counting(CPU)
        self.error = error
        self.count = 0

    def __call__(self) -> Counting:
        self.count += 1
        if self.error:
            raise self.error
        return self.runner


def _rows(batch: int) -> dict[str, Any]:
    values = np.arange(batch, dtype=np.float32)
    return {"ecg": np.broadcast_to(values[:, None, None], (batch, 12, 200)).copy()}


def _answers(outputs: Arrays) -> list[float]:
    return outputs["embedding"][:, 0].tolist()


def test_while_there_is_memory_the_cpu_is_not_opened() -> None:
    """The GPU answers, the identity is the GPU's and no other runner is made."""
    opening = Opening()
    runner = FallbackRunner(Counting(GPU), opening)
    assert runner.identity == GPU
    assert _answers(runner.run(_rows(3))) == [0, 1, 2]
    assert (runner.identity, opening.count) == (GPU, 0)


@pytest.mark.parametrize(("batch", "halves"), [(2, [1, 1]), (5, [3, 2]), (8, [4, 4])])
def test_a_batch_is_halved_once(batch: int, halves: list[int]) -> None:
    """A batch for which the GPU has no memory is run in two halves, in order, and the GPU stays the one that answers."""
    primary = Counting(GPU, rows_max=halves[0])
    runner = FallbackRunner(primary, Opening())
    assert _answers(runner.run(_rows(batch))) == list(range(batch))
    assert primary.batches == [batch, *halves]
    assert runner.identity == GPU


@pytest.mark.parametrize(("rows_max", "tried"), [(0, [8, 4]), (3, [8, 4])])
def test_then_the_cpu_answers_and_says_so(rows_max: int, tried: list[int]) -> None:
    """Where half a batch does not fit either, the CPU answers for all of it; nothing is halved a second time."""
    primary, opening = Counting(GPU, rows_max=rows_max), Opening()
    runner = FallbackRunner(primary, opening)
    assert _answers(runner.run(_rows(8))) == list(range(8))
    assert (primary.batches, opening.runner.batches) == (tried, [8])
    reason = "The GPU had no memory for half of a batch of 8: cudaMalloc failed: no memory"
    assert runner.identity == replace(CPU, fallback=reason)
    assert runner.identity.plan_sha256 is None


def test_a_single_row_is_not_halved() -> None:
    """A batch of one goes to the CPU at once."""
    primary, opening = Counting(GPU, rows_max=0), Opening()
    runner = FallbackRunner(primary, opening)
    runner.run(_rows(1))
    assert (primary.batches, opening.runner.batches) == ([1], [1])
    assert runner.identity.fallback == "The GPU had no memory for a batch of 1: cudaMalloc failed: no memory"


def test_an_answer_never_comes_from_two_runtimes() -> None:
    """When the second half fails on the GPU, the first half is computed again on the CPU."""
    primary, opening = Counting(GPU), Opening()
    calls: list[int] = []

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        calls.append(len(inputs["ecg"]))
        if len(calls) != 2:
            raise OutOfMemory(f"call {len(calls)}")
        return Counting._infer(Counting(GPU), inputs)

    primary._infer = run  # type: ignore[method-assign]
    runner = FallbackRunner(primary, opening)
    assert _answers(runner.run(_rows(8))) == list(range(8))
    assert (calls, opening.runner.batches) == ([8, 4, 4], [8])
    assert runner.identity.runtime == "onnxruntime"


def test_the_gpu_is_asked_again_later() -> None:
    """After some answers of the CPU the GPU is asked again; when its memory is back the reason is gone."""
    primary, opening = Counting(GPU, rows_max=0), Opening()
    runner = FallbackRunner(primary, opening, retry_after=3)
    runtimes = []
    for answer in range(8):
        primary.rows_max = 99 if answer >= 5 else 0
        runner.run(_rows(1))
        runtimes.append(runner.identity.runtime)
    assert runtimes == ["onnxruntime"] * 6 + ["tensorrt"] * 2
    assert primary.batches == [1] * 4
    assert runner.identity.fallback is None
    assert opening.count == 1


def test_retry_is_a_positive_number() -> None:
    """A retry after no answer would be no fallback."""
    assert RETRY_AFTER == 32
    with pytest.raises(ValueError, match="expected at least 1"):
        FallbackRunner(Counting(GPU), Opening(), retry_after=0)


@pytest.mark.parametrize("error", [DeviceLost("gone"), InferenceError("broken")])
def test_other_errors_are_passed_on(error: InferenceError) -> None:
    """A lost device and any error but want of memory go to the caller; the CPU is not opened."""
    opening = Opening()
    runner = FallbackRunner(Counting(GPU, rows_max=0, error=error), opening)
    with pytest.raises(type(error), match=str(error)):
        runner.run(_rows(4))
    assert opening.count == 0


def test_lost_device_in_a_half_is_passed_on() -> None:
    """A device that is lost in the second attempt is lost."""
    primary = Counting(GPU, rows_max=4)
    inner = primary._infer

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        if len(inputs["ecg"]) == 4:
            raise DeviceLost("gone")
        return inner(inputs)

    primary._infer = run  # type: ignore[method-assign]
    with pytest.raises(DeviceLost):
        FallbackRunner(primary, Opening()).run(_rows(8))


def test_wrong_inputs_are_no_reason_to_fall_back() -> None:
    """A caller's mistake stays one."""
    opening = Opening()
    with pytest.raises(ValueError, match="batch is empty"):
        FallbackRunner(Counting(GPU), opening).run({})
    assert opening.count == 0


@pytest.mark.parametrize("error", [BundleError("not installed"), SelfTestFailed("no runtime agrees")])
def test_cpu_that_cannot_be_opened_is_told(error: BundleError) -> None:
    """Where the CPU cannot be opened either, both reasons are told and the study may be tried again."""
    runner = FallbackRunner(Counting(GPU, rows_max=0), Opening(error))
    with pytest.raises(OutOfMemory, match=f"no memory for a batch of 1.*could be opened: {error}") as caught:
        runner.run(_rows(1))
    assert caught.value.retriable


def test_error_of_the_cpu_does_not_keep_the_gpu_away() -> None:
    """When the CPU fails on the first answer, the next run asks the GPU again."""
    primary, opening = Counting(GPU, rows_max=0), Opening()
    opening.runner.rows_max = 0
    runner = FallbackRunner(primary, opening)
    for _ in range(2):
        with pytest.raises(OutOfMemory):
            runner.run(_rows(1))
    assert primary.batches == [1, 1]


@pytest.mark.parametrize("opened", [False, True])
def test_close_closes_both(opened: bool) -> None:
    """Both runners are closed, the one on the CPU where it was opened; then nothing runs any more."""
    primary, opening = Counting(GPU, rows_max=0), Opening()
    runner = FallbackRunner(primary, opening)
    if opened:
        runner.run(_rows(1))
    runner.close()
    assert (primary.closes, opening.runner.closes) == (1, int(opened))
    with pytest.raises(ValueError, match="closed"):
        runner.run(_rows(1))


def test_cpu_is_closed_although_the_gpu_does_not_close() -> None:
    """An error while the GPU's runner closes does not keep the other open."""
    primary, opening = Counting(GPU, rows_max=0), Opening()
    runner = FallbackRunner(primary, opening)
    runner.run(_rows(1))

    def broken() -> None:
        raise InferenceError("cudaFree failed")

    primary._release = broken  # type: ignore[method-assign]
    with pytest.raises(InferenceError, match="cudaFree failed"):
        runner.close()
    assert opening.runner.closes == 1


def test_with_the_tensorrt_runner(tmp_path: Path) -> None:
    """Want of memory inside TensorRT ends on the CPU with TensorRT's own words, and comes back when there is memory."""
    bundle = load_bundle(bundles.write_tiny(tmp_path / "ecg", Modality.ECG))
    cuda = CudaDouble(Gpu())
    trt = TensorRtDouble(cuda)
    runner = FallbackRunner(TensorRtRunner(bundle.manifest, plan_of(bundle), trt, cuda), Opening(), retry_after=1)
    trt.refuse["execute"] = (ErrorCodeTRT.FAILED_ALLOCATION, "4096 bytes")
    runner.run(_rows(2))
    assert runner.identity.device == "CPU"
    assert "tensorrt failed: execute_async_v3: out of memory: 4096 bytes" in str(runner.identity.fallback)
    trt.refuse.clear()
    runner.run(_rows(2))
    assert (runner.identity.runtime, runner.identity.fallback) == ("tensorrt", None)
