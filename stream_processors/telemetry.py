"""Logs and metrics that cannot carry a patient's name.

Every log line passes an allow-list of keys: what is not on it is dropped and counted. UIDs are allowed, names, IDs,
dates of birth and measured values are not. Messages of other libraries are reduced to who spoke and how loudly, because
they quote the data sets they complain about. Lines are JSON unless a terminal reads them.

Called once by ``cli``; the other modules only ask structlog for a logger.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol, TextIO

import structlog

ALLOWED_KEYS = frozenset(
    {
        # who speaks
        "event", "level", "timestamp", "logger", "lane", "node", "version", "pid",
        # which message and study
        "modality", "study_instance_uid", "revision", "event_id", "topic", "partition", "offset", "group",
        # how it ended
        "outcome", "reason_code", "stored", "sop_instance_uid", "stage_ms", "total_ms", "instances", "bytes",
        # what went wrong
        "error", "message", "trace", "action", "attempts", "wait_s", "alert", "exit_code", "signal",
        # state of the process
        "engine", "engine_version", "runtime", "device", "precision", "modalities", "lag", "count", "port", "path", "url",
        # this filter itself
        "dropped_keys",
    }
)  # fmt: skip
"""Keys a log line may have."""

_OURS = ("stream_processors", "orthanc_plugin", "engines")
_OUTSPOKEN = (*_OURS, "kafka")
"""Loggers whose messages name no patient: ours, and the broker's client. Every other library's message is withheld."""

REPEAT_AFTER_S = 60.0
"""A library that says the same thing over and over is heard once in this time."""

STAGE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 300.0)


def configure_logging(*, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send structlog and the standard library's logging through one allow-list to one stream (default: stderr)."""
    stream = sys.stderr if stream is None else stream
    shared = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, _timestamp, allow_listed]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[withhold_foreign_message, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(stream)],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(_Patience())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    for ours in _OURS:
        logging.getLogger(ours).setLevel(level)
    logging.captureWarnings(capture=True)
    warnings.simplefilter("default")
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


class _Patience(logging.Filter):
    """Lets the same place in a foreign library speak once per ``REPEAT_AFTER_S``."""

    def __init__(self) -> None:
        super().__init__()
        self._heard_s: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """True for our own lines and for what was not heard lately."""
        if record.name.startswith(_OURS):
            return True
        place, now_s = (record.name, record.lineno), time.monotonic()
        if now_s - self._heard_s.get(place, -REPEAT_AFTER_S) < REPEAT_AFTER_S:
            return False
        self._heard_s[place] = now_s
        return True


def allow_listed(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop every key that is not on the list; say how many went, never what they were called."""
    refused = [key for key in event if key not in ALLOWED_KEYS and not key.startswith("_")]
    for key in refused:
        del event[key]
    if refused:
        event["dropped_keys"] = len(refused)
    return event


def withhold_foreign_message(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace another library's message by the fact that it spoke, and where."""
    record = event.get("_record")
    name = record.name if record is not None else "unknown"
    event["logger"] = name
    if record is not None and not name.startswith(_OUTSPOKEN):
        event["event"] = "library.logged"
        event["message"] = f"{record.module}:{record.lineno}"
    return event


def describe(error: BaseException) -> dict[str, str]:
    """An exception as log keys: class and places, no message, because a foreign message may quote the data set."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}:{frame.name}" for frame in frames]
    return {"error": f"{type(error).__module__}.{type(error).__qualname__}", "trace": " > ".join(places)}


def _timestamp(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    stamp: MutableMapping[str, Any] = structlog.processors.TimeStamper(fmt="iso", utc=True)(_logger, _method, event)
    return stamp


def _renderer(stream: TextIO) -> Any:
    if stream.isatty():
        return structlog.dev.ConsoleRenderer()
    return structlog.processors.JSONRenderer(sort_keys=True)


class Metrics(Protocol):
    """What is counted; labels are modality, outcome, stage, topic and lane, nothing finer."""

    def study_ended(self, modality: str, outcome: str, stage_ms: Mapping[str, float]) -> None:
        """One study came to its end."""

    def retried(self, modality: str, error: str) -> None:
        """One try failed and will be repeated."""

    def lag(self, topic: str, lane: str, records: int) -> None:
        """So many records of the part of a topic that a lane holds are not committed."""


class NoMetrics:
    """The metrics of a process that was asked for none."""

    def study_ended(self, modality: str, outcome: str, stage_ms: Mapping[str, float]) -> None:
        """Count nothing."""

    def retried(self, modality: str, error: str) -> None:
        """Count nothing."""

    def lag(self, topic: str, lane: str, records: int) -> None:
        """Count nothing."""


class PrometheusMetrics:
    """Metrics in a registry of their own, so that two of them never collide in one process."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self._outcomes = Counter(
            "purkinje_study_outcomes",
            "Studies by modality and outcome",
            ("modality", "outcome"),
            registry=self.registry,
        )
        self._stages = Histogram(
            "purkinje_stage_seconds",
            "Time per stage",
            ("modality", "stage"),
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self._retries = Counter("purkinje_retries", "Failed tries", ("modality", "error"), registry=self.registry)
        self._lag = Gauge("purkinje_lag_records", "Announced, not yet ended", ("topic", "lane"), registry=self.registry)

    def study_ended(self, modality: str, outcome: str, stage_ms: Mapping[str, float]) -> None:
        self._outcomes.labels(modality, outcome).inc()
        for stage, milliseconds in stage_ms.items():
            self._stages.labels(modality, stage).observe(milliseconds / 1000)

    def retried(self, modality: str, error: str) -> None:
        self._retries.labels(modality, error).inc()

    def lag(self, topic: str, lane: str, records: int) -> None:
        self._lag.labels(topic, lane).set(records)

    def serve(self, host: str, port: int) -> int:
        """Serve the metrics over HTTP on a daemon thread; return the port that was taken."""
        from prometheus_client import start_http_server

        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)
