"""The released network in torch, eager or compiled, with or without CUDA graph, as a runner like the one that serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.reader import Bundle
from engines.runtime.runner import Arrays, CheckedRunner, RuntimeIdentity
from tests.benchmarks.on_gpu.torch_networks import torch_network

Named = Mapping[str, NDArray[Any]]

AUTOCAST = {"fp16": "float16", "bf16": "bfloat16"}
_WARM_UP = 3


class TorchRunner(CheckedRunner):
    """The released network in torch; copies go through pinned memory and are waited for once, as the plan's do.

    Args:
        bundle: verified.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32`` without TF32, or autocast.
        compiled: by ``torch.compile``, for each batch size.
        graph: captured for each batch size.
    """

    def __init__(self, bundle: Bundle, *, device: str, precision: str, compiled: bool, graph: bool) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(1)  # as the other runtimes of the CPU
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self._torch = torch
        self._device = torch.device(device)
        self._graph = graph
        self._half = AUTOCAST.get(precision)
        network = torch_network(bundle).to(self._device)
        self._network = _compiled(torch, network) if compiled else network
        self._batches: dict[int, _TorchBatch] = {}
        name = "CPU" if device == "cpu" else torch.cuda.get_device_name(self._device)
        identity = RuntimeIdentity(
            runtime="torch.compile" if compiled else "torch",
            version=torch.__version__,
            precision=precision,
            device=name,
        )
        super().__init__(bundle.manifest, identity, (RuntimeError, ValueError, TypeError))

    def gpu_ms(self, inputs: Named) -> float | None:
        """Between two events around the network."""
        if self._device.type == "cpu":
            return None
        torch = self._torch
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        batch = self._batch(inputs)
        first.record()
        batch.compute()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))

    def _infer(self, inputs: Named) -> Arrays:
        batch = self._batch(inputs)
        batch.fill(inputs)
        outputs = batch.compute()
        return batch.emptied(outputs)

    def _batch(self, inputs: Named) -> _TorchBatch:
        rows = len(next(iter(inputs.values())))
        if rows not in self._batches:
            self._batches[rows] = _TorchBatch(self._torch, self._device, self._forward, self._manifest, rows)
            self._batches[rows].fill(inputs)
            if self._graph:
                self._batches[rows].capture()
        return self._batches[rows]

    def _forward(self, *arrays: Any) -> dict[str, Any]:
        torch = self._torch
        half = getattr(torch, self._half) if self._half else torch.float16
        with torch.no_grad(), torch.autocast(self._device.type, half, enabled=bool(self._half), cache_enabled=False):
            outputs = self._network(*arrays)
        return {tensor.name: outputs[tensor.name].float() for tensor in self._manifest.outputs}

    def _release(self) -> None:
        self._batches.clear()
        self._network = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()


class _TorchBatch:
    """Memory and work of one batch size."""

    def __init__(
        self, torch: Any, device: Any, forward: Callable[..., dict[str, Any]], manifest: Any, rows: int
    ) -> None:
        self._torch, self._device, self._forward = torch, device, forward
        self._replay: tuple[Any, dict[str, Any]] | None = None

        def buffers(tensors: Any, *, pinned: bool) -> dict[str, Any]:
            on = {"pin_memory": True} if pinned and device.type == "cuda" else {"device": "cpu" if pinned else device}
            return {
                one.name: torch.zeros((rows, *one.shape[1:]), dtype=getattr(torch, one.dtype), **on) for one in tensors
            }

        self._host_in, self._host_out = (
            buffers(manifest.inputs, pinned=True),
            buffers(manifest.outputs, pinned=True),
        )
        self._inputs = buffers(manifest.inputs, pinned=False)

    def fill(self, inputs: Named) -> None:
        """Put the copies to the device on the stream."""
        for name, tensor in self._inputs.items():
            self._host_in[name].copy_(self._torch.from_numpy(np.ascontiguousarray(inputs[name])))
            tensor.copy_(self._host_in[name], non_blocking=True)

    def compute(self) -> dict[str, Any]:
        """Put the network on the stream."""
        if self._replay is None:
            return self._forward(*self._inputs.values())
        graph, outputs = self._replay
        graph.replay()
        return outputs

    def emptied(self, outputs: Mapping[str, Any]) -> Arrays:
        """Copy the outputs out, wait once, and return arrays of their own."""
        for name, tensor in outputs.items():
            self._host_out[name].copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            self._torch.cuda.current_stream().synchronize()
        return {name: tensor.numpy().copy() for name, tensor in self._host_out.items()}

    def capture(self) -> None:
        """Capture the network once; launched from then on."""
        torch = self._torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._forward(*self._inputs.values())
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._forward(*self._inputs.values())
        self._replay = (graph, outputs)


def _compiled(torch: Any, network: Any) -> Any:
    """Compile for each shape by itself; an error instead of falling back to eager without a word."""
    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 1024)
    return torch.compile(network, fullgraph=True, dynamic=False)
