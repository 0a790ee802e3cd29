"""The plugin inside a real Orthanc with a real Kafka that goes away and comes back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orthanc_plugin.wire.events import READY_TOPICS, StudyReady, parse_study_ready
from orthanc_plugin.wire.log import Log, open_log
from stream_processors.local.orthanc import LocalOrthanc, OrthancMissing, find_orthanc
from tests.doubles.small_studies import ECG, instance, new_study, send


@pytest.fixture
def orthanc_installed() -> None:
    """Skips where Orthanc is not installed, but fails under CI."""
    try:
        find_orthanc()
    except OrthancMissing as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


def wait_for(log: Log, count: int) -> list[StudyReady]:
    """The ECG announcements once there are so many."""
    events: list[StudyReady] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(events) < count:
        events = [parse_study_ready(record.headers, record.value) for record in log.read("purkinje.study.ready.ecg.v1")]
        time.sleep(0.2)
    return events


def comes_to_wait(orthanc: LocalOrthanc, count: int) -> bool:
    """True once so many studies wait; the thread that counts them may be inside one attempt of ten seconds."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        if orthanc.plugin_status()["backlog"]["pending"] == count:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.usefixtures("orthanc_installed")
def test_a_broker_that_goes_away_delays_only(own_kafka: Callable[..., Any], tmp_path: Path) -> None:
    """Studies that arrive while the broker is down are stored at once and announced exactly once when it is back."""
    cluster = own_kafka()
    log = open_log(cluster.url)
    log.ensure_topics(READY_TOPICS, partitions=3, replication=1)
    plugin = {"Log": cluster.url, "EcgDebounceSeconds": 0.1, "PollSeconds": 0.2}
    with LocalOrthanc(tmp_path / "orthanc", plugin=plugin) as orthanc:
        before, during = new_study(), [new_study() for _ in range(3)]
        send(orthanc, instance(ECG, "ECG", before))
        assert [event.study_instance_uid for event in wait_for(log, 1)] == [before]
        cluster.nodes[0].stop()
        for study in during:
            send(orthanc, instance(ECG, "ECG", study))
        assert comes_to_wait(orthanc, len(during))
        cluster.nodes[0].start()
        cluster.nodes[0].wait_ready()
        events = wait_for(log, 4)
    log.close()
    assert sorted(event.study_instance_uid for event in events) == sorted([before, *during])
