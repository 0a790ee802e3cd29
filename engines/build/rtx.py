"""Compiles an ONNX graph into TensorRT-RTX plans on a machine that needs no GPU and no driver.

A plan is compiled for one compute capability (``sm_89``) and runs only there, with the TensorRT-RTX version that made
it. Only the builder and the parser are used: no runtime object is made, so no device is touched or looked for.
``tensorrt_rtx_bindings`` is imported when a plan is compiled. Called by ``engines.cli``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engines.build.plan import PlanRecipe, find_plan, write_plan
from engines.bundle.reader import Bundle
from engines.errors import PlanBuildFailed, RefusedNode
from engines.runtime.runner import mapped

_MODULE = "tensorrt_rtx_bindings"
_NAME = "TensorRT-RTX"
_FOREIGN = (RuntimeError, ValueError, TypeError, LookupError)
"""The library has no exception classes: these are what its bindings translate to."""


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


def build_plans(
    bundle: Bundle, targets: Sequence[str], batch: BatchRange, folder: Path, log: Callable[[str], None]
) -> tuple[Path, ...]:
    """Compile a bundle's graph and keep the plans; a plan of the same recipe that stands in the folder is kept as it is.

    Args:
        bundle: verified.
        targets: such as ``sm_89``, each once.
        batch: sizes of the first axis.
        folder: of the plans and their sidecars; made where missing.
        log: is told one sentence per target.

    Returns:
        The plans' files, in the order of ``targets``.

    Raises:
        ValueError: as ``compile_plans``.
        PlanBuildFailed: as ``compile_plans``; or another plan is in the way, or the folder cannot be written to.
    """
    _require_targets(targets, _capabilities(_library()))
    return tuple(_kept_or_built(bundle, target, batch, folder, log) for target in targets)


def _kept_or_built(bundle: Bundle, target: str, batch: BatchRange, folder: Path, log: Callable[[str], None]) -> Path:
    recipe = plan_recipe(bundle.weights_sha256, target, batch)
    standing = find_plan(folder, recipe)
    if standing is not None:
        log(f"{target}: {standing.name} stands there already")
        return standing
    plan = compile_plans(bundle.graph(), [target], batch, log)[target]
    return write_plan(folder, recipe, plan)


def plan_recipe(graph_sha256: str, target: str, batch: BatchRange) -> PlanRecipe:
    """Return what ``compile_plans`` of this installation makes of a graph.

    Raises:
        PlanBuildFailed: TensorRT-RTX is not installed.
    """
    return PlanRecipe(
        schema_version=1,
        runtime="tensorrt-rtx",
        version=rtx_version(),
        target=target,
        precision="fp32",
        tf32=False,
        batch_minimum=batch.minimum,
        batch_optimum=batch.optimum,
        batch_maximum=batch.maximum,
        graph_sha256=graph_sha256,
    )


def compile_plans(
    graph: bytes, targets: Sequence[str], batch: BatchRange, log: Callable[[str], None]
) -> dict[str, bytes]:
    """Compile a graph for some compute capabilities, FP32 without TF32.

    The fit of a neural field needs both: its gradients lie below what TF32 and FP16 resolve.

    Args:
        graph: ONNX, without external data; only the first axis of its inputs is free.
        targets: such as ``sm_89``, each once.
        batch: sizes of the first axis.
        log: is told one sentence per target.

    Returns:
        Target -> plan. Two builds of one graph differ in bytes.

    Raises:
        ValueError: a target is not one of ``rtx_targets``, is named twice, or none is named.
        PlanBuildFailed: TensorRT-RTX is not installed; it refuses the graph (``refused`` names the nodes); an axis
            other than the first is free; a tensor has another floating point type than float32.
    """
    trt = _library()
    _require_targets(targets, _capabilities(trt))
    plans = {}
    for target in targets:
        with mapped(_NAME, _FOREIGN, PlanBuildFailed):
            plans[target] = _compiled(trt, graph, target, batch)
        log(f"{target}: {len(plans[target]) / 1e6:.2f} MB, fp32, batch {batch.minimum} to {batch.maximum}")
    return plans


def rtx_version() -> str:
    """Return the version of the installed TensorRT-RTX.

    Raises:
        PlanBuildFailed: it is not installed.
    """
    return str(_library().__version__)


def rtx_targets() -> tuple[str, ...]:
    """Return the compute capabilities that the installed TensorRT-RTX compiles for, such as ``sm_89``.

    Raises:
        PlanBuildFailed: it is not installed.
    """
    return tuple(_capabilities(_library()))


def _library() -> Any:
    try:
        return importlib.import_module(_MODULE)
    except (ImportError, OSError) as error:  # OSError: the bindings are there, the library beside them is not
        msg = f"{_NAME} cannot be imported ({error}); install the extra `rtx`"
        raise PlanBuildFailed(msg) from error


def _capabilities(trt: Any) -> Mapping[str, Any]:
    members = trt.ComputeCapability.__members__.items()
    return {f"sm_{name.removeprefix('SM')}": value for name, value in members if name.startswith("SM")}


def _require_targets(targets: Sequence[str], known: Mapping[str, Any]) -> None:
    unknown = [target for target in targets if target not in known]
    if unknown or not targets or len(set(targets)) < len(targets):
        msg = f"targets {list(targets)}; expected some of {', '.join(known)}, each once: this {_NAME} has no others"
        raise ValueError(msg)


def _compiled(trt: Any, graph: bytes, target: str, batch: BatchRange) -> bytes:
    listener = _listener(trt)
    listener.forget()
    builder = trt.Builder(listener)
    # Strongly typed: the types of the graph are kept, so that nothing is computed in fewer bits than it states.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt.OnnxParser(network, listener), graph, listener)
    _require_float32(trt, network)
    config = _config(trt, builder, _capabilities(trt)[target])
    config.add_optimization_profile(_profile(builder, network, batch))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refusal([RefusedNode(node="", operator="", reason=f"{target}: {'; '.join(listener.errors)}")])
    return bytes(plan)


def _config(trt: Any, builder: Any, capability: Any) -> Any:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    config.clear_flag(trt.BuilderFlag.TF32)  # on unless cleared
    return config


def _profile(builder: Any, network: Any, batch: BatchRange) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in _inputs(network):
        first, *rest = tuple(tensor.shape)
        if -1 in rest or (first != -1 and {first} != set(batch.sizes)):
            reason = f"input {tensor.name} is {(first, *rest)} (-1 = free); expected the first axis free and no other"
            raise _refusal([RefusedNode(node="", operator="", reason=reason)])
        profile.set_shape(tensor.name, *((size, *rest) for size in batch.sizes))
    return profile


def _parse(parser: Any, graph: bytes, listener: Any) -> None:
    parsed = parser.parse(graph)
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if errors or not parsed:
        raise _refusal([_refused(error, listener.parsing) for error in errors])


def _refused(error: Any, parsing: tuple[str, str]) -> RefusedNode:
    """Name the node of an error; where the parser names none it is the one whose parsing it announced last."""
    in_import = error.func().startswith("import")
    stated = (error.node_name(), error.node_operator())
    node, operator = stated if stated[1] or not in_import else parsing
    return RefusedNode(node=node, operator=operator, reason=" ".join(error.desc().split()))


def _refusal(refused: Sequence[RefusedNode]) -> PlanBuildFailed:
    reasons = "; ".join(map(str, refused)) or "no reason is given"
    return PlanBuildFailed(f"{_NAME} does not take the graph: {reasons}; export it without this", refused)


def _require_float32(trt: Any, network: Any) -> None:
    for layer, tensor in _tensors(network):
        if tensor.dtype in _other_floats(trt):
            reason = f"{tensor.name} is {tensor.dtype.name.lower()}; expected no floating point type but float32"
            raise _refusal([RefusedNode(node=layer.name, operator=layer.type.name, reason=reason)])


def _other_floats(trt: Any) -> set[Any]:
    return {trt.DataType.HALF, trt.DataType.BF16, trt.DataType.FP8}


def _inputs(network: Any) -> Iterator[Any]:
    return (network.get_input(index) for index in range(network.num_inputs))


def _tensors(network: Any) -> Iterator[tuple[Any, Any]]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return ((layer, layer.get_output(index)) for layer in layers for index in range(layer.num_outputs))


@cache
def _listener(trt: Any) -> Any:
    """Return the one listener of the process: the library keeps the first it is given and ignores every other."""

    class Listener(trt.ILogger):  # type: ignore[misc]
        """Keeps the errors, and the node whose parsing was announced last."""

        def __init__(self) -> None:
            super().__init__()
            self.forget()

        def forget(self) -> None:
            self.errors: list[str] = []
            self.parsing = ("", "")

        def log(self, severity: Any, message: str) -> None:
            if message.startswith("Parsing node: "):
                name, _, operator = message.removeprefix("Parsing node: ").rpartition(" ")
                self.parsing = (name, operator.strip("[]"))
            elif severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(" ".join(message.split()))

    return Listener()
