"""Graphs are compiled into TensorRT-RTX plans without a GPU, or refused with the node that is at fault."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines import cli
from engines.build import rtx
from engines.build.plan import read_plan
from engines.build.rtx import BatchRange, build_plans, compile_plans, rtx_targets, rtx_version
from engines.bundle.manifest import GRAPH_NAME
from engines.bundle.reader import RELEASED, Bundle, load_bundle
from engines.errors import PlanBuildFailed, RefusedNode
from tests.doubles import bundles

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
BATCH = BatchRange(minimum=1, optimum=2, maximum=8)
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX (extra `rtx`) is not installed"
)


def _graph(*nodes: onnx.NodeProto, shape: Sequence[str | int] = ("batch", 4), domain: str = "") -> bytes:
    """One input ``x``, one output ``y``, constants ``w`` [4,4] and ``rows`` [1,4]."""
    constants = [
        numpy_helper.from_array(np.ones((4, 4), np.float32), "w"),
        numpy_helper.from_array(np.zeros((1, 4), np.int64), "rows"),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def _mix(*shape: str | int) -> bytes:
    return _graph(helper.make_node("MatMul", ["x", "w"], ["y"], name="mix"), shape=shape)


MIX = _mix("batch", 4)
SCATTER = helper.make_node("ScatterElements", ["x", "rows", "x"], ["y"], name="back to grid", axis=1, reduction="add")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny ECG bundle."""
    return load_bundle(bundles.write_tiny(tmp_path_factory.mktemp("bundles") / "ecg"))


def _compile(graph: bytes, *targets: str, batch: BatchRange = BATCH) -> dict[str, bytes]:
    return compile_plans(graph, targets, batch, lambda _: None)


def _refused(graph: bytes, batch: BatchRange = BATCH) -> PlanBuildFailed:
    with pytest.raises(PlanBuildFailed) as caught:
        _compile(graph, "sm_89", batch=batch)
    return caught.value


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["build", *map(str, arguments)])


@needs_rtx
@pytest.mark.parametrize(("name", "targets"), [("echo_ef", ("sm_86",)), ("ecg_cmr", ("sm_89",)), ("cmr_risk", TARGETS)])
def test_released_graphs_compile(name: str, targets: tuple[str, ...]) -> None:
    """The graphs that come with the package compile, each plan at least as large as the weights it holds."""
    graph = (RELEASED / name / GRAPH_NAME).read_bytes()
    told: list[str] = []
    plans = compile_plans(graph, targets, BATCH, told.append)
    assert tuple(plans) == targets
    assert all(len(plan) > len(graph) // 2 for plan in plans.values())
    assert [text.split(":")[0] for text in told] == list(targets)
    assert all("fp32, batch 1 to 8" in text for text in told)


@needs_rtx
def test_reduction_that_cannot_be_compiled_is_named() -> None:
    """A scatter with a reduction is refused with its node, its operator and the reason, though the parser names none."""
    error = _refused(_graph(SCATTER))
    assert error.refused == (
        RefusedNode(node="back to grid", operator="ScatterElements", reason="Unsupported reduction type"),
    )
    assert "node back to grid [ScatterElements]: Unsupported reduction type" in str(error)


@needs_rtx
def test_every_operator_from_elsewhere_is_named() -> None:
    """All operators that are not of ONNX are listed at once."""
    twist = helper.make_node("Twist", ["x"], ["z"], name="first", domain="com.example")
    turn = helper.make_node("Turn", ["z"], ["y"], name="second", domain="com.example")
    error = _refused(_graph(twist, turn, domain="com.example"))
    assert [(node.node, node.operator) for node in error.refused] == [("first", "Twist"), ("second", "Turn")]
    assert "Plugin not found" in str(error)


@needs_rtx
@pytest.mark.parametrize(("graph", "reason"), [(b"junk", "Failed to parse"), (b"", "at least one output")])
def test_what_is_no_graph_is_refused(graph: bytes, reason: str) -> None:
    """Bytes that are no graph are refused as a whole, with no node named."""
    error = _refused(graph)
    assert reason in str(error)
    assert [(node.node, node.operator) for node in error.refused] == [("", "")]


@needs_rtx
def test_errors_of_one_graph_do_not_stay() -> None:
    """A graph compiles after another was refused, and a later refusal says only its own reasons."""
    _refused(_graph(SCATTER))
    assert _compile(MIX, "sm_89")["sm_89"]
    assert "reduction" not in str(_refused(b""))


@needs_rtx
def test_reduced_precision_is_refused() -> None:
    """A graph that computes in half precision is refused: a plan that is said to be fp32 is fp32."""
    down = helper.make_node("Cast", ["x"], ["half"], name="down", to=TensorProto.FLOAT16)
    up = helper.make_node("Cast", ["half"], ["y"], name="up", to=TensorProto.FLOAT)
    error = _refused(_graph(down, up))
    assert [node.node for node in error.refused] == ["down"]
    assert "half; expected no floating point type but float32" in str(error)


@needs_rtx
def test_tf32_is_off() -> None:
    """TF32, which the builder switches on by itself, is off in the configuration that is compiled with."""
    trt = importlib.import_module("tensorrt_rtx_bindings")
    builder = trt.Builder(rtx._listener(trt))
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)
    config = rtx._config(trt, builder, trt.ComputeCapability.SM89)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert (config.num_compute_capabilities, config.get_compute_capability(0)) == (1, trt.ComputeCapability.SM89)


@needs_rtx
def test_only_the_batch_axis_may_be_free() -> None:
    """A second free axis is refused; a fixed batch compiles for exactly that batch."""
    assert "input x is (-1, -1)" in str(_refused(_graph(helper.make_node("Abs", ["x"], ["y"]), shape=("b", "t"))))
    assert "input x is (3, 4)" in str(_refused(_mix(3, 4)))
    assert _compile(_mix(3, 4), "sm_89", batch=BatchRange(minimum=3, optimum=3, maximum=3))["sm_89"]


@needs_rtx
@pytest.mark.parametrize("targets", [(), ("sm_90",), ("sm_89", "sm_89"), ("89",), ("SM89",), ("sm_NONE",)])
def test_targets_that_do_not_exist_are_refused(targets: tuple[str, ...], bundle: Bundle, tmp_path: Path) -> None:
    """An unknown, doubled or missing target is the caller's mistake; the message lists those there are."""
    with pytest.raises(ValueError, match=r"expected some of .*sm_80, sm_86, sm_89, sm_120"):
        _compile(MIX, *targets)
    with pytest.raises(ValueError, match="expected some of"):
        build_plans(bundle, targets, BATCH, tmp_path / "plans", print)
    assert not (tmp_path / "plans").exists()


@needs_rtx
def test_targets_of_the_installation() -> None:
    """The installed library says what it compiles for; the four targets of this product are among them."""
    assert set(TARGETS) <= set(rtx_targets())
    assert "sm_90" not in rtx_targets()
    assert rtx_version()[0].isdigit()


@needs_rtx
def test_errors_of_the_library_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bindings raise reaches the caller as an error of the engines."""
    for foreign in (RuntimeError, TypeError, ValueError, IndexError):

        def broken(*_: Any, kind: type[Exception] = foreign) -> Any:
            raise kind("boom")

        monkeypatch.setattr(rtx, "_parse", broken)
        with pytest.raises(PlanBuildFailed, match="TensorRT-RTX failed: boom"):
            _compile(MIX, "sm_89")


@given(st.tuples(*[st.integers(-2, 5)] * 3))
def test_batch_ranges_are_in_order(sizes: tuple[int, int, int]) -> None:
    """A batch range is positive and in order, or it does not exist."""
    minimum, optimum, maximum = sizes
    if 1 <= minimum <= optimum <= maximum:
        assert BatchRange(minimum=minimum, optimum=optimum, maximum=maximum).sizes == sizes
    else:
        with pytest.raises(ValueError, match="expected 1 <= minimum <= optimum <= maximum"):
            BatchRange(minimum=minimum, optimum=optimum, maximum=maximum)


def test_missing_package_names_the_extra(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorRT-RTX the error names the extra to install, in the library and on the command line."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    for call in (rtx_version, rtx_targets, lambda: _compile(MIX, "sm_89")):
        with pytest.raises(PlanBuildFailed, match="install the extra `rtx`"):
            call()
    result = _call(bundle.path, "--rtx", "sm_89", "--out", tmp_path / "plans")
    assert result.exit_code == 1
    assert result.output.startswith("Error: TensorRT-RTX cannot be imported")


def test_nothing_is_imported_before_it_is_needed(root: Path) -> None:
    """Importing the command line does not load TensorRT-RTX."""
    code = "import sys, engines.cli, engines.build.rtx; sys.exit(any('tensorrt' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60).returncode == 0


@needs_rtx
def test_command_writes_plans_and_sidecars(bundle: Bundle, tmp_path: Path) -> None:
    """Each target gets a plan whose sidecar names graph, version, target, batch sizes and precision."""
    folder = tmp_path / "plans"
    result = _call(bundle.path, "--rtx", "sm_80,sm_120", "--out", folder, "--batch", 1, 2, 4)
    assert result.exit_code == 0, result.output
    paths = [Path(line) for line in result.output.splitlines()[-2:]]
    stem = f"{bundle.weights_sha256[:16]}-rtx-{rtx_version()}"
    assert [path.name for path in paths] == [f"{stem}-sm_80.plan", f"{stem}-sm_120.plan"]
    assert len(list(folder.iterdir())) == 4
    for path, target in zip(paths, ("sm_80", "sm_120"), strict=True):
        record, plan = read_plan(path)
        assert (record.target, record.version, record.graph_sha256) == (target, rtx_version(), bundle.weights_sha256)
        assert (record.batch_minimum, record.batch_optimum, record.batch_maximum) == (1, 2, 4)
        assert (record.precision, record.tf32, record.plan.bytes) == ("fp32", False, len(plan))


@needs_rtx
def test_command_keeps_what_stands_there(bundle: Bundle, tmp_path: Path) -> None:
    """A second build of the same keeps the plan byte for byte; one of other batch sizes fails and touches nothing."""
    arguments = (bundle.path, "--rtx", "sm_89", "--out", tmp_path)
    _call(*arguments)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "stands there already" in _call(*arguments).output
    other = _call(*arguments, "--batch", 1, 1, 2)
    assert other.exit_code == 1
    assert "batch_maximum 8 (wanted 2)" in other.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@needs_rtx
def test_command_explains_a_wrong_use(bundle: Bundle, tmp_path: Path) -> None:
    """Wrong targets and batch sizes are usage errors, not tracebacks."""
    for arguments in (("--rtx", "sm_90"), ("--rtx", "sm_89", "--batch", 3, 2, 1)):
        result = _call(bundle.path, "--out", tmp_path, *arguments)
        assert result.exit_code == 2
        assert "expected" in result.output
