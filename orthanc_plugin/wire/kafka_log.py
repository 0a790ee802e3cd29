"""The log on Apache Kafka, for hospitals that run one. Same protocol and tests as ``sqlite_log``.

The only module that imports kafka. Clients are kafka-python's, with every setting that delivery depends on stated:
its defaults are others. What a group member does between polls is in ``group_member``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    CommitFailedError,
    GroupIdNotFoundError,
    IllegalGenerationError,
    KafkaError,
    MessageSizeTooLargeError,
    RebalanceInProgressError,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
    UnknownMemberIdError,
)
from kafka.structs import OffsetAndMetadata

from orthanc_plugin.wire.group_member import GroupMember, RebalancePending
from orthanc_plugin.wire.hand_off import HandOff, Partition
from orthanc_plugin.wire.kafka_connection import address, checked_security, names, reach
from orthanc_plugin.wire.log import MAX_RECORD_BYTES, LogRecord, LogUnavailable, check_record

OPTIONS = ("timeout_s", "session_timeout_s", "security", "client_id")
_REACH_S = 2.0
_PARTITION_FETCH_BYTES = 128 * 1024  # bounds what waits for the worker; a larger single record still comes
_ALL_FETCHED = 1_000_000
_STABLE = "<stable>"  # MemberState.STABLE of newer kafka-python
_UNSETTLED_S = 60.0
_JOIN_S = 1.0  # a poll that joins the group waits for the end of it
_GROUP_UNSETTLED = (RebalanceInProgressError, CommitFailedError, IllegalGenerationError, UnknownMemberIdError)


# At level DEBUG these two write whole requests, also the one with the password.
for _name in ("kafka.net.connection", "kafka.protocol.parser"):
    logging.getLogger(_name).addFilter(lambda line: line.levelno > logging.DEBUG)


class KafkaLog:
    """The log on a Kafka cluster.

    Args:
        bootstrap: ``host:port`` of some brokers.
        timeout_s: limit of every call; after it the answer is ``LogUnavailable``.
        session_timeout_s: a member silent for this long loses its partitions (brokers allow 6 s or more).
        security: kafka-python's own names, see ``kafka_connection.SECURITY_KEYS``, for TLS and SASL.
        client_id: name in the brokers' logs.

    Raises:
        LogUnavailable: no broker answers.
        ValueError: an address or a security key is not understood.
    """

    def __init__(
        self,
        bootstrap: Sequence[str],
        *,
        timeout_s: float = 10.0,
        session_timeout_s: float = 10.0,
        security: Mapping[str, Any] | None = None,
        client_id: str = "purkinje",
    ) -> None:
        self._addresses = [address(each) for each in bootstrap]
        self._timeout_s = timeout_s
        self._session_timeout_s = session_timeout_s
        self._common = {
            "bootstrap_servers": list(bootstrap),
            "client_id": client_id,
            "bootstrap_timeout_ms": int(timeout_s * 500),
            "request_timeout_ms": max(1000, int(timeout_s * 400)),
            "reconnect_backoff_max_ms": 1000,  # a broker that is back is used within a second
            "metadata_max_age_ms": 10_000,
            **checked_security(security or {}),
        }
        self._lock = threading.Lock()
        self._producer: Any = None
        self._producing()

    def append(self, topic: str, *, key: str, headers: Mapping[str, str], value: bytes) -> tuple[int, int]:
        """Append, wait for all in-sync replicas, return (partition, offset); see ``Log.append``."""
        check_record(topic, key, headers, value)
        deadline_s = time.monotonic() + self._timeout_s
        pairs = [(name, text.encode()) for name, text in headers.items()]
        producer, future = self._producing(), None
        try:
            future = producer.send(topic, value=value, key=key.encode(), headers=pairs)
            stored = future.get(timeout=max(0.1, deadline_s - time.monotonic()))
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            msg = f"the brokers refuse a record of {len(value)} bytes in {topic}; raise max.message.bytes: {error}"
            raise ValueError(msg) from error
        except KafkaError as error:
            if not error.retriable or (future is not None and not future.is_done):
                self._drop_producer(producer)  # it may never recover, or deliver late; the next append makes another
            msg = f"not known to be appended to {topic}: {error}: is the topic made (ensure_topics) and are brokers up?"
            raise LogUnavailable(msg) from error
        return stored.partition, stored.offset

    def ensure_topics(self, topics: Sequence[str], *, partitions: int, replication: int) -> None:
        """Make the topics that are missing; see ``Log.ensure_topics``."""
        with self._admin() as admin:
            missing = sorted(set(topics) - set(admin.list_topics()))
            for topic in missing:
                # One copy may be missing without a stop; an acknowledged record still lies on the others.
                configs = {"min.insync.replicas": str(max(1, replication - 1))}
                plan = {topic: {"num_partitions": partitions, "replication_factor": replication, "configs": configs}}
                with contextlib.suppress(TopicAlreadyExistsError):  # somebody else was faster
                    admin.create_topics(plan, timeout_ms=int(self._timeout_s * 1000))
            if missing:
                admin.wait_for_topics(missing, timeout_ms=int(self._timeout_s * 1000))

    def subscribe(self, topics: Sequence[str], *, group: str) -> GroupMember:
        """Join a group; see ``Log.subscribe``."""
        return GroupMember(lambda hand_off: self._join(topics, group, hand_off), timeout_s=self._timeout_s)

    def read(
        self, topic: str, *, since_ms: int | None = None, from_offset: int | None = None, limit: int | None = None
    ) -> Iterator[LogRecord]:
        """Walk over a topic without a group; see ``Log.read``."""
        with _explained():
            left = limit
            for record in self._walk(topic, since_ms, from_offset or 0):
                if left is not None and left <= 0:
                    return
                yield record
                left = None if left is None else left - 1

    def lag(self, topics: Sequence[str], *, group: str) -> dict[str, int]:
        """Records per topic that the group has not committed."""
        with self._admin() as admin:
            lags = dict.fromkeys(topics, 0)
            partitions = _partitions(admin, topics)
            done = _group_offsets(admin, group)
            ends = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST)) if partitions else {}
            starts = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST)) if partitions else {}
            for partition in partitions:
                lags[partition.topic] += ends[partition].offset - done.get(partition, starts[partition].offset)
            return lags

    def ping(self) -> str:
        """Say which cluster answers and how many brokers it has."""
        with self._admin() as admin:
            cluster = admin.describe_cluster()
        return f"Apache Kafka cluster {cluster['cluster_id']}: {len(cluster['brokers'])} brokers"

    def close(self) -> None:
        """Flush and release; nothing is pending, every append was waited for."""
        if self._producer is not None:
            self._drop_producer(self._producer)

    def _producing(self) -> Any:
        """The one long-lived producer, made when it is missing."""
        with self._lock:
            if self._producer is None:
                self._producer = self._client(
                    KafkaProducer,
                    enable_idempotence=True,  # stated: otherwise a conflict only warns and turns it off
                    acks="all",
                    linger_ms=0,
                    max_block_ms=int(self._timeout_s * 500),
                    delivery_timeout_ms=int(self._timeout_s * 900),
                    max_request_size=2 * MAX_RECORD_BYTES,
                    allow_auto_create_topics=False,
                )
            return self._producer

    def _drop_producer(self, producer: Any) -> None:
        with self._lock:
            if self._producer is producer:  # and not the one another thread made meanwhile
                self._producer = None
        # close() alone gives up, and leaves everything running, when a record is stuck in it.
        producer._sender.force_close()  # noqa: SLF001 - kafka-python 3 has no public way
        with contextlib.suppress(KafkaError):
            producer.close(timeout=1)

    @contextlib.contextmanager
    def _admin(self) -> Iterator[Any]:
        with _explained(), contextlib.closing(self._client(KafkaAdminClient)) as admin:
            yield admin

    def _join(self, topics: Sequence[str], group: str, hand_off: HandOff) -> _KafkaGroupClient:
        consumer = self._client(
            KafkaConsumer,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(CooperativeStickyAssignor,),  # stated: the default stops everybody
            session_timeout_ms=int(self._session_timeout_s * 1000),
            heartbeat_interval_ms=int(self._session_timeout_s * 250),
            # A poll must empty what was fetched: kafka-python 3.0.12 can forget the rest of a partition that is paused
            # half way (its parked records are only restored while no other partition has been read since).
            max_poll_records=_ALL_FETCHED,
            max_partition_fetch_bytes=_PARTITION_FETCH_BYTES,
            allow_auto_create_topics=False,
        )
        _remember_unfinished_joins(consumer)
        consumer.subscribe(topics=list(topics), listener=_Rebalanced(hand_off))
        return _KafkaGroupClient(consumer, self._timeout_s)

    def _walk(self, topic: str, since_ms: int | None, from_offset: int) -> Iterator[LogRecord]:
        with self._admin() as admin:
            partitions = _partitions(admin, [topic])
        if not partitions:
            return
        reader = self._client(KafkaConsumer, enable_auto_commit=False, allow_auto_create_topics=False)
        with contextlib.closing(reader):
            ends = reader.end_offsets(partitions)
            starts = reader.beginning_offsets(partitions)
            if since_ms is not None:
                found = reader.offsets_for_times(dict.fromkeys(partitions, since_ms))
                starts = {each: ends[each] if found[each] is None else found[each].offset for each in partitions}
            starts = {each: max(start, from_offset) for each, start in starts.items() if start < ends[each]}
            yield from _walk_to_ends(reader, starts, ends, self._timeout_s)

    def _client(self, kind: Any, **settings: Any) -> Any:
        """Make a client; one that cannot connect leaves no thread behind (its own constructor would)."""
        reach(self._addresses, min(_REACH_S, self._timeout_s))
        made: list[Any] = []

        def remember(**inner: Any) -> Any:
            made.append(kind.DEFAULT_CONFIG["kafka_client"](**inner))
            return made[-1]

        try:
            return kind(**self._common, **settings, kafka_client=remember)
        except (KafkaError, OSError) as error:
            for client in made:
                client.close()
            msg = f"Kafka at {names(self._addresses)} does not accept us: {error}: check security settings and brokers"
            raise LogUnavailable(msg) from error


class _Rebalanced(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Tells the hand-off what is ours; called in kafka-python's own thread, so it must not block."""

    def __init__(self, hand_off: HandOff) -> None:
        self._hand_off = hand_off

    def on_partitions_assigned(self, assigned: Any) -> None:
        self._hand_off.assign(tuple(each) for each in assigned)

    def on_partitions_revoked(self, revoked: Any) -> None:
        self._hand_off.revoke(tuple(each) for each in revoked)


class _KafkaGroupClient:
    """``GroupClient`` over one KafkaConsumer; used by the poll thread only."""

    def __init__(self, consumer: Any, timeout_s: float) -> None:
        self._consumer = consumer
        self._timeout_ms = int(timeout_s * 500)
        self._settled_s = time.monotonic()

    def poll(self, timeout_s: float) -> list[LogRecord]:
        self._check_settled()
        joining = self._consumer._coordinator.need_rejoin()  # noqa: SLF001 - see _remember_unfinished_joins
        with _explained():
            fetched = self._consumer.poll(timeout_ms=int((_JOIN_S if joining else timeout_s) * 1000))
        return [_record(message) for messages in fetched.values() for message in messages]

    def _check_settled(self) -> None:
        """Leave and join anew rather than wait for ever in a group that does not settle."""
        now_s = time.monotonic()
        if getattr(self._consumer.group_metadata(), "state", _STABLE) == _STABLE:
            self._settled_s = now_s
        elif now_s - self._settled_s > _UNSETTLED_S:
            msg = f"Kafka: no settled member of the group for {_UNSETTLED_S:.0f} s: joining anew"
            raise LogUnavailable(msg)

    def assignment(self) -> set[Partition]:
        return {tuple(each) for each in self._consumer.assignment()}

    def hold_back(self, partitions: set[Partition]) -> None:
        held = {tuple(each) for each in self._consumer.paused()}
        for partition in self.assignment():
            if (partition in held) != (partition in partitions):
                change = self._consumer.pause if partition in partitions else self._consumer.resume
                with contextlib.suppress(KeyError):  # it was revoked this very moment
                    change(TopicPartition(*partition))

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        plan = {TopicPartition(*each): OffsetAndMetadata(offset, "", -1) for each, offset in offsets.items()}
        try:
            with _explained(but=_GROUP_UNSETTLED):
                self._consumer.commit(plan, timeout_ms=self._timeout_ms)
        except _GROUP_UNSETTLED as error:
            raise RebalancePending(str(error)) from error

    def committed(self, partition: Partition) -> int:
        where = TopicPartition(*partition)
        with _explained():
            found = self._consumer.committed(where, timeout_ms=self._timeout_ms)
            if found is not None and found >= 0:
                return int(found)
            return int(self._consumer.beginning_offsets([where], timeout_ms=self._timeout_ms)[where])

    def end_offsets(self, partitions: set[Partition]) -> dict[Partition, int]:
        if not partitions:
            return {}
        with _explained():
            ends = self._consumer.end_offsets(
                [TopicPartition(*each) for each in partitions], timeout_ms=self._timeout_ms
            )
        return {tuple(each): int(end) for each, end in ends.items()}

    def offsets_at(self, partitions: set[Partition], timestamp_ms: int) -> dict[Partition, int]:
        if not partitions:
            return {}
        times = {TopicPartition(*each): timestamp_ms for each in partitions}
        ends = self.end_offsets(partitions)
        with _explained():
            found = self._consumer.offsets_for_times(times, timeout_ms=self._timeout_ms)
        return {tuple(each): ends[tuple(each)] if hit is None else int(hit.offset) for each, hit in found.items()}

    def within(self, partition: Partition, offset: int) -> int:
        where = TopicPartition(*partition)
        with _explained():
            start = self._consumer.beginning_offsets([where], timeout_ms=self._timeout_ms)[where]
        return min(max(offset, int(start)), self.end_offsets({partition})[partition])

    def seek(self, partition: Partition, offset: int) -> None:
        with _explained(), contextlib.suppress(ValueError):  # it was revoked this very moment
            self._consumer.seek(TopicPartition(*partition), offset)

    def close(self) -> None:
        with _explained():
            self._consumer.close(autocommit=False, timeout_ms=self._timeout_ms)


def _remember_unfinished_joins(consumer: Any) -> None:
    """Keep a member from being stuck when joining the group takes longer than one poll.

    kafka-python 3.0.12 goes on joining in the background, but the next poll may find no reason to join any more and
    then never takes the result: no partitions, no heartbeats, for ever. Here an unfinished join is such a reason.
    """
    coordinator = consumer._coordinator  # noqa: SLF001 - there is no public way
    decide = coordinator.need_rejoin
    coordinator.need_rejoin = lambda: getattr(coordinator, "_join_task", None) is not None or decide()


@contextlib.contextmanager
def _explained(*, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Kafka's errors become LogUnavailable; a broken event loop inside kafka-python is a RuntimeError."""
    try:
        yield
    except but:
        raise
    except (KafkaError, RuntimeError) as error:
        msg = f"Kafka: {type(error).__name__}: {error}"
        raise LogUnavailable(msg) from error


def _walk_to_ends(
    reader: Any, starts: Mapping[Any, int], ends: Mapping[Any, int], timeout_s: float
) -> Iterator[LogRecord]:
    left = {each for each, start in starts.items() if start < ends[each]}
    reader.assign(left)
    for partition in left:
        reader.seek(partition, starts[partition])
    heard_s = time.monotonic()
    while left:
        fetched = reader.poll(timeout_ms=200)
        for messages in fetched.values():
            yield from (
                _record(message)
                for message in messages
                if message.offset < ends[TopicPartition(message.topic, message.partition)]
            )
        heard_s = time.monotonic() if fetched else heard_s
        if time.monotonic() - heard_s > timeout_s:
            msg = f"Kafka: nothing came for {timeout_s:.0f} s although {len(left)} partitions hold more: try again"
            raise LogUnavailable(msg)
        left = {each for each in left if reader.position(each) < ends[each]}  # also passes markers that are no records


def _partitions(admin: Any, topics: Sequence[str]) -> list[Any]:
    found = [topic for topic in admin.describe_topics(list(topics)) if topic["error_code"] == 0]
    return [TopicPartition(topic["name"], each["partition_index"]) for topic in found for each in topic["partitions"]]


def _group_offsets(admin: Any, group: str) -> dict[Any, int]:
    try:
        found = admin.list_group_offsets({group: None}).get(group, {})
    except GroupIdNotFoundError:
        return {}
    return {partition: stored.offset for partition, stored in found.items() if stored.offset >= 0}


def _record(message: Any) -> LogRecord:
    """Foreign records may lack a key or a value or carry headers that are not text: they end as dead letters."""
    headers = {name: (value or b"").decode(errors="replace") for name, value in message.headers or ()}
    key = (message.key or b"").decode(errors="replace")
    value = message.value or b""
    return LogRecord(message.topic, message.partition, message.offset, key, headers, value, message.timestamp)
