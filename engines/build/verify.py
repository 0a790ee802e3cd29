"""Do the runtimes agree beyond the golden vectors? Random valid inputs, compared with a reference runtime.

Called by ``purkinje-engine verify``. The self-test at start looks at a few records; this looks at as many as asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.golden import GoldenCase
from engines.bundle.reader import Bundle
from engines.errors import SelfTestFailed
from engines.runtime.runner import Runner

NOISE_SHARE_MAX = 0.2


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How one runtime compares with the reference for one output.

    ``largest`` is the largest absolute difference over all inputs, ``tolerance`` that of the manifest.
    """

    runtime: str
    output: str
    largest: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.largest <= self.tolerance


def verify(bundle: Bundle, runners: Mapping[str, Runner], *, reference: str, count: int, seed: int) -> list[Parity]:
    """Compare every runner with the reference on random inputs.

    Args:
        bundle: verified.
        runners: name -> runner of this bundle; holds ``reference``.
        reference: name of the runner that is taken for right.
        count: number of inputs.
        seed: of the inputs.

    Raises:
        ValueError: the reference is not among the runners, or ``count`` is not positive.
        SelfTestFailed: the bundle has no golden vectors to start from.
    """
    if reference not in runners or count < 1:
        msg = (
            f"reference {reference!r} of {sorted(runners)}, {count} inputs; expected one of them and at least one input"
        )
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    cases = bundle.golden()
    others = {name: runner for name, runner in runners.items() if name != reference}
    tolerances = bundle.manifest.golden.output_tolerance
    largest = {(name, output): 0.0 for name in others for output in tolerances}
    for _ in range(count):
        inputs = random_inputs(cases, rng)
        expected = runners[reference].run(inputs)
        for name, runner in others.items():
            found = runner.run(inputs)
            for output in tolerances:
                difference = float(np.abs(found[output] - expected[output]).max())
                largest[name, output] = max(largest[name, output], difference)
    return [
        Parity(runtime=name, output=output, largest=value, tolerance=tolerances[output])
        for (name, output), value in largest.items()
    ]


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
