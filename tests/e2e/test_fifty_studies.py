"""The promise of the spine: whatever dies in between, every study ends in exactly one report."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from rich.console import Console

from stream_processors.errors import PacsError
from stream_processors.local.arrivals import Arrival, of_truths
from stream_processors.local.demo import wait_for_outcomes
from stream_processors.local.ledger import Account, as_json
from stream_processors.local.orthanc import AE_TITLE
from stream_processors.local.stack import LocalStack, QuietTimes
from stream_processors.pacs.send import send_files

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("orthanc_installed")]

KILLS = 5
LANES = {"PURKINJE_ENGINE__BATCH__ECG__LANES": "3"}
"""ECG studies share batches; echo and cardiac MR have the one lane of the default."""


def send_all(stack: LocalStack, arrivals: list[Arrival], rng: random.Random) -> None:
    """C-STORE the studies in a random order; a study whose association breaks is sent again."""
    for arrival in rng.sample(arrivals, len(arrivals)):
        for _ in range(20):
            if sent_whole(stack, arrival):
                break
            time.sleep(1.0)
        else:
            pytest.fail(f"could not send {arrival.study_instance_uid}")


def sent_whole(stack: LocalStack, arrival: Arrival) -> bool:
    """True when Orthanc took every file of a study."""
    try:
        result = send_files(
            arrival.files,
            host="127.0.0.1",
            port=stack.orthanc.dicom_port,
            called_ae_title=AE_TITLE,
            console=Console(quiet=True),
        )
    except PacsError:
        return False
    return len(result.sent) == len(arrival.files)


@contextmanager
def killer(stack: LocalStack, rng: random.Random) -> Iterator[list[float]]:
    """Kill -9 the processors at random moments and start them again, until the block ends."""
    ended = threading.Event()
    moments: list[float] = []

    def work() -> None:
        while len(moments) < KILLS and not ended.is_set():
            stack.wait_ready()
            ended.wait(rng.uniform(0.2, 4.0))
            stack.kill_processors()
            moments.append(time.monotonic())
            stack.start_processors()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield moments
    finally:
        ended.set()
        thread.join()


def restart_orthanc_inside_quiet_time(stack: LocalStack) -> None:
    """Kill Orthanc while the plugin waits for late instances, then start it on the same storage."""
    assert wait_until(lambda: stack.plugin_status()["backlog"]["pending"] > 0), "nothing was waiting"
    stack.orthanc.kill()
    stack.orthanc.start()


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Poll a condition."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def reports_per_study(stack: LocalStack) -> Counter[str]:
    """Number of measurement reports (root 126000) in each study of the PACS."""
    query = {"Level": "Instance", "Query": {"Modality": "SR"}, "Expand": True, "RequestedTags": []}
    found = httpx.post(f"{stack.orthanc.url}/tools/find", json=query, timeout=60).raise_for_status().json()
    studies: Counter[str] = Counter()
    for instance in found:
        tags = httpx.get(f"{stack.orthanc.url}/instances/{instance['ID']}/simplified-tags", timeout=30).json()
        if tags["ConceptNameCodeSequence"][0]["CodeValue"] == "126000":
            studies[tags["StudyInstanceUID"]] += 1
    return studies


def check_account(account: Account, reports: Counter[str], truths: list[dict[str, Any]]) -> None:
    """The invariants: every study announced once, ended once, reported once."""
    expected = {truth["study_instance_uid"] for truth in truths}
    final = {event.study_instance_uid for event in account.announced.values()}
    assert final == expected
    assert not account.open_events
    assert not account.contradictions
    ends = Counter(end["outcome"] for ends in account.outcomes.values() for end in ends)
    superseded = ends.pop("superseded", 0)
    assert sum(ends.values()) == len(expected), as_json(account)
    assert len(account.announced) == len(expected) + superseded, as_json(account)
    assert not ends.keys() - {"reported", "abstained", "refused"}, as_json(account)
    assert reports == dict.fromkeys(expected, 1)


@pytest.mark.parametrize("log", ["sqlite", "kafka"])
def test_fifty_studies_survive_everything(
    log: Literal["sqlite", "kafka"], phantoms: list[dict[str, Any]], tmp_path: Path, console: Console
) -> None:
    """Fifty studies sent twice, shuffled, with kill -9 of the processors and of Orthanc: fifty outcomes, fifty reports."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    rng = random.Random(seed)
    arrivals = of_truths(phantoms)
    quiet = QuietTimes(echo_s=2.0, cmr_s=4.0)
    with LocalStack(tmp_path, log=log, quiet=quiet, processor_environment=LANES) as stack:
        with killer(stack, rng) as moments:
            send_all(stack, arrivals, rng)
            restart_orthanc_inside_quiet_time(stack)
            send_all(stack, arrivals, rng)
            assert wait_until(lambda: len(moments) == KILLS, 120)
        stack.wait_ready()
        account = wait_for_outcomes(stack, [arrival.study_instance_uid for arrival in arrivals], console)
        check_account(account, reports_per_study(stack), phantoms)
