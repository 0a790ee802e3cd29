"""A PACS in memory: reader and writer, with faults on demand and an account of what it was asked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from io import BytesIO

from pydicom import dcmread

from orthanc_plugin.wire.events import SeriesClaim, StudyReady, content_digest
from stream_processors.errors import ClaimExpired, ClaimSuperseded
from stream_processors.events import Stored
from stream_processors.pacs.client import EncodedReport, InstanceSink

STUDY = "1.2.3"
SERIES = "1.2.3.4"
ORTHANC_ID = "0a9b3153-2512774b-2d9580de-1fc3dcf6-3bd83918"


class FakePacs:
    """Instances by SOP Instance UID; ``reports`` keeps what was stored, first copy wins.

    ``faults[name]`` holds exceptions that the next calls of that name raise, in order.
    """

    def __init__(self, instances: dict[str, bytes] | None = None) -> None:
        self.instances = {"1.2.3.4.1": b"first", "1.2.3.4.2": b"second"} if instances is None else instances
        self.reports: dict[str, bytes] = {}
        self.faults: dict[str, list[Exception]] = {}
        self.calls: Counter[str] = Counter()

    def ping(self) -> str:
        self._answer("ping")
        return "a PACS in memory"

    def fetch(self, claim: StudyReady, sink: InstanceSink) -> tuple[str, ...]:
        self._answer("fetch")
        if not self.instances:
            raise ClaimExpired("none of the announced series is left in the PACS")
        if len(self.instances) != sum(series.instance_count for series in claim.series):
            raise ClaimSuperseded("another number of instances")
        for uid in sorted(self.instances):
            sink.append((self.instances[uid],))
        return tuple(sorted(self.instances))

    def find(self, sop_instance_uid: str) -> bytes | None:
        self._answer("find")
        return self.reports.get(sop_instance_uid)

    def reports_of(self, study_instance_uid: str, *, manufacturer: str) -> tuple[bytes, ...]:  # noqa: ARG002
        self._answer("reports_of")
        return tuple(self.reports.values())

    def store(self, report: EncodedReport) -> Stored:
        self._answer("store")
        if report.sop_instance_uid in self.reports:
            return Stored.ALREADY
        self.reports[report.sop_instance_uid] = report.content
        return Stored.CREATED

    def verify(self, report: EncodedReport) -> None:
        self._answer("verify")
        assert report.sop_instance_uid in self.reports

    def close(self) -> None:
        """Nothing to release."""

    def measurement_reports(self) -> list[bytes]:
        """The stored reports without their companions and pictures, by root concept 126000."""
        return [content for content in self.reports.values() if _root(content) == "126000"]

    def _answer(self, name: str) -> None:
        self.calls[name] += 1
        waiting = self.faults.get(name, [])
        if waiting:
            raise waiting.pop(0)


def claim_of(
    pacs: FakePacs, modality: str, *, revision: int = 1, received: str = "2026-03-01T10:00:00+00:00"
) -> StudyReady:
    """The announcement of everything the PACS holds now."""
    digest = content_digest(_pairs(pacs.instances.items()))
    series = SeriesClaim(
        series_instance_uid=SERIES,
        pacs_series_id=ORTHANC_ID,
        instance_count=len(pacs.instances),
        sop_class_uids=("1.2.840.10008.5.1.4.1.1.4",),
        digest=digest,
    )
    return StudyReady(
        source="urn:orthanc:test",
        study_instance_uid=STUDY,
        pacs_study_id=ORTHANC_ID,
        modality=modality,
        revision=revision,
        supersedes=None,
        series=(series,),
        content_digest=digest,
        completeness_rule="test",
        last_received_utc=received,
        announced_utc=received,
        sequence=revision,
    )


def _pairs(instances: Iterable[tuple[str, bytes]]) -> list[tuple[str, str]]:
    return [(uid, hashlib.md5(content, usedforsecurity=False).hexdigest()) for uid, content in instances]


def _root(content: bytes) -> str:
    roots = dcmread(BytesIO(content)).get("ConceptNameCodeSequence")
    return str(roots[0].CodeValue) if roots else ""
