"""``purkinje-train``: digital phantoms, training runs and the bundles they end in.

Commands import what they need when they are called, so that ``phantoms`` works without torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from training.config import RunConfig

_FOLDER = click.Path(file_okay=False, path_type=Path)
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


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Which run, where it lives, and what it may use."""

    config: RunConfig
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


def _config(recipe: str, *, hearts: int | None, epochs: int | None) -> RunConfig:
    from training.config import load_recipe, with_size

    try:
        return with_size(load_recipe(recipe), hearts=hearts, epochs=epochs)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="RECIPE") from error


@main.command()
@run_options
def train(run: RunOptions) -> None:
    """Train RECIPE; where it was interrupted, continue."""
    from training.release import train_run

    click.echo(train_run(run.config, run.out, workers=run.workers, threads=run.threads))


@main.command()
@run_options
@click.option("--bundle", type=_FOLDER, required=True, help="Folder of the bundle; replaced where it exists.")
@click.option("--docs", type=_FOLDER, help="Folder that receives a copy of the model card.")
def release(run: RunOptions, bundle: Path, docs: Path | None) -> None:
    """Train RECIPE to its end and write its bundle, measured on hearts it never saw."""
    from training.export import copy_card
    from training.release import release_run

    click.echo(release_run(run.config, run.out, bundle, workers=run.workers, threads=run.threads))
    if docs is not None:
        click.echo(copy_card(bundle, docs))


@main.command()
@run_options
@click.option("--bundle", type=_FOLDER, required=True, help="The bundle to measure.")
def evaluate(run: RunOptions, bundle: Path) -> None:
    """Measure a bundle on the test hearts of RECIPE and print the numbers as JSON."""
    from training.release import evaluate_run

    click.echo(json.dumps(evaluate_run(run.config, run.out, bundle, workers=run.workers), indent=2))


@main.command()
@click.argument("recipe")
def describe(recipe: str) -> None:
    """Print everything that decides a run of RECIPE, as JSON."""
    from training.config import describe as describe_run

    click.echo(json.dumps(describe_run(_config(recipe, hearts=None, epochs=None)), indent=2))


@main.command()
def recipes() -> None:
    """List the recipes."""
    from training.config import recipe_names

    for name in recipe_names():
        click.echo(name)


if __name__ == "__main__":
    main()
