"""ONNX Runtime on the GPU. It falls back to the CPU without a word, so where its nodes ran is looked up."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.reader import Bundle
from engines.errors import BundleError, DeviceUnavailable
from engines.runtime.onnx_runner import onnxruntime_errors
from engines.runtime.runner import Arrays, CheckedRunner, RuntimeIdentity

Named = Mapping[str, NDArray[Any]]

CUDA_PROVIDER = "CUDAExecutionProvider"
_HEAVY = frozenset({"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Einsum"})


class OnnxCudaRunner(CheckedRunner):
    """ONNX Runtime on the GPU, TF32 off; refused where a product or a convolution is computed by the CPU.

    Args:
        bundle: verified.
        graph: captured for each batch size.

    Raises:
        DeviceUnavailable: the provider is not there, or the session left it out.
        BundleError: heavy nodes run on the CPU.
    """

    def __init__(self, bundle: Bundle, *, graph: bool) -> None:
        import onnxruntime

        self._onnxruntime = onnxruntime
        self._graph = graph
        self._bound: dict[int, Any] = {}
        require_no_heavy_cpu_node(placed_nodes(onnxruntime, bundle))
        self._session = _cuda_session(onnxruntime, bundle, onnxruntime.SessionOptions(), graph=graph)
        identity = RuntimeIdentity(
            runtime="onnxruntime-cuda", version=onnxruntime.__version__, precision="fp32", device=CUDA_PROVIDER
        )
        super().__init__(bundle.manifest, identity, onnxruntime_errors())

    def gpu_ms(self, inputs: Named) -> float | None:
        """Not known: the runtime has its own stream."""

    def _infer(self, inputs: Named) -> Arrays:
        names = [tensor.name for tensor in self._manifest.outputs]
        if not self._graph:
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        rows = len(next(iter(inputs.values())))
        binding, values = self._bound.get(rows) or self._bind(inputs, rows)
        for name, value in values.items():
            value.update_inplace(np.ascontiguousarray(inputs[name]))
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(rows))
        self._session.run_with_iobinding(binding, options)
        return dict(zip(names, (np.array(value) for value in binding.copy_outputs_to_cpu()), strict=True))

    def _bind(self, inputs: Named, rows: int) -> Any:
        """Fix the addresses, which a captured graph keeps."""
        make = self._onnxruntime.OrtValue
        binding = self._session.io_binding()
        values = {name: make.ortvalue_from_numpy(np.array(array), "cuda", 0) for name, array in inputs.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for tensor in self._manifest.outputs:
            empty = make.ortvalue_from_shape_and_type([rows, *tensor.shape[1:]], np.float32, "cuda", 0)
            binding.bind_ortvalue_output(tensor.name, empty)
        self._bound[rows] = (binding, values)
        return self._bound[rows]

    def _release(self) -> None:
        self._bound.clear()
        self._session = None


def _cuda_session(onnxruntime: Any, bundle: Bundle, options: Any, *, graph: bool) -> Any:
    settings = {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1" if graph else "0"}
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(bundle.graph(), options, providers=[(CUDA_PROVIDER, settings)])
    if session.get_providers()[:1] != [CUDA_PROVIDER]:
        msg = f"ONNX Runtime took {session.get_providers()} where {CUDA_PROVIDER} was asked for"
        raise DeviceUnavailable(msg)
    return session


def placed_nodes(onnxruntime: Any, bundle: Bundle) -> Counter[tuple[str, str]]:
    """Run once with the profiler, and return how many nodes of each kind each provider ran."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _cuda_session(onnxruntime, bundle, options, graph=False)
        zeros = {one.name: np.zeros((1, *one.shape[1:]), one.dtype) for one in bundle.manifest.inputs}
        session.run(None, zeros)
        return placed(json.loads(Path(session.end_profiling()).read_text()))


def placed(events: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """Count (provider, operator) in the events of ONNX Runtime's profiler."""
    arguments = [event.get("args", {}) for event in events if event.get("cat") == "Node"]
    return Counter((one["provider"], one.get("op_name", "")) for one in arguments if one.get("provider"))


def require_no_heavy_cpu_node(nodes: Counter[tuple[str, str]]) -> None:
    """Refuse what ONNX Runtime has put on the CPU without a word.

    Raises:
        BundleError: a product or a convolution is computed there, or nothing is computed on the GPU.
    """
    elsewhere = {operator: count for (provider, operator), count in nodes.items() if provider != CUDA_PROVIDER}
    heavy = {operator: count for operator, count in elsewhere.items() if operator in _HEAVY}
    if heavy or not any(provider == CUDA_PROVIDER for provider, _operator in nodes):
        msg = f"ONNX Runtime computes on the CPU without a word: {heavy or elsewhere}"
        raise BundleError(msg)
