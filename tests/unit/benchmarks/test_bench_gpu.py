"""The GPU benchmark measures nothing that is wrong, says what it left out, and keeps what it has; shown without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.build.compile import BatchRange
from engines.build.flavour import Flavour
from engines.build.plan import PlanRecipe
from engines.bundle.reader import Bundle, load_bundle
from engines.errors import BundleError, DeviceUnavailable, OutOfMemory
from engines.records import Modality
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.runner import Arrays
from tests.benchmarks.on_gpu import plans as plans_module
from tests.benchmarks.on_gpu.arms import Arm, HostTimed
from tests.benchmarks.on_gpu.latency import Turns, measure_latency, telling_first
from tests.benchmarks.on_gpu.load import measure_load
from tests.benchmarks.on_gpu.onnx_cuda import placed, require_no_heavy_cpu_node
from tests.benchmarks.on_gpu.peaks import dense_fp16_peak, macs_of, share_percent
from tests.benchmarks.on_gpu.plans import Plans, Workshop, make_plans, open_workshop, tensorrt_arms
from tests.benchmarks.on_gpu.results import Recorder, Results
from tests.benchmarks.on_gpu.studies import Load, measure_studies
from tests.doubles.bundles import write_tiny
from tests.doubles.cuda import CudaDouble, CudaError, Gpu
from tests.doubles.runners import DISTORTIONS, DistortedRunner, Distortion, unaltered, wrong_numbers
from tests.doubles.tensorrt import VERSION, TensorRtDouble, plan_content

TURNS = Turns(rounds=2, repeats=1, seed=0)


@dataclass
class Notebook:
    """A section that can be read back, with a clock that can be set."""

    folder: Path
    now_s: float = 0.0
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.results = Results(
            self.folder, {"GPU": "none"}, total_s=100.0, clock=lambda: self.now_s, say=self.said.append
        )

    def stored(self) -> dict[str, Any]:
        """What stands in the file."""
        found: dict[str, Any] = json.loads((self.folder / "results.json").read_text())
        return found


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    """An empty one."""
    return Notebook(tmp_path / "out")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny ECG bundle."""
    return load_bundle(write_tiny(tmp_path_factory.mktemp("bundles") / "ecg", Modality.ECG))


def _arm(name: str, distortion: Distortion) -> Arm:
    return Arm(name=name, precision="fp32", graph=None, open=lambda one: HostTimed(DistortedRunner(one, distortion)))


def _measured(notebook: Notebook, bundle: Bundle, arms: list[Arm], turns: Turns = TURNS) -> dict[str, Any]:
    with notebook.results.section("latency", "Latency", 50.0) as section:
        measure_latency([bundle], arms, section, batches=[1, 2], turns=turns, peak=None)
    found: dict[str, Any] = notebook.stored()["sections"][-1]
    return found


# -- parity first -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "distortion",
    [each for each in DISTORTIONS if each.__name__ in {"wrong_numbers", "not_a_number", "swapped_columns"}],
)
def test_a_wrong_side_scores_nothing(notebook: Notebook, bundle: Bundle, distortion: Distortion) -> None:
    """What does not answer as the golden vectors say has no row, stands among the wrong, and makes the run fail."""
    found = _measured(notebook, bundle, [_arm("right", unaltered), _arm("wrong", distortion)])
    assert {row["side"] for row in found["rows"]} == {"right"}
    assert [(row["batch"], row["runs"]) for row in found["rows"]] == [(1, 2), (2, 2)]
    assert len(found["wrong"]) + len(found["left_out"]) == 1
    assert "wrong fp32" in (found["wrong"] + found["left_out"])[0][0]
    assert notebook.results.any_wrong == bool(found["wrong"])


def test_wrong_numbers_are_rejected_and_not_only_left_out(notebook: Notebook, bundle: Bundle) -> None:
    """A side that answers, and answers something else, is called wrong."""
    found = _measured(notebook, bundle, [_arm("wrong", wrong_numbers)])
    assert (found["rows"], len(found["wrong"])) == ([], 1)
    assert "differs by" in found["wrong"][0][1]


def test_a_side_that_is_wrong_at_one_batch_size_scores_at_the_others(notebook: Notebook, bundle: Bundle) -> None:
    """A kernel chosen for one batch size may be wrong where another is right."""

    def at_two(outputs: Arrays) -> Arrays:
        return wrong_numbers(outputs) if len(next(iter(outputs.values()))) == 2 else outputs

    found = _measured(notebook, bundle, [_arm("half right", at_two)])
    assert [row["batch"] for row in found["rows"]] == [1]
    assert [what for what, _why in found["wrong"]] == [f"{bundle.manifest.name}, half right fp32, batch 2"]


def test_a_side_that_goes_wrong_later_loses_its_times(notebook: Notebook, bundle: Bundle) -> None:
    """The answers of every turn are looked at, not only the first ones."""
    runs = Counter[str]()

    def later(outputs: Arrays) -> Arrays:
        runs["all"] += 1
        return wrong_numbers(outputs) if runs["all"] > 7 else outputs

    found = _measured(notebook, bundle, [_arm("tired", later)])
    assert (found["rows"], len(found["wrong"])) == ([], 2)


def test_a_side_that_fails_is_left_out_and_the_others_go_on(notebook: Notebook, bundle: Bundle) -> None:
    """Out of memory is neither right nor wrong."""

    def failing(_outputs: Arrays) -> Arrays:
        raise OutOfMemory("none left")

    absent = Arm(name="absent", precision="fp32", graph=False, open=_absent)
    found = _measured(notebook, bundle, [_arm("failing", failing), absent, _arm("right", unaltered)])
    assert {row["side"] for row in found["rows"]} == {"right"}
    left_out = {what.split(", ", 1)[1]: why for what, why in found["left_out"]}
    assert left_out == {"failing fp32": "none left", "absent fp32, no CUDA graph": "install it: pip install x"}
    assert not notebook.results.any_wrong


def _absent(_bundle: Bundle) -> Any:
    raise DeviceUnavailable("install it: pip install x")


# -- turns ------------------------------------------------------------------------------------------------------------


def _order(notebook: Notebook, bundle: Bundle, seed: int) -> list[str]:
    """Names of the sides in the order in which they ran the largest batch; the tiny graph runs alone before it."""
    order: list[str] = []

    def noted(name: str) -> Distortion:
        def note(outputs: Arrays) -> Arrays:
            order.append(name)
            return outputs

        return note

    _measured(notebook, bundle, [_arm(name, noted(name)) for name in "abcd"], Turns(rounds=6, repeats=1, seed=seed))
    return order


def test_turns_are_interleaved_in_a_seeded_order(tmp_path: Path, bundle: Bundle) -> None:
    """The same seed gives the same order, another seed another; no side runs all its rounds in one go."""
    first, again, other = (_order(Notebook(tmp_path / str(run)), bundle, seed) for run, seed in enumerate((1, 1, 2)))
    assert first == again
    assert first != other
    blocks = [first[index] for index in range(1, len(first)) if first[index] != first[index - 1]]
    assert len(blocks) > 2 * 6 * 3


def test_the_most_telling_batch_sizes_come_first() -> None:
    """What is left out for want of time lies between the smallest and the largest."""
    assert telling_first([1, 2, 4, 8, 16, 32]) == [1, 32, 2, 4, 8, 16]
    assert telling_first([4]) == [4]


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_an_interruption_leaves_what_was_measured(notebook: Notebook) -> None:
    """Files are whole after every line; they say that the run was cut off."""

    def interrupted() -> None:
        with notebook.results.section("a", "A", 10.0) as section:
            section.row(what="one", ms=1.234567)
            assert notebook.stored()["sections"][0]["rows"] == [{"what": "one", "ms": 1.234567}]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    stored = notebook.stored()
    assert (stored["finished"], stored["sections"][0]["left_out"][0][1]) == (False, "it was interrupted")
    text = (notebook.folder / "results.md").read_text()
    assert "| one | 1.23 |" in text
    assert "Not finished" in text


def test_what_goes_wrong_in_one_section_costs_the_others_nothing(notebook: Notebook) -> None:
    """An error of any kind is written down, and the next section is measured."""
    with notebook.results.section("a", "A", 10.0):
        raise ZeroDivisionError("a library's own")
    with notebook.results.section("b", "B", 10.0) as section:
        section.row(what="two")
    notebook.results.finish()
    first, second = notebook.stored()["sections"]
    assert first["left_out"] == [["the rest of the section", "ZeroDivisionError: a library's own"]]
    assert (second["rows"], notebook.stored()["finished"]) == ([{"what": "two"}], True)


def test_a_section_keeps_to_its_time_and_all_to_theirs(notebook: Notebook) -> None:
    """What does not begin in time is left out; a section gets no more than is left of the whole."""
    with notebook.results.section("a", "A", 60.0) as section:
        assert section.has_time("early")
        assert not section.has_time("long", needed_s=61.0)
        notebook.now_s = 70.0
        assert not section.has_time("late")
    with notebook.results.section("b", "B", 60.0) as section:
        assert section.left_s == 30.0
    assert [what for what, _why in notebook.stored()["sections"][0]["left_out"]] == ["long", "late"]


# -- roofline ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Tesla T4", 65.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A10G", None),
        ("NVIDIA Double 9000", None),
    ],
)
def test_peaks_are_found_by_whole_words(name: str, tflops: float | None) -> None:
    """A device that is not in the table is unknown, and never taken for one whose name is alike."""
    peak = dense_fp16_peak(name)
    assert (peak.tflops if peak else None) == tflops


def test_share_of_the_peak() -> None:
    """Half a tera-MAC in a millisecond is one PFLOP/s; nothing is said where either side is unknown."""
    peak = dense_fp16_peak("NVIDIA H100 80GB HBM3")
    assert share_percent(500_000_000, 1000, 1.0, peak) == pytest.approx(100 * 1000 / 989.5)
    assert share_percent(None, 1, 1.0, peak) is share_percent(1, 1, 1.0, None) is None


def test_macs_of_the_tiny_graph(bundle: Bundle) -> None:
    """One linear layer: inputs times outputs."""
    inputs = int(np.prod(bundle.manifest.inputs[0].shape[1:]))
    widths = sum(tensor.shape[1] for tensor in bundle.manifest.outputs)
    assert macs_of(bundle.graph()) == inputs * widths


# -- ONNX Runtime -----------------------------------------------------------------------------------------------------


def _event(provider: str, operator: str) -> dict[str, Any]:
    return {"cat": "Node", "args": {"provider": f"{provider}ExecutionProvider", "op_name": operator}}


def test_a_silent_fallback_to_the_cpu_is_refused() -> None:
    """A product on the CPU is refused; the arithmetic of shapes may stay there."""
    nodes = placed([_event("CUDA", "Conv"), _event("CPU", "Gather"), {"cat": "Session", "args": {}}])
    require_no_heavy_cpu_node(nodes)
    for events in ([_event("CUDA", "Conv"), _event("CPU", "MatMul")], [_event("CPU", "Add")], []):
        with pytest.raises(BundleError, match="on the CPU without a word"):
            require_no_heavy_cpu_node(placed(events))


# -- plans, against doubles -------------------------------------------------------------------------------------------


@dataclass
class Double:
    """A workshop on doubles of CUDA and TensorRT."""

    folder: Path
    bundle: Bundle
    distortion: Callable[[Arrays], Arrays] | None = None

    def __post_init__(self) -> None:
        self.cuda = CudaDouble(Gpu())
        cudart = self.cuda.cudart
        for name, answer in {"cudaEventCreate": (1,), "cudaEventRecord": (), "cudaEventElapsedTime": (0.25,)}.items():
            setattr(cudart, name, lambda *_, answer=answer: (CudaError.cudaSuccess, *answer))
        self.trt = TensorRtDouble(self.cuda)
        self.trt.distortion = self.distortion
        flavour = Flavour(name="tensorrt", title="TensorRT", module=self.trt, version=VERSION, probe=lambda: "sm_90")
        self.workshop = Workshop(
            cuda=self.cuda,
            device=self.cuda.devices()[0],
            flavours=(flavour,),
            folder=self.folder / "plans",
            batch=BatchRange(minimum=1, optimum=2, maximum=4),
            build=self._build,
        )

    def _build(self, cache: Any, _folder: Path, _flavour: Flavour, bundle: Bundle, recipe: PlanRecipe) -> Any:
        return cache.get_or_build(recipe, lambda: plan_content(bundle.graph(), (1, 2, 4)))

    def section(self, notebook: Notebook, fill: Callable[[Recorder], Any]) -> Any:
        """Fill a section and return what the filling returns."""
        with notebook.results.section("plans", "Plans", 90.0) as section:
            return fill(section)


def test_plans_are_gated_then_timed_with_and_without_graphs(tmp_path: Path, notebook: Notebook, bundle: Bundle) -> None:
    """One row for the plan; two sides for its times, of which only one captures; everything is given back."""
    double = Double(tmp_path, bundle)
    plans = double.section(notebook, lambda section: make_plans(double.workshop, [bundle], ["fp32"], section))
    (row,) = notebook.stored()["sections"][0]["rows"]
    assert (row["gate"], row["precision"], row["inputs"]) == ("passed", "fp32", 202)
    arms = double.section(notebook, lambda section: tensorrt_arms(double.workshop, plans, ["fp32"], section))
    captured = double.trt.journal["capture"]
    found = _measured(notebook, bundle, arms)
    assert {(row["CUDA graph"], row["GPU ms"]) for row in found["rows"]} == {(True, 0.25), (False, 0.25)}
    assert double.trt.journal["capture"] - captured == 2, (
        "one for each batch size of the side with graphs; none without"
    )
    assert (double.cuda.cudart.live, double.trt.leaks) == ({}, {})


def test_a_plan_that_fails_its_gate_is_not_timed(tmp_path: Path, notebook: Notebook, bundle: Bundle) -> None:
    """It stands among the wrong with its reason, and its sides are left out."""
    double = Double(tmp_path, bundle, wrong_numbers)
    plans = double.section(notebook, lambda section: make_plans(double.workshop, [bundle], ["fp32"], section))
    stored = notebook.stored()["sections"][0]
    assert (stored["rows"][0]["gate"], plans.passed, len(stored["wrong"])) == ("FAILED", {}, 1)
    arms = double.section(notebook, lambda section: tensorrt_arms(double.workshop, plans, ["fp32"], section))
    found = _measured(notebook, bundle, arms)
    assert found["rows"] == []
    assert all("passed its gate" in why for _what, why in found["left_out"])


def _passed(double: Double, notebook: Notebook) -> Plans:
    plans: Plans = double.section(
        notebook, lambda section: make_plans(double.workshop, [double.bundle], ["fp32"], section)
    )
    return plans


def test_studies_are_answered_by_the_plan_and_by_the_cpu(tmp_path: Path, notebook: Notebook, bundle: Bundle) -> None:
    """A phantom goes from DICOM to the same prediction on both; the engine on the GPU is open while it answers."""
    double = Double(tmp_path, bundle)
    plans = _passed(double, notebook)
    load = Load(studies=1, repeats=1, readers=0)
    double.section(notebook, lambda section: measure_studies([bundle], double.workshop, plans, load, section))
    section = notebook.stored()["sections"][-1]
    assert (section["left_out"], section["wrong"]) == ([], [])
    on_gpu, on_cpu = section["rows"]
    assert (on_gpu["runtime"], on_cpu["device"]) == ("tensorrt", "CPU")
    assert (double.cuda.cudart.live, double.trt.leaks) == ({}, {})


def test_a_wrong_plan_answers_no_study(tmp_path: Path, notebook: Notebook, bundle: Bundle) -> None:
    """Predictions that differ from those of the CPU score nothing."""
    double = Double(tmp_path, bundle)
    plans = _passed(double, notebook)
    double.trt.distortion = lambda outputs: {name: array + np.float32(2.0) for name, array in outputs.items()}
    load = Load(studies=1, repeats=1, readers=0)
    double.section(notebook, lambda section: measure_studies([bundle], double.workshop, plans, load, section))
    section = notebook.stored()["sections"][-1]
    assert [row["device"] for row in section["rows"]] == ["CPU"]
    assert "differs from the CPU" in section["wrong"][0][1]


def test_batching_is_measured_on_the_plan(
    tmp_path: Path, notebook: Notebook, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 1 and shared batches, both right; everything is given back."""
    monkeypatch.setattr("tests.benchmarks.bench_batching.LOADS", {"saturated": None})
    double = Double(tmp_path, bundle)
    plans = _passed(double, notebook)
    double.section(notebook, lambda section: measure_load([bundle], double.workshop, plans, section))
    section = notebook.stored()["sections"][-1]
    assert (section["left_out"], section["wrong"]) == ([], [])
    assert [row["arm"] for row in section["rows"]] == ["batch 1", "up to 16 rows"]
    assert (double.cuda.cudart.live, double.trt.leaks) == ({}, {})


_BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "tensorrt", "tensorrt_rtx_bindings", "cuda", "openvino", "pydicom",
                                  "structlog", "rich", "click", "pytest", "psutil", "monai"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from tests.benchmarks.bench_gpu import main
sys.exit(main(["--out", sys.argv[1]]))
"""


def test_the_command_imports_in_a_bare_environment(tmp_path: Path, root: Path) -> None:
    """With hardly anything installed it says what is missing, instead of failing to import."""
    command = [sys.executable, "-c", _BARE, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "cuda-python" in done.stdout


def test_no_gpu_is_said_with_what_adds_it(tmp_path: Path, notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver there is no workshop, and the list of what was left out says what to install."""
    monkeypatch.setattr(plans_module, "open_cuda", CudaDouble)
    with notebook.results.section("plans", "Plans", 90.0) as section:
        assert open_workshop(tmp_path, 4, section) is None
    assert "install NVIDIA's driver" in notebook.stored()["sections"][0]["left_out"][0][1]


def test_a_side_without_precision_is_compared_with_the_manifest(bundle: Bundle) -> None:
    """The plain runner of the CPU is a side like any other and gives what the golden vectors say."""
    runner = HostTimed(OnnxRunner(bundle))
    case = bundle.golden()[0]
    outputs: Mapping[str, NDArray[Any]] = runner.run(case.prepared)
    assert all(np.allclose(outputs[name], case.outputs[name], atol=1e-4) for name in case.outputs)
    assert runner.gpu_ms(case.prepared) is None
    runner.close()
