"""Cross-study batching on the GPU: throughput and waiting time under Poisson load, as ``bench_batching`` on a CPU."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engines.build.limits import checks
from engines.bundle.reader import Bundle
from engines.runtime.runner import Arrays
from engines.runtime.tensorrt_runner import TensorRtRunner
from tests.benchmarks import bench_batching as batching
from tests.benchmarks.on_gpu.plans import Plans, Workshop, opened
from tests.benchmarks.on_gpu.results import Recorder

_NEEDS_S = 15.0


def measure_load(bundles: Iterable[Bundle], workshop: Workshop | None, plans: Plans, section: Recorder) -> None:
    """Add one row for every engine, load and side."""
    if workshop is None:
        section.leave_out("batching on the GPU", "no GPU with TensorRT; `make bench` measures it on the CPU")
        return
    options = argparse.Namespace(rows=16, wait_ms=2.0, seconds=1.0)
    for bundle in bundles:
        for flavour in workshop.flavours:
            plan = plans.best(bundle, flavour.name)
            if plan is None:
                section.leave_out(f"{bundle.manifest.name}, {flavour.title}", "no plan passed its gate")
                continue
            with opened(workshop, bundle, flavour, plan) as runner:
                _measure(bundle, runner, options, section)


@dataclass(frozen=True)
class Judged(batching.Question):
    """A question whose answer may differ from that of a run alone by what the gate allows in this precision."""

    bundle: Bundle
    precision: str

    def answered_by(self, answer: Arrays) -> bool:
        """Whether all limits of the gate hold."""
        return all(
            check.holds(check.value(_rows(answer[check.output]), _rows(self.expected[check.output])))
            for check in checks(self.bundle.manifest, self.precision)
        )


def _measure(bundle: Bundle, runner: TensorRtRunner, options: argparse.Namespace, section: Recorder) -> None:
    precision = runner.identity.precision
    questions: list[batching.Question] = [
        Judged(one.study, one.expected, one.tolerances, bundle, precision)
        for one in batching.studies_of(bundle, runner)
    ]
    batching.warm_up(runner, questions, options.rows)
    alone_s = batching.time_alone_s(runner, questions)
    random = np.random.default_rng(7)
    for load, share in batching.LOADS.items():
        if not section.has_time(f"{bundle.manifest.name}, {load}", _NEEDS_S):
            return
        arms = batching.arms_of(options)
        arrivals_s = batching.arrivals(random, share, alone_s, options.seconds)
        for arm in arms:
            batching.serve(arm, runner, bundle, questions, arrivals_s)
        for arm in arms:
            row = batching.row_of(bundle, runner, load, arm, arms[0])
            if row.pop("correct"):
                section.row(**row)
            else:
                section.reject(f"{bundle.manifest.name}, {load}, {arm.name}", "an answer is not that of a run alone")


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1).astype(np.float64)
