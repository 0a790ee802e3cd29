"""Checks an announcement against what was fetched, and takes from both what a report needs. Called by ``pipeline``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset

from engines.errors import Refusal
from engines.predictions import Abstention, ModelIdentity, Prediction
from engines.records import Modality, SourceInstance
from orthanc_plugin.wire.events import EventError, StudyReady, content_digest, is_uid
from stream_processors.errors import ClaimSuperseded

_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


def verify_digest(claim: StudyReady, sop_instance_uids: Sequence[str], md5s: Sequence[str]) -> None:
    """Raise ClaimSuperseded where the fetched bytes are not the announced ones.

    Args:
        claim: the announcement.
        sop_instance_uids: in the order of the spool.
        md5s: of the spooled files, hexadecimal.
    """
    if content_digest(zip(sop_instance_uids, md5s, strict=True)) != claim.content_digest:
        msg = "the instances in the PACS are not the announced ones: the study was changed since"
        raise ClaimSuperseded(msg)


def event_time_utc(claim: StudyReady) -> datetime:
    """When the last instance arrived, the only time a report contains. Raises EventError when it is not ISO 8601."""
    return _utc(claim.last_received_utc, "last_received_utc")


def waited_ms(claim: StudyReady, now: datetime) -> dict[str, float]:
    """Milliseconds waited by the wall clock: ``settle`` until it was announced, ``wait`` until it was taken."""
    received, announced = event_time_utc(claim), _utc(claim.announced_utc, "announced_utc")
    waits = {"settle": announced - received, "wait": now - announced}
    return {name: round(waited.total_seconds() * 1000, 3) for name, waited in waits.items()}


def evidence_of(claim: StudyReady, headers: Sequence[bytes]) -> tuple[Dataset, ...]:
    """The headers a report may refer to: those that name themselves and belong to the announced study."""
    datasets = (dcmread(BytesIO(header)) for header in headers)
    return tuple(dataset for dataset in datasets if _belongs(claim, dataset))


def refused(modality: Modality, engine: ModelIdentity, refusal: Refusal, evidence: Sequence[Dataset]) -> Prediction:
    """A refusal in the form of a prediction, so that the report of it is built like every other."""
    return Prediction(
        modality=modality,
        model=engine,
        sources=tuple(
            SourceInstance(
                sop_class_uid=str(dataset.SOPClassUID),
                sop_instance_uid=str(dataset.SOPInstanceUID),
                series_instance_uid=str(dataset.SeriesInstanceUID),
            )
            for dataset in evidence
        ),
        abstention=Abstention(code=refusal.code, reason=refusal.reason),
    )


def _belongs(claim: StudyReady, dataset: Dataset) -> bool:
    named = all(is_uid(str(dataset.get(name, ""))) for name in _NAMES)
    return named and str(dataset.StudyInstanceUID) == claim.study_instance_uid


def _utc(text: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        msg = f"{name} is not an ISO 8601 time"
        raise EventError(msg) from None
