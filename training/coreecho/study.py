"""``purkinje-train evaluate coreecho``: the whole comparison as one command, its table, its numbers and its pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.coreecho.config import AnyEchoRun, CoReEchoRun, with_speed, with_weights
from training.coreecho.evaluation import PUBLISHED_DRAWS, Draws
from training.coreecho.explained import draw_explanations
from training.coreecho.measurements import Comparison, document
from training.coreecho.protocol import (
    Protocol,
    SeedVideos,
    compare,
    echo_run,
    name_of,
    seed_folder,
    seeded,
    settings_of,
    trained_network,
)
from training.coreecho.requirements import as_markdown, as_rows, requirements
from training.coreecho.table import markdown
from training.coreecho.transfer_study import TransferOptions, transfer_markdown, transfer_numbers
from training.coreecho.video_sets import echonet, study_phantoms

Progress = Callable[[str], None]
_PHANTOMS = "Trained and tested on digital phantoms. Not for clinical use."
_PATIENTS = "Trained and tested on a data set of patients by a research protocol. Not for clinical use."


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What the command was asked for.

    Args:
        recipe: of CoReEcho.
        baselines: recipes it is compared with; requirements hold it against the first.
        data: folder of EchoNet-Dynamic, or None for digital phantoms.
        weights: published weights that the encoders start from, or None.
        transfer: data sets that the encoders are transferred to.
        out: folder of everything that is kept between runs.
        docs: folder that receives table, numbers and pictures; None writes them below ``out`` only.
        sizes: phantoms of training, validation and test.
        seeds: how many.
        first_seed: the first of them.
        all_clips: whether every clip of a test video is asked about too.
        workers: processes that read or render videos.
        device: of training, such as ``cuda``.
        command: as it stands in the table.
        fast: train in bfloat16 and compiled, on a GPU.
        draws: of patients, for the intervals.
    """

    recipe: str
    baselines: tuple[str, ...]
    data: Path | None
    weights: Path | None
    transfer: TransferOptions
    out: Path
    docs: Path | None
    sizes: tuple[int, int, int]
    seeds: int
    first_seed: int
    all_clips: bool
    workers: int
    device: str
    command: str
    fast: bool = False
    draws: Draws = PUBLISHED_DRAWS


@dataclass(frozen=True, kw_only=True)
class Study:
    """The page with all tables, and whether everything holds that must."""

    table: str
    holds: bool


def run_study(options: StudyOptions, progress: Progress) -> Study:
    """Run what is missing, write table, numbers and pictures, and return the table.

    Raises:
        ValueError: a recipe is of another kind, or the data set folder is broken.
    """
    protocol = _protocol(options, progress)
    outcomes = compare(protocol, options.out, progress)
    videos = protocol.videos(protocol.seeds[0])
    measured = document(outcomes, _comparison(options, protocol, videos), options.draws)
    networks = {name_of(run): _network(run, protocol, videos, options.out) for run in protocol.runs}
    transferred = transfer_numbers(options.transfer, protocol.runs, networks, options.out, progress)
    found = requirements(measured, phantoms=options.data is None)
    pages = [markdown(measured), transfer_markdown(transferred), as_markdown(found) if found else ""]
    table = "\n".join(page for page in pages if page)
    numbers = measured | {"transfer": transferred, "requirements": as_rows(found)}
    for folder in filter(None, (options.out, options.docs)):
        _write(folder, table, numbers)
        # Pictures of patients stay out of the documentation.
        shown = 1 if options.data is None or folder == options.out else 0
        known, asked = videos.train, videos.tests["in_domain"]
        draw_explanations(protocol.runs, networks, (known, asked), folder / "coreecho", shown=shown)
    return Study(table=table, holds=all(each.met for each in found))


def _write(folder: Path, table: str, numbers: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coreecho.md").write_text(table, encoding="utf-8")
    text = json.dumps(without_nan(numbers), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "coreecho.json").write_text(text + "\n", encoding="utf-8")


def without_nan(value: Any) -> Any:
    """Return a document with null for what is no number, such as the order of embeddings that have all become one."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _network(run: AnyEchoRun, protocol: Protocol, videos: SeedVideos, out: Path) -> Any:
    """Return the network of the first seed."""
    seed = protocol.seeds[0]
    return trained_network(seeded(run, seed), seed_folder(run, seed, videos, out))


def _protocol(options: StudyOptions, progress: Progress) -> Protocol:
    named = (with_weights(echo_run(name), options.weights) for name in (options.recipe, *options.baselines))
    runs = tuple(with_speed(run, fast=options.fast) for run in named)
    if not isinstance(runs[0], CoReEchoRun) or any(isinstance(run, CoReEchoRun) for run in runs[1:]):
        msg = f"{options.recipe} against {', '.join(options.baselines)}: expected a recipe of CoReEcho against end-to-end ones"
        raise ValueError(msg)
    return Protocol(
        runs=runs,
        seeds=tuple(range(options.first_seed, options.first_seed + options.seeds)),
        videos=_videos(options, runs[0], progress),
        all_clips=options.all_clips,
        device=options.device,
    )


def _videos(options: StudyOptions, run: AnyEchoRun, progress: Progress) -> Callable[[int], SeedVideos]:
    stores = options.out / "stores"
    if options.data is not None:
        opened = SeedVideos.of(echonet(options.data, run, stores, workers=options.workers, progress=progress))
        return lambda _seed: opened
    sizes, workers = options.sizes, options.workers
    return lambda seed: SeedVideos.of(study_phantoms(run, seed, sizes, stores, workers=workers, progress=progress))


def _comparison(options: StudyOptions, protocol: Protocol, videos: SeedVideos) -> Comparison:
    phantoms = options.data is None
    sizes = (len(videos.train.keys), len(videos.validation.keys), len(videos.tests["in_domain"].keys))
    return Comparison(
        data_set="digital phantoms, another set for each seed; out-of-domain: other scanners"
        if phantoms
        else "EchoNet-Dynamic",
        caution=_PHANTOMS if phantoms else _PATIENTS,
        sizes=sizes,
        command=options.command,
        settings=tuple(settings_of(run) for run in protocol.runs),
    )
