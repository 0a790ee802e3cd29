"""The GPU benchmark as a command, on a machine without a GPU; and the GPU tests, which refuse to skip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.bench_gpu import main
from tests.benchmarks.on_gpu.arms import Arm, HostTimed
from tests.benchmarks.on_gpu.results import Results
from tests.benchmarks.on_gpu.training_steps import Work, measure_training
from tests.doubles.runners import DistortedRunner, wrong_numbers

QUICK = ["--device", "cpu", "--engines", "ecg", "--batches", "1", "2", "--rounds", "2"]


def _sections(folder: Path) -> dict[str, dict[str, Any]]:
    stored = json.loads((folder / "results.json").read_text())
    assert stored["finished"]
    return {section["name"]: section for section in stored["sections"]}


@pytest.mark.timeout(900)
def test_the_form_on_a_cpu(tmp_path: Path, root: Path) -> None:
    """All sections, both files, each side with its columns, and a list of what was left out that names every missing part."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", "--out", str(tmp_path), *QUICK]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = _sections(tmp_path)
    assert list(sections) == ["plans", "latency", "studies", "training", "load", "rtx", "recovery"]
    assert all(section["wrong"] == [] for section in sections.values())
    latency = sections["latency"]["rows"]
    assert {row["side"] for row in latency} == {"openvino CPU", "onnxruntime CPU", "torch eager"}
    assert {row["batch"] for row in latency} == {1, 2}
    assert all(row["p99 ms"] >= row["p50 ms"] > 0 and row["GPU ms"] is None for row in latency)
    assert [row["times eager"] for row in latency if row["side"] == "torch eager"] == [1.0, 1.0]
    assert all(row["studies/h, one process"] > 0 for row in sections["studies"]["rows"])
    trained = [(row["precision"], row["compiled"]) for row in sections["training"]["rows"]]
    assert trained == [("fp32", False), ("bf16", False)] * 2
    assert [row["what"] for row in sections["recovery"]["rows"]] == ["first start", "start after kill -9"]
    left_out = {what for section in sections.values() for what, _why in section["left_out"]}
    assert {"TensorRT, TensorRT-RTX", "UniFormer-S", "torch.compile", "TF32", "batching on the GPU"} <= left_out
    text = (tmp_path / "results.md").read_text()
    assert "Left out:" in text
    assert "| tiny" not in text


def test_a_wrong_side_fails_the_command_and_scores_nothing(tmp_path: Path) -> None:
    """The exit code is 1, the side stands among the wrong, and no time of it is written."""
    wrong = Arm(
        name="fast and wrong",
        precision="fp32",
        graph=None,
        open=lambda bundle: HostTimed(DistortedRunner(bundle, wrong_numbers)),
    )
    code = main(["--out", str(tmp_path), *QUICK, "--sections", "latency"], extra_arms=[wrong])
    section = _sections(tmp_path)["latency"]
    assert code == 1
    assert "fast and wrong" not in {row["side"] for row in section["rows"]}
    assert [what for what, _why in section["wrong"]] == ["ecg-cmr-triplet-small, fast and wrong fp32"]


def test_a_training_mode_that_computes_something_else_scores_nothing(tmp_path: Path) -> None:
    """Its first error must be that of FP32; one that is far off is called wrong, one that raises is left out."""
    errors = {("fp32", False): 2.0, ("bf16", False): 3.0, ("fp32", True): 2.0001}

    def make(mode: str, compiled: bool) -> Any:
        error = errors[mode, compiled]
        return lambda: error

    results = Results(tmp_path, {}, total_s=60.0)
    with results.section("training", "Training", 60.0) as section:
        measure_training([Work(name="toy", batch="1", make=make)], "cpu", 1, section, compiled=True)
    (found,) = results.sections
    assert [(row["precision"], row["compiled"]) for row in found.rows] == [("fp32", False), ("fp32", True)]
    assert [what for what, _why in found.wrong] == ["toy, bf16"]
    assert ("toy, bf16, compiled", "KeyError: ('bf16', True)") in found.left_out


def test_without_a_gpu_the_command_says_so_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU is never measured in a GPU's place."""
    monkeypatch.setattr("tests.benchmarks.bench_gpu._gpu", lambda _device: (None, "no driver is installed"))
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def _pytest(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280, check=False)


def test_gpu_tests_fail_without_a_gpu_where_they_are_asked_for(root: Path) -> None:
    """Asked for by folder they fail with what is missing; none is skipped."""
    done = _pytest(root, "tests/gpu", "-k", "memory_back")
    assert done.returncode == 1, done.stdout
    assert "were asked for and need a GPU" in done.stdout
    assert "skipped" not in done.stdout


def test_gpu_tests_are_not_collected_where_nobody_asks(root: Path) -> None:
    """A run of everything neither fails for want of a GPU nor reports skips."""
    done = _pytest(
        root,
        "tests",
        "--collect-only",
        "--ignore=tests/unit",
        "--ignore=tests/contract",
        "--ignore=tests/e2e",
        "--ignore=tests/fuzz",
        "--ignore=tests/integration",
    )
    assert "deselected" in done.stdout, done.stdout
    assert "test_engines_on_gpu" not in done.stdout
