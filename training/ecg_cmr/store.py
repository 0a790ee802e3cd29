"""Pairs of ECG and cardiac MR in memory-mapped shards, with a manifest: what every stage of the method trains on.

``shards/00003.ecg.npy`` holds one array of some pairs, [rows, ...]; ``manifest.json`` says of every pair where it lies, whose
it is, from which days, what is true of it, which part it serves, and the SHA-256 of each of its arrays together with its
key, so that an ECG can never stand in the row of another patient's CMR. ``store_build`` makes such a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.clip_store import manifest_sha256

FORMAT, VERSION = "purkinje-pair-store", 1
MANIFEST, SHARDS = "manifest.json", "shards"


class PairStoreError(ValueError):
    """A folder that is no whole store of pairs, or another one than asked for; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """One pair of the store.

    Args:
        key: patient and days of both studies; never for a log.
        patient: pairs of one patient share it.
        ecg_on, cmr_on: days of the studies.
        split: ``training``, ``validation``, ``test``, by ``patient_split.part_of``.
        targets, demographics: by name; what was not measured is left out.
        diseases: flags by name; what is unknown is left out.
        diagnosed_on: first days of diseases.
        shard, row: where it lies.
        sha256: by name of the array, of key and array.
    """

    key: str = field(repr=False)
    patient: str = field(repr=False)
    ecg_on: date
    cmr_on: date
    split: str
    targets: Mapping[str, float]
    demographics: Mapping[str, float]
    diseases: Mapping[str, bool]
    diagnosed_on: Mapping[str, date]
    shard: int
    row: int
    sha256: Mapping[str, str]


class PairStore:
    """Pairs of an opened store, or of a part of it, in the order of the data set. Pickled, it takes the path along only."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], chosen: Sequence[int] | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        numbers = range(len(manifest["pairs"])) if chosen is None else chosen
        self._chosen = tuple(numbers)
        self.pairs = tuple(_pair(manifest["pairs"][number]) for number in self._chosen)

    @classmethod
    def open(cls, folder: Path, *, sha256: str | None = None, check_arrays: bool = True) -> PairStore:
        """Open a store and verify it.

        Args:
            folder: of the store.
            sha256: what ``PairStore.sha256`` has to be, as a run wrote it down; None takes any.
            check_arrays: read every array and compare digests; leave it out where another process just did.

        Raises:
            PairStoreError: not there, unfinished, of an unknown version, altered, or another store.
        """
        manifest = _manifest(folder)
        if sha256 is not None and manifest["sha256"] != sha256:
            raise PairStoreError(
                f"the store has the digest {manifest['sha256'][:16]}, the run was made with {sha256[:16]}; "
                "use the store of that run, or begin a new one"
            )
        store = cls(folder, manifest)
        if check_arrays:
            store._require_arrays()
        return store

    @property
    def sha256(self) -> str:
        """Digest of the whole store: manifest and, through it, all arrays."""
        return str(self.manifest["sha256"])

    @property
    def source(self) -> Mapping[str, Any]:
        """Name, specification and salt of the data set."""
        return dict(self.manifest["source"])

    @property
    def arrays(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of one pair's arrays, by name."""
        return {name: (each["dtype"], tuple(each["shape"])) for name, each in self.manifest["arrays"].items()}

    @property
    def refused(self) -> tuple[Mapping[str, str], ...]:
        """Pairs that the preprocessing refused: key, code and reason."""
        return tuple(self.manifest["refused"])

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the pairs."""
        return tuple(pair.key for pair in self.pairs)

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of every pair."""
        return tuple(pair.patient for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __reduce__(self) -> tuple[Callable[..., PairStore], tuple[Any, ...]]:
        return PairStore, (self.folder, self.manifest, self._chosen)

    def read(self, name: str, rows: Iterable[int] | None = None) -> NDArray[Any]:
        """Return one array of some pairs, [N, ...], in the order asked for; None asks for all.

        Args:
            name: of the array.
            rows: places in this store or part, from 0.

        Raises:
            ValueError: no array has this name.
            IndexError: no pair has this place; negative numbers are none.
        """
        if name not in self.arrays:
            raise ValueError(f"no array {name!r}; the store has {', '.join(self.arrays)}")
        places = np.arange(len(self)) if rows is None else np.asarray(list(rows), np.int64)
        if len(places) and (places.min() < 0 or places.max() >= len(self)):
            raise IndexError(f"rows {places.min()} to {places.max()} asked for; expected 0 to {len(self) - 1}")
        dtype, shape = self.arrays[name]
        found = np.empty((len(places), *shape), np.dtype(dtype))
        lies = self._lies[places]
        for shard in np.unique(lies[:, 0]):
            here = np.flatnonzero(lies[:, 0] == shard)
            found[here] = self._shard(name, int(shard))[lies[here, 1]]
        return found

    def targets(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Return targets of every pair, [N, T]; NaN where it was not measured.

        Raises:
            ValueError: no pair of the whole store has one of them: a misspelt name is not a missing value.
        """
        return self._table("targets", names)

    def demographics(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Return demographics of every pair, [N, G], as ``targets`` does."""
        return self._table("demographics", names)

    def labels(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Return diseases of every pair as 0 and 1, [N, L], as ``targets`` does."""
        return self._table("diseases", names)

    def subset(self, split: str) -> PairStore:
        """Return the pairs of one part.

        Raises:
            ValueError: no pair is of it.
        """
        rows = [row for row, pair in enumerate(self.pairs) if pair.split == split]
        if not rows:
            parts = sorted({pair.split for pair in self.pairs})
            raise ValueError(f"no pair is of the part {split!r}; there are {', '.join(parts) or 'none'}")
        return self.only(rows)

    def only(self, rows: Iterable[int]) -> PairStore:
        """Return some of the pairs, by their places, in the given order."""
        return PairStore(self.folder, self.manifest, [self._chosen[row] for row in rows])

    def _table(self, group: str, names: Sequence[str]) -> NDArray[np.float64]:
        known = {name for pair in self.manifest["pairs"] for name in pair[group]}
        if unknown := [name for name in names if name not in known]:
            there = ", ".join(sorted(known)) or "none"
            raise ValueError(f"no pair has {', '.join(unknown)} among its {group}; there are {there}")
        rows: list[Mapping[str, float]] = [getattr(pair, group) for pair in self.pairs]
        return np.array([[row.get(name, np.nan) for name in names] for row in rows], np.float64).reshape(
            len(rows), len(names)
        )

    @cached_property
    def _lies(self) -> NDArray[np.int64]:
        return np.array([[pair.shard, pair.row] for pair in self.pairs], np.int64).reshape(-1, 2)

    @cached_property
    def _opened(self) -> dict[Path, NDArray[Any]]:
        return {}

    def _shard(self, name: str, shard: int) -> NDArray[Any]:
        path = shard_file(self.folder, shard, name)
        if path not in self._opened:
            self._opened[path] = _mapped(path)
        return self._opened[path]

    def _require_arrays(self) -> None:
        wrong = 0
        for row, pair in enumerate(self.pairs):
            wrong += any(
                array_sha256(pair.key, self._one(name, row)) != expected for name, expected in pair.sha256.items()
            )
        if wrong:
            raise PairStoreError(
                f"the arrays of {wrong} of {len(self)} pairs in {self.folder} are not those of the manifest, or stand in "
                "the row of another pair; remove the folder and build it again"
            )

    def _one(self, name: str, row: int) -> NDArray[Any]:
        pair = self.pairs[row]
        shard = self._shard(name, pair.shard)
        dtype, shape = self.arrays[name]
        if shard.dtype != np.dtype(dtype) or shard.shape[1:] != shape or pair.row >= len(shard):
            path = shard_file(self.folder, pair.shard, name)
            raise PairStoreError(
                f"{path} holds {shard.dtype} {shard.shape}; expected {dtype} {shape} a row and row {pair.row}: "
                "remove the folder and build it again"
            )
        return np.asarray(shard[pair.row])


def shard_file(folder: Path, shard: int, name: str) -> Path:
    """Return where one array of a shard lies."""
    return folder / SHARDS / f"{shard:05d}.{name}.npy"


def array_sha256(key: str, array: NDArray[Any]) -> str:
    """Return the digest of an array and of whose it is."""
    return hashlib.sha256(key.encode() + b"\0" + np.ascontiguousarray(array).tobytes()).hexdigest()


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise PairStoreError(
            f"{path} is missing or broken ({type(error).__name__}); remove the folder and build it again"
        ) from None


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise PairStoreError(f"no {MANIFEST} in {folder}: no store, or one whose build is not finished; build it")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PairStoreError(f"{path} is not readable ({type(error).__name__}); build the store again") from None
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise PairStoreError(f"{path} is not of the format {FORMAT}, version {VERSION}; build the store again")
    if manifest.get("sha256") != manifest_sha256(manifest):
        raise PairStoreError(f"{path} was changed after it was written: its digest is foreign; build the store again")
    return manifest


def _pair(fields: Mapping[str, Any]) -> StoredPair:
    days = {name: date.fromisoformat(day) for name, day in fields["diagnosed_on"].items()}
    others = {key: value for key, value in fields.items() if key not in {"ecg_on", "cmr_on", "diagnosed_on"}}
    return StoredPair(
        ecg_on=date.fromisoformat(fields["ecg_on"]),
        cmr_on=date.fromisoformat(fields["cmr_on"]),
        diagnosed_on=days,
        **others,
    )
