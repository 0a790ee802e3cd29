"""Milliseconds of every side at every batch size: correct first, then in turns of seeded random order.

A side that does not answer as the golden vectors say scores nothing, at that batch size or at all, and stands in the list
of what is wrong. Every turn's last answer is looked at again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import numpy as np

from engines.build.limits import checks
from engines.bundle.reader import Bundle
from engines.errors import SelfTestFailed
from engines.runtime.runner import Arrays
from engines.selftest import check_preprocessing, check_runner
from tests.benchmarks.on_gpu.arms import Arm, Named, TimedRunner
from tests.benchmarks.on_gpu.peaks import Peak, macs_of, share_percent
from tests.benchmarks.on_gpu.plans import answers_of
from tests.benchmarks.on_gpu.results import Recorder

BASE = "torch eager fp32"
"""What the others are compared with; without CUDA graph."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """How often is measured.

    Args:
        rounds: turns of each side.
        repeats: timed runs in a turn, after one that is not timed.
        seed: of the order.
    """

    rounds: int
    repeats: int
    seed: int


@dataclass(eq=False)
class Side:
    """An arm that is open and right, and what it took at one batch size."""

    arm: Arm
    runner: TimedRunner
    times_ms: list[float] = field(default_factory=list)
    gpu_ms: list[float] = field(default_factory=list)
    right: bool = True

    def fresh(self) -> Side:
        """The same without times."""
        return Side(self.arm, self.runner)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One engine at one batch size."""

    bundle: Bundle
    batch: int
    inputs: Arrays
    expected: Arrays

    def fault(self, found: Arrays, precision: str) -> str:
        """Return how the answers differ from the golden ones by more than they may, or an empty string."""
        rows = {name: (_rows(found[name]), _rows(self.expected[name])) for name in self.expected}
        measured = [(check, check.value(*rows[check.output])) for check in checks(self.bundle.manifest, precision)]
        faults = [
            f"{check.output}: {check.measure} is {value:.4g}, limit {check.limit:g}"
            for check, value in measured
            if not check.holds(value)
        ]
        return "; ".join(faults)


def measure_latency(
    bundles: Sequence[Bundle],
    arms: Sequence[Arm],
    section: Recorder,
    *,
    batches: Sequence[int],
    turns: Turns,
    peak: Peak | None,
) -> None:
    """Add one row for every engine, batch size and side that is right; the most telling batch sizes first."""
    rng = np.random.default_rng(turns.seed)
    opened = [(bundle, list(open_sides(bundle, arms, section)), macs_of(bundle.graph())) for bundle in bundles]
    try:
        for batch in telling_first(batches):
            for bundle, sides, macs in opened:
                if section.has_time(f"{bundle.manifest.name}, batch {batch}"):
                    _measure(cell_of(bundle, batch), sides, turns, rng, section, lambda *a, m=macs: _row(*a, m, peak))
    finally:
        for _bundle, sides, _macs in opened:
            for side in sides:
                side.runner.close()


def open_sides(bundle: Bundle, arms: Iterable[Arm], section: Recorder) -> Iterator[Side]:
    """Open every arm and replay the golden records through it; what is wrong is rejected and closed."""
    prepared = check_preprocessing(bundle)
    for arm in arms:
        what = f"{bundle.manifest.name}, {arm}"
        if not section.has_time(what):
            continue
        try:
            runner = arm.open(bundle)
        except Exception as error:  # noqa: BLE001 - whatever a library raises: the other sides are still measured
            section.leave_out(what, error)
            continue
        try:
            check_runner(bundle, runner, prepared)
        except SelfTestFailed as error:
            section.reject(what, error)
        except Exception as error:  # noqa: BLE001 - as above
            section.leave_out(what, error)
        else:
            yield Side(arm, runner)
            continue
        runner.close()


def telling_first(batches: Iterable[int]) -> list[int]:
    """Return the smallest, the largest, then the rest: what is left out for want of time is in between."""
    ordered = sorted(set(batches))
    return ordered[:1] + ordered[1:][-1:] + ordered[1:-1]


def cell_of(bundle: Bundle, batch: int) -> Cell:
    """Return a batch of golden rows, and what they must be answered with."""
    cases = bundle.golden()

    def tiled(parts: Sequence[Named]) -> Arrays:
        rows = {name: [row for part in parts for row in part[name]] for name in parts[0]}
        return {name: np.stack(list(islice(cycle(each), batch))) for name, each in rows.items()}

    return Cell(
        bundle=bundle,
        batch=batch,
        inputs=tiled([case.prepared for case in cases]),
        expected=tiled([case.outputs for case in cases]),
    )


def _measure(  # noqa: PLR0917 - a cell, its sides, and how
    cell: Cell,
    sides: Sequence[Side],
    turns: Turns,
    rng: np.random.Generator,
    section: Recorder,
    row: Callable[[Cell, Side, Side | None], dict[str, object]],
) -> None:
    fresh = [side.fresh() for side in sides]
    right = [side for side in fresh if _is_right(cell, side, section, answers_of)]
    for _ in range(turns.rounds):
        for index in rng.permutation(len(right)):
            right[index].right = right[index].right and _turn(cell, right[index], turns.repeats, section)
        if section.left_s < 0:
            break
    right = [side for side in right if side.right]
    base = next(
        (side for side in right if f"{side.arm.name} {side.arm.precision}" == BASE and not side.arm.graph), None
    )
    for side in right:
        section.row(**row(cell, side, base))


def _turn(cell: Cell, side: Side, repeats: int, section: Recorder) -> bool:
    """Let one side have its turn, and say whether it was right to the end."""

    def last_of(runner: TimedRunner, inputs: Named) -> Arrays:
        answer = runner.run(inputs)
        for _ in range(repeats):
            started_s = time.perf_counter()
            answer = runner.run(inputs)
            side.times_ms.append(1000 * (time.perf_counter() - started_s))
        return answer

    right = _is_right(cell, side, section, last_of)
    for _ in range(max(1, repeats // 4) if right else 0):
        milliseconds = side.runner.gpu_ms(cell.inputs)
        side.gpu_ms += [] if milliseconds is None else [milliseconds]
    return right


def _is_right(cell: Cell, side: Side, section: Recorder, ask: Callable[[TimedRunner, Named], Arrays]) -> bool:
    what = f"{cell.bundle.manifest.name}, {side.arm}, batch {cell.batch}"
    try:
        fault = cell.fault(ask(side.runner, cell.inputs), side.runner.identity.precision)
    except Exception as error:  # noqa: BLE001 - whatever a library raises: the other sides are still measured
        section.leave_out(what, error)
        return False
    if fault:
        section.reject(what, fault)
    return not fault


def _row(cell: Cell, side: Side, base: Side | None, macs: int | None, peak: Peak | None) -> dict[str, object]:
    p50, p99 = (float(np.percentile(side.times_ms, percent)) for percent in (50, 99))
    gpu = float(np.median(side.gpu_ms)) if side.gpu_ms else None
    return {
        "engine": cell.bundle.manifest.name,
        "batch": cell.batch,
        "side": side.arm.name,
        "precision": side.arm.precision,
        "CUDA graph": side.arm.graph,
        "p50 ms": p50,
        "p99 ms": p99,
        "items/s": 1000 * cell.batch / p50,
        "GPU ms": gpu,
        "GPU ms/item": None if gpu is None else gpu / cell.batch,
        "GMAC/item": None if macs is None else macs / 1e9,
        "% of FP16 peak": None if gpu is None else share_percent(macs, cell.batch, gpu, peak),
        "times eager": float(np.percentile(base.times_ms, 50)) / p50 if base else None,
        "runs": len(side.times_ms),
    }


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1).astype(np.float64)
