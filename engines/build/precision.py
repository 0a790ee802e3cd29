"""Decides, node by node, what of an ONNX graph is computed in fewer bits than FP32.

In FP16 or BF16: matrix products, convolutions, and the elementwise nodes between them. In FP32: everything before the
first and after the last of those, normalisations (also where they are written out as means and square roots), softmax,
reductions, and what grows like an exponential. The decision stands in the graph, as types and casts, so that a strongly
typed builder keeps to it. ``onnx`` is imported when a graph is changed. Called by ``engines.build.compile``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from engines.build.plan import Precision
from engines.bundle.calibration import CmrPostprocess
from engines.bundle.manifest import ManifestDraft
from engines.errors import PlanBuildFailed, RefusedNode

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
_NORMALISATIONS = frozenset(
    {
        "LayerNormalization",
        "RMSNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "BatchNormalization",
        "MeanVarianceNormalization",
        "LpNormalization",
    }
)
_SOFTMAX = frozenset({"Softmax", "LogSoftmax", "Hardmax", "Attention"})
_STEEP = frozenset({"Exp", "Log", "Sin", "Cos", "Reciprocal", "Sqrt", "Pow", "CumSum"})
"""Overflow, or lose all digits, at arguments that are small in FP32."""
_REDUCTIONS = ("Reduce", "GlobalAverage", "GlobalLp")
_SPREAD = frozenset({"Add", "Mul", "Pow", "Div", "Abs", "Sub", "Max", "Clip", "Cast"})
"""Between the mean and the square root of a normalisation that is written out."""
_SCALED = frozenset({"Div", "Mul", "Add"})
"""After its square root: division, scale and shift."""
_FP16_MAX = float(np.finfo(np.float16).max)


def require_precision(manifest: ManifestDraft, precision: Precision, *, tf32: bool = False) -> None:
    """Refuse a precision in which a bundle's numbers would not hold.

    A network that fits a neural field to each image takes gradients of the reconstruction inside the graph; they lie
    below what TF32, FP16 and BF16 resolve.

    Raises:
        ValueError: the network fits a field, and something other than FP32 without TF32 is asked for.
    """
    post = manifest.postprocess
    fits = isinstance(post, CmrPostprocess) and post.reconstruction_gate is not None
    if fits and (precision != "fp32" or tf32):
        asked = f"{precision}{' with TF32' if tf32 else ''}"
        msg = f"{manifest.name} fits a field to each image: {asked} is too coarse for its gradients; build it in fp32"
        raise ValueError(msg)


def mixed_precision(graph: bytes, precision: Precision, keep_fp32: Collection[str] = ()) -> bytes:
    """Return a graph whose inputs and outputs are as before, and whose products are computed in fewer bits.

    Args:
        graph: ONNX in FP32, without external data.
        precision: ``fp32`` returns the graph as it is.
        keep_fp32: names of further nodes to keep in FP32.

    Raises:
        PlanBuildFailed: the bytes are no graph, ``onnx`` is not installed, or the graph has branches or loops.
        ValueError: the precision is none of ``PRECISIONS``, or no node has one of the names.
    """
    if precision not in PRECISIONS:
        msg = f"precision {precision!r}; expected one of {', '.join(PRECISIONS)}"
        raise ValueError(msg)
    if precision == "fp32":
        return graph
    model = _parsed(graph)
    _require_plain(model)
    _name_nodes(model)
    kept = kept_nodes(model, keep_fp32)
    _split_shared(model, kept)
    weights = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    halved = _halved(model, kept)
    if precision == "bf16":
        _to_bfloat16(halved, weights)
    return bytes(halved.SerializeToString())


def kept_nodes(model: Any, keep_fp32: Collection[str] = ()) -> set[str]:
    """Return the names of the nodes that stay in FP32.

    Args:
        model: ``onnx.ModelProto``, every node with a name of its own.
        keep_fp32: names of further nodes.

    Raises:
        ValueError: no node has one of these names.
    """
    flow = _Flow.of(model)
    names = {node.name for node in flow.nodes}
    unknown = sorted(set(keep_fp32) - names)
    if unknown:
        msg = f"no node is named {', '.join(unknown)}; expected names of nodes of this graph"
        raise ValueError(msg)
    between = flow.between(lambda node: node.op_type in _PRODUCTS)
    wide = {node.name for node in flow.nodes if _stays_wide(node) or _too_large(node, flow.constants)}
    return (names - between) | wide | _written_out(flow) | set(keep_fp32)


def _stays_wide(node: Any) -> bool:
    return node.op_type in _NORMALISATIONS | _SOFTMAX | _STEEP or node.op_type.startswith(_REDUCTIONS)


def _too_large(node: Any, constants: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a weight lies outside FP16, where a converter would clamp it."""
    floats = (constants[name] for name in node.input if name in constants and constants[name].dtype == np.float32)
    return any(array.size > 0 and float(np.abs(array).max()) > _FP16_MAX for array in floats)


@dataclass(frozen=True)
class _Flow:
    """Nodes in the order of their data, with who makes and who takes each tensor."""

    nodes: list[Any]
    maker: dict[str, Any]
    takers: dict[str, list[Any]]
    constants: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, model: Any) -> _Flow:
        from onnx import numpy_helper

        nodes = list(model.graph.node)
        takers: dict[str, list[Any]] = {}
        for node in nodes:
            for name in node.input:
                takers.setdefault(name, []).append(node)
        maker = {name: node for node in nodes for name in node.output}
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        return cls(nodes=nodes, maker=maker, takers=takers, constants=constants)

    def before(self, node: Any) -> list[Any]:
        return [self.maker[name] for name in node.input if name in self.maker]

    def after(self, node: Any) -> list[Any]:
        return [taker for name in node.output for taker in self.takers.get(name, [])]

    def between(self, chosen: Callable[[Any], bool]) -> set[str]:
        """Names of the chosen nodes, and of those that have one both upstream and downstream."""
        starts = [node for node in self.nodes if chosen(node)]
        return _reached(starts, self.after) & _reached(starts, self.before)


def _reached(starts: Iterable[Any], step: Callable[[Any], Iterable[Any]]) -> set[str]:
    waiting, seen = list(starts), set()
    while waiting:
        node = waiting.pop()
        if node.name not in seen:
            seen.add(node.name)
            waiting += step(node)
    return seen


def _written_out(flow: _Flow) -> set[str]:
    """Names of the nodes of every normalisation that is written out around a square root."""
    roots = [node for node in flow.nodes if node.op_type == "Sqrt" or _is_root(node, flow)]
    return {name for root in roots for name in (*_statistics(root, flow), *_scaling(root, flow))}


def _is_root(node: Any, flow: _Flow) -> bool:
    exponent = flow.constants.get(node.input[1]) if node.op_type == "Pow" else None
    return exponent is not None and exponent.size == 1 and abs(float(exponent.reshape(-1)[0])) == 0.5


def _statistics(root: Any, flow: _Flow) -> set[str]:
    """From the square root up to the difference from the mean, or to what is averaged."""

    def up(node: Any) -> list[Any]:
        if node.op_type == "Sub":
            return [made for made in flow.before(node) if made.op_type.startswith("Reduce")]
        if node.op_type.startswith("Reduce"):
            return [made for made in flow.before(node) if made.op_type in {"Pow", "Mul", "Abs"} and _of_one(made, flow)]
        return [made for made in flow.before(node) if made.op_type in _SPREAD or made.op_type.startswith("Reduce")]

    return _reached([root], up)


def _of_one(node: Any, flow: _Flow) -> bool:
    """Whether a node has one operand that is not a constant: ``x * x`` or ``x ** 2``."""
    return len({name for name in node.input if name not in flow.constants}) == 1


def _scaling(root: Any, flow: _Flow) -> set[str]:
    """From the square root through division, scale and shift."""

    def down(node: Any) -> list[Any]:
        if node is root or node.op_type == "Reciprocal":
            return [taker for taker in flow.after(node) if taker.op_type in {"Div", "Mul", "Reciprocal"}]
        return [taker for taker in flow.after(node) if taker.op_type in _SCALED and _of_one(taker, flow)]

    return _reached([root], down)


def _parsed(graph: bytes) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        msg = f"onnx cannot be imported ({error}); install the extra `tensorrt` or `rtx`"
        raise PlanBuildFailed(msg) from error
    try:
        return onnx.load_from_string(graph)
    except DecodeError as error:
        msg = f"the graph cannot be read as ONNX ({error}); export the bundle again"
        raise PlanBuildFailed(msg) from error


def _require_plain(model: Any) -> None:
    inner = [node for node in model.graph.node if any(attribute.HasField("g") for attribute in node.attribute)]
    if inner:
        refused = [RefusedNode(node=node.name, operator=node.op_type, reason="a graph inside it") for node in inner]
        msg = f"precision is decided in plain graphs only: {'; '.join(map(str, refused))}; build it in fp32"
        raise PlanBuildFailed(msg, refused)


def _name_nodes(model: Any) -> None:
    """Give every node a name of its own; constants become initializers, whose values are kept in full."""
    constants = [node for node in model.graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        model.graph.node.remove(node)
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_{index}_own"
        seen.add(node.name)


def _split_shared(model: Any, kept: Collection[str]) -> None:
    """Give the nodes that stay wide a copy of the weights they share with others, so that it is not rounded."""
    narrow = {name for node in model.graph.node if node.name not in kept for name in node.input}
    shared = {tensor.name: tensor for tensor in list(model.graph.initializer) if tensor.name in narrow}
    copied: set[str] = set()
    for node in model.graph.node:
        if node.name not in kept:
            continue
        for position, name in enumerate(node.input):
            if name in shared:
                node.input[position] = f"{name}_fp32"
                copied.add(name)
    for name in sorted(copied):
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(shared[name])
        tensor.name = f"{name}_fp32"


def _halved(model: Any, kept: Collection[str]) -> Any:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    before = {node.name for node in model.graph.node}
    halved = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=DEFAULT_OP_BLOCK_LIST, node_block_list=sorted(kept)
    )
    _join_casts(halved, before)
    _sort(halved)
    del halved.graph.value_info[:]  # stated for the types before; parsers infer them anew
    return halved


def _join_casts(model: Any, before: Collection[str]) -> None:
    """Let no value go through FP16 on its way from one FP32 node to another, as the converter makes it."""
    from onnx import TensorProto

    added = [node for node in model.graph.node if node.op_type == "Cast" and node.name not in before]
    down = {node.output[0]: node for node in added if node.attribute[0].i == TensorProto.FLOAT16}
    for node in added:
        if node.attribute[0].i == TensorProto.FLOAT and node.input[0] in down:
            node.input[0] = down[node.input[0]].input[0]
    used = {name for node in model.graph.node for name in node.input} | {out.name for out in model.graph.output}
    for node in down.values():
        if node.output[0] not in used:
            model.graph.node.remove(node)


def _sort(model: Any) -> None:
    maker = {name: position for position, node in enumerate(model.graph.node) for name in node.output}
    needs = {
        position: {maker[name] for name in node.input if name in maker}
        for position, node in enumerate(model.graph.node)
    }
    ordered = [model.graph.node[position] for position in TopologicalSorter(needs).static_order()]
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _to_bfloat16(model: Any, weights: Mapping[str, bytes]) -> None:
    """Replace FP16 by BF16 everywhere; the weights are rounded once, from FP32."""
    from onnx import TensorProto, numpy_helper

    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            exact = numpy_helper.to_array(TensorProto.FromString(weights[tensor.name]))
            tensor.CopyFrom(TensorProto(name=tensor.name, dims=tensor.dims, data_type=TensorProto.BFLOAT16))
            tensor.raw_data = _bfloat16_bits(exact).tobytes()
    for attribute in _targets_of_casts(model):
        if attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.BFLOAT16


def _targets_of_casts(model: Any) -> Iterator[Any]:
    casts = (node for node in model.graph.node if node.op_type == "Cast")
    return (attribute for node in casts for attribute in node.attribute if attribute.name == "to")


def _bfloat16_bits(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
