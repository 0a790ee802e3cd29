"""The table of runtimes: name -> how to open a bundle with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from engines.bundle.reader import Bundle
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.openvino_runner import OpenVinoRunner
from engines.runtime.runner import Runner

Opener = Callable[[Bundle], Runner]


class Runtime(Protocol):
    """Opens a bundle; ``threads`` is what one run may use."""

    def __call__(self, bundle: Bundle, threads: int = 1) -> Runner: ...


RUNTIMES: Mapping[str, Runtime] = {"openvino": OpenVinoRunner, "onnxruntime": OnnxRunner}
"""In the order of preference: the faster one first."""
