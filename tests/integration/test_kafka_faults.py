"""What real Kafka does to us on a bad day: brokers that end, groups that are rearranged, workers that are slow."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orthanc_plugin.wire.kafka_log import KafkaLog
from orthanc_plugin.wire.log import LogRecord, LogUnavailable, Subscription

PATIENCE_S = 40.0


def new_topic(log: KafkaLog, *, partitions: int = 1, replication: int = 1) -> str:
    """A topic of its own for a test."""
    topic = f"test.{uuid.uuid4().hex}.v1"
    log.ensure_topics([topic], partitions=partitions, replication=replication)
    return topic


def take(member: Subscription, count: int) -> list[LogRecord]:
    """Poll until ``count`` records came, committing none."""
    records: list[LogRecord] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(records) < count:
        assert time.monotonic() < deadline, f"only {len(records)} of {count} records came"
        record = member.poll(timeout_s=0.2)
        if record is not None:
            records.append(record)
    return records


def append_until_acknowledged(log: KafkaLog, topic: str, text: str) -> int:
    """What the announcer does: try again until it returns; gives the number of failures."""
    deadline = time.monotonic() + 2 * PATIENCE_S
    for failures in range(1000):
        try:
            log.append(topic, key=text, headers={}, value=text.encode())
        except LogUnavailable:
            assert time.monotonic() < deadline, "the log never came back"
            time.sleep(0.1)
        else:
            return failures
    raise AssertionError(text)


def append_to_each(log: KafkaLog, topic: str, *, partitions: int, at_least: int) -> None:
    """Append under random keys until every partition holds enough records."""
    held: Counter[int] = Counter()
    while len(held) < partitions or min(held.values()) < at_least:
        text = uuid.uuid4().hex
        partition, _ = log.append(topic, key=text, headers={}, value=text.encode())
        held[partition] += 1


@pytest.fixture
def log(kafka_cluster: Any) -> Iterator[KafkaLog]:
    """The shared node, with a short session so that tests see it end."""
    log = KafkaLog(kafka_cluster.bootstrap, session_timeout_s=2.0)
    yield log
    log.close()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_broker_down_and_back(own_kafka: Callable[..., Any], end: str) -> None:
    """While the broker is down an append fails within its time limit; when it is back the same log appends again.

    Nothing acknowledged is lost, and what failed cleanly is not there twice.
    """
    cluster = own_kafka()
    (node,) = cluster.nodes
    log = KafkaLog(cluster.bootstrap, timeout_s=3.0)
    topic = new_topic(log)
    log.append(topic, key="k", headers={}, value=b"before")
    getattr(node, end)()
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(LogUnavailable):
            log.append(topic, key="k", headers={}, value=b"while down")
        assert time.monotonic() - started < 4.5
    node.start()
    node.wait_ready()
    append_until_acknowledged(log, topic, "after")
    assert [record.value for record in log.read(topic)] == [b"before", b"after"]
    log.close()


def test_a_member_outlives_its_broker(own_kafka: Callable[..., Any]) -> None:
    """A member goes on where its group was after the broker was killed and came back."""
    cluster = own_kafka()
    (node,) = cluster.nodes
    log = KafkaLog(cluster.bootstrap, timeout_s=3.0, session_timeout_s=2.0)
    topic = new_topic(log)
    member = log.subscribe([topic], group="g")
    for text in ("a", "b"):
        append_until_acknowledged(log, topic, text)
    first, second = take(member, 2)
    assert member.commit(first)
    node.kill()
    with pytest.raises(LogUnavailable):
        member.commit(second)
    node.start()
    node.wait_ready()
    append_until_acknowledged(log, topic, "c")
    values = [record.value for record in take(member, 1)]
    while values[-1] != b"c":
        values += [record.value for record in take(member, 1)]
    assert values in ([b"c"], [b"b", b"c"])  # b was not committed: it may come again, a may not
    member.close()
    log.close()


def test_a_stuck_producer_is_replaced(kafka_cluster: Any) -> None:
    """When the client neither sends a record nor gives it up, the next append has a new client; nothing comes twice."""
    log = KafkaLog(kafka_cluster.bootstrap, timeout_s=2.0)
    topic = new_topic(log)
    log.append(topic, key="k", headers={}, value=b"a")
    stuck = log._producer
    stuck._sender.run_once = lambda: time.sleep(0.05)
    with pytest.raises(LogUnavailable):
        log.append(topic, key="k", headers={}, value=b"b")
    log.append(topic, key="k", headers={}, value=b"b")
    assert [record.value for record in log.read(topic)] == [b"a", b"b"]
    assert not stuck._sender.is_alive()
    log.close()


def test_no_broker_at_all(kafka_launcher: Any) -> None:
    """To open a log where nobody listens fails at once, says so, and leaves no thread behind."""
    (port,) = kafka_launcher.free_ports(1)
    threads = threading.active_count()
    started = time.monotonic()
    with pytest.raises(LogUnavailable, match=f"127.0.0.1:{port}"):
        KafkaLog([f"127.0.0.1:{port}"])
    assert time.monotonic() - started < 3
    assert threading.active_count() == threads


def test_a_topic_nobody_made(kafka_cluster: Any) -> None:
    """An append to a missing topic fails within the time limit and does not make the topic."""
    log = KafkaLog(kafka_cluster.bootstrap, timeout_s=2.0)
    topic = f"test.{uuid.uuid4().hex}.v1"
    started = time.monotonic()
    with pytest.raises(LogUnavailable, match="ensure_topics"):
        log.append(topic, key="k", headers={}, value=b"v")
    assert time.monotonic() - started < 3.5
    assert list(log.read(topic)) == []
    log.close()


def test_slow_worker_stays_in_the_group(log: KafkaLog) -> None:
    """A worker that takes three session timeouts for one record keeps its partition and commits."""
    topic = new_topic(log)
    member = log.subscribe([topic], group="g")
    append_until_acknowledged(log, topic, "slow")
    (record,) = take(member, 1)
    other = log.subscribe([topic], group="g")
    assert other.poll(timeout_s=6.0) is None
    assert member.commit(record)
    assert log.lag([topic], group="g") == {topic: 0}
    member.close()
    other.close()


def test_rebalance_during_a_job(log: KafkaLog) -> None:
    """A record whose partition moves while it is in work is committed once: by the new holder."""
    topic = new_topic(log, partitions=2)
    member = log.subscribe([topic], group="g")
    jobs = {}
    while len(jobs) < 2:
        append_until_acknowledged(log, topic, uuid.uuid4().hex)
        jobs = {record.partition: record for record in [*jobs.values(), *take(member, 1)]}
    out = {partition: next(log.read(topic, limit=1)) for partition in jobs}
    assert out
    other = log.subscribe([topic], group="g")
    (moved,) = take(other, 1)
    kept = next(record for record in jobs.values() if record.partition != moved.partition)
    lost = jobs[moved.partition]
    before = log.lag([topic], group="g")[topic]
    assert not member.commit(lost)
    assert log.lag([topic], group="g")[topic] == before
    assert member.commit(kept)
    assert other.commit(moved)
    member.close()
    other.close()


def test_a_topic_made_after_joining(log: KafkaLog) -> None:
    """Members that joined before their topic existed get its records soon after it was made, every time."""
    topics = [f"test.{uuid.uuid4().hex}.v1" for _ in range(8)]
    members = [log.subscribe([topic], group=topic) for topic in topics]
    log.ensure_topics(topics, partitions=3, replication=1)
    for topic, member in zip(topics, members, strict=True):
        append_until_acknowledged(log, topic, topic)
        assert [record.value.decode() for record in take(member, 1)] == [topic]
        member.close()


def test_pause_survives_a_rebalance(log: KafkaLog) -> None:
    """A paused member that is given partitions by a rebalance still gets nothing until it resumes."""
    topic = new_topic(log, partitions=2)
    member, other = (log.subscribe([topic], group="g") for _ in range(2))
    append_to_each(log, topic, partitions=2, at_least=2)  # one is in work and does not come again
    take(member, 1)
    take(other, 1)
    member.pause()
    other.close()
    assert member.poll(timeout_s=3.0) is None
    member.resume()
    came: set[int] = set()
    while came != {0, 1}:
        came |= {record.partition for record in take(member, 1)}
    member.close()


def test_members_come_and_go_without_loss(log: KafkaLog) -> None:
    """While members join and leave, every record is committed by somebody, and none is skipped."""
    topic = new_topic(log, partitions=4)
    expected = {f"record {number}" for number in range(120)}
    done: set[str] = set()
    ended = threading.Event()

    def work(records_each: int) -> None:
        while not ended.is_set():
            member = log.subscribe([topic], group="g")
            for _ in range(records_each):
                record = None if ended.is_set() else member.poll(timeout_s=0.3)
                if record is not None and member.commit(record):
                    done.add(record.value.decode())
            member.close()

    workers = [threading.Thread(target=work, args=(count,)) for count in (7, 20, 1000)]
    for worker in workers:
        worker.start()
    for text in sorted(expected):
        append_until_acknowledged(log, topic, text)
    deadline = time.monotonic() + PATIENCE_S
    while log.lag([topic], group="g")[topic] and time.monotonic() < deadline:
        time.sleep(0.2)
    ended.set()
    for worker in workers:
        worker.join()
    assert log.lag([topic], group="g") == {topic: 0}
    assert done == expected


def test_three_nodes_one_lost(own_kafka: Callable[..., Any]) -> None:
    """With three copies, two of which must be there, a broker that is killed takes no acknowledged record with it."""
    cluster = own_kafka(nodes=3)
    log = KafkaLog(cluster.bootstrap, timeout_s=6.0)
    topic = new_topic(log, partitions=3, replication=3)
    acknowledged: list[str] = []
    ended = threading.Event()

    def announce() -> None:
        number = 0
        while not ended.is_set():
            append_until_acknowledged(log, topic, f"study {number}")
            acknowledged.append(f"study {number}")
            number += 1

    announcer = threading.Thread(target=announce)
    announcer.start()
    time.sleep(1.5)
    before = len(acknowledged)
    cluster.nodes[1].kill()
    deadline = time.monotonic() + PATIENCE_S
    while len(acknowledged) < before + 50 and time.monotonic() < deadline:
        time.sleep(0.1)
    ended.set()
    announcer.join()
    assert len(acknowledged) >= before + 50, "appending did not go on with two brokers"
    kept = [record.value.decode() for record in log.read(topic)]
    assert set(acknowledged) <= set(kept)
    assert len(kept) - len(set(kept)) <= 1  # at most the one whose answer was lost
    log.close()


PASSWORD = "correct-horse-battery"


@pytest.fixture
def guarded_kafka(own_kafka: Callable[..., Any]) -> Any:
    """A broker that wants a name and a password."""
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    users = f'username="broker" password="{PASSWORD}" user_broker="{PASSWORD}" user_purkinje="{PASSWORD}"'
    return own_kafka(
        properties={
            "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.plaintext.plain.sasl.jaas.config": f"{module} required {users};",
        }
    )


def _security(password: str) -> dict[str, str]:
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "purkinje",
        "sasl_plain_password": password,
    }


def test_password(guarded_kafka: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The right password opens the log, a wrong one is a LogUnavailable in time; neither is ever logged."""
    caplog.set_level("DEBUG")
    log = KafkaLog(guarded_kafka.bootstrap, security=_security(PASSWORD), timeout_s=5.0)
    topic = new_topic(log)
    log.append(topic, key="k", headers={}, value=b"secret hand-shake")
    assert [record.value for record in log.read(topic)] == [b"secret hand-shake"]
    assert "1 broker" in log.ping()
    log.close()
    started = time.monotonic()
    with pytest.raises(LogUnavailable, match="security") as refused:
        KafkaLog(guarded_kafka.bootstrap, security=_security("wrong-horse"), timeout_s=5.0)
    assert time.monotonic() - started < 6
    assert "kafka" in caplog.text
    for secret in (PASSWORD, "wrong-horse"):
        assert secret not in caplog.text
        assert secret not in str(refused.value)


def test_a_cluster_id_that_begins_with_a_hyphen_starts(
    kafka_launcher: Any, own_kafka: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One random id in 64 begins so; it is an id and no option."""
    monkeypatch.setattr(kafka_launcher.uuid, "uuid4", lambda: uuid.UUID(bytes=b"\xf8" + bytes(15)))
    cluster = own_kafka()
    assert "cluster.id=-AAA" in (cluster.nodes[0].folder / "data" / "meta.properties").read_text()
