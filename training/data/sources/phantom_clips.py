"""Digital hearts as echo clips: heart i of a seed is the heart of ``phantom_hearts``, seen by a scanner of choice.

Pixels go through the serving path's own sector mask and resize, every frame at the time it was recorded. The same hearts
seen by another scanner are a test outside the domain of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engines.preprocess.spec import EchoSpec
from engines.records import CineLoop, Modality
from training.data.heart_arrays import source_digest
from training.data.sources.phantom_hearts import draw_subject_of, targets_of
from training.data.sources.reduced_loop import reduced_loop
from training.data.sources.videos import Provenance, VideoEntry, VideoFrames
from training.phantoms.echo import echo_loop
from training.phantoms.echo_scanners import FAMILIAR, ScannerSettings

Hearts = range
"""Numbers of the hearts of a part."""

_STREAM = 0x636C6970
"""Sets the recordings apart from what draws the hearts."""


@dataclass(frozen=True, kw_only=True)
class PhantomClips:
    """Digital hearts as a ``VideoSource``.

    Args:
        seed: names the set.
        preprocess: sector mask and size.
        train, validation, test: numbers of the hearts of each part; disjoint, any may be empty.
        scanner: what they are seen by.
    """

    seed: int
    preprocess: EchoSpec
    train: Hearts = range(0)
    validation: Hearts = range(0)
    test: Hearts = range(0)
    scanner: ScannerSettings = FAMILIAR

    provenance = Provenance(data_set="Purkinje digital phantoms", licence="Apache-2.0", patients=False)

    def __post_init__(self) -> None:
        numbers = [number for hearts in self._parts.values() for number in hearts]
        if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
            raise ValueError(
                f"the parts are {self._parts}; expected disjoint numbers of hearts from 0 on, one heart at least"
            )

    @property
    def name(self) -> str:
        return f"digital phantoms, seed {self.seed}, {self.scanner.name} scanner"

    @property
    def side_px(self) -> int:
        return self.preprocess.size_px

    @property
    def spec(self) -> Mapping[str, Any]:
        return {
            "pixels": self.preprocess.model_dump(mode="json"),
            "scanner": asdict(self.scanner),
            "code_sha256": source_digest(Modality.ECHO),
        }

    @property
    def _parts(self) -> dict[str, Hearts]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def videos(self) -> Sequence[VideoEntry]:
        return [self._entry(split, number) for split, hearts in self._parts.items() for number in hearts]

    def read(self, entry: VideoEntry) -> VideoFrames:
        loop = self.loop(entry)
        return VideoFrames(reduced_loop(loop, self.preprocess), loop.frame_times_ms)

    def loop(self, entry: VideoEntry) -> CineLoop:
        """Return the record that serving would decode of the same heart."""
        number = int(entry.key.rsplit("-", maxsplit=1)[1])
        rng = np.random.default_rng([_STREAM, self.seed, number])
        return echo_loop(draw_subject_of(self.seed, number), rng, self.scanner)

    def _entry(self, split: str, number: int) -> VideoEntry:
        key = f"phantom-{self.seed}-{number:06d}"
        return VideoEntry(
            key=key,
            patient=key,
            where=f"heart {number}",
            split=split,
            targets=targets_of(draw_subject_of(self.seed, number)),
        )
