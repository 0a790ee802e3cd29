"""How much work a graph is, and how much a GPU could do: what a share of the roofline is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FLOP_PER_MAC = 2


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Dense FP16 products with tensor cores, accumulated in FP32.

    Args:
        part: of the device's name, lower case.
        tflops: 10^12 floating point operations a second, without sparsity.
        source: where it is stated; where only the sparse value is, half of it.
    """

    part: str
    tflops: float
    source: str


PEAKS = (
    Peak(part="h100 pcie", tflops=756.0, source="NVIDIA H100 datasheet, PCIe"),
    Peak(part="h100 nvl", tflops=835.5, source="NVIDIA H100 NVL datasheet, half of the sparse 1,671"),
    Peak(part="h100", tflops=989.5, source="NVIDIA H100 datasheet, SXM, half of the sparse 1,979"),
    Peak(part="h200 nvl", tflops=835.5, source="NVIDIA H200 datasheet, NVL, half of the sparse 1,671"),
    Peak(part="h200", tflops=989.5, source="NVIDIA H200 datasheet, SXM, half of the sparse 1,979"),
    Peak(part="a100", tflops=312.0, source="NVIDIA A100 datasheet"),
    Peak(part="a30", tflops=165.0, source="NVIDIA A30 datasheet"),
    Peak(part="a40", tflops=149.7, source="NVIDIA A40 datasheet"),
    Peak(part="a10", tflops=125.0, source="NVIDIA A10 datasheet"),
    Peak(part="l40s", tflops=362.0, source="NVIDIA L40S datasheet"),
    Peak(part="l40", tflops=181.0, source="NVIDIA L40 datasheet"),
    Peak(part="l4", tflops=121.0, source="NVIDIA L4 datasheet, half of the sparse 242"),
    Peak(part="t4", tflops=65.0, source="NVIDIA T4 datasheet"),
    Peak(part="rtx 3090", tflops=71.0, source="NVIDIA GA102 whitepaper, appendix A"),
)
"""The more exact name stands before the one it contains."""


def dense_fp16_peak(device: str) -> Peak | None:
    """Return the peak of a device by its name, or None where it is not known."""
    words = f"{device.lower().replace('-', ' ')} "
    return next((peak for peak in PEAKS if f"{peak.part} " in words), None)


def share_percent(macs: int | None, batch: int, milliseconds: float, peak: Peak | None) -> float | None:
    """Return what share of the peak a batch in this time comes to, or None where either is not known."""
    if macs is None or peak is None or milliseconds <= 0:
        return None
    return 100 * FLOP_PER_MAC * macs * batch / (milliseconds / 1000) / (peak.tflops * 1e12)


def macs_of(graph: bytes) -> int | None:
    """Return the multiplications of products and convolutions of one item, or None where a shape is not known.

    Elementwise work, normalisations and softmax are left out, as is usual.

    Args:
        graph: ONNX; its first axes are set to 1.
    """
    model = _at_batch_one(graph)
    sizes = _sizes(model)
    counts = [_COUNTS[node.op_type](node, sizes) for node in model.graph.node if node.op_type in _COUNTS]
    return None if None in counts else sum(count for count in counts if count is not None)


def _at_batch_one(graph: bytes) -> Any:
    import onnx

    model = onnx.load_from_string(graph)
    for value in (*model.graph.input, *model.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        if axis.HasField("dim_param"):
            axis.Clear()
            axis.dim_value = 1
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


Sizes = Mapping[str, tuple[int, ...]]


def _sizes(model: Any) -> Sizes:
    """Shapes of all tensors that are known in full."""
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        axes = value.type.tensor_type.shape.dim
        if all(axis.HasField("dim_value") for axis in axes):
            found[value.name] = tuple(axis.dim_value for axis in axes)
    return found


def _convolution(node: Any, sizes: Sizes) -> int | None:
    weight, output = sizes.get(node.input[1]), sizes.get(node.output[0])
    if weight is None or output is None:
        return None
    return math.prod(output) * math.prod(weight[1:])


def _product(node: Any, sizes: Sizes) -> int | None:
    left, output = sizes.get(node.input[0]), sizes.get(node.output[0])
    return None if left is None or output is None else math.prod(output) * left[-1]


def _gemm(node: Any, sizes: Sizes) -> int | None:
    left, output = sizes.get(node.input[0]), sizes.get(node.output[0])
    if left is None or output is None:
        return None
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * left[0 if turned else 1]


def _einsum(node: Any, sizes: Sizes) -> int | None:
    shapes = [sizes.get(name) for name in node.input]
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    letters = equation.replace(" ", "").split("->")[0].split(",")
    if None in shapes or "." in equation:
        return None
    axes = {
        letter: size
        for term, shape in zip(letters, shapes, strict=True)
        if shape
        for letter, size in zip(term, shape, strict=True)
    }
    return math.prod(axes.values())


_COUNTS: Mapping[str, Callable[[Any, Sizes], int | None]] = {
    "Conv": _convolution,
    "MatMul": _product,
    "Gemm": _gemm,
    "Einsum": _einsum,
}
