"""The compiling half of TensorRT without a GPU: what a build asks of the module, and what was asked.

A graph is JSON here: ``inputs`` (name, shape), ``tensors`` (name, type), ``errors`` (node, operator, text). The double
ends the test where the library would end the process: a builder made on a machine without a GPU. It differs by version
where the library does: TensorRT 10 has two kinds of networks, 11 one, and not every module has a progress monitor.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import onnx

Flags = dict[str, int]
TYPED_10: Flags = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
TYPED_11: Flags = {"STRONGLY_TYPED": 1}
UNTYPED: Flags = {"EXPLICIT_BATCH": 0}
GOOD_CACHE, BAD_CACHE, FOREIGN_CACHE = b"CACHE-OF-THIS-GPU", b"junk", b"CACHE-OF-ANOTHER-GPU"


def toy_graph(
    shape: Sequence[int] = (-1, 4),
    tensors: Sequence[tuple[str, str]] = (("y", "FLOAT"),),
    errors: Sequence[tuple[str, str, str]] = (),
) -> bytes:
    """Return a graph for the double with one input ``x``."""
    return json.dumps({"inputs": [["x", list(shape)]], "tensors": list(tensors), "errors": list(errors)}).encode()


class Severity(IntEnum):
    """As the library orders them."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class _Logger:
    Severity = Severity


class _Monitor:
    """Base class of the library."""


class BuilderDouble:
    """The module ``tensorrt`` as far as it compiles.

    Args:
        gpu: whether the machine has one.
        version: it states.
        flags: kinds of networks.
        monitored: whether it has a progress monitor.

    Attributes:
        networks: flags each network was made with.
        builds: TF32, profiles and timing cache of each build.
        build_s: how long a build takes.
        refuse: what the builder logs instead of giving a plan.
    """

    def __init__(
        self, *, gpu: bool = True, version: str = "10.15.1.29", flags: Flags = TYPED_10, monitored: bool = True
    ) -> None:
        self.__version__ = version
        self.gpu = gpu
        self.networks: list[int] = []
        self.builds: list[SimpleNamespace] = []
        self.build_s = 0.0
        self.refuse: str | None = None
        self.ILogger = _Logger
        self.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", flags)
        self.BuilderFlag = Enum("BuilderFlag", ["TF32"])
        self.DataType = Enum("DataType", ["FLOAT", "HALF", "BF16", "INT64", "FP8"])
        if monitored:
            self.IProgressMonitor = _Monitor

    def Builder(self, listener: Any) -> _Builder:
        """Make a builder; without a device the library ends the process, so the double fails the test."""
        assert self.gpu, "a builder was made on a machine without a GPU"
        return _Builder(self, listener)

    def OnnxParser(self, network: _Network, listener: Any) -> _Parser:
        """Make a parser."""
        return _Parser(self, network, listener)


class _Builder:
    def __init__(self, trt: BuilderDouble, listener: Any) -> None:
        self._trt = trt
        self._listener = listener
        listener.log(Severity.WARNING, "a builder was made")

    def create_network(self, flags: int) -> _Network:
        self._trt.networks.append(flags)
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, _network: _Network, config: _Config) -> memoryview | None:
        self._trt.builds.append(SimpleNamespace(tf32=config.tf32, profiles=config.profiles, cache=config.cache))
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building", None, 1)
            monitor.phase_start("Timing kernels", "Building", 40)
            monitor.step_complete("Timing kernels", 11)
        time.sleep(self._trt.build_s)
        if monitor is not None:
            monitor.phase_finish("Timing kernels")
            monitor.phase_finish("Building")
        if self._trt.refuse is not None:
            self._listener.log(Severity.ERROR, self._trt.refuse)
            return None
        self._listener.log(Severity.INFO, "the plan is made")
        if config.cache is not None:
            config.cache.content = GOOD_CACHE
        return memoryview(b"a plan")


class _Config:
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.tf32 = True
        self.profiles: list[_Profile] = []
        self.cache: _Cache | None = None

    def set_flag(self, _flag: Any) -> None:
        self.tf32 = True

    def clear_flag(self, _flag: Any) -> None:
        self.tf32 = False

    def add_optimization_profile(self, profile: _Profile) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, content: bytes) -> _Cache | None:
        return None if content == BAD_CACHE else _Cache(content)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        if cache.content == FOREIGN_CACHE and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> _Cache | None:
        return self.cache


class _Cache:
    def __init__(self, content: bytes) -> None:
        self.given = self.content = content

    def serialize(self) -> memoryview:
        return memoryview(self.content)


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class _Network:
    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.layers: list[Any] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_layer(self, index: int) -> Any:
        return self.layers[index]


class _Parser:
    def __init__(self, trt: BuilderDouble, network: _Network, listener: Any) -> None:
        self._trt, self._network, self._listener = trt, network, listener
        self._errors: list[Any] = []

    def parse(self, graph: bytes) -> bool:
        described = json.loads(graph) if graph.startswith(b"{") else _described(graph)
        for name, kind in described["tensors"]:
            self._listener.log(Severity.VERBOSE, f"Parsing node: {name} [Toy]")
            tensor = SimpleNamespace(name=name, dtype=self._trt.DataType[kind])
            self._network.layers.append(_layer(name, tensor))
        self._network.inputs = [SimpleNamespace(name=name, shape=tuple(shape)) for name, shape in described["inputs"]]
        self._errors = [_error(*error) for error in described["errors"]]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]


def _described(graph: bytes) -> dict[str, Any]:
    """What the parser needs to know of a real graph; its batch axis is free."""
    inputs = [
        (value.name, [-1, *(size.dim_value for size in value.type.tensor_type.shape.dim[1:])])
        for value in onnx.load_from_string(graph).graph.input
    ]
    return {"inputs": inputs, "tensors": [], "errors": []}


def _layer(name: str, tensor: Any) -> Any:
    kind = SimpleNamespace(name="TOY")
    return SimpleNamespace(name=name, type=kind, num_outputs=1, get_output=lambda _index: tensor)


def _error(node: str, operator: str, text: str) -> Any:
    return SimpleNamespace(
        func=lambda: "importToy", node_name=lambda: node, node_operator=lambda: operator, desc=lambda: text
    )
