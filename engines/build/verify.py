"""Random valid inputs, so that runtimes can be compared beyond the golden vectors.

The self-test at start looks at a few records; ``engines.build.gate`` looks at as many as asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.golden import GoldenCase
from engines.errors import SelfTestFailed

NOISE_SHARE_MAX = 0.2


def random_inputs(cases: Sequence[GoldenCase], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Return a prepared golden record blended with noise of its own range: valid, and never seen.

    Raises:
        SelfTestFailed: there is no golden case.
    """
    if not cases:
        msg = "the bundle has no golden vectors; export it again"
        raise SelfTestFailed(msg)
    case = cases[int(rng.integers(len(cases)))]
    share = rng.uniform(0.0, NOISE_SHARE_MAX)
    return {name: _blended(array, share, rng) for name, array in case.prepared.items()}


def _blended(array: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[Any]:
    noise = rng.uniform(float(array.min()), float(array.max()), array.shape)
    blended = (1.0 - share) * array.astype(np.float64) + share * noise
    return np.asarray(blended.astype(array.dtype))
