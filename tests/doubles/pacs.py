"""A PACS in memory: reader and writer, with faults on demand and an account of what it was asked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from io import BytesIO

from pydicom import dcmread

from engines.records import Modality
from orthanc_plugin.wire.events import SeriesClaim, StudyReady, content_digest
from stream_processors.errors import ClaimExpired, ClaimSuperseded
from stream_processors.events import Stored
from stream_processors.pacs.client import EncodedReport, InstanceSink, Partner, PartnerSeries, ToFetch

STUDY = "1.2.3"
SERIES = "1.2.3.4"
ORTHANC_ID = "0a9b3153-2512774b-2d9580de-1fc3dcf6-3bd83918"


@dataclass(kw_only=True)
class OtherStudy:
    """A further study in the PACS: by default the ECG of the same patient, two days before."""

    study_instance_uid: str = "1.2.9"
    modality: Modality = Modality.ECG
    patient_id: str = "ID-1"
    issuer: str = ""
    study_date: date = date(2025, 12, 31)
    arriving: bool = False
    instances: dict[str, bytes] = field(default_factory=lambda: {"1.2.9.1.1": b"of the partner"})

    @property
    def pacs_series_id(self) -> str:
        return f"series-of-{self.study_instance_uid}"


class FakePacs:
    """Instances by SOP Instance UID; ``reports`` keeps what was stored, first copy wins.

    ``others`` are further studies, of this patient or not; ``patient`` is the ID and its issuer of the study itself.
    ``faults[name]`` holds exceptions that the next calls of that name raise, in order.
    """

    def __init__(self, instances: dict[str, bytes] | None = None) -> None:
        self.instances = {"1.2.3.4.1": b"first", "1.2.3.4.2": b"second"} if instances is None else instances
        self.reports: dict[str, bytes] = {}
        self.others: list[OtherStudy] = []
        self.patient = ("ID-1", "")
        self.study_date = date(2026, 1, 2)
        self.faults: dict[str, list[Exception]] = {}
        self.calls: Counter[str] = Counter()

    def ping(self) -> str:
        self._answer("ping")
        return "a PACS in memory"

    def fetch(self, claim: ToFetch, sink: InstanceSink) -> tuple[str, ...]:
        others = {study.pacs_series_id: study.instances for study in self.others}
        asked = claim.series[0].pacs_series_id
        self._answer("fetch_partner" if asked in others else "fetch")
        instances = others.get(asked, self.instances)
        if not instances:
            raise ClaimExpired("none of the announced series is left in the PACS")
        if len(instances) != sum(series.instance_count for series in claim.series):
            raise ClaimSuperseded("another number of instances")
        for uid in sorted(instances):
            sink.append((instances[uid],))
        return tuple(sorted(instances))

    def find(self, sop_instance_uid: str) -> bytes | None:
        self._answer("find")
        return self.reports.get(sop_instance_uid)

    def reports_of(self, study_instance_uid: str, *, manufacturer: str) -> tuple[bytes, ...]:  # noqa: ARG002
        self._answer("reports_of")
        return tuple(self.reports.values())

    def partners_of(self, study_instance_uid: str, modality: Modality, *, window_days: int) -> tuple[Partner, ...]:
        self._answer("partners_of")
        assert study_instance_uid == STUDY
        found = [study for study in self.others if study.modality is modality and self._is_of_same_patient(study)]
        near = [self._partner(study) for study in found if self._days_apart(study) <= window_days]
        return tuple(sorted(near, key=lambda partner: (partner.days_apart, partner.study_instance_uid)))

    def _is_of_same_patient(self, study: OtherStudy) -> bool:
        patient_id, issuer = self.patient
        return study.patient_id == patient_id and (not issuer or not study.issuer or issuer == study.issuer)

    def _days_apart(self, study: OtherStudy) -> int:
        return abs((study.study_date - self.study_date).days)

    def _partner(self, study: OtherStudy) -> Partner:
        series = PartnerSeries(pacs_series_id=study.pacs_series_id, instance_count=len(study.instances))
        return Partner(
            study_instance_uid=study.study_instance_uid,
            days_apart=self._days_apart(study),
            series=(series,),
            arriving=study.arriving,
        )

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
