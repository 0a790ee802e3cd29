"""Real clips whose view somebody has named, as further training loops of the view check.

A folder holds DICOM files and ``views.csv`` with the columns ``file`` and ``view``. Such loops only train: thresholds and
measurements come from digital phantoms alone. The pixels stay where they are, only the weights leave.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.decode.echo import MOST_CANDIDATES, decode_echo
from engines.errors import Refusal
from engines.predictors.view_check import gate_frames
from engines.preprocess.registry import prepare
from engines.preprocess.spec import EchoSpec
from training.config import ViewDataConfig
from training.data.heart_arrays import HeartArrays
from training.data.splits import Split
from training.phantoms.echo_views import VIEWS

TABLE_NAME = "views.csv"
SHARE_OF_TRAINING = 0.05
"""Of the training loops, all real clips together: they are shown again and again, turned and shifted anew each time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledLoops:
    """R real loops, prepared.

    Args:
        frames_RN1SS: uint8, the frames that the view check looks at.
        views: [R], numbers in ``VIEWS``.
        sha256: of files and labels.
    """

    frames_RN1SS: NDArray[np.uint8]
    views: tuple[int, ...]
    sha256: str


def labelled_loops(root: Path, config: ViewDataConfig) -> LabelledLoops:
    """Read the loops of a folder.

    Args:
        root: the folder.
        config: how loops are prepared, and how many frames of each are looked at.

    Raises:
        ValueError: no table, a view or a file that does not exist, or a file without a usable clip.
    """
    rows = _table(root / TABLE_NAME)
    contents = [(root / name).read_bytes() for name, _ in rows]
    frames = [_frames(name, content, config) for (name, _), content in zip(rows, contents, strict=True)]
    views = tuple(VIEWS.index(view) for _, view in rows)
    parts = [hashlib.sha256(content).hexdigest() for content in contents]
    digest = hashlib.sha256(f"{parts}{views}".encode()).hexdigest()
    return LabelledLoops(frames_RN1SS=np.stack(frames), views=views, sha256=digest)


def with_labelled_loops(arrays: HeartArrays, split: Split, loops: LabelledLoops) -> tuple[HeartArrays, Split]:
    """Return the arrays with the real loops behind the others, and the split in which they train, repeated."""
    count, first = len(loops.views), len(arrays.clips)
    rows = np.tile(np.arange(first, first + count), max(1, round(SHARE_OF_TRAINING * len(split.train) / count)))
    views = np.asarray(loops.views, np.float32)[:, None]
    looked_at = np.full(count, loops.frames_RN1SS.shape[1], arrays.clips.dtype)
    extended = replace(
        arrays,
        inputs=np.concatenate([arrays.inputs, loops.frames_RN1SS]),
        targets=np.concatenate([arrays.targets, views]),
        clips=np.concatenate([arrays.clips, looked_at]),
        sha256=hashlib.sha256(f"{arrays.sha256}{loops.sha256}".encode()).hexdigest(),
    )
    return extended, replace(split, train=np.concatenate([split.train, rows]))


def _table(file: Path) -> Sequence[tuple[str, str]]:
    if not file.is_file():
        raise ValueError(f"{file.parent} has no {TABLE_NAME}; write one with the columns file and view")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [(row.get("file") or "", row.get("view") or "") for row in csv.DictReader(lines)]
    if not rows:
        raise ValueError(f"{TABLE_NAME} names no clip; expected a row for each, with the columns file and view")
    for name, view in rows:
        if view not in VIEWS:
            raise ValueError(f"{TABLE_NAME} calls {name or 'a clip'} {view!r}; expected one of {', '.join(VIEWS)}")
        if not (file.parent / name).is_file():
            raise ValueError(
                f"{TABLE_NAME} names {name!r}, which is not in the folder; put it there or take the row out"
            )
    return rows


def _frames(name: str, content: bytes, config: ViewDataConfig) -> NDArray[np.uint8]:
    """The frames looked at, [N, 1, S, S]; a clip that has fewer shows its last one again."""
    assert isinstance(config.preprocess, EchoSpec)
    try:
        (loop, *_) = decode_echo([BytesIO(content)], most=MOST_CANDIDATES, stored_luma=True)
        clip = prepare(loop, config.preprocess).arrays["clip"]
    except Refusal as refusal:
        raise ValueError(f"{name} gives no clip: {refusal.reason}; take it out of {TABLE_NAME}") from refusal
    frames = gate_frames(clip, config.frames)
    return frames[np.minimum(np.arange(config.frames), len(frames) - 1)]
