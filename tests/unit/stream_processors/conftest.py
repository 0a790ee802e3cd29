"""One study, one PACS, one log and one pipeline for the tests of the processors."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from engines.errors import Refusal
from engines.records import Modality
from orthanc_plugin.wire.events import DEAD_LETTER_TOPIC, RESULT_TOPIC, StudyReady
from orthanc_plugin.wire.log import LogRecord
from orthanc_plugin.wire.sqlite_log import SqliteLog
from stream_processors.consumer import Lane, Settler
from stream_processors.events import parse_outcome
from stream_processors.partner_check import PartnerCheck
from stream_processors.pipeline import Pipeline, Site
from stream_processors.publisher import Publisher
from stream_processors.routes import Route
from stream_processors.settings import ReportSettings
from stream_processors.stages import Checkpoint, pass_by
from tests.doubles.cross_modal import FakeComparer, PairSandbox
from tests.doubles.log import FaultyLog, FaultySubscription
from tests.doubles.pacs import FakePacs, claim_of
from tests.doubles.predictor import FakeEngine, FakeSandbox
from tests.doubles.reports import make_header


@dataclass(kw_only=True)
class World:
    """Everything around one lane; ``answer`` and ``refusal`` decide how its study ends."""

    log: FaultyLog
    modality: Modality = Modality.ECHO
    answer: str = "answered"
    refusal: Refusal | None = None
    headers: list[Dataset] = field(default_factory=list)
    report: ReportSettings = field(default_factory=ReportSettings)
    checkpoint: Checkpoint = pass_by
    stopping: threading.Event = field(default_factory=threading.Event)
    pacs: FakePacs = field(default_factory=FakePacs)
    comparer: FakeComparer | None = None
    window_days: int | None = None

    def __post_init__(self) -> None:
        self.headers = self.headers or [make_header(self.modality)]
        self.engine = FakeEngine(self.modality, self.answer, self.headers)
        self.sandbox = FakeSandbox(self.headers, self.refusal)
        self.pairs = PairSandbox(self.sandbox)
        self.publisher = Publisher(self.log)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline as a process that starts now would make it."""
        return Pipeline(
            route=Route(modality=self.modality, sandbox=self.pairs, engine=self.engine),
            reader=self.pacs,
            writer=self.pacs,
            publisher=self.publisher,
            site=Site(site_url="https://hospital.example", node="node-1", software_version="0.1.0", report=self.report),
            checkpoint=self.checkpoint,
            partners=None if self.comparer is None else self._partners(self.comparer),
        )

    def _partners(self, comparer: FakeComparer) -> PartnerCheck:
        return PartnerCheck(comparer, self.pacs, window_days=self.window_days)

    def settler(self) -> Settler:
        """What brings a message to its end; waits are the real ones, so faults should be few."""
        return Settler(
            pipeline=self.pipeline,
            publisher=self.publisher,
            code_version="0.1.0",
            stopping=self.stopping,
            draw=random.Random(1),
        )

    def lane(self) -> Lane:
        """A lane of its own, joined to the group."""
        return Lane(
            name=self.modality.value,
            topic=self.claim().topic,
            subscription=self.log.subscribe([self.claim().topic], group=f"purkinje.{self.modality.value}"),
            settler=self.settler(),
            stopping=self.stopping,
            checkpoint=self.checkpoint,
        )

    def claim(self, **changes: Any) -> StudyReady:
        """What the plugin would announce now."""
        return claim_of(self.pacs, self.modality.value, **changes)

    def announce(self, **changes: Any) -> LogRecord:
        """Announce the study; return the record as it lies in the log."""
        claim = self.claim(**changes)
        _, offset = self.log.inner.append(
            claim.topic, key=claim.study_instance_uid, headers=claim.headers(), value=claim.value()
        )
        return next(self.log.inner.read(claim.topic, from_offset=offset))

    def outcomes(self) -> list[dict[str, Any]]:
        """Every outcome on the log, in order."""
        return [parse_outcome(record.headers, record.value) for record in self.log.inner.read(RESULT_TOPIC)]

    def dead(self) -> list[LogRecord]:
        """Every record of the dead-letter topic."""
        return list(self.log.inner.read(DEAD_LETTER_TOPIC))

    def lag(self) -> int:
        """Announcements that are not committed."""
        return self.log.lag([self.claim().topic], group=f"purkinje.{self.modality.value}")[self.claim().topic]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FaultyLog]:
    """The embedded log in a file of its own."""
    made = FaultyLog(SqliteLog(str(tmp_path / "log.db")))
    yield made
    made.close()


@pytest.fixture
def world(log: FaultyLog) -> World:
    """An echo study that will be answered."""
    return World(log=log)


def committed(lane: Lane) -> list[int]:
    """Offsets a lane has committed."""
    assert isinstance(lane.subscription, FaultySubscription)
    return lane.subscription.committed
