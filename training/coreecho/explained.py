"""Explanations of trained networks as files: attention of some clips, the map of the embeddings, the nearest known hearts.

Called by ``purkinje-train explain`` and by the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from training.coreecho.answers import answers_of
from training.coreecho.config import AnyEchoRun
from training.coreecho.evaluation import Answers
from training.coreecho.explain import grad_cam, nearest
from training.coreecho.explain_pictures import write_attention, write_gif, write_map, write_nearest
from training.coreecho.protocol import name_of
from training.coreecho.videos import Videos, fixed_clips

_NEIGHBOURS = 4


def draw_explanations(
    runs: Sequence[AnyEchoRun],
    networks: Mapping[str, nn.Module],
    videos: tuple[Videos, Videos],
    folder: Path,
    *,
    shown: int,
) -> None:
    """Write the pictures of several networks on the same videos, each below a folder named by its recipe.

    Args:
        runs: how clips are cut.
        networks: by ``name_of`` of the run.
        videos: training videos, and those that are explained.
        folder: receives a folder for each run.
        shown: how many videos get pictures of their own.
    """
    for run in runs:
        draw_explanation(run, networks[name_of(run)], videos, folder / run.recipe.replace("_", "-"), shown=shown)


def draw_explanation(
    run: AnyEchoRun, network: nn.Module, videos: tuple[Videos, Videos], folder: Path, *, shown: int
) -> list[Path]:
    """Write ``map.png`` of all explained videos and attention (PNG, GIF) and nearest cases of the first of them."""
    known_videos, asked_videos = videos
    known, asked = (answers_of(network, part, run) for part in videos)
    write_map(asked, folder / "map.png", seed=run.seed)
    written = [folder / "map.png"]
    neighbours = nearest(known, asked, count=_NEIGHBOURS)
    for row in _spread(asked, shown):
        clip = fixed_clips(asked_videos, row, run)[0]
        attention = grad_cam(network, clip)
        title = f"{asked.keys[row]}: answered {attention.ef_percent:.0f} %, true {asked.truth_percent[row]:.0f} %"
        stem = folder / _file_name(asked.keys[row])
        names = [stem.with_name(f"{stem.name}-{what}") for what in ("attention.png", "attention.gif", "nearest.png")]
        write_attention(clip[0], attention, title, names[0])
        write_gif(clip[0], attention, run.preprocess.frame_step_ms, names[1])
        pictures = [(fixed_clips(known_videos, each.row, run)[0, 0, 0], each) for each in neighbours[row]]
        write_nearest(clip[0, 0], title.replace(": ", "\n", 1), pictures, names[2])
        written += names
    return written


def _spread(answers: Answers, count: int) -> list[int]:
    """Return rows from the lowest to the highest true ejection fraction, evenly spaced in rank; one is the lowest."""
    order = np.argsort(answers.truth_percent, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
    return [int(order[place]) for place in places]


def _file_name(key: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in key)
