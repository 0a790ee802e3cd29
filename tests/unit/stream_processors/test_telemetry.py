"""Nothing that is not allowed gets into a log line or a metric."""

from __future__ import annotations

import io
import json
import logging
import urllib.request
import warnings
from collections.abc import Iterator

import pytest
import structlog

from stream_processors.telemetry import PrometheusMetrics, configure_logging, describe

CANARY = "Canary^Patient"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """A configured log that writes to memory; everything is put back afterwards."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, warnings.filters[:])
    stream = io.StringIO()
    configure_logging(stream=stream)
    yield stream
    root.handlers[:], root.level = before[0], before[1]
    warnings.filters[:] = before[2]
    logging.captureWarnings(capture=False)
    structlog.contextvars.clear_contextvars()


def _parsed(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_key_that_is_not_allowed_is_dropped_and_counted(lines: io.StringIO) -> None:
    """Whoever logs a name by mistake writes a number instead."""
    structlog.get_logger("stream_processors.test").info("study.reported", modality="ecg", patient_name=CANARY, x=1)
    (line,) = _parsed(lines)
    assert line["dropped_keys"] == 2
    assert line["modality"] == "ecg"
    assert CANARY not in lines.getvalue()


def test_a_message_of_another_library_is_withheld(lines: io.StringIO) -> None:
    """Pydicom's complaint about a value shows that it complained and where, not the value."""
    logging.getLogger("pydicom").warning("Invalid value for VR PN: '%s'", CANARY)
    logging.getLogger("pynetdicom.events").error(CANARY)
    warnings.warn(CANARY, stacklevel=1)
    assert [line["logger"] for line in _parsed(lines)] == ["pydicom", "pynetdicom.events", "py.warnings"]
    assert CANARY not in lines.getvalue()


def test_a_library_that_repeats_itself_is_heard_once(lines: io.StringIO) -> None:
    """A client that complains thirty times a second does not fill the disk; our own lines are never dropped."""
    for _ in range(5):
        logging.getLogger("kafka.cluster").error("no brokers")
        logging.getLogger("orthanc_plugin.wire").error("ours")
    assert [line["event"] for line in _parsed(lines)].count("no brokers") == 1
    assert [line["event"] for line in _parsed(lines)].count("ours") == 5


def test_chatter_of_other_libraries_is_left_out(lines: io.StringIO) -> None:
    """Below a warning, other libraries are not heard at all."""
    logging.getLogger("httpx").info("HTTP Request: GET http://pacs")
    assert lines.getvalue() == ""


def test_an_exception_is_told_by_class_and_place(lines: io.StringIO) -> None:
    """A traceback names where it happened and never what the message says, whichever way it is logged."""
    try:
        raise ValueError(CANARY)  # noqa: TRY301
    except ValueError as error:
        structlog.get_logger("stream_processors.test").error("study.failed", exc_info=True, **describe(error))
        logging.getLogger("anybody").exception("boom")
    assert CANARY not in lines.getvalue()
    assert "test_an_exception_is_told_by_class_and_place" in lines.getvalue()


def test_a_bound_context_passes_the_filter_too(lines: io.StringIO) -> None:
    """What is bound once per message is filtered like everything else."""
    structlog.contextvars.bind_contextvars(study_instance_uid="1.2.3", patient_id=CANARY)
    structlog.get_logger("stream_processors.test").info("study.reported")
    assert _parsed(lines)[0]["study_instance_uid"] == "1.2.3"
    assert CANARY not in lines.getvalue()


def test_our_own_packages_speak_freely(lines: io.StringIO) -> None:
    """A warning of the wire is kept with its words."""
    logging.getLogger("orthanc_plugin.wire.kafka_log").warning("rebalance of %s", "purkinje")
    assert _parsed(lines)[0]["event"] == "rebalance of purkinje"


def test_metrics_are_served_on_loopback_with_the_labels_they_need() -> None:
    """Outcomes, stage times, retries and lag can be scraped; a label holds nothing finer than modality, topic or lane."""
    metrics = PrometheusMetrics()
    metrics.study_ended("ecg", "reported", {"fetch": 12.0, "total": 40.0})
    metrics.retried("ecg", "PacsUnavailable")
    metrics.lag("purkinje.study.ready.ecg.v1", "ecg-2", 3)
    port = metrics.serve("127.0.0.1", 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        text = response.read().decode()
    assert 'purkinje_study_outcomes_total{modality="ecg",outcome="reported"} 1.0' in text
    assert 'purkinje_stage_seconds_bucket{le="0.025",modality="ecg",stage="fetch"} 1.0' in text
    assert 'purkinje_retries_total{error="PacsUnavailable",modality="ecg"} 1.0' in text
    assert 'purkinje_lag_records{lane="ecg-2",topic="purkinje.study.ready.ecg.v1"} 3.0' in text
