"""The processors as one process: opens everything, starts the lanes, ends in order.

Exit codes: 0 asked to end, 1 something unexpected (a restart may help), 2 the settings are not usable, 3 an engine or a
setting needs an operator. A log that does not answer at start is waited for.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import structlog

from engines.records import Modality
from orthanc_plugin.wire.events import DEAD_LETTER_TOPIC, READY_TOPICS, RESULT_TOPIC
from orthanc_plugin.wire.log import Log, LogUnavailable, open_log
from stream_processors.consumer import Lane, Settler
from stream_processors.disposition import rule_for
from stream_processors.errors import Abandoned, SettingsInvalid
from stream_processors.pacs.client import ReportWriter, StudyReader
from stream_processors.pacs.dimse import DimseWriter
from stream_processors.pacs.orthanc_rest import OrthancRest
from stream_processors.pipeline import Pipeline, Site
from stream_processors.publisher import Publisher, utc_now
from stream_processors.routes import Route, open_route
from stream_processors.settings import Settings
from stream_processors.stages import Checkpoint, Stage, kill_after, pass_by
from stream_processors.telemetry import Metrics, NoMetrics, PrometheusMetrics

_T = TypeVar("_T")
_log = structlog.get_logger("stream_processors.processors")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, or until a lane needs an operator; return the exit code.

    Raises:
        BundleError: an engine fails its self-test; nothing was consumed.
    """
    stopping = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(_signals(stopping))
        status = StatusFile(settings.status_file)
        stack.callback(status.write, "stopped")
        status.write("starting")
        try:
            lanes = _open_lanes(settings, stopping, stack)
        except Abandoned:
            return 0
        threads = [threading.Thread(target=lane.run, name=lane.name, daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()
        status.write("ready", modalities=[lane.name for lane in lanes])
        _log.info("processors.ready", modalities=[lane.name for lane in lanes], group=settings.group)
        stopping.wait()
        status.write("stopping")
        finished = _join(threads, settings.shutdown_s)
        exit_code = max(lane.exit_code for lane in lanes)
        fatal = "; ".join(lane.fatal for lane in lanes if lane.fatal)
        _log.info("processors.stopped", exit_code=exit_code, message=fatal or None)
        if not finished:
            # A lane is in the middle of a study. What it has not committed is delivered again; waiting for native code
            # to notice an interpreter that shuts down may crash it.
            status.write("stopped")
            os._exit(exit_code)
        for lane in lanes:
            lane.subscription.close()
    return exit_code


@dataclass(frozen=True, kw_only=True)
class Connections:
    """The log and the PACS, shared by all lanes."""

    log: Log
    reader: StudyReader
    writer: ReportWriter


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
    )
    return Settler(
        pipeline=pipeline, publisher=publisher, code_version=code_version, stopping=stopping, metrics=metrics
    )


def checkpoint_of(settings: Settings) -> Checkpoint:
    """Nothing, or the failpoint the settings name."""
    if settings.failpoint is None:
        return pass_by
    return kill_after(Stage(settings.failpoint.removeprefix("after_")))


class StatusFile:
    """What the process is doing, as a small JSON file that is replaced as a whole; nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(self, state: str, **more: Any) -> None:
        """Replace the file."""
        if self._path is None:
            return
        content = json.dumps(
            {"state": state, "ready": state == "ready", "pid": os.getpid(), "since_utc": utc_now(), **more}
        )
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        scratch.write_text(content, encoding="utf-8")
        scratch.replace(self._path)


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
            if stopping.wait(wait_s):
                raise Abandoned from error
    raise AssertionError


def _open_lanes(settings: Settings, stopping: threading.Event, stack: ExitStack) -> list[Lane]:
    connections = patiently(lambda: stack.enter_context(opened(settings)), stopping)
    patiently(lambda: _ensure_topics(settings, connections.log), stopping)
    metrics = _metrics(settings)
    routes = [_open_route(modality, settings, stack) for modality in settings.modalities]
    return [
        Lane(
            name=route.modality.value,
            topic=route.topic,
            subscription=patiently(
                partial(connections.log.subscribe, [route.topic], group=settings.group_of(route.modality)), stopping
            ),
            settler=settler_of(settings, route, connections, stopping=stopping, metrics=metrics),
            stopping=stopping,
            checkpoint=checkpoint_of(settings),
            metrics=metrics,
        )
        for route in routes
    ]


def _ensure_topics(settings: Settings, log: Log) -> None:
    """Make the topics that are missing: a broker that makes none on its own would keep every announcement waiting."""
    topics = settings.log.topics
    if topics.create:
        names = (*READY_TOPICS, RESULT_TOPIC, DEAD_LETTER_TOPIC)
        log.ensure_topics(names, partitions=topics.partitions, replication=topics.replication)


def _open_route(modality: Modality, settings: Settings, stack: ExitStack) -> Route:
    started_s = time.perf_counter()
    route = open_route(modality, settings.engine, settings.decode)
    stack.callback(route.close)
    identity = route.engine.identity
    elapsed_ms = round((time.perf_counter() - started_s) * 1000)
    _log.info(
        "engine.verified",
        modality=modality.value,
        engine=identity.name,
        engine_version=identity.version,
        runtime=identity.runtime,
        total_ms=elapsed_ms,
    )
    return route


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
def _signals(stopping: threading.Event) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into a request to end, and put the old handlers back."""

    def ask(number: int, _frame: FrameType | None) -> None:
        _log.info("signal.received", signal=signal.Signals(number).name)
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
