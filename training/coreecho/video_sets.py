"""The data sets of the comparison and of a release as parts of videos; each is decoded once into a clip store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog

from training.coreecho.clips import ClipShape
from training.coreecho.config import AnyEchoRun
from training.coreecho.videos import StoreVideos
from training.data.clip_store import ClipStore
from training.data.clip_store_build import build_clip_store
from training.data.sources.camus import Camus
from training.data.sources.echonet import EchoNet
from training.data.sources.hmc_qu import HmcQu
from training.data.sources.phantom_clips import PhantomClips
from training.data.sources.videos import VideoSource
from training.data.splits import split_hearts
from training.phantoms.echo_scanners import FOREIGN

Progress = Callable[[str], None]
_REPORT_EVERY = 100
_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Videos of training, validation and test; ``other_scanner`` are the test hearts of phantoms seen by another one."""

    train: StoreVideos
    validation: StoreVideos
    test: StoreVideos
    other_scanner: StoreVideos | None = None


def study_phantoms(  # noqa: PLR0913 - which hearts, and how they are made
    run: AnyEchoRun, seed: int, sizes: tuple[int, int, int], stores: Path, *, workers: int, progress: Progress
) -> Parts:
    """Return the digital hearts of one seed of the comparison; hearts that the preprocessing refuses are left out."""
    train, validation, test = sizes
    ends = (train, train + validation, train + validation + test)
    familiar = PhantomClips(
        seed=run.data.seed + 1000 * (seed + 1),
        preprocess=run.preprocess,
        train=range(ends[0]),
        validation=range(ends[0], ends[1]),
        test=range(ends[1], ends[2]),
    )
    foreign = replace(familiar, train=range(0), validation=range(0), scanner=FOREIGN)
    store, other = (_store(each, stores, workers, progress) for each in (familiar, foreign))
    first, second, third = (StoreVideos(store.subset(part)) for part in ("train", "validation", "test"))
    return Parts(train=first, validation=second, test=third, other_scanner=StoreVideos(other))


def release_phantoms(run: AnyEchoRun, stores: Path, *, workers: int) -> Parts:
    """Return the digital hearts of a release, split as its arrays are; calibration hearts are in no part."""
    data = run.data
    source = PhantomClips(seed=data.seed, preprocess=run.preprocess, test=range(data.hearts))
    store = _store(source, stores, workers, lambda text: _log.info("videos.progress", done=text))
    split = split_hearts(data.hearts, data.split, data.seed)
    keys = [entry.key for entry in source.videos()]
    there = set(store.keys)

    def part(rows: np.ndarray) -> StoreVideos:
        return StoreVideos(store.only([keys[row] for row in rows if keys[row] in there]))

    return Parts(train=part(split.train), validation=part(split.validation), test=part(split.test))


def echonet(root: Path, run: AnyEchoRun, stores: Path, *, workers: int, progress: Progress) -> Parts:
    """Return the published parts of EchoNet-Dynamic.

    Raises:
        ValueError: the folder is not one of EchoNet-Dynamic.
    """
    store = _store(EchoNet(root=root, side_px=run.preprocess.size_px), stores, workers, progress)
    train, validation, test = (StoreVideos(store.subset(part)) for part in ("train", "validation", "test"))
    return Parts(train=train, validation=validation, test=test)


def camus(root: Path, run: AnyEchoRun, stores: Path, *, workers: int, progress: Progress) -> StoreVideos:
    """Return the apical four-chamber half beats of CAMUS, at most as many evenly spaced frames as a clip has."""
    store = _store(Camus(root=root, side_px=run.preprocess.size_px), stores, workers, progress)
    return StoreVideos(store, frames_max=run.clips.frames)


def on_camus(run: AnyEchoRun) -> AnyEchoRun:
    """Return the run whose clip is a whole half beat, black behind its end."""
    return replace(run, clips=ClipShape(frames=run.clips.frames, period_frames=1))


def hmc_qu(root: Path, run: AnyEchoRun, stores: Path, *, workers: int, progress: Progress) -> StoreVideos:
    """Return the apical four-chamber videos of HMC-QU, sector mask and size as at serving."""
    return StoreVideos(_store(HmcQu(root=root, preprocess=run.preprocess), stores, workers, progress))


def on_hmc_qu(run: AnyEchoRun) -> AnyEchoRun:
    """Return the run whose clips are cut by time, because the videos have half the frame rate of EchoNet-Dynamic."""
    return replace(run, clips=ClipShape(frames=run.clips.frames, step_ms=run.preprocess.frame_step_ms))


def _store(source: VideoSource, stores: Path, workers: int, progress: Progress) -> ClipStore:
    """Return the store of a source, in a folder named by what decides its pixels."""
    about = json.dumps([source.name, source.side_px, dict(source.spec), source.provenance.as_dict()], sort_keys=True)
    listed = [(entry.key, entry.split, dict(entry.targets)) for entry in source.videos()]
    digest = hashlib.sha256(f"{about}{listed}".encode()).hexdigest()[:16]

    def report(done: int, of: int) -> None:
        if done % _REPORT_EVERY == 0 or done == of:
            progress(f"{source.name}: {done} of {of} videos decoded")

    store = build_clip_store(source, stores / digest, workers=workers, progress=report)
    if store.refused:
        progress(f"{source.name}: {len(store.refused)} videos refused by the preprocessing")
    return store
