"""An engine opened on a GPU is verified, or the CPU serves and says why; shown against doubles of CUDA and TensorRT."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.accelerate import AcceleratedRunner, GpuOptions, Parts, SubstituteRunner, gpu_seen, open_accelerated
from engines.build.compile import BatchRange
from engines.build.flavour import Flavour, Probe
from engines.build.plan import Precision
from engines.bundle.reader import Bundle, load_bundle
from engines.errors import DeviceLost, DeviceUnavailable, PlanBuildFailed
from engines.predictors.base import Predictor
from engines.preprocess.registry import prepare
from engines.records import Modality
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.runner import Arrays, Runner
from engines.runtime.tensorrt_runner import TensorRtRunner
from tests.doubles.bundles import ECG, ecg_record, write_tiny
from tests.doubles.cuda import CudaDouble, CudaError, Gpu
from tests.doubles.runners import DISTORTIONS, Distortion
from tests.doubles.tensorrt import VERSION, ErrorCodeTRT, TensorRtDouble, plan_content

BATCH = BatchRange(minimum=1, optimum=2, maximum=4)


@dataclass
class Machine:
    """A machine with a GPU and TensorRT, from which anything can be taken away."""

    folder: Path
    bundle: Bundle
    cuda: CudaDouble = field(default_factory=lambda: CudaDouble(Gpu()))
    version: str = VERSION
    driver: bool = True
    cuda_python: bool = True
    installed: tuple[str, ...] = ("tensorrt",)
    distortion: Callable[[str], Distortion | None] = lambda _precision: None
    build_error: Exception | None = None
    said: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trt = TensorRtDouble(self.cuda, version=self.version)
        self.cpu = OnnxRunner(self.bundle)

    def again(self, **changes: Any) -> Machine:
        """The same folder of plans at the next start."""
        return replace(self, said=[], told=[], built=[], **{"cuda": CudaDouble(*self.cuda.cudart.gpus), **changes})

    def open(self, **changes: Any) -> Runner:
        """Open the bundle on it."""
        options = GpuOptions(
            device=0,
            flavour="auto",
            precisions=("fp32",),
            batch=BATCH,
            plans=self.folder / "plans",
            cache_bytes=10**9,
            memory_bytes=None,
        )
        parts = Parts(
            seen=lambda: self.driver,
            open_cuda=self._open_cuda,
            load_flavour=self._load_flavour,
            compile_plan=self._compile_plan,
            make_runner=self._make_runner,
        )
        return open_accelerated(
            self.bundle,
            replace(options, **changes),
            cpu=self.cpu,
            log=self.said.append,
            building=self.told.append,
            parts=parts,
        )

    @property
    def cpu_is_closed(self) -> bool:
        """Whether the runner on the CPU was closed."""
        return not self.cpu._open

    def _open_cuda(self) -> CudaDouble:
        if not self.cuda_python:
            raise DeviceUnavailable("cuda-python cannot be imported (x); install it: pip install 'purkinje[tensorrt]'")
        return self.cuda

    def _load_flavour(self, name: Any, probe: Probe) -> Flavour:
        if name not in self.installed:
            raise DeviceUnavailable(f"{name} cannot be imported (x); install it: pip install 'purkinje[{name}]'")
        if name == "tensorrt-rtx":
            self.trt = TensorRtDouble(self.cuda, version=self.version, rtx=True)
            self.trt.ComputeCapability = _Capabilities  # type: ignore[attr-defined]
        return Flavour(name=name, title=name, module=self.trt, version=self.version, probe=probe)

    def _compile_plan(self, _flavour: Flavour, graph: bytes, recipe: Any, *, progress: Any, **_: Any) -> bytes:
        self.built.append(recipe.precision)
        if self.build_error is not None:
            raise self.build_error
        progress(f"{recipe.target}: building for 5 s")
        return plan_content(graph, BATCH.sizes)

    def _make_runner(self, manifest: Any, plan: Any, *arguments: Any, **options: Any) -> TensorRtRunner:
        distortion = self.distortion(plan.recipe.precision)
        kind = TensorRtRunner if distortion is None else _distorted(distortion)
        return kind(manifest, plan, *arguments, **options)


class _Capabilities:
    __members__: Mapping[str, int] = {"SM89": 89, "SM120": 120}


def _distorted(distortion: Distortion) -> type[TensorRtRunner]:
    class DistortedOnGpu(TensorRtRunner):
        def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
            return distortion(super()._infer(inputs))

    return DistortedOnGpu


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny ECG bundle."""
    return load_bundle(write_tiny(tmp_path_factory.mktemp("bundles") / "ecg", Modality.ECG))


@pytest.fixture
def machine(tmp_path: Path, bundle: Bundle) -> Machine:
    """One that has everything, and no plans yet."""
    return Machine(folder=tmp_path, bundle=bundle)


def _inputs(rows: int = 1) -> Arrays:
    return {"ecg": np.repeat(prepare(ecg_record(), ECG).arrays["ecg"], rows, axis=0)}


def _serves_from_cpu(runner: Runner, machine: Machine, reason: str) -> None:
    identity = runner.identity
    assert (identity.runtime, identity.device, identity.plan_sha256) == ("onnxruntime", "CPU", None)
    assert reason in str(identity.fallback)
    assert "\n" not in str(identity.fallback)
    assert any(reason in sentence for sentence in machine.said)
    expected = OnnxRunner(machine.bundle).run(_inputs())
    for name, array in runner.run(_inputs()).items():
        np.testing.assert_array_equal(array, expected[name])
    runner.close()
    assert machine.cpu_is_closed
    assert machine.cuda.cudart.live == {}
    assert machine.trt.leaks == {}


def test_all_green_serves_from_the_gpu(machine: Machine) -> None:
    """The plan is built, passes its gate and the golden vectors, is warm, and says what it is; closing frees everything."""
    runner = machine.open()
    identity = runner.identity
    assert (identity.runtime, identity.version, identity.precision) == ("tensorrt", VERSION, "fp32")
    assert "sm_90" in identity.device
    assert len(str(identity.plan_sha256)) == 64
    assert identity.fallback is None
    assert machine.built == ["fp32"]
    assert any("building a plan with tensorrt" in told for told in machine.told)
    assert any("verifying the plan" in told for told in machine.told)
    expected = OnnxRunner(machine.bundle).run(_inputs(3))
    for name, array in runner.run(_inputs(3)).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-4)
    runner.close()
    assert (machine.cpu_is_closed, machine.cuda.cudart.live, machine.trt.leaks) == (True, {}, {})


def test_the_next_start_takes_the_plan_and_its_verdict(machine: Machine) -> None:
    """Nothing is built and nothing verified again on the same GPU and driver; the golden vectors are."""
    machine.open().close()
    again = machine.again()
    before = again.trt.journal["execute"]
    runner = again.open()
    assert (runner.identity.runtime, again.built, again.told) == ("tensorrt", [], [])
    assert 0 < again.trt.journal["execute"] - before < 50, "a few runs, not the two hundred of the gate"
    journal = dict(again.trt.journal)
    for rows in (1, BATCH.optimum):
        runner.run(_inputs(rows))
    assert again.trt.journal == journal, "warm: the first study launches a graph that is captured already"
    runner.close()


TAKEN: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("no driver", {"driver": False}, {"expected": True}, "no driver of an NVIDIA GPU"),
    ("no cuda-python", {"cuda_python": False}, {}, "pip install 'purkinje[tensorrt]'"),
    ("no GPU", {"cuda": CudaDouble(driver=13000)}, {}, "GPU 0 is not there"),
    ("driver without device", {"cuda": CudaDouble()}, {}, "GPU 0 is not there"),
    ("another index", {}, {"device": 3}, "GPU 3 is not there"),
    ("no TensorRT", {"installed": ()}, {}, "pip install 'purkinje[tensorrt]'"),
    ("only the other", {"installed": ("tensorrt-rtx",)}, {"flavour": "tensorrt"}, "tensorrt cannot be imported"),
    ("RTX without sm_90", {"installed": ("tensorrt-rtx",)}, {}, "sm_90"),
    ("over its limit", {}, {"memory_bytes": 1000}, "the limit for it"),
    ("no room", {"cuda": CudaDouble(Gpu(total_bytes=64 << 20))}, {}, "too few"),
    ("build fails", {"build_error": PlanBuildFailed("TensorRT does not take the graph: node x")}, {}, "node x"),
    ("not built yet", {}, {"build": False}, "`purkinje run` builds it"),
]


@pytest.mark.parametrize(("taken", "options", "reason"), [case[1:] for case in TAKEN], ids=[case[0] for case in TAKEN])
def test_whatever_is_missing_the_cpu_serves_and_says_why(
    machine: Machine, taken: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    """The reason stands in the identity and in the log, the answers are right, nothing is left on the GPU."""
    lacking = machine.again(**taken)
    _serves_from_cpu(lacking.open(**options), lacking, reason)


def test_a_folder_that_cannot_be_written_to_is_a_reason(machine: Machine) -> None:
    """Without a place for the plan there is none."""
    _serves_from_cpu(machine.open(plans=Path("/proc/purkinje/plans")), machine, "cannot be written")


def test_a_plan_that_the_library_does_not_take_is_a_reason(machine: Machine) -> None:
    """TensorRT itself refuses it, with its own words."""
    machine.trt.refuse["deserialize_cuda_engine"] = (ErrorCodeTRT.INVALID_ARGUMENT, "not a plan")
    _serves_from_cpu(machine.open(), machine, "not a plan")


def test_a_machine_without_a_gpu_is_no_fallback_where_nobody_asked_for_one(machine: Machine) -> None:
    """The runner of the CPU is handed on as it is: no reason in reports, nothing said, nothing looked for."""
    plain = machine.again(driver=False, cuda_python=False)
    assert plain.open() is plain.cpu
    assert plain.said == []


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda distortion: distortion.__name__)
def test_a_plan_that_computes_wrong_is_never_served(machine: Machine, distortion: Distortion) -> None:
    """Wrong numbers, NaN, swapped or missing outputs, a wrong shape or type: refused with the reason, and for good."""
    machine.distortion = lambda _precision: distortion
    _serves_from_cpu(machine.open(), machine, "failed its parity gate")
    cured = machine.again(distortion=lambda _precision: None)
    _serves_from_cpu(cured.open(), cured, "failed its parity gate")
    assert cured.built == [], "what was refused is not built again behind an operator's back"


def test_where_fp16_fails_its_gate_fp32_serves(machine: Machine) -> None:
    """The next precision is tried; the runtime is the preferred one, so that it is no fallback."""
    machine.distortion = lambda precision: wrong_embedding if precision == "fp16" else None
    runner = machine.open(precisions=("fp16", "fp32"))
    assert (runner.identity.precision, runner.identity.fallback) == ("fp32", None)
    assert machine.built == ["fp16", "fp32"]
    assert any("in fp16" in sentence and "parity gate" in sentence for sentence in machine.said)
    runner.close()
    assert (machine.cuda.cudart.live, machine.trt.leaks) == ({}, {})


def test_fp16_serves_where_it_stays_within_the_limits_of_its_gate(machine: Machine) -> None:
    """Small differences that fp32 would not be allowed are no reason, at the gate and at every later start."""
    slightly = {"fp16": lambda outputs: {name: array + np.float32(0.002) for name, array in outputs.items()}}
    machine.distortion = slightly.get
    runner = machine.open(precisions=("fp16", "fp32"))
    assert runner.identity.precision == "fp16"
    runner.close()
    again = machine.again()
    runner = again.open(precisions=("fp16", "fp32"))
    assert (runner.identity.precision, again.told) == ("fp16", [])
    runner.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_that_passed_and_now_computes_wrong_is_not_served(machine: Machine, precision: Precision) -> None:
    """The golden vectors are replayed at every start, in fp32 and in fewer bits, whatever the kept verdict says."""
    machine.open(precisions=(precision,)).close()
    broken = machine.again(distortion=lambda _precision: wrong_embedding)
    _serves_from_cpu(broken.open(precisions=(precision,)), broken, "golden record 0")


def test_an_altered_plan_is_built_again(machine: Machine) -> None:
    """A plan is executable code: one whose bytes are not the ones of its sidecar is never loaded."""
    machine.open().close()
    (path,) = (machine.folder / "plans").glob("*.plan")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    again = machine.again()
    runner = again.open()
    assert (runner.identity.runtime, again.built) == ("tensorrt", ["fp32"])
    assert any("built again" in sentence for sentence in again.said)
    runner.close()


def test_another_driver_verifies_the_plan_again(machine: Machine) -> None:
    """The plan stays, the verdict holds for the driver it was found with."""
    machine.open().close()
    updated = machine.again(cuda=CudaDouble(Gpu(), driver=14000))
    runner = updated.open()
    assert (updated.built, len(updated.told)) == ([], 1)
    assert "verifying the plan" in updated.told[0]
    runner.close()


def test_a_plan_nobody_verified_on_this_driver_does_not_serve_a_check(machine: Machine) -> None:
    """A command that only looks neither builds nor verifies."""
    machine.open().close()
    updated = machine.again(cuda=CudaDouble(Gpu(), driver=14000))
    _serves_from_cpu(updated.open(build=False), updated, "is not verified on")


def test_another_version_of_tensorrt_builds_its_own_plan(machine: Machine) -> None:
    """A plan runs only with the version that made it; the old one is left for whoever has the old version."""
    machine.open().close()
    updated = machine.again(version="11.2.0.1")
    runner = updated.open()
    assert (runner.identity.version, updated.built) == ("11.2.0.1", ["fp32"])
    assert len(list((machine.folder / "plans").glob("*.plan"))) == 2
    runner.close()


def test_rtx_serves_where_tensorrt_is_not_installed(machine: Machine) -> None:
    """``auto`` takes the other one for a GPU it compiles for."""
    rtx = machine.again(installed=("tensorrt-rtx",), cuda=CudaDouble(Gpu(name="NVIDIA L4", major=8, minor=9)))
    runner = rtx.open()
    assert (runner.identity.runtime, runner.identity.fallback) == ("tensorrt-rtx", None)
    runner.close()


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags"])
def test_a_gpu_that_fails_while_an_engine_is_opened_is_not_there_for_it(machine: Machine, call: str) -> None:
    """Out of memory at this moment is a reason for the CPU, not for ending the process."""
    machine.cuda.cudart.fail(call, CudaError.cudaErrorMemoryAllocation)
    _serves_from_cpu(machine.open(), machine, "cudaErrorMemoryAllocation")


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaStreamSynchronize"])
def test_a_gpu_that_is_lost_while_starting_needs_a_new_process(machine: Machine, call: str) -> None:
    """No runner of this process can use it again; what was opened is closed, the CPU's too."""
    machine.cuda.cudart.fail(call, CudaError.cudaErrorECCUncorrectable)
    with pytest.raises(DeviceLost):
        machine.open()
    assert machine.cpu_is_closed
    assert machine.trt.leaks == {}


def test_a_prediction_says_what_computed_it(machine: Machine) -> None:
    """Plan and GPU stand in the prediction; out of memory for one study, its prediction says that the CPU answered."""
    predictor = Predictor(machine.bundle, machine.open())
    prepared = [prepare(ecg_record(), ECG)]
    on_gpu = predictor.predict(prepared)
    assert (on_gpu.model.runtime, on_gpu.model.fallback) == ("tensorrt", None)
    assert len(str(on_gpu.model.plan_sha256)) == 64
    machine.trt.execution_error = CudaError.cudaErrorMemoryAllocation
    on_cpu = predictor.predict(prepared)
    assert (on_cpu.model.runtime, on_cpu.model.plan_sha256) == ("onnxruntime", None)
    assert "no memory" in str(on_cpu.model.fallback)
    assert predictor.identity == on_cpu.model
    predictor.close()
    assert machine.cpu_is_closed


def test_a_long_reason_is_one_short_line(machine: Machine) -> None:
    """It stands in reports: no line breaks, a bounded length."""
    machine.build_error = PlanBuildFailed("bad\n  graph " * 200)
    reason = str(machine.open().identity.fallback)
    assert reason.startswith("bad graph bad graph")
    assert len(reason) <= 400


def test_both_runners_behave_as_every_runner(machine: Machine) -> None:
    """What stands in for a preferred runner closes what it holds, and the one on the GPU closes the CPU's too."""
    substitute = SubstituteRunner(machine.cpu, "why")
    assert substitute.identity == replace(machine.cpu.identity, fallback="why")
    gpu, cpu = OnnxRunner(machine.bundle), OnnxRunner(machine.bundle)
    AcceleratedRunner(gpu, cpu).close()
    substitute.close()
    assert not any(runner._open for runner in (gpu, cpu, machine.cpu))


@pytest.mark.parametrize("trace", ["proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1"])
def test_traces_of_a_driver_are_seen(tmp_path: Path, trace: str) -> None:
    """The look that every start takes is at three files."""
    assert not gpu_seen(tmp_path)
    (tmp_path / trace).parent.mkdir(parents=True)
    (tmp_path / trace).write_text("")
    assert gpu_seen(tmp_path)


def test_nothing_heavy_is_imported_to_find_that_there_is_no_gpu() -> None:
    """Neither CUDA nor TensorRT nor ONNX: on a machine without a GPU a start costs what it did."""
    code = (
        "import sys, engines.accelerate, stream_processors.routes\n"
        "assert not engines.accelerate.gpu_seen(__import__('pathlib').Path('/nonexistent'))\n"
        "heavy = ('cuda', 'tensorrt', 'tensorrt_bindings', 'tensorrt_rtx', 'tensorrt_rtx_bindings', 'onnx', 'torch',\n"
        "         'openvino', 'onnxruntime')\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def wrong_embedding(outputs: Arrays) -> Arrays:
    """Far outside every limit of reduced precision, too."""
    return {name: -array if name == "embedding" else array for name, array in outputs.items()}
