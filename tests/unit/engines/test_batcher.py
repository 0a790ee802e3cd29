"""Many callers share one runner: batches go when they should, rows go home, and nobody waits for ever.

Nothing sleeps: a gate holds the executing thread where the test wants it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.errors import DeviceLost, EngineError, InferenceError, OutOfMemory
from engines.records import Modality
from engines.runtime.batcher import BatchingRunner, BatchLimits, Gathering, Request
from engines.runtime.runner import Arrays, RuntimeIdentity
from tests.doubles import bundles
from tests.doubles.runners import IDENTITY, ScriptedRunner

PATIENCE_S = 20.0
FOR_EVER_S = 10_000.0
MANIFEST = bundles.draft(Modality.ECG)
CPU = replace(IDENTITY, runtime="fallback", fallback="out of memory")


class Killed(BaseException):
    """Ends a thread as nothing in service should."""


class GatedRunner(ScriptedRunner):
    """Says the mean of each row; waits at a gate where it is closed, and can be told to fail or to change."""

    def __init__(self) -> None:
        super().__init__(MANIFEST, _means)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.threads: set[int] = set()
        self.faults: list[BaseException | None] = []
        self.poison: float | None = None
        self.poison_error: Exception = RuntimeError("poison")
        self.next_identity: RuntimeIdentity | None = None

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        self._identity = self.next_identity or self._identity
        rows = inputs["ecg"]
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            self.batches.append(len(rows))
            raise fault
        if self.poison is not None and self.poison in rows[:, 0, 0]:
            self.batches.append(len(rows))
            raise self.poison_error
        return super()._infer(inputs)

    def _release(self) -> None:
        self.threads.add(threading.get_ident())
        super()._release()


class Callers:
    """Threads that ask; ``hold`` closes the gate behind a first request, so that those after it gather."""

    def __init__(self, runner: GatedRunner, pool: ThreadPoolExecutor, **limits: Any) -> None:
        self.inner = runner
        self.limits = BatchLimits(**{"rows": 8, "wait_s": 0.0, "callers": 64, **limits})
        self.batcher = BatchingRunner(runner, MANIFEST, self.limits)
        self._pool = pool
        self._came = threading.Semaphore(0)
        self.longest = 0
        self._add = self.batcher._gathering.add
        self.batcher._gathering.add = self._count  # type: ignore[method-assign]

    def ask(self, *values: float) -> Future[tuple[Arrays, RuntimeIdentity]]:
        """Ask for rows of these values in a thread of its own; return once the request was taken in."""
        future = self._pool.submit(self._ask, values)
        assert self._came.acquire(timeout=PATIENCE_S)
        return future

    def ask_without_room(self, value: float) -> Future[tuple[Arrays, RuntimeIdentity]]:
        """Ask while the queue is full; return once the caller waits for room."""
        assert self.batcher._gathering.full
        looked = threading.Semaphore(0)
        wait_for = self.batcher._changed.wait_for

        def told(has_room: Callable[[], bool], timeout: float | None = None) -> bool:
            assert not has_room()
            looked.release()
            return bool(wait_for(has_room, timeout))

        self.batcher._changed.wait_for = told  # type: ignore[method-assign]
        future = self._pool.submit(self._ask, (value,))
        assert looked.acquire(timeout=PATIENCE_S)
        with self.batcher._changed:  # free only once the caller sleeps
            self.batcher._changed.wait_for = wait_for  # type: ignore[method-assign]
        return future

    def hold(self) -> Future[tuple[Arrays, RuntimeIdentity]]:
        """Let one request stand in the runner."""
        self.inner.gate.clear()
        future = self._pool.submit(self._ask, (0.0,))
        assert self._came.acquire(timeout=PATIENCE_S)
        assert self.inner.entered.acquire(timeout=PATIENCE_S)
        return future

    def _count(self, request: Request) -> None:
        self._add(request)
        self.longest = max(self.longest, len(self.batcher._gathering._requests))
        self._came.release()

    def _ask(self, values: tuple[float, ...]) -> tuple[Arrays, RuntimeIdentity]:
        return self.batcher.run(rows(*values)), self.batcher.identity


@pytest.fixture
def make() -> Iterator[Callable[..., Callers]]:
    """Makes callers, and ends whatever the test leaves behind."""
    made: list[Callers] = []
    with ThreadPoolExecutor(16) as pool:

        def one(**limits: Any) -> Callers:
            made.append(Callers(GatedRunner(), pool, **limits))
            return made[-1]

        yield one
        for callers in made:
            callers.inner.gate.set()
            callers.batcher.close()


def rows(*values: float) -> dict[str, np.ndarray]:
    """An input of one row for each value."""
    return {"ecg": np.stack([np.full((12, 200), value, np.float32) for value in values])}


def _means(inputs: Mapping[str, np.ndarray]) -> Arrays:
    means = inputs["ecg"].mean(axis=(1, 2))[:, None]
    widths = {tensor.name: tensor.shape[1] for tensor in MANIFEST.outputs}
    return {name: np.repeat(means, width, axis=1).astype(np.float32) for name, width in widths.items()}


def _said(future: Future[tuple[Arrays, RuntimeIdentity]]) -> list[float]:
    outputs, _ = future.result(PATIENCE_S)
    return [float(value) for value in outputs["embedding"][:, 0]]


def _request(count: int, asked_s: float) -> Request:
    return Request(inputs={}, rows=count, asked_s=asked_s)


def _gathering(*requests: tuple[int, float], **limits: Any) -> Gathering:
    made = Gathering(BatchLimits(**{"rows": 8, "wait_s": 2.0, "callers": 10, **limits}))
    for count, asked_s in requests:
        made.add(_request(count, asked_s))
    return made


@pytest.mark.parametrize(
    ("requests", "now_s", "due_in_s"),
    [
        ([], 100.0, None),
        ([(1, 100.0)], 100.0, 2.0),
        ([(1, 100.0)], 101.5, 0.5),
        ([(1, 100.0), (1, 101.5)], 101.5, 0.5),
        ([(1, 100.0)], 102.0, 0.0),
        ([(1, 100.0)], 200.0, 0.0),
        ([(7, 100.0)], 100.0, 2.0),
        ([(8, 100.0)], 100.0, 0.0),
        ([(9, 100.0)], 100.0, 0.0),
        ([(4, 100.0), (5, 100.0)], 100.0, 0.0),
    ],
)
def test_the_oldest_request_decides_when_a_batch_goes(
    requests: list[tuple[int, float]], now_s: float, due_in_s: float | None
) -> None:
    """A batch goes when it is full, or when its oldest request has waited its time, whatever came after it."""
    assert _gathering(*requests).due_in_s(now_s) == due_in_s


def test_a_batch_goes_when_all_callers_wait() -> None:
    """Where nobody is left who could ask, nothing is waited for."""
    assert _gathering((1, 100.0), (1, 100.0), callers=3).due_in_s(100.0) == 2.0
    assert _gathering((1, 100.0), (1, 100.0), callers=2).due_in_s(100.0) == 0.0
    assert _gathering((1, 100.0), callers=1).due_in_s(100.0) == 0.0


@pytest.mark.parametrize(
    ("counts", "batches"),
    [([3, 3, 3], [[3, 3], [3]]), ([9, 1], [[9], [1]]), ([6, 3, 2], [[6], [3, 2]]), ([8, 1], [[8], [1]]), ([], [])],
)
def test_a_batch_takes_what_fits_and_nobody_is_overtaken(counts: list[int], batches: list[list[int]]) -> None:
    """Requests leave in the order they came; one that does not fit beside the others opens the next batch."""
    gathering = _gathering(*((count, 0.0) for count in counts))
    taken = []
    while batch := gathering.take():
        taken.append([request.rows for request in batch])
    assert taken == batches


@pytest.mark.parametrize(
    "wrong", [{"rows": 0}, {"wait_s": -1.0}, {"wait_s": float("nan")}, {"callers": 0}, {"waiting": 0}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    """No rows, no callers, no room or a negative wait is the caller's mistake."""
    with pytest.raises(ValueError, match="expected"):
        BatchLimits(**{"rows": 8, "wait_s": 0.0, "callers": 2, **wrong})


def test_requests_that_gather_are_one_batch_and_each_gets_its_rows(make: Callable[..., Callers]) -> None:
    """What waits while a batch runs is the next batch; every caller gets its own rows, in memory of its own."""
    callers = make()
    first = callers.hold()
    asked = [callers.ask(1.0), callers.ask(2.0, 3.0), callers.ask(4.0)]
    callers.inner.gate.set()
    assert _said(first) == [0.0]
    assert [_said(future) for future in asked] == [[1.0], [2.0, 3.0], [4.0]]
    assert callers.inner.batches == [1, 4]
    arrays = [array for future in asked for array in future.result()[0].values()]
    assert all(array.base is None for array in arrays)
    assert list(asked[0].result()[0]) == [tensor.name for tensor in MANIFEST.outputs]


def test_one_thread_owns_the_runner(make: Callable[..., Callers]) -> None:
    """Every run and the close of the inner runner happen on one thread, and none of them on a caller's."""
    callers = make()
    for value in range(5):
        assert _said(callers.ask(float(value))) == [float(value)]
    callers.batcher.close()
    assert callers.inner.released
    assert len(callers.inner.threads) == 1
    assert threading.get_ident() not in callers.inner.threads


def test_a_lone_caller_is_answered_after_its_wait(make: Callable[..., Callers]) -> None:
    """A request without company goes when its time is over."""
    assert _said(make(wait_s=0.001).ask(5.0)) == [5.0]


def test_a_lone_caller_does_not_wait_where_nobody_else_can_come(make: Callable[..., Callers]) -> None:
    """With one caller there is nothing to wait for, however long the wait would be."""
    assert _said(make(wait_s=FOR_EVER_S, callers=1).ask(5.0)) == [5.0]


def test_the_last_caller_sends_the_batch(make: Callable[..., Callers]) -> None:
    """Two of three callers wait; the third completes the batch."""
    callers = make(wait_s=FOR_EVER_S, callers=3)
    asked = [callers.ask(1.0), callers.ask(2.0)]
    assert callers.inner.batches == []
    asked.append(callers.ask(3.0))
    assert [_said(future) for future in asked] == [[1.0], [2.0], [3.0]]
    assert callers.inner.batches == [3]


def test_a_full_batch_does_not_wait(make: Callable[..., Callers]) -> None:
    """As many rows as a batch holds are enough."""
    callers = make(wait_s=FOR_EVER_S, rows=4)
    asked = [callers.ask(1.0, 2.0), callers.ask(3.0, 4.0)]
    assert [_said(future) for future in asked] == [[1.0, 2.0], [3.0, 4.0]]
    assert callers.inner.batches == [4]


def test_a_wrong_input_hits_only_its_caller(make: Callable[..., Callers]) -> None:
    """An input that does not fit is refused before it is batched; the others of the batch are answered together."""
    callers = make()
    callers.hold()
    good = [callers.ask(1.0), callers.ask(2.0)]
    with pytest.raises(ValueError, match="not finite"):
        callers.batcher.run(rows(float("nan")))
    with pytest.raises(ValueError, match="expected"):
        callers.batcher.run({"clip": np.zeros((1, 12, 200), np.float32)})
    callers.inner.gate.set()
    assert [_said(future) for future in good] == [[1.0], [2.0]]
    assert callers.inner.batches == [1, 2]


@pytest.mark.parametrize("error", [RuntimeError("poison"), RuntimeError("out of memory"), KeyError("a bug")])
def test_a_poisonous_study_does_not_fail_its_neighbours(make: Callable[..., Callers], error: Exception) -> None:
    """When a batch fails, each of its requests is run alone: only the one at fault has the error."""
    callers = make()
    callers.inner.poison, callers.inner.poison_error = 2.0, error
    callers.hold()
    asked = [callers.ask(1.0), callers.ask(2.0), callers.ask(3.0)]
    callers.inner.gate.set()
    assert (_said(asked[0]), _said(asked[2])) == ([1.0], [3.0])
    with pytest.raises(KeyError if isinstance(error, KeyError) else InferenceError):
        asked[1].result(PATIENCE_S)
    assert callers.inner.batches == [1, 3, 1, 1, 1]
    assert isinstance(asked[1].exception(), OutOfMemory) == ("memory" in str(error))


def test_an_error_of_one_alone_is_not_tried_again(make: Callable[..., Callers]) -> None:
    """What failed alone is the caller's to try again."""
    callers = make()
    callers.inner.faults = [RuntimeError("broken")]
    with pytest.raises(InferenceError, match="broken"):
        callers.ask(1.0).result(PATIENCE_S)
    assert callers.inner.batches == [1]
    assert _said(callers.ask(2.0)) == [2.0]


def test_a_lost_device_fails_the_whole_batch_at_once(make: Callable[..., Callers]) -> None:
    """Nothing more is run on a device that is gone; every caller learns it by an error of its own."""
    callers = make()
    callers.hold()
    asked = [callers.ask(1.0), callers.ask(2.0)]
    callers.inner.faults = [None, DeviceLost("the context is gone")]
    callers.inner.gate.set()
    errors = [future.exception(PATIENCE_S) for future in asked]
    assert [type(error) for error in errors] == [DeviceLost, DeviceLost]
    assert errors[0] is not errors[1]
    assert callers.inner.batches == [1, 2]


def test_rows_that_are_missing_reach_nobody(make: Callable[..., Callers]) -> None:
    """A runner that loses a row fails the batch: no caller is given its neighbour's answer."""
    callers = make()
    run = callers.inner.run
    callers.inner.run = (
        lambda inputs: {  # type: ignore[method-assign]
            name: array[:2] for name, array in run(inputs).items()
        }
    )
    callers.hold()
    asked = [callers.ask(1.0, 1.5), callers.ask(2.0)]
    callers.inner.gate.set()
    assert [_said(future) for future in asked] == [[1.0, 1.5], [2.0]]
    assert callers.inner.batches == [1, 3, 2, 1]


def test_each_caller_reads_the_identity_of_its_own_run(make: Callable[..., Callers]) -> None:
    """A fallback between two batches is told to the callers of the second and to nobody else."""
    callers = make()
    first = callers.hold()
    callers.inner.gate.set()
    assert first.result(PATIENCE_S)[1] == IDENTITY
    mine = callers.batcher.run(rows(1.0))
    assert mine
    callers.inner.next_identity = CPU
    assert callers.ask(2.0).result(PATIENCE_S)[1] == CPU
    assert callers.batcher.identity == IDENTITY
    callers.batcher.run(rows(3.0))
    assert callers.batcher.identity == CPU


def test_a_thread_without_a_run_reads_the_latest_identity(make: Callable[..., Callers]) -> None:
    """Who has not asked yet learns what computes now."""
    callers = make()
    assert callers.batcher.identity == IDENTITY
    callers.inner.next_identity = CPU
    assert _said(callers.ask(1.0)) == [1.0]
    assert callers.batcher.identity == CPU


def test_close_answers_who_waits(make: Callable[..., Callers]) -> None:
    """Requests that wait when the runner is closed are run at once; then the inner one is closed."""
    callers = make(wait_s=FOR_EVER_S)
    asked = [callers.ask(1.0), callers.ask(2.0)]
    callers.batcher.close()
    assert [_said(future) for future in asked] == [[1.0], [2.0]]
    assert callers.inner.released
    assert not callers.batcher._thread.is_alive()
    callers.batcher.close()


def test_a_closed_runner_refuses(make: Callable[..., Callers]) -> None:
    """After close nothing is taken."""
    callers = make()
    callers.batcher.close()
    with pytest.raises(ValueError, match="is closed"):
        callers.batcher.run(rows(1.0))


def test_a_runner_that_does_not_close_says_so() -> None:
    """The error of the inner close reaches who closes, and the thread has ended."""
    inner = GatedRunner()
    inner._release = lambda: (_ for _ in ()).throw(InferenceError("held"))  # type: ignore[method-assign]
    batcher = BatchingRunner(inner, MANIFEST, BatchLimits(rows=1, wait_s=0.0, callers=1))
    with pytest.raises(EngineError, match="held"):
        batcher.close()
    assert not batcher._thread.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_leaves_nobody_waiting(make: Callable[..., Callers]) -> None:
    """When the executing thread ends, who runs, who waits and who comes later all learn it."""
    callers = make(waiting=2)
    callers.inner.faults = [Killed()]
    asked = [callers.hold(), callers.ask(1.0), callers.ask(2.0)]
    blocked = callers.ask_without_room(3.0)
    callers.inner.gate.set()
    for future in (*asked, blocked):
        with pytest.raises(DeviceLost, match="only a new process"):
            future.result(PATIENCE_S)
    with pytest.raises(DeviceLost):
        callers.batcher.run(rows(4.0))
    assert callers.inner.released


def test_the_queue_is_bounded(make: Callable[..., Callers]) -> None:
    """A caller that finds the queue full is let in when there is room, and answered."""
    callers = make(waiting=2, rows=2)
    first = callers.hold()
    asked = [callers.ask(1.0), callers.ask(2.0)]
    late = [callers.ask_without_room(value) for value in (3.0, 4.0, 5.0)]
    callers.inner.gate.set()
    assert [_said(future) for future in (first, *asked, *late)] == [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]
    assert callers.longest == 2


def test_a_caller_without_room_is_let_go_by_close(make: Callable[..., Callers]) -> None:
    """Who waits for room when the runner is closed may try elsewhere."""
    callers = make(waiting=1)
    callers.hold()
    callers.ask(1.0)
    late = callers.ask_without_room(2.0)
    closing = threading.Thread(target=callers.batcher.close)
    closing.start()
    with pytest.raises(InferenceError, match="closed before there was room"):
        late.result(PATIENCE_S)
    callers.inner.gate.set()
    closing.join(PATIENCE_S)


def test_a_hundred_threads_get_their_own_rows() -> None:
    """Under contention every answer belongs to its question, and none is missing."""
    inner = GatedRunner()
    batcher = BatchingRunner(inner, MANIFEST, BatchLimits(rows=5, wait_s=0.001, callers=16, waiting=4))
    asked = [[float(index)] * (index % 3 + 1) for index in range(100)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda values: batcher.run(rows(*values))["embedding"][:, 0].tolist(), asked))
    batcher.close()
    assert answers == asked
    assert sum(inner.batches) == sum(map(len, asked))
