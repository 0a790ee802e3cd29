"""Does an engine fit into the GPU's memory? Asked before it is loaded, and again when it has stated what it needs.

Two questions, because only a loaded engine states the memory it computes in. Called by ``tensorrt_runner``, and by
whoever wants to know before a plan is opened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.bundle.manifest import Manifest
from engines.errors import DeviceUnavailable

RESERVE_BYTES = 128 << 20
"""Left free: the driver loads kernels and keeps captured graphs there, and states neither."""

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Device memory of one engine, in bytes.

    Args:
        engine: name, for the message.
        batch: largest batch it is loaded for.
        plan: size of the plan, which is mostly weights.
        buffers: inputs and outputs at the largest batch.
        activations: what it computes in, as the engine states it; 0 before it is loaded.
    """

    engine: str
    batch: int
    plan: int
    buffers: int
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.plan + self.buffers + self.activations

    def __str__(self) -> str:
        parts = {"plan": self.plan, "activations": self.activations, "buffers": self.buffers}
        stated = " + ".join(f"{name} {_mib(size)}" for name, size in parts.items() if size)
        return f"{self.engine} needs {_mib(self.total)} of GPU memory at batch {self.batch} ({stated})"


def buffer_bytes(manifest: Manifest, batch: int) -> int:
    """Return the size of all inputs and outputs of a batch."""
    tensors = (*manifest.inputs, *manifest.outputs)
    return sum(batch * int(np.prod(tensor.shape[1:])) * np.dtype(tensor.dtype).itemsize for tensor in tensors)


def require_memory(need: MemoryNeed, *, free_bytes: int, limit_bytes: int | None, held_bytes: int = 0) -> None:
    """Check that an engine fits.

    Args:
        need: of the engine.
        free_bytes: what the device has left now.
        limit_bytes: the site's limit for this engine, or None.
        held_bytes: what of the need is already allocated and so not free any more.

    Raises:
        DeviceUnavailable: it does not; the message has the numbers and says what to do.
    """
    missing = need.total - held_bytes + RESERVE_BYTES - free_bytes
    if limit_bytes is not None and need.total > limit_bytes:
        msg = f"{need}; the limit for it is {_mib(limit_bytes)}: raise the limit, {_ADVICE}"
        raise DeviceUnavailable(msg)
    if missing > 0:
        msg = (
            f"{need}, {_mib(held_bytes)} of it held, and {_mib(RESERVE_BYTES)} stay in reserve; {_mib(free_bytes)} are"
            f" free, {_mib(missing)} too few: free memory on the GPU, {_ADVICE}"
        )
        raise DeviceUnavailable(msg)


_ADVICE = "build the plan with a smaller largest batch (`--batch 1 1 4`), or serve this engine on the CPU"


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"
