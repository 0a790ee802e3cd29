"""Out of memory on the GPU: a smaller batch once, then the CPU; and back to the GPU later.

Made by whoever opens an engine on a GPU; the batcher, the predictor and the self-test see one ``Runner``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import BundleError, OutOfMemory
from engines.runtime.runner import Arrays, Runner, RuntimeIdentity

RETRY_AFTER = 32
"""Answers the CPU gives before the GPU is asked again: want of memory passes when its other user goes."""


class FallbackRunner:
    """A runner on the GPU, with one on the CPU behind it.

    A batch for which the GPU has no memory is run once more in two halves. Has it none for those either, the whole
    batch is answered by the CPU, so that one answer never comes from two runtimes, and so are the next ``retry_after``
    batches; then the GPU is asked again. Every other error is passed on: after a lost context (``DeviceLost``) only a new
    process helps, and an error of the graph would not be better on the CPU.

    ``identity`` is that of the last answer, so it is read by the thread that ran, before the next run. Used by one thread
    at a time, as every runner; a ``BatchingRunner`` around it does this for many.

    Args:
        primary: on the GPU; belongs to this object from now on.
        open_fallback: opens the runner on the CPU, one that agrees with the golden vectors; called once, when needed.
        retry_after: answers of the CPU, at least 1, before the GPU is asked again.

    Raises:
        ValueError: ``retry_after`` is not positive.
    """

    def __init__(self, primary: Runner, open_fallback: Callable[[], Runner], *, retry_after: int = RETRY_AFTER) -> None:
        if retry_after < 1:
            msg = f"retry_after {retry_after}; expected at least 1"
            raise ValueError(msg)
        self._primary = primary
        self._open_fallback = open_fallback
        self._retry_after = retry_after
        self._fallback: Runner | None = None
        self._reason: str | None = None
        self._answers_left = 0
        self._identity = primary.identity
        self._closed = False

    @property
    def identity(self) -> RuntimeIdentity:
        """Of what gave the last answer; of the GPU's runner before the first."""
        return self._identity

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph once; see ``Runner.run``.

        Raises:
            ValueError: the inputs do not fit, or this runner is closed.
            OutOfMemory: the GPU has no memory for half of the batch, and the CPU has none or cannot be opened.
            DeviceLost: the GPU is lost.
            InferenceError: the runtime failed.
        """
        if self._closed:
            msg = "the runner is closed; open a new one"
            raise ValueError(msg)
        if self._answers_left:
            outputs = self._on_cpu(inputs)
            self._answers_left -= 1
            return outputs
        return self._on_gpu_or_cpu(inputs)

    def close(self) -> None:
        """Close both."""
        self._closed = True
        try:
            self._primary.close()
        finally:
            if self._fallback is not None:
                self._fallback.close()

    def _on_gpu_or_cpu(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        try:
            outputs = self._on_gpu(inputs)
        except OutOfMemory as error:
            self._reason = f"The GPU had no memory for {_size(inputs)}: {error}"
            outputs = self._on_cpu(inputs)
            self._answers_left = self._retry_after - 1
            return outputs
        self._identity = self._primary.identity
        return outputs

    def _on_gpu(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        try:
            return self._primary.run(inputs)
        except OutOfMemory:
            if _rows(inputs) < 2:
                raise
        halves = [self._primary.run(half) for half in _halves(inputs)]
        return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}

    def _on_cpu(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        fallback = self._opened()
        outputs = fallback.run(inputs)
        self._identity = replace(fallback.identity, fallback=self._reason)
        return outputs

    def _opened(self) -> Runner:
        if self._fallback is None:
            try:
                self._fallback = self._open_fallback()
            except BundleError as error:
                msg = f"{self._reason}; and no runner on the CPU could be opened: {error}"
                raise OutOfMemory(msg) from error
        return self._fallback


def _rows(inputs: Mapping[str, NDArray[Any]]) -> int:
    return len(next(iter(inputs.values())))


def _size(inputs: Mapping[str, NDArray[Any]]) -> str:
    rows = _rows(inputs)
    return "a batch of 1" if rows == 1 else f"half of a batch of {rows}"


def _halves(inputs: Mapping[str, NDArray[Any]]) -> list[Arrays]:
    middle = (_rows(inputs) + 1) // 2
    return [
        {name: array[:middle] for name, array in inputs.items()},
        {name: array[middle:] for name, array in inputs.items()},
    ]
