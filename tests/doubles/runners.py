"""Runners that misbehave, each in one way a real runtime has been seen to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.manifest import Manifest
from engines.bundle.reader import Bundle
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.runner import Arrays, CheckedRunner, RuntimeIdentity

IDENTITY = RuntimeIdentity(runtime="double", version="0", precision="fp32", device="CPU")
Distortion = Callable[[Arrays], Arrays]


class DistortedRunner(CheckedRunner):
    """ONNX Runtime whose answers are distorted on the way out."""

    def __init__(self, bundle: Bundle, distortion: Distortion, identity: RuntimeIdentity = IDENTITY) -> None:
        super().__init__(bundle.manifest, identity, (RuntimeError,))
        self._inner = OnnxRunner(bundle)
        self._distortion = distortion

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        return self._distortion(self._inner.run(inputs))

    def _release(self) -> None:
        self._inner.close()


class ScriptedRunner(CheckedRunner):
    """Answers with what a function makes of the inputs; remembers the batch sizes it was given."""

    def __init__(self, manifest: Manifest, script: Callable[[Mapping[str, NDArray[Any]]], Arrays]) -> None:
        super().__init__(manifest, IDENTITY, (RuntimeError,))
        self._script = script
        self.batches: list[int] = []
        self.released = False

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        self.batches.append(len(next(iter(inputs.values()))))
        return self._script(inputs)

    def _release(self) -> None:
        self.released = True


def wrong_numbers(outputs: Arrays) -> Arrays:
    """Off by a little more than any tolerance, as a fast but wrong kernel is."""
    return {name: array + np.float32(0.01) for name, array in outputs.items()}


def not_a_number(outputs: Arrays) -> Arrays:
    """One NaN, as an overflow in half precision leaves."""
    first, *_ = outputs
    broken = outputs[first].copy()
    broken.flat[0] = np.nan
    return {**outputs, first: broken}


def unaltered(outputs: Arrays) -> Arrays:
    """As it should be."""
    return outputs


def slightly_wrong(outputs: Arrays) -> Arrays:
    """Rounded to half precision, as a right plan in reduced precision is."""
    return {name: array.astype(np.float16).astype(np.float32) for name, array in outputs.items()}


def scaled(outputs: Arrays) -> Arrays:
    """The direction right and the length wrong."""
    return {name: array * np.float32(1.2) for name, array in outputs.items()}


def swapped_columns(outputs: Arrays) -> Arrays:
    """Columns in another order: every name, dtype and shape right."""
    return {name: array[:, ::-1].copy() for name, array in outputs.items()}


def swapped_outputs(outputs: Arrays) -> Arrays:
    """Outputs under each other's names."""
    return dict(zip(outputs, reversed(outputs.values()), strict=True))


def wrong_shape(outputs: Arrays) -> Arrays:
    """The batch axis dropped."""
    return {name: array[0] for name, array in outputs.items()}


def wrong_dtype(outputs: Arrays) -> Arrays:
    """Half precision handed out."""
    return {name: array.astype(np.float16) for name, array in outputs.items()}


def missing_output(outputs: Arrays) -> Arrays:
    """The last output left out."""
    *kept, _ = outputs
    return {name: outputs[name] for name in kept}


DISTORTIONS = (
    wrong_numbers,
    not_a_number,
    swapped_columns,
    swapped_outputs,
    wrong_shape,
    wrong_dtype,
    missing_output,
)
