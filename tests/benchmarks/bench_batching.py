"""Cross-study batching on a CPU: throughput and waiting time of the batcher against batch 1, under Poisson load.

Studies arrive at random at 50, 80 and 95 % of what batch 1 can do, and all at once (saturated). Both arms are the same
``BatchingRunner`` around the same runner and are given the same arrivals, in turn; one may put several studies into a
run, the other may not. A time is from the moment a study should have arrived to its answer. Every answer is compared
with that of a run alone.

    python -m tests.benchmarks.bench_batching --out batching.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from engines.bundle.reader import Bundle, load_bundle, released_bundle
from engines.records import Modality
from engines.runtime.batcher import BatchingRunner, BatchLimits
from engines.runtime.open import RUNTIMES
from engines.runtime.runner import Arrays, Runner, RuntimeIdentity
from engines.selftest import open_verified_runner

CALLERS = 16
STUDIES = 6
LOADS = {"50 %": 0.5, "80 %": 0.8, "95 %": 0.95, "saturated": None}
SATURATED_STUDIES = 64


def main() -> int:
    """Measure and write; 1 when an answer is not that of a run alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--engines", nargs="*", default=["ecg", "echo"], choices=[modality.value for modality in Modality]
    )
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES), choices=list(RUNTIMES), help="best first")
    parser.add_argument("--seconds", type=float, default=3.0, help="of arrivals, per load, arm and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16, help="most rows of a batch")
    parser.add_argument("--wait-ms", type=float, default=5.0, help="longest wait for company")
    options = parser.parse_args()
    rows = [row for name in options.engines for row in measure(load_bundle(released_bundle(Modality(name))), options)]
    packages = ("onnxruntime", "openvino", "numpy")
    environment = {name: version(name) for name in packages} | {"machine": platform.machine()}
    options.out.write_text(
        json.dumps({"name": "Cross-study batching on a CPU, Poisson load", "rows": rows, "environment": environment})
    )
    return 0 if all(row["correct"] for row in rows) else 1


class Counting:
    """A runner that remembers how many rows each run had."""

    def __init__(self, inner: Runner) -> None:
        self._inner = inner
        self.batches: list[int] = []

    @property
    def identity(self) -> RuntimeIdentity:
        """Of the inner runner."""
        return self._inner.identity

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Count and run."""
        self.batches.append(len(next(iter(inputs.values()))))
        return self._inner.run(inputs)

    def close(self) -> None:
        """Nothing: the other arm goes on with the inner runner."""


@dataclass
class Arm:
    """One way to serve, and what it has done so far under one load."""

    name: str
    limits: BatchLimits
    times_ms: list[float] = field(default_factory=list)
    spans_s: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    correct: bool = True


@dataclass(frozen=True)
class Question:
    """A study, what a run alone says of it, and how far an answer may be from that."""

    study: Arrays
    expected: Arrays
    tolerances: Mapping[str, float]

    def answered_by(self, answer: Arrays) -> bool:
        """Whether an answer is that of a run alone."""
        return all(np.abs(answer[name] - self.expected[name]).max() <= limit for name, limit in self.tolerances.items())


def measure(bundle: Bundle, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every load for one engine, both arms in turn."""
    runner, _ = open_verified_runner(bundle, options.runtimes)
    questions = studies_of(bundle, runner)
    warm_up(runner, questions, options.rows)
    alone_s = time_alone_s(runner, questions)
    random = np.random.default_rng(7)
    found = []
    for load, share in LOADS.items():
        arms = arms_of(options)
        for turn in range(options.rounds):
            arrivals_s = arrivals(random, share, alone_s, options.seconds)
            for arm in arms if turn % 2 == 0 else arms[::-1]:
                serve(arm, runner, bundle, questions, arrivals_s)
        found += [row_of(bundle, runner, load, arm, arms[0]) for arm in arms]
    runner.close()
    return found


def arms_of(options: argparse.Namespace) -> list[Arm]:
    """Batch 1 first."""
    wait_s = options.wait_ms / 1000
    return [
        Arm("batch 1", BatchLimits(rows=1, wait_s=0.0, callers=CALLERS)),
        Arm(f"up to {options.rows} rows", BatchLimits(rows=options.rows, wait_s=wait_s, callers=CALLERS)),
    ]


def studies_of(bundle: Bundle, runner: Runner) -> list[Question]:
    """Different studies: the golden ones, then the same turned along their last axis."""
    golden = [dict(case.prepared) for case in bundle.golden()]
    studies = [
        {
            name: np.roll(array, 3 * (index // len(golden)), axis=-1)
            for name, array in golden[index % len(golden)].items()
        }
        for index in range(STUDIES)
    ]
    tolerances = bundle.manifest.golden.output_tolerance
    return [Question(study, runner.run(study), tolerances) for study in studies]


def warm_up(runner: Runner, questions: list[Question], rows: int) -> None:
    """Run every batch size once: a runtime may compile for each."""
    each = len(next(iter(questions[0].study.values())))
    for count in range(1, max(1, rows // each) + 1):
        runner.run({name: np.concatenate([array] * count) for name, array in questions[0].study.items()})


def time_alone_s(runner: Runner, questions: list[Question]) -> float:
    """Median time of a study by itself."""
    taken = []
    for question in questions * 3:
        started_s = time.perf_counter()
        runner.run(question.study)
        taken.append(time.perf_counter() - started_s)
    return statistics.median(taken)


def arrivals(random: np.random.Generator, share: float | None, alone_s: float, seconds: float) -> np.ndarray:
    """Moments of arrival, seconds: exponential gaps at that share of 1 / alone_s, or all at once."""
    if share is None:
        return np.zeros(min(SATURATED_STUDIES, max(4, round(seconds / alone_s))))
    count = max(4, round(share / alone_s * seconds))
    return np.cumsum(random.exponential(alone_s / share, count))


def serve(arm: Arm, runner: Runner, bundle: Bundle, questions: list[Question], arrivals_s: np.ndarray) -> None:
    """Let the studies arrive, and add what happened to the arm."""
    counting = Counting(runner)
    batcher = BatchingRunner(counting, bundle.manifest, arm.limits)
    lock = threading.Lock()
    ends_s: list[float] = []

    def ask(question: Question, arrived_s: float) -> None:
        answer = batcher.run(question.study)
        now_s = time.perf_counter() - started_s
        right = question.answered_by(answer)
        with lock:
            ends_s.append(now_s)
            arm.times_ms.append(1000 * (now_s - arrived_s))
            arm.correct = arm.correct and right

    with ThreadPoolExecutor(CALLERS) as pool:
        started_s = time.perf_counter()
        futures = []
        for question, arrived_s in zip(itertools.cycle(questions), arrivals_s, strict=False):
            time.sleep(max(0.0, arrived_s - (time.perf_counter() - started_s)))
            futures.append(pool.submit(ask, question, float(arrived_s)))
    batcher.close()
    for future in futures:
        future.result()
    arm.spans_s.append(max(ends_s) - float(arrivals_s[0]))
    arm.batches += counting.batches


def row_of(bundle: Bundle, runner: Runner, load: str, arm: Arm, first: Arm) -> dict[str, Any]:
    """What one arm did under one load."""
    throughput, of_first = (len(one.times_ms) / sum(one.spans_s) for one in (arm, first))
    return {
        "engine": f"{bundle.manifest.name}, {runner.identity.runtime}",
        "load": load,
        "arm": arm.name,
        "studies": len(arm.times_ms),
        "studies/s": throughput,
        "times batch 1": throughput / of_first,
        "p50 ms": float(np.percentile(arm.times_ms, 50)),
        "p99 ms": float(np.percentile(arm.times_ms, 99)),
        "rows a run": statistics.mean(arm.batches),
        "correct": arm.correct,
    }


if __name__ == "__main__":
    sys.exit(main())
