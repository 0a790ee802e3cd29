"""OpenVINO on the CPU. Imported everywhere, needs ``openvino`` only when a runner is made.

OpenVINO reads the ONNX graph directly. It is faster than ONNX Runtime on some graphs and silently wrong on others, so
it serves a bundle only where the golden vectors agree (``engines.selftest``). Products whose weights the graph stores in 8
bits are computed in 8 bits, every ``_GROUP`` inputs with a scale of their own; everything else in FP32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.reader import Bundle
from engines.errors import BundleError
from engines.runtime.checks import Declared, check_declared
from engines.runtime.runner import FP32, FP32_INT8, Arrays, CheckedRunner, RuntimeIdentity, mapped

_EIGHT_BITS = ("i8", "u8")
_GROUP, _GROUP_PROPERTY = 64, "DYNAMIC_QUANTIZATION_GROUP_SIZE"


class OpenVinoRunner(CheckedRunner):
    """Runs a bundle's graph with OpenVINO on the CPU, in FP32 but for products with weights of 8 bits.

    Args:
        bundle: verified.
        threads: of one run.

    Raises:
        BundleError: OpenVINO is not installed or cannot load the graph.
        BundleCorrupt: the graph contradicts the manifest.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        try:
            import openvino
        except ImportError as error:
            msg = f"OpenVINO cannot be imported ({error}); install the extra `serve`"
            raise BundleError(msg) from error
        foreign = openvino_errors()
        with mapped("OpenVINO", foreign, BundleError):
            model = compiled(openvino, bundle.graph(), threads)
            self._request = model.create_infer_request()
            inputs, outputs = _declared(model.inputs), _declared(model.outputs)
            precision = FP32_INT8 if int(model.get_property(_GROUP_PROPERTY)) else FP32
        check_declared(bundle.manifest, inputs, outputs)
        identity = RuntimeIdentity(
            runtime="openvino", version=openvino.get_version(), precision=precision, device="CPU"
        )
        super().__init__(bundle.manifest, identity, foreign)

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        contiguous = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        # Shared outputs would be overwritten by the next run.
        results = self._request.infer(contiguous, share_inputs=False, share_outputs=False)
        return {tensor.name: results[tensor.name] for tensor in self._manifest.outputs}

    def _release(self) -> None:
        self._request = None


def openvino_errors() -> tuple[type[Exception], ...]:
    """Every exception class OpenVINO raises: its own and the built-in ones pybind11 translates to."""
    from openvino import _pyopenvino as binding

    own = [kind for kind in vars(binding).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, OSError)


def compiled(openvino: Any, graph: bytes, threads: int, precision: str = "f32") -> Any:
    """Compile a graph as the runner does.

    Args:
        openvino: the module.
        graph: ONNX.
        threads: of one run.
        precision: OpenVINO's name; the runner serves f32 alone, the benchmark compares others.

    Raises:
        RuntimeError: it would compute in another precision.
    """
    core = openvino.Core()
    graph_model = core.read_model(graph)
    settings = {
        _GROUP_PROPERTY: _GROUP if _has_weights_of_8_bits(graph_model) else 0,
        "INFERENCE_NUM_THREADS": threads,
        # Without the hint a CPU with bf16 computes in bf16 and says nothing.
        "INFERENCE_PRECISION_HINT": precision,
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = core.compile_model(graph_model, "CPU", settings)
    found = model.get_property("INFERENCE_PRECISION_HINT")
    if found != getattr(openvino.Type, precision):
        msg = f"computes in {found}, expected {precision}"
        raise RuntimeError(msg)
    return model


def _has_weights_of_8_bits(model: Any) -> bool:
    """Whether a constant of the graph is stored in 8 bits."""
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return any(node.get_element_type().get_type_name() in _EIGHT_BITS for node in constants)


def _declared(ports: Iterable[Any]) -> list[Declared]:
    return [(_name(port), port.get_element_type().to_dtype().name, _shape(port)) for port in ports]


def _name(port: Any) -> str:
    return str(port.get_any_name())


def _shape(port: Any) -> tuple[int, ...]:
    return tuple(-1 if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
