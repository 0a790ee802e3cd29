"""The processors killed at each stage, against a real Orthanc and the embedded log: one report, one outcome, always."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from engines.records import Modality
from orthanc_plugin.wire.events import RESULT_TOPIC, SeriesClaim, StudyReady, content_digest
from orthanc_plugin.wire.sqlite_log import SqliteLog
from stream_processors.events import parse_outcome
from stream_processors.local.orthanc import AE_TITLE, LocalOrthanc, OrthancMissing, find_orthanc
from stream_processors.pacs.association import Peer
from stream_processors.pacs.send import send
from tests.doubles.bundles import write_tiny
from training.phantoms.make import make_studies


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOrthanc]:
    """An Orthanc without our plugin: the tests announce."""
    try:
        find_orthanc()
    except OrthancMissing as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI needs Orthanc: {error}")
        pytest.skip(str(error))
    with LocalOrthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny ECG bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny(folder / "ecg", Modality.ECG)
    return folder


@dataclass
class Site:
    """One Orthanc, one log, one set of settings."""

    orthanc: LocalOrthanc
    folder: Path
    bundles: Path

    def __post_init__(self) -> None:
        self.log_path = self.folder / "log.db"
        self.log = SqliteLog(str(self.log_path))

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """``purkinje run`` for ECG."""
        ours = {
            "PURKINJE_SITE_URL": f"https://{self.folder.name}.example",
            "PURKINJE_LOG": f"sqlite://{self.log_path}",
            "PURKINJE_PACS__REST__URL": self.orthanc.url,
            "PURKINJE_ENGINE__BUNDLES": str(self.bundles),
            "PURKINJE_ENGINE__RUNTIMES": '["onnxruntime"]',
            "PURKINJE_MODALITIES": '["ecg"]',
            "PURKINJE_STATUS_FILE": str(self.folder / "status.json"),
        }
        with (self.folder / "processors.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "stream_processors.cli", "run"],
                env={**os.environ, **ours, **environment},
                stdout=log,
                stderr=log,
            )

    def send_and_announce(self, seed: int) -> StudyReady:
        """One phantom ECG by C-STORE, and the announcement the plugin would make of it."""
        phantom = self.folder / f"phantom-{seed}"
        (truth,) = make_studies("ecg", seed, 1, phantom)
        files = [phantom / file for file in truth.files]
        peer = Peer(
            host="127.0.0.1",
            port=self.orthanc.dicom_port,
            called_ae_title=AE_TITLE,
            calling_ae_title="CART",
            timeout_s=20.0,
        )
        assert send(files, peer).sent == files
        claim = self._claim(truth.study_instance_uid)
        self.log.append(claim.topic, key=claim.study_instance_uid, headers=claim.headers(), value=claim.value())
        return claim

    def _claim(self, study_instance_uid: str) -> StudyReady:
        (found,) = httpx.post(f"{self.orthanc.url}/tools/lookup", content=study_instance_uid).json()
        series = httpx.get(f"{self.orthanc.url}/studies/{found['ID']}/series").json()[0]
        instances = httpx.get(f"{self.orthanc.url}/series/{series['ID']}/instances").json()
        pairs = [
            (
                one["MainDicomTags"]["SOPInstanceUID"],
                httpx.get(f"{self.orthanc.url}/instances/{one['ID']}/attachments/dicom/md5").text,
            )
            for one in instances
        ]
        digest = content_digest(pairs)
        claim = SeriesClaim(
            series_instance_uid=series["MainDicomTags"]["SeriesInstanceUID"],
            pacs_series_id=series["ID"],
            instance_count=len(instances),
            sop_class_uids=("1.2.840.10008.5.1.4.1.1.9.1.1",),
            digest=digest,
        )
        return StudyReady(
            source="urn:orthanc:test",
            study_instance_uid=study_instance_uid,
            pacs_study_id=found["ID"],
            modality="ecg",
            revision=1,
            supersedes=None,
            series=(claim,),
            content_digest=digest,
            completeness_rule="test",
            last_received_utc="2026-03-01T10:00:00+00:00",
            announced_utc="2026-03-01T10:00:00+00:00",
            sequence=1,
        )

    def reports(self, study_instance_uid: str) -> dict[str, bytes]:
        """Every SR instance of the study, by Orthanc's identifier."""
        query = {"StudyInstanceUID": study_instance_uid, "Modality": "SR"}
        found = httpx.post(f"{self.orthanc.url}/tools/find", json={"Level": "Instance", "Query": query}).json()
        return {one: httpx.get(f"{self.orthanc.url}/instances/{one}/file").content for one in found}

    def wait_until_committed(self, process: subprocess.Popen[bytes], claim: StudyReady) -> None:
        """Return once the group has no lag; fail loudly where the processors end before."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status = json.loads((self.folder / "status.json").read_text())
            joined = status["ready"] and status["pid"] == process.pid
            if joined and self.log.lag([claim.topic], group="purkinje.ecg")[claim.topic] == 0:
                return
            assert process.poll() is None, (self.folder / "processors.log").read_text()
            time.sleep(0.05)
        pytest.fail((self.folder / "processors.log").read_text())


@pytest.fixture
def site(orthanc: LocalOrthanc, tmp_path: Path, bundles: Path) -> Iterator[Site]:
    """A site of its own: other UIDs than every other test."""
    made = Site(orthanc, tmp_path, bundles)
    yield made
    made.log.close()


@pytest.mark.parametrize(
    ("stage", "stored"),
    [
        ("fetch", ["created"]),
        ("companion", ["created"]),
        ("store", ["already"]),
        ("publish", ["created", "already"]),
        ("commit", ["created"]),
    ],
)
def test_a_processor_killed_at_a_stage_leaves_one_report(site: Site, stage: str, stored: list[str]) -> None:
    """SIGKILL after the stage, a restart, and the study has one report, one companion and one distinct outcome."""
    claim = site.send_and_announce(seed=sum(map(ord, stage)))
    dying = site.start(PURKINJE_FAILPOINT=f"after_{stage}")
    assert dying.wait(60) == -signal.SIGKILL, (site.folder / "processors.log").read_text()
    before = site.reports(claim.study_instance_uid)
    again = site.start()
    try:
        site.wait_until_committed(again, claim)
    finally:
        again.terminate()
    assert again.wait(30) == 0
    after = site.reports(claim.study_instance_uid)
    assert len(after) == 2
    assert {one: after[one] for one in before} == before
    outcomes = [parse_outcome(record.headers, record.value) for record in site.log.read(RESULT_TOPIC)]
    assert len({outcome["event_id"] for outcome in outcomes}) == 1
    assert outcomes[-1]["claim_event_id"] == claim.event_id
    assert [outcome["report"]["stored"] for outcome in outcomes] == stored


LANES = 3
SHARED = {
    "PURKINJE_ENGINE__BATCH__ECG__LANES": str(LANES),
    "PURKINJE_ENGINE__BATCH__ECG__MAX_BATCH": str(LANES),
}
ONLY_TOGETHER = {**SHARED, "PURKINJE_ENGINE__BATCH__ECG__MAX_WAIT_MS": "60000"}
"""No study passes the engine before all lanes ask: whoever gets beyond it was one batch with the others."""


@pytest.mark.parametrize("stage", ["predict", "store"])
def test_a_batch_of_several_killed_in_flight_leaves_one_report_each(site: Site, stage: str) -> None:
    """SIGKILL while the studies of one batch are on their way through the engine: none is lost, none is reported twice.

    The first lane to pass the stage ends them all: as the batch comes out of the engine, or with one report stored.
    """
    claims = [site.send_and_announce(seed=1000 * sum(map(ord, stage)) + number) for number in range(LANES)]
    topic = claims[0].topic
    dying = site.start(PURKINJE_FAILPOINT=f"after_{stage}", **ONLY_TOGETHER)
    assert dying.wait(60) == -signal.SIGKILL, (site.folder / "processors.log").read_text()
    assert site.log.lag([topic], group="purkinje.ecg") == {topic: LANES}
    before = {claim.event_id: site.reports(claim.study_instance_uid) for claim in claims}
    again = site.start(**SHARED)
    try:
        site.wait_until_committed(again, claims[0])
    finally:
        again.terminate()
    assert again.wait(30) == 0
    for claim in claims:
        after = site.reports(claim.study_instance_uid)
        assert len(after) == 2
        assert {one: after[one] for one in before[claim.event_id]} == before[claim.event_id]
    outcomes = [parse_outcome(record.headers, record.value) for record in site.log.read(RESULT_TOPIC)]
    assert {outcome["claim_event_id"] for outcome in outcomes} == {claim.event_id for claim in claims}
    assert len({outcome["event_id"] for outcome in outcomes}) == LANES
