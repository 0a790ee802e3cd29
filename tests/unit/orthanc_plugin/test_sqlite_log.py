"""What is particular to the embedded log: its file, its limits, its members that die."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orthanc_plugin.wire import process_identity
from orthanc_plugin.wire.log import LogRecord, LogUnavailable
from orthanc_plugin.wire.process_identity import ProcessIdentity, own_identity
from orthanc_plugin.wire.sqlite_log import SqliteLog

ROOT = Path(__file__).resolve().parents[3]
TOPIC = "test.v1"

WRITER = """
import sys
from orthanc_plugin.wire.sqlite_log import SqliteLog
log, name = SqliteLog(sys.argv[1]), sys.argv[2]
for number in range(10**6):
    log.append("test.v1", key=name, headers={}, value=f"{name} {number}".encode())
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the log of a test lies."""
    return str(tmp_path / "log.db")


@pytest.fixture
def log(path: str) -> Iterator[SqliteLog]:
    """A log on its own file."""
    log = SqliteLog(path)
    yield log
    log.close()


def fill(log: SqliteLog, count: int, *, size: int = 1) -> None:
    """Append numbered records of about this many bytes."""
    for number in range(count):
        log.append(TOPIC, key=f"key {number}", headers={}, value=b"%d " % number + bytes(size))


def values(log: SqliteLog) -> list[str]:
    """What the topic holds, as text."""
    return [record.value.decode() for record in log.read(TOPIC)]


def test_kill_9_of_writers_loses_nothing_acknowledged(path: str, log: SqliteLog) -> None:
    """Two writers killed in the middle: every append that returned is there, in order, and the file still works."""
    arguments = [sys.executable, "-c", WRITER, path]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([*arguments, "a"], stdout=pipe, text=True, cwd=ROOT) as first,
        subprocess.Popen([*arguments, "b"], stdout=pipe, text=True, cwd=ROOT) as second,
    ):
        acknowledged = {}
        for name, process in (("a", first), ("b", second)):
            assert process.stdout is not None
            while int(process.stdout.readline()) < 20:
                pass
            process.kill()
            acknowledged[name] = 20 + len(process.stdout.readlines())
    found = values(log)
    for name, count in acknowledged.items():
        mine = [value for value in found if value.startswith(name)]
        assert mine == [f"{name} {number}" for number in range(len(mine))]
        assert len(mine) > count
    log.append(TOPIC, key="k", headers={}, value=b"after")
    assert values(log)[-1] == "after"


def test_a_dead_process_is_noticed_at_once(path: str, log: SqliteLog) -> None:
    """The record of a killed member is free at once, however long its lease would run."""
    code = (
        "import sys, time; from orthanc_plugin.wire.sqlite_log import SqliteLog;"
        "member = SqliteLog(sys.argv[1]).subscribe(['test.v1'], group='g');"
        "print(member.poll(timeout_s=5).offset, flush=True); time.sleep(600)"
    )
    fill(log, 1)
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        member = log.subscribe([TOPIC], group="g")
        assert member.poll(timeout_s=0.7) is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert member.poll(timeout_s=1.5) is not None
    member.close()


def test_a_member_that_leaves_frees_its_records_at_once(log: SqliteLog) -> None:
    """What a closed member had out is handed to the next one without waiting for a lease."""
    fill(log, 1)
    leaver = log.subscribe([TOPIC], group="g")
    assert leaver.poll(timeout_s=1) is not None
    leaver.close()
    member = log.subscribe([TOPIC], group="g")
    assert member.poll(timeout_s=0) is not None
    member.close()


def test_a_busy_file_is_unavailable(path: str) -> None:
    """When another process holds the file for too long, an append says so in time, and works afterwards."""
    log = SqliteLog(path, busy_timeout_s=0.2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(LogUnavailable, match="another process"):
        log.append(TOPIC, key="k", headers={}, value=b"v")
    assert time.monotonic() - started < 2
    holder.execute("ROLLBACK")
    holder.close()
    assert log.append(TOPIC, key="k", headers={}, value=b"v") == (0, 0)
    log.close()


def test_a_full_disk_is_unavailable(log: SqliteLog) -> None:
    """When the disk is full an append says so and writes nothing; with space again the next one is in its place."""
    fill(log, 3)
    with log._file.reading() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LogUnavailable, match="free disk space"):
        log.append(TOPIC, key="k", headers={}, value=bytes(200_000))
    with log._file.reading() as db:
        db.execute("PRAGMA max_page_count = 1073741823")
    assert log.append(TOPIC, key="k", headers={}, value=bytes(200_000)) == (0, 3)
    assert len(values(log)) == 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"this is no database, only some text that is long enough" * 40, "no SQLite file"), (None, "somebody else")],
    ids=["text", "other tables"],
)
def test_a_file_that_is_not_ours_is_left_alone(path: str, content: bytes | None, reason: str) -> None:
    """A file of somebody else is refused and not changed."""
    if content is None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE patient (name TEXT)")
        other.close()
    else:
        Path(path).write_bytes(content)
    with pytest.raises(LogUnavailable, match=reason):
        SqliteLog(path)
    if content is None:
        with sqlite3.connect(path) as other:
            assert [row[0] for row in other.execute("SELECT name FROM sqlite_master")] == ["patient"]
        other.close()
    else:
        assert Path(path).read_bytes() == content


def test_a_file_of_a_newer_format_is_refused(path: str) -> None:
    """A file that a newer version made is refused with the advice to upgrade."""
    SqliteLog(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(LogUnavailable, match="upgrade"):
        SqliteLog(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A folder that does not exist is named, not made."""
    with pytest.raises(LogUnavailable, match="folder does not exist"):
        SqliteLog(str(tmp_path / "none" / "log.db"))
    with pytest.raises(ValueError, match="absolute"):
        SqliteLog("log.db")


def test_many_processes_make_the_file_at_once(path: str) -> None:
    """Several processes that start together on a new file all get to append."""
    code = (
        "import sys; from orthanc_plugin.wire.sqlite_log import SqliteLog;"
        "SqliteLog(sys.argv[1]).append('test.v1', key='k', headers={}, value=b'v')"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT) for _ in range(6)]
    assert [process.wait() for process in started] == [0] * 6
    log = SqliteLog(path)
    assert len(values(log)) == 6
    log.close()


def test_retention_by_size_keeps_what_is_not_committed(path: str) -> None:
    """Above its size a topic loses its oldest committed records only; offsets go on counting."""
    log = SqliteLog(path, retention_bytes=20_000)
    member = log.subscribe([TOPIC], group="g")
    fill(log, 130, size=1000)
    assert next(log.read(TOPIC)).offset == 0
    for _ in range(100):
        record = member.poll(timeout_s=1)
        assert record is not None
        member.commit(record)
    fill(log, 64, size=1000)
    kept = [record.offset for record in log.read(TOPIC)]
    assert kept == list(range(100, 194))
    assert member.lag() == 94
    record = member.poll(timeout_s=1)
    assert record is not None
    assert record.offset == 100
    member.close()
    log.close()


def test_retention_by_age(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed records older than the limit are dropped at some later append; a new group starts at the oldest kept."""
    log = SqliteLog(path, retention_s=3600)
    fill(log, 10)
    later_ns = time.time_ns() + 7200 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later_ns)
    monkeypatch.setattr(time, "time", lambda: later_ns / 1e9)
    fill(log, 64)
    assert [record.offset for record in log.read(TOPIC)] == list(range(10, 74))
    member = log.subscribe([TOPIC], group="new")
    record = member.poll(timeout_s=1)
    assert record is not None
    assert record.offset == 10
    assert log.lag([TOPIC], group="new") == {TOPIC: 64}
    member.close()
    log.close()


def test_the_file_gives_space_back(path: str) -> None:
    """After much was dropped the file is much smaller."""
    log = SqliteLog(path, retention_bytes=100_000)
    fill(log, 128, size=20_000)
    with log._file.reading() as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    largest = Path(path).stat().st_size
    for _ in range(8):
        fill(log, 64, size=1)
    with log._file.reading() as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert Path(path).stat().st_size < largest / 2
    log.close()


def test_nothing_is_committed_by_a_fork(log: SqliteLog) -> None:
    """A child of a fork must not use its parent's connection: SQLite's locks do not survive one."""
    child = os.fork()
    if child == 0:
        try:
            log.append(TOPIC, key="k", headers={}, value=b"v")
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert values(log) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["append", "poll", "commit", "abandon", "other"]), max_size=40), data=st.data())
def test_against_a_model(tmp_path_factory: pytest.TempPathFactory, steps: list[str], data: st.DataObject) -> None:
    """Whatever two members do, no record is lost, none is out twice, and the lag is what the model says."""
    log = SqliteLog(str(tmp_path_factory.mktemp("model") / "log.db"))
    members = [log.subscribe([TOPIC], group="g") for _ in range(2)]
    out: list[list[LogRecord]] = [[], []]
    done: set[int] = set()
    appended = 0
    for step in steps:
        who = data.draw(st.integers(0, 1), label="member")
        if step == "append":
            log.append(TOPIC, key=data.draw(st.sampled_from(["", "a", "b"])), headers={}, value=b"")
            appended += 1
        elif step == "abandon":
            members[who].close()
            members[who], out[who] = log.subscribe([TOPIC], group="g"), []
        elif step == "commit" and out[who]:
            record = out[who].pop(data.draw(st.integers(0, len(out[who]) - 1)))
            assert members[who].commit(record)
            done.add(record.offset)
        elif (record := members[who].poll(timeout_s=0)) is not None:
            held = {each.offset for each in out[0] + out[1]}
            assert record.offset not in held | done
            assert not record.key or record.key not in {each.key for each in out[1 - who]}
            out[who].append(record)
        prefix = next(offset for offset in range(appended + 1) if offset not in done)
        assert log.lag([TOPIC], group="g") == {TOPIC: appended - prefix}
    for member in members:
        member.close()
    rest = log.subscribe([TOPIC], group="g")
    left = []
    while (record := rest.poll(timeout_s=0)) is not None:
        left.append(record.offset)
    assert left == [offset for offset in range(appended) if offset not in done]
    rest.close()
    log.close()


def test_this_process_lives() -> None:
    """A living process is never taken for dead."""
    me = own_identity()
    assert me.pid == os.getpid()
    assert not me.known_dead(me)


def test_a_number_used_again_is_another_process() -> None:
    """The same process id with another start time, or after a restart of the machine, is a dead process."""
    me = own_identity()
    assert ProcessIdentity(me.boot, me.namespace, me.pid, "1").known_dead(me)
    assert ProcessIdentity("another boot", me.namespace, me.pid, me.started).known_dead(me)


def test_an_ended_process_is_dead_even_as_a_zombie() -> None:
    """A process that ended is dead, also while its parent has not asked for its result."""
    me = own_identity()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        other = ProcessIdentity(me.boot, me.namespace, process.pid, process_identity._started(process.pid))
        assert not other.known_dead(me)
        process.kill()
        deadline = time.monotonic() + 5
        while not other.known_dead(me) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert other.known_dead(me)


def test_nobody_is_known_dead_in_another_container() -> None:
    """Process ids of another namespace, or where nothing can be read, say nothing: the lease decides."""
    me = own_identity()
    assert not ProcessIdentity(me.boot, "pid:[1]", 2**22, "1").known_dead(me)
    assert not ProcessIdentity("", "", 2**22, "").known_dead(me)
