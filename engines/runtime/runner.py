"""What every runtime looks like: named arrays in, named arrays out, both checked against the manifest.

``onnx_runner`` and ``openvino_runner`` implement it; ``predictors`` and ``selftest`` use it.
No runtime is imported here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from engines.bundle.manifest import Manifest
from engines.errors import EngineError, InferenceError, OutOfMemory
from engines.runtime.checks import check_inputs, check_outputs

Arrays = dict[str, NDArray[Any]]

FP32, FP32_INT8 = "fp32", "fp32+int8"
TO_TOLERANCE = (FP32, FP32_INT8)
"""Precisions that are held to the tolerances of the manifest; all others pass the limits of a parity gate."""


@dataclass(frozen=True, kw_only=True)
class RuntimeIdentity:
    """Which software computes.

    Args:
        runtime: its name.
        version: of the runtime.
        precision: ``fp32``, ``fp16`` or ``bf16``, as built; ``fp32+tf32`` where TF32 was allowed, ``fp32+int8`` where products
            with weights of 8 bits may be computed in 8 bits.
        device: ``CPU``, or the GPU's name and compute capability.
        plan_sha256: digest of the compiled plan, or None where the graph is run as it is.
        fallback: one sentence why a preferred runtime does not compute, or None where it does.
    """

    runtime: str
    version: str
    precision: str
    device: str
    plan_sha256: str | None = None
    fallback: str | None = None


class Runner(Protocol):
    """One graph, loaded by one runtime on one device; used by one thread at a time (several: ``batcher``).

    Every runtime is one class behind this protocol. It must

    - be constructed from verified bytes (a ``Bundle``, or a ``Plan`` from the cache), so that nothing unverified is
      deserialised, and raise ``BundleError`` where they do not fit the graph, the library, the device or the precision;
    - compare the names, dtypes and shapes of its own bindings with the manifest (``checks.check_declared``);
    - refuse batches outside its optimisation profile by splitting them, never by padding silently;
    - return arrays of its own: device and pinned buffers are reused by the next run, so outputs are copied out after
      the stream has been synchronised, and a failed synchronisation is an ``InferenceError``;
    - state the precision that was truly built in ``identity``; reduced precision passes the limits of its parity gate;
    - map every exception of the runtime (``mapped``), out of memory to ``OutOfMemory``.

    Deriving from ``CheckedRunner`` gives the checks and the mapping.
    """

    @property
    def identity(self) -> RuntimeIdentity:
        """What computed the calling thread's last run; before its first, what is going to compute.

        A fallback may change it from one run to the next: read it after the run it belongs to, on the same thread.
        """

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph once.

        Args:
            inputs: exactly the manifest's inputs, one common batch size.

        Returns:
            Exactly the manifest's outputs, in fresh arrays.

        Raises:
            ValueError: names, dtypes or shapes of the inputs are not the manifest's, or a value is not finite.
            InferenceError: the runtime failed, or its outputs are not the manifest's, or a value is not finite.
            OutOfMemory: it failed for want of memory.
        """

    def close(self) -> None:
        """Give back the memory; the runner cannot run again."""


class CheckedRunner(ABC):
    """The checks and the mapping of errors around one runtime's own call.

    Args:
        manifest: says what goes in and out.
        identity: of the runtime.
        foreign_errors: every exception class the runtime may raise.
    """

    def __init__(
        self, manifest: Manifest, identity: RuntimeIdentity, foreign_errors: tuple[type[Exception], ...]
    ) -> None:
        self._manifest = manifest
        self._identity = identity
        self._foreign_errors = foreign_errors
        self._open = True

    @property
    def identity(self) -> RuntimeIdentity:
        return self._identity

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        if not self._open:
            msg = f"the {self._identity.runtime} runner is closed; open a new one"
            raise ValueError(msg)
        batch = check_inputs(self._manifest.inputs, inputs)
        with mapped(self._identity.runtime, self._foreign_errors, InferenceError):
            outputs = self._infer(inputs)
        check_outputs(self._manifest.outputs, outputs, batch)
        return outputs

    def close(self) -> None:
        self._open = False
        self._release()

    @abstractmethod
    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Call the runtime on checked inputs; outputs in fresh arrays."""

    @abstractmethod
    def _release(self) -> None:
        """Drop what the runtime holds."""


@contextmanager
def mapped(runtime: str, foreign: tuple[type[Exception], ...], otherwise: type[EngineError]) -> Iterator[None]:
    """Turn the exceptions of a runtime into ours: ``OutOfMemory`` where the text says so, else ``otherwise``."""
    kinds: tuple[type[Exception], ...] = (*foreign, MemoryError)
    try:
        yield
    except kinds as error:
        kind = OutOfMemory if _out_of_memory(error) else otherwise
        text = " ".join(str(error).split())[:300] or type(error).__name__
        msg = f"{runtime} failed: {text}"
        raise kind(msg) from error


_MEMORY_PHRASES = ("bad_alloc", "out of memory", "failed to allocate", "cannot allocate", "not enough memory")


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in _MEMORY_PHRASES)
