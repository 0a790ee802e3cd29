"""A whole loop through the serving path's own sector mask and resize, frame by frame at the times it was recorded.

The loop is handed to ``engines.preprocess`` as one clip of all its frames, a step apart. So whatever version of the
preprocessing a specification names, training sees the pixels that serving will see.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engines.preprocess.registry import prepare
from engines.preprocess.spec import EchoSpec
from engines.records import CineLoop


def reduced_loop(loop: CineLoop, spec: EchoSpec) -> NDArray[np.uint8]:
    """Return every frame of a loop, masked and reduced, uint8 [T, S, S].

    The time base is not judged: how long a clip must be is decided where clips are cut.

    Raises:
        InputRefused: in colour, or without a sector.
    """
    frames = len(loop.frames)
    steps = np.arange(frames, dtype=np.float64)
    whole = spec.model_copy(
        update={
            "clips": 1,
            "clip_frames": frames,
            "frame_step_ms": 1.0,
            "frame_interval_max_ms": 1.0,
            "frames_min": 2,
            "duration_min_ms": 1.0,
        }
    )
    clip = prepare(replace(loop, frame_times_ms=steps), whole).arrays["clip"]
    return np.asarray(clip[0, 0], np.uint8)
