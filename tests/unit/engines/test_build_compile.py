"""Graphs are compiled into plans by each kind of TensorRT, or refused with the node that is at fault."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines.build import compile as compiling
from engines.build import progress
from engines.build.cache import PlanCache
from engines.build.compile import BatchRange, build_plan, compile_plan, plan_recipe
from engines.build.flavour import Flavour, load_flavour
from engines.build.precision import mixed_precision
from engines.bundle.manifest import GRAPH_NAME
from engines.bundle.reader import RELEASED, Bundle, load_bundle
from engines.errors import DeviceUnavailable, OutOfMemory, PlanBuildFailed, RefusedNode
from tests.doubles import bundles
from tests.doubles.plans import compiled, needs_rtx, recipe_of_graph
from tests.doubles.tensorrt_builder import (
    BAD_CACHE,
    FOREIGN_CACHE,
    GOOD_CACHE,
    TYPED_10,
    TYPED_11,
    UNTYPED,
    BuilderDouble,
    Flags,
    Severity,
    toy_graph,
)

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
BATCH = BatchRange(minimum=1, optimum=2, maximum=8)


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


def _refused(graph: bytes, batch: BatchRange = BATCH, target: str = "sm_89") -> PlanBuildFailed:
    with pytest.raises(PlanBuildFailed) as caught:
        compiled(graph, target, batch)
    return caught.value


def _no_gpu() -> str:
    msg = "GPU 0 is not there: no driver is installed"
    raise DeviceUnavailable(msg)


def _full(trt: BuilderDouble) -> Flavour:
    """TensorRT on a machine with an H100, or on one without a GPU."""
    probe = (lambda: "sm_90") if trt.gpu else _no_gpu
    return Flavour(name="tensorrt", title="TensorRT", module=trt, version=trt.__version__, probe=probe)


def _build(trt: BuilderDouble, graph: bytes | None = None, *, tf32: bool = False, **options: Any) -> bytes:
    flavour, content = _full(trt), graph or toy_graph()
    recipe = recipe_of_graph(flavour, content, "sm_90", BATCH, tf32=tf32)
    return compile_plan(flavour, content, recipe, **options)


@needs_rtx
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["echo_ef", "ecg_cmr", "cmr_risk"])
def test_released_graphs_compile(name: str, target: str) -> None:
    """Every graph that comes with the package compiles for every target, the plan as large as the weights it holds."""
    graph = (RELEASED / name / GRAPH_NAME).read_bytes()
    assert len(compiled(graph, target, BATCH)) > len(graph) // 2


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["echo_ef", "ecg_cmr"])
def test_released_graphs_compile_in_fewer_bits(name: str, precision: Any) -> None:
    """Echo and ECG compile in FP16 and in BF16, into smaller plans."""
    graph = (RELEASED / name / GRAPH_NAME).read_bytes()
    assert len(compiled(graph, "sm_89", BATCH, precision)) < 0.9 * len(compiled(graph, "sm_89", BATCH))


@needs_rtx
def test_target_without_the_type_refuses_it() -> None:
    """A GPU that has no BF16 gives no plan in BF16, and the reason is the library's."""
    with pytest.raises(PlanBuildFailed, match="sm_75"):
        compiled(MIX, "sm_75", BATCH, "bf16")


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
    assert compiled(MIX, "sm_89", BATCH)
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
def test_configuration_is_for_one_target_without_tf32() -> None:
    """TF32, which the builder switches on by itself, is off in the configuration that is compiled with."""
    flavour = load_flavour("tensorrt-rtx")
    trt = flavour.module
    builder = trt.Builder(flavour.listener())
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)
    for tf32 in (False, True):
        recipe = recipe_of_graph(flavour, MIX, "sm_89", BATCH, tf32=tf32)
        config = compiling._Build(flavour, recipe).config(builder)
        assert config.get_flag(trt.BuilderFlag.TF32) is tf32
        assert (config.num_compute_capabilities, config.get_compute_capability(0)) == (1, trt.ComputeCapability.SM89)


@needs_rtx
def test_only_the_batch_axis_may_be_free() -> None:
    """A second free axis is refused; a fixed batch compiles for exactly that batch."""
    assert "input x is (-1, -1)" in str(_refused(_graph(helper.make_node("Abs", ["x"], ["y"]), shape=("b", "t"))))
    assert "input x is (3, 4)" in str(_refused(_mix(3, 4)))
    assert compiled(_mix(3, 4), "sm_89", BatchRange(minimum=3, optimum=3, maximum=3))


@needs_rtx
@pytest.mark.parametrize("target", ["sm_90", "sm_1"])
def test_targets_that_do_not_exist_are_refused(target: str, bundle: Bundle) -> None:
    """A target the library does not know is the caller's mistake; the message lists those there are."""
    with pytest.raises(ValueError, match=r"expected one of .*sm_80, sm_86, sm_89, sm_120"):
        compiled(MIX, target, BATCH)
    with pytest.raises(ValueError, match="expected one of"):
        plan_recipe(load_flavour("tensorrt-rtx"), bundle, target, "fp32", BATCH)


@needs_rtx
def test_log_keeps_what_the_compiler_says(tmp_path: Path) -> None:
    """The file beside the plan holds every message of this build and of no other, also where the build fails."""
    log = tmp_path / "plans" / "a.log"
    compiled(MIX, "sm_89", BATCH, log=log)
    assert "VERBOSE Parsing node: mix [MatMul]" in log.read_text()
    with pytest.raises(PlanBuildFailed):
        compiled(_graph(SCATTER), "sm_89", BATCH, log=log)
    assert "back to grid" in log.read_text()
    assert "mix" not in log.read_text()


@needs_rtx
def test_long_build_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the real library compiles, lines with time, phase and step appear: it lets other threads run."""
    monkeypatch.setattr(progress, "HEARTBEAT_S", 0.02)
    told: list[str] = []
    compiled((RELEASED / "ecg_cmr" / GRAPH_NAME).read_bytes(), "sm_89", BATCH, progress=told.append)
    assert told
    assert all(line.startswith("sm_89: building for ") for line in told)
    assert any(", step " in line for line in told)


@needs_rtx
def test_errors_of_the_library_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bindings raise reaches the caller as an error of the engines."""
    for foreign, ours in [(RuntimeError, PlanBuildFailed), (TypeError, PlanBuildFailed), (MemoryError, OutOfMemory)]:

        def broken(*_: Any, kind: type[Exception] = foreign) -> Any:
            raise kind("boom")

        monkeypatch.setattr(compiling._Build, "_parse", broken)
        with pytest.raises(ours, match="TensorRT-RTX failed: boom"):
            compiled(MIX, "sm_89", BATCH)


@given(st.tuples(*[st.integers(-2, 5)] * 3))
def test_batch_ranges_are_in_order(sizes: tuple[int, int, int]) -> None:
    """A batch range is positive and in order, or it does not exist."""
    minimum, optimum, maximum = sizes
    if 1 <= minimum <= optimum <= maximum:
        assert BatchRange(minimum=minimum, optimum=optimum, maximum=maximum).sizes == sizes
    else:
        with pytest.raises(ValueError, match="expected 1 <= minimum <= optimum <= maximum"):
            BatchRange(minimum=minimum, optimum=optimum, maximum=maximum)


@pytest.mark.parametrize(
    ("version", "flags", "expected"), [("10.15.1.29", TYPED_10, 0b10), ("11.2.1.2", TYPED_11, 0b10), ("12.0", {}, 0)]
)
def test_network_is_strongly_typed(version: str, flags: Flags, expected: int) -> None:
    """The flag is set wherever the library has a second kind of network; its number is the library's own."""
    trt = BuilderDouble(version=version, flags=flags)
    assert _build(trt) == b"a plan"
    assert trt.networks == [expected]


def test_library_that_cannot_keep_types_is_refused() -> None:
    """A library whose networks are weakly typed only, as before TensorRT 10, is not one."""
    trt = BuilderDouble(version="10.0.0", flags=UNTYPED)
    with pytest.raises(PlanBuildFailed, match="strongly typed"):
        _build(trt)
    assert not trt.networks


def test_no_builder_is_made_without_a_gpu() -> None:
    """TensorRT's builder is half-made on a machine without a driver: the probe comes first and gives the reason."""
    with pytest.raises(DeviceUnavailable, match="no driver is installed"):
        _build(BuilderDouble(gpu=False))


def test_tensorrt_compiles_for_its_own_gpu_only(bundle: Bundle) -> None:
    """A plan for another GPU than the one that is there is the caller's mistake."""
    flavour = _full(BuilderDouble())
    with pytest.raises(ValueError, match=r"target 'sm_80'; expected one of sm_90: .* compiles for the GPU it runs on"):
        plan_recipe(flavour, bundle, "sm_80", "fp32", BATCH)
    recipe = plan_recipe(flavour, bundle, "sm_90", "fp32", BATCH)
    assert (recipe.runtime, recipe.version, recipe.target, recipe.tf32) == ("tensorrt", "10.15.1.29", "sm_90", False)
    assert recipe.graph_sha256 == bundle.weights_sha256


@pytest.mark.parametrize("change", ["runtime", "version", "graph_sha256"])
def test_recipe_of_something_else_is_refused(change: str) -> None:
    """A recipe names its runtime, version and graph; nothing is compiled under a name that is not its own."""
    trt = BuilderDouble()
    flavour, graph = _full(trt), toy_graph()
    recipe = recipe_of_graph(flavour, graph, "sm_90", BATCH)
    other = {"runtime": "tensorrt-rtx", "version": "10.0.0", "graph_sha256": hashlib.sha256(b"other").hexdigest()}
    with pytest.raises(ValueError, match="expected those of the recipe"):
        compile_plan(flavour, graph, recipe.model_copy(update={change: other[change]}))
    assert not trt.networks


@pytest.mark.parametrize("tf32", [False, True])
def test_recipe_decides_on_tf32_and_batch(tf32: bool) -> None:
    """TF32 is on where the recipe says so and only there; the profile holds the recipe's batch sizes."""
    trt = BuilderDouble()
    _build(trt, tf32=tf32)
    (made,) = trt.builds
    assert made.tf32 is tf32
    assert [profile.shapes for profile in made.profiles] == [{"x": ((1, 4), (2, 4), (8, 4))}]


@pytest.mark.parametrize(
    ("stored", "given"), [(None, b""), (GOOD_CACHE, GOOD_CACHE), (BAD_CACHE, b""), (FOREIGN_CACHE, b"")]
)
def test_timings_are_kept_between_builds(stored: bytes | None, given: bytes, tmp_path: Path) -> None:
    """What was measured on this GPU is given to the next build; a damaged or foreign file is written anew."""
    path = tmp_path / "plans" / "timings.bin"
    if stored is not None:
        path.parent.mkdir()
        path.write_bytes(stored)
    trt = BuilderDouble()
    _build(trt, timing_cache=path)
    assert trt.builds[0].cache.given == given
    assert path.read_bytes() == GOOD_CACHE
    assert [file.name for file in path.parent.iterdir()] == ["timings.bin"]


def test_timings_that_cannot_be_kept_do_not_fail_the_build(tmp_path: Path) -> None:
    """Without the file a build only takes longer."""
    (tmp_path / "file").write_text("in the way")
    assert _build(BuilderDouble(), timing_cache=tmp_path / "file" / "timings.bin") == b"a plan"


def test_log_that_cannot_be_written_fails_the_build(tmp_path: Path) -> None:
    """Nothing is compiled whose log could not be kept."""
    (tmp_path / "file").write_text("in the way")
    trt = BuilderDouble()
    with pytest.raises(PlanBuildFailed, match=r"log .* cannot be written"):
        _build(trt, log=tmp_path / "file" / "a.log")
    assert not trt.networks


@pytest.mark.parametrize(("monitored", "doing"), [(True, ", Timing kernels, step 12 of 40"), (False, "")])
def test_progress_with_and_without_a_monitor(monitored: bool, doing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library with a progress monitor says phase and step; of one without, the time that has passed is said."""
    monkeypatch.setattr(progress, "HEARTBEAT_S", 0.01)
    trt = BuilderDouble(monitored=monitored)
    trt.build_s = 0.1
    told: list[str] = []
    _build(trt, progress=told.append)
    assert f"sm_90: building for 0 s{doing}" in told
    before = len(told)
    assert not [thread for thread in threading.enumerate() if thread.name == "build progress"]
    assert len(told) == before


def test_short_build_says_nothing() -> None:
    """Lines come on long builds only."""
    told: list[str] = []
    _build(BuilderDouble(), progress=told.append)
    assert not told


def test_builder_without_a_plan_gives_its_reasons(tmp_path: Path) -> None:
    """Where the builder gives nothing back, what it logged as an error is the reason, and the log is kept."""
    trt = BuilderDouble()
    trt.refuse = "no kernel for\n this"
    with pytest.raises(PlanBuildFailed, match=r"TensorRT does not take the graph: .*sm_90: no kernel for this"):
        _build(trt, log=tmp_path / "a.log")
    assert "ERROR no kernel for" in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize(
    ("precision", "kind", "taken"),
    [
        ("fp32", "HALF", False),
        ("fp32", "BF16", False),
        ("fp16", "HALF", True),
        ("fp16", "BF16", False),
        ("fp16", "FP8", False),
        ("bf16", "BF16", True),
        ("bf16", "HALF", False),
        ("bf16", "FP8", False),
    ],
)
def test_types_are_those_of_the_precision(
    precision: Any, kind: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan holds float32 and the type its precision names, and no other floating point type."""
    monkeypatch.setattr(compiling, "mixed_precision", lambda graph, _: graph)
    flavour = _full(BuilderDouble())
    graph = toy_graph(tensors=[("y", "FLOAT"), ("middle", kind)])
    recipe = recipe_of_graph(flavour, graph, "sm_90", BATCH, precision)
    if taken:
        assert compile_plan(flavour, graph, recipe) == b"a plan"
        return
    with pytest.raises(PlanBuildFailed, match=f"middle is {kind.lower()}; expected no floating point type but float32"):
        compile_plan(flavour, graph, recipe)


def test_log_that_fails_later_does_not_fail_the_build() -> None:
    """A message that cannot be written raises nothing: an exception would pass through the library's own frames."""

    class Full:
        def write(self, _line: str) -> int:
            raise OSError(28, "No space left on device")

    ear = _full(BuilderDouble()).listener()
    ear.attend(Full())
    ear.log(Severity.ERROR, "the disk is full")
    assert ear.errors == ["the disk is full"]
    ear.attend(None)


def test_builds_of_one_process_take_turns(tmp_path: Path) -> None:
    """Two builds at once do not mix their messages: the library has one logger."""
    trt = BuilderDouble()
    trt.build_s = 0.05

    def build(name: str) -> None:
        _build(trt, toy_graph(tensors=[(name, "FLOAT")]), log=tmp_path / name)

    threads = [threading.Thread(target=build, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, other in (("first", "second"), ("second", "first")):
        text = (tmp_path / name).read_text()
        assert f"Parsing node: {name}" in text
        assert text.count("INFO the plan is made") == 1
        assert other not in text


def test_plan_comes_from_the_cache(bundle: Bundle, tmp_path: Path) -> None:
    """A plan is compiled once; log and timings lie beside it under names that tell what they belong to."""
    trt = BuilderDouble()
    flavour, cache = _full(trt), PlanCache(tmp_path)
    recipe = plan_recipe(flavour, bundle, "sm_90", "fp32", BATCH)
    first, second = (build_plan(cache, tmp_path, flavour, bundle, recipe) for _ in range(2))
    assert (first.built, second.built, len(trt.builds)) == (True, False, 1)
    assert second.plan.content == b"a plan"
    assert first.path.with_suffix(".log").read_text().endswith("INFO the plan is made\n")
    assert (tmp_path / "timings-tensorrt-10.15.1.29-sm_90.bin").read_bytes() == GOOD_CACHE


def test_precision_is_decided_in_the_graph(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is parsed is the bundle's graph with its types changed as the recipe's precision asks."""
    parsed: list[bytes] = []
    parse: Callable[..., None] = compiling._Build._parse

    def spy(build: Any, parser: Any, graph: bytes) -> None:
        parsed.append(graph)
        parse(build, parser, graph)

    monkeypatch.setattr(compiling._Build, "_parse", spy)
    flavour = _full(BuilderDouble())
    for precision in ("fp32", "fp16"):
        compile_plan(flavour, bundle.graph(), plan_recipe(flavour, bundle, "sm_90", precision, BATCH))
    assert parsed == [bundle.graph(), mixed_precision(bundle.graph(), "fp16")]
    assert parsed[0] != parsed[1]
