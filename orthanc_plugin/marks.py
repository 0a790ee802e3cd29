"""What we keep in Orthanc's own database: the cursor, our source name, and one mark per study and modality.

Global properties ``2001`` (cursor in the change log) and ``2002`` (source), study metadata ``5001`` (cmr), ``5002``
(echo) and ``5003`` (ecg): numbers in the range that Orthanc leaves to plugins and users (1024 to 65535).
A mark holds digests and counters only.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass

from orthanc_plugin.orthanc_api import OrthancApi, ResourceGone

CURSOR_PROPERTY = 2001
SOURCE_PROPERTY = 2002
MARK_METADATA = {"cmr": 5001, "echo": 5002, "ecg": 5003}
MARK_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What was announced of one study and modality, or is about to be.

    Args:
        content_digest: content of the announcement.
        revision: its revision.
        supersedes: event id of the revision before, or None.
        event_id: its event id.
        sequence: change log position whose instances it covers.
        in_log: False from just before the append until just after it: look into the log to know.
        attempted_ms: when the append was first attempted, milliseconds since the epoch.
    """

    content_digest: str
    revision: int
    supersedes: str | None
    event_id: str
    sequence: int
    in_log: bool
    attempted_ms: int


def read_mark(orthanc: OrthancApi, study_id: str, modality: str) -> Mark | None:
    """The mark of a study, or None where it was never announced (or its mark was damaged)."""
    try:
        data = json.loads(orthanc.get_bytes(_path(study_id, modality)))
        if data.pop("format") != MARK_FORMAT:
            return None
        return Mark(**data)
    except (ResourceGone, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_mark(orthanc: OrthancApi, study_id: str, modality: str, mark: Mark) -> None:
    """Write the mark durably. Raises ResourceGone where the study was deleted."""
    value = json.dumps({"format": MARK_FORMAT, **asdict(mark)}, sort_keys=True, separators=(",", ":"))
    orthanc.put(_path(study_id, modality), value.encode())


def read_cursor(orthanc: OrthancApi) -> int | None:
    """Everything up to this position of the change log is settled; None before the first start."""
    text = orthanc.read_property(CURSOR_PROPERTY)
    return int(text) if text is not None and text.isdecimal() else None


def write_cursor(orthanc: OrthancApi, sequence: int) -> None:
    """Keep the cursor in Orthanc's database."""
    orthanc.write_property(CURSOR_PROPERTY, str(sequence))


def source_of(orthanc: OrthancApi) -> str:
    """``urn:orthanc:<id>``, made once and kept in the database, so that it moves with the data."""
    identifier = orthanc.read_property(SOURCE_PROPERTY)
    if identifier is None:
        identifier = str(uuid.uuid4())
        orthanc.write_property(SOURCE_PROPERTY, identifier)
    return f"urn:orthanc:{identifier}"


def _path(study_id: str, modality: str) -> str:
    return f"/studies/{study_id}/metadata/{MARK_METADATA[modality]}"
