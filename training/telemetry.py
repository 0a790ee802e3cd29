"""What a run leaves to look at: the loss curves as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training.curves import read_rows, write_rows


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of ``curves.csv``; epochs count from 0."""

    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: float


def read_curves(folder: Path) -> list[EpochRecord]:
    """Return the recorded epochs, oldest first; none where the file is missing."""
    return [EpochRecord(**(row | {"epoch": int(row["epoch"])})) for row in read_rows(folder)]  # type: ignore[arg-type]


def write_curves(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Write all epochs as one step."""
    write_rows(folder, [asdict(record) for record in records])


def draw_curves(path: Path, records: Sequence[EpochRecord]) -> None:
    """Draw training and validation loss over the epochs as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    epochs = [record.epoch for record in records]
    axes.plot(epochs, [record.train_loss for record in records], label="training")
    axes.plot(epochs, [record.validation_loss for record in records], label="validation")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend()
    figure.savefig(path, dpi=120)
