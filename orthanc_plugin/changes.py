"""Walks Orthanc's ``/changes`` log and says which series of ours received instances.

The log is durable and ordered, and an instance and its change are written in one transaction: what a sender got a
success for is in it. Few calls per page, not per instance: one instance leads to its series, whose list of instances
explains the rest of the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orthanc_plugin.intake import Exclusions, modality_of_series
from orthanc_plugin.orthanc_api import OrthancApi, ResourceGone

PAGE_SIZE = 500
"""Changes asked for at once."""


@dataclass(frozen=True)
class Page:
    """One page of the change log.

    Args:
        new_instances: Orthanc's instance id -> (sequence number, seconds since the epoch UTC), in order.
        last_sequence: sequence number of the last change looked at.
        done: True where there is nothing after it.
    """

    new_instances: Mapping[str, tuple[int, float]]
    last_sequence: int
    done: bool


@dataclass(frozen=True)
class SeriesArrival:
    """Instances of one series that arrived within one page.

    Args:
        study_id: Orthanc's id of the study.
        series_id: Orthanc's id of the series.
        modality: ``cmr``, ``echo``, ``ecg``.
        header: Orthanc's main DICOM tags of the series.
        instance_count: instances of the series stored now.
        first_sequence: its first new instance in the page.
        last_sequence: its last new instance in the page.
        received_utc_s: when the last one arrived, by Orthanc's clock, to the second.
    """

    study_id: str
    series_id: str
    modality: str
    header: Mapping[str, str]
    instance_count: int
    first_sequence: int
    last_sequence: int
    received_utc_s: float


def read_page(orthanc: OrthancApi, since: int, limit: int = PAGE_SIZE) -> Page:
    """The changes after ``since``; never goes back, even where the log was cleared."""
    answer = orthanc.get(f"/changes?since={since}&limit={limit}")
    new = {
        str(change["ID"]): (int(change["Seq"]), seconds_utc(str(change["Date"])))
        for change in answer["Changes"]
        if change["ChangeType"] == "NewInstance"
    }
    seen = [int(change["Seq"]) for change in answer["Changes"]]
    return Page(new, max([since, *seen]), bool(answer["Done"]) or not seen)


def arrivals_of(orthanc: OrthancApi, page: Page, exclusions: Exclusions) -> Iterator[SeriesArrival]:
    """The series of ours that the page's new instances belong to; deleted instances are passed over."""
    unexplained = dict(page.new_instances)
    while unexplained:
        instance_id = next(iter(unexplained))
        try:
            series_id = str(orthanc.get(f"/instances/{instance_id}")["ParentSeries"])
            series = orthanc.get(f"/series/{series_id}")
        except ResourceGone:
            del unexplained[instance_id]
            continue
        held = [unexplained.pop(other) for other in series["Instances"] if other in unexplained]
        unexplained.pop(instance_id, None)
        modality = _modality(orthanc, instance_id, series, exclusions)
        if modality is not None and held:
            yield _arrival(series_id, series, modality, held)


def first_sequence_from(orthanc: OrthancApi, utc_s: float) -> int:
    """Sequence number before the first change that is not older than ``utc_s``, by bisection."""
    below, above = 0, int(orthanc.get("/changes?last")["Last"])
    while below < above:
        middle = (below + above) // 2
        changes = orthanc.get(f"/changes?since={middle}&limit=1")["Changes"]
        if changes and seconds_utc(str(changes[0]["Date"])) < utc_s:
            below = int(changes[0]["Seq"])
        else:
            above = middle
    return below


def seconds_utc(text: str) -> float:
    """Seconds since the epoch of one of Orthanc's own dates, ``YYYYMMDDTHHMMSS`` in UTC (whatever the time zone)."""
    return datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()


def _modality(orthanc: OrthancApi, instance_id: str, series: Mapping[str, Any], exclusions: Exclusions) -> str | None:
    try:
        sop_class_uid = orthanc.get_bytes(f"/instances/{instance_id}/metadata/SopClassUid").decode()
    except ResourceGone:
        sop_class_uid = ""
    return modality_of_series(series["MainDicomTags"], sop_class_uid, exclusions)


def _arrival(series_id: str, series: Mapping[str, Any], modality: str, held: list[tuple[int, float]]) -> SeriesArrival:
    return SeriesArrival(
        study_id=str(series["ParentStudy"]),
        series_id=series_id,
        modality=modality,
        header=series["MainDicomTags"],
        instance_count=len(series["Instances"]),
        first_sequence=min(sequence for sequence, _ in held),
        last_sequence=max(sequence for sequence, _ in held),
        received_utc_s=max(received for _, received in held),
    )
