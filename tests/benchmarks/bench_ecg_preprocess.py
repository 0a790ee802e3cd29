"""Preprocessing of one 12-lead ECG of 10 s on one core: the engine's gate and profile against a published baseline removal.

The peer arm is asymmetric least squares as it is published, a sparse system solved five times per lead. Before anything is
timed the engine's banded solution must equal it to 1e-5 mV, and the engine's own arm must keep a 7 Hz sine within 1 %. All
arms run in one process, one after the other in every round.

    python -m tests.benchmarks.bench_ecg_preprocess --out ecg_preprocess.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve

from engines.preprocess.ecg_profiles import ALS_ASYMMETRY, ALS_ITERATIONS, ALS_LAMBDA, als_baseline
from engines.preprocess.registry import prepare
from engines.preprocess.spec import EcgCleanSpec
from engines.records import EcgRecord
from tests.benchmarks.interleave import interleaved
from training.phantoms.ecg import ecg_record, twelve
from training.phantoms.subjects import draw_subject

SPECS = Path(__file__).parents[1] / "unit" / "engines" / "test_preprocess_specs.json"
SPEC = EcgCleanSpec(**json.loads(SPECS.read_text())["ecg_clean"])
AT_MOST_MS = 20.0


def main() -> int:
    """Measure and write; 1 where an arm is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    record = at_500_hz()
    correct = {"engine": keeps_a_sine(record), "peer": same_baseline(record)}
    taken = interleaved(arms_of(record), options.rounds, clock=time.process_time)
    engine = taken["engine: gate and ecg_clean_2026"]
    rows = [
        {
            "what": arm,
            "median ms": statistics.median(times),
            "times the engine": statistics.median(time / own for time, own in zip(times, engine, strict=True)),
            "at most 20 ms": "yes" if statistics.median(times) <= AT_MOST_MS else "no",
            "correct": correct[arm.split(":", maxsplit=1)[0]],
        }
        for arm, times in taken.items()
    ]
    environment = {each: version(each) for each in ("scipy", "numpy")} | {"machine": platform.machine()}
    options.out.write_text(json.dumps({"name": "ECG to tensor, one core", "rows": rows, "environment": environment}))
    return 0 if all(correct.values()) else 1


def at_500_hz() -> EcgRecord:
    """The first phantom that was recorded at 500 Hz."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        record = ecg_record(draw_subject(rng), rng)
        if record.sampling_rate_hz == 500:
            return record
    msg = "no phantom at 500 Hz among the first 100"
    raise RuntimeError(msg)


def keeps_a_sine(record: EcgRecord) -> bool:
    """Whether the engine's profile gives a sine of 1 mV back, but for the 2 s at each end in which the high-pass settles."""
    time_s = np.arange(5000) / 500
    waves = np.stack([np.sin(2 * np.pi * 7 * time_s + lead) for lead in range(8)])
    sine = replace(record, signal_mv=twelve(waves).astype(np.float32))
    found = prepare(sine, SPEC).arrays["ecg"][0]
    return bool(np.abs(found - sine.signal_mv)[:, 1000:4000].max() < 0.01 * np.abs(sine.signal_mv).max())


def same_baseline(record: EcgRecord) -> bool:
    """Whether the banded solution is the published one."""
    leads = record.signal_mv[:2].astype(float)
    return bool(np.abs(als_baseline(leads) - published_baseline(leads)).max() < 1e-5)


def published_baseline(signal_mv: np.ndarray) -> np.ndarray:
    """Asymmetric least squares by general sparse solves, float64 [L, N]."""
    count = signal_mv.shape[1]
    difference = sparse.diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(count - 2, count))
    penalty = ALS_LAMBDA * difference.T @ difference
    return np.stack([_published_of_one(lead, penalty) for lead in signal_mv])


def _published_of_one(lead_mv: np.ndarray, penalty: Any) -> np.ndarray:
    weights, baseline = np.ones(len(lead_mv)), lead_mv
    for _ in range(ALS_ITERATIONS):
        baseline = spsolve((sparse.diags(weights) + penalty).tocsc(), weights * lead_mv)
        weights = np.where(lead_mv > baseline, ALS_ASYMMETRY, 1 - ALS_ASYMMETRY)
    return np.asarray(baseline)


def arms_of(record: EcgRecord) -> dict[str, Callable[[], Any]]:
    """Every arm as a function without arguments."""
    signal_mv = record.signal_mv.astype(float)
    named = {name: SPEC.model_copy(update={"profile": name}) for name in ("ecg_clean_2026", "ams2025", "turgut2025")}
    engine = {f"engine: gate and {name}": lambda spec=spec: prepare(record, spec) for name, spec in named.items()}
    return {**engine, "peer: published baseline, no gate": lambda: signal_mv - published_baseline(signal_mv)}


if __name__ == "__main__":
    sys.exit(main())
