"""Commands of ``purkinje-train``: the five variants compared, and stacks measured. They import what they need when called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from training.options import as_typed, numbers

_FOLDER = click.Path(file_okay=False, path_type=Path)
_PRESENT = click.Path(file_okay=False, exists=True, path_type=Path)
_COUNT = click.IntRange(min=1)
_INSTANCE = click.option(
    "--instance", type=int, default=2, show_default=True, help="UK Biobank: 2 first imaging visit, 3 repeat."
)


@click.command("ecg_cmr")
@click.option("--data", type=_PRESENT, help="Folder of UK Biobank (20205, 20209, tables); digital phantoms without.")
@_INSTANCE
@click.option(
    "--measured",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="UK Biobank: table of `evaluate segmentation`, for participants whose tables state no quantity of the heart.",
)
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

    if given["measured"] is not None and given["data"] is None:
        raise click.UsageError("--measured fills in what a data set does not state; give its folder as --data")
    try:
        study = run_study(StudyOptions(command=as_typed(), **given), say)
    except (ValueError, FileNotFoundError, ForeignRunError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(study.table)
    if not study.holds:
        sys.exit(1)


@click.command("segmentation")
@click.option("--data", type=_PRESENT, help="Folder of UK Biobank (20205, 20209, tables); digital phantoms without.")
@_INSTANCE
@click.option(
    "--out", type=_FOLDER, default=Path("runs/evaluate-segmentation"), show_default=True, help="Kept between runs."
)
@click.option("--docs", type=_FOLDER, help="Folder that receives page and numbers.")
@click.option("--stacks", type=click.IntRange(min=5), default=60, show_default=True, help="Phantoms that are measured.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of them.")
@click.option(
    "--training-hearts", type=_COUNT, default=100, show_default=True, help="Phantoms the network learns from."
)
@click.option("--contours", type=_PRESENT, help="Stacks with contours of experts to check the network with.")
@click.option("--workers", type=_COUNT, default=2, show_default=True, help="Processes that measure.")
def evaluate_segmentation_command(**given: Any) -> None:
    """Measure short-axis stacks by a U-Net trained on phantoms, and check the crop that the image towers see.

    The table of the stacks, measured.csv below --out, names patients; with --data it may be given to `evaluate ecg_cmr`.
    """
    from training.ecg_cmr.segmentation_study import SegmentationOptions, run_segmentation_study

    try:
        click.echo(run_segmentation_study(SegmentationOptions(command=as_typed(), **given), say))
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error


def say(text: str) -> None:
    """Tell of the progress, from any process."""
    click.echo(text, err=True)
