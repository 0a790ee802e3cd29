"""Decoded echo videos end to end in one memory-mapped file, with a manifest: what a clip is cut from without decoding.

``frames.u8`` holds all videos, uint8 [sum of T, S, S]; ``manifest.json`` says where each begins, when its frames were
recorded, what is true of it, where the pixels come from, and the SHA-256 of every video and of itself. ``clip_store_build``
makes such a folder.

Letters: T frame of a video, S side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.sources.videos import uniform_times_ms

FORMAT, VERSION = "purkinje-clip-store", 1
FRAMES, MANIFEST = "frames.u8", "manifest.json"


class ClipStoreError(ValueError):
    """A folder that is no whole clip store, or another one than asked for; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class StoredVideo:
    """One video of the store.

    Args:
        key: names the video within the data set; never for a log.
        patient: videos of one patient share it.
        first_frame, frames: where it lies in ``frames.u8``.
        frame_times_ms: float64 [T], or None where the data set does not say.
        split: ``train``, ``validation``, ``test``, or None.
        targets: references by name, as the source says.
        quality: what the data set says of the image, or None.
        marks: numbers of frames that mean something, from 0.
        sha256: of its pixels.
    """

    key: str = field(repr=False)
    patient: str = field(repr=False)
    first_frame: int
    frames: int
    frame_times_ms: NDArray[np.float64] | None = field(repr=False, compare=False)
    split: str | None
    targets: Mapping[str, float]
    quality: str | None
    marks: Mapping[str, int]
    sha256: str


class ClipStore:
    """Videos of an opened store, or of a part of it. Pickled, it takes the path along and not the pixels."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], keys: Iterable[str] | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        every = {video.key: video for video in map(_video, manifest["videos"])}
        self.videos = every if keys is None else {key: every[key] for key in keys}
        side = int(manifest["side_px"])
        self._pixels_TSS = np.memmap(folder / FRAMES, np.uint8, mode="r").reshape(-1, side, side)

    @classmethod
    def open(cls, folder: Path, *, sha256: str | None = None, check_pixels: bool = True) -> ClipStore:
        """Open a store and verify it.

        Args:
            folder: of the store.
            sha256: what ``ClipStore.sha256`` has to be, as a run wrote it down; None takes any.
            check_pixels: read all pixels and compare their digests; leave it out where another process just did.

        Raises:
            ClipStoreError: not there, unfinished, of an unknown version, altered, truncated, or another store.
        """
        manifest = _manifest(folder)
        if sha256 is not None and manifest["sha256"] != sha256:
            raise ClipStoreError(
                f"the store has the digest {manifest['sha256'][:16]}, the run was made with {sha256[:16]}; "
                "use the store of that run, or begin a new one"
            )
        _require_size(folder, manifest)
        store = cls(folder, manifest)
        if check_pixels:
            store._require_pixels()
        return store

    @property
    def sha256(self) -> str:
        """Digest of the whole store: manifest and, through it, all pixels."""
        return str(self.manifest["sha256"])

    @property
    def side_px(self) -> int:
        """Side S of every frame."""
        return self._pixels_TSS.shape[1]

    @property
    def source(self) -> Mapping[str, Any]:
        """Name, provenance and specification of the data set."""
        return dict(self.manifest["source"])

    @property
    def refused(self) -> tuple[Mapping[str, str], ...]:
        """Videos that the preprocessing refused: key, code and reason."""
        return tuple(self.manifest["refused"])

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the videos, in the order of the data set."""
        return tuple(self.videos)

    def __len__(self) -> int:
        return len(self.videos)

    def __reduce__(self) -> tuple[Callable[..., ClipStore], tuple[Any, ...]]:
        return ClipStore, (self.folder, self.manifest, self.keys)

    def frames(self, key: str) -> NDArray[np.uint8]:
        """Return the frames of a video, a read-only view uint8 [T, S, S].

        Raises:
            ValueError: no video has this key.
        """
        video = self.video(key)
        return self._pixels_TSS[video.first_frame : video.first_frame + video.frames]

    def video(self, key: str) -> StoredVideo:
        """Return what is known of a video.

        Raises:
            ValueError: no video has this key.
        """
        if key not in self.videos:
            raise ValueError(f"no video with this key among {len(self)}; take one of .keys")
        return self.videos[key]

    def targets(self, name: str) -> NDArray[np.float64]:
        """Return one reference of every video, [N].

        Raises:
            ValueError: a video lacks it.
        """
        lacking = sum(name not in video.targets for video in self.videos.values())
        if lacking:
            raise ValueError(f"{lacking} of {len(self)} videos have no target {name!r}")
        return np.array([video.targets[name] for video in self.videos.values()], np.float64)

    def subset(self, split: str) -> ClipStore:
        """Return the videos of one part.

        Raises:
            ValueError: the store has no such part.
        """
        keys = [key for key, video in self.videos.items() if video.split == split]
        if not keys:
            parts = sorted({str(video.split) for video in self.videos.values()})
            raise ValueError(f"no video is of the part {split!r}; the store has {', '.join(parts)}")
        return self.only(keys)

    def only(self, keys: Iterable[str]) -> ClipStore:
        """Return some of the videos, in the given order; folds are made of this.

        Raises:
            ValueError: no video has one of the keys.
        """
        return ClipStore(self.folder, self.manifest, [self.video(key).key for key in keys])

    def _require_pixels(self) -> None:
        wrong = sum(pixels_sha256(self.frames(key)) != video.sha256 for key, video in self.videos.items())
        if wrong:
            raise ClipStoreError(
                f"the pixels of {wrong} of {len(self)} videos in {self.folder / FRAMES} are not those of the manifest; "
                "remove the folder and build it again"
            )


def pixels_sha256(frames_TSS: NDArray[np.uint8]) -> str:
    """Return the digest of the pixels of a video."""
    return hashlib.sha256(np.ascontiguousarray(frames_TSS).data).hexdigest()


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest without its own."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ClipStoreError(f"no {MANIFEST} in {folder}: no clip store, or one whose build is not finished; build it")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ClipStoreError(f"{path} is not readable ({type(error).__name__}); build the store again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ClipStoreError(f"{path} is not of the format {FORMAT}; give the folder of a clip store")
    if manifest.get("version") != VERSION:
        raise ClipStoreError(
            f"{path} has version {manifest.get('version')}; version {VERSION} is read: build the store again"
        )
    if manifest.get("sha256") != manifest_sha256(manifest):
        raise ClipStoreError(f"{path} was changed after it was written: its digest is foreign; build the store again")
    return manifest


def _require_size(folder: Path, manifest: Mapping[str, Any]) -> None:
    expected = sum(video["frames"] for video in manifest["videos"]) * int(manifest["side_px"]) ** 2
    path = folder / FRAMES
    found = path.stat().st_size if path.is_file() else 0
    if found != expected:
        what = "truncated" if found < expected else "longer than its manifest says"
        raise ClipStoreError(
            f"{path} is {what}: {found} bytes, {expected} expected; remove the folder and build it again"
        )


def _video(fields: Mapping[str, Any]) -> StoredVideo:
    rest = {key: value for key, value in fields.items() if not key.startswith("frame_")}
    times = fields["frame_times_ms"]
    if fields["frame_interval_ms"] is not None:
        times_ms: NDArray[np.float64] | None = uniform_times_ms(fields["frames"], fields["frame_interval_ms"])
    else:
        times_ms = None if times is None else np.array(times, np.float64)
    return StoredVideo(frame_times_ms=times_ms, **rest)
