"""The curve of a run or of a stage: every number of every epoch as CSV, written as one step, and as a picture.

Called by ``telemetry``, and by the stages of methods that have other numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

NAME = "curves.csv"
_PICTURE = "curve.png"

Row: TypeAlias = dict[str, float]
"""One epoch, counted from 0, by name; the same names in every epoch of a stage."""


def read_rows(folder: Path) -> list[Row]:
    """Return the recorded epochs, oldest first; none where the file is missing."""
    if not (folder / NAME).exists():
        return []
    with (folder / NAME).open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def write_rows(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write all epochs as one step; floats in full, so that curves can be compared exactly."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{NAME}.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(folder / NAME)


def best_epoch(rows: Sequence[Row], score: str) -> int:
    """Return the place of the smallest score, the first of equal ones."""
    return min(range(len(rows)), key=lambda place: (rows[place][score], place))


def draw_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Draw every number of training and validation over the epochs as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name.removeprefix("train_") for name in rows[0] if name.startswith("train_")]
    figure = Figure(figsize=(7, 1.8 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, shown, strict=True):
        for part in ("train", "validation"):
            axis.plot([row["epoch"] for row in rows], [row[f"{part}_{name}"] for row in rows], label=part)
        axis.set_ylabel(name.replace("_", " "))
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend()
    axes[-1].set_xlabel("epoch")
    figure.savefig(folder / _PICTURE, dpi=100, metadata={"Software": None})
