"""The process: ready after the self-tests, ends in order, says by its exit code why it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from engines.errors import SelfTestFailed
from engines.records import Modality
from orthanc_plugin.wire.events import DEAD_LETTER_TOPIC, READY_TOPICS, RESULT_TOPIC
from stream_processors import processors
from stream_processors.disposition import Rule
from stream_processors.partner_check import PartnerCheck
from stream_processors.pipeline import Pipeline
from stream_processors.processors import Connections, checkpoint_of, run, settler_of, with_partners
from stream_processors.routes import Route
from stream_processors.settings import Settings
from stream_processors.stages import Stage, Stopwatch, kill_after, pass_by
from stream_processors.telemetry import NoMetrics
from tests.doubles.cross_modal import FakeComparer
from tests.doubles.log import FaultyLog
from tests.unit.stream_processors.conftest import World


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two lanes, a status file, a short patience."""
    for name in list(os.environ):
        if name.startswith("PURKINJE_"):
            monkeypatch.delenv(name)
    return Settings(
        site_url="https://hospital.example",
        log="sqlite:///unused.db",  # type: ignore[arg-type]
        modalities=(Modality.ECHO, Modality.ECG),
        status_file=tmp_path / "status.json",
        shutdown_s=5.0,
    )


@pytest.fixture
def worlds(log: FaultyLog, monkeypatch: pytest.MonkeyPatch) -> dict[Modality, World]:
    """What the process opens instead of a PACS and engines."""
    made = {modality: World(log=log, modality=modality) for modality in Modality}
    pacs = made[Modality.ECHO].pacs
    for world in made.values():
        world.pacs = pacs

    @contextmanager
    def opened(_settings: Settings) -> Iterator[Connections]:
        yield Connections(log=log, reader=pacs, writer=pacs)

    def open_route(modality: Modality, *_: Any, **__: Any) -> Route:
        world = made[modality]
        return Route(modality=modality, sandbox=world.sandbox, engine=world.engine)

    monkeypatch.setattr(processors, "opened", opened)
    monkeypatch.setattr(processors, "open_route", open_route)
    return made


def _status(settings: Settings) -> dict[str, Any]:
    assert settings.status_file is not None
    return dict(json.loads(settings.status_file.read_text())) if settings.status_file.exists() else {}


def _when(condition: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    def watch() -> None:
        deadline = time.monotonic() + 20
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_ends_the_process_in_order(settings: Settings, worlds: dict[Modality, World]) -> None:
    """Studies that were announced end; on SIGTERM the process leaves its groups and returns 0."""
    world = worlds[Modality.ECG]
    world.announce()
    handler = signal.getsignal(signal.SIGTERM)
    _when(lambda: bool(world.outcomes()), _terminate)
    assert run(settings) == 0
    assert [outcome["outcome"] for outcome in world.outcomes()] == ["reported"]
    assert world.lag() == 0
    assert signal.getsignal(signal.SIGTERM) is handler


def test_matrices_are_multiplied_on_the_threads_of_the_settings(
    settings: Settings, worlds: dict[Modality, World]
) -> None:
    """While it serves, the BLAS library uses as many threads as an engine may; afterwards as many as before."""
    seen: list[set[int]] = []

    def ready() -> bool:
        if _status(settings).get("ready"):
            seen.append(_blas_threads())
        return bool(seen)

    _when(ready, _terminate)
    with threadpool_limits(limits=2, user_api="blas"):
        assert run(settings) == 0
        assert _blas_threads() == {2}
    assert seen == [{settings.engine.threads}]


def _blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_the_status_file_says_what_the_process_is_doing(settings: Settings, worlds: dict[Modality, World]) -> None:
    """Starting, ready with its process id, stopping, stopped: others can wait for it."""
    seen: list[dict[str, Any]] = []

    def ready() -> bool:
        status = _status(settings)
        seen.append(status)
        return bool(status.get("ready"))

    _when(ready, _terminate)
    assert run(settings) == 0
    assert seen[-1]["pid"] == os.getpid()
    assert seen[-1]["modalities"] == ["echo", "ecg"]
    assert (_status(settings)["state"], _status(settings)["ready"]) == ("stopped", False)


def test_a_lane_that_needs_an_operator_ends_the_process(settings: Settings, worlds: dict[Modality, World]) -> None:
    """One broken engine ends all lanes with the exit code for an operator; its message is not committed."""
    world = worlds[Modality.ECHO]
    world.engine.faults = [SelfTestFailed("x")]
    world.announce()
    assert run(settings) == 3
    assert world.lag() == 1


def test_an_engine_that_fails_its_self_test_consumes_nothing(
    settings: Settings, worlds: dict[Modality, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every engine has passed, no group is joined, and the process is never ready."""

    def broken(*_: Any, **__: Any) -> Route:
        raise SelfTestFailed("x")

    monkeypatch.setattr(processors, "open_route", broken)
    worlds[Modality.ECHO].announce()
    with pytest.raises(SelfTestFailed):
        run(settings)
    assert _status(settings)["state"] == "stopped"
    assert worlds[Modality.ECHO].lag() == 1


def test_a_log_that_is_away_at_start_is_waited_for(
    settings: Settings, worlds: dict[Modality, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut everything starts at once: the processors come up when the log does."""
    monkeypatch.setattr(Rule, "wait_s", lambda *_: 0.01)
    world = worlds[Modality.ECG]
    world.announce()
    world.log.faults["subscribe"] = 3
    _when(lambda: bool(world.outcomes()), _terminate)
    assert run(settings) == 0
    assert world.log.faults["subscribe"] == 0
    assert len(world.outcomes()) == 1


def test_a_signal_finds_no_lock_taken_whenever_it_comes() -> None:
    """Its handler runs in the thread that waits, and takes the event's lock: so the wait holds that at no time."""
    code = (
        "import os, signal, threading\n"
        "from stream_processors.processors import waited\n"
        "event = threading.Event()\n"
        "with event._cond:  # another thread looks just now\n"
        "    assert not waited(event, 0.01)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: event.set())\n"
        "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()\n"
        "assert waited(event, 100.0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_signal_in_the_middle_of_a_log_line_ends_the_process(
    settings: Settings, worlds: dict[Modality, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler runs while the main thread holds the log, and waits for nothing."""
    held = threading.Lock()

    class HeldLog:
        def info(self, event: str, **_: Any) -> None:
            assert held.acquire(blocking=False), "a line was logged while another was being written"
            if event == "processors.ready":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
            held.release()

    monkeypatch.setattr(processors, "_log", HeldLog())
    assert run(settings) == 0
    assert not held.locked()


@pytest.mark.parametrize("create", [True, False])
def test_missing_topics_are_made_before_anything_is_read(
    settings: Settings, worlds: dict[Modality, World], create: bool
) -> None:
    """Every topic that is read or written is asked for with the site's numbers, unless the site makes them itself."""
    log = worlds[Modality.ECG].log
    topics = settings.log.topics.model_copy(update={"create": create, "partitions": 3, "replication": 2})
    changed = settings.model_copy(update={"log": settings.log.model_copy(update={"topics": topics})})
    _when(lambda: bool(_status(settings).get("ready")), _terminate)
    assert run(changed) == 0
    names = (*READY_TOPICS, RESULT_TOPIC, DEAD_LETTER_TOPIC)
    assert log.made == (dict.fromkeys(names, (3, 2)) if create else {})


def test_waiting_for_the_log_can_be_ended(settings: Settings, worlds: dict[Modality, World]) -> None:
    """A process that was never ready ends like one that was."""
    worlds[Modality.ECG].log.faults["subscribe"] = 10**6
    _when(lambda: worlds[Modality.ECG].log.faults["subscribe"] < 10**6, _terminate)
    assert run(settings) == 0


def test_a_failpoint_kills_at_its_stage_and_nowhere_else() -> None:
    """The fault tests can end the process with SIGKILL after any stage; in service the checkpoint does nothing."""
    code = (
        "from stream_processors.stages import Stage, kill_after\n"
        "checkpoint = kill_after(Stage.STORE)\n"
        "checkpoint(Stage.FETCH); print('alive', flush=True); checkpoint(Stage.STORE); print('not here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "alive\n")


def test_the_failpoint_of_the_settings_is_the_one_that_is_used(settings: Settings) -> None:
    """Without a setting nothing is armed."""
    assert checkpoint_of(settings) is pass_by
    armed = checkpoint_of(settings.model_copy(update={"failpoint": "after_store"}))
    assert armed.__qualname__ == kill_after(Stage.STORE).__qualname__


def test_a_stage_that_fails_is_timed_but_reaches_no_checkpoint() -> None:
    """A failpoint fires after a stage has succeeded; the time is told in both cases."""
    reached: list[Stage] = []
    timed = Stopwatch(reached.append, {"wait": 1.5})
    with timed(Stage.FETCH):
        pass
    with pytest.raises(ZeroDivisionError), timed(Stage.READ):
        _ = 1 / 0
    assert reached == [Stage.FETCH]
    assert set(timed.stage_ms) == {"wait", "fetch", "read", "total"}


def test_one_check_serves_ecg_and_cardiac_mr_and_is_closed(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lanes of both modalities share it, echo knows nothing of it, and the process closes it."""
    comparer = FakeComparer()
    check = PartnerCheck(comparer, world.pacs)
    monkeypatch.setattr(processors, "open_partner_check", lambda *_: check)
    given = {}
    with ExitStack() as stack:
        connections = Connections(log=world.log, reader=world.pacs, writer=world.pacs)
        connections = with_partners(settings, connections, stack)
        for modality in Modality:
            route = Route(modality=modality, sandbox=world.sandbox, engine=world.engine)
            settler = settler_of(settings, route, connections, stopping=threading.Event(), metrics=NoMetrics())
            assert isinstance(settler.pipeline, Pipeline)
            given[modality] = settler.pipeline.partners
        assert not comparer.closed
    assert given == {Modality.ECHO: None, Modality.CMR: check, Modality.ECG: check}
    assert comparer.closed


def test_without_a_check_the_lanes_are_as_before(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle without the part, or the setting, leaves every pipeline without it."""
    monkeypatch.setattr(processors, "open_partner_check", lambda *_: None)
    connections = Connections(log=world.log, reader=world.pacs, writer=world.pacs)
    assert with_partners(settings, connections, ExitStack()) == connections
