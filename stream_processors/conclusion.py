"""How a study ended, before it is announced: with a report, or with a reason. Made by ``pipeline``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.errors import Refusal
from engines.predictions import ClassProbability, Estimate, ModelIdentity, Prediction
from orthanc_plugin.wire.events import StudyReady
from stream_processors.cross_modal import CrossModalFinding
from stream_processors.disposition import rule_for
from stream_processors.errors import ClaimEnded
from stream_processors.events import Outcome, ReportReference, StudyOutcome
from stream_processors.publisher import utc_now
from stream_processors.reported import ReportContent


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """Everything an outcome says besides which announcement it answers; the fields are those of ``StudyOutcome``."""

    outcome: Outcome
    engine: ModelIdentity
    reason_code: str | None = None
    reason: str | None = None
    estimates: tuple[Estimate, ...] = ()
    probabilities: tuple[ClassProbability, ...] = ()
    out_of_distribution_score: float | None = None
    report: ReportReference | None = None
    cross_modal: CrossModalFinding | None = None

    def announced(self, claim: StudyReady, stage_ms: Mapping[str, float]) -> StudyOutcome:
        """The event that answers an announcement."""
        return StudyOutcome(
            outcome=self.outcome,
            modality=claim.modality,
            study_instance_uid=claim.study_instance_uid,
            revision=claim.revision,
            claim_event_id=claim.event_id,
            source=claim.source,
            reason_code=self.reason_code,
            reason=self.reason,
            engine=self.engine,
            estimates=self.estimates,
            probabilities=self.probabilities,
            out_of_distribution_score=self.out_of_distribution_score,
            report=self.report,
            cross_modal=self.cross_modal,
            stage_ms=stage_ms,
            completed_utc=utc_now(),
        )


def with_report(content: ReportContent, report: ReportReference, found: CrossModalFinding | None = None) -> Conclusion:
    """The report stands; the outcome says what it says, and the embedding of what was just found."""
    said = content.cross_modal
    return Conclusion(
        outcome=content.outcome,
        engine=content.engine,
        reason_code=content.reason_code,
        reason=content.reason,
        estimates=content.estimates,
        probabilities=content.probabilities,
        out_of_distribution_score=content.out_of_distribution_score,
        report=report,
        cross_modal=None if said is None else said.with_embedding(found),
    )


def without_number(prediction: Prediction, *, engine_ran: bool) -> Conclusion:
    """The engine has no answer and the site wants no report of that."""
    assert prediction.abstention is not None
    return Conclusion(
        outcome=Outcome.ABSTAINED if engine_ran else Outcome.REFUSED,
        engine=prediction.model,
        reason_code=prediction.abstention.code.value,
        reason=prediction.abstention.reason,
        out_of_distribution_score=prediction.out_of_distribution_score,
    )


def without_report(ending: Refusal | ClaimEnded, engine: ModelIdentity) -> Conclusion:
    """Nothing can be reported; which outcome that is stands in the table of ``disposition``."""
    outcome = rule_for(ending).outcome
    assert outcome is not None
    code = ending.code.value if isinstance(ending, Refusal) else ending.code
    return Conclusion(outcome=outcome, engine=engine, reason_code=code, reason=ending.reason)
