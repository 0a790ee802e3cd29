"""Several lanes of one modality: one engine, one child each, and only what has ended is committed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.predictions import Prediction
from engines.preprocess.registry import Prepared
from engines.records import Modality
from engines.runtime.batcher import BatchingRunner, BatchLimits
from orthanc_plugin.wire.events import StudyReady
from stream_processors import processors
from stream_processors.processors import Connections, run
from stream_processors.routes import Route, limits_of_batch, open_beside, open_route
from stream_processors.settings import BatchSettings, DecodeSettings, EngineSettings, Settings, load_settings
from tests.doubles.bundles import write_tiny
from tests.doubles.log import FaultyLog
from tests.doubles.predictor import FakeEngine, FakeSandbox
from tests.unit.stream_processors.conftest import World, committed

LANES = 3
PATIENCE_S = 20.0


class Meeting(FakeEngine):
    """An engine that answers only when ``LANES`` threads ask at once; ends the process after the last answer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.together = threading.Barrier(LANES)
        self.closed: list[str] = []

    def predict(self, prepared: Sequence[Prepared]) -> Prediction:
        self.together.wait(PATIENCE_S)
        return super().predict(prepared)

    def close(self) -> None:
        self.closed.append("engine")


class ClosingSandbox(FakeSandbox):
    """Says when it is closed."""

    closed: list[str]

    def close(self) -> None:
        self.closed.append("child")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Three lanes for ECG, one for echo."""
    for name in list(os.environ):
        if name.startswith("PURKINJE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PURKINJE_SITE_URL", "https://hospital.example")
    monkeypatch.setenv("PURKINJE_LOG", "sqlite:///unused.db")
    monkeypatch.setenv("PURKINJE_MODALITIES", '["echo", "ecg"]')
    monkeypatch.setenv("PURKINJE_ENGINE__BATCH__ECG__LANES", str(LANES))
    monkeypatch.setenv("PURKINJE_STATUS_FILE", str(tmp_path / "status.json"))
    return load_settings()


class Opened:
    """What the process opens in these tests, and with which settings."""

    def __init__(self, log: FaultyLog) -> None:
        self.worlds = {modality: World(log=log, modality=modality) for modality in (Modality.ECHO, Modality.ECG)}
        self.ecg = self.worlds[Modality.ECG]
        self.engine = Meeting(Modality.ECG, "answered", self.ecg.headers)
        self.ecg.engine = self.engine
        self.batches: dict[Modality, BatchSettings | None] = {}
        self.children: list[ClosingSandbox] = []

    def open_route(self, modality: Modality, *_: Any, batch: BatchSettings | None, **__: Any) -> Route:
        self.batches[modality] = batch
        return Route(modality=modality, sandbox=self._child(modality), engine=self.worlds[modality].engine)

    def open_beside(self, route: Route, _decode: DecodeSettings) -> Route:
        return replace(route, sandbox=self._child(route.modality))

    def _child(self, modality: Modality) -> ClosingSandbox:
        child = ClosingSandbox(self.worlds[modality].headers)
        child.closed = self.engine.closed
        self.children.append(child)
        return child


@pytest.fixture
def opened(log: FaultyLog, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A log and a PACS, an engine that needs three, and children that count."""
    made = Opened(log)
    pacs = made.ecg.pacs

    @contextmanager
    def connections(_settings: Settings) -> Iterator[Connections]:
        yield Connections(log=log, reader=pacs, writer=pacs)

    monkeypatch.setattr(processors, "opened", connections)
    monkeypatch.setattr(processors, "open_route", made.open_route)
    monkeypatch.setattr(processors, "open_beside", made.open_beside)
    return made


def _announce(world: World, number: int) -> StudyReady:
    """Announce a study under a key of its own, so that no other is held back by it."""
    claim = world.claim(revision=number + 1)
    world.log.inner.append(claim.topic, key=f"1.2.3.{number}", headers=claim.headers(), value=claim.value())
    return claim


def _terminate_after(publish: int, log: FaultyLog) -> None:
    """End the process in order once so many outcomes were announced."""
    append = log.append

    def counted(topic: str, **record: Any) -> tuple[int, int]:
        where = append(topic, **record)
        if len(log.appended) == publish:
            os.kill(os.getpid(), signal.SIGTERM)
        return where

    log.append = counted  # type: ignore[method-assign]


def test_three_lanes_work_on_three_studies_at_once(settings: Settings, opened: Opened, log: FaultyLog) -> None:
    """An engine that answers only three together gets three studies; each ends once and is committed."""
    claims = [_announce(opened.ecg, number) for number in range(LANES)]
    _terminate_after(LANES, log)
    assert run(settings) == 0
    outcomes = opened.ecg.outcomes()
    assert sorted(outcome["claim_event_id"] for outcome in outcomes) == sorted(claim.event_id for claim in claims)
    assert [outcome["outcome"] for outcome in outcomes] == ["reported"] * LANES
    assert opened.ecg.lag() == 0
    assert opened.engine.asked == LANES


def test_lanes_share_the_engine_and_close_it_last(settings: Settings, opened: Opened, log: FaultyLog) -> None:
    """Each lane has a child of its own; the engine is closed once, after all children of its lanes."""
    for number in range(LANES):
        _announce(opened.ecg, number)
    _terminate_after(LANES, log)
    assert run(settings) == 0
    assert opened.engine.closed.count("engine") == 1
    assert opened.engine.closed.count("child") == LANES + 1
    assert opened.engine.closed[: LANES + 1] == ["child"] * LANES + ["engine"]
    assert all(child.spooled for child in opened.children[1:])


def test_one_lane_has_no_batcher(settings: Settings, opened: Opened, log: FaultyLog) -> None:
    """Only where lanes share an engine is it told to batch: one lane never waits."""
    for number in range(LANES):
        _announce(opened.ecg, number)
    _terminate_after(LANES, log)
    assert run(settings) == 0
    assert opened.batches == {Modality.ECHO: None, Modality.ECG: settings.engine.batch.ecg}


def test_only_what_has_ended_is_committed(log: FaultyLog) -> None:
    """While the first of two studies is in work the second may end; a crash then repeats the first alone."""
    world = World(log=log, modality=Modality.ECG)
    entered, leave = threading.Event(), threading.Event()
    predict = world.engine.predict

    def held(prepared: Sequence[Prepared]) -> Prediction:
        entered.set()
        assert leave.wait(PATIENCE_S)
        return predict(prepared)

    claims = [_announce(world, number) for number in range(2)]
    world.engine.predict = held  # type: ignore[method-assign]
    slow = world.lane()

    def work() -> None:
        with suppress(ValueError):  # its subscription is closed under it
            slow.step()

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(PATIENCE_S)
    world.engine.predict = predict  # type: ignore[method-assign]
    fast = world.lane()
    fast.step()
    assert committed(fast) == [1]
    assert world.lag() == 2
    fast.subscription.close()
    slow.subscription.close()  # as after a crash: what it holds is free again
    again = world.lane()
    again.step()
    assert committed(again) == [0]
    assert world.lag() == 0
    leave.set()
    thread.join(PATIENCE_S)
    assert {outcome["claim_event_id"] for outcome in world.outcomes()} == {claim.event_id for claim in claims}


def test_lanes_are_told_apart(world: World) -> None:
    """The first lane is called by its modality, the others also by their number."""
    lane = world.lane()
    assert lane.label == "echo"
    lane.number = 2
    assert lane.label == "echo-2"
    lane.subscription.poll = lambda **_: 1 / 0  # type: ignore[method-assign,assignment]
    lane.run()
    assert str(lane.fatal).startswith("lane echo-2 ended")


def test_settings_of_lanes() -> None:
    """Without settings every modality has one lane; given, they become the limits of the batcher."""
    batch = EngineSettings().batch
    assert [batch.of(modality).lanes for modality in Modality] == [1, 1, 1]
    limits = limits_of_batch(BatchSettings(lanes=4, max_batch=8, max_wait_ms=20.0))
    assert limits == BatchLimits(rows=8, wait_s=0.02, callers=4)


def test_real_lanes_share_a_real_engine(tmp_path: Path) -> None:
    """A route that is opened for lanes has a batching runner; a route beside it has the same engine and its own child."""
    write_tiny(tmp_path / "ecg")
    engine = EngineSettings(bundles=tmp_path, runtimes=("onnxruntime",))
    first = open_route(Modality.ECG, engine, DecodeSettings(), batch=BatchSettings(lanes=2))
    second = open_beside(first, DecodeSettings())
    children = [route.sandbox._process.pid for route in (first, second)]  # type: ignore[attr-defined]
    runner = first.engine._runner  # type: ignore[attr-defined]
    second.sandbox.close()
    first.close()
    assert second.engine is first.engine
    assert isinstance(runner, BatchingRunner)
    assert len(set(children)) == 2
