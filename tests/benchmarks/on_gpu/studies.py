"""Studies an hour from DICOM bytes to a prediction: decoding, preprocessing, engine; no PACS, no report.

Phantom studies are read by the product's own decoder, and answered by its own predictor on the GPU and on the CPU, which
must say the same. Once one after the other, and once with as many reading processes as the machine has room for.
"""

from __future__ import annotations

import io
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.bundle.reader import Bundle
from engines.predictions import Prediction
from engines.predictors.base import Predictor
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import CmrSpec, EcgSpec, EchoSpec
from engines.records import Modality
from engines.runtime.runner import Runner
from engines.selftest import open_verified_runner
from tests.benchmarks.on_gpu.plans import Plans, Workshop, opened
from tests.benchmarks.on_gpu.results import Recorder

SEED = 77
_NEEDS_S = 15.0
_DIFFERENCE_MAX = 0.5
"""EF points, l/min or hundredths of a probability between two runtimes."""

Spec = EchoSpec | CmrSpec | EcgSpec
Files = tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is read.

    Args:
        studies: different ones, per modality.
        repeats: how often each is read and answered.
        readers: processes that read at once; 0 for no such measurement.
    """

    studies: int
    repeats: int
    readers: int


def measure_studies(
    bundles: Iterable[Bundle], workshop: Workshop | None, plans: Plans, load: Load, section: Recorder
) -> None:
    """Add two rows for every engine and runtime."""
    with tempfile.TemporaryDirectory() as folder:
        for bundle in bundles:
            if section.has_time(bundle.manifest.name, _NEEDS_S):
                _measure(
                    bundle,
                    _phantoms(bundle.manifest.modality, load.studies, Path(folder)),
                    workshop,
                    plans,
                    load,
                    section,
                )


def _phantoms(modality: Modality, count: int, folder: Path) -> list[Files]:
    from training.phantoms.make import make_studies

    out = folder / modality.value
    truths = make_studies(modality.value, SEED, count, out)
    return [tuple((out / name).read_bytes() for name in truth.files) for truth in truths]


def _measure(  # noqa: PLR0917 - an engine, its studies, and how
    bundle: Bundle, studies: Sequence[Files], workshop: Workshop | None, plans: Plans, load: Load, section: Recorder
) -> None:
    cpu, _rejected = open_verified_runner(bundle)
    expected = [
        _answer(Predictor(bundle, cpu), read(bundle.manifest.modality, study, bundle.manifest.preprocess))
        for study in studies
    ]
    # One after the other: an engine on the GPU is open only while it has its turn.
    for runner in itertools.chain(_on_gpu(bundle, workshop, plans, section), [cpu]):
        _row(Predictor(bundle, runner), bundle, studies, expected, load, section)
    cpu.close()


def _on_gpu(bundle: Bundle, workshop: Workshop | None, plans: Plans, section: Recorder) -> Iterator[Runner]:
    """The best plan of each library, open while it is used."""
    for flavour in workshop.flavours if workshop else ():
        plan = plans.best(bundle, flavour.name)
        if workshop is None or plan is None:
            section.leave_out(f"{bundle.manifest.name} on {flavour.title}", "no plan passed its gate")
            continue
        with opened(workshop, bundle, flavour, plan) as runner:
            runner.warm_up([1])
            yield runner


def read(modality: Modality, study: Files, spec: Spec) -> tuple[Prepared, ...]:
    """Decode and prepare one study.

    Raises:
        Refusal: it cannot be used.
    """
    from engines.decode.study import read_instances

    reading = read_instances(modality, [io.BytesIO(content) for content in study], spec)
    if reading.refusal is not None:
        raise reading.refusal
    return reading.prepared


def _answer(engine: Predictor, prepared: tuple[Prepared, ...]) -> Prediction:
    return engine.predict(prepared if engine.modality is Modality.ECHO else prepared[:1])


def _row(  # noqa: PLR0917 - an engine on a runner, its studies, and how
    engine: Predictor,
    bundle: Bundle,
    studies: Sequence[Files],
    expected: Sequence[Prediction],
    load: Load,
    section: Recorder,
) -> None:
    identity = engine.identity
    what = f"{bundle.manifest.name} on {identity.runtime} {identity.precision}"
    apart = max(
        _difference(_answer(engine, _read(bundle, one)), other) for one, other in zip(studies, expected, strict=True)
    )
    if apart > _DIFFERENCE_MAX:
        section.reject(what, f"differs from the CPU by {apart:.3g}; at most {_DIFFERENCE_MAX:g}")
        return
    read_s, predict_s = _one_after_the_other(engine, bundle, studies, load.repeats)
    hourly = 3600 * len(read_s) / (sum(read_s) + sum(predict_s))
    together = _together(engine, bundle, studies, load) if load.readers else None
    section.row(
        engine=bundle.manifest.name,
        runtime=identity.runtime,
        precision=identity.precision,
        device=identity.device,
        studies=len(read_s),
        **{
            "read ms": 1000 * statistics.median(read_s),
            "predict ms": 1000 * statistics.median(predict_s),
            "studies/h, one process": hourly,
            "readers": load.readers,
            "studies/h with them": together,
            "differs from the CPU by": apart,
        },
    )


def _read(bundle: Bundle, study: Files) -> tuple[Prepared, ...]:
    return read(bundle.manifest.modality, study, bundle.manifest.preprocess)


def _one_after_the_other(
    engine: Predictor, bundle: Bundle, studies: Sequence[Files], repeats: int
) -> tuple[list[float], list[float]]:
    read_s, predict_s = [], []
    for study in [*studies] * repeats:
        started_s = time.perf_counter()
        prepared = _read(bundle, study)
        decoded_s = time.perf_counter()
        _answer(engine, prepared)
        read_s.append(decoded_s - started_s)
        predict_s.append(time.perf_counter() - decoded_s)
    return read_s, predict_s


def _together(engine: Predictor, bundle: Bundle, studies: Sequence[Files], load: Load) -> float:
    """Studies an hour with processes that read, and this one that answers."""
    with _readers(load.readers) as pool:
        modality, spec = bundle.manifest.modality, bundle.manifest.preprocess
        list(pool.map(read, [modality] * load.readers, [studies[0]] * load.readers, [spec] * load.readers))
        work = [*studies] * max(1, load.repeats * load.readers)
        started_s = time.perf_counter()
        for prepared in pool.map(read, [modality] * len(work), work, [spec] * len(work)):
            _answer(engine, prepared)
        return 3600 * len(work) / (time.perf_counter() - started_s)


@contextmanager
def _readers(count: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned: a process that was forked after CUDA was used cannot use it, nor safely anything else.
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def _difference(found: Prediction, expected: Prediction) -> float:
    """Largest difference of the numbers, probabilities in hundredths; infinite where one of the two abstains."""
    if (found.abstention is None) != (expected.abstention is None):
        return float("inf")
    estimates = zip(found.estimates, expected.estimates, strict=True)
    probabilities = zip(found.probabilities, expected.probabilities, strict=True)
    return max(
        0.0,
        *(abs(one.value - other.value) for one, other in estimates),
        *(100 * abs(one.probability - other.probability) for one, other in probabilities),
    )
