"""A lost GPU costs a process, never a study; and not one process after the other for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.errors import DeviceLost, SelfTestFailed
from engines.records import Modality
from orthanc_plugin.wire.events import DEAD_LETTER_TOPIC, RESULT_TOPIC
from orthanc_plugin.wire.sqlite_log import SqliteLog
from stream_processors import processors
from stream_processors.errors import SettingsInvalid
from stream_processors.events import parse_outcome
from stream_processors.processors import Connections, run
from stream_processors.restart import OPTION, REPLACEMENTS_MAX, WINDOW_S, Replacements, replacements_of
from stream_processors.routes import Route
from stream_processors.settings import Settings
from tests.doubles.bundles import write_tiny
from tests.doubles.log import FaultyLog
from tests.doubles.pacs import FakePacs, claim_of
from tests.unit.stream_processors.conftest import World

ROOT = Path(__file__).resolve().parents[3]
COMMAND = ("/usr/bin/python3", "/opt/purkinje/bin/purkinje", "run", "--settings", "s.toml")
LOST = DeviceLost("the GPU is gone")


class Executed:
    """Takes the place of ``os.execv``: remembers what would have run."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.done = threading.Event()

    def __call__(self, _path: str, command: list[str]) -> None:
        self.commands.append(command)
        self.done.set()


def _replacements(*at_s: float, now_s: float = 1000.0, execute: Callable[..., Any] | None = None) -> Replacements:
    return Replacements(at_s=at_s, command=COMMAND, clock=lambda: now_s, execute=execute or Executed())


def test_the_new_process_has_the_same_command_line_and_knows_when_it_was_replaced() -> None:
    """Nothing but the times is added, however often; old times are dropped."""
    first = _replacements().next_command()
    assert first == [sys.executable, *COMMAND[1:], OPTION, "1000.0"]
    second = Replacements(at_s=(100.0, 1000.0), command=first, clock=lambda: 1200.0).next_command()
    assert second == [sys.executable, *COMMAND[1:], OPTION, "1000.0,1200.0"]


def test_the_times_come_back_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process writes the next one reads, with the command line it was started with."""
    monkeypatch.setattr(sys, "orig_argv", list(COMMAND))
    read = replacements_of(_replacements(900.0).next_command()[-1])
    assert (read.at_s, read.command) == ((900.0, 1000.0), COMMAND)
    assert replacements_of("").at_s == ()


@pytest.mark.parametrize("text", ["x", "1,2,x", "--replaced"])
def test_times_that_are_none_are_a_wrong_command_line(text: str) -> None:
    """The option is ours alone."""
    with pytest.raises(SettingsInvalid, match="leave it out"):
        replacements_of(text)


@pytest.mark.parametrize(
    ("at_s", "allowed"),
    [
        ((), True),
        ((999.0,) * (REPLACEMENTS_MAX - 1), True),
        ((999.0,) * REPLACEMENTS_MAX, False),
        ((1000.0 - WINDOW_S,) * REPLACEMENTS_MAX, True),
        ((1000.1,) * REPLACEMENTS_MAX, True),
    ],
    ids=["none", "few", "many", "long ago", "before the machine started anew"],
)
def test_replacements_are_bounded_within_a_window(at_s: tuple[float, ...], allowed: bool) -> None:
    """Five in ten minutes are allowed; what is older, or of an earlier start of the machine, does not count."""
    assert _replacements(*at_s).allowed is allowed


def test_nothing_that_is_open_is_inherited(tmp_path: Path) -> None:
    """A descriptor that a driver opened without the flag would keep the lost context in the new process."""
    with (tmp_path / "x").open("w") as file:
        os.set_inheritable(file.fileno(), True)  # noqa: FBT003 - the signature belongs to os
        _replacements().replace()
        assert not os.get_inheritable(file.fileno())


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two lanes and a status file."""
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
def world(log: FaultyLog, monkeypatch: pytest.MonkeyPatch) -> World:
    """The ECG lane of a process; its echo lane has nothing to do."""
    made = {modality: World(log=log, modality=modality) for modality in Modality}
    pacs = made[Modality.ECG].pacs

    @contextmanager
    def opened(_settings: Settings) -> Iterator[Connections]:
        yield Connections(log=log, reader=pacs, writer=pacs)

    def open_route(modality: Modality, *_: Any, **__: Any) -> Route:
        return Route(modality=modality, sandbox=made[modality].sandbox, engine=made[modality].engine)

    monkeypatch.setattr(processors, "opened", opened)
    monkeypatch.setattr(processors, "open_route", open_route)
    made[Modality.ECG].announce()
    return made[Modality.ECG]


def _state(settings: Settings) -> str:
    assert settings.status_file is not None
    return str(json.loads(settings.status_file.read_text())["state"])


def _members(world: World) -> int:
    with world.log.inner._file.reading() as db:  # type: ignore[attr-defined]
        return int(db.execute("SELECT count(*) FROM member").fetchone()[0])


def test_a_lost_gpu_commits_nothing_and_replaces_the_process(settings: Settings, world: World) -> None:
    """No outcome, no dead letter, no commit; every lane has left its group when the new process starts."""
    world.engine.faults = [LOST]
    members = []
    execute = Executed()
    replacements = _replacements(900.0, execute=lambda *command: (members.append(_members(world)), execute(*command)))
    assert run(settings, replacements) == 0
    assert execute.commands == [[sys.executable, *COMMAND[1:], OPTION, "900.0,1000.0"]]
    assert members == [0]
    assert (world.outcomes(), world.dead(), world.lag()) == ([], [], 1)
    assert _state(settings) == "restarting"


def test_the_study_is_taken_up_again(settings: Settings, world: World) -> None:
    """What the lost process left, the next run reports, once."""
    world.engine.faults = [LOST]
    run(settings, _replacements())
    ended = threading.Timer(0.0, lambda: None)

    def end() -> None:
        while not world.outcomes():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    ended = threading.Thread(target=end, daemon=True)
    ended.start()
    assert run(settings, _replacements(1000.0)) == 0
    assert [outcome["outcome"] for outcome in world.outcomes()] == ["reported"]
    assert world.lag() == 0


def test_after_five_replacements_an_operator_has_to_look(settings: Settings, world: World) -> None:
    """The process ends with the exit code for an operator; the study is still there."""
    world.engine.faults = [LOST]
    execute = Executed()
    assert run(settings, _replacements(*[900.0] * REPLACEMENTS_MAX, execute=execute)) == 3
    assert execute.commands == []
    assert world.lag() == 1
    assert _state(settings) == "stopped"


def test_a_broken_engine_counts_more_than_a_lost_gpu(settings: Settings, world: World) -> None:
    """Where another lane needs an operator, no new process is started."""
    broken = World(log=world.log, modality=Modality.ECHO)
    broken.engine.faults = [SelfTestFailed("x")]
    lane, lost = broken.lane(), world.lane()
    broken.announce()
    world.engine.faults = [LOST]
    for one in (lane, lost):
        one.stopping = threading.Event()
        one.run()
    execute = Executed()
    process = processors._Process(settings=settings, replacements=_replacements(execute=execute))
    process.stopping.set()
    board = processors.StatusBoard(processors.StatusFile(None))
    lane.stopping, lost.stopping = process.stopping, process.stopping
    assert process._work([lane, lost], board) == 3
    assert not process.to_be_replaced


def test_a_process_that_is_asked_to_end_is_not_replaced(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM wins over a GPU that is lost in the same moment."""

    def predict(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        raise LOST

    monkeypatch.setattr(world.engine, "predict", predict)
    execute = Executed()
    assert run(settings, _replacements(execute=execute)) == 0
    assert execute.commands == []
    assert world.lag() == 1


def test_a_gpu_that_is_lost_while_starting_replaces_the_process(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even ready, and nothing consumed: a new process is the only help there too, within the same bound."""

    def lost(*_: Any, **__: Any) -> Route:
        raise LOST

    monkeypatch.setattr(processors, "open_route", lost)
    execute = Executed()
    assert run(settings, _replacements(execute=execute)) == 0
    assert len(execute.commands) == 1
    assert run(settings, _replacements(*[900.0] * REPLACEMENTS_MAX, execute=execute)) == 3
    assert len(execute.commands) == 1


def test_an_engine_that_hangs_when_closed_does_not_keep_the_process(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing what ran on a lost GPU may never return: after the time for shutting down the new process starts."""
    world.engine.faults = [LOST]
    execute = Executed()
    monkeypatch.setattr(world.engine, "close", lambda: execute.done.wait(20))
    started_s = time.monotonic()
    run(settings.model_copy(update={"shutdown_s": 0.5}), _replacements(execute=execute))
    assert 0.4 < time.monotonic() - started_s < 10
    assert execute.commands


class Site:
    """A log, a bundle and a PACS in a folder, and the real command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bundles").mkdir()
        write_tiny(folder / "bundles" / "ecg", Modality.ECG)
        self.log = SqliteLog(str(folder / "log.db"))
        (folder / "settings.json").write_text(
            json.dumps(
                {
                    "site_url": "https://hospital.example",
                    "log": f"sqlite://{folder / 'log.db'}",
                    "modalities": ["ecg"],
                    "status_file": str(folder / "status.json"),
                }
            )
        )

    def announce(self) -> str:
        claim = claim_of(FakePacs(), "ecg")
        self.log.append(claim.topic, key=claim.study_instance_uid, headers=claim.headers(), value=claim.value())
        return claim.topic

    def start(self, how_often: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.doubles.lost_gpu", str(self.folder), how_often, "run", "--settings"]
        with (self.folder / "out.txt").open("ab") as out:
            return subprocess.Popen(
                [*command, str(self.folder / "settings.json")], cwd=ROOT, env={}, stdout=out, stderr=out
            )

    def status(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def wait(self, process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert process.poll() is None, self.text("out.txt")
            assert time.monotonic() < deadline, self.text("out.txt")
            time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site of its own."""
    made = Site(tmp_path)
    yield made
    made.log.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_process_replaces_itself_and_the_study_is_reported_once(site: Site) -> None:
    """The GPU is lost in the middle of a study: same process id, new process, one report, one outcome, nothing dead."""
    topic = site.announce()
    process = site.start("once")
    try:
        site.wait(process, lambda: site.log.lag([topic], group="purkinje.ecg")[topic] == 0)
        site.wait(process, lambda: site.status().get("replaced") == 1)
        assert site.status()["pid"] == process.pid
    finally:
        process.terminate()
    assert process.wait(120) == 0, site.text("out.txt")
    assert site.text("losses.txt") == "lost\n"
    outcomes = [parse_outcome(record.headers, record.value) for record in site.log.read(RESULT_TOPIC)]
    assert [(one["outcome"], one["report"]["stored"]) for one in outcomes] == [("reported", "created")]
    assert list(site.log.read(DEAD_LETTER_TOPIC)) == []
    stored = site.text("stored.txt").splitlines()
    assert len(stored) == len(set(stored)) == 2
    assert outcomes[0]["report"]["sop_instance_uid"] in stored
    assert '"action": "new_process"' in site.text("out.txt")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_process_that_keeps_losing_its_gpu_ends_for_an_operator(site: Site) -> None:
    """Five replacements, then exit code 3; the study was neither reported nor lost."""
    topic = site.announce()
    process = site.start("always")
    assert process.wait(800) == 3, site.text("out.txt")
    assert site.text("losses.txt").count("lost") == REPLACEMENTS_MAX + 1
    assert site.log.lag([topic], group="purkinje.ecg")[topic] == 1
    assert list(site.log.read(RESULT_TOPIC)) == list(site.log.read(DEAD_LETTER_TOPIC)) == []
    assert site.text("stored.txt") == ""
    assert site.status()["state"] == "stopped"
