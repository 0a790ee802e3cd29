"""``purkinje-train``: digital phantoms, training runs and the bundles they end in.

Commands import what they need when they are called, so that ``phantoms`` works without torch.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from training.coreecho.commands import evaluate_coreecho_command, explain_command
from training.ecg_cmr.commands import evaluate_ecg_cmr_command, evaluate_segmentation_command
from training.options import as_typed, numbers

if TYPE_CHECKING:
    from training.config import AnyRun

_FOLDER = click.Path(file_okay=False, path_type=Path)
_PRESENT = click.Path(file_okay=False, exists=True, path_type=Path)
_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)
_COUNT = click.IntRange(min=1)


class LazyGroup(click.Group):
    """A group whose ``phantoms`` branch is imported only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "phantoms"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "phantoms":
            return super().get_command(ctx, cmd_name)
        from training.phantoms.cli import phantoms

        command: click.Command = phantoms
        return command


@click.group(cls=LazyGroup)
def main() -> None:
    """Trains engines on data sets and releases them as bundles."""
    from training.data.worker_pool import use_one_thread

    use_one_thread()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Which run, where it lives, and what it may use."""

    config: AnyRun
    out: Path
    workers: int
    threads: int


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument RECIPE and the options of a run, as one ``run``."""

    @click.argument("recipe")
    @click.option("--hearts", type=click.IntRange(min=20), help="Another number of hearts, for a trial.")
    @click.option("--epochs", type=click.IntRange(min=1), help="Another number of epochs, for a trial.")
    @click.option("--out", type=_FOLDER, default=Path("runs"), show_default=True, help="Folder of runs and arrays.")
    @click.option("--workers", type=_COUNT, default=2, show_default=True, help="Processes that render hearts.")
    @click.option("--threads", type=_COUNT, default=1, show_default=True, help="Threads of torch.")
    @functools.wraps(command)
    def with_run(*, hearts: int | None, epochs: int | None, **given: Any) -> None:
        config = _config(given.pop("recipe"), hearts=hearts, epochs=epochs)
        places = {name: given.pop(name) for name in ("out", "workers", "threads")}
        command(run=RunOptions(config=config, **places), **given)

    return with_run


def _config(recipe: str, *, hearts: int | None, epochs: int | None) -> AnyRun:
    from training.config import RunConfig, load_recipe, with_size
    from training.coreecho.config import EchoRun, with_echo_size
    from training.ecg_cmr.config import EcgCmrRun, with_ecg_cmr_epochs
    from training.enf.config import with_enf_size

    try:
        config = load_recipe(recipe)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="RECIPE") from error
    if isinstance(config, RunConfig):
        return with_size(config, hearts=hearts, epochs=epochs)
    if isinstance(config, EchoRun):
        return with_echo_size(config, hearts=hearts, epochs=epochs)
    if isinstance(config, EcgCmrRun):
        if hearts is not None:
            raise click.BadParameter(
                f"{recipe} trains on a store of pairs; its build sets how many", param_hint="--hearts"
            )
        return with_ecg_cmr_epochs(config, epochs)
    return with_enf_size(config, hearts=hearts, epochs=epochs)


@main.command()
@run_options
@click.option(
    "--data",
    type=_PRESENT,
    help="Recipes on clips: folder of EchoNet-Dynamic; digital phantoms without. Recipes on pairs: their store.",
)
@click.option("--weights", type=_FILE, help="Recipes on clips: published weights of Kinetics-400 to start from.")
@click.option(
    "--device", default="cpu", show_default=True, help="Recipes on clips: such as cuda; torchrun uses several."
)
def train(run: RunOptions, data: Path | None, weights: Path | None, device: str) -> None:
    """Train RECIPE; where it was interrupted, continue."""
    from training.config import TrainingInputs
    from training.release import train_run

    options = TrainingInputs(data=data, weights=weights, device=device)
    try:
        click.echo(train_run(run.config, run.out, workers=run.workers, threads=run.threads, given=options))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@run_options
@click.option("--bundle", type=_FOLDER, required=True, help="Folder of the bundle; replaced where it exists.")
@click.option("--docs", type=_FOLDER, help="Folder that receives a copy of the model card.")
@click.option(
    "--gate", type=_PRESENT, help="Folder of a released view check, which the bundle of an echo engine takes."
)
@click.option(
    "--clips", type=_PRESENT, help="View networks: folder of real clips with views.csv (file, view) that train too."
)
def release(run: RunOptions, bundle: Path, docs: Path | None, gate: Path | None, clips: Path | None) -> None:
    """Train RECIPE to its end and write its bundle, measured on hearts it never saw; a view network becomes a gate."""
    from training.export import copy_card
    from training.release import release_run

    try:
        folder = release_run(
            run.config, run.out, bundle, workers=run.workers, threads=run.threads, gate=gate, clips=clips
        )
        click.echo(folder)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if docs is not None:
        click.echo(copy_card(bundle, docs))


@main.command()
@run_options
@click.option("--bundle", type=_FOLDER, required=True, help="The bundle to measure.")
def measure(run: RunOptions, bundle: Path) -> None:
    """Measure a bundle on the test hearts of RECIPE and print the numbers as JSON."""
    from training.release import evaluate_run

    click.echo(json.dumps(evaluate_run(run.config, run.out, bundle, workers=run.workers), indent=2))


@main.group()
def evaluate() -> None:
    """Compare a method with its peers by its published protocol."""


@evaluate.command("enf")
@click.option(
    "--data", type=_PRESENT, help="Folder of a data set (UK Biobank, NIfTI, DICOM); digital phantoms without."
)
@click.option("--recipe", default="enf_small", show_default=True, help="Recipe of the field.")
@click.option("--out", type=_FOLDER, default=Path("runs/evaluate-enf"), show_default=True, help="Kept between runs.")
@click.option("--docs", type=_FOLDER, help="Folder that receives table, numbers and pictures.")
@click.option(
    "--sizes",
    callback=numbers(int, 3),
    default="275,60,60",
    show_default=True,
    help="Training, validation, test hearts.",
)
@click.option("--seeds", type=_COUNT, default=3, show_default=True, help="How many.")
@click.option("--first-seed", type=click.IntRange(min=0), default=2, show_default=True, help="The others follow.")
@click.option("--dicom-studies", type=click.IntRange(min=0), default=20, show_default=True, help="Written turned.")
@click.option("--segmentation-hearts", type=click.IntRange(min=0), default=100, show_default=True, help="0: none.")
@click.option("--contours", type=_PRESENT, help="Stacks with expert contours to check the segmentation with.")
@click.option("--label-field", help="UK Biobank: take the ejection fraction from this field only.")
@click.option("--instance", type=int, default=2, show_default=True, help="UK Biobank: 2 first imaging visit, 3 repeat.")
@click.option("--index", type=int, default=0, show_default=True, help="UK Biobank: array index of the bulk item.")
@click.option("--frame-interval-ms", type=float, help="NIfTI: time between phases, where the headers do not say it.")
@click.option("--exclude-percent", callback=numbers(float, 2), help="Leave out hearts of this LVEF, such as 38,42.")
@click.option("--workers", type=_COUNT, default=2, show_default=True, help="Processes that read studies.")
@click.option("--threads", type=_COUNT, default=2, show_default=True, help="Threads of torch.")
@click.option("--device", default="cpu", show_default=True, help="Of the field, such as cuda.")
def evaluate_enf_command(*, threads: int, **given: Any) -> None:
    """Equivariant neural field against ResNet50 and segmentation, images turned by 90, 180 and 270 degrees.

    Ends with 1 where something does not hold that must; the page says what.
    """
    import torch

    from training.data.sources.cmr_studies import CmrOptions
    from training.enf.study import StudyOptions, run_study

    torch.set_num_threads(threads)
    try:
        cmr = CmrOptions(**{name: given.pop(name) for name in _CMR_OPTIONS})
        options = StudyOptions(cmr=cmr, command=as_typed(), **given)
        study = run_study(options, lambda text: click.echo(text, err=True))
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(study.table)
    if not study.holds:
        sys.exit(1)


evaluate.add_command(evaluate_coreecho_command)
evaluate.add_command(evaluate_ecg_cmr_command)
evaluate.add_command(evaluate_segmentation_command)
main.add_command(explain_command)

_CMR_OPTIONS = ("label_field", "instance", "index", "frame_interval_ms", "exclude_percent")


@main.command()
@click.argument("recipe")
def describe(recipe: str) -> None:
    """Print layers, parameter counts, loss, schedule and data of RECIPE, and all else that decides a run, as JSON."""
    from training.summary import summary

    click.echo(json.dumps(summary(_config(recipe, hearts=None, epochs=None)), indent=2))


@main.command()
def recipes() -> None:
    """List the recipes."""
    from training.config import recipe_names

    for name in recipe_names():
        click.echo(name)


if __name__ == "__main__":
    main()
