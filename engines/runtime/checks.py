"""Names, dtypes, shapes and finite values of what goes into and comes out of a graph.

The runtimes are lax here (one of them accepts a wrong shape without a word), so nothing is left to them.
Used by ``runner.CheckedRunner`` and by each runner when it loads its graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.manifest import Manifest
from engines.bundle.parts import TensorSpec
from engines.errors import BundleCorrupt, InferenceError

Declared = tuple[str, str, tuple[int, ...]]
"""Name, numpy dtype name and shape of a tensor as the runtime reads it from the graph; -1 = not fixed."""


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, NDArray[Any]]) -> int:
    """Return the common batch size.

    Raises:
        ValueError: with the first fault found.
    """
    batches = {len(array) for array in inputs.values() if array.ndim}
    batch = next(iter(batches), 0)
    fault = "the batch is empty" if batch == 0 else _fault(specs, inputs, batch)
    if fault:
        msg = f"inputs do not fit the graph: {fault}"
        raise ValueError(msg)
    return batch


def check_outputs(specs: Sequence[TensorSpec], outputs: Mapping[str, NDArray[Any]], batch: int) -> None:
    """Check what a runtime returned for ``batch`` items.

    Raises:
        InferenceError: with the first fault found.
    """
    fault = _fault(specs, outputs, batch)
    if fault:
        msg = f"outputs do not fit the manifest: {fault}; nothing is reported"
        raise InferenceError(msg)


def check_declared(manifest: Manifest, inputs: Iterable[Declared], outputs: Iterable[Declared]) -> None:
    """Check the graph's own signature against the manifest.

    Raises:
        BundleCorrupt: with the first fault found.
    """
    fault = _signature_fault(manifest.inputs, inputs) or _signature_fault(manifest.outputs, outputs)
    if fault:
        msg = f"the graph of {manifest.name} contradicts its manifest: {fault}; export the bundle again"
        raise BundleCorrupt(msg)


def _fault(specs: Sequence[TensorSpec], arrays: Mapping[str, NDArray[Any]], batch: int) -> str | None:
    expected = {spec.name for spec in specs}
    if arrays.keys() != expected:
        return f"found {sorted(arrays)}, expected {sorted(expected)}"
    return next((fault for spec in specs if (fault := _array_fault(spec, arrays[spec.name], batch))), None)


def _array_fault(spec: TensorSpec, array: NDArray[Any], batch: int) -> str | None:
    shape = (batch, *spec.shape[1:])
    if array.dtype != np.dtype(spec.dtype):
        return f"{spec.name} is {array.dtype}, expected {spec.dtype}"
    if array.shape != shape:
        return f"{spec.name} has shape {array.shape}, expected {shape}"
    if not np.isfinite(array).all():
        return f"{spec.name} holds {int((~np.isfinite(array)).sum())} values that are not finite"
    return None


def _signature_fault(specs: Sequence[TensorSpec], declared: Iterable[Declared]) -> str | None:
    found = {name: (dtype, shape) for name, dtype, shape in declared}
    if found.keys() != {spec.name for spec in specs}:
        return f"tensors {sorted(found)}, expected {sorted(spec.name for spec in specs)}"
    faults = (_tensor_fault(spec, *found[spec.name]) for spec in specs)
    return next((fault for fault in faults if fault), None)


def _tensor_fault(spec: TensorSpec, dtype: str, shape: tuple[int, ...]) -> str | None:
    fixed_agree = len(shape) == len(spec.shape) and all(
        found in (-1, expected) for found, expected in zip(shape, spec.shape, strict=True)
    )
    if dtype == spec.dtype and fixed_agree:
        return None
    return f"{spec.name} is {dtype} {shape}, expected {spec.dtype} {spec.shape}"
