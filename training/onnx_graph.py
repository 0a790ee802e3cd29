"""A trained network as an ONNX graph: fixed opset, only the batch axis free, checked against torch.

Called by ``training.export``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.bundle.parts import TensorSpec

OPSET = 18
PARITY_TOLERANCE = 1e-4
LEAST_COSINE = 0.9999
"""Of the embedding of an ECG and of projections, between graph and network."""


class ParityError(RuntimeError):
    """The graph and the network it was made from disagree."""


class NamedOutputs(nn.Module):
    """The network as the graph shows it: the released outputs only, in the order of the manifest."""

    def __init__(self, network: nn.Module, output_names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.output_names = tuple(output_names)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, each [B, width]."""
        outputs = self.network(x)
        return tuple(outputs[name] for name in self.output_names)


def export_graph(network: nn.Module, input_spec: TensorSpec, output_names: Sequence[str]) -> bytes:
    """Return the ONNX graph of a network in evaluation mode, without traces of where it was made.

    Args:
        network: returns its outputs by name.
        input_spec: of the one input.
        output_names: the outputs that are released, in order.
    """
    return exported(NamedOutputs(network, output_names), [input_spec], output_names)


def exported(view: nn.Module, inputs: Sequence[TensorSpec], output_names: Sequence[str]) -> bytes:
    """Return the ONNX graph of a network that takes several inputs in order and returns a tuple of outputs.

    Args:
        view: the network.
        inputs: of the graph; one batch for all.
        output_names: of the tuple.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every optional package that is not installed
    # Two, because the exporter takes a batch of one for a constant.
    examples = tuple(torch.zeros((2, *spec.shape[1:]), dtype=getattr(torch, spec.dtype)) for spec in inputs)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        view.eval(),
        examples,
        dynamo=True,
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        opset_version=OPSET,
        input_names=[spec.name for spec in inputs],
        output_names=list(output_names),
        verbose=False,
    )
    assert program is not None
    model = _without_traces(program.model_proto)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def run_graph(graph: bytes, name: str, inputs: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    """Return the named outputs of ONNX Runtime on one thread."""
    return run_named(graph, {name: inputs})


def run_named(graph: bytes, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
    """Return the named outputs of a graph with several inputs, as ``run_graph``."""
    session = opened_graph(graph, 1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def opened_graph(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def check_parity(
    graph: bytes,
    network: nn.Module,
    name: str,
    inputs: NDArray[np.generic],
    *,
    tolerance: float = PARITY_TOLERANCE,
) -> float:
    """Return the largest absolute difference of graph and network over all outputs, in the outputs' units.

    Raises:
        ParityError: when it exceeds ``tolerance``.
    """
    expected = network.eval()(torch.from_numpy(np.ascontiguousarray(inputs)))
    found = run_graph(graph, name, inputs)
    # Not ``max`` of Python, which loses a NaN that is not the first.
    worst = float(np.max([np.abs(values - expected[output].numpy()).max() for output, values in found.items()]))
    if not worst <= tolerance:
        raise ParityError(f"graph and network differ by {worst:.2e}; expected at most {tolerance:.0e}")
    return worst


@torch.inference_mode()
def check_direction(graph: bytes, network: nn.Module, name: str, inputs: NDArray[np.generic]) -> float:
    """Return the least cosine between the embeddings of graph and network, over some inputs.

    Raises:
        ParityError: it does not exceed ``LEAST_COSINE``.
    """
    expected = network.eval()(torch.from_numpy(np.ascontiguousarray(inputs)))["embedding"].double()
    found = torch.from_numpy(run_graph(graph, name, inputs)["embedding"]).double()
    return require_direction(expected, found, "embeddings")


def require_direction(expected: Tensor, found: Tensor, what: str) -> float:
    """Return the least cosine between rows of network and graph.

    Raises:
        ParityError: it does not exceed ``LEAST_COSINE``.
    """
    least = float(torch.nn.functional.cosine_similarity(expected.double(), found.double(), dim=1).min())
    if not least > LEAST_COSINE:
        raise ParityError(f"{what} of graph and network have a cosine of {least:.6f}; expected above {LEAST_COSINE}")
    return least


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what the exporter notes of source files and their folders; it would also make equal graphs differ."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return model
