"""Several callers, one runner: requests that come close together are run as one batch, by one thread.

A batch goes when it is full, when nobody else can come, or when its oldest request has waited long enough. There is one
``BatchingRunner`` for each engine, so that an ECG never waits behind a cardiac MR. Made by
``predictors.base.Predictor.batched``; where one caller is all there is, none is needed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.manifest import Manifest
from engines.errors import DeviceLost, EngineError, InferenceError
from engines.runtime.checks import check_inputs, check_outputs
from engines.runtime.runner import Arrays, Runner, RuntimeIdentity

Answer = tuple[Arrays, RuntimeIdentity]


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """When a batch goes.

    Args:
        rows: most rows of a batch; a request with more goes alone, and the runner splits it where it must.
        wait_s: how long the oldest request waits for company.
        callers: threads that may ask; when all of them wait nothing more can come, and the batch goes.
        waiting: requests that may wait; a caller beyond that waits for room.
    """

    rows: int
    wait_s: float
    callers: int
    waiting: int = 64

    def __post_init__(self) -> None:
        if min(self.rows, self.callers, self.waiting) < 1 or not self.wait_s >= 0.0:
            msg = f"{self}; expected rows, callers and waiting of at least 1, and a wait that is not negative"
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What one caller asked: checked ``inputs`` of ``rows`` rows, when, and where the answer goes."""

    inputs: Mapping[str, NDArray[Any]]
    rows: int
    asked_s: float
    answer: Future[Answer] = field(default_factory=Future)


class Gathering:
    """The requests that wait, oldest first. Has neither thread nor clock; not locked.

    Args:
        limits: when a batch goes.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._requests: deque[Request] = deque()

    @property
    def full(self) -> bool:
        """No room for another request."""
        return len(self._requests) >= self._limits.waiting

    def add(self, request: Request) -> None:
        """Put a request behind the others."""
        self._requests.append(request)

    def due_in_s(self, now_s: float) -> float | None:
        """Seconds until the next batch goes: 0 when it may go now, None when nothing waits."""
        if not self._requests:
            return None
        complete = len(self._requests) >= self._limits.callers
        if complete or sum(request.rows for request in self._requests) >= self._limits.rows:
            return 0.0
        return max(0.0, self._requests[0].asked_s + self._limits.wait_s - now_s)

    def take(self) -> list[Request]:
        """Take the oldest request and those behind it that fit beside it; nobody is overtaken."""
        batch: list[Request] = []
        rows = 0
        while self._requests and (not batch or rows + self._requests[0].rows <= self._limits.rows):
            batch.append(self._requests.popleft())
            rows += batch[-1].rows
        return batch

    def take_all(self) -> list[Request]:
        """Take everything."""
        batch = list(self._requests)
        self._requests.clear()
        return batch


class BatchingRunner:
    """A ``Runner`` for many threads around a runner for one.

    Only the executing thread calls the inner runner after this has been made, ``close`` included; a runtime that ties
    its context to a thread has to make it current there. ``identity`` is that of the calling thread's last run.

    An error of a batch of several is followed by one run for each caller, so that one study never fails its neighbours;
    a lost device fails them all at once. An error in the inputs of one caller is found before they are batched.

    Args:
        runner: the inner one; belongs to this object from now on.
        manifest: says what goes in and out.
        limits: when a batch goes.
        clock: seconds that only grow.
    """

    def __init__(
        self, runner: Runner, manifest: Manifest, limits: BatchLimits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runner = runner
        self._manifest = manifest
        self._clock = clock
        self._gathering = Gathering(limits)
        self._identity = runner.identity
        self._caller = threading.local()
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False
        self._not_closed: EngineError | None = None
        self._thread = threading.Thread(target=self._work, name=f"batch-{manifest.name}", daemon=True)
        self._thread.start()

    @property
    def identity(self) -> RuntimeIdentity:
        """Of the calling thread's last run; of the latest run of all where it has made none."""
        own: RuntimeIdentity = getattr(self._caller, "identity", self._identity)
        return own

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph, beside whatever other threads ask for; see ``Runner.run``.

        Raises:
            DeviceLost: also where the executing thread has ended.
        """
        rows = check_inputs(self._manifest.inputs, inputs)
        request = Request(inputs=inputs, rows=rows, asked_s=self._clock())
        self._hand_in(request)
        outputs, self._caller.identity = request.answer.result()
        return outputs

    def close(self) -> None:
        """Answer who waits, close the inner runner, end the thread.

        Raises:
            EngineError: the inner runner did not close.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._not_closed is not None:
            raise self._not_closed

    def _hand_in(self, request: Request) -> None:
        with self._changed:
            self._require_open()
            self._wait_for_room()
            self._gathering.add(request)
            self._changed.notify_all()

    def _require_open(self) -> None:
        if self._closed:
            msg = f"the runner of {self._manifest.name} is closed; open a new one"
            raise ValueError(msg)

    def _wait_for_room(self) -> None:
        self._changed.wait_for(lambda: self._closed or self._ended or not self._gathering.full)
        if self._closed:
            msg = f"the runner of {self._manifest.name} was closed before there was room for the request"
            raise InferenceError(msg)
        if self._ended:
            raise self._thread_ended()

    def _work(self) -> None:
        batch: list[Request] = []
        try:
            while batch := self._next_batch():
                self._execute(batch)
        finally:
            self._end(batch)

    def _next_batch(self) -> list[Request]:
        """Wait until a batch goes; empty once the runner is closed and nothing waits."""
        with self._changed:
            while True:
                wait_s = 0.0 if self._closed else self._gathering.due_in_s(self._clock())
                if wait_s == 0.0:
                    self._changed.notify_all()  # there is room
                    return self._gathering.take()
                self._changed.wait(wait_s)

    def _execute(self, batch: Sequence[Request]) -> None:
        """Give every request of the batch its rows, or its error."""
        try:
            outputs = self._runner.run(_joined(batch))
            check_outputs(self._manifest.outputs, outputs, sum(request.rows for request in batch))
        except Exception as error:  # noqa: BLE001 - it is the callers' error: here it would only end the thread
            self._identity = self._runner.identity
            self._fail(batch, error)
        else:
            self._identity = self._runner.identity
            _hand_out(batch, outputs, self._identity)

    def _fail(self, batch: Sequence[Request], error: Exception) -> None:
        if isinstance(error, DeviceLost):
            _refuse(batch, lambda: DeviceLost(str(error)))
        elif len(batch) == 1:
            batch[0].answer.set_exception(error)
        else:
            for request in batch:
                self._execute([request])

    def _end(self, batch: Sequence[Request]) -> None:
        """Leave nobody waiting, whatever ended the thread."""
        with self._changed:
            self._ended = True
            waiting = self._gathering.take_all()
            self._changed.notify_all()
        _refuse([*batch, *waiting], self._thread_ended)
        try:
            self._runner.close()
        except EngineError as error:
            self._not_closed = error

    def _thread_ended(self) -> DeviceLost:
        return DeviceLost(f"the thread that runs {self._manifest.name} has ended; only a new process gets a new one")


def _joined(batch: Sequence[Request]) -> Mapping[str, NDArray[Any]]:
    first = batch[0].inputs
    if len(batch) == 1:
        return first
    return {name: np.concatenate([request.inputs[name] for request in batch]) for name in first}


def _hand_out(batch: Sequence[Request], outputs: Arrays, identity: RuntimeIdentity) -> None:
    """Give each request its own rows; copies, so that no caller holds the memory of another's answer."""
    if len(batch) == 1:
        batch[0].answer.set_result((outputs, identity))
        return
    start = 0
    for request in batch:
        end = start + request.rows
        request.answer.set_result(({name: array[start:end].copy() for name, array in outputs.items()}, identity))
        start = end


def _refuse(batch: Sequence[Request], error: Callable[[], Exception]) -> None:
    """Give an error of its own to every request that has no answer yet."""
    for request in batch:
        if not request.answer.done():
            request.answer.set_exception(error())
