"""The curve of a stage: losses and validation error of every epoch, as numbers and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

NAME = "curves.csv"
_PICTURE = "curve.png"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One epoch, counted from 0; ``contrast`` is NaN in a stage without it, ``seconds`` are those of this epoch alone."""

    epoch: int
    learning_rate: float
    contrast: float
    regression: float
    validation_mae: float
    seconds: float


def read_points(folder: Path) -> list[Point]:
    """Return the recorded epochs, oldest first; none where the file is missing."""
    if not (folder / NAME).exists():
        return []
    with (folder / NAME).open(newline="", encoding="utf-8") as file:
        return [_point(row) for row in csv.DictReader(file)]


def write_points(folder: Path, points: Sequence[Point]) -> None:
    """Write all epochs as one step; floats in full, so that curves can be compared exactly."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{NAME}.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[item.name for item in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)
    partial.replace(folder / NAME)


def best_epoch(points: Sequence[Point]) -> int:
    """Return the epoch of the smallest validation error, the first of equal ones."""
    return min(points, key=lambda point: (point.validation_mae, point.epoch)).epoch


def draw_points(folder: Path, points: Sequence[Point]) -> None:
    """Draw the losses and the validation error over the epochs as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = ("contrast", "regression", "validation_mae")
    figure = Figure(figsize=(7, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 1, sharex=True)
    for axis, name in zip(axes, shown, strict=True):
        axis.plot(
            [point.epoch for point in points], [getattr(point, name) for point in points], marker="o", markersize=3
        )
        axis.set_ylabel(name.replace("_", " "))
        axis.grid(visible=True, alpha=0.3)
    axes[-1].axvline(best_epoch(points), color="0.5", linestyle=":")
    axes[-1].set_xlabel("epoch; dotted: the chosen one")
    figure.savefig(folder / _PICTURE, dpi=120, metadata={"Software": None})


def _point(row: dict[str, str]) -> Point:
    return Point(epoch=int(row["epoch"]), **{name: float(value) for name, value in row.items() if name != "epoch"})
