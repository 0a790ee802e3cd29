"""What a run leaves to look at: the loss curves as numbers and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of ``curves.csv``; epochs count from 0."""

    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: float


def read_curves(path: Path) -> list[EpochRecord]:
    """Return the recorded epochs, oldest first; none when the file is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [_record(row) for row in csv.DictReader(file)]


def write_curves(path: Path, records: Sequence[EpochRecord]) -> None:
    """Write all epochs; floats in full, so that a curve can be compared exactly."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[item.name for item in fields(EpochRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


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


def _record(row: dict[str, str]) -> EpochRecord:
    return EpochRecord(
        epoch=int(row["epoch"]),
        learning_rate=float(row["learning_rate"]),
        train_loss=float(row["train_loss"]),
        validation_loss=float(row["validation_loss"]),
    )
