"""EchoNet-Dynamic and data sets laid out like it: ``FileList.csv``, ``Videos/<name>.avi``, perhaps ``VolumeTracings.csv``.

``FileList.csv`` is read by the names of its columns: FileName (with or without extension), EF and Split are needed;
ESV, EDV, FPS and NumberOfFrames are used where they stand. With tracings, videos with fewer than two traced frames are
left out, as in the published protocol. Messages name lines, not files.

Source: D. Ouyang et al., Video-based AI for beat-to-beat assessment of cardiac function, Nature 2020.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog

from training.data.sources.avi import read_avi
from training.data.sources.videos import (
    Provenance,
    UnusableVideo,
    VideoEntry,
    VideoFrames,
    percent_of,
    require_percent,
    require_unique,
    squared,
    uniform_times_ms,
)
from training.data.sources.volume_tracings import TRACINGS, traced_frames

FILE_LIST = "FileList.csv"
_NEEDED = ("FileName", "EF", "Split")
_SPLITS = {"TRAIN": "train", "VAL": "validation", "TEST": "test"}
_VOLUMES = {"EDV": "lvedv_ml", "ESV": "lvesv_ml"}
_LEAST_TRACED = 2
_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class EchoNet:
    """A folder of this layout as a ``VideoSource``.

    Args:
        root: holds ``FileList.csv``.
        side_px: side of the squares; 112 keeps the pixels of EchoNet-Dynamic as they are.
    """

    root: Path
    side_px: int = 112

    name = "EchoNet-Dynamic"
    provenance = Provenance(
        data_set="EchoNet-Dynamic, Stanford (echonet.github.io/dynamic), or a data set of its layout",
        licence="Stanford research use agreement: non-commercial, no redistribution, not for diagnosis",
        patients=True,
    )

    @property
    def spec(self) -> Mapping[str, Any]:
        return {"pixels": "luma of the whole frame, area averages", "side_px": self.side_px}

    def videos(self) -> Sequence[VideoEntry]:
        _require_folder(self.root)
        entries = [_entry(row, where) for where, row in self._rows.values()]
        require_percent([entry.targets["lvef"] for entry in entries], FILE_LIST)
        self._require_files(entries)
        return self._traced(entries)

    def read(self, entry: VideoEntry) -> VideoFrames:
        found = read_avi(self._file(entry.key), entry.where)
        frames, height, width = found.frames.shape
        if height != width:
            raise UnusableVideo(f"{entry.where}: the video is {width} x {height}; square frames are expected")
        _, row = self._rows[entry.key]
        stated = _optional(row, "NumberOfFrames", entry.where)
        if stated is not None and stated != frames:
            raise UnusableVideo(f"{entry.where}: the video has {frames} frames; {FILE_LIST} says {stated:g}")
        rate = _optional(row, "FPS", entry.where) or found.frame_rate_hz
        return VideoFrames(squared(found.frames, self.side_px), uniform_times_ms(frames, 1000.0 / rate))

    @cached_property
    def _rows(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Place and content of every line, by name without extension."""
        rows = _lines(self.root / FILE_LIST)
        keys = [_key(row["FileName"], where) for where, row in rows]
        require_unique(keys, FILE_LIST)
        return dict(zip(keys, rows, strict=True))

    def _file(self, key: str) -> Path:
        return self.root / "Videos" / f"{key}.avi"

    def _require_files(self, entries: Sequence[VideoEntry]) -> None:
        missing = [entry.where for entry in entries if not self._file(entry.key).is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(entries)} videos are not in Videos/, the first is of {missing[0]}; "
                "copy them or take their lines out"
            )

    def _traced(self, entries: Sequence[VideoEntry]) -> Sequence[VideoEntry]:
        """The videos with their traced frames as marks; all of them where the data set has no tracings."""
        if not (self.root / TRACINGS).exists():
            return entries
        traced = traced_frames(self.root / TRACINGS)
        kept = [
            replace(entry, marks={"es": traced[entry.key][0], "ed": traced[entry.key][-1]})
            for entry in entries
            if len(traced.get(entry.key, ())) >= _LEAST_TRACED
        ]
        if not kept:
            raise ValueError(f"no video of {FILE_LIST} has two traced frames in {TRACINGS}; compare the names of both")
        _log.info("data_set.opened", data_set=self.name, studies=len(kept), excluded=len(entries) - len(kept))
        return kept


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give the folder that holds {FILE_LIST} and Videos/")
    if not (root / FILE_LIST).is_file():
        raise ValueError(f"no {FILE_LIST} in {root}; give the folder that holds it and Videos/")
    if not (root / "Videos").is_dir():
        raise ValueError(f"no folder Videos/ in {root}; the videos are expected as Videos/<FileName>.avi")


def _lines(path: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, restval="")
            missing = [column for column in _NEEDED if column not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{FILE_LIST} has the columns {list(reader.fieldnames or ())}; {', '.join(missing)} missing"
                )
            lines = [(f"{FILE_LIST} line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{FILE_LIST} is not readable as CSV in UTF-8 ({type(error).__name__})") from None
    if not lines:
        raise ValueError(f"{FILE_LIST} has a header and no videos")
    return lines


def _key(text: str, where: str) -> str:
    key = text.strip()
    key = key[:-4] if key.lower().endswith(".avi") else key
    if not key or "/" in key or "\\" in key:
        raise ValueError(f"{where}: FileName is {text!r}; the name of a file in Videos/ is expected")
    return key


def _entry(row: Mapping[str, str], where: str) -> VideoEntry:
    split = row["Split"].strip().upper()
    if split not in _SPLITS:
        raise ValueError(f"{where}: Split is {row['Split']!r}; expected one of {', '.join(_SPLITS)}")
    volumes = {name: _optional(row, column, where) for column, name in _VOLUMES.items()}
    key = _key(row["FileName"], where)
    return VideoEntry(
        key=key,
        patient=key,
        where=where,
        split=_SPLITS[split],
        targets={
            "lvef": percent_of(row["EF"], where),
            **{name: value for name, value in volumes.items() if value is not None},
        },
    )


def _optional(row: Mapping[str, str], column: str, where: str) -> float | None:
    """A positive number of a column that may be absent or empty."""
    text = (row.get(column) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{where}: {column} is {text!r}; expected a positive number, or nothing")
    return value
