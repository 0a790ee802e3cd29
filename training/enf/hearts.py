"""Studies to wide crops, once: each heart is read, located and cropped by the serving path's own code and kept on disk.

A cache is named by what decides its content. Making can be killed and started again; refused studies are remembered
with their reason, so that they are counted and not tried twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from engines.errors import Refusal
from engines.preprocess.cmr import crop_pair, locate_heart
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack, Modality
from training.data.heart_arrays import source_digest
from training.data.sources.cmr_studies import CmrStudies, FoundStudies
from training.data.sources.phantom_hearts import draw_heart, draw_subject_of
from training.data.worker_pool import worker_pool
from training.enf.pairs import Pairs, wide_px

_log = structlog.get_logger()
_REPORT_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A study that gives no crop, and why."""

    key: str
    code: str
    reason: str


def phantom_studies(seed: int, count: int, *, balanced_at_percent: float | None = None) -> FoundStudies:
    """Return digital hearts as studies.

    Args:
        seed: names the set; heart i of a seed is always the same heart.
        count: how many hearts.
        balanced_at_percent: half have at most this LVEF, and hearts of the fuller half are passed over; None: as drawn.
    """
    threshold = balanced_at_percent if balanced_at_percent is not None else 0.0
    limit = (count, count) if balanced_at_percent is None else (count // 2, count - count // 2)
    chosen: dict[str, float] = {}
    taken = [0, 0]
    index = 0
    while len(chosen) < count:
        lvef = draw_subject_of(seed, index).lvef_percent
        if taken[lvef > threshold] < limit[lvef > threshold]:
            taken[lvef > threshold] += 1
            chosen[f"phantom-{seed}-{index:06d}"] = lvef
        index += 1
    kind = "as drawn" if balanced_at_percent is None else f"half with an LVEF of at most {threshold:g} %"
    return FoundStudies(name=f"digital phantoms, seed {seed}, {kind}", lvef_percent_by_key=chosen, load=_phantom_stack)


def _phantom_stack(key: str) -> CineStack:
    _, seed, index = key.split("-")
    record = draw_heart(Modality.CMR, int(seed), int(index)).record
    assert isinstance(record, CineStack)
    return record


def turned_stack(stack: CineStack, turns: int) -> CineStack:
    """Return the stack with its stored images turned counter-clockwise; all attributes but the pixel spacing stay.

    This is what a turned copy of the images says in DICOM: rows and columns swap, ImageOrientationPatient does not know.
    """
    spacing = stack.spacing_mm if turns % 2 == 0 else stack.spacing_mm[::-1]
    images: NDArray[Any] = np.ascontiguousarray(np.rot90(stack.images_SPHW, turns, axes=(2, 3)))
    return replace(stack, images_SPHW=images, spacing_mm=spacing)


def prepared_pairs(
    studies: CmrStudies, keys: Sequence[str], spec: CmrSpec, cache: Path, *, workers: int = 1
) -> tuple[Pairs, tuple[Refused, ...]]:
    """Return the crops of the studies that can be used, and the refused ones.

    Args:
        studies: where the stacks come from.
        keys: which studies, in this order.
        spec: of the preprocessing.
        cache: folder of all caches.
        workers: processes.
    """
    return turned_pairs(studies, keys, spec, cache, turns=(0,), workers=workers)[0]


def turned_pairs(  # noqa: PLR0913 - which studies, turned how, and where they are kept
    studies: CmrStudies,
    keys: Sequence[str],
    spec: CmrSpec,
    cache: Path,
    *,
    turns: Sequence[int],
    workers: int = 1,
) -> list[tuple[Pairs, tuple[Refused, ...]]]:
    """Return the same for stored images turned by each number of quarter turns; a study is read once for all."""
    folders = {each: cache / _digest(studies, spec, each) for each in turns}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    missing = [key for key in keys if not all(_file(folder, key).exists() for folder in folders.values())]
    _follow(_made(partial(_make, studies, spec, folders), missing, workers), len(missing))
    return [_gathered(studies, keys, spec, folder) for folder in folders.values()]


def _gathered(
    studies: CmrStudies, keys: Sequence[str], spec: CmrSpec, folder: Path
) -> tuple[Pairs, tuple[Refused, ...]]:
    crops, found, refused = [], [], []
    for key in keys:
        with np.load(_file(folder, key)) as stored:
            if "wide" in stored:
                crops.append(stored["wide"])
                found.append(key)
            else:
                refused.append(Refused(key=key, **json.loads(str(stored["refusal"]))))
    lvef = np.array([studies.lvef_percent(key) for key in found], np.float64)
    wide = np.stack(crops) if crops else np.zeros((0, 2, *[wide_px(spec.size_px)] * 2), np.float32)
    return Pairs(wide_N2WW=wide, lvef_percent=lvef, keys=tuple(found), spec=spec), tuple(refused)


def wide_crop(stack: CineStack, spec: CmrSpec) -> NDArray[np.float32]:
    """Return float32 [2, W, W], W = ``wide_px(spec.size_px)``.

    Raises:
        InputRefused: as ``prepare_cmr``.
    """
    return crop_pair(locate_heart(stack, spec), spec, wide_px(spec.size_px)).astype(np.float32)


def _made(make: Callable[[str], bool], keys: list[str], workers: int) -> Iterable[bool]:
    if workers == 1 or len(keys) < 2 * workers:
        yield from map(make, keys)
        return
    with worker_pool(workers) as pool:
        yield from pool.imap_unordered(make, keys, chunksize=4)


def _follow(made: Iterable[bool], total: int) -> None:
    refused = 0
    for done, usable in enumerate(made, start=1):
        refused += not usable
        if done % _REPORT_EVERY == 0 or done == total:
            _log.info("hearts.made", done=done, total=total, refused=refused)


def _make(studies: CmrStudies, spec: CmrSpec, folders: dict[int, Path], key: str) -> bool:
    """Read one study and write its crops for every turn; False when the last of them was refused."""
    try:
        stack: CineStack | Refusal = studies.read(key).stack
    except Refusal as refusal:
        stack = refusal
    content: dict[str, Any] = {}
    for turns, folder in folders.items():
        content = _content(stack, spec, turns)
        file = _file(folder, key)
        partial_file = file.with_suffix(".partial.npz")
        np.savez(partial_file, **content)
        partial_file.replace(file)
    return "wide" in content


def _content(stack: CineStack | Refusal, spec: CmrSpec, turns: int) -> dict[str, Any]:
    try:
        if isinstance(stack, Refusal):
            raise stack
        return {"wide": wide_crop(turned_stack(stack, turns), spec)}
    except Refusal as refusal:
        return {"refusal": np.array(json.dumps({"code": refusal.code.value, "reason": refusal.reason}))}


def _file(folder: Path, key: str) -> Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"


def _digest(studies: CmrStudies, spec: CmrSpec, turns: int) -> str:
    text = json.dumps(
        [studies.name, spec.model_dump(mode="json"), turns, wide_px(spec.size_px), source_digest(Modality.CMR)]
    )
    return f"pairs-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
