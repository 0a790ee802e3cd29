"""What a PACS is to the pipeline: a place to read a study from, and a place to keep a report.

Two roles, because they may be two systems: ``StudyReader`` is always Orthanc's REST interface (``orthanc_rest``),
``ReportWriter`` is that same interface or an archive that is written by C-STORE (``dimse``). Both raise the errors of
``stream_processors.errors`` and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engines.records import Modality
from stream_processors.events import Stored


class InstanceSink(Protocol):
    """Where fetched instances go, one after the other: ``engines.decode.spool.Spool``."""

    def append(self, chunks: Iterable[bytes]) -> None:
        """Write one instance, in pieces."""


class SeriesToFetch(Protocol):
    """A series with as many instances as it must hold: ``orthanc_plugin.wire.events.SeriesClaim``."""

    @property
    def pacs_series_id(self) -> str:
        """The PACS's own identifier."""

    @property
    def instance_count(self) -> int:
        """Instances in it."""


class ToFetch(Protocol):
    """What can be fetched: an announcement (``StudyReady``) or a ``Partner``."""

    @property
    def series(self) -> Sequence[SeriesToFetch]:
        """The series, each with everything in it."""


@dataclass(frozen=True, kw_only=True)
class PartnerSeries:
    """One series of a partner."""

    pacs_series_id: str
    instance_count: int


@dataclass(frozen=True, kw_only=True)
class Partner:
    """A study of the same patient in another modality; who the patient is stays in the PACS.

    Args:
        study_instance_uid: of the study.
        days_apart: between both Study Dates.
        series: those of the modality that was asked for.
        arriving: instances came within the last while, so more may come.
    """

    study_instance_uid: str
    days_apart: int
    series: tuple[PartnerSeries, ...]
    arriving: bool


@dataclass(frozen=True, kw_only=True)
class EncodedReport:
    """One SR instance as a Part 10 file, with the UIDs the network needs."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    content: bytes

    @property
    def md5(self) -> str:
        """MD5 of the file in hexadecimal, as Orthanc keeps it; compared, never trusted."""
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()


class StudyReader(Protocol):
    """Reads studies and finds reports."""

    def ping(self) -> str:
        """One line on what answers. Raises PacsUnavailable."""

    def fetch(self, claim: ToFetch, sink: InstanceSink) -> tuple[str, ...]:
        """Write every instance of the claim into the sink, sorted by SOP Instance UID; return these UIDs.

        Raises:
            ClaimExpired: nothing of the claim is left.
            ClaimSuperseded: the series hold another number of instances, or one vanished while being read.
        """

    def find(self, sop_instance_uid: str) -> bytes | None:
        """The Part 10 file of an instance, or None where the PACS does not hold it."""

    def reports_of(self, study_instance_uid: str, *, manufacturer: str) -> tuple[bytes, ...]:
        """Every SR instance of a study that one manufacturer made, as Part 10 files."""

    def partners_of(self, study_instance_uid: str, modality: Modality, *, window_days: int) -> tuple[Partner, ...]:
        """The studies of the same patient that hold another modality, the nearest in time first, then by UID.

        The same patient is one with the same Patient ID, and the same Issuer of Patient ID where both studies state one.
        Without a Patient ID or a Study Date there are none.

        Args:
            study_instance_uid: whose patient.
            modality: that the partner must hold.
            window_days: largest distance of the Study Dates.
        """

    def close(self) -> None:
        """Release connections."""


class ReportWriter(Protocol):
    """Stores reports and makes sure that they stand."""

    def store(self, report: EncodedReport) -> Stored:
        """Store one report; ``ALREADY`` where an instance with this UID was there, which is kept.

        Raises:
            PacsRefused: the PACS does not take this object.
            PacsUnavailable: try again later.
        """

    def verify(self, report: EncodedReport) -> None:
        """Return once the PACS shows, or promises to keep, the report.

        Raises:
            StoreUnverified: it does not.
            CommitmentPending: it has not answered yet.
        """

    def close(self) -> None:
        """Release connections."""
