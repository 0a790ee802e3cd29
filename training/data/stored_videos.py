"""The videos of a clip store by row: what training and evaluation walk over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.data.clip_store import ClipStore


@dataclass(frozen=True)
class StoredVideos:
    """N videos of a store, or of a part of it (``ClipStore.subset``, ``ClipStore.only``)."""

    store: ClipStore

    def __len__(self) -> int:
        return len(self.store)

    @cached_property
    def keys(self) -> Sequence[str]:
        """Key of each video; never for a log."""
        return self.store.keys

    @property
    def patients(self) -> Sequence[str]:
        """Patient of each video."""
        return [video.patient for video in self.store.videos.values()]

    @property
    def qualities(self) -> Sequence[str | None]:
        """What the data set says of each image."""
        return [video.quality for video in self.store.videos.values()]

    @property
    def ef_percent(self) -> NDArray[np.float64]:
        """Left ventricular ejection fraction of each video, [N]."""
        return self.store.targets("lvef")

    @property
    def sha256(self) -> str:
        """Digest of the whole store."""
        return self.store.sha256

    def target(self, name: str) -> NDArray[np.float64]:
        """Return another reference of each video, [N]."""
        return self.store.targets(name)

    def frames(self, row: int) -> NDArray[np.uint8]:
        """Return the frames of a video, a view uint8 [T, S, S]."""
        return self.store.frames(self.keys[row])

    def times_ms(self, row: int) -> NDArray[np.float64] | None:
        """Return the times of its frames, [T], or None where the data set does not say."""
        return self.store.video(self.keys[row]).frame_times_ms
