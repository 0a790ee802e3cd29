"""A member of a consumer group whose client must be polled: one thread polls, the worker takes its time.

Kafka-free: it drives a ``GroupClient`` (``kafka_log`` has the real one). Everything that touches the client happens
in the poll thread, so heartbeats and rebalances never wait for the worker; the worker's calls are sent there.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, Protocol

from orthanc_plugin.wire.hand_off import HandOff, Partition
from orthanc_plugin.wire.log import LogRecord, LogUnavailable

POLL_S = 0.025
RECONNECT_S = 1.0
_log = logging.getLogger(__name__)


class RebalancePending(Exception):
    """The group is being rearranged: the same call may succeed after the next poll."""


class GroupClient(Protocol):
    """What the member needs of a Kafka consumer. Every method may raise LogUnavailable."""

    def poll(self, timeout_s: float) -> Iterable[LogRecord]:
        """Next records, few at a time."""

    def assignment(self) -> set[Partition]:
        """Partitions this member holds."""

    def hold_back(self, partitions: set[Partition]) -> None:
        """Fetch nothing from exactly these."""

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commit these offsets for the group. Raises RebalancePending."""

    def committed(self, partition: Partition) -> int:
        """Committed offset of the group; the oldest offset where there is none."""

    def end_offsets(self, partitions: set[Partition]) -> dict[Partition, int]:
        """Offsets of the next record to be appended."""

    def offsets_at(self, partitions: set[Partition], timestamp_ms: int) -> dict[Partition, int]:
        """Offsets of the first record not older than this; the end where there is none."""

    def within(self, partition: Partition, offset: int) -> int:
        """The offset, brought between the oldest and the end."""

    def seek(self, partition: Partition, offset: int) -> None:
        """Fetch on from here."""

    def close(self) -> None:
        """Leave the group."""


Connect = Callable[[HandOff], GroupClient]
"""Joins the group and reports its assignment to the hand-off from then on. Raises LogUnavailable."""


@dataclass
class _Request:
    """A call of the worker, waiting for the poll thread."""

    action: Callable[[GroupClient], Any]
    deadline_s: float
    answer: Future[Any] = field(default_factory=Future)


class GroupMember:
    """One member of a group; implements ``Subscription``.

    Args:
        connect: joins the group; called again when the client fails for good.
        timeout_s: limit of every call of the worker that needs the broker.
    """

    def __init__(self, connect: Connect, *, timeout_s: float) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._hand_off = HandOff()
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._paused = False
        self._closing = threading.Event()
        self._failure: LogUnavailable | None = None
        client = connect(self._hand_off)
        self._thread = threading.Thread(target=self._run, args=(client,), name="log-group-member", daemon=True)
        self._thread.start()

    def poll(self, *, timeout_s: float) -> LogRecord | None:
        """Next record not yet handed out; see ``Subscription.poll``."""
        self._check_open()
        if self._paused:
            self._closing.wait(timeout_s)
            return None
        record = self._hand_off.take(timeout_s)
        if record is None and self._failure is not None:
            raise LogUnavailable(str(self._failure)) from self._failure
        if record is None and not self._thread.is_alive() and not self._closing.is_set():
            msg = "the poll thread ended on an error of its own (see the process's log); subscribe again"
            raise LogUnavailable(msg)
        return record

    def commit(self, record: LogRecord) -> bool:
        """Commit the contiguous done prefix of the record's partition; see ``Subscription.commit``."""
        self._check_open()
        if not self._hand_off.mark_done(record):
            return False
        partition = (record.topic, record.partition)
        if self._hand_off.to_commit(partition) is None:  # something older is still in work, or it is committed
            return True
        return bool(self._ask(lambda client: self._commit(client, partition, record)))

    def pause(self) -> None:
        """Hand out nothing until ``resume``; the poll thread goes on."""
        self._paused = True

    def resume(self) -> None:
        """Hand out records again."""
        self._paused = False

    def seek_to_time(self, timestamp_ms: int) -> None:
        """Continue at a time; see ``Subscription.seek_to_time``. Waits for the first assignment."""
        deadline_s = time.monotonic() + self._timeout_s / 2

        def seek(client: GroupClient) -> None:
            held = client.assignment()
            if not held and time.monotonic() < deadline_s:
                raise RebalancePending
            self._move(client, client.offsets_at(held, timestamp_ms))

        self._ask(seek)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Continue at an offset; see ``Subscription.seek``. Waits for the first assignment."""
        deadline_s = time.monotonic() + self._timeout_s / 2

        def seek(client: GroupClient) -> None:
            if (topic, partition) not in client.assignment():
                if time.monotonic() < deadline_s:
                    raise RebalancePending
                msg = f"{topic}/{partition} is not assigned to this member; ask the one that holds it"
                raise ValueError(msg)
            self._move(client, {(topic, partition): client.within((topic, partition), offset)})

        if offset < 0:
            msg = f"offset is {offset}; expected 0 or more"
            raise ValueError(msg)
        self._ask(seek)

    def lag(self) -> int:
        """Records appended but not committed, over the assigned partitions."""

        def count(client: GroupClient) -> int:
            ends = client.end_offsets(client.assignment())
            return sum(end - client.committed(partition) for partition, end in ends.items())

        return int(self._ask(count))

    def close(self) -> None:
        """Leave the group within ``timeout_s``."""
        self._closing.set()
        self._hand_off.close()
        self._thread.join(self._timeout_s + 1)

    def _check_open(self) -> None:
        if self._closing.is_set():
            msg = "the subscription is closed; subscribe again"
            raise ValueError(msg)

    def _ask(self, action: Callable[[GroupClient], Any]) -> Any:
        """Have the poll thread do this; LogUnavailable when it takes longer than ``timeout_s``."""
        request = _Request(action, time.monotonic() + self._timeout_s)
        self._requests.put(request)
        try:
            return request.answer.result(self._timeout_s + 1)
        except FutureTimeoutError:
            msg = f"the log did not answer within {self._timeout_s:.0f} s: {self._failure or 'try again'}"
            raise LogUnavailable(msg) from self._failure

    def _commit(self, client: GroupClient, partition: Partition, record: LogRecord) -> bool:
        if not self._hand_off.holds(record):  # revoked while the request waited
            return False
        offset = self._hand_off.to_commit(partition)
        if offset is not None:
            client.commit({partition: offset})
            self._hand_off.set_committed(partition, offset)
        return True

    def _move(self, client: GroupClient, offsets: Mapping[Partition, int]) -> None:
        """Durably first: after a crash the group continues at the new place, not at the old one."""
        if offsets:
            client.commit(offsets)
        for partition, offset in offsets.items():
            client.seek(partition, offset)
            self._hand_off.restart(partition)

    def _run(self, client: GroupClient | None) -> None:
        """Poll thread: serve until closed; after a failure leave the group and join again."""
        while not self._closing.is_set():
            try:
                client = client or self._connect(self._hand_off)
                self._serve(client)
            except LogUnavailable as error:
                _log.warning("log.member_failed: %s", error)
                self._failure = error
                self._refuse_requests(error)
                self._leave(client)
                client = None
                self._closing.wait(RECONNECT_S)
        self._leave(client)
        self._refuse_requests(LogUnavailable("the subscription was closed"))

    def _serve(self, client: GroupClient) -> None:
        self._failure = None
        while not self._closing.is_set():
            waiting = self._hand_off.waiting()
            self._answer_requests(client, wait_s=POLL_S if waiting or self._paused else 0)
            client.hold_back(client.assignment() if self._paused else self._hand_off.waiting())
            self._offer(client, client.poll(0 if waiting or self._paused else POLL_S))

    def _offer(self, client: GroupClient, records: Iterable[LogRecord]) -> None:
        """Queue what was fetched, except what a rebalance overtook: that is fetched again from its committed offset."""
        batch = list(records)
        overtaken = self._hand_off.revoked_since()
        for record in batch:
            if (record.topic, record.partition) not in overtaken:
                self._hand_off.offer(record)
        for partition in overtaken & client.assignment():
            client.seek(partition, client.committed(partition))

    def _answer_requests(self, client: GroupClient, *, wait_s: float) -> None:
        later: list[_Request] = []
        try:
            request = self._requests.get(timeout=wait_s) if wait_s else self._requests.get_nowait()
            while True:
                if not self._answered(client, request):
                    later.append(request)
                request = self._requests.get_nowait()
        except queue.Empty:
            for request in later:
                self._requests.put(request)

    def _answered(self, client: GroupClient, request: _Request) -> bool:
        """Do it; False when it has to wait for the group to settle."""
        try:
            request.answer.set_result(request.action(client))
        except RebalancePending as error:
            if time.monotonic() < request.deadline_s:
                return False
            request.answer.set_exception(LogUnavailable(f"the group is still being rearranged: {error}"))
        except (LogUnavailable, ValueError) as error:
            request.answer.set_exception(error)
        return True

    def _refuse_requests(self, error: LogUnavailable) -> None:
        while True:
            try:
                self._requests.get_nowait().answer.set_exception(error)
            except queue.Empty:
                return

    def _leave(self, client: GroupClient | None) -> None:
        if client is not None:
            try:
                client.close()
            except LogUnavailable as error:
                _log.warning("log.leave_failed: %s", error)  # the broker notices after the session timeout
        self._hand_off.revoke()
