"""HMC-QU: apical views with and without myocardial infarction, whole screens of a scanner at 25 frames a second.

``HMC-QU/A4C/*.avi``, ``A4C.xlsx`` (see ``hmc_table``) and, for some, ``LV Ground-truth Segmentation Masks/Mask_<ECHO>.mat``.
A screen shows text and an ECG beside the sector, so every video goes through the sector mask of the serving path.

Source: A. Degerli et al., Early detection of myocardial infarction in low-quality echocardiography, IEEE Access 2021.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from engines.preprocess.spec import EchoSpec
from engines.records import CineLoop, SourceInstance
from training.data.sources.avi import ColourFrames, read_avi
from training.data.sources.hmc_table import HmcRow, read_table
from training.data.sources.reduced_loop import reduced_loop
from training.data.sources.videos import (
    Provenance,
    UnusableVideo,
    VideoEntry,
    VideoFrames,
    require_unique,
    uniform_times_ms,
)

MASKS = "LV Ground-truth Segmentation Masks"
_SCREEN = SourceInstance(sop_class_uid="1.2", sop_instance_uid="2.25.7", series_instance_uid="2.25.8")


@dataclass(frozen=True, kw_only=True)
class HmcQu:
    """The data set folder as a ``VideoSource``; the target is ``infarction``.

    Args:
        root: holds ``A4C.xlsx`` and ``HMC-QU``.
        preprocess: sector mask and size.
        view: apical four or two chambers.
        abnormal: codes of an abnormal segment as text; None detects them.
        only_masked: keep the videos with a mask, as studies of segmentation do.
    """

    root: Path
    preprocess: EchoSpec = field(repr=False)
    view: Literal["A4C", "A2C"] = "A4C"
    abnormal: Collection[str] | None = None
    only_masked: bool = False

    provenance = Provenance(
        data_set="HMC-QU, Hamad Medical Corporation and Qatar University (Kaggle aysendegerli/hmcqu-dataset)",
        licence="research use as stated on Kaggle",
        patients=True,
    )

    @property
    def name(self) -> str:
        return f"HMC-QU {self.view}"

    @property
    def side_px(self) -> int:
        return self.preprocess.size_px

    @property
    def spec(self) -> Mapping[str, Any]:
        return {
            "pixels": self.preprocess.model_dump(mode="json"),
            "view": self.view,
            "abnormal": None if self.abnormal is None else sorted(self.abnormal),
            "only_masked": self.only_masked,
        }

    def videos(self) -> Sequence[VideoEntry]:
        folder = self.root / "HMC-QU" / self.view
        if not folder.is_dir():
            raise ValueError(
                f"no folder HMC-QU/{self.view} in {self.root}; give the folder that holds it and {self.view}.xlsx"
            )
        rows = self._rows
        self._require(rows, "videos", [row for row in rows if not self._file(row.key).is_file()])
        if (self.root / MASKS).is_dir():
            self._require(rows, "masks", [row for row in rows if row.has_mask and not self._mask(row.key).is_file()])
        kept = [row for row in rows if row.has_mask or not self.only_masked]
        if not kept:
            raise ValueError(f"no video of {self.view}.xlsx has a mask")
        return [_entry(row) for row in kept]

    def read(self, entry: VideoEntry) -> VideoFrames:
        found = read_avi(self._file(entry.key), entry.where, colour=True)
        frames = len(found.frames)
        end = entry.marks.get("cycle_end", frames)
        if end > frames:
            raise UnusableVideo(f"{entry.where}: the cycle ends with frame {end}; the video has {frames}")
        times_ms = uniform_times_ms(frames, 1000.0 / found.frame_rate_hz)
        loop = CineLoop(
            frames=ColourFrames(found.frames),
            frame_times_ms=times_ms,
            region_px=None,
            spacing_mm=None,
            heart_rate_bpm=None,
            view=None,
            source=_SCREEN,
        )
        return VideoFrames(reduced_loop(loop, self.preprocess), times_ms)

    @cached_property
    def _rows(self) -> list[HmcRow]:
        rows = read_table(self.root / f"{self.view}.xlsx", self.abnormal)
        require_unique([row.key for row in rows], f"{self.view}.xlsx")
        return rows

    def _file(self, key: str) -> Path:
        return self.root / "HMC-QU" / self.view / f"{key}.avi"

    def _mask(self, key: str) -> Path:
        return self.root / MASKS / f"Mask_{key}.mat"

    def _require(self, rows: Sequence[HmcRow], what: str, missing: Sequence[HmcRow]) -> None:
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(rows)} {what} are not there, the first is of {missing[0].where}; copy them or take "
                "their rows out"
            )


def _entry(row: HmcRow) -> VideoEntry:
    marks = {} if row.cycle is None else {"cycle_start": row.cycle[0], "cycle_end": row.cycle[1]}
    return VideoEntry(
        key=row.key,
        patient=row.key.split("_", maxsplit=1)[0],
        where=row.where,
        split=None,
        targets={"infarction": float(row.infarction), "has_mask": float(row.has_mask)},
        marks=marks,
    )
