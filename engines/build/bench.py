"""Milliseconds per run of each runtime, taken in turns, every answer compared with the golden outputs.

Called by ``purkinje-engine bench``. A time counts only if the answer was right, and turns share the machine's moods.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.bundle.golden import GoldenCase
from engines.bundle.reader import Bundle
from engines.runtime.runner import Runner
from engines.selftest import compare

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds per run of one runtime on one bundle: median, 10th and 90th percentile."""

    bundle: str
    runtime: str
    version: str
    precision: str
    device: str
    batch: int
    runs: int
    p10_ms: float
    median_ms: float
    p90_ms: float


def bench(
    bundle: Bundle, runners: Mapping[str, Runner], *, repeats: int, clock: Clock = time.perf_counter
) -> list[Timing]:
    """Time every runner on the first golden record.

    Args:
        bundle: verified.
        runners: name -> runner of this bundle.
        repeats: timed runs of each, after one that is not timed.
        clock: seconds.

    Raises:
        SelfTestFailed: an answer, of any run, is not the golden one.
        ValueError: ``repeats`` is not positive.
    """
    if repeats < 1:
        msg = f"{repeats} repeats; expected at least one"
        raise ValueError(msg)
    case = bundle.golden()[0]
    names = list(runners)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        for name in _turned(names, repeat):
            taken = _timed(bundle, runners[name], case, clock)
            seconds[name] += [taken] if repeat > 0 else []
    batch = len(next(iter(case.prepared.values())))
    return [_timing(bundle.manifest.name, runners[name], batch, seconds[name]) for name in names]


def _turned(names: Sequence[str], by: int) -> list[str]:
    first = by % max(len(names), 1)
    return [*names[first:], *names[:first]]


def _timed(bundle: Bundle, runner: Runner, case: GoldenCase, clock: Clock) -> float:
    start = clock()
    outputs = runner.run(case.prepared)
    taken = clock() - start
    compare(outputs, case.outputs, bundle.manifest.golden.output_tolerance, f"{runner.identity.runtime} while timed")
    return taken


def _timing(name: str, runner: Runner, batch: int, seconds: Sequence[float]) -> Timing:
    low, median, high = np.percentile(np.asarray(seconds) * 1000.0, [10, 50, 90])
    return Timing(
        bundle=name,
        runtime=runner.identity.runtime,
        version=runner.identity.version,
        precision=runner.identity.precision,
        device=runner.identity.device,
        batch=batch,
        runs=len(seconds),
        p10_ms=round(float(low), 3),
        median_ms=round(float(median), 3),
        p90_ms=round(float(high), 3),
    )
