"""One route per modality: the topic its studies arrive on, the child that reads them, the engine that answers.

Opened once at start; opening runs the engine's self-test. Each route belongs to one lane and so to one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from engines.bundle.reader import load_bundle, released_bundle
from engines.decode.sandbox import DecodeLimits, DecodeSandbox
from engines.decode.spool import Spool
from engines.decode.study import StudyReading
from engines.predictions import ModelIdentity, Prediction
from engines.predictors.base import Predictor
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import PreprocessSpec
from engines.records import Modality
from engines.runtime.open import RUNTIMES
from engines.selftest import open_verified_runner
from orthanc_plugin.wire.events import ready_topic
from stream_processors.settings import DecodeSettings, EngineSettings


class Sandbox(Protocol):
    """Reads and prepares a study where a hostile file can do no harm: ``engines.decode.sandbox.DecodeSandbox``."""

    def read_study(self, modality: Modality, spool: Spool, spec: PreprocessSpec) -> StudyReading:
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


def open_route(modality: Modality, engine: EngineSettings, decode: DecodeSettings) -> Route:
    """Verify and self-test the engine of a modality and start the child that reads its studies.

    Raises:
        BundleError: the bundle is altered, or no runtime reproduces its golden vectors.
    """
    route = Route(modality=modality, engine=open_engine(modality, engine), sandbox=DecodeSandbox(limits_of(decode)))
    with Spool() as nothing:
        route.read(nothing)  # the child starts now, not with the first study
    return route


def open_engine(modality: Modality, settings: EngineSettings) -> Predictor:
    """Load the site's bundle of a modality, or the released one, and replay its golden records.

    Raises:
        BundleError: see ``open_route``.
    """
    path = released_bundle(modality) if settings.bundles is None else settings.bundles / modality.value
    bundle = load_bundle(path)
    openers: dict[str, Any] = {name: partial(runner, threads=settings.threads) for name, runner in RUNTIMES.items()}
    runner, rejected = open_verified_runner(bundle, settings.runtimes, openers)
    return Predictor(bundle, runner, rejected)


def limits_of(settings: DecodeSettings) -> DecodeLimits:
    """The limits of the child, with those the site has set in place of the built-in ones."""
    return DecodeLimits(**settings.model_dump(exclude_none=True))
