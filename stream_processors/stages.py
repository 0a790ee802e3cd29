"""The stages a study passes, how long each took, and the points at which a test may stop the process.

Used by ``pipeline`` and ``consumer``. A checkpoint is called after each stage; in service it does nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum


class Stage(StrEnum):
    """Stages in order; the value is the key in ``stage_ms``."""

    LOOKUP = "lookup"
    FETCH = "fetch"
    READ = "read"
    PREDICT = "predict"
    CROSS_MODAL = "cross_modal"
    REPORT = "report"
    COMPANION = "companion"
    STORE = "store"
    VERIFY = "verify"
    PUBLISH = "publish"
    COMMIT = "commit"


Checkpoint = Callable[[Stage], None]


def pass_by(stage: Stage) -> None:
    """The checkpoint of a process in service: nothing happens."""


def kill_after(stage: Stage) -> Checkpoint:
    """A checkpoint that ends this process with SIGKILL after a stage, for the fault tests (``PURKINJE_FAILPOINT``)."""

    def checkpoint(reached: Stage) -> None:
        if reached is stage:
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint


class Stopwatch:
    """Times the stages of one study; monotonic, so that a stepped clock changes nothing.

    Args:
        checkpoint: called after each stage.
        waited_ms: what the study had waited before, by the wall clock.
    """

    def __init__(self, checkpoint: Checkpoint, waited_ms: Mapping[str, float]) -> None:
        self._checkpoint = checkpoint
        self._started_s = time.perf_counter()
        self._waited_ms = waited_ms
        self._stage_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: Stage) -> Iterator[None]:
        """Time one stage; the checkpoint is reached only when it succeeded."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self._stage_ms[stage] = self._stage_ms.get(stage, 0.0) + _milliseconds_since(started_s)
        self._checkpoint(stage)

    @property
    def stage_ms(self) -> dict[str, float]:
        """Milliseconds waited before, per stage so far, and ``total`` since the message was taken."""
        return {**self._waited_ms, **self._stage_ms, "total": _milliseconds_since(self._started_s)}


def _milliseconds_since(started_s: float) -> float:
    return round((time.perf_counter() - started_s) * 1000, 3)
