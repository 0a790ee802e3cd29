"""``purkinje-engine`` shows bundles, replays their golden records, compares and times the runtimes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines import cli
from engines.build.bench import bench
from engines.build.verify import random_inputs
from engines.bundle.manifest import GRAPH_NAME
from engines.bundle.reader import Bundle, load_bundle
from engines.errors import SelfTestFailed
from engines.records import Modality
from engines.runtime.open import RUNTIMES
from tests.doubles import bundles
from tests.doubles.runners import DistortedRunner, ScriptedRunner, wrong_numbers


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ECG bundle on disk."""
    return bundles.write_tiny(tmp_path_factory.mktemp("bundles") / "ecg")


@pytest.fixture
def bundle(path: Path) -> Bundle:
    """The same, opened."""
    return load_bundle(path)


@pytest.fixture
def distorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO replaced by a runtime that gives wrong numbers."""
    monkeypatch.setattr(cli, "RUNTIMES", {**RUNTIMES, "openvino": lambda b: DistortedRunner(b, wrong_numbers)})


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_inspect_prints_what_a_bundle_is(path: Path, bundle: Bundle) -> None:
    """Name, digests, tensors, intended use and metrics stand in the table."""
    result = _call("inspect", path)
    assert result.exit_code == 0
    for text in (
        "tiny-ecg 0.1.0 (ecg)",
        bundle.sha256,
        bundle.weights_sha256,
        "Tests of the software.",
        "nothing at all",
        "ecg float32 batch x 12 x 200",
        "disease_logits float32 batch x 6",
        "mean_absolute_error_percent",
        "4.25",
    ):
        assert text in result.output


def test_without_arguments_the_released_bundles_are_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without folders the commands work on what comes with the package, and say so when there is nothing."""
    monkeypatch.setattr(cli, "released_bundles", lambda: (path,))
    assert "tiny-ecg" in _call("inspect").output
    monkeypatch.setattr(cli, "released_bundles", lambda: ())
    result = _call("inspect")
    assert result.exit_code == 1
    assert "no bundle comes with this installation" in result.output


def test_selftest_prints_the_agreement(path: Path) -> None:
    """Every runtime is listed with its version and its largest differences."""
    result = _call("selftest", path)
    assert result.exit_code == 0
    assert "2 golden records, preprocessing agrees" in result.output
    for name in RUNTIMES:
        assert f"  {name} " in result.output
    assert result.output.count("agrees; largest differences: ") == 2


@pytest.mark.usefixtures("distorted")
def test_selftest_names_the_runtime_that_disagrees(path: Path) -> None:
    """A runtime that disagrees is shown with the reason; the bundle is still served by the other."""
    result = _call("selftest", path)
    assert result.exit_code == 0
    assert "openvino rejected: golden record 0:" in result.output
    assert "onnxruntime" in result.output


@pytest.mark.usefixtures("distorted")
def test_selftest_fails_when_no_runtime_serves(path: Path) -> None:
    """With every runtime rejected the command exits 1 and names the bundle."""
    result = _call("selftest", path, "--runtime", "openvino")
    assert result.exit_code == 1
    assert "no runtime serves tiny-ecg" in result.output


def test_corrupt_bundle_is_one_line(tmp_path: Path) -> None:
    """An altered bundle gives one sentence and exit code 1, not a traceback."""
    folder = bundles.write_tiny(tmp_path / "ecg")
    (folder / GRAPH_NAME).write_bytes(b"junk")
    for command in ("inspect", "selftest", "verify", "bench"):
        result = _call(command, folder)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ecg/model.onnx was altered")


def test_verify_prints_each_output(path: Path) -> None:
    """Every runtime but the reference is compared; the difference of each output is printed beside its limit."""
    result = _call("verify", path)
    assert result.exit_code == 0
    assert "tiny-ecg 0.1.0, openvino (fp32 on CPU): 2 golden records and 200 inputs" in result.output
    assert result.output.count(" agrees") == 6
    assert "DISAGREES" not in result.output


@pytest.mark.usefixtures("distorted")
def test_verify_fails_on_disagreement(path: Path) -> None:
    """A runtime that disagrees makes the command exit 1, with the reasons; the other can be asked alone."""
    result = _call("verify", path)
    assert result.exit_code == 1
    assert result.output.count("DISAGREES") == 6
    assert "estimates: largest difference is 0.01 against the reference; expected at most 0.001" in result.output
    assert "1 of 1 do not agree with FP32" in result.output
    assert _call("verify", path, "--runtime", "onnxruntime").exit_code == 0


def test_random_inputs_are_valid_and_new(bundle: Bundle) -> None:
    """Random inputs have the form the graph expects, lie in the range of the golden ones, and are never those."""
    cases = bundle.golden()
    rng = np.random.default_rng(0)
    low, high = (
        f(case.prepared["ecg"].min() if f is min else case.prepared["ecg"].max() for case in cases) for f in (min, max)
    )
    for _ in range(10):
        (found,) = random_inputs(cases, rng).values()
        assert (found.dtype, found.shape) == (np.float32, (1, 12, 200))
        assert low <= found.min() <= found.max() <= high
        assert not any(np.array_equal(found, case.prepared["ecg"]) for case in cases)


def test_random_bytes_stay_bytes() -> None:
    """Blended bytes keep their dtype and do not wrap around."""
    case = bundles.GoldenCase(record=bundles.cine_loop(), prepared=bundles.prepared_arrays(Modality.ECHO), outputs={})
    (found,) = random_inputs([case], np.random.default_rng(1)).values()
    assert found.dtype == np.uint8
    assert abs(float(found.mean()) - float(case.prepared["clip"].mean())) < 20


def test_random_inputs_need_golden_vectors() -> None:
    """Without golden vectors there is nothing to start from."""
    with pytest.raises(SelfTestFailed, match="no golden vectors"):
        random_inputs((), np.random.default_rng(0))


def test_bench_takes_turns_and_times_each_run(bundle: Bundle) -> None:
    """The runtimes take turns at going first, and the median is of the timed runs only."""
    order: list[str] = []
    golden = bundle.golden()[0]
    seconds = iter(np.arange(1000) * 0.002)

    def double(name: str) -> ScriptedRunner:
        return ScriptedRunner(bundle.manifest, lambda _: order.append(name) or dict(golden.outputs))

    timings = bench(bundle, {"a": double("a"), "b": double("b")}, repeats=3, clock=lambda: float(next(seconds)))
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [(timing.runs, timing.median_ms, timing.batch) for timing in timings] == [(3, 2.0, 1)] * 2


def test_bench_does_not_time_wrong_answers(bundle: Bundle) -> None:
    """A runtime whose answer is not the golden one gets no time."""
    with pytest.raises(SelfTestFailed, match="while timed"):
        bench(bundle, {"broken": DistortedRunner(bundle, wrong_numbers)}, repeats=1)
    with pytest.raises(ValueError, match="0 repeats"):
        bench(bundle, {}, repeats=0)


def test_bench_prints_json_and_table(path: Path) -> None:
    """Times are printed for people, or as JSON with the versions for programs."""
    found = json.loads(_call("bench", path, "--repeats", 2, "--json").output)
    assert [timing["runtime"] for timing in found] == list(RUNTIMES)
    assert all(timing["median_ms"] > 0 and timing["version"] and timing["runs"] == 2 for timing in found)
    table = _call("bench", path, "--repeats", 1, "--runtime", "onnxruntime").output
    assert "median_ms" in table
    assert "openvino" not in table
