"""CAMUS: 500 patients, apical four- and two-chamber sequences of half a beat, with ejection fraction and image quality.

Two releases are read, patient by patient: NIfTI (``patientXXXX_4CH_half_sequence.nii.gz``; the configuration has EF and
FrameRate) and the older MetaImage (``patientXXXX_4CH_sequence.mhd``; LVef, LVedv, LVesv). Some sequences run from end-
systole to end-diastole: frames stay in the order they were recorded in, and marks say which is which.

Source: S. Leclerc et al., Deep learning for segmentation using an open large-scale dataset in 2D echocardiography, IEEE TMI
2019. Letters: T frame, H row, W column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.decode.echo import APICAL_FOUR_CHAMBER
from engines.preprocess.spec import EchoSpec
from engines.records import ArrayFrames, CineLoop, SourceInstance
from training.data.sources.camus_info import Info, read_info, subgroups
from training.data.sources.metaimage import read_metaimage
from training.data.sources.reduced_loop import reduced_loop
from training.data.sources.videos import (
    Provenance,
    UnusableVideo,
    VideoEntry,
    VideoFrames,
    require_percent,
    squared,
    uniform_times_ms,
)

_PLACES = ("database_nifti", "", "training", "testing")
_ECHO = SourceInstance(sop_class_uid="1.2", sop_instance_uid="2.25.5", series_instance_uid="2.25.6")


@dataclass(frozen=True, kw_only=True)
class Camus:
    """A folder of either release as a ``VideoSource``.

    Args:
        root: holds ``database_nifti``, or the folders of the patients, or ``training`` and ``testing``.
        view: apical four or two chambers.
        side_px: side of the squares.
        preprocess: None stretches the whole frame to the square, as published; a specification takes it through
            the sector mask of the serving path.
        frame_interval_ms: time between frames, for the release that does not say it.
    """

    root: Path
    view: Literal["4CH", "2CH"] = "4CH"
    side_px: int = 112
    preprocess: EchoSpec | None = None
    frame_interval_ms: float | None = None

    provenance = Provenance(
        data_set="CAMUS, University of Lyon (creatis.insa-lyon.fr/Challenge/camus)",
        licence="CC BY-NC-SA 4.0",
        patients=True,
    )

    def __post_init__(self) -> None:
        if self.preprocess is not None and self.preprocess.size_px != self.side_px:
            raise ValueError(f"side_px is {self.side_px}, the specification says {self.preprocess.size_px}; say one")

    @property
    def name(self) -> str:
        return f"CAMUS {self.view}"

    @property
    def spec(self) -> Mapping[str, Any]:
        how = "whole frame stretched to the square, area averages"
        return {
            "pixels": how if self.preprocess is None else self.preprocess.model_dump(mode="json"),
            "side_px": self.side_px,
            "view": self.view,
            "frame_interval_ms": self.frame_interval_ms,
        }

    def videos(self) -> Sequence[VideoEntry]:
        folders = patient_folders(self.root)
        parts = subgroups(self.root, folders)
        entries = [self._entry(key, folder, parts.get(key)) for key, folder in folders.items()]
        require_percent([entry.targets["lvef"] for entry in entries], "CAMUS")
        return entries

    def read(self, entry: VideoEntry) -> VideoFrames:
        folder = patient_folders(self.root)[entry.patient]
        info = read_info(folder, self.view, entry.where)
        frames_THW = self._frames(folder, entry, info)
        interval_ms = info.frame_interval_ms or self.frame_interval_ms
        times_ms = None if interval_ms is None else uniform_times_ms(len(frames_THW), interval_ms)
        if self.preprocess is None:
            return VideoFrames(squared(frames_THW, self.side_px), times_ms)
        return VideoFrames(reduced_loop(_loop(frames_THW), self.preprocess), times_ms)

    def _entry(self, key: str, folder: Path, split: str | None) -> VideoEntry:
        info = read_info(folder, self.view, key)
        if not (_nifti(folder, self.view).is_file() or _metaimage(folder, self.view).is_file()):
            raise UnusableVideo(
                f"{key}: neither {_nifti(folder, self.view).name} nor {_metaimage(folder, self.view).name} is there"
            )
        return VideoEntry(
            key=f"{key}_{self.view}",
            patient=key,
            where=key,
            split=split,
            targets=info.targets,
            quality=info.quality,
            marks={"ed": info.ed_frame - 1, "es": info.es_frame - 1},
        )

    def _frames(self, folder: Path, entry: VideoEntry, info: Info) -> NDArray[np.uint8]:
        nifti = _nifti(folder, self.view)
        is_half = nifti.is_file()
        values = (
            _nifti_values(nifti, entry.where) if is_half else read_metaimage(_metaimage(folder, self.view), entry.where)
        )
        if len(values) != info.frames:
            raise UnusableVideo(f"{entry.where}: the sequence has {len(values)} frames; NbFrame is {info.frames}")
        if is_half and {info.ed_frame, info.es_frame} != {1, info.frames}:
            raise UnusableVideo(
                f"{entry.where}: ED is {info.ed_frame} and ES {info.es_frame} of {info.frames}; a half sequence runs from "
                "one to the other"
            )
        return _grey(values, entry.where)


def patient_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each patient by name, sorted.

    Raises:
        ValueError: no folder of a patient.
    """
    places = (root / place for place in _PLACES)
    found = {path.name: path for place in places if place.is_dir() for path in place.glob("patient*") if path.is_dir()}
    if not found:
        raise ValueError(
            f"no folder patientXXXX in {root}, its database_nifti/, training/ or testing/; give the root of CAMUS"
        )
    return dict(sorted(found.items()))


def _nifti(folder: Path, view: str) -> Path:
    return folder / f"{folder.name}_{view}_half_sequence.nii.gz"


def _metaimage(folder: Path, view: str) -> Path:
    return folder / f"{folder.name}_{view}_sequence.mhd"


def _nifti_values(path: Path, where: str) -> NDArray[Any]:
    """Values [T, H, W]: a file stores columns, rows, frames."""
    import nibabel

    try:
        values = np.asanyarray(nibabel.load(path).dataobj)
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise UnusableVideo(f"{where}: the sequence is not readable as NIfTI ({type(error).__name__})") from None
    if values.ndim != 3:
        raise UnusableVideo(
            f"{where}: the sequence has the shape {values.shape}; columns, rows and frames are expected"
        )
    return values.transpose(2, 1, 0)


def _grey(values: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Grey levels as 8 bits.

    Raises:
        UnusableVideo: no grey levels.
    """
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise UnusableVideo(f"{where}: the pixels are {values.dtype} from outside 0 to 255; grey levels are expected")
    return np.ascontiguousarray(np.rint(values), np.uint8)


def _loop(frames_THW: NDArray[np.uint8]) -> CineLoop:
    return CineLoop(
        frames=ArrayFrames(frames_THW=frames_THW),
        frame_times_ms=np.arange(len(frames_THW), dtype=np.float64),
        region_px=None,
        spacing_mm=None,
        heart_rate_bpm=None,
        view=APICAL_FOUR_CHAMBER,
        source=_ECHO,
    )
