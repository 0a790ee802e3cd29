"""Real plans of graphs that lie in no bundle, compiled by the TensorRT-RTX that is installed."""

from __future__ import annotations

import hashlib
import importlib.util
from typing import Any

import pytest

from engines.build.compile import BatchRange, compile_plan
from engines.build.flavour import Flavour, load_flavour
from engines.build.plan import PlanRecipe, Precision

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX (extra `rtx`) is not installed"
)


def recipe_of_graph(
    flavour: Flavour, graph: bytes, target: str, batch: BatchRange, precision: Precision = "fp32", *, tf32: bool = False
) -> PlanRecipe:
    """Return the recipe of a graph's plan."""
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
        graph_sha256=hashlib.sha256(graph).hexdigest(),
    )


def compiled(graph: bytes, target: str, batch: BatchRange, precision: Precision = "fp32", **options: Any) -> bytes:
    """Compile a graph with TensorRT-RTX."""
    flavour = load_flavour("tensorrt-rtx")
    return compile_plan(flavour, graph, recipe_of_graph(flavour, graph, target, batch, precision), **options)
