"""The spine: one announcement in, one report in the PACS, one outcome on the log.

    claim -> is the report there already? -> fetch, verify the digest -> decode and prepare, in a child process
          -> predict -> compare with the patient's other study -> build -> store, the report last -> verify -> outcome

Nothing is remembered between two messages. Who a report is follows from the claim and the engine, so a message that is
delivered again finds its report and does nothing. The measurement report is stored after its picture and its companion:
where it stands, everything stands. The consumer commits after ``run`` has returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydicom.dataset import Dataset

from engines.decode.spool import Spool
from engines.decode.study import StudyReading
from engines.errors import InputRefused
from engines.predictions import Prediction
from orthanc_plugin.wire.events import EventError, StudyReady, parse_study_ready
from orthanc_plugin.wire.log import LogRecord
from stream_processors.claims import event_time_utc, evidence_of, refused, verify_digest, waited_ms
from stream_processors.conclusion import Conclusion, with_report, without_number, without_report
from stream_processors.cross_modal import CrossModalFinding
from stream_processors.disposition import ENDINGS
from stream_processors.events import ReportReference, Stored, StudyOutcome
from stream_processors.pacs.client import EncodedReport, ReportWriter, StudyReader
from stream_processors.partner_check import PartnerCheck
from stream_processors.publisher import Publisher
from stream_processors.reported import content_of, predecessors, read_report
from stream_processors.reports.document import MANUFACTURER
from stream_processors.reports.identity import TEMPLATE_VERSION, ReportKey
from stream_processors.reports.measurement_report import ReportContext, build_reports, encode, picture_of
from stream_processors.routes import Route
from stream_processors.settings import ReportSettings
from stream_processors.stages import Checkpoint, Stage, Stopwatch, pass_by


@dataclass(frozen=True, kw_only=True)
class Site:
    """Who writes the reports, and in what form."""

    site_url: str
    node: str
    software_version: str
    report: ReportSettings


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The way of one modality. Used by one thread at a time."""

    route: Route
    reader: StudyReader
    writer: ReportWriter
    publisher: Publisher
    site: Site
    checkpoint: Checkpoint = pass_by
    partners: PartnerCheck | None = None

    def run(self, record: LogRecord) -> StudyOutcome:
        """Bring one announcement to its end and say so on the log.

        Raises:
            EventError: the message is no announcement of this modality.
            Exception: as ``disposition`` lists them; nothing was announced, the message may be given again.
        """
        claim = self._claim(record)
        timed = Stopwatch(self.checkpoint, waited_ms(claim, datetime.now(UTC)))
        try:
            conclusion = self._conclude(claim, timed)
        except ENDINGS as ending:
            conclusion = without_report(ending, self.route.engine.identity)
        outcome = conclusion.announced(claim, timed.stage_ms)
        with timed(Stage.PUBLISH):
            self.publisher.publish(outcome)
        return outcome

    def _conclude(self, claim: StudyReady, timed: Stopwatch) -> Conclusion:
        key = self._key(claim)
        with timed(Stage.LOOKUP):
            standing = self.reader.find(key.sop_instance_uid)
        if standing is not None:
            return with_report(content_of(read_report(standing)), self._reference(key, Stored.ALREADY))
        with Spool() as spool:
            reading = self._read(claim, spool, timed)
            evidence = evidence_of(claim, reading.headers)
            prediction = self._predict(reading, evidence, timed)
            found = self._compare(claim, spool, prediction, timed)
        if prediction.abstention is not None and not self.site.report.report_refusals:
            return without_number(prediction, engine_ran=reading.refusal is None)
        with timed(Stage.REPORT):
            report, *companions = self._build(claim, key, prediction, evidence, found=found)
        stored = self._store(report, companions, timed)
        return with_report(content_of(report), self._reference(key, stored), found)

    def _read(self, claim: StudyReady, spool: Spool, timed: Stopwatch) -> StudyReading:
        with timed(Stage.FETCH):
            sop_instance_uids = self.reader.fetch(claim, spool)
            verify_digest(claim, sop_instance_uids, spool.md5s)
        with timed(Stage.READ):
            return self.route.read(spool)

    def _predict(self, reading: StudyReading, evidence: Sequence[Dataset], timed: Stopwatch) -> Prediction:
        if reading.refusal is None:
            with timed(Stage.PREDICT):
                return self.route.engine.predict(reading.prepared)
        if isinstance(reading.refusal, InputRefused) and evidence:
            return refused(self.route.modality, self.route.engine.identity, reading.refusal, evidence)
        raise reading.refusal

    def _compare(
        self, claim: StudyReady, spool: Spool, prediction: Prediction, timed: Stopwatch
    ) -> CrossModalFinding | None:
        """What the check against the patient's other study found; nothing is compared where there is no answer."""
        if self.partners is None or prediction.abstention is not None:
            return None
        with timed(Stage.CROSS_MODAL):
            return self.partners.finding(claim, spool, self.route.sandbox)

    def _build(
        self,
        claim: StudyReady,
        key: ReportKey,
        prediction: Prediction,
        evidence: tuple[Dataset, ...],
        *,
        found: CrossModalFinding | None,
    ) -> tuple[Dataset, ...]:
        time_utc = event_time_utc(claim)
        candidates = self.reader.reports_of(claim.study_instance_uid, manufacturer=MANUFACTURER)
        context = ReportContext(
            key=key,
            event_time_utc=time_utc,
            evidence=evidence,
            predecessors=predecessors(candidates, key=key, not_later_than=time_utc),
            node=self.site.node,
            software_version=self.site.software_version,
            cross_modal=found,
        )
        shown = prediction if self.site.report.picture else replace(prediction, picture=None)
        report, companion = build_reports(shown, context)
        picture = picture_of(shown, context)
        pictures = () if picture is None else (picture,)
        return (report, *pictures, companion) if self.site.report.companion else (report, *pictures)

    def _store(self, report: Dataset, companions: Sequence[Dataset], timed: Stopwatch) -> Stored:
        written = [encoded(dataset) for dataset in (*companions, report)]
        for companion in written[:-1]:
            with timed(Stage.COMPANION):
                self.writer.store(companion)
        with timed(Stage.STORE):
            stored = self.writer.store(written[-1])
        with timed(Stage.VERIFY):
            for one in written:
                self.writer.verify(one)
        return stored

    def _claim(self, record: LogRecord) -> StudyReady:
        claim = parse_study_ready(record.headers, record.value)
        if claim.modality != self.route.modality:
            msg = f"modality {claim.modality} was announced on {record.topic}, which carries {self.route.modality}"
            raise EventError(msg)
        return claim

    def _key(self, claim: StudyReady) -> ReportKey:
        engine = self.route.engine.identity
        return ReportKey(
            site_url=self.site.site_url,
            modality=self.route.modality,
            sop_class_uid=self.site.report.sop_class_uid,
            template_version=TEMPLATE_VERSION,
            content_digest=claim.content_digest,
            model_name=engine.name,
            model_version=engine.version,
            weights_sha256=engine.weights_sha256,
        )

    def _reference(self, key: ReportKey, stored: Stored) -> ReportReference:
        return ReportReference(
            sop_class_uid=key.sop_class_uid,
            sop_instance_uid=key.sop_instance_uid,
            series_instance_uid=key.series_instance_uid,
            companion_sop_instance_uid=key.companion_sop_instance_uid if self.site.report.companion else None,
            stored=stored,
        )


def encoded(dataset: Dataset) -> EncodedReport:
    """A document with the bytes that are sent and the UIDs the network needs."""
    return EncodedReport(
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        study_instance_uid=str(dataset.StudyInstanceUID),
        content=encode(dataset),
    )
