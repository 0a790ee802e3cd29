"""The released engines answer the same in company as alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.bundle.reader import Bundle, load_bundle, released_bundle
from engines.records import Modality
from engines.runtime.batcher import BatchingRunner, BatchLimits
from engines.runtime.onnx_runner import OnnxRunner
from engines.runtime.runner import Arrays

CALLERS = 4


class CountingRunner(OnnxRunner):
    """Remembers how many rows each run had."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.batches: list[int] = []

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        self.batches.append(len(next(iter(inputs.values()))))
        return super()._infer(inputs)


@pytest.fixture(params=list(Modality), ids=[modality.value for modality in Modality])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """The released bundle of a modality."""
    return load_bundle(released_bundle(request.param))


@pytest.fixture
def alone(bundle: Bundle) -> Iterator[OnnxRunner]:
    """ONNX Runtime by itself."""
    runner = OnnxRunner(bundle)
    yield runner
    runner.close()


def test_batched_answers_are_those_of_single_runs(bundle: Bundle, alone: OnnxRunner) -> None:
    """Four studies in one batch give the outputs of four runs, well within the tolerance of the golden vectors.

    The last bits may differ: ONNX Runtime chooses its kernels by batch size. The largest differences are printed.
    """
    studies = _studies(bundle)
    expected = [alone.run(study) for study in studies]
    assert len({outputs["embedding"].tobytes() for outputs in expected}) == CALLERS  # an exchange would be seen
    inner = CountingRunner(bundle)
    rows = sum(len(next(iter(study.values()))) for study in studies)
    batcher = BatchingRunner(inner, bundle.manifest, BatchLimits(rows=rows, wait_s=10_000.0, callers=CALLERS))
    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(batcher.run, studies))
    batcher.close()
    assert inner.batches == [rows]
    differences = {
        name: max(float(np.abs(ours[name] - theirs[name]).max()) for ours, theirs in zip(found, expected, strict=True))
        for name in expected[0]
    }
    print(f"{bundle.manifest.name}, {rows} rows: {differences}")  # noqa: T201 - shown with -s and when the test fails
    tolerances = bundle.manifest.golden.output_tolerance
    assert all(differences[name] <= tolerances[name] for name in tolerances), differences


def _studies(bundle: Bundle) -> list[Arrays]:
    """As many different inputs as callers: the golden ones, then the same with a part set to nothing."""
    golden = [dict(case.prepared) for case in bundle.golden()]
    return [_varied(golden[index % len(golden)], index // len(golden)) for index in range(CALLERS)]


def _varied(arrays: Arrays, turn: int) -> Arrays:
    if not turn:
        return arrays
    return {name: np.roll(array, turn, axis=-1) for name, array in arrays.items()}
