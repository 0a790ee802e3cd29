"""The plugin inside a real Orthanc: C-STORE in, announcement in the embedded log, through crashes and outages."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.filewriter import dcmwrite

from orthanc_plugin.wire.events import READY_TOPICS, StudyReady, content_digest, parse_study_ready
from orthanc_plugin.wire.log import open_log
from stream_processors.local.orthanc import LocalOrthanc, OrthancMissing, find_orthanc
from tests.doubles.small_studies import (
    BIRTH_DATE,
    CT,
    ECG,
    NAME,
    PATIENT_ID,
    SR,
    US_CLIP,
    instance,
    new_study,
    send,
    stack,
)

WAITS = {
    "EcgDebounceSeconds": 0.1,
    "EchoQuietSeconds": 1.0,
    "EchoQuietSecondsMin": 1.0,
    "EchoQuietSecondsMax": 1.5,
    "CmrQuietSeconds": 1.5,
    "PollSeconds": 0.2,
}

Start = Callable[..., LocalOrthanc]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an Orthanc with our plugin in the test's folder; stops all at the end."""
    try:
        find_orthanc()
    except OrthancMissing as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))
    started: list[LocalOrthanc] = []

    def _start(**options: Any) -> LocalOrthanc:
        plugin = {"Log": log_url(tmp_path), **WAITS, **options.pop("plugin", {})}
        orthanc = LocalOrthanc(tmp_path / "orthanc", plugin=plugin, **options)
        orthanc.start()
        started.append(orthanc)
        return orthanc

    yield _start
    for orthanc in started:
        orthanc.kill()


def log_url(folder: Path) -> str:
    """The embedded log in a folder."""
    return f"sqlite://{folder / 'log.db'}"


def announced(folder: Path) -> list[StudyReady]:
    """Everything in the log, by topic and offset."""
    log = open_log(log_url(folder))
    try:
        return [parse_study_ready(r.headers, r.value) for topic in READY_TOPICS for r in log.read(topic)]
    finally:
        log.close()


def wait_for(folder: Path, count: int, timeout_s: float = 30.0) -> list[StudyReady]:
    """The announcements once there are so many."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and len(announced(folder)) < count:
        time.sleep(0.05)
    events = announced(folder)
    assert len(events) >= count, f"{len(events)} of {count} announced"
    return events


def settled(orthanc: LocalOrthanc) -> dict[str, Any]:
    """The status once the plugin has seen every change and nothing waits."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status = orthanc.plugin_status()
        last = httpx.get(f"{orthanc.url}/changes?last", timeout=5).json()["Last"]
        if status["walked"] == last and status["backlog"]["pending"] == 0:
            return status
        time.sleep(0.05)
    raise AssertionError(orthanc.plugin_status())


def test_each_modality_is_announced_once_and_late_instances_revise(start: Start, tmp_path: Path) -> None:
    """ECG, echo and a whole CMR stack are announced; decoys and our own report are not; resends change nothing."""
    orthanc = start()
    study = new_study()
    ecg, clip = instance(ECG, "ECG", study, "1"), instance(US_CLIP, "US", study, "2", NumberOfFrames=30)
    mr = stack(new_study())
    send(orthanc, ecg, clip, instance(CT, "CT", study, "3"), *mr)
    events = {event.modality: event for event in wait_for(tmp_path, 3)}
    assert sorted(events) == ["cmr", "ecg", "echo"]
    assert {event.revision for event in events.values()} == {1}
    assert events["cmr"].completeness_rule == "cmr.slices-x-phases"
    assert events["cmr"].series[0].instance_count == len(mr)

    send(orthanc, ecg, clip, *mr, instance(SR, "SR", study, "4", Manufacturer="Purkinje"))
    settled(orthanc)
    time.sleep(2.0)
    assert len(announced(tmp_path)) == 3

    send(orthanc, instance(US_CLIP, "US", study, "2", NumberOfFrames=40))
    late = wait_for(tmp_path, 4)[-2:]
    assert [event.revision for event in late] in ([1, 2], [2, 1])
    (second,) = [event for event in announced(tmp_path) if event.revision == 2]
    assert (second.modality, second.supersedes) == ("echo", events["echo"].event_id)
    assert second.series[0].instance_count == 2


def test_the_digest_is_that_of_the_files_orthanc_returns(start: Start, tmp_path: Path) -> None:
    """A processor that fetches the claim and hashes it finds the announced digest; times are UTC in any time zone."""
    orthanc = start(environment={"TZ": "America/New_York"})
    send(orthanc, instance(ECG, "ECG", new_study()))
    (event,) = wait_for(tmp_path, 1)
    answers = httpx.get(f"{orthanc.url}/series/{event.series[0].pacs_series_id}/instances", timeout=5).json()
    pairs = []
    for answer in answers:
        content = httpx.get(f"{orthanc.url}/instances/{answer['ID']}/file", timeout=5).content
        pairs.append((answer["MainDicomTags"]["SOPInstanceUID"], _md5(content)))
    assert event.content_digest == content_digest(pairs)
    received = datetime.fromisoformat(event.last_received_utc)
    assert abs((datetime.now(UTC) - received).total_seconds()) < 60


def _md5(content: bytes) -> str:
    import hashlib

    return hashlib.md5(content).hexdigest()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_an_end_inside_the_quiet_time_loses_nothing(start: Start, tmp_path: Path, end: str) -> None:
    """SIGKILL and SIGTERM while an echo and a CMR study wait: each is announced exactly once after the restart."""
    orthanc = start(plugin={"EchoQuietSeconds": 3.0, "CmrQuietSeconds": 3.0})
    send(orthanc, instance(US_CLIP, "US", new_study(), NumberOfFrames=30), *stack(new_study(), stated=False))
    time.sleep(1.5)
    assert announced(tmp_path) == []
    getattr(orthanc, end)()
    orthanc.start()
    wait_for(tmp_path, 2)
    settled(orthanc)
    getattr(orthanc, end)()
    orthanc.start()
    settled(orthanc)
    assert sorted(event.modality for event in announced(tmp_path)) == ["cmr", "echo"]


def test_kills_at_any_moment_neither_lose_nor_repeat(start: Start, tmp_path: Path) -> None:
    """ECGs sent between four kills, each right after its C-STORE success: every one is announced exactly once."""
    orthanc = start()
    studies = [new_study() for _ in range(4)]
    for number, study in enumerate(studies):
        send(orthanc, instance(ECG, "ECG", study))
        time.sleep(0.08 * number)
        orthanc.kill()
        orthanc.start()
    wait_for(tmp_path, len(studies))
    settled(orthanc)
    assert sorted(event.study_instance_uid for event in announced(tmp_path)) == sorted(studies)


def test_an_unavailable_log_delays_but_never_disturbs_storing(start: Start, tmp_path: Path) -> None:
    """While the log cannot be opened, C-STORE works and the status says so; when it is back, all is announced."""
    folder = tmp_path / "later"
    orthanc = start(plugin={"Log": f"sqlite://{folder / 'log.db'}"})
    studies = [new_study() for _ in range(3)]
    for study in studies:
        send(orthanc, instance(ECG, "ECG", study))
    deadline = time.monotonic() + 10
    while orthanc.plugin_status()["log"]["failures"] < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    status = orthanc.plugin_status()
    assert status["log"]["state"] == "unavailable"
    assert status["backlog"]["by_modality"]["ecg"] == 3
    folder.mkdir()
    events = wait_for(folder, 3)
    assert sorted(event.study_instance_uid for event in events) == sorted(studies)
    assert orthanc.plugin_status()["log"]["state"] == "ok"


def test_a_broker_that_is_down_over_a_restart_loses_nothing(start: Start, tmp_path: Path) -> None:
    """Nothing listens at the Kafka address; after a restart with a log that works, the study is announced."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    orthanc = start(plugin={"Log": f"kafka://127.0.0.1:{port}"})
    send(orthanc, instance(ECG, "ECG", new_study()))
    time.sleep(1.0)
    assert "listens" in orthanc.plugin_status()["log"]["detail"]
    began = time.monotonic()
    orthanc.stop()
    assert time.monotonic() - began < 10
    start()
    assert len(wait_for(tmp_path, 1)) == 1


@pytest.mark.parametrize("wrong", ["import", "setting", "log"])
def test_a_broken_plugin_never_disturbs_orthanc(start: Start, tmp_path: Path, wrong: str) -> None:
    """A broken import, a broken setting and an impossible log path: Orthanc starts, says so, and stores."""
    options: dict[str, Any] = {}
    if wrong == "import":
        package = tmp_path / "broken" / "orthanc_plugin"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("def broken(\n")
        options["environment"] = {"PYTHONPATH": str(package.parent)}
    elif wrong == "setting":
        options["plugin"] = {"CmrQuietSecond": 3}
    else:
        (tmp_path / "file").write_text("in the way")
        options["plugin"] = {"Log": f"sqlite://{tmp_path / 'file' / 'log.db'}"}
    orthanc = start(**options)
    send(orthanc, instance(ECG, "ECG", new_study()), *stack(new_study(), 1, 2))
    assert httpx.get(f"{orthanc.url}/statistics", timeout=5).json()["CountInstances"] == 3
    if wrong == "import":
        assert "the plugin stays off: SyntaxError" in orthanc.log_tail()
    else:
        status = orthanc.plugin_status()
        assert status["state"] == ("off" if wrong == "setting" else "running")


def test_the_status_and_the_log_know_no_patient(start: Start, tmp_path: Path) -> None:
    """Name, ID and birth date of the patient are in no record, status or log line, and no file of ours."""
    orthanc = start()
    send(orthanc, instance(ECG, "ECG", new_study(), SeriesDescription=f"of {NAME}"))
    wait_for(tmp_path, 1)
    status = settled(orthanc)
    assert status["settings"]["Log"] == log_url(tmp_path)
    seen = str(status).encode() + orthanc.log_path.read_bytes()
    seen += b"".join(path.read_bytes() for path in tmp_path.glob("log.db*"))
    for secret in (NAME, PATIENT_ID, BIRTH_DATE):
        assert secret.encode() not in seen


def test_hostile_files_do_not_stop_the_walk(start: Start, tmp_path: Path, sample_data: Path) -> None:
    """Whatever of the malformed and decoy files Orthanc accepts, the ECG after them is announced."""
    orthanc = start()
    for path in sorted((sample_data / "malformed").rglob("*")) + sorted((sample_data / "decoy").glob("*.dcm")):
        if path.is_file():
            httpx.post(f"{orthanc.url}/instances", content=path.read_bytes(), timeout=60)
    study = new_study()
    buffer = BytesIO()
    dcmwrite(buffer, instance(ECG, "ECG", study), enforce_file_format=True)
    assert httpx.post(f"{orthanc.url}/instances", content=buffer.getvalue(), timeout=5).status_code == 200
    status = settled(orthanc)
    assert study in {event.study_instance_uid for event in announced(tmp_path)}
    assert status["last_trouble"] is None
