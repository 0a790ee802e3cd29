"""In-memory double of ``orthanc_plugin.orthanc_api``: what survives a crash is in ``Stored``, the rest is a new object.

Answers like Orthanc 1.10.1: the paths that the plugin uses, the change log with gaps after deletions, UTC dates to the
second, the first copy kept when an instance is sent again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from orthanc_plugin.orthanc_api import OrthancRefused, OrthancStopping, ResourceGone

MR = "1.2.840.10008.5.1.4.1.1.4"
US_CLIP = "1.2.840.10008.5.1.4.1.1.3.1"
US_STILL = "1.2.840.10008.5.1.4.1.1.6.1"
ECG = "1.2.840.10008.5.1.4.1.1.9.1.1"
PDF = "1.2.840.10008.5.1.4.1.1.104.1"
SR = "1.2.840.10008.5.1.4.1.1.88.33"


@dataclass
class Instance:
    """One stored instance."""

    series_id: str
    tags: dict[str, str]
    metadata: dict[str, str]
    content: bytes


@dataclass
class Stored:
    """Orthanc's database: durable."""

    instances: dict[str, Instance] = field(default_factory=dict)
    series: dict[str, dict[str, Any]] = field(default_factory=dict)
    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    marks: dict[tuple[str, str], bytes] = field(default_factory=dict)
    properties: dict[int, str] = field(default_factory=dict)
    sequence: int = 0


class FakeOrthanc:
    """``OrthancApi`` over ``Stored``.

    Args:
        stored: the database; pass the same one on to stand for a restart.
        utc_s: the wall clock.

    Set ``calls_left`` to make every call after so many fail, as if the process had been killed there.
    """

    def __init__(self, stored: Stored | None = None, utc_s: Any = lambda: 1_800_000_000.0) -> None:
        self.stored = stored or Stored()
        self.utc_s = utc_s
        self.warnings: list[str] = []
        self.calls: Counter[str] = Counter()
        self.stopping = False
        self.calls_left: int | None = None
        self.refuse: str | None = None
        self.stores_md5 = True

    def store(
        self,
        study: str,
        series: str,
        sop_instance_uid: str,
        *,
        sop_class_uid: str,
        modality: str,
        series_tags: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> bool:
        """Store one instance as a C-STORE would; False where it was there already."""
        instance_id = f"i-{sop_instance_uid}"
        if instance_id in self.stored.instances:
            return False
        series_id, study_id = f"se-{series}", f"st-{study}"
        now = datetime.fromtimestamp(self.utc_s(), UTC).strftime("%Y%m%dT%H%M%S")
        self.stored.instances[instance_id] = Instance(
            series_id,
            {"SOPInstanceUID": sop_instance_uid, **(tags or {})},
            {"SopClassUid": sop_class_uid, "ReceptionDate": now},
            content if content is not None else sop_instance_uid.encode(),
        )
        self._change("NewInstance", instance_id, now)
        header = {"Modality": modality, "SeriesInstanceUID": series, **(series_tags or {})}
        if series_id not in self.stored.series:
            self.stored.series[series_id] = {"MainDicomTags": header, "ParentStudy": study_id, "Instances": []}
            self._change("NewSeries", series_id, now)
        if study_id not in self.stored.studies:
            self.stored.studies[study_id] = {"MainDicomTags": {"StudyInstanceUID": study}, "Series": []}
            self._change("NewStudy", study_id, now)
        if series_id not in self.stored.studies[study_id]["Series"]:
            self.stored.studies[study_id]["Series"].append(series_id)
        self.stored.series[series_id]["Instances"].append(instance_id)
        self.stored.studies[study_id]["LastUpdate"] = now
        return True

    def delete_study(self, study: str) -> None:
        """Delete a study with everything below it, its changes included, as Orthanc does."""
        gone = {f"st-{study}"}
        for series_id in self.stored.studies.pop(f"st-{study}")["Series"]:
            gone |= {series_id, *self.stored.series.pop(series_id)["Instances"]}
        for instance_id in gone:
            self.stored.instances.pop(instance_id, None)
        self.stored.changes = [change for change in self.stored.changes if change["ID"] not in gone]

    def get(self, path: str) -> Any:
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        self._enter(path)
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                value = answer(self, *match.groups())
                return value if isinstance(value, bytes) else json.dumps(value).encode()
        raise ResourceGone(path)

    def post(self, path: str, body: object) -> Any:
        self._enter(path)
        assert path == "/tools/bulk-content"
        assert isinstance(body, dict)
        wanted = [instance_id for instance_id in body["Resources"] if instance_id in self.stored.instances]
        return [self._instance(instance_id) for instance_id in wanted]

    def put(self, path: str, body: bytes) -> None:
        self._enter(path)
        match = re.fullmatch(r"/studies/([^/]+)/metadata/(\d+)", path)
        assert match
        if match[1] not in self.stored.studies:
            raise ResourceGone(path)
        self.stored.marks[(match[1], match[2])] = body
        self._change("UpdatedMetadata", match[1], "20270115T080000")

    def read_property(self, number: int) -> str | None:
        self._enter("property")
        return self.stored.properties.get(number)

    def write_property(self, number: int, value: str) -> None:
        self._enter("property")
        self.stored.properties[number] = value

    def log_warning(self, text: str) -> None:
        self.warnings.append(text)

    def _enter(self, path: str) -> None:
        self.calls[re.sub(r"/[^/]*-[^/]*", "/{id}", path).split("?")[0]] += 1
        if self.stopping or self.calls_left == 0:
            raise OrthancStopping
        if self.calls_left is not None:
            self.calls_left -= 1
        if self.refuse is not None and re.search(self.refuse, path):
            raise OrthancRefused(path)

    def _change(self, kind: str, resource: str, date: str) -> None:
        self.stored.sequence += 1
        self.stored.changes.append({"ChangeType": kind, "ID": resource, "Date": date, "Seq": self.stored.sequence})

    def _changes(self, since: str, limit: str) -> dict[str, Any]:
        after = [change for change in self.stored.changes if change["Seq"] > int(since)]
        page = after[: int(limit)]
        last = page[-1]["Seq"] if page else self._last()["Last"]
        return {"Changes": page, "Done": len(page) == len(after), "Last": last}

    def _last(self) -> dict[str, Any]:
        return {"Changes": self.stored.changes[-1:], "Done": True, "Last": self.stored.sequence}

    def _instance(self, instance_id: str) -> dict[str, Any]:
        instance = self._found(self.stored.instances, instance_id)
        return {
            "ID": instance_id,
            "ParentSeries": instance.series_id,
            "MainDicomTags": instance.tags,
            "Metadata": instance.metadata,
        }

    def _series(self, series_id: str) -> dict[str, Any]:
        return {"ID": series_id, **self._found(self.stored.series, series_id)}

    def _series_of_study(self, study_id: str) -> list[dict[str, Any]]:
        return [self._series(series_id) for series_id in self._found(self.stored.studies, study_id)["Series"]]

    def _metadata(self, instance_id: str, name: str) -> bytes:
        return str(self._found(self._found(self.stored.instances, instance_id).metadata, name)).encode()

    def _md5(self, instance_id: str) -> bytes:
        if not self.stores_md5:
            raise ResourceGone(instance_id)
        return hashlib.md5(self._found(self.stored.instances, instance_id).content).hexdigest().encode()

    def _found(self, table: dict[Any, Any], key: Any) -> Any:
        if key not in table:
            raise ResourceGone(str(key))
        return table[key]


_ROUTES = (
    (r"/changes\?since=(\d+)&limit=(\d+)", FakeOrthanc._changes),
    (r"/changes\?last", FakeOrthanc._last),
    (r"/instances/([^/]+)", FakeOrthanc._instance),
    (r"/instances/([^/]+)/metadata/(\w+)", FakeOrthanc._metadata),
    (r"/instances/([^/]+)/attachments/dicom/md5", FakeOrthanc._md5),
    (r"/instances/([^/]+)/file", lambda self, key: self._found(self.stored.instances, key).content),
    (r"/series/([^/]+)", FakeOrthanc._series),
    (r"/studies/([^/]+)/series\?expand", FakeOrthanc._series_of_study),
    (r"/studies/([^/]+)/metadata/(\d+)", lambda self, *key: self._found(self.stored.marks, key)),
    (r"/studies/([^/]+)", lambda self, key: self._found(self.stored.studies, key)),
)
