"""The curve of a stage: losses and validation error of every epoch, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training.curves import read_rows, write_rows

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
    return [Point(**(row | {"epoch": int(row["epoch"])})) for row in read_rows(folder)]  # type: ignore[arg-type]


def write_points(folder: Path, points: Sequence[Point]) -> None:
    """Write all epochs as one step."""
    write_rows(folder, [asdict(point) for point in points])


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
