"""B-mode clip to square, sector-masked clips in equal time steps; the door to the versions of this preprocessing.

Frames are asked for one at a time and reduced at once, so that memory does not grow with the clip. Called by
``registry.prepare``. Version 1 stands here; version 2 in ``echo_clean``.

Letters: K clip, T frame of a clip, H row, W column, S side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.echo_clean import prepare_clean
from engines.preprocess.echo_sector import Sector, find_sector, region_px_of
from engines.preprocess.echo_steps import check_time_base, nearest_frames, starts_ms
from engines.preprocess.registry import Prepared
from engines.preprocess.resample import area_weights
from engines.preprocess.spec import EchoSpec
from engines.records import CineLoop


def prepare_echo(loop: CineLoop, spec: EchoSpec) -> Prepared:
    """Cut ``spec.clips`` evenly spaced clips out of a loop, as the version of the spec says.

    Returns:
        ``clip`` uint8 [K, 1, T, S, S]; K is smaller where the loop has no room for that many different starts.

    Raises:
        InputRefused: too short, too slow, in colour, or without a sector.
    """
    return _VERSIONS[spec.preprocess_version](loop, spec)


def _by_motion(loop: CineLoop, spec: EchoSpec) -> Prepared:
    """Version 1: the sector is the convex hull of what moves; overlays inside it stay."""
    check_time_base(loop, spec)
    sector = find_sector(loop, spec)
    _check_grey(loop, spec)
    starts, notes = starts_ms(loop, spec)
    frames_KT = np.stack([nearest_frames(loop.frame_times_ms, start, spec) for start in starts])
    wanted = np.unique(frames_KT[frames_KT >= 0])
    reduced = _reduced(loop, sector, wanted.tolist(), spec)
    clip = np.zeros((len(starts), 1, spec.clip_frames, spec.size_px, spec.size_px), np.uint8)
    clip[:, 0][frames_KT >= 0] = reduced[np.searchsorted(wanted, frames_KT[frames_KT >= 0])]
    source = replace(loop.source, frame_numbers=tuple(int(index) + 1 for index in wanted))
    return Prepared(arrays={"clip": clip}, sources=(source,), region_px=region_px_of(sector, loop), notes=notes)


def _check_grey(loop: CineLoop, spec: EchoSpec) -> None:
    spread = loop.frames.chroma_spread(len(loop.frames) // 2)
    if spread > spec.chroma_spread_max:
        raise InputRefused(
            RefusalCode.COLOUR_DOPPLER,
            f"the image is coloured (departure from grey {spread:.0f} of 255, at most {spec.chroma_spread_max:.0f}); "
            "a grey-scale (B-mode) clip is expected",
        )


def _reduced(loop: CineLoop, sector: Sector, indices: list[int], spec: EchoSpec) -> NDArray[np.uint8]:
    """Masked, area-averaged squares of the asked frames, uint8 [N, S, S]; one full frame in memory at a time."""
    left, top, right, bottom = sector.square_px
    height, width = loop.frames.shape_HW
    rows_SH = area_weights(spec.size_px, height, top, bottom)
    columns_WS = area_weights(spec.size_px, width, left, right).T
    reduced = np.empty((len(indices), spec.size_px, spec.size_px), np.uint8)
    for position, frame in enumerate(loop.frames.luma(indices)):
        square = rows_SH @ (frame * sector.mask_HW) @ columns_WS
        reduced[position] = np.clip(np.rint(square), 0, 255)
    return reduced


_VERSIONS: Mapping[int, Callable[[CineLoop, Any], Prepared]] = {1: _by_motion, 2: prepare_clean}
"""Each takes the spec of its own version."""
