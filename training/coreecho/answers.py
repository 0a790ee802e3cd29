"""A trained network asked about many videos: fixed clips or all of them, in batches of clips, averaged per video."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.coreecho.config import AnyEchoRun
from training.coreecho.evaluation import Answers, Clips
from training.coreecho.videos import Videos, all_clips, fixed_clips

_BATCH_CLIPS = 32
FloatArray = NDArray[np.float64]
Rows = NDArray[np.int64]


def answers_of(  # noqa: PLR0913 - who is asked, about what, by which protocol, and where it runs
    network: nn.Module,
    videos: Videos,
    run: AnyEchoRun,
    *,
    rows: Rows | None = None,
    clips: Clips = "fixed",
    device: str = "cpu",
) -> Answers:
    """Return what a network says of videos.

    Args:
        network: clip to ``ef`` and ``embedding``; it is left in evaluation mode.
        videos: asked about.
        run: says how clips are cut.
        rows: of the videos; all where None.
        clips: "fixed" for the run's number of evenly spaced starts, "all" for every start.
        device: where the network is.
    """
    asked = np.arange(len(videos.keys)) if rows is None else rows
    network.eval()
    cut = all_clips if clips == "all" else fixed_clips
    given = [_of_video(network, cut(videos, int(row), run), device) for row in asked]
    return Answers(
        keys=tuple(videos.keys[row] for row in asked),
        patients=tuple(videos.patients[row] for row in asked),
        truth_percent=np.asarray(videos.ef_percent[asked], np.float64),
        ef_percent=np.array([ef.mean() for ef, _ in given]),
        clip_sd_percent=np.array([ef.std() for ef, _ in given]),
        embeddings_NE=np.stack([embeddings.mean(axis=0) for _, embeddings in given]),
    )


@torch.inference_mode()
def _of_video(network: nn.Module, clips_K1TSS: NDArray[np.uint8], device: str) -> tuple[FloatArray, FloatArray]:
    """Return the answers [K] and embeddings [K, E] of the clips of a video."""
    batches = [network(torch.from_numpy(batch).to(device)) for batch in _batches(clips_K1TSS)]
    ef = torch.cat([batch["ef"][:, 0] for batch in batches])
    embeddings = torch.cat([batch["embedding"] for batch in batches])
    return ef.double().cpu().numpy(), embeddings.double().cpu().numpy()


def _batches(clips: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(clips), _BATCH_CLIPS):
        yield clips[start : start + _BATCH_CLIPS]
