"""The time base of an echo clip: whether a loop is long and fast enough, and which frames a clip is made of.

Frames are chosen by time, not by number, so that clips of scanners with different frame rates are alike. Called by ``echo``
and ``echo_clean``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.spec import EchoSpec
from engines.records import CineLoop


def check_time_base(loop: CineLoop, spec: EchoSpec) -> None:
    """Refuse loops that are too short or too slow.

    Raises:
        InputRefused: TOO_FEW_FRAMES.
    """
    times = loop.frame_times_ms
    interval = float(np.max(np.diff(times)))
    if len(times) < spec.frames_min or times[-1] < spec.duration_min_ms:
        raise InputRefused(
            RefusalCode.TOO_FEW_FRAMES,
            f"the clip has {len(times)} frames in {times[-1]:.0f} ms; at least {spec.frames_min} frames and "
            f"{spec.duration_min_ms:.0f} ms (one heart beat) are expected",
        )
    if interval > spec.frame_interval_max_ms:
        raise InputRefused(
            RefusalCode.TOO_FEW_FRAMES,
            f"up to {interval:.0f} ms lie between two frames; at most {spec.frame_interval_max_ms:.0f} ms are expected",
        )


def starts_ms(loop: CineLoop, spec: EchoSpec) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Evenly spaced clip starts, and what the reader must know about a loop that is shorter than a clip.

    Raises:
        InputRefused: the loop is shorter than a clip and the spec does not fill it up.
    """
    room_ms = float(loop.frame_times_ms[-1]) - (spec.clip_frames - 1) * spec.frame_step_ms
    if room_ms >= 0:
        count = min(spec.clips, 1 + int(room_ms // spec.frame_step_ms))
        return np.linspace(0.0, room_ms, count) if count > 1 else np.array([room_ms / 2]), ()
    if spec.short_loop == "refuse":
        raise InputRefused(
            RefusalCode.TOO_FEW_FRAMES,
            f"the clip lasts {loop.frame_times_ms[-1]:.0f} ms; {(spec.clip_frames - 1) * spec.frame_step_ms:.0f} ms are expected",
        )
    return np.zeros(1), (f"The clip is {-room_ms:.0f} ms shorter than the engine's window; its end was left black.",)


def nearest_frames(times_ms: NDArray[np.float64], start_ms: float, spec: EchoSpec) -> NDArray[np.int64]:
    """Index of the frame nearest to each step of a clip; -1 beyond the end of the loop."""
    wanted = start_ms + spec.frame_step_ms * np.arange(spec.clip_frames)
    right = np.clip(np.searchsorted(times_ms, wanted), 1, len(times_ms) - 1)
    nearer_left = wanted - times_ms[right - 1] <= times_ms[right] - wanted
    nearest = np.where(nearer_left, right - 1, right)
    return np.where(wanted <= times_ms[-1] + spec.frame_step_ms / 2, nearest, -1)
