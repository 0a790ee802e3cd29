"""Weights of a released network in 8 bits: rounded in the network first, then stored so in its graph without further loss.

The rounded network IS the released one: calibration, golden vectors and metrics are made with it, so nothing that is
promised of the bundle is promised of weights that are not in it. A runtime may multiply in single precision or, as OpenVINO
does, in 8 bits; either way the golden vectors hold it.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

_LEVELS = 127
_LEAST_VALUES = 16_384
"""Smaller weights stay as they are: they take little room and some, as heads, are sensitive."""


class UnroundedWeightsError(RuntimeError):
    """A graph holds large weights that do not lie on the grid of 8 bits."""


def round_to_int8(network: nn.Module) -> nn.Module:
    """Round the large weights of all linear layers in place, to 255 levels for each output; return the network."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() >= _LEAST_VALUES:
            module.weight.data.copy_(_rounded(module.weight.data))
    return network


def with_int8_weights(graph: bytes) -> bytes:
    """Return the graph with the large weights of its products as int8 and a scale for each output.

    Raises:
        UnroundedWeightsError: a weight does not come back to 2e-7 of its largest: round the network before its export.
    """
    model = onnx.load_from_string(graph)
    factors = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    large = [each for each in model.graph.initializer if each.name in factors and np.prod(each.dims) >= _LEAST_VALUES]
    for tensor in large:
        _store(model, tensor)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _rounded(weight_OI: Tensor) -> Tensor:
    scale = weight_OI.abs().amax(dim=1, keepdim=True) / _LEVELS
    scale[scale == 0] = 1.0
    return (weight_OI / scale).round() * scale


def _store(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    """Replace a weight [I, O] by its int8 form, scales [O] and the node that multiplies them."""
    name, levels, scales = tensor.name, *_split(numpy_helper.to_array(tensor), tensor.name)
    model.graph.initializer.remove(tensor)
    model.graph.initializer.extend(
        [numpy_helper.from_array(levels, f"{name}_int8"), numpy_helper.from_array(scales, f"{name}_scale")]
    )
    node = onnx.helper.make_node(
        "DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], name=f"{name}_restored", axis=1
    )
    model.graph.node.insert(0, node)


def _split(weight_IO: NDArray[np.float32], name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    largest = np.abs(weight_IO).max(axis=0)
    scales = np.where(largest > 0, largest / np.float32(_LEVELS), 1).astype(np.float32)
    levels = np.rint(weight_IO / scales).astype(np.int8)
    if np.abs(levels * scales - weight_IO).max() > 2e-7 * largest.max():
        raise UnroundedWeightsError(f"{name} does not lie on 255 levels; expected a network rounded before its export")
    return levels, scales
