"""The command of ``purkinje-train`` that compares the five variants. It imports what it needs when it is called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from training.options import as_typed, numbers

_FOLDER = click.Path(file_okay=False, path_type=Path)
_PRESENT = click.Path(file_okay=False, exists=True, path_type=Path)
_COUNT = click.IntRange(min=1)


@click.command("ecg_cmr")
@click.option("--data", type=_PRESENT, help="Folder of UK Biobank (20205, 20209, tables); digital phantoms without.")
@click.option("--instance", type=int, default=2, show_default=True, help="UK Biobank: 2 first imaging visit, 3 repeat.")
@click.option(
    "--size",
    type=click.Choice(["small", "published"]),
    default="small",
    show_default=True,
    help="Of the five recipes; the published one needs a GPU.",
)
@click.option(
    "--out", type=_FOLDER, default=Path("runs/evaluate-ecg_cmr"), show_default=True, help="Kept between runs."
)
@click.option("--docs", type=_FOLDER, help="Folder that receives table and numbers.")
@click.option(
    "--sizes",
    callback=numbers(int, 2),
    default="600,800",
    show_default=True,
    help="Phantoms of the standard and the easy set, for each seed; 70 or 88 % train, half of the rest are asked.",
)
@click.option("--seeds", type=_COUNT, default=3, show_default=True, help="How many.")
@click.option("--easy-seeds", type=_COUNT, default=1, show_default=True, help="Of them, for the easy set.")
@click.option("--first-seed", type=click.IntRange(min=0), default=0, show_default=True, help="The first of them.")
@click.option("--epochs", type=_COUNT, help="Another number of epochs in every stage, for a trial.")
@click.option(
    "--workers", type=_COUNT, default=2, show_default=True, help="Processes; each makes pairs and trains seeds."
)
@click.option("--threads", type=_COUNT, default=1, show_default=True, help="Threads of torch in each process.")
@click.option("--device", default="cpu", show_default=True, help="Of training, such as cuda.")
def evaluate_ecg_cmr_command(**given: Any) -> None:
    """ECG only, one slice, one slice over time, volume and triplet, by three probes beside demographics alone.

    At the default sizes two quiet cores take an hour. Ends with 1 where something does not hold that must; the page says what.
    """
    from training.checkpoint import ForeignRunError
    from training.ecg_cmr.study import StudyOptions, run_study

    try:
        study = run_study(StudyOptions(command=as_typed(), **given), say)
    except (ValueError, FileNotFoundError, ForeignRunError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(study.table)
    if not study.holds:
        sys.exit(1)


def say(text: str) -> None:
    """Tell of the progress, from any process."""
    click.echo(text, err=True)
