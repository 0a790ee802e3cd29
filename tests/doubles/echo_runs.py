"""Doubles for the tests of the runs on clips: a network of a few hundred weights, and beating discs of known ejection fraction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.coreecho import networks
from training.coreecho.clips import Video
from training.coreecho.config import BaselineRun, CoReEchoRun
from training.recipes import coreecho_small, echocotr_small

FRAMES, SIDE = 4, 16


class Encoded(NamedTuple):
    """As the encoders answer."""

    head: Tensor
    embedding: Tensor


class TinyEncoder(nn.Module):
    """Two convolutions with batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks3 = nn.Sequential(nn.Conv3d(3, 4, (3, 4, 4), (2, 4, 4), (1, 0, 0)), nn.BatchNorm3d(4), nn.GELU())
        self.widen = nn.Conv3d(4, 6, 1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(6, 1)
        nn.init.constant_(self.head.bias, 50.0)

    def forward(self, clip: Tensor) -> Encoded:
        """Return head and embedding."""
        features = self.widen(self.blocks3(clip))
        embedding = self.dropout(features).mean(dim=(2, 3, 4))
        return Encoded(self.head(embedding), embedding)


@dataclass(frozen=True)
class Discs:
    """Videos in memory: a bright disc whose area at its smallest is what the ejection fraction leaves."""

    names: tuple[str, ...]
    ef_percent: NDArray[np.float64]
    videos: tuple[NDArray[np.uint8], ...]
    qualities: tuple[str | None, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """One a video."""
        return self.names

    @property
    def patients(self) -> tuple[str, ...]:
        """Each video of its own patient."""
        return self.names

    @property
    def sha256(self) -> str:
        """Of the pixels and truths."""
        found = hashlib.sha256(self.ef_percent.tobytes())
        for video in self.videos:
            found.update(video.tobytes())
        return found.hexdigest()

    def video(self, row: int) -> Video:
        """Frames 40 ms apart."""
        frames = self.videos[row]
        return Video(frames_FSS=frames, frame_times_ms=40.0 * np.arange(len(frames)))


def discs(count: int, *, seed: int = 0, side: int = SIDE, frames: int = 14) -> Discs:
    """Return beating discs; ejection fractions from 20 to 75 %."""
    rng = np.random.default_rng(seed)
    ef = rng.uniform(20, 75, count)
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    videos = []
    for each in ef:
        phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(frames) / 10
        area = 1 - each / 100 * (1 - np.cos(phase)) / 2
        radius = (0.4 * side * np.sqrt(area))[:, None, None]
        image = 200 * (rows**2 + columns**2 < radius**2) + rng.integers(0, 30, (frames, side, side))
        videos.append(image.astype(np.uint8))
    names = tuple(f"disc-{seed}-{index:03d}" for index in range(count))
    qualities = tuple("Poor" if index % 4 == 0 else "Good" for index in range(count))
    return Discs(names=names, ef_percent=ef, videos=tuple(videos), qualities=qualities)


def tiny_run() -> CoReEchoRun:
    """Two stages of three and two epochs, four videos a batch."""
    run = coreecho_small.recipe()
    spec = run.preprocess.model_copy(update={"size_px": SIDE, "clip_frames": FRAMES})
    return replace(
        run,
        data=replace(run.data, preprocess=spec),
        clips=replace(run.clips, frames=FRAMES),
        translation_px=1,
        stage1=replace(
            run.stage1,
            epochs=3,
            batch_videos=4,
            schedule=replace(run.stage1.schedule, learning_rate=1e-2, decay_epoch=2),
        ),
        stage2=replace(run.stage2, epochs=2, batch_videos=4),
    )


def tiny_baseline() -> BaselineRun:
    """Three epochs, four videos a batch."""
    run, other = echocotr_small.recipe(), tiny_run()
    fit = replace(run.fit, epochs=3, batch_videos=4, schedule=other.stage1.schedule)
    return replace(run, data=other.data, clips=other.clips, translation_px=1, fit=fit)


def use_tiny_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the tiny encoder whatever the recipe says."""
    monkeypatch.setattr(networks, "build_encoder", lambda _run: TinyEncoder())
    torch.set_num_threads(1)
