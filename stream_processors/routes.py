"""One route per modality: the topic its studies arrive on, the child that reads them, the engine that answers.

Opened once at start; opening runs the engine's self-test. Each route belongs to one lane and so to one thread; where a
modality has several lanes, their routes share its engine, and each has a child of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from engines.accelerate import PARTS, GpuOptions, open_accelerated
from engines.build.compile import BatchRange
from engines.bundle.reader import load_bundle, released_bundle
from engines.bundle.second_graphs import TrustedLabel, ViewAttribute
from engines.decode.sandbox import DecodeLimits, DecodeSandbox
from engines.decode.spool import Spool
from engines.decode.study import StudyReading
from engines.predictions import ModelIdentity, Prediction
from engines.predictors.base import Predictor
from engines.preprocess.cmr_volume import CmrVolumeSpec
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import PreprocessSpec
from engines.records import Modality
from engines.runtime.batcher import BatchLimits
from engines.runtime.open import RUNTIMES
from engines.selftest import open_verified_runner, open_view_check
from orthanc_plugin.wire.events import ready_topic
from stream_processors.settings import BatchSettings, DecodeSettings, EngineSettings

_log = structlog.get_logger("stream_processors.routes")


class Sandbox(Protocol):
    """Reads and prepares a study where a hostile file can do no harm: ``engines.decode.sandbox.DecodeSandbox``."""

    def read_study(self, modality: Modality, spool: Spool, spec: PreprocessSpec | CmrVolumeSpec) -> StudyReading:
        """Prepared arrays and headers, or a refusal."""

    def close(self) -> None:
        """End the child process."""


class Engine(Protocol):
    """Answers for one study: ``engines.predictors.base.Predictor``."""

    @property
    def spec(self) -> PreprocessSpec:
        """How its input is prepared."""

    @property
    def identity(self) -> ModelIdentity:
        """Which engine speaks."""

    def predict(self, prepared: Sequence[Prepared]) -> Prediction:
        """The answer, or an abstention."""

    def close(self) -> None:
        """Give memory back."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """Everything one modality needs between the log and the report."""

    modality: Modality
    sandbox: Sandbox
    engine: Engine

    @property
    def topic(self) -> str:
        """Where its studies are announced."""
        return ready_topic(self.modality)

    def read(self, spool: Spool) -> StudyReading:
        """Decode and prepare in the child."""
        return self.sandbox.read_study(self.modality, spool, self.engine.spec)

    def close(self) -> None:
        """End the child, free the engine."""
        self.sandbox.close()
        self.engine.close()


def silent(_sentence: str) -> None:
    """Nobody asked to be told."""


def open_route(
    modality: Modality,
    engine: EngineSettings,
    decode: DecodeSettings,
    *,
    batch: BatchSettings | None = None,
    building: Callable[[str], None] = silent,
) -> Route:
    """Verify and self-test the engine of a modality and start the child that reads its studies.

    Args:
        modality: which engine.
        engine: of the settings.
        decode: of the settings.
        batch: of the lanes that will share the engine; None where there is one.
        building: is told while a plan is built, which may take minutes.

    Raises:
        BundleError: the bundle is altered, or no runtime reproduces its golden vectors.
    """
    opened = open_engine(modality, engine, building=building)
    shared = opened if batch is None else opened.batched(limits_of_batch(batch))
    return _started(Route(modality=modality, engine=shared, sandbox=DecodeSandbox(limits_of(decode))))


def open_beside(route: Route, decode: DecodeSettings) -> Route:
    """Start a further lane's child; its engine is that of ``route``, which closes it."""
    return _started(replace(route, sandbox=DecodeSandbox(limits_of(decode))))


def open_engine(
    modality: Modality, settings: EngineSettings, *, building: Callable[[str], None] = silent, build: bool = True
) -> Predictor:
    """Load the site's bundle of a modality, or the released one, and replay its golden records.

    Args:
        modality: which engine.
        settings: of the engines.
        building: is told while a plan is built.
        build: whether a missing plan may be built now.

    Raises:
        BundleError: see ``open_route``.
        DeviceLost: the GPU's context is gone; only a new process gets a new one.
    """
    bundle = load_bundle(bundle_path(modality, settings))
    openers = cpu_openers(settings)
    runner, rejected = open_verified_runner(bundle, settings.cpu_runtimes, openers)
    view_check = open_view_check(
        bundle, settings.cpu_runtimes, openers, trusted=trusted_labels(settings.trusted_view_labels)
    )
    if "tensorrt" in settings.runtimes:
        options = gpu_options(modality, settings, build=build)
        say = partial(_log.info, "engine.opening", modality=modality.value)
        runner = open_accelerated(
            bundle, options, cpu=runner, log=lambda sentence: say(message=sentence), building=building, parts=PARTS
        )
    return Predictor(bundle, runner, rejected, view_check)


def bundle_path(modality: Modality, settings: EngineSettings) -> Path:
    """Where the bundle of a modality lies: the site's, or the released one."""
    return released_bundle(modality) if settings.bundles is None else settings.bundles / modality.value


def cpu_openers(settings: EngineSettings) -> dict[str, Any]:
    """How to open each runtime of the CPU with the threads of the settings."""
    return {name: partial(runner, threads=settings.threads) for name, runner in RUNTIMES.items()}


def trusted_labels(labels: Mapping[ViewAttribute, tuple[str, ...]]) -> tuple[TrustedLabel, ...]:
    """The patterns of the settings in the form of the manifest."""
    return tuple(
        TrustedLabel(attribute=attribute, pattern=pattern)
        for attribute, patterns in labels.items()
        for pattern in patterns
    )


def gpu_options(modality: Modality, settings: EngineSettings, *, build: bool) -> GpuOptions:
    """How the engine of a modality is to run on a GPU."""
    gpu = settings.gpu
    return GpuOptions(
        device=gpu.device,
        flavour=gpu.flavour,
        precisions=gpu.precision.of(modality),
        batch=BatchRange(minimum=1, optimum=gpu.batch.optimum, maximum=gpu.batch.maximum),
        plans=gpu.plans,
        cache_bytes=gpu.cache_bytes,
        memory_bytes=gpu.memory_bytes,
        expected=settings.gpu_expected,
        build=build,
    )


def limits_of_batch(settings: BatchSettings) -> BatchLimits:
    """When a batch of these lanes goes."""
    return BatchLimits(rows=settings.max_batch, wait_s=settings.max_wait_ms / 1000, callers=settings.lanes)


def limits_of(settings: DecodeSettings) -> DecodeLimits:
    """The limits of the child, with those the site has set in place of the built-in ones."""
    return DecodeLimits(**settings.model_dump(exclude_none=True))


def _started(route: Route) -> Route:
    with Spool() as nothing:
        route.read(nothing)  # the child starts now, not with the first study
    return route
