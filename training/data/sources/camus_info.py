"""``Info_4CH.cfg`` of CAMUS in both dialects, and the files that name the official parts.

A configuration is a line ``Key: value`` each. The NIfTI release says EF and FrameRate; the MetaImage release says LVef,
LVedv and LVesv. Where no ejection fraction is stated it follows from the volumes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.data.sources.videos import UnusableVideo, percent_of

QUALITIES = ("Good", "Medium", "Poor")
SUBGROUPS = {"train": "training", "validation": "validation", "test": "testing"}


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a configuration says; frames count from 1.

    Args:
        ed_frame, es_frame: end-diastole and end-systole.
        frames: length of the sequence.
        quality: one of ``QUALITIES``.
        targets: ``lvef`` in percent and, where stated, ``lvedv_ml`` and ``lvesv_ml``.
        frame_interval_ms: or None where it is not stated.
    """

    ed_frame: int
    es_frame: int
    frames: int
    quality: str
    targets: Mapping[str, float]
    frame_interval_ms: float | None


def read_info(folder: Path, view: str, where: str) -> Info:
    """Read the configuration of one patient and view.

    Raises:
        UnusableVideo: missing, or without a usable value.
    """
    place = f"{where}, Info_{view}.cfg"
    values = _values(folder / f"Info_{view}.cfg", place)
    frames, ed, es = (_frame(values, key, place) for key in ("NbFrame", "ED", "ES"))
    if not (1 <= ed <= frames and 1 <= es <= frames) or ed == es:
        raise UnusableVideo(
            f"{place}: ED is {ed} and ES {es} of {frames} frames; two frames of the sequence are expected"
        )
    quality = values.get("ImageQuality", "").capitalize()
    if quality not in QUALITIES:
        raise UnusableVideo(f"{place}: ImageQuality is {values.get('ImageQuality')!r}; expected {', '.join(QUALITIES)}")
    return Info(
        ed_frame=ed,
        es_frame=es,
        frames=frames,
        quality=quality,
        targets=_targets(values, place),
        frame_interval_ms=1000.0 / _positive(values, "FrameRate", place) if "FrameRate" in values else None,
    )


def subgroups(root: Path, patients: Collection[str]) -> dict[str, str]:
    """Return the part of each patient by the official files; empty where the data set has none.

    Raises:
        ValueError: one of the three files is missing, or they do not name each patient once.
    """
    folder = root / "database_split"
    files = {split: folder / f"subgroup_{name}.txt" for split, name in SUBGROUPS.items()}
    missing = [file.name for file in files.values() if not file.is_file()]
    if len(missing) == len(files):
        return {}
    if missing:
        raise ValueError(f"{', '.join(missing)} missing in database_split/; all three parts are needed, or none")
    named = [(name, split) for split, file in files.items() for name in file.read_text(encoding="utf-8").split()]
    parts = dict(named)
    if len(parts) < len(named):
        raise ValueError(f"database_split/ names {len(named) - len(parts)} patients more than once")
    if parts.keys() != set(patients):
        absent, unnamed = len(parts.keys() - set(patients)), len(set(patients) - parts.keys())
        raise ValueError(
            f"database_split/ names {absent} patients that are not there and leaves out {unnamed} that are"
        )
    return parts


def _values(path: Path, place: str) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableVideo(f"{place} is not readable ({type(error).__name__})") from None
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _positive(values: Mapping[str, str], key: str, place: str) -> float:
    try:
        value = float(values.get(key, ""))
    except ValueError:
        value = float("nan")
    if not 0.0 < value < float("inf"):
        raise UnusableVideo(f"{place}: {key} is {values.get(key)!r}; expected a positive number")
    return value


def _frame(values: Mapping[str, str], key: str, place: str) -> int:
    value = _positive(values, key, place)
    if value != int(value):
        raise UnusableVideo(f"{place}: {key} is {values[key]!r}; expected a whole number")
    return int(value)


def _targets(values: Mapping[str, str], place: str) -> dict[str, float]:
    volumes = {
        name: _positive(values, key, place)
        for key, name in (("LVedv", "lvedv_ml"), ("LVesv", "lvesv_ml"))
        if key in values
    }
    stated = values.get("EF", values.get("LVef"))
    try:
        if stated is not None:
            return {"lvef": percent_of(stated, place), **volumes}
        if len(volumes) == 2:
            lvef = 100.0 * (1.0 - volumes["lvesv_ml"] / volumes["lvedv_ml"])
            return {"lvef": percent_of(lvef, place), **volumes}
    except ValueError as error:
        raise UnusableVideo(str(error)) from None
    raise UnusableVideo(f"{place} states neither EF, nor LVef, nor both LVedv and LVesv")
