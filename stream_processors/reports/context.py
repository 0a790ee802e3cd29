"""What surrounds a prediction when it becomes a report: the study, the time, the node.

Made by the pipeline; read by every module of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pydicom.dataset import Dataset

from stream_processors.cross_modal import CrossModalFinding
from stream_processors.reports.identity import ReportKey

SUPPORTED_SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.88.22": "Enhanced SR",
    "1.2.840.10008.5.1.4.1.1.88.33": "Comprehensive SR",
    "1.2.840.10008.5.1.4.1.1.88.34": "Comprehensive 3D SR",
}
"""SR classes that admit our trees: no by-reference relations, no three-dimensional coordinates (PS3.3 A.35)."""


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """Surroundings of one report.

    Args:
        key: identity of the report.
        event_time_utc: when the last instance of the study arrived; the only time a report contains.
        evidence: headers of the source instances, without pixel or waveform data; the study of the first one is the
            study of the report.
        predecessors: earlier reports on the same study (SOP class and UIDs are read), or empty.
        node: name of the processing node.
        software_version: version of Purkinje.
        cross_modal: what the check against the patient's other study found, or None where there is none.

    Raises:
        ValueError: the time has no time zone, there is no evidence, or the SOP class cannot hold the tree.
    """

    key: ReportKey
    event_time_utc: datetime
    evidence: tuple[Dataset, ...]
    predecessors: tuple[Dataset, ...]
    node: str
    software_version: str
    cross_modal: CrossModalFinding | None = None

    def __post_init__(self) -> None:
        if self.event_time_utc.utcoffset() is None:
            msg = f"event_time_utc {self.event_time_utc.isoformat()} has no time zone; expected UTC"
            raise ValueError(msg)
        if not self.evidence:
            msg = "no evidence was given; a report names the patient and the study from the header of its sources"
            raise ValueError(msg)
        if self.key.sop_class_uid not in SUPPORTED_SOP_CLASSES:
            expected = ", ".join(sorted(SUPPORTED_SOP_CLASSES))
            msg = f"SOP class {self.key.sop_class_uid} cannot hold a report; expected one of {expected}"
            raise ValueError(msg)
        object.__setattr__(self, "event_time_utc", self.event_time_utc.astimezone(UTC))
