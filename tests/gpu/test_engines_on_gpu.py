"""What only a GPU can show: released engines serve from plans, are right, give back memory, and survive a lost context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.accelerate import GpuOptions, open_accelerated
from engines.build.compile import BatchRange
from engines.build.flavour import Flavour
from engines.bundle.reader import Bundle, load_bundle, released_bundles
from engines.runtime.cuda import Device
from engines.runtime.onnx_runner import OnnxRunner
from engines.selftest import check_preprocessing, check_runner
from tests.benchmarks.on_gpu.latency import cell_of
from tests.benchmarks.on_gpu.plans import Plans, PlanTimed, Workshop, make_plans, opened, tensorrt_arms
from tests.benchmarks.on_gpu.recovery import working
from tests.benchmarks.on_gpu.results import Results

BUNDLES = [load_bundle(path) for path in released_bundles()]
_MIB = 1 << 20


@pytest.fixture(scope="session")
def plans(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plans, list[tuple[str, str]]]:
    """FP32 and FP16 plans of all released bundles that passed their gates, and what was wrong."""
    results = Results(tmp_path_factory.mktemp("results"), {}, total_s=1200.0)
    with results.section("plans", "Plans", 1200.0) as section:
        made = make_plans(workshop, BUNDLES, ["fp32", "fp16"], section)
    return made, results.sections[0].wrong


def _only(workshop: Workshop) -> Flavour:
    (flavour,) = workshop.flavours
    return flavour


def test_every_plan_passes_its_gate(plans: tuple[Plans, list[tuple[str, str]]], workshop: Workshop) -> None:
    """FP32 of all bundles, and FP16 of all that do not fit a field; none computes something else."""
    made, wrong = plans
    runtime = _only(workshop).name
    expected = {(bundle.manifest.name, runtime, "fp32") for bundle in BUNDLES}
    assert wrong == []
    assert expected <= made.passed.keys()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.manifest.name)
def test_a_released_engine_serves_from_the_gpu(bundle: Bundle, device: Device, tmp_path: Path) -> None:
    """The service opens it without a fallback, and it answers the golden records."""
    options = GpuOptions(
        device=0,
        flavour="auto",
        precisions=("fp32",),
        batch=BatchRange(minimum=1, optimum=1, maximum=4),
        plans=tmp_path,
        cache_bytes=1 << 30,
        memory_bytes=None,
        expected=True,
    )
    runner = open_accelerated(bundle, options, cpu=OnnxRunner(bundle), log=print)
    assert runner.identity.fallback is None
    assert device.capability in runner.identity.device
    check_runner(bundle, runner, check_preprocessing(bundle))
    runner.close()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.manifest.name)
def test_all_batch_sizes_answer_as_the_golden_vectors_say(
    bundle: Bundle, plans: tuple[Plans, Any], workshop: Workshop
) -> None:
    """From one row to more than the plan takes at once, plainly, captured and replayed."""
    flavour = _only(workshop)
    plan = plans[0].passed[bundle.manifest.name, flavour.name, "fp32"]
    with opened(workshop, bundle, flavour, plan) as runner:
        for batch in (1, 2, 3, 8, 19):
            cell = cell_of(bundle, batch)
            for _ in range(3):
                assert cell.fault(runner.run(cell.inputs), "fp32") == ""


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.manifest.name)
def test_a_captured_graph_gives_the_numbers_of_the_plain_run(
    bundle: Bundle, plans: tuple[Plans, Any], workshop: Workshop
) -> None:
    """Same kernels, same bits; and its time on the GPU can be told."""
    flavour = _only(workshop)
    if flavour.ahead_of_time:
        pytest.fail("TensorRT-RTX captures by itself: run this with TensorRT")
    plan = plans[0].passed[bundle.manifest.name, flavour.name, "fp32"]
    cell = cell_of(bundle, 4)
    with opened(workshop, bundle, flavour, plan) as plain, opened(workshop, bundle, flavour, plan) as captured:
        plainly = PlanTimed(plain, graph=False)
        expected = plainly.run(cell.inputs)
        for _ in range(3):
            found = captured.run(cell.inputs)
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name])
        milliseconds = plainly.gpu_ms(cell.inputs)
        assert milliseconds is not None
        assert 0 < milliseconds < 1000


def test_a_closed_engine_gives_its_memory_back(plans: tuple[Plans, Any], workshop: Workshop) -> None:
    """Opened and closed ten times, no memory of the GPU is lost; the driver may keep what it loaded once."""
    bundle, flavour = BUNDLES[0], _only(workshop)
    plan = plans[0].passed[bundle.manifest.name, flavour.name, "fp32"]
    cell = cell_of(bundle, 8)
    left = []
    for _ in range(11):
        with opened(workshop, bundle, flavour, plan) as runner:
            runner.run(cell.inputs)
        left.append(workshop.cuda.free_bytes(workshop.device.index))
    assert left[0] - left[-1] < 16 * _MIB


def test_all_sides_can_be_opened(plans: tuple[Plans, Any], workshop: Workshop, tmp_path: Path) -> None:
    """The benchmark's sides of a plan open, answer and close."""
    results = Results(tmp_path, {}, total_s=100.0)
    with results.section("sides", "Sides", 100.0) as section:
        for arm in tensorrt_arms(workshop, plans[0], ["fp32"], section):
            side = arm.open(BUNDLES[0])
            check_runner(BUNDLES[0], side, check_preprocessing(BUNDLES[0]))
            side.close()


def test_a_lost_context_is_told_and_a_new_process_answers(workshop: Workshop) -> None:
    """A kernel's assertion loses the context: every run says so, the process ends with 75, and the next one answers."""
    base = [str(BUNDLES[0].path), "cuda", str(workshop.folder), str(workshop.batch.maximum)]
    with working([*base, "lose"]) as worker:
        assert worker.hear("ready", 300.0) is not None, worker.complaint
        for _ in range(2):
            said = worker.hear("lost", 60.0)
            assert said is not None
            assert said["lost"] == "DeviceLost", said["message"]
        assert worker.end() == "exit 75"
    with working([*base, "wait"]) as worker:
        said = worker.hear("ready", 300.0)
        assert said is not None, worker.complaint
        assert said["fallback"] is None


def test_an_engine_without_memory_is_served_by_the_cpu(workshop: Workshop) -> None:
    """With the GPU's memory taken by somebody else the CPU answers, and says why."""
    base = [str(BUNDLES[0].path), "cuda", str(workshop.folder), str(workshop.batch.maximum)]
    with working([*base, "starve"]) as worker:
        said = worker.hear("ready", 300.0)
        assert said is not None, worker.complaint
        assert "memory" in str(said["fallback"])
        assert worker.end() == "exit 0"
