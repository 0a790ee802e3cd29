"""The thread between a Kafka client and a worker, against a double of the client; and what KafkaLog refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthanc_plugin.wire.group_member import GroupMember, RebalancePending
from orthanc_plugin.wire.hand_off import HandOff, Partition
from orthanc_plugin.wire.kafka_connection import checked_security
from orthanc_plugin.wire.kafka_log import KafkaLog
from orthanc_plugin.wire.log import LogRecord, LogUnavailable

P0, P1 = ("t", 0), ("t", 1)


def record(offset: int, partition: Partition = P0) -> LogRecord:
    """A record at a place."""
    return LogRecord(partition[0], partition[1], offset, "k", {}, b"", 0)


class Client:
    """A group client whose records, assignment and failures a test decides."""

    def __init__(self, hand_off: HandOff) -> None:
        self.hand_off = hand_off
        self.held: set[Partition] = set()
        self.logs: dict[Partition, list[LogRecord]] = {}
        self.position: dict[Partition, int] = {}
        self.commits: dict[Partition, int] = {}
        self.held_back: set[Partition] = set()
        self.polls = 0
        self.commit_errors: list[Exception] = []
        self.poll_errors: list[Exception] = []
        self.during_poll: Callable[[], None] | None = None
        self.closed = False

    def give(self, partition: Partition, count: int) -> None:
        self.logs.setdefault(partition, [record(offset, partition) for offset in range(count)])
        self.position[partition] = self.commits.get(partition, 0)
        self.held.add(partition)
        self.hand_off.assign([partition])

    def revoke(self, partition: Partition) -> None:
        self.held.discard(partition)
        self.hand_off.revoke([partition])

    def poll(self, timeout_s: float) -> Iterable[LogRecord]:
        self.polls += 1
        if self.poll_errors:
            raise self.poll_errors.pop()
        time.sleep(min(timeout_s, 0.002))
        batch: list[LogRecord] = []
        for partition in self.held - self.held_back:
            fetched = self.logs[partition][self.position[partition] :][:2]
            self.position[partition] += len(fetched)
            batch += fetched
        if batch and self.during_poll is not None:
            action, self.during_poll = self.during_poll, None
            action()
        return batch

    def assignment(self) -> set[Partition]:
        return set(self.held)

    def hold_back(self, partitions: set[Partition]) -> None:
        self.held_back = set(partitions)

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        if self.commit_errors:
            raise self.commit_errors.pop()
        self.commits.update(offsets)

    def committed(self, partition: Partition) -> int:
        return self.commits.get(partition, 0)

    def end_offsets(self, partitions: set[Partition]) -> dict[Partition, int]:
        return {partition: len(self.logs[partition]) for partition in partitions}

    def offsets_at(self, partitions: set[Partition], timestamp_ms: int) -> dict[Partition, int]:
        return dict.fromkeys(partitions, timestamp_ms)

    def within(self, partition: Partition, offset: int) -> int:
        return min(offset, len(self.logs[partition]))

    def seek(self, partition: Partition, offset: int) -> None:
        self.position[partition] = offset

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clients() -> list[Client]:
    """Every client the member made, the present one last."""
    return []


@pytest.fixture
def member(clients: list[Client]) -> Iterator[GroupMember]:
    """A member on doubles, patient for one second."""

    def connect(hand_off: HandOff) -> Client:
        clients.append(Client(hand_off))
        return clients[-1]

    member = GroupMember(connect, timeout_s=1.0)
    yield member
    member.close()


def take(member: GroupMember, count: int) -> list[LogRecord]:
    """Poll until this many records came."""
    records = []
    for _ in range(count):
        polled = member.poll(timeout_s=2)
        assert polled is not None
        records.append(polled)
    return records


def test_the_client_is_polled_while_the_worker_works(member: GroupMember, clients: list[Client]) -> None:
    """Between two calls of a slow worker the client is polled many times, and no more records are piled up."""
    clients[0].give(P0, 100)
    take(member, 1)
    polls = clients[0].polls
    time.sleep(0.5)
    assert clients[0].polls > polls + 5
    assert clients[0].position[P0] <= 4


def test_commits_the_contiguous_prefix(member: GroupMember, clients: list[Client]) -> None:
    """The offset after the last record without a gap is committed, whatever the order in which records are done."""
    clients[0].give(P0, 4)
    a, b, c, _ = take(member, 4)
    assert member.commit(b)
    assert clients[0].commits == {}
    assert member.commit(a)
    assert clients[0].commits == {P0: 2}
    assert member.commit(c)
    assert clients[0].commits == {P0: 3}
    assert member.lag() == 1


def test_a_revoked_record_is_fenced(member: GroupMember, clients: list[Client]) -> None:
    """After its partition is gone a record cannot be committed, and nothing of it is handed out."""
    clients[0].give(P0, 4)
    (first,) = take(member, 1)
    clients[0].revoke(P0)
    assert not member.commit(first)
    assert clients[0].commits == {}
    assert member.poll(timeout_s=0.1) is None


def test_a_commit_waits_for_the_group_to_settle(member: GroupMember, clients: list[Client]) -> None:
    """A commit in the middle of a rebalance is tried again after the next polls."""
    clients[0].give(P0, 1)
    (first,) = take(member, 1)
    clients[0].commit_errors = [RebalancePending("1"), RebalancePending("2")]
    assert member.commit(first)
    assert clients[0].commits == {P0: 1}


def test_a_commit_never_ends_in_silence(member: GroupMember, clients: list[Client]) -> None:
    """A group that does not settle in time is LogUnavailable; the commit may be tried again."""
    clients[0].give(P0, 1)
    (first,) = take(member, 1)
    clients[0].commit_errors = [RebalancePending("still")] * 10_000
    with pytest.raises(LogUnavailable):
        member.commit(first)
    clients[0].commit_errors = []
    assert member.commit(first)
    assert clients[0].commits == {P0: 1}


def test_a_batch_that_a_rebalance_overtook(member: GroupMember, clients: list[Client]) -> None:
    """A partition that went and came back during a poll goes on from its committed offset: nothing is skipped."""
    client = clients[0]

    def away_and_back() -> None:
        client.revoke(P0)
        client.held.add(P0)
        client.hand_off.assign([P0])

    client.during_poll = away_and_back
    client.give(P0, 4)
    records = take(member, 4)
    assert [each.offset for each in records] == [0, 1, 2, 3]
    for each in records:
        assert member.commit(each)
    assert client.commits == {P0: 4}


def test_partitions_take_turns(member: GroupMember, clients: list[Client]) -> None:
    """A long partition does not starve a short one."""
    clients[0].give(P0, 50)
    clients[0].give(P1, 2)
    assert {each.partition for each in take(member, 6)} == {0, 1}


def test_a_paused_member_holds_everything_back(member: GroupMember, clients: list[Client]) -> None:
    """While paused every partition is held back, also one that arrives meanwhile; after resume all goes on."""
    clients[0].give(P0, 3)
    take(member, 1)
    member.pause()
    clients[0].give(P1, 1)
    assert member.poll(timeout_s=0.2) is None
    assert clients[0].held_back == {P0, P1}
    member.resume()
    assert {each.partition for each in take(member, 3)} == {0, 1}


def test_a_failed_client_is_replaced(member: GroupMember, clients: list[Client]) -> None:
    """After an error of the client the member says so, leaves, joins anew and goes on."""
    clients[0].poll_errors = [LogUnavailable("broken pipe")]
    with pytest.raises(LogUnavailable, match="broken pipe"):
        member.poll(timeout_s=0.3)
    deadline = time.monotonic() + 5
    while len(clients) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert clients[0].closed
    clients[1].give(P0, 1)
    assert take(member, 1)


def test_seek_moves_durably_and_fences(member: GroupMember, clients: list[Client]) -> None:
    """A seek commits the new place first, then fetches from there; what was out before is fenced."""
    clients[0].give(P0, 4)
    old = take(member, 3)
    member.seek("t", 0, 1)
    assert clients[0].commits == {P0: 1}
    assert not member.commit(old[2])
    assert [each.offset for each in take(member, 3)] == [1, 2, 3]


def test_close_wakes_a_waiting_worker(member: GroupMember) -> None:
    """A worker that waits for a record is released when the member is closed."""
    threading.Timer(0.1, member.close).start()
    started = time.monotonic()
    assert member.poll(timeout_s=10) is None
    assert time.monotonic() - started < 3


@given(st.permutations(range(6)))
def test_prefix_for_any_order(order: list[int]) -> None:
    """However the done marks arrive, the offset to commit is the first one not done."""
    hand_off = HandOff()
    hand_off.assign([P0])
    for offset in range(6):
        hand_off.offer(record(10 * offset))  # offsets have gaps: transactions and compaction leave some
        assert hand_off.take(0) is not None
    done: set[int] = set()
    for each in order:
        assert hand_off.mark_done(record(10 * each))
        done.add(each)
        prefix = next(number for number in range(7) if number not in done)
        assert hand_off.to_commit(P0) == (10 * (prefix - 1) + 1 if prefix else None)


def test_a_log_that_lost_its_end_starts_anew() -> None:
    """When offsets go backwards under us (a broker lost data) the old marks are forgotten, not mixed with new ones."""
    hand_off = HandOff()
    hand_off.assign([P0])
    hand_off.offer(record(100))
    old = hand_off.take(0)
    assert old is not None
    hand_off.offer(record(5))
    assert not hand_off.mark_done(old)
    assert hand_off.take(0) == record(5)


def test_a_record_of_nobody_is_dropped() -> None:
    """A record of a partition that is not assigned is never handed out."""
    hand_off = HandOff()
    hand_off.offer(record(0))
    assert hand_off.take(0) is None


@pytest.mark.parametrize("address", ["broker", "broker:", ":9092", "broker:x"])
def test_a_bad_address_is_named(address: str) -> None:
    """An address without host or port is refused before anything is tried."""
    with pytest.raises(ValueError, match="host:port"):
        KafkaLog([address])


def test_security_settings_are_known_and_masked() -> None:
    """An unknown setting is refused without its value; a password does not show in a representation."""
    with pytest.raises(ValueError, match="sasl_pasword") as caught:
        checked_security({"sasl_pasword": "hunter2"})
    assert "hunter2" not in str(caught.value)
    checked = checked_security({"sasl_plain_password": "hunter2", "ssl_password": "hunter2", "ssl_cafile": "/ca.pem"})
    assert "hunter2" not in repr(checked)
    assert checked["sasl_plain_password"] == "hunter2"
