"""Builds a clip store from a data set: several processes decode, one appends.

While it is built, pixels are appended to ``frames.partial`` and each finished video gets a line in ``videos.partial``. A
build that was killed goes on behind the last video whose pixels are whole. The manifest is written last and at once, so
that a folder with a manifest is a finished store.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog

from engines.errors import Refusal
from training.data.clip_store import (
    FORMAT,
    FRAMES,
    MANIFEST,
    VERSION,
    ClipStore,
    ClipStoreError,
    manifest_sha256,
    pixels_sha256,
)
from training.data.sources.videos import UnusableVideo, VideoEntry, VideoFrames, VideoSource, require_unique
from training.data.worker_pool import use_one_thread

Progress = Callable[[int, int], None]
"""Called with the number of videos that are done and the number of all."""

_PIXELS, _JOURNAL = "frames.partial", "videos.partial"
_AHEAD = 3
"""Videos a process may be ahead of the one that writes: bounds the memory."""
_EVEN_MS = 1e-6
_log = structlog.get_logger()


def build_clip_store(
    source: VideoSource, folder: Path, *, workers: int = 1, progress: Progress | None = None
) -> ClipStore:
    """Return the store of a data set, building what is missing.

    A second process that asks for the same folder waits for the first.

    Args:
        source: the data set.
        folder: of the store; made where it is not there.
        workers: processes that decode.
        progress: called after every video.

    Raises:
        ClipStoreError: the folder holds another data set, or something else.
        UnusableVideo: a video is missing or broken; mend it or take it out, and build again: the rest is kept.
        ValueError: the data set folder is not what its reader expects, or no video is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        entries = list(source.videos())
        require_unique([entry.key for entry in entries], source.name)
        description = _description(source, entries)
        if not (folder / MANIFEST).exists():
            job = _Job(source=source, entries=entries, folder=folder, description=description)
            _build(job, workers, progress)
    store = ClipStore.open(folder)
    _require_same(store.manifest, description, folder)
    return store


def _description(source: VideoSource, entries: Sequence[VideoEntry]) -> dict[str, Any]:
    """What decides the content, as the manifest says it; the entries by their digest."""
    listed = json.dumps([_listed(entry) for entry in entries], sort_keys=True)
    described = {
        "name": source.name,
        "provenance": source.provenance.as_dict(),
        "spec": source.spec,
        "entries_sha256": manifest_sha256({"entries": listed}),
    }
    # Through JSON, so that what was read back compares equal.
    return dict(json.loads(json.dumps({"side_px": source.side_px, "source": described})))


def _listed(entry: VideoEntry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "patient": entry.patient,
        "split": entry.split,
        "targets": dict(entry.targets),
        "quality": entry.quality,
        "marks": dict(entry.marks),
    }


def _require_same(found: Mapping[str, Any], description: Mapping[str, Any], folder: Path) -> None:
    differing = [
        key
        for key in ("name", "provenance", "spec", "entries_sha256")
        if found["source"].get(key) != description["source"][key]
    ]
    if differing or found["side_px"] != description["side_px"]:
        what = ", ".join(differing) or "side_px"
        raise ClipStoreError(
            f"{folder} holds another data set or other settings ({what} differ); give another folder, or remove this one"
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes, which wait until it is given back."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Refused(NamedTuple):
    """A refusal that travels between processes."""

    code: str
    reason: str


@dataclass
class _Unfinished:
    """What a build has so far: a line for every entry that is dealt with, in the order of the source."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def refused(self) -> list[dict[str, Any]]:
        """Entries that the preprocessing refused."""
        return [line for line in self.lines if "reason" in line]

    @property
    def videos(self) -> list[dict[str, Any]]:
        """The others, as the manifest lists them."""
        return [line for line in self.lines if "reason" not in line]

    @property
    def frames(self) -> int:
        """Frames of all videos."""
        ends = (line["first_frame"] + line["frames"] for line in reversed(self.lines) if "reason" not in line)
        return int(next(ends, 0))


@dataclass(frozen=True, kw_only=True)
class _Job:
    source: VideoSource
    entries: Sequence[VideoEntry]
    folder: Path
    description: Mapping[str, Any]


def _build(job: _Job, workers: int, progress: Progress | None) -> None:
    name, total = job.source.name, len(job.entries)
    made = _resumed(job.folder, job.description)
    _log.info("clip_store.started", data_set=name, videos=total, done=len(made.lines))
    with (job.folder / _PIXELS).open("ab") as pixels, (job.folder / _JOURNAL).open("a", encoding="utf-8") as journal:
        rest = job.entries[len(made.lines) :]
        for entry, result in zip(rest, _read_all(job.source, rest, workers), strict=True):
            line = _taken(made, entry, result, int(job.description["side_px"]))
            if isinstance(result, VideoFrames):
                pixels.write(np.ascontiguousarray(result.frames_TSS).data)
                pixels.flush()
            # After the pixels: a video with a line is whole.
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            if progress is not None:
                progress(len(made.lines), total)
        os.fsync(pixels.fileno())
    if not made.videos:
        reason = made.refused[0]["reason"]
        raise ValueError(f"all {total} videos of {name} were refused, the first because {reason}")
    _finish(job.folder, job.description, made)
    _log.info("clip_store.built", data_set=name, videos=len(made.videos), refused=len(made.refused))


def _resumed(folder: Path, description: Mapping[str, Any]) -> _Unfinished:
    """Take up an earlier build of the same data set; what is not whole is cut off."""
    pixels, journal = folder / _PIXELS, folder / _JOURNAL
    if (folder / FRAMES).exists():  # killed between the renames of the end
        (folder / FRAMES).replace(pixels)
    lines = journal.read_text(encoding="utf-8").split("\n")[:-1] if journal.exists() else []
    made = _Unfinished()
    if lines and pixels.exists():
        _require_same(json.loads(lines[0]), description, folder)
        made = _whole(lines[1:], pixels, int(description["side_px"]))
    with pixels.open("ab") as file:
        file.truncate(made.frames * int(description["side_px"]) ** 2)
    # At once, so that killed here, too, nothing is lost.
    renewed = journal.with_suffix(".renewed")
    renewed.write_text("".join(json.dumps(line) + "\n" for line in (description, *made.lines)), encoding="utf-8")
    renewed.replace(journal)
    return made


def _whole(lines: Iterable[str], pixels: Path, side_px: int) -> _Unfinished:
    """The lines up to the first video whose pixels are not those of its line."""
    made = _Unfinished()
    with pixels.open("rb") as file:
        for line in map(json.loads, lines):
            if "reason" not in line:
                content = np.frombuffer(file.read(line["frames"] * side_px**2), np.uint8)
                if pixels_sha256(content) != line["sha256"]:
                    break
            made.lines.append(line)
    return made


def _read_all(source: VideoSource, entries: Sequence[VideoEntry], workers: int) -> Iterator[VideoFrames | _Refused]:
    """What reading gave, in the order of the entries; a bounded number of them is held."""
    if workers == 1:
        yield from (_read(source, entry) for entry in entries)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=use_one_thread) as pool:
        ahead: deque[Future[VideoFrames | _Refused]] = deque()
        try:
            for entry in entries:
                ahead.append(pool.submit(_read, source, entry))
                if len(ahead) > _AHEAD * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(source: VideoSource, entry: VideoEntry) -> VideoFrames | _Refused:
    try:
        return source.read(entry)
    except Refusal as refusal:
        return _Refused(refusal.code.value, refusal.reason)


def _taken(made: _Unfinished, entry: VideoEntry, result: VideoFrames | _Refused, side_px: int) -> dict[str, Any]:
    """The line of an entry, added to what is made."""
    if isinstance(result, _Refused):
        _log.info("video.refused", number=len(made.lines), code=result.code, reason=result.reason)
        line: dict[str, Any] = {"key": entry.key, "code": result.code, "reason": result.reason}
    else:
        _require_fitting(entry, result, side_px)
        line = _listed(entry) | _extent(result, made.frames)
    made.lines.append(line)
    return line


def _require_fitting(entry: VideoEntry, result: VideoFrames, side_px: int) -> None:
    frames = result.frames_TSS
    if frames.dtype != np.uint8 or frames.ndim != 3 or frames.shape[1:] != (side_px, side_px) or not len(frames):
        raise UnusableVideo(
            f"{entry.where}: read {frames.dtype} {frames.shape}; expected uint8 [T, {side_px}, {side_px}]"
        )
    times = result.frame_times_ms
    if times is not None and (times.shape != (len(frames),) or not np.all(np.diff(times) > 0)):
        raise UnusableVideo(
            f"{entry.where}: expected one time a frame, increasing; found {len(times)} for {len(frames)}"
        )
    beyond = [name for name, mark in entry.marks.items() if not 0 <= mark <= len(frames)]
    if beyond:
        raise UnusableVideo(f"{entry.where}: {', '.join(beyond)} lie beyond its {len(frames)} frames")


def _extent(result: VideoFrames, first_frame: int) -> dict[str, Any]:
    """Where the pixels lie, their digest, and their times: an interval where they are evenly spaced."""
    frames, times = result
    interval = None if times is None or len(times) < 2 else float(times[-1] - times[0]) / (len(times) - 1)
    even = times is not None and interval is not None and np.ptp(times - interval * np.arange(len(times))) < _EVEN_MS
    return {
        "first_frame": first_frame,
        "frames": len(frames),
        "frame_interval_ms": interval if even else None,
        "frame_times_ms": None if even or times is None else times.tolist(),
        "sha256": pixels_sha256(frames),
    }


def _finish(folder: Path, description: Mapping[str, Any], made: _Unfinished) -> None:
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **description,
        "videos": made.videos,
        "refused": made.refused,
    }
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest | {"sha256": manifest_sha256(manifest)}, indent=1) + "\n", encoding="utf-8")
    (folder / _PIXELS).replace(folder / FRAMES)
    partial.replace(folder / MANIFEST)
    (folder / _JOURNAL).unlink()
