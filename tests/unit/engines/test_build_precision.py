"""Fewer bits stand in the graph, node by node, where they do no harm; a fit of a field gets none."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.build import precision as deciding
from engines.build.precision import PRECISIONS, kept_nodes, mixed_precision, require_precision
from engines.bundle.reader import RELEASED, Bundle, load_bundle
from engines.errors import PlanBuildFailed

WIDTH = 8
RNG = np.random.default_rng(5)
CONSTANTS = {
    "w": RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32),
    "v": RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32),
    "gain": RNG.normal(size=WIDTH).astype(np.float32),
    "tiny": np.full(WIDTH, 1e-5, np.float32),
    "two": np.float32(2.0),
    "half": np.float32(0.5),
    "axis": np.array([-1], np.int64),
}


def _node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=f"{operator} {output}", **attributes)


def _model(nodes: Iterable[onnx.NodeProto], constants: Mapping[str, Any] = CONSTANTS) -> onnx.ModelProto:
    """Inputs ``x`` [batch, WIDTH], output ``y`` of the same shape."""
    graph = helper.make_graph(
        list(nodes),
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", WIDTH))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", WIDTH))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _mixed(nodes: Iterable[onnx.NodeProto], precision: Any = "fp16", **options: Any) -> onnx.ModelProto:
    return onnx.load_from_string(mixed_precision(_model(nodes).SerializeToString(), precision, **options))


def _run(graph: bytes, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def _types(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Floating point types each node of the graph before takes and gives, by the node's name."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}
    types |= {value.name: value.type.tensor_type.elem_type for value in inferred.output}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    return {
        node.name: {types[name] for name in (*node.input, *node.output) if types.get(name) in floats}
        for node in inferred.node
        if node.op_type != "Cast"
    }


PRODUCT_1, PRODUCT_2 = _node("MatMul", "x w", "a"), _node("MatMul", "b v", "y")
MEAN = [
    _node("ReduceMean", "a axis", "m"),
    _node("Sub", "a m", "d"),
    _node("Pow", "d two", "s"),
    _node("ReduceMean", "s axis", "var"),
    _node("Add", "var tiny", "e"),
    _node("Sqrt", "e", "r"),
]
NORMS = {
    "divided": [*MEAN, _node("Div", "d r", "n"), _node("Mul", "n gain", "g"), _node("Add", "g gain", "b")],
    "times the reciprocal": [
        *MEAN,
        _node("Reciprocal", "r", "i"),
        _node("Mul", "d i", "n"),
        _node("Add", "gain n", "b"),
    ],
    "squared by itself": [
        *MEAN[:2],
        _node("Mul", "d d", "s"),
        *MEAN[3:5],
        _node("Pow", "e half", "r"),
        _node("Div", "d r", "n"),
        _node("Mul", "n gain", "b"),
    ],
    "root mean square": [
        _node("Pow", "a two", "s"),
        *MEAN[3:],
        _node("Div", "a r", "n"),
        _node("Mul", "n gain", "b"),
    ],
}


@pytest.fixture(scope="module", params=["echo_ef", "ecg_cmr"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """A released bundle that takes fewer bits."""
    return load_bundle(RELEASED / request.param)


def test_released_bundles_hold_in_fp16(bundle: Bundle) -> None:
    """In FP16, on a CPU that computes it, echo and ECG give their golden outputs within the manifest's tolerances."""
    graph = mixed_precision(bundle.graph(), "fp16")
    assert len(graph) < 0.6 * len(bundle.graph())
    for case in bundle.golden():
        found = dict(zip((spec.name for spec in bundle.manifest.outputs), _run(graph, **case.prepared), strict=True))
        for name, tolerance in bundle.manifest.golden.output_tolerance.items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], case.outputs[name], rtol=0, atol=tolerance)


def test_products_are_narrow_and_reductions_wide(bundle: Bundle) -> None:
    """In the released graphs every product is computed in FP16; softmax, means and square roots in FP32."""
    model = onnx.load_from_string(mixed_precision(bundle.graph(), "fp16"))
    onnx.checker.check_model(model, full_check=True)
    operators = {node.name: node.op_type for node in model.graph.node}
    for name, types in _types(model).items():
        if operators[name] in {"Conv", "Gemm", "MatMul", "Einsum"}:
            assert types == {TensorProto.FLOAT16}, name
        if operators[name] in {"Softmax", "ReduceMean", "ReduceMax", "Sqrt", "Pow"}:
            assert types == {TensorProto.FLOAT}, name


def test_inputs_and_outputs_stay_as_they_are(bundle: Bundle) -> None:
    """Whoever feeds the graph does not see its precision."""
    before = onnx.load_from_string(bundle.graph()).graph
    for precision in PRECISIONS:
        after = onnx.load_from_string(mixed_precision(bundle.graph(), precision)).graph
        assert list(after.input) == list(before.input)
        assert list(after.output) == list(before.output)


def test_fp32_is_the_graph_itself() -> None:
    """Nothing is parsed and nothing changed where nothing is asked for."""
    assert mixed_precision(b"any bytes", "fp32") == b"any bytes"


@pytest.mark.parametrize("norm", list(NORMS))
def test_written_out_normalisation_stays_wide(norm: str) -> None:
    """A normalisation made of means and roots is computed in FP32 all through: its squares leave FP16's range."""
    nodes = [PRODUCT_1, *NORMS[norm], PRODUCT_2]
    model = _mixed(nodes)
    types = _types(model)
    assert {types[node.name] == {TensorProto.FLOAT} for node in NORMS[norm]} == {True}
    assert types[PRODUCT_1.name] == types[PRODUCT_2.name] == {TensorProto.FLOAT16}
    x = RNG.normal(scale=300.0, size=(3, WIDTH)).astype(np.float32)
    (expected,), (found,) = (_run(graph.SerializeToString(), x=x) for graph in (_model(nodes), model))
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.02)


def test_layer_normalisation_and_softmax_stay_wide() -> None:
    """So are those with a node of their own."""
    nodes = [
        PRODUCT_1,
        _node("LayerNormalization", "a gain", "n"),
        _node("Softmax", "n", "p"),
        _node("Relu", "p", "b"),
        PRODUCT_2,
    ]
    types = _types(_mixed(nodes))
    assert [types[node.name] for node in nodes] == [
        {TensorProto.FLOAT16},
        {TensorProto.FLOAT},
        {TensorProto.FLOAT},
        {TensorProto.FLOAT16},
        {TensorProto.FLOAT16},
    ]


def test_only_what_lies_between_products_is_narrow() -> None:
    """What comes before the first product and after the last stays as exact as inputs and outputs are."""
    nodes = [
        _node("Mul", "x gain", "c"),
        _node("MatMul", "c w", "a"),
        _node("Tanh", "a", "b"),
        _node("MatMul", "b v", "e"),
        _node("Add", "e gain", "y"),
    ]
    types = _types(_mixed(nodes))
    assert [types[node.name] == {TensorProto.FLOAT16} for node in nodes] == [False, True, True, True, False]


def test_no_value_goes_through_fewer_bits_on_its_way() -> None:
    """Between two FP32 nodes a value keeps all its bits: no cast down is followed by a cast up."""
    model = _mixed([PRODUCT_1, *NORMS["divided"], PRODUCT_2])
    maker = {name: node for node in model.graph.node for name in node.output}
    ups = [node for node in model.graph.node if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT]
    assert ups
    assert {maker[node.input[0]].op_type for node in ups} <= {"MatMul", "Relu"} | {
        node.op_type for node in NORMS["divided"]
    }
    used = {name for node in model.graph.node for name in node.input} | {"y"}
    assert {name for node in model.graph.node for name in node.output} <= used


def test_shared_weight_is_rounded_for_narrow_nodes_only() -> None:
    """A weight that a wide node shares with a narrow one keeps its bits where it is wide."""
    nodes = [PRODUCT_1, _node("Add", "a gain", "c"), _node("LayerNormalization", "c gain", "b"), PRODUCT_2]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in _mixed(nodes).graph.initializer}
    assert tensors["gain"].dtype == np.float16
    np.testing.assert_array_equal(tensors["gain_fp32"], CONSTANTS["gain"])


def test_weight_beyond_fp16_keeps_its_node_wide() -> None:
    """A weight that FP16 cannot hold is not clamped: its node stays in FP32."""
    large = {**CONSTANTS, "w": CONSTANTS["w"] * 1e6}
    model = onnx.load_from_string(
        mixed_precision(_model([PRODUCT_1, _node("Relu", "a", "b"), PRODUCT_2], large).SerializeToString(), "fp16")
    )
    assert _types(model)[PRODUCT_1.name] == {TensorProto.FLOAT}
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(tensors["w"], large["w"])


def test_named_nodes_stay_wide() -> None:
    """A node that turns out to need its bits can be named; a name that is none is the caller's mistake."""
    nodes = [PRODUCT_1, _node("Relu", "a", "b"), PRODUCT_2]
    assert _types(_mixed(nodes, keep_fp32=["Relu b"]))["Relu b"] == {TensorProto.FLOAT}
    with pytest.raises(ValueError, match="no node is named Gelu b"):
        _mixed(nodes, keep_fp32=["Gelu b"])


def test_nodes_without_names_are_told_apart() -> None:
    """Nodes without a name, or with the name of another, are decided on one by one."""
    nodes = [PRODUCT_1, _node("Softmax", "a", "c"), _node("Relu", "c", "b"), PRODUCT_2]
    renamed = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    for node, name in zip(renamed, ("", "same", "same", ""), strict=True):
        node.name = name
    model = _mixed(renamed)
    types = _types(model)
    by_operator = {node.op_type: types[node.name] for node in model.graph.node if node.op_type != "Cast"}
    assert by_operator["Softmax"] == {TensorProto.FLOAT}
    assert by_operator["Relu"] == by_operator["MatMul"] == {TensorProto.FLOAT16}


def test_constants_in_nodes_are_weights() -> None:
    """A constant that is a node is treated as the weight it is, also in BF16."""
    value = numpy_helper.from_array(CONSTANTS["v"])
    nodes = [PRODUCT_1, helper.make_node("Constant", [], ["c"], value=value), _node("MatMul", "a c", "y")]
    for precision, kind in (("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)):
        tensors = {tensor.name: tensor.data_type for tensor in _mixed(nodes, precision).graph.initializer}
        assert tensors["c"] == kind


def test_bf16_is_fp16_with_other_types(bundle: Bundle) -> None:
    """BF16 is decided as FP16 is; weights are rounded once, from FP32."""
    halved, brained = (onnx.load_from_string(mixed_precision(bundle.graph(), kind)) for kind in ("fp16", "bf16"))
    assert [(node.name, list(node.input)) for node in halved.graph.node] == [
        (node.name, list(node.input)) for node in brained.graph.node
    ]
    exact = {tensor.name: tensor for tensor in onnx.load_from_string(bundle.graph()).graph.initializer}
    casts = {node.attribute[0].i for node in brained.graph.node if node.op_type == "Cast"}
    assert casts <= {TensorProto.FLOAT, TensorProto.BFLOAT16}
    for half, brain in zip(halved.graph.initializer, brained.graph.initializer, strict=True):
        assert (half.data_type == TensorProto.FLOAT16) == (brain.data_type == TensorProto.BFLOAT16)
        if brain.data_type == TensorProto.BFLOAT16:
            expected = numpy_helper.to_array(exact[brain.name])
            found = np.asarray(numpy_helper.to_array(brain), np.float32)
            np.testing.assert_allclose(found, expected, rtol=2.0**-8, atol=1e-38)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**100, min_value=-(2.0**100)))
def test_bf16_is_the_nearest(value: float) -> None:
    """No BF16 number is nearer to a weight than the one it becomes."""
    array = np.array([value], np.float32)
    bits = deciding._bfloat16_bits(array)
    near = np.array([int(bits[0]) - 1, int(bits[0]), int(bits[0]) + 1], np.int64) & 0xFFFF
    numbers = (near.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    finite = np.isfinite(numbers)
    assert abs(numbers[1] - value) == min(abs(numbers[finite] - value))


def test_ties_go_to_the_even_bf16() -> None:
    """Half-way between two BF16 numbers a weight becomes the even one, so that rounding has no drift."""
    ties = np.array([1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8], np.float32)
    assert list(deciding._bfloat16_bits(ties)) == [0x3F80, 0x3F82]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_fit_of_a_field_takes_fp32_only(precision: Any) -> None:
    """The gradients of the fit lie below what fewer bits resolve: the bundle itself says so, for TF32 as well."""
    manifest = load_bundle(RELEASED / "cmr_risk").manifest
    require_precision(manifest, "fp32")
    with pytest.raises(
        ValueError, match=rf"cmr-enf-small fits a field .* {precision} is too coarse .* build it in fp32"
    ):
        require_precision(manifest, precision)
    with pytest.raises(ValueError, match="fp32 with TF32 is too coarse"):
        require_precision(manifest, "fp32", tf32=True)


def test_networks_without_a_fit_take_every_precision(bundle: Bundle) -> None:
    """Echo and ECG, and a cardiac MR network that rebuilds nothing, may be built in any."""
    cmr = load_bundle(RELEASED / "cmr_risk").manifest
    post = cmr.postprocess.model_copy(update={"reconstruction_gate": None})
    for manifest in (bundle.manifest, cmr.model_copy(update={"postprocess": post})):
        for precision in PRECISIONS:
            require_precision(manifest, precision, tf32=True)


def test_what_is_no_graph_is_refused() -> None:
    """Bytes that are no ONNX, and a precision that is none, are told apart."""
    with pytest.raises(PlanBuildFailed, match="cannot be read as ONNX"):
        mixed_precision(b"\xffjunk", "fp16")
    unknown: Any = "int8"
    with pytest.raises(ValueError, match="expected one of fp32, fp16, bf16"):
        mixed_precision(b"", unknown)


def test_branches_are_refused_with_their_node() -> None:
    """A graph within a node is outside what is decided here; the node is named."""
    inner = helper.make_graph(
        [_node("Relu", "a", "z")], "inner", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    branch = helper.make_node("If", ["flag"], ["b"], name="choice", then_branch=inner, else_branch=inner)
    model = _model([PRODUCT_1, branch, PRODUCT_2], {**CONSTANTS, "flag": np.ones((), bool)})
    with pytest.raises(PlanBuildFailed, match="choice") as caught:
        mixed_precision(model.SerializeToString(), "fp16")
    assert [(node.node, node.operator) for node in caught.value.refused] == [("choice", "If")]


def test_missing_onnx_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``onnx`` the error names what to install; FP32 works without it."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert mixed_precision(b"graph", "fp32") == b"graph"
    with pytest.raises(PlanBuildFailed, match="install the extra `tensorrt` or `rtx`"):
        mixed_precision(b"graph", "fp16")


def test_residual_stream_stays_narrow() -> None:
    """What a normalisation reads is not drawn into FP32 with it: only the normalisation is."""
    stream = _node("Add", "a0 x", "a")
    nodes = [_node("MatMul", "x w", "a0"), stream, *NORMS["divided"], PRODUCT_2]
    kept = kept_nodes(_model(nodes))
    assert {node.name for node in NORMS["divided"]} <= kept
    assert stream.name not in kept
