"""One suite of promises for every ``Log``; here against the embedded log, in ``tests/integration`` against Kafka."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from orthanc_plugin.wire.log import MAX_RECORD_BYTES, Log, LogRecord, Subscription, open_log

PATIENCE_S = 30.0
ROOT = Path(__file__).resolve().parents[2]

MEMBER = """
import sys
from orthanc_plugin.wire.log import open_log
url, topic, group, session = sys.argv[1:]
options = {"session_timeout_s" if url.startswith("kafka") else "lease_timeout_s": float(session)}
member = open_log(url, options).subscribe([topic], group=group)
while True:
    record = member.poll(timeout_s=1)
    if record:
        print(record.value.decode(), flush=True)
        sys.stdin.readline()
        print(member.commit(record), flush=True)
"""

Subscribe = Callable[..., Subscription]


def take(subscription: Subscription, count: int, *, commit: bool = True) -> list[LogRecord]:
    """Poll until ``count`` records came; fail when they do not."""
    records: list[LogRecord] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(records) < count:
        assert time.monotonic() < deadline, f"only {len(records)} of {count} records came"
        record = subscription.poll(timeout_s=0.5)
        if record is not None:
            records.append(record)
            assert not commit or subscription.commit(record)
    return records


def nothing_comes(subscription: Subscription, *, for_s: float = 0.6) -> bool:
    """True when the member gets no record for a while."""
    return subscription.poll(timeout_s=for_s) is None


def values(records: Iterable[LogRecord]) -> list[str]:
    """Values as text."""
    return [record.value.decode() for record in records]


class LogSuite:
    """Promises of the protocol; a subclass says which log by its fixture ``url``."""

    session_timeout_s = 2.0
    redelivery_s = 10.0

    @pytest.fixture
    def log(self, url: str) -> Iterator[Log]:
        log = self.open(url)
        yield log
        log.close()

    @pytest.fixture
    def topic(self, log: Log) -> str:
        name = f"test.{uuid.uuid4().hex}.v1"
        log.ensure_topics([name], partitions=3, replication=1)
        return name

    @pytest.fixture
    def group(self) -> str:
        return f"group-{uuid.uuid4().hex}"

    @pytest.fixture
    def subscribe(self, log: Log, topic: str, group: str) -> Iterator[Subscribe]:
        made: list[Subscription] = []

        def join(*, topics: list[str] | None = None, group: str = group) -> Subscription:
            made.append(log.subscribe(topics or [topic], group=group))
            return made[-1]

        yield join
        for subscription in made:
            subscription.close()

    def open(self, url: str) -> Log:
        silence = "session_timeout_s" if url.startswith("kafka") else "lease_timeout_s"
        return open_log(url, {silence: self.session_timeout_s})

    @staticmethod
    def fill(log: Log, topic: str, texts: Iterable[str], *, key: str = "one") -> None:
        for text in texts:
            log.append(topic, key=key, headers={}, value=text.encode())

    def test_append_then_read(self, log: Log, topic: str) -> None:
        """What is appended under one key is read back complete and in order, at the place append returned."""
        before_ms = time.time_ns() // 1_000_000
        places = [log.append(topic, key="1.2.3", headers={"ce_id": str(n)}, value=b"%d" % n) for n in range(20)]
        records = list(log.read(topic))
        assert [(record.partition, record.offset) for record in records] == places
        assert [record.headers for record in records] == [{"ce_id": str(n)} for n in range(20)]
        assert [record.value for record in records] == [b"%d" % n for n in range(20)]
        assert {record.key for record in records} == {"1.2.3"}
        assert all(before_ms <= record.timestamp_ms <= time.time_ns() // 1_000_000 for record in records)

    def test_headers_are_unicode_text(self, log: Log, topic: str) -> None:
        """Header names and values of any script come back as they were."""
        headers = {"ce_source": "urn:orthanc:Müller-心-🫀", "größe": "", "content-type": "application/json"}
        log.append(topic, key="schlüssel-κ", headers=headers, value=b"{}")
        (record,) = log.read(topic)
        assert dict(record.headers) == headers
        assert record.key == "schlüssel-κ"

    def test_values_of_64_kib(self, log: Log, topic: str) -> None:
        """A value of 64 KiB of arbitrary bytes comes back bit for bit."""
        value = bytes(range(256)) * 256
        log.append(topic, key="k", headers={}, value=value)
        (record,) = log.read(topic)
        assert record.value == value

    def test_refuses_what_it_cannot_carry(self, log: Log, topic: str) -> None:
        """A record above the limit or a topic name with a slash is the caller's mistake and appends nothing."""
        with pytest.raises(ValueError, match="limit is"):
            log.append(topic, key="k", headers={}, value=bytes(MAX_RECORD_BYTES + 1))
        with pytest.raises(ValueError, match="topic is"):
            log.append("a/b", key="k", headers={}, value=b"x")
        assert list(log.read(topic)) == []

    def test_read_from_offset_and_limit(self, log: Log, topic: str) -> None:
        """A reader starts at an offset and stops at a limit, without touching any group."""
        self.fill(log, topic, "abcdef")
        assert values(log.read(topic, from_offset=2)) == list("cdef")
        assert values(log.read(topic, from_offset=2, limit=2)) == list("cd")
        assert values(log.read(topic, limit=0)) == []
        assert values(log.read(topic, from_offset=99)) == []

    def test_read_since_a_time(self, log: Log, topic: str) -> None:
        """A reader starts at the first record not older than a time; in the future there is nothing."""
        self.fill(log, topic, "ab")
        time.sleep(0.02)
        since_ms = time.time_ns() // 1_000_000
        self.fill(log, topic, "cd")
        assert values(log.read(topic, since_ms=since_ms)) == list("cd")
        assert values(log.read(topic, since_ms=0)) == list("abcd")
        assert values(log.read(topic, since_ms=since_ms + 3_600_000)) == []

    def test_read_of_an_unknown_topic(self, log: Log) -> None:
        """Nothing is in a topic nobody made."""
        assert list(log.read("test.nobody.made.v1")) == []

    def test_a_new_group_starts_at_the_oldest_record(self, log: Log, topic: str, subscribe: Subscribe) -> None:
        """Records from before the group existed are delivered to it."""
        self.fill(log, topic, "abc")
        assert values(take(subscribe(), 3)) == list("abc")

    def test_a_waiting_member_is_woken(self, log: Log, topic: str, subscribe: Subscribe) -> None:
        """A record that arrives while a member waits is handed out well before its timeout."""
        member = subscribe()
        self.fill(log, topic, "a")
        take(member, 1)
        threading.Timer(0.3, self.fill, (log, topic, "b")).start()
        started = time.monotonic()
        assert member.poll(timeout_s=PATIENCE_S) is not None
        assert time.monotonic() - started < PATIENCE_S / 3

    def test_groups_are_independent(self, log: Log, topic: str, subscribe: Subscribe) -> None:
        """Each group gets every record and keeps its own committed offset."""
        self.fill(log, topic, "abc")
        first, second = subscribe(group=f"{topic}-1"), subscribe(group=f"{topic}-2")
        assert values(take(first, 3)) == list("abc")
        assert log.lag([topic], group=f"{topic}-1") == {topic: 0}
        assert log.lag([topic], group=f"{topic}-2") == {topic: 3}
        assert values(take(second, 3)) == list("abc")

    def test_redelivered_until_committed(self, log: Log, topic: str, subscribe: Subscribe) -> None:
        """What a member leaves uncommitted is delivered again to the next one, in order; the rest is not."""
        self.fill(log, topic, "abcd")
        member = subscribe()
        records = take(member, 3, commit=False)
        assert member.commit(records[0])
        member.close()
        assert values(take(subscribe(), 3)) == list("bcd")

    def test_commits_only_the_contiguous_prefix(self, log: Log, topic: str, group: str, subscribe: Subscribe) -> None:
        """The committed offset waits for the oldest record in work, then jumps over what is done behind it."""
        self.fill(log, topic, "abcd")
        member = subscribe()
        a, b, c, _ = take(member, 4, commit=False)
        assert member.commit(c)
        assert member.commit(b)
        assert log.lag([topic], group=group) == {topic: 4}
        assert member.commit(a)
        assert log.lag([topic], group=group) == {topic: 1}
        assert member.lag() == 1
        member.close()
        assert values(take(subscribe(), 1)) == ["d"]

    def test_commit_twice(self, log: Log, topic: str, group: str, subscribe: Subscribe) -> None:
        """To commit a record again changes nothing and is no error."""
        self.fill(log, topic, "ab")
        member = subscribe()
        first, second = take(member, 2)
        assert member.commit(first)
        assert member.commit(second)
        assert log.lag([topic], group=group) == {topic: 0}

    def test_pause_and_resume(self, log: Log, topic: str, subscribe: Subscribe) -> None:
        """A paused member gets nothing, stays a member, and goes on where it was."""
        self.fill(log, topic, "abc")
        member = subscribe()
        assert values(take(member, 1)) == ["a"]
        member.pause()
        self.fill(log, topic, "d")
        assert nothing_comes(member, for_s=self.session_timeout_s * 1.5)
        member.resume()
        assert values(take(member, 3)) == list("bcd")

    def test_seek_to_time_replays(self, log: Log, topic: str, group: str, subscribe: Subscribe) -> None:
        """After a seek to a time the group gets everything from then on again, and nothing older."""
        self.fill(log, topic, "ab")
        time.sleep(0.02)
        since_ms = time.time_ns() // 1_000_000
        self.fill(log, topic, "cd")
        member = subscribe()
        take(member, 4)
        member.seek_to_time(since_ms)
        assert log.lag([topic], group=group) == {topic: 2}
        assert values(take(member, 2)) == list("cd")
        member.close()
        assert nothing_comes(subscribe(), for_s=1.5)

    def test_seek_to_the_future_skips(self, log: Log, topic: str, group: str, subscribe: Subscribe) -> None:
        """After a seek past the last record only what is appended later is delivered."""
        self.fill(log, topic, "ab")
        member = subscribe()
        take(member, 1)
        member.seek_to_time(time.time_ns() // 1_000_000 + 3_600_000)
        assert log.lag([topic], group=group) == {topic: 0}
        self.fill(log, topic, "c")
        assert values(take(member, 1)) == ["c"]

    def test_a_seek_fences_what_is_out(self, log: Log, topic: str, group: str, subscribe: Subscribe) -> None:
        """A record handed out before a seek can no longer be committed, so it cannot undo the seek."""
        self.fill(log, topic, "abc")
        member = subscribe()
        old = take(member, 3, commit=False)
        member.seek_to_time(0)
        assert not member.commit(old[2])
        assert log.lag([topic], group=group) == {topic: 3}
        assert values(take(member, 3)) == list("abc")

    def test_seek_to_offset(self, log: Log, topic: str, subscribe: Subscribe) -> None:
        """A member continues at any offset of a partition it holds; one that it does not hold is refused."""
        self.fill(log, topic, "abcd")
        member = subscribe()
        records = take(member, 4)
        member.seek(topic, records[0].partition, 1)
        assert values(take(member, 3)) == list("bcd")
        with pytest.raises(ValueError, match=r"seek|assigned"):
            member.seek(topic, 77, 0)
        with pytest.raises(ValueError, match=r"seek|offset"):
            member.seek(topic, 0, -1)

    def test_lag_of_an_unknown_group(self, log: Log, topic: str) -> None:
        """A group that never joined lags by everything; a topic that nobody made by nothing."""
        self.fill(log, topic, "abc")
        unknown = "test.nobody.made.v1"
        assert log.lag([topic, unknown], group=f"{topic}-never") == {topic: 3, unknown: 0}

    def test_one_topic_does_not_starve_another(self, log: Log, topic: str, subscribe: Subscribe) -> None:
        """A member of two topics gets the short one's record long before the long one is through."""
        quick = f"{topic}.quick"
        log.ensure_topics([quick], partitions=1, replication=1)
        self.fill(log, topic, [f"slow {n}" for n in range(60)])
        self.fill(log, quick, ["quick"])
        first = values(take(subscribe(topics=[topic, quick]), 30))
        assert "quick" in first

    def test_two_members_share_without_duplicates(self, log: Log, topic: str, subscribe: Subscribe) -> None:
        """Once two members have settled each record goes to exactly one of them."""
        members = [subscribe(), subscribe()]
        self._settle(log, topic, members)
        expected = {f"record {n}" for n in range(60)}
        for text in sorted(expected):
            log.append(topic, key=text, headers={}, value=text.encode())
        got: list[list[str]] = [[], []]
        deadline = time.monotonic() + PATIENCE_S
        while sum(map(len, got)) < len(expected) and time.monotonic() < deadline:
            for member, mine in zip(members, got, strict=True):
                record = member.poll(timeout_s=0.05)
                if record is not None:
                    mine.append(record.value.decode())
                    assert member.commit(record)
        assert sorted(got[0] + got[1]) == sorted(expected)
        assert got[0]
        assert got[1]
        assert all(nothing_comes(member, for_s=0.3) for member in members)

    @staticmethod
    def _settle(log: Log, topic: str, members: list[Subscription]) -> None:
        """Feed records until every member has had one, then until nothing is left."""
        waiting = set(range(len(members)))
        deadline = time.monotonic() + PATIENCE_S
        quiet = 0
        while waiting or quiet < 3:
            assert time.monotonic() < deadline, f"members {waiting} never got a record"
            for _ in range(4 if waiting else 0):
                log.append(topic, key=uuid.uuid4().hex, headers={}, value=b"warm-up")
            quiet += 1
            for number, member in enumerate(members):
                record = member.poll(timeout_s=0.1)
                if record is not None:
                    quiet = 0
                    if member.commit(record):
                        waiting.discard(number)

    def test_order_per_key_with_two_members(self, log: Log, topic: str, subscribe: Subscribe) -> None:
        """The records of one key are never reordered, although two members share the work."""
        members = [subscribe(), subscribe()]
        self._settle(log, topic, members)
        for number in range(40):
            log.append(topic, key=f"study {number // 2 % 4}", headers={}, value=b"%d" % number)
        done: list[tuple[str, int]] = []
        lock = threading.Lock()

        def work(member: Subscription) -> None:
            while len(done) < 40 and time.monotonic() < deadline:
                record = member.poll(timeout_s=0.1)
                if record is not None:
                    time.sleep(0.04 if int(record.value) % 2 == 0 else 0)  # the next of a key would be quicker
                    with lock:
                        done.append((record.key, int(record.value)))
                    member.commit(record)

        deadline = time.monotonic() + PATIENCE_S
        threads = [threading.Thread(target=work, args=(member,)) for member in members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(done) == 40
        for key in {key for key, _ in done}:
            numbers = [number for each, number in done if each == key]
            assert numbers == sorted(numbers)

    @pytest.fixture
    def process(self, url: str, topic: str, group: str) -> Iterator[subprocess.Popen[str]]:
        """A member in a process of its own: prints what it gets, commits at a line on its input, prints the answer."""
        arguments = [sys.executable, "-c", MEMBER, url, topic, group, str(self.session_timeout_s)]
        pipe = subprocess.PIPE
        with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
            yield process
            process.kill()

    def test_kill_9_of_a_member(
        self, log: Log, topic: str, subscribe: Subscribe, process: subprocess.Popen[str]
    ) -> None:
        """What a member that was killed had in work is delivered again, soon, to another member."""
        self.fill(log, topic, ["a"])
        assert process.stdout is not None
        assert process.stdout.readline() == "a\n"
        member = subscribe()
        assert nothing_comes(member, for_s=1.0)
        process.kill()
        killed = time.monotonic()
        assert values(take(member, 1)) == ["a"]
        assert time.monotonic() - killed < self.redelivery_s

    def test_a_member_that_hangs_is_fenced(
        self, log: Log, topic: str, group: str, subscribe: Subscribe, process: subprocess.Popen[str]
    ) -> None:
        """A member stopped for too long loses its record to another, and cannot commit it when it wakes up."""
        self.fill(log, topic, ["a"])
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "a\n"
        process.send_signal(signal.SIGSTOP)
        member = subscribe()
        (record,) = take(member, 1, commit=False)
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "False\n"
        assert log.lag([topic], group=group) == {topic: 1}
        process.kill()
        if not member.commit(record):  # the one that woke up may have been given the partition back before it ended
            assert values(take(member, 1)) == ["a"]
        assert log.lag([topic], group=group) == {topic: 0}

    def test_survives_reopening(self, url: str, log: Log, topic: str, group: str, subscribe: Subscribe) -> None:
        """Records and committed offsets are there after everything was closed and opened again."""
        self.fill(log, topic, "abc")
        member = subscribe()
        assert values(take(member, 2)) == list("ab")
        member.close()
        log.close()
        again = self.open(url)
        try:
            assert values(again.read(topic)) == list("abc")
            assert again.lag([topic], group=group) == {topic: 1}
            third = again.subscribe([topic], group=group)
            assert values(take(third, 1)) == ["c"]
            third.close()
        finally:
            again.close()

    def test_append_from_many_threads(self, log: Log, topic: str) -> None:
        """Appends from several threads all arrive, each at a place of its own."""
        places: list[tuple[int, int]] = []

        def append(thread: int) -> None:
            for n in range(10):
                text = f"{thread}-{n}"
                places.append(log.append(topic, key=text, headers={}, value=text.encode()))

        threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(places)) == 40
        assert sorted(values(log.read(topic))) == sorted(f"{t}-{n}" for t in range(4) for n in range(10))

    def test_ensure_topics_twice(self, log: Log, topic: str) -> None:
        """To ensure a topic that exists changes nothing."""
        self.fill(log, topic, "a")
        log.ensure_topics([topic], partitions=9, replication=1)
        assert values(log.read(topic)) == ["a"]

    def test_a_closed_subscription_says_so(self, subscribe: Subscribe) -> None:
        """To poll a closed subscription is a mistake, not an endless quiet loop; to close it twice is none."""
        member = subscribe()
        member.close()
        member.close()
        with pytest.raises(ValueError, match="subscribe again"):
            member.poll(timeout_s=0)

    def test_ping(self, log: Log) -> None:
        """An answering log says in one line what it is."""
        assert len(log.ping().splitlines()) == 1


class TestSqliteLog(LogSuite):
    """The embedded log keeps every promise."""

    redelivery_s = 1.5  # a dead process is noticed, nobody waits for its lease

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite://{tmp_path}/log.db"


@pytest.mark.parametrize(
    "url", ["sqlite://relative.db", "redis://127.0.0.1", "kafka://", "kafka://user:pass@host:9092"]
)
def test_open_log_refuses_other_urls(url: str) -> None:
    """An unknown scheme, a relative path, no address, or credentials in the address: refused without repeating it."""
    with pytest.raises(ValueError, match="log URL is neither") as caught:
        open_log(url)
    assert "pass" not in str(caught.value).replace("password", "")


def test_open_log_refuses_unknown_options(tmp_path: Path) -> None:
    """An option nobody knows is named, its value is not repeated."""
    with pytest.raises(ValueError, match="retenion_s") as caught:
        open_log(f"sqlite://{tmp_path}/log.db", {"retenion_s": "hunter2"})
    assert "hunter2" not in str(caught.value)
