"""Prepared arrays of many digital hearts, made once and kept as memory-mapped files.

The arrays come out of ``engines.preprocess.prepare`` and nothing else, so a network is trained on exactly what the
serving path will feed it. A directory is named by what decides its content (hearts, preprocess specification and
the source code of both), so changed code never meets arrays of the old. Making can be killed and started again.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from engines.bundle.parts import TensorSpec
from engines.errors import Refusal
from engines.predictors.view_check import gate_frames
from engines.preprocess.registry import prepare
from engines.preprocess.spec import CmrSpec, EcgSpec, EchoSpec
from engines.records import Modality, Record
from training.config import DataConfig, ViewDataConfig, describe_data
from training.data.sources.echo_views import VIEW_COLUMN, draw_view
from training.data.sources.phantom_hearts import Heart, draw_heart
from training.data.targets import COLUMNS
from training.data.worker_pool import worker_pool

PENDING, REFUSED = 0, 255
_REPORT_EVERY = 50
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_WITHOUT_INFLUENCE = {"cli", "cmr_volume", "dicom", "make", "paired", "paired_ecg"}
"""Modules that write studies, or that only pairs of ECG and CMR pass through; these records do not."""
_DATA_SETS = {
    "avi",
    "camus",
    "camus_info",
    "cmr_labels",
    "cmr_studies",
    "dicom_cmr",
    "ecg_sets",
    "ecg_tables",
    "echonet",
    "echonext",
    "expert_contours",
    "hmc_qu",
    "hmc_table",
    "labelled_loops",
    "metaimage",
    "mimic_iv_ecg",
    "nifti_cmr",
    "paired_subjects",
    "phantom_clips",
    "ptb_xl",
    "reduced_loop",
    "ukbb_cmr",
    "ukbb_ecg",
    "ukbb_fields",
    "ukbb_table",
    "videos",
    "volume_tracings",
    "wfdb_ecg",
}
"""Readers of data sets; the arrays of digital hearts do not pass through them."""
_SOURCE_FOLDERS = ("engines/preprocess", "training/phantoms", "training/data/sources")

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class HeartArrays:
    """Arrays of the hearts of one data set; one row per heart.

    Args:
        inputs: [N, K, ...], up to K prepared inputs (clips) of a heart, dtype as the network takes it.
        targets: float32 [N, columns].
        clips: uint8 [N], how many clips of a heart are filled; ``REFUSED`` where the preprocessing refused it.
        sha256: of what decides the content: hearts, specification and source code.
        columns: names of the targets.
    """

    inputs: NDArray[Any]
    targets: NDArray[np.float32]
    clips: NDArray[np.uint8]
    sha256: str
    columns: tuple[str, ...] = COLUMNS

    def usable(self, hearts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the given hearts whose record was not refused."""
        return np.asarray(hearts[self.clips[hearts] != REFUSED])


def heart_arrays(root: Path, config: DataConfig, input_spec: TensorSpec, *, workers: int) -> HeartArrays:
    """Return the arrays of a data set, making those that are missing.

    Args:
        root: folder of all data sets.
        config: which hearts.
        input_spec: name, dtype and shape of the network's input; its batch axis becomes the clip axis.
        workers: processes that render hearts.

    Raises:
        ValueError: when a prepared array does not fit ``input_spec``.
    """
    digest = _content_digest(config)
    folder = root / f"{config.modality.value}-{digest[:16]}"
    if not (folder / "clips.npy").exists():
        _create(folder, config, input_spec)
    missing = np.flatnonzero(np.load(folder / "clips.npy") == PENDING)
    if len(missing):
        _fill(folder, config, input_spec, missing.tolist(), workers)
    return HeartArrays(
        inputs=np.load(folder / "inputs.npy", mmap_mode="r"),
        targets=np.load(folder / "targets.npy", mmap_mode="r"),
        clips=np.load(folder / "clips.npy"),
        sha256=digest,
        columns=columns_of(config),
    )


def _create(folder: Path, config: DataConfig, input_spec: TensorSpec) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shape = (config.hearts, inputs_per_heart(config), *input_spec.shape[1:])
    open_memmap(folder / "inputs.npy", mode="w+", dtype=np.dtype(input_spec.dtype), shape=shape).flush()
    open_memmap(
        folder / "targets.npy", mode="w+", dtype=np.float32, shape=(config.hearts, len(columns_of(config)))
    ).flush()
    (folder / "data.json").write_text(json.dumps(describe_data(config), indent=2) + "\n", encoding="utf-8")
    # Last: the folder counts as created once this file stands.
    open_memmap(folder / "clips.npy", mode="w+", dtype=np.uint8, shape=(config.hearts,)).flush()


def clips_per_heart(spec: EchoSpec | CmrSpec | EcgSpec) -> int:
    """Return how many inputs ``prepare`` makes of one record at most."""
    return spec.clips if isinstance(spec, EchoSpec) else 1


def inputs_per_heart(config: DataConfig) -> int:
    """Return how many inputs one record of a data set gives at most: clips, or frames for a view network."""
    return config.frames if isinstance(config, ViewDataConfig) else clips_per_heart(config.preprocess)


def columns_of(config: DataConfig) -> tuple[str, ...]:
    """Return the names of the targets of a data set."""
    return (VIEW_COLUMN,) if isinstance(config, ViewDataConfig) else COLUMNS


def _fill(folder: Path, config: DataConfig, input_spec: TensorSpec, missing: list[int], workers: int) -> None:
    _log.info("hearts.started", modality=config.modality.value, missing=len(missing), folder=folder.name)
    make = partial(_make_heart, folder, config, input_spec)
    if workers == 1:
        _follow(map(make, missing), len(missing))
        return
    with worker_pool(workers) as pool:
        _follow(pool.imap_unordered(make, missing, chunksize=4), len(missing))


def _follow(clips: Iterable[int], total: int) -> None:
    refused = 0
    for done, made in enumerate(clips, start=1):
        refused += made == REFUSED
        if done % _REPORT_EVERY == 0 or done == total:
            _log.info("hearts.made", done=done, total=total, refused=refused)


def _make_heart(folder: Path, config: DataConfig, input_spec: TensorSpec, index: int) -> int:
    made = _write_heart(folder, config, input_spec, index)
    # Written after the data, so that a row that counts as made is whole.
    open_memmap(folder / "clips.npy", mode="r+")[index] = made
    return made


def _write_heart(folder: Path, config: DataConfig, input_spec: TensorSpec, index: int) -> int:
    heart = _drawn(config, index)
    open_memmap(folder / "targets.npy", mode="r+")[index] = [heart.targets[name] for name in columns_of(config)]
    try:
        array = _inputs(config, heart.record, input_spec.name)
    except Refusal as refusal:
        _log.info("heart.refused", heart=index, code=refusal.code.value, reason=refusal.reason)
        return REFUSED
    inputs = open_memmap(folder / "inputs.npy", mode="r+")
    if array.shape[1:] != inputs.shape[2:] or array.dtype != inputs.dtype or not 1 <= len(array) <= inputs.shape[1]:
        raise ValueError(f"prepared {array.dtype} {array.shape}; expected {inputs.dtype} {inputs.shape[1:]}")
    inputs[index, : len(array)] = array
    return len(array)


def _drawn(config: DataConfig, index: int) -> Heart:
    if isinstance(config, ViewDataConfig):
        return draw_view(config.seed, index)
    return draw_heart(config.modality, config.seed, index)


def _inputs(config: DataConfig, record: Record, name: str) -> NDArray[Any]:
    """The clips of a record; for a view network the very frames that the view check of the engines would look at."""
    arrays = prepare(record, config.preprocess).arrays
    return gate_frames(arrays["clip"], config.frames) if isinstance(config, ViewDataConfig) else arrays[name]


def _content_digest(config: DataConfig) -> str:
    text = json.dumps(describe_data(config), sort_keys=True)
    return hashlib.sha256((text + source_digest(config.modality)).encode()).hexdigest()


def source_digest(modality: Modality) -> str:
    """Return the SHA-256 over the code that makes the arrays of a modality, blind to comments, docstrings and layout."""
    root = Path(__file__).parents[2]
    others = tuple(other.value for other in Modality if other is not modality)
    files = sorted(path for folder in _SOURCE_FOLDERS for path in (root / folder).glob("*.py"))
    code = [f"{path.relative_to(root)}:{bare_code(path)}" for path in files if not _apart(path.stem, others)]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def _apart(stem: str, others: tuple[str, ...]) -> bool:
    """Whether a module has no part in the records of a modality: it reads data sets, writes studies, or is of another."""
    of_another = stem in others or stem.startswith(tuple(f"{other}_" for other in others))
    return stem in _WITHOUT_INFLUENCE or stem in _DATA_SETS or of_another


def bare_code(path: Path) -> str:
    """Return the syntax tree of a module in words, without docstrings, comments and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
