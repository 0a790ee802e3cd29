"""Separable resampling as two small matrices: exact area averages and linear interpolation.

A matrix per axis is cheap to apply to many frames and symmetric about its centre, so that turning an image by
90 degrees turns the result by 90 degrees. Called by the echo and CMR preprocessing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def area_weights(size: int, length: int, start: float, stop: float) -> NDArray[np.float32]:
    """Weights that average the pixels under each of ``size`` equal cells between two edges.

    Args:
        size: number of output cells.
        length: number of input pixels; pixel ``i`` covers ``i`` to ``i + 1``.
        start: first edge, input pixels; may lie outside, where the input counts as 0.
        stop: last edge, input pixels.

    Returns:
        float32 [size, length]; a row sums to the part of its cell that lies inside the input.
    """
    edges = np.linspace(start, stop, size + 1)
    left, right = edges[:-1, None], edges[1:, None]
    pixels = np.arange(length)[None, :]
    overlap = np.minimum(right, pixels + 1) - np.maximum(left, pixels)
    return np.asarray(np.clip(overlap, 0.0, None) / (right - left), np.float32)


def linear_weights(positions: NDArray[np.float64], length: int, step: float) -> NDArray[np.float64]:
    """Weights of linear interpolation, widened to a triangle of two steps when the step exceeds a pixel.

    Args:
        positions: float64 [N], sample positions in input pixels; pixel centres are integers.
        length: number of input pixels.
        step: distance between the positions, input pixels.

    Returns:
        float64 [N, length]; outside the input counts as 0.
    """
    width = max(step, 1.0)
    reach = np.arange(-np.ceil(width), length + np.ceil(width))
    triangle = np.clip(1.0 - np.abs(reach[None, :] - positions[:, None]) / width, 0.0, None)
    total = np.maximum(triangle.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    inside = (reach >= 0) & (reach < length)
    return np.asarray(triangle[:, inside] / total)


def centred_positions(count: int, centre: float, step: float) -> NDArray[np.float64]:
    """``count`` positions ``step`` apart, symmetric about ``centre``, all in input pixels."""
    return np.asarray(centre + (np.arange(count) - (count - 1) / 2.0) * step, np.float64)
