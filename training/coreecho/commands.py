"""The commands of ``purkinje-train`` on echo clips: the comparison, and explanations of a trained run.

They import what they need when they are called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from training.options import as_typed, numbers

_FOLDER = click.Path(file_okay=False, path_type=Path)
_PRESENT = click.Path(file_okay=False, exists=True, path_type=Path)
_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)
_COUNT = click.IntRange(min=1)


@click.command("coreecho")
@click.option("--data", type=_PRESENT, help="Folder of EchoNet-Dynamic; digital phantoms without.")
@click.option("--recipe", default="coreecho_small", show_default=True, help="Recipe of CoReEcho.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    default=("echocotr_small",),
    show_default=True,
    help="End-to-end recipe; may be given several times, the first is what CoReEcho is held against.",
)
@click.option("--weights", type=_FILE, help="Published weights of Kinetics-400 that the encoders start from.")
@click.option("--camus", type=_PRESENT, help="Folder of CAMUS: transfer of the first seed's encoders, ten folds.")
@click.option("--hmc-qu", type=_PRESENT, help="Folder of HMC-QU: transfer of the first seed's encoders, five folds.")
@click.option("--transfer-epochs", type=_COUNT, default=30, show_default=True, help="Of each fold.")
@click.option(
    "--out", type=_FOLDER, default=Path("runs/evaluate-coreecho"), show_default=True, help="Kept between runs."
)
@click.option("--docs", type=_FOLDER, help="Folder that receives table, numbers and pictures.")
@click.option(
    "--sizes",
    callback=numbers(int, 3),
    default="600,100,200",
    show_default=True,
    help="Training, validation, test phantoms.",
)
@click.option("--seeds", type=_COUNT, default=3, show_default=True, help="How many.")
@click.option("--first-seed", type=click.IntRange(min=0), default=0, show_default=True, help="The first of them.")
@click.option(
    "--all-clips/--fixed-clips", default=False, show_default=True, help="Ask about every clip of a test video too."
)
@click.option("--workers", type=_COUNT, default=2, show_default=True, help="Processes that read or render videos.")
@click.option("--threads", type=_COUNT, default=2, show_default=True, help="Threads of torch.")
@click.option("--device", default="cpu", show_default=True, help="Of training, such as cuda.")
@click.option(
    "--fast", is_flag=True, help="Train in bfloat16 and compiled, on a GPU; the weights differ in their last digits."
)
def evaluate_coreecho_command(*, threads: int, **given: Any) -> None:
    """Rank-N-Contrast in two stages against plain L1, in-domain and on other scanners; the paper's table beside ours.

    Ends with 1 where something does not hold that must; the page says what.
    """
    import torch

    from training.coreecho.study import StudyOptions, run_study
    from training.coreecho.transfer_study import TransferOptions

    torch.set_num_threads(threads)
    transfer = TransferOptions(
        camus=given.pop("camus"),
        hmc_qu=given.pop("hmc_qu"),
        epochs=given.pop("transfer_epochs"),
        workers=given["workers"],
        device=given["device"],
    )
    try:
        options = StudyOptions(transfer=transfer, command=as_typed(), **given)
        study = run_study(options, lambda text: click.echo(text, err=True))
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(study.table)
    if not study.holds:
        sys.exit(1)


@click.command("explain")
@click.argument("recipe")
@click.option("--hearts", type=click.IntRange(min=20), help="As the run was trained with.")
@click.option("--epochs", type=_COUNT, help="As the run was trained with.")
@click.option("--out", type=_FOLDER, default=Path("runs"), show_default=True, help="Folder of runs and arrays.")
@click.option("--pictures", type=_FOLDER, required=True, help="Folder that receives PNG and GIF files.")
@click.option("--shown", type=_COUNT, default=3, show_default=True, help="Test videos with pictures of their own.")
@click.option("--workers", type=_COUNT, default=2, show_default=True, help="Processes that render videos.")
@click.option("--threads", type=_COUNT, default=1, show_default=True, help="Threads of torch.")
def explain_command(  # noqa: PLR0913 - a run, where it lives, and what is drawn
    *,
    recipe: str,
    hearts: int | None,
    epochs: int | None,
    out: Path,
    pictures: Path,
    shown: int,
    workers: int,
    threads: int,
) -> None:
    """Explain a trained run of RECIPE on its test hearts: Grad-CAM, map of the embeddings, nearest training cases."""
    import torch

    from training.coreecho.config import with_echo_size
    from training.coreecho.explained import draw_explanation
    from training.coreecho.protocol import echo_run, trained_network
    from training.coreecho.release import release_videos, run_folder

    torch.set_num_threads(threads)
    try:
        run = with_echo_size(echo_run(recipe), hearts=hearts, epochs=epochs)
        videos = release_videos(run, out, workers)
        network = trained_network(run, run_folder(run, videos, out))
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    for path in draw_explanation(run, network, (videos.train, videos.test), pictures, shown=shown):
        click.echo(path)
