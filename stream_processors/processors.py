"""The processors as one process: opens everything, starts the lanes, ends in order, or replaces itself.

Exit codes: 0 asked to end, 1 something unexpected (a restart may help), 2 the settings are not usable, 3 an engine or a
setting needs an operator. A log that does not answer at start is waited for.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import structlog
from threadpoolctl import threadpool_limits

from engines.errors import DeviceLost
from engines.predictions import ModelIdentity
from engines.records import Modality
from orthanc_plugin.wire.events import DEAD_LETTER_TOPIC, READY_TOPICS, RESULT_TOPIC
from orthanc_plugin.wire.log import Log, LogUnavailable, open_log
from stream_processors.consumer import EXIT_OPERATOR, Lane, Settler
from stream_processors.cross_modal import PARTNERS
from stream_processors.disposition import rule_for
from stream_processors.errors import Abandoned, SettingsInvalid
from stream_processors.pacs.client import ReportWriter, StudyReader
from stream_processors.pacs.dimse import DimseWriter
from stream_processors.pacs.orthanc_rest import OrthancRest
from stream_processors.partner_check import PartnerCheck, open_partner_check
from stream_processors.pipeline import Pipeline, Site
from stream_processors.publisher import Publisher, utc_now
from stream_processors.restart import REPLACEMENTS_MAX, WINDOW_S, Replacements
from stream_processors.routes import Engine, Route, open_beside, open_route
from stream_processors.settings import Settings
from stream_processors.stages import Checkpoint, Stage, kill_after, pass_by
from stream_processors.telemetry import Metrics, NoMetrics, PrometheusMetrics

_T = TypeVar("_T")
STATUS_EVERY_S = 2.0
"""How often the status file follows an engine that fell back."""
_LOOK_EVERY_S = 0.1
_log = structlog.get_logger("stream_processors.processors")


def run(settings: Settings, replacements: Replacements | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or until a lane needs an operator; return the exit code.

    Where a GPU's context is lost, everything is closed and the process replaces itself; too often within a while, it
    ends for an operator instead.

    Args:
        settings: all of them.
        replacements: how often this process was replaced; none without.

    Raises:
        BundleError: an engine fails its self-test; nothing was consumed.
    """
    replacements = replacements or Replacements(command=sys.orig_argv)
    process = _Process(settings=settings, replacements=replacements)
    try:
        return process.serve()
    finally:
        if process.watch is not None:
            process.watch.cancel()
            replacements.replace()


@dataclass(kw_only=True)
class _Process:
    """One run, from the first look at the log to the last group that is left."""

    settings: Settings
    replacements: Replacements
    stopping: threading.Event = field(default_factory=threading.Event)
    signals: list[str] = field(default_factory=list)
    watch: threading.Timer | None = None

    @property
    def to_be_replaced(self) -> bool:
        """A GPU is lost, and a new process may help."""
        return self.watch is not None

    def serve(self) -> int:
        with ExitStack() as stack:
            stack.enter_context(_signals(self.stopping, self.signals))
            board = StatusBoard(StatusFile(self.settings.status_file), replaced=len(self.replacements.recent_s))
            stack.callback(lambda: board.say("restarting" if self.to_be_replaced else "stopped"))
            board.say("starting")
            try:
                lanes = _open_lanes(self.settings, self.stopping, stack, board)
            except Abandoned:
                return 0
            except DeviceLost as error:
                return self._ended(f"while starting: {error}")
            # Preprocessing multiplies many small matrices: with a thread of the BLAS library on every core they take
            # thirty times as long, and hold up the other lanes. After the lanes, because it reaches loaded libraries only.
            stack.enter_context(threadpool_limits(limits=self.settings.engine.threads, user_api="blas"))
            return self._work(lanes, board)

    def _work(self, lanes: list[Lane], board: StatusBoard) -> int:
        threads = [threading.Thread(target=lane.run, name=lane.label, daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()
        board.ready()
        _log.info(
            "processors.ready", modalities=list(dict.fromkeys(lane.name for lane in lanes)), group=self.settings.group
        )
        while not waited(self.stopping, STATUS_EVERY_S):
            board.ready()
        for name in self.signals:
            _log.info("signal.received", signal=name)
        board.say("stopping")
        finished = _join(threads, self.settings.shutdown_s)
        exit_code = max(lane.exit_code for lane in lanes)
        fatal = "; ".join(lane.fatal for lane in lanes if lane.fatal)
        if exit_code == 0 and any(lane.device_lost for lane in lanes):
            exit_code = self._ended(fatal)
        _log.info("processors.stopped", exit_code=exit_code, message=fatal or None)
        if not finished and not self.to_be_replaced:
            # A lane is in the middle of a study. What it has not committed is delivered again; waiting for native code
            # to notice an interpreter that shuts down may crash it.
            board.say("stopped")
            os._exit(exit_code)
        for lane, thread in zip(lanes, threads, strict=True):
            if not thread.is_alive():
                lane.subscription.close()
        if not finished:
            board.say("restarting")
            self.replacements.replace()
        return exit_code

    def _ended(self, fatal: str) -> int:
        """Decide what follows the loss of a GPU; return the exit code of a process that is not replaced."""
        if self.signals:
            return 0
        if self.replacements.allowed:
            _log.error("process.replaced", alert=True, message=fatal, count=len(self.replacements.recent_s) + 1)
            # Closing what ran on a lost GPU may hang: then the process is replaced all the same.
            self.watch = threading.Timer(self.settings.shutdown_s, self.replacements.replace)
            self.watch.daemon = True
            self.watch.start()
            return 0
        msg = f"{fatal}; replaced {REPLACEMENTS_MAX} times in {WINDOW_S / 60:.0f} minutes: look at the GPU (dmesg)"
        _log.error("process.not_replaced", alert=True, message=msg, exit_code=EXIT_OPERATOR)
        return EXIT_OPERATOR


@dataclass(frozen=True, kw_only=True)
class Connections:
    """The log, the PACS and what compares studies in it, shared by all lanes."""

    log: Log
    reader: StudyReader
    writer: ReportWriter
    partners: PartnerCheck | None = None


@contextmanager
def opened(settings: Settings) -> Iterator[Connections]:
    """The connections of the settings, closed at the end."""
    with ExitStack() as stack:
        log = open_settings_log(settings)
        stack.callback(log.close)
        reader = OrthancRest(settings.pacs.rest, largest_study_bytes=settings.pacs.largest_study_bytes)
        stack.callback(reader.close)
        yield Connections(log=log, reader=reader, writer=_writer(settings, reader, stack))


def open_settings_log(settings: Settings) -> Log:
    """Open the log of the settings.

    Raises:
        SettingsInvalid: the address or an option is not understood.
        LogUnavailable: it does not answer.
    """
    try:
        return open_log(settings.log.url, settings.log.options)
    except ValueError as error:
        raise SettingsInvalid(str(error)) from None


def settler_of(
    settings: Settings, route: Route, connections: Connections, *, stopping: threading.Event, metrics: Metrics
) -> Settler:
    """The pipeline of one route, with what decides on its failures."""
    publisher, code_version = Publisher(connections.log), version("purkinje")
    site = Site(site_url=settings.site_url, node=settings.node, software_version=code_version, report=settings.report)
    pipeline = Pipeline(
        route=route,
        reader=connections.reader,
        writer=connections.writer,
        publisher=publisher,
        site=site,
        checkpoint=checkpoint_of(settings),
        partners=connections.partners if route.modality in PARTNERS else None,
    )
    return Settler(
        pipeline=pipeline, publisher=publisher, code_version=code_version, stopping=stopping, metrics=metrics
    )


def with_partners(settings: Settings, connections: Connections, stack: ExitStack) -> Connections:
    """The connections with the check against a patient's other study, where there is one; closed at the end."""
    partners = open_partner_check(settings, connections.reader)
    if partners is not None:
        stack.callback(partners.close)
    return replace(connections, partners=partners)


def checkpoint_of(settings: Settings) -> Checkpoint:
    """Nothing, or the failpoint the settings name."""
    if settings.failpoint is None:
        return pass_by
    return kill_after(Stage(settings.failpoint.removeprefix("after_")))


class StatusFile:
    """What the process is doing, as a small JSON file that is replaced as a whole; nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._said: tuple[str, dict[str, Any]] | None = None

    def write(self, state: str, **more: Any) -> None:
        """Replace the file, unless it says so already."""
        if self._path is None or self._said == (state, more):
            return
        self._said = (state, more)
        content = json.dumps(
            {"state": state, "ready": state == "ready", "pid": os.getpid(), "since_utc": utc_now(), **more}
        )
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        scratch.write_text(content, encoding="utf-8")
        scratch.replace(self._path)


class StatusBoard:
    """What the status file says of the engines: which plans are being built, then what each engine computes on.

    Args:
        file: that is written.
        replaced: how often the process replaced itself lately.
    """

    def __init__(self, file: StatusFile, *, replaced: int = 0) -> None:
        self._file = file
        self._replaced = replaced
        self._engines: dict[str, Engine] = {}

    def say(self, state: str, **more: Any) -> None:
        """Say what the process is doing."""
        self._file.write(state, **more)

    def building(self, modality: Modality, sentence: str) -> None:
        """Say that a plan is being built, which may take minutes."""
        self.say("building plans", building=f"{modality.value}: {sentence}", engines=self._statuses())

    def opened(self, route: Route) -> None:
        """Remember an engine that has passed its self-test."""
        self._engines[route.modality.value] = route.engine

    def ready(self) -> None:
        """Say that all serve, and on what; again whenever that changes."""
        self.say("ready", modalities=list(self._engines), engines=self._statuses(), replaced=self._replaced)

    def _statuses(self) -> dict[str, dict[str, str | None]]:
        return {name: _engine_status(engine.identity) for name, engine in self._engines.items()}


def _engine_status(identity: ModelIdentity) -> dict[str, str | None]:
    names = ("name", "version", "runtime", "runtime_version", "device", "precision", "plan_sha256", "fallback")
    return {name: getattr(identity, name) for name in names}


def patiently(attempt: Callable[[], _T], stopping: threading.Event) -> _T:
    """Repeat what needs the log until the log answers.

    Raises:
        Abandoned: asked to end before it did.
    """
    for attempts in count(1):
        try:
            return attempt()
        except LogUnavailable as error:
            wait_s = rule_for(error).wait_s(attempts, random.Random())  # noqa: S311 - jitter
            _log.warning("log.unavailable", message=str(error), attempts=attempts, wait_s=round(wait_s, 1))
            if waited(stopping, wait_s):
                raise Abandoned from error
    raise AssertionError


def waited(stopping: threading.Event, for_s: float) -> bool:
    """Wait in the main thread until asked to end, at most so long; return whether that was asked.

    The event's own ``wait`` holds a lock that ``set`` takes too: a handler of a signal runs in this very thread, and
    would wait for itself.
    """
    until_s = time.monotonic() + for_s
    while not stopping.is_set() and (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(left_s, _LOOK_EVERY_S))
    return stopping.is_set()


def _open_lanes(settings: Settings, stopping: threading.Event, stack: ExitStack, board: StatusBoard) -> list[Lane]:
    connections = patiently(lambda: stack.enter_context(opened(settings)), stopping)
    patiently(lambda: _ensure_topics(settings, connections.log), stopping)
    metrics = _metrics(settings)
    connections = with_partners(settings, connections, stack)
    routes = [lane for modality in settings.modalities for lane in _open_routes(modality, settings, stack, board)]
    return [
        Lane(
            name=route.modality.value,
            number=number,
            topic=route.topic,
            subscription=patiently(
                partial(connections.log.subscribe, [route.topic], group=settings.group_of(route.modality)), stopping
            ),
            settler=settler_of(settings, route, connections, stopping=stopping, metrics=metrics),
            stopping=stopping,
            checkpoint=checkpoint_of(settings),
            metrics=metrics,
        )
        for number, route in routes
    ]


def _ensure_topics(settings: Settings, log: Log) -> None:
    """Make the topics that are missing: a broker that makes none on its own would keep every announcement waiting."""
    topics = settings.log.topics
    if topics.create:
        names = (*READY_TOPICS, RESULT_TOPIC, DEAD_LETTER_TOPIC)
        log.ensure_topics(names, partitions=topics.partitions, replication=topics.replication)


def _open_routes(
    modality: Modality, settings: Settings, stack: ExitStack, board: StatusBoard
) -> Iterator[tuple[int, Route]]:
    """The numbered routes of a modality's lanes: one engine, and a child for each."""
    batch = settings.engine.batch.of(modality)
    first = _open_route(modality, settings, stack, board)
    yield 1, first
    for number in range(2, batch.lanes + 1):
        beside = open_beside(first, settings.decode)
        stack.callback(beside.sandbox.close)
        yield number, beside


def _open_route(modality: Modality, settings: Settings, stack: ExitStack, board: StatusBoard) -> Route:
    started_s = time.perf_counter()
    batch = settings.engine.batch.of(modality)
    route = open_route(
        modality,
        settings.engine,
        settings.decode,
        batch=batch if batch.lanes > 1 else None,
        building=partial(_tell_of_plan, modality, board),
    )
    stack.callback(route.close)
    board.opened(route)
    identity = route.engine.identity
    elapsed_ms = round((time.perf_counter() - started_s) * 1000)
    _log.info(
        "engine.verified",
        modality=modality.value,
        engine=identity.name,
        engine_version=identity.version,
        runtime=identity.runtime,
        device=identity.device,
        precision=identity.precision,
        message=identity.fallback,
        total_ms=elapsed_ms,
    )
    return route


def _tell_of_plan(modality: Modality, board: StatusBoard, sentence: str) -> None:
    _log.info("plan.building", modality=modality.value, message=sentence)
    board.building(modality, sentence)


def _writer(settings: Settings, reader: OrthancRest, stack: ExitStack) -> ReportWriter:
    if settings.pacs.write_back == "rest":
        return reader
    assert settings.pacs.dimse is not None
    writer = DimseWriter(settings.pacs.dimse)
    stack.callback(writer.close)
    return writer


def _metrics(settings: Settings) -> Metrics:
    if settings.metrics.port is None:
        return NoMetrics()
    metrics = PrometheusMetrics()
    port = metrics.serve(settings.metrics.host, settings.metrics.port)
    _log.info("metrics.served", port=port)
    return metrics


@contextmanager
def _signals(stopping: threading.Event, received: list[str]) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into a request to end, and put the old handlers back.

    A handler runs in the main thread, in the middle of whatever that does: it logs nothing, since the log may be held.
    """

    def ask(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        stopping.set()

    before: Mapping[signal.Signals, Any] = {
        number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _join(threads: list[threading.Thread], shutdown_s: float) -> bool:
    deadline = time.monotonic() + shutdown_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
