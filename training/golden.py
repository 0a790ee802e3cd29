"""Golden vectors: a few digital hearts outside the data set, small enough to lie in a bundle.

Called by ``training.export``. The record is thinned (fewer slices or phases, a shorter clip) as far as the
preprocessing still accepts it; what counts is that serving gives the same arrays and numbers, not that they are good.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.bundle.golden import GoldenCase
from engines.bundle.parts import TensorSpec
from engines.errors import Refusal
from engines.preprocess.registry import prepare
from engines.records import ArrayFrames, CineLoop, CineStack, Record
from training.config import DataConfig
from training.data.sources.phantom_hearts import draw_heart
from training.onnx_graph import run_graph

_TRIES_PER_CASE = 10


def golden_cases(config: DataConfig, graph: bytes, input_spec: TensorSpec, *, count: int) -> list[GoldenCase]:
    """Return ``count`` cases from the hearts that follow those of the data set.

    Raises:
        ValueError: when the preprocessing refuses too many of the thinned records.
    """
    cases: list[GoldenCase] = []
    for index in range(config.hearts, config.hearts + _TRIES_PER_CASE * count):
        if len(cases) == count:
            break
        record = thinned(draw_heart(config.modality, config.seed, index).record)
        try:
            prepared = dict(prepare(record, config.preprocess).arrays)
        except Refusal:
            continue
        outputs = run_graph(graph, input_spec.name, prepared[input_spec.name])
        cases.append(GoldenCase(record=record, prepared=prepared, outputs=outputs))
    if len(cases) < count:
        raise ValueError(f"only {len(cases)} of {count} golden records were accepted by the preprocessing")
    return cases


def thinned(record: Record) -> Record:
    """Return a smaller record of the same heart."""
    match record:
        case CineStack():
            return _thin_stack(record)
        case CineLoop():
            return _thin_loop(record)
    return record


def _thin_stack(stack: CineStack) -> CineStack:
    """Keep every fourth slice and every second phase; halve rows and columns."""
    return replace(
        stack,
        images_SPHW=stack.images_SPHW[::4, ::2, ::2, ::2].copy(),
        spacing_mm=(2.0 * stack.spacing_mm[0], 2.0 * stack.spacing_mm[1]),
        slice_positions_mm=stack.slice_positions_mm[::4].copy(),
        trigger_times_ms=stack.trigger_times_ms[::4, ::2].copy(),
        sources_SP=tuple(row[::2] for row in stack.sources_SP[::4]),
    )


def _thin_loop(loop: CineLoop) -> CineLoop:
    """Keep every second frame; halve rows and columns."""
    frames_THW = np.stack(list(loop.frames.luma(range(0, len(loop.frames), 2))))[:, ::2, ::2]
    region = None if loop.region_px is None else _halved(loop.region_px)
    spacing = None if loop.spacing_mm is None else (2.0 * loop.spacing_mm[0], 2.0 * loop.spacing_mm[1])
    return replace(
        loop,
        frames=ArrayFrames(frames_THW=np.ascontiguousarray(frames_THW)),
        frame_times_ms=loop.frame_times_ms[::2].copy(),
        region_px=region,
        spacing_mm=spacing,
    )


def _halved(region_px: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = region_px
    return x0 // 2, y0 // 2, x1 // 2, y1 // 2
