"""Several threads ask one engine: every prediction says which runtime computed it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from engines.bundle.reader import Bundle, load_bundle
from engines.predictors.base import BATCH_MAX, Predictor
from engines.preprocess.registry import Prepared
from engines.records import Modality
from engines.runtime.batcher import BatchLimits
from engines.runtime.runner import Arrays, RuntimeIdentity
from tests.doubles import bundles
from tests.doubles.runners import IDENTITY, ScriptedRunner

PLAN = RuntimeIdentity(
    runtime="tensorrt", version="10.15", precision="fp16", device="GPU sm_90", plan_sha256="ab" * 32, fallback=None
)
CPU = replace(IDENTITY, runtime="onnxruntime", fallback="The GPU ran out of memory.")


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny echo bundle, whose studies have many clips."""
    return load_bundle(bundles.write_tiny(tmp_path_factory.mktemp("bundles") / "echo", Modality.ECHO))


class ChangingRunner(ScriptedRunner):
    """Computes each run with the next of some runtimes; the ejection fraction is the first pixel."""

    def __init__(self, bundle: Bundle, runtimes: list[RuntimeIdentity]) -> None:
        super().__init__(bundle.manifest, _ejection_fractions)
        self._identity = runtimes[0]
        self.runtimes = list(runtimes)

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        self._identity = self.runtimes.pop(0) if self.runtimes else self._identity
        return super()._infer(inputs)


def _ejection_fractions(inputs: Mapping[str, np.ndarray]) -> Arrays:
    clip = inputs["clip"]
    return {"ef": clip[:, 0, 0, 0, :1].astype(np.float32), "embedding": np.zeros((len(clip), 4), np.float32)}


def _study(value: int, clips: int = 1) -> Prepared:
    clip = np.full((clips, 1, 2, 16, 16), value, dtype=np.uint8)
    return Prepared(arrays={"clip": clip}, sources=(bundles.SOURCE,), region_px=None, notes=())


def test_a_prediction_says_what_computed_it(echo: Bundle) -> None:
    """A fallback between two studies stands in the second one's prediction; the model is the same in both."""
    predictor = Predictor(echo, ChangingRunner(echo, [PLAN, CPU]))
    first, second = (predictor.predict([_study(50)]).model for _ in range(2))
    assert (first.runtime, first.plan_sha256, first.fallback) == ("tensorrt", "ab" * 32, None)
    assert (second.runtime, second.plan_sha256, second.fallback) == ("onnxruntime", None, CPU.fallback)
    assert (second.precision, second.device, second.runtime_version) == ("fp32", "CPU", "0")
    assert first.bundle_sha256 == second.bundle_sha256 == echo.sha256


def test_a_study_computed_by_two_runtimes_names_both(echo: Bundle) -> None:
    """Where a fallback came in the middle of a study, its reason is given and the plan that computed the rest."""
    predictor = Predictor(echo, ChangingRunner(echo, [PLAN, CPU]))
    model = predictor.predict([_study(50, clips=BATCH_MAX + 1)]).model
    assert model.runtime == "onnxruntime"
    assert model.fallback == (
        "The GPU ran out of memory; the other clips were computed by tensorrt 10.15 fp16 on GPU sm_90, "
        "plan abababababababab."
    )
    assert predictor.predict([_study(50, clips=BATCH_MAX + 1)]).model.fallback == CPU.fallback


def test_a_fallback_that_is_over_before_the_end_is_still_named(echo: Bundle) -> None:
    """A study whose first clips fell back and whose last did not is not reported as if it had not."""
    predictor = Predictor(echo, ChangingRunner(echo, [CPU, PLAN]))
    model = predictor.predict([_study(50, clips=BATCH_MAX + 1)]).model
    assert model.runtime == "onnxruntime"
    assert "computed by tensorrt" in str(model.fallback)


def test_threads_share_batches_and_keep_their_answers(echo: Bundle) -> None:
    """Four threads with a study each are one batch; each prediction is that of its own study."""
    runner = ChangingRunner(echo, [PLAN])
    shared = Predictor(echo, runner).batched(BatchLimits(rows=100, wait_s=10_000.0, callers=4))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda value: shared.predict([_study(value, 2), _study(value, 3)]), (40, 50, 60, 70)))
    shared.close()
    assert [prediction.estimates[0].value for prediction in found] == [40.0, 50.0, 60.0, 70.0]
    assert runner.batches == [20]
    assert {prediction.model.runtime for prediction in found} == {"tensorrt"}
    assert runner.released


def test_a_batched_predictor_is_the_same_engine(echo: Bundle) -> None:
    """Sharing changes neither what it answers for nor who it says it is."""
    alone = Predictor(echo, ChangingRunner(echo, [PLAN]), ("openvino: disagreed",))
    shared = alone.batched(BatchLimits(rows=4, wait_s=0.0, callers=2))
    assert (shared.identity, shared.modality, shared.spec) == (alone.identity, alone.modality, alone.spec)
    assert shared.rejected_runtimes == alone.rejected_runtimes
    shared.close()
