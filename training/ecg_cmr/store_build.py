"""Builds a store of pairs: every process makes whole shards, each written beside its place and renamed into it.

A shard counts once its ``.json`` stands, which is written last; a build that was killed goes on with the shards that are
missing. The manifest is written last of all and at once, so a folder with a manifest is a finished store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from engines.errors import Refusal
from training.data.clip_store import manifest_sha256
from training.data.clip_store_build import _alone
from training.data.patient_split import part_of
from training.data.worker_pool import worker_pool
from training.ecg_cmr.pair_source import PairEntry, PairSource
from training.ecg_cmr.store import (
    FORMAT,
    MANIFEST,
    SHARDS,
    VERSION,
    PairStore,
    PairStoreError,
    array_sha256,
    shard_file,
)

ROWS = 24
"""Pairs of a shard; a kill loses at most as many for each process."""

_log = structlog.get_logger()


def build_pair_store(source: PairSource, folder: Path, *, workers: int = 1, rows: int = ROWS) -> PairStore:
    """Return the store of a data set, building what is missing.

    A second process that asks for the same folder waits for the first.

    Args:
        source: the data set.
        folder: of the store; made where it is not there.
        workers: processes that read and prepare.
        rows: pairs of a shard.

    Raises:
        PairStoreError: the folder holds another data set or other settings.
        ValueError: a key is there twice, pairs have different arrays, or no pair can be used.
    """
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        entries = list(source.entries())
        _require_unique(entries)
        description = _described(source, entries, rows)
        if not (folder / MANIFEST).exists():
            _build(_Job(source=source, folder=folder, description=description), entries, workers)
    store = PairStore.open(folder)
    _require_same(store.manifest, description, folder)
    return store


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a process needs to make shards."""

    source: PairSource
    folder: Path
    description: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        return manifest_sha256(self.description)


def _described(source: PairSource, entries: Sequence[PairEntry], rows: int) -> dict[str, Any]:
    """What decides the content; through JSON, so that what was read back compares equal."""
    listed = json.dumps([_listed(entry, source) for entry in entries], sort_keys=True)
    fields = {
        "name": source.name,
        "spec": source.spec,
        "salt": source.salt,
        "entries_sha256": manifest_sha256({"entries": listed}),
    }
    return dict(json.loads(json.dumps({"source": fields, "rows_per_shard": rows})))


def _listed(entry: PairEntry, source: PairSource) -> dict[str, Any]:
    """An entry as the manifest lists it; what is not a number was not measured."""
    return {
        "key": entry.key,
        "patient": entry.patient,
        "ecg_on": entry.ecg_on.isoformat(),
        "cmr_on": entry.cmr_on.isoformat(),
        "split": part_of(entry.patient, source.salt, source.shares),
        "targets": _measured(entry.targets),
        "demographics": _measured(entry.demographics),
        "diseases": {name: bool(flag) for name, flag in entry.diseases.items()},
        "diagnosed_on": {name: day.isoformat() for name, day in entry.diagnosed_on.items()},
    }


def _measured(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _require_unique(entries: Sequence[PairEntry]) -> None:
    keys = [entry.key for entry in entries]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"{len(keys) - len(set(keys))} of {len(keys)} keys are there twice; expected one row a key")


def _require_same(found: Mapping[str, Any], description: Mapping[str, Any], folder: Path) -> None:
    asked = description["source"] | {"rows_per_shard": description["rows_per_shard"]}
    there = found["source"] | {"rows_per_shard": found["rows_per_shard"]}
    if differing := [name for name in asked if asked[name] != there.get(name)]:
        raise PairStoreError(
            f"{folder} holds another data set or other settings ({', '.join(differing)} differ); "
            "give another folder, or remove this one"
        )


def _build(job: _Job, entries: Sequence[PairEntry], workers: int) -> None:
    rows = int(job.description["rows_per_shard"])
    shards = range(-(-len(entries) // rows))
    missing = [shard for shard in shards if not _finished(job, shard)]
    _log.info("pair_store.started", data_set=job.source.name, pairs=len(entries), shards=len(missing))
    started = monotonic()
    make = partial(_make_shard, job)
    if workers == 1:
        _follow(map(make, missing), len(missing), started)
    else:
        with worker_pool(workers) as pool:
            _follow(pool.imap_unordered(make, missing), len(missing), started)
    _finish(job, shards)


def _follow(made: Iterable[int], total: int, started: float) -> None:
    pairs = 0
    for done, count in enumerate(made, start=1):
        pairs += count
        elapsed_s = monotonic() - started
        _log.info("pair_store.shard", done=f"{done}/{total}", pairs=pairs, elapsed_s=round(elapsed_s, 1))


def _finished(job: _Job, shard: int) -> bool:
    path = _journal(job.folder, shard)
    if not path.exists():
        return False
    if json.loads(path.read_text(encoding="utf-8"))["sha256"] != job.sha256:
        raise PairStoreError(
            f"{job.folder} holds an unfinished store of another data set or other settings; "
            "give another folder, or remove this one"
        )
    return True


def _journal(folder: Path, shard: int) -> Path:
    return folder / SHARDS / f"{shard:05d}.json"


def _make_shard(job: _Job, shard: int) -> int:
    """Read, prepare and write the pairs of a shard; return how many were looked at."""
    rows = int(job.description["rows_per_shard"])
    entries = job.source.entries()
    numbers = range(shard * rows, min((shard + 1) * rows, len(entries)))
    kept: list[Mapping[str, NDArray[Any]]] = []
    lines: list[dict[str, Any]] = []
    for number in numbers:
        try:
            arrays = job.source.read(number)
        except Refusal as refusal:
            lines.append({"key": entries[number].key, "code": refusal.code.value, "reason": refusal.reason})
            continue
        # Whose a row is, is written down when it is made: a refused pair cannot move the ones behind it.
        digests = {name: array_sha256(entries[number].key, array) for name, array in arrays.items()}
        place = {"shard": shard, "row": len(kept), "sha256": digests}
        lines.append(_listed(entries[number], job.source) | place)
        kept.append(arrays)
    layout = _layout(kept)
    for name in layout:
        _write_array(shard_file(job.folder, shard, name), [arrays[name] for arrays in kept])
    _write_text(_journal(job.folder, shard), json.dumps({"sha256": job.sha256, "arrays": layout, "lines": lines}))
    return len(numbers)


def _layout(kept: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    """Dtype and shape of the arrays, which all pairs share."""
    layouts = [
        {name: {"dtype": array.dtype.str, "shape": list(array.shape)} for name, array in arrays.items()}
        for arrays in kept
    ]
    if any(layout != layouts[0] for layout in layouts):
        raise ValueError("pairs have different arrays; expected one dtype and shape for each name: check the reader")
    return layouts[0] if layouts else {}


def _write_array(path: Path, rows: Sequence[NDArray[Any]]) -> None:
    partial_path = path.with_suffix(".partial")
    with partial_path.open("wb") as file:
        np.save(file, np.stack(rows), allow_pickle=False)
    partial_path.replace(path)


def _write_text(path: Path, text: str) -> None:
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(text + "\n", encoding="utf-8")
    partial_path.replace(path)


def _finish(job: _Job, shards: Sequence[int]) -> None:
    journals = [json.loads(_journal(job.folder, shard).read_text(encoding="utf-8")) for shard in shards]
    lines = [line for journal in journals for line in journal["lines"]]
    refused = [line for line in lines if "reason" in line]
    layouts = [journal["arrays"] for journal in journals if journal["arrays"]]
    if not layouts:
        raise ValueError(f"all {len(lines)} pairs were refused, the first because {refused[0]['reason']}")
    if any(layout != layouts[0] for layout in layouts):
        raise ValueError("shards have different arrays; expected one dtype and shape for each name: check the reader")
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **job.description,
        "arrays": layouts[0],
        "pairs": [line for line in lines if "reason" not in line],
        "refused": refused,
    }
    _write_text(job.folder / MANIFEST, json.dumps(manifest | {"sha256": manifest_sha256(manifest)}))
    _log.info("pair_store.built", pairs=len(manifest["pairs"]), refused=len(refused))
