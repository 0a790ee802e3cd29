"""Compiles a bundle's graph into a plan, with TensorRT 10 or 11 or with TensorRT-RTX: one way for all three.

What differs is looked up in the module at hand: the flag of a strongly typed network, timing cache, progress monitor.
A plan is compiled for one compute capability (``sm_89``) and runs only there, with the version that made it. Only the
builder and the parser are used: no runtime object is made. Called by ``engines.cli`` and by whoever needs a plan that
the cache does not have.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.build.cache import PlanCache, StandingPlan
from engines.build.flavour import Flavour, capabilities
from engines.build.plan import PlanRecipe, Precision
from engines.build.precision import mixed_precision, require_precision
from engines.build.progress import Progress, recorded, told, watched
from engines.bundle.reader import Bundle
from engines.errors import PlanBuildFailed, RefusedNode
from engines.runtime.runner import mapped

_FOREIGN = (RuntimeError, ValueError, TypeError, LookupError)
"""The library has no exception classes: these are what its bindings translate to."""

_NARROW = {"HALF": "fp16", "BF16": "bf16", "FP8": "", "FP4": "", "E8M0": ""}
"""Floating point types of fewer bits than float32, and the precision whose plans may hold them."""

_KEEP_MISMATCH_OUT = False
"""Timings of another GPU or version are not taken."""

_BUILDING = threading.Lock()
"""The library has one logger in a process: two builds at once would mix their messages."""


@dataclass(frozen=True, kw_only=True)
class BatchRange:
    """Batch sizes a plan takes: from ``minimum`` to ``maximum``, fastest at ``optimum``.

    Raises:
        ValueError: they are not positive and in this order.
    """

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            msg = f"batch range {self.sizes}; expected 1 <= minimum <= optimum <= maximum"
            raise ValueError(msg)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Minimum, optimum, maximum."""
        return self.minimum, self.optimum, self.maximum


def plan_recipe(  # noqa: PLR0913 - one parameter per part of the recipe
    flavour: Flavour, bundle: Bundle, target: str, precision: Precision, batch: BatchRange, *, tf32: bool = False
) -> PlanRecipe:
    """Return what ``compile_plan`` is to make of a bundle.

    Args:
        flavour: compiles it, and must run it.
        bundle: verified.
        target: compute capability, such as ``sm_89``.
        precision: of the layers that take it.
        batch: sizes of the first axis.
        tf32: whether float32 products may be computed in TF32.

    Raises:
        ValueError: the bundle's numbers would not hold in this precision, or the flavour does not compile for it.
        DeviceUnavailable: the flavour compiles for the GPU that is there, and there is none.
    """
    require_precision(bundle.manifest, precision, tf32=tf32)
    flavour.require_target(target)
    return PlanRecipe(
        schema_version=2,
        runtime=flavour.name,
        version=flavour.version,
        target=target,
        precision=precision,
        tf32=tf32,
        batch_minimum=batch.minimum,
        batch_optimum=batch.optimum,
        batch_maximum=batch.maximum,
        graph_sha256=bundle.weights_sha256,
    )


def build_plan(  # noqa: PLR0913 - one keyword-only option
    cache: PlanCache,
    folder: Path,
    flavour: Flavour,
    bundle: Bundle,
    recipe: PlanRecipe,
    *,
    progress: Progress = lambda _: None,
) -> StandingPlan:
    """Return the plan of a recipe from the cache; compile it where there is none.

    Args:
        cache: of plans.
        folder: of the cache: the build's log lies beside the plan, and the timings of one GPU beside all its plans.
        flavour: compiles it.
        bundle: verified.
        recipe: as ``plan_recipe`` makes it of these.
        progress: is told one line every few seconds.

    Raises:
        ValueError, DeviceUnavailable, PlanBuildFailed, OutOfMemory: as ``compile_plan``.
        PlanRefused: the gate of a plan that stands there failed.
    """
    path = folder / recipe.plan_name
    return cache.get_or_build(
        recipe,
        lambda: compile_plan(
            flavour,
            bundle.graph(),
            recipe,
            timing_cache=folder / f"timings-{recipe.runtime}-{recipe.version}-{recipe.target}.bin",
            log=path.with_suffix(".log"),
            progress=progress,
        ),
    )


def compile_plan(  # noqa: PLR0913 - keyword-only options
    flavour: Flavour,
    graph: bytes,
    recipe: PlanRecipe,
    *,
    timing_cache: Path | None = None,
    log: Path | None = None,
    progress: Progress = lambda _: None,
) -> bytes:
    """Compile a graph.

    Args:
        flavour: compiles it.
        graph: ONNX of the bundle, as the recipe names it, in FP32 and without external data; only the first axis of its
            inputs is free. Its precision is decided here.
        recipe: what to make of it.
        timing_cache: file with what the library measured before; read and written where the library has such a thing.
        log: file for everything the library says, also where it fails.
        progress: is told one line every few seconds; from another thread.

    Returns:
        The plan. Two builds of one graph differ in bytes.

    Raises:
        ValueError: the recipe is of another flavour, version or graph, or the flavour does not compile for its target.
        DeviceUnavailable: the flavour compiles for the GPU that is there, and there is none.
        PlanBuildFailed: the library refuses the graph (``refused`` names the nodes); an axis other than the first is
            free; a tensor has a floating point type that the precision does not allow; the log cannot be written.
        OutOfMemory: the library says so.
    """
    _require_same(flavour, graph, recipe)
    flavour.require_target(recipe.target)
    narrowed = mixed_precision(graph, recipe.precision)
    with _BUILDING, recorded(flavour, log), mapped(flavour.title, _FOREIGN, PlanBuildFailed):
        return _Build(flavour, recipe).run(narrowed, timing_cache, progress)


def _require_same(flavour: Flavour, graph: bytes, recipe: PlanRecipe) -> None:
    found = (flavour.name, flavour.version, hashlib.sha256(graph).hexdigest())
    wanted = (recipe.runtime, recipe.version, recipe.graph_sha256)
    if found != wanted:
        msg = f"runtime, version and graph are {', '.join(found)}; expected those of the recipe: {', '.join(wanted)}"
        raise ValueError(msg)


class _Build:
    """One build, with one library, of one recipe."""

    def __init__(self, flavour: Flavour, recipe: PlanRecipe) -> None:
        self._flavour = flavour
        self._trt = flavour.module
        self._recipe = recipe
        self._listener = flavour.listener()

    def run(self, graph: bytes, timing_cache: Path | None, progress: Progress) -> bytes:
        builder = self._trt.Builder(self._listener)
        network = builder.create_network(_typed(self._trt))
        self._parse(self._trt.OnnxParser(network, self._listener), graph)
        self._require_types(network)
        config = self.config(builder)
        config.add_optimization_profile(self._profile(builder, network))
        cache = _TimingCache(config, timing_cache) if timing_cache and not self._flavour.ahead_of_time else None
        with told(self._recipe.target, watched(self._trt, config), progress):
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            reason = f"{self._recipe.target}: {'; '.join(self._listener.errors)}"
            raise self._refusal([RefusedNode(node="", operator="", reason=reason)])
        if cache is not None:
            cache.keep()
        return bytes(plan)

    def config(self, builder: Any) -> Any:
        config = builder.create_builder_config()
        if self._flavour.ahead_of_time:
            config.num_compute_capabilities = 1
            config.set_compute_capability(capabilities(self._trt)[self._recipe.target], 0)
        if self._recipe.tf32:
            config.set_flag(self._trt.BuilderFlag.TF32)
        else:
            config.clear_flag(self._trt.BuilderFlag.TF32)  # on unless cleared
        return config

    def _profile(self, builder: Any, network: Any) -> Any:
        sizes = (self._recipe.batch_minimum, self._recipe.batch_optimum, self._recipe.batch_maximum)
        profile = builder.create_optimization_profile()
        for tensor in _inputs(network):
            first, *rest = tuple(tensor.shape)
            if -1 in rest or (first != -1 and {first} != set(sizes)):
                reason = (
                    f"input {tensor.name} is {(first, *rest)} (-1 = free); expected the first axis free and no other"
                )
                raise self._refusal([RefusedNode(node="", operator="", reason=reason)])
            profile.set_shape(tensor.name, *((size, *rest) for size in sizes))
        return profile

    def _parse(self, parser: Any, graph: bytes) -> None:
        parsed = parser.parse(graph)
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        if errors or not parsed:
            raise self._refusal([_refused(error, self._listener.parsing) for error in errors])

    def _require_types(self, network: Any) -> None:
        precision = self._recipe.precision
        types = self._trt.DataType.__members__
        others = {types[name] for name, allowed in _NARROW.items() if name in types and allowed != precision}
        for layer, tensor in _tensors(network):
            if tensor.dtype in others:
                allowed = "float32" if precision == "fp32" else f"float32 and {precision}"
                reason = f"{tensor.name} is {tensor.dtype.name.lower()}; expected no floating point type but {allowed}"
                raise self._refusal([RefusedNode(node=layer.name, operator=layer.type.name, reason=reason)])

    def _refusal(self, refused: Sequence[RefusedNode]) -> PlanBuildFailed:
        reasons = "; ".join(map(str, refused)) or "no reason is given"
        msg = f"{self._flavour.title} does not take the graph: {reasons}; export it without this"
        return PlanBuildFailed(msg, refused)


def _typed(trt: Any) -> int:
    """Flags of a strongly typed network: the graph's types are kept; a library without the flag has no other network."""
    kinds = trt.NetworkDefinitionCreationFlag.__members__
    if "STRONGLY_TYPED" in kinds:
        return 1 << int(kinds["STRONGLY_TYPED"])
    if "EXPLICIT_BATCH" in kinds:  # as before TensorRT 10: types are the builder's choice
        msg = f"TensorRT {trt.__version__} has no strongly typed networks; install 10 or newer"
        raise PlanBuildFailed(msg)
    return 0


def _refused(error: Any, parsing: tuple[str, str]) -> RefusedNode:
    """Name the node of an error; where the parser names none it is the one whose parsing it announced last."""
    in_import = error.func().startswith("import")
    stated = (error.node_name(), error.node_operator())
    node, operator = stated if stated[1] or not in_import else parsing
    return RefusedNode(node=node, operator=operator, reason=" ".join(error.desc().split()))


def _inputs(network: Any) -> Iterator[Any]:
    return (network.get_input(index) for index in range(network.num_inputs))


def _tensors(network: Any) -> Iterator[tuple[Any, Any]]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return ((layer, layer.get_output(index)) for layer in layers for index in range(layer.num_outputs))


class _TimingCache:
    """What the library measured of kernels on this GPU: without it a build takes longer, and is as right."""

    def __init__(self, config: Any, path: Path) -> None:
        self._config = config
        self._path = path
        stored = b""
        with suppress(OSError):
            stored = path.read_bytes()
        self._cache = config.create_timing_cache(stored)
        if self._cache is None or not config.set_timing_cache(self._cache, _KEEP_MISMATCH_OUT):
            self._cache = config.create_timing_cache(b"")  # damaged, or of another GPU or version
            config.set_timing_cache(self._cache, _KEEP_MISMATCH_OUT)

    def keep(self) -> None:
        """Write it in one step; where that fails nothing but time is lost."""
        content = bytes(self._config.get_timing_cache().serialize())
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(content)
            fresh.replace(self._path)
