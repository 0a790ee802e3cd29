"""``VolumeTracings.csv`` of EchoNet-Dynamic: which frames of a video an expert traced.

Each traced frame has pairs of points: the long axis first, then chords across the ventricle from the apex to the mitral
plane. The smaller of the traced areas is at end-systole.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

TRACINGS = "VolumeTracings.csv"
_HEADER = ["FileName", "X1", "Y1", "X2", "Y2", "Frame"]

_Chord = tuple[float, float, float, float]


def traced_frames(path: Path) -> dict[str, list[int]]:
    """Return the traced frames of each video by name without extension, the smallest area first.

    Raises:
        ValueError: another header, or a line without its numbers.
    """
    chords: dict[str, dict[int, list[_Chord]]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header != _HEADER:
            raise ValueError(f"{TRACINGS} has the header {header}; expected {_HEADER}")
        for row in reader:
            name, frame, chord = _line(row, reader.line_num)
            chords.setdefault(name, {}).setdefault(frame, []).append(chord)
    return {name: sorted(frames, key=lambda frame: _area_px(frames[frame])) for name, frames in chords.items()}


def _line(row: Sequence[str], number: int) -> tuple[str, int, _Chord]:
    name, frame, chord = row[0] if row else "", -1, (float("nan"),) * 4
    if len(row) == len(_HEADER):
        with suppress(ValueError):
            x1, y1, x2, y2 = (float(value) for value in row[1:5])
            frame, chord = int(row[5]), (x1, y1, x2, y2)
    if frame < 0 or not np.isfinite(chord).all():
        raise ValueError(
            f"{TRACINGS} line {number} is {','.join(row[1:])!r} after its name; expected four numbers and a frame"
        )
    return name[:-4] if name.lower().endswith(".avi") else name, frame, chord


def _area_px(chords: Sequence[_Chord]) -> float:
    """Area of the polygon through the ends of the chords; the long axis is left out."""
    ends = np.array(chords[1:] or chords)
    x, y = np.concatenate([ends[:, 0], ends[::-1, 2]]), np.concatenate([ends[:, 1], ends[::-1, 3]])
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)
