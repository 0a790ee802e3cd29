"""Reads a study from Orthanc's database and makes the claim of one modality: series, counts and digests.

Only index entries are read (main DICOM tags, metadata, the MD5 that Orthanc keeps of every stored file), never pixels,
and no patient's name, ID or birth date is taken along.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orthanc_plugin.changes import seconds_utc
from orthanc_plugin.completeness import SeriesCount, series_count
from orthanc_plugin.intake import Exclusions, chosen_series, modality_of_series
from orthanc_plugin.orthanc_api import OrthancApi, ResourceGone
from orthanc_plugin.wire.events import SeriesClaim, content_digest

BATCH = 32
"""Instances asked for in one call; between two calls other threads get the interpreter."""
REST_BETWEEN_BATCHES_S = 0.001


@dataclass(frozen=True)
class StoredInstance:
    """What Orthanc's database says of one instance."""

    instance_id: str
    sop_instance_uid: str
    sop_class_uid: str
    number_of_frames: int
    position: str
    received: str


@dataclass(frozen=True)
class Claim:
    """Everything of a study that one engine needs.

    Args:
        study_instance_uid: (0020,000D).
        series: what to fetch, ordered by Series Instance UID.
        content_digest: over every instance of the claim.
        last_received_utc: ISO 8601, when the last of them arrived.
    """

    study_instance_uid: str
    series: tuple[SeriesClaim, ...]
    content_digest: str
    last_received_utc: str


class ClaimReader:
    """Reads claims and layouts of studies.

    Args:
        orthanc: the PACS.
        exclusions: MR series left out.
        sleep: how to give way between batches.
    """

    def __init__(
        self, orthanc: OrthancApi, exclusions: Exclusions, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._orthanc = orthanc
        self._exclusions = exclusions
        self._sleep = sleep

    def claim(self, study_id: str, modality: str) -> Claim | None:
        """The claim of a study as it is stored now, or None where nothing in it concerns the modality.

        Raises:
            ResourceGone: the study was deleted.
        """
        study = self._orthanc.get(f"/studies/{study_id}")
        uids, instances = {}, {}
        for series in self._series(study_id, modality):
            uids[series["ID"]] = _uid(series)
            instances[series["ID"]] = list(self._instances(series))
        claimed = [(series_id, instances[series_id]) for series_id in chosen_series(modality, instances)]
        if not claimed:
            return None
        everything = [instance for _, held in claimed for instance in held]
        md5s = self._md5s(everything)
        claims = [_series_claim(uids[series_id], series_id, held, md5s) for series_id, held in claimed]
        return Claim(
            study_instance_uid=str(study["MainDicomTags"]["StudyInstanceUID"]),
            series=tuple(sorted(claims, key=lambda claim: claim.series_instance_uid)),
            content_digest=content_digest((i.sop_instance_uid, md5s[i.instance_id]) for i in everything),
            last_received_utc=_iso(max(i.received for i in everything) or str(study["LastUpdate"])),
        )

    def layout(self, study_id: str) -> Iterator[tuple[SeriesCount, Counter[str]]]:
        """For each MR series of a study: its counts, and how many instances lie at each slice position."""
        for series in self._series(study_id, "cmr"):
            positions = Counter(instance.position for instance in self._instances(series))
            yield series_count(series["MainDicomTags"], len(series["Instances"])), positions

    def _series(self, study_id: str, modality: str) -> list[Mapping[str, Any]]:
        answer = self._orthanc.get(f"/studies/{study_id}/series?expand")
        return [series for series in answer if self._modality(series) == modality]

    def _modality(self, series: Mapping[str, Any]) -> str | None:
        path = f"/instances/{series['Instances'][0]}/metadata/SopClassUid"
        try:
            sop_class_uid = self._orthanc.get_bytes(path).decode()
        except ResourceGone:
            sop_class_uid = ""
        return modality_of_series(series["MainDicomTags"], sop_class_uid, self._exclusions)

    def _instances(self, series: Mapping[str, Any]) -> Iterator[StoredInstance]:
        ids = series["Instances"]
        for start in range(0, len(ids), BATCH):
            if start:
                self._sleep(REST_BETWEEN_BATCHES_S)
            body = {"Resources": ids[start : start + BATCH], "Level": "Instance", "Metadata": True}
            yield from map(_stored_instance, self._orthanc.post("/tools/bulk-content", body))

    def _md5s(self, instances: list[StoredInstance]) -> dict[str, str]:
        md5s: dict[str, str] = {}
        for number, instance in enumerate(instances, start=1):
            md5s[instance.instance_id] = self._md5(instance.instance_id)
            if number % BATCH == 0:
                self._sleep(REST_BETWEEN_BATCHES_S)
        return md5s

    def _md5(self, instance_id: str) -> str:
        """MD5 of the stored file; computed from the file where ``StoreMD5ForAttachments`` is off."""
        try:
            md5 = self._orthanc.get_bytes(f"/instances/{instance_id}/attachments/dicom/md5").decode()
        except ResourceGone:
            md5 = ""
        if md5:
            return md5
        return hashlib.md5(self._orthanc.get_bytes(f"/instances/{instance_id}/file"), usedforsecurity=False).hexdigest()


def _series_claim(uid: str, series_id: str, instances: list[StoredInstance], md5s: Mapping[str, str]) -> SeriesClaim:
    return SeriesClaim(
        series_instance_uid=uid,
        pacs_series_id=series_id,
        instance_count=len(instances),
        sop_class_uids=tuple(sorted({instance.sop_class_uid for instance in instances})),
        digest=content_digest((i.sop_instance_uid, md5s[i.instance_id]) for i in instances),
    )


def _stored_instance(answer: Mapping[str, Any]) -> StoredInstance:
    tags, metadata = answer["MainDicomTags"], answer["Metadata"]
    return StoredInstance(
        instance_id=str(answer["ID"]),
        sop_instance_uid=str(tags["SOPInstanceUID"]),
        sop_class_uid=str(metadata.get("SopClassUid", "")),
        number_of_frames=_frames(str(tags.get("NumberOfFrames", ""))),
        position=str(tags.get("ImagePositionPatient", "")),
        received=str(metadata.get("ReceptionDate", "")),
    )


def _frames(text: str) -> int:
    """Number of Frames (0028,0008); an instance without it, or with nonsense, is one frame to the intake."""
    return int(text) if text.strip().isdecimal() else 1


def _uid(series: Mapping[str, Any]) -> str:
    return str(series["MainDicomTags"]["SeriesInstanceUID"])


def _iso(orthanc_date: str) -> str:
    return datetime.fromtimestamp(seconds_utc(orthanc_date), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
