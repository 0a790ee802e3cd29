"""ONNX Runtime on the CPU. Imported everywhere, needs ``onnxruntime`` only when a runner is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.reader import Bundle
from engines.errors import BundleError
from engines.runtime.checks import Declared, check_declared
from engines.runtime.runner import Arrays, CheckedRunner, RuntimeIdentity, mapped

_PROVIDER = "CPUExecutionProvider"
_DTYPES = {"float": "float32", "double": "float64"}


class OnnxRunner(CheckedRunner):
    """Runs a bundle's graph with ONNX Runtime, fp32 on the CPU.

    Args:
        bundle: verified.
        threads: of one run.

    Raises:
        BundleError: ONNX Runtime is not installed or cannot load the graph.
        BundleCorrupt: the graph contradicts the manifest.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            msg = f"ONNX Runtime cannot be imported ({error}); install the extra `serve`"
            raise BundleError(msg) from error
        foreign = onnxruntime_errors()
        with mapped("ONNX Runtime", foreign, BundleError):
            self._session = _session(onnxruntime, bundle.graph(), threads)
        check_declared(bundle.manifest, _declared(self._session.get_inputs()), _declared(self._session.get_outputs()))
        identity = RuntimeIdentity(
            runtime="onnxruntime", version=onnxruntime.__version__, precision="fp32", device="CPU"
        )
        super().__init__(bundle.manifest, identity, foreign)

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        names = [tensor.name for tensor in self._manifest.outputs]
        contiguous = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        return dict(zip(names, self._session.run(names, contiguous), strict=True))

    def _release(self) -> None:
        self._session = None


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Every exception class ONNX Runtime raises: its own (direct children of Exception) and the built-in ones."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _session(onnxruntime: Any, graph: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin take the core from the next study.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(graph, options, providers=[_PROVIDER])
    if session.get_providers() != [_PROVIDER]:
        msg = f"providers are {session.get_providers()}, expected {_PROVIDER} alone"
        raise RuntimeError(msg)
    return session


def _declared(nodes: Iterable[Any]) -> list[Declared]:
    return [(node.name, _dtype(node.type), tuple(map(_size, node.shape))) for node in nodes]


def _dtype(stated: str) -> str:
    element = stated.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(element, element)


def _size(stated: int | str | None) -> int:
    return stated if isinstance(stated, int) else -1
