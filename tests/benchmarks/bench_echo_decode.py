"""JPEG echo clip to tensor on one core: the luma plane as it is stored against pydicom's way by red, green and blue.

A clip of 65 frames of 456 x 576, as an Acuson wrote it where the sample files are (``CARDIAC_SAMPLE_DATA``), else a phantom as
long. Before anything is timed, the luma of all frames must be that of pydicom's own raw decoding, bit for bit. All arms run in
one process, one after the other in every round. The arms to the tensor end with the same preprocessing, which reads some frames
twice, first to find the sector and colour, then for the clips; the last arm keeps all frames in memory and is spared the look
for colour.

    python -m tests.benchmarks.bench_echo_decode --out echo_decode.json
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.pixels.utils import iter_pixels

from engines.decode.echo import decode_echo
from engines.preprocess.registry import Prepared, prepare
from engines.records import ArrayFrames, CineLoop
from tests.benchmarks.interleave import interleaved
from training.phantoms.dicom import Patient, Study, write_echo
from training.phantoms.echo import draw_scan, rendered
from training.phantoms.subjects import draw_subject
from training.recipes.view_small import echo_clean_spec

SAMPLE = "us/echo_a4c_acuson_sequoia_65f_jpegbaseline.dcm"
FRAMES = 65
SPEC = echo_clean_spec(size_px=112, clip_frames=36, clips=8)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
AT_LEAST = 2.0
"""How many times faster than pydicom's default way the engine's is meant to be."""


def main() -> int:
    """Measure and write; 1 when the luma differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    name, content = clip()
    correct = same_luma(content)
    taken = interleaved(arms_of(content), options.rounds, clock=time.process_time)
    rows = [row(arm, times, taken, correct) for arm, times in taken.items()]
    environment = {each: version(each) for each in ("pydicom", "pillow", "numpy")} | {"machine": platform.machine()}
    result = {"name": f"Echo clip to tensor, one core: {name}", "rows": rows, "environment": environment}
    options.out.write_text(json.dumps(result))
    return 0 if correct else 1


def clip() -> tuple[str, bytes]:
    """What is decoded, and its name."""
    sample = Path(os.environ.get("CARDIAC_SAMPLE_DATA", "")) / SAMPLE
    if sample.exists():
        return "Acuson, 65 frames of 456 x 576", sample.read_bytes()
    rng = np.random.default_rng(1)
    subject = draw_subject(rng)
    scan = replace(draw_scan(rng, subject), frames=FRAMES, frame_ms=37.0)
    study = Study(key="bench", number=1, patient=Patient(patient_id="BENCH"), subject=subject, description="Bench")
    with tempfile.TemporaryDirectory() as folder:
        (file,) = write_echo(study, scan, rendered(subject, scan, rng), Path(folder))
        return f"phantom, {FRAMES} frames of {scan.height_px} x {scan.width_px}", file.read_bytes()


def same_luma(content: bytes) -> bool:
    """Whether the frames are channel 0 of pydicom's raw decoding, all of them, in every bit."""
    loop = opened(content)
    raw = iter_pixels(io.BytesIO(content), raw=True)
    found = loop.frames.luma(range(len(loop.frames)))
    return all(np.array_equal(frame[..., 0], luma) for frame, luma in zip(raw, found, strict=True))


def opened(content: bytes) -> CineLoop:
    """The clip as the engine opens it."""
    (loop,) = decode_echo([io.BytesIO(content)], stored_luma=True)
    return loop


def arms_of(content: bytes) -> dict[str, Callable[[], Any]]:
    """Every arm as a function without arguments."""
    return {
        "luma: engine": lambda: all_luma(opened(content)),
        "luma: pydicom, RGB": lambda: by_colour(content),
        "luma: pydicom, raw": lambda: [frame[..., 0] for frame in iter_pixels(io.BytesIO(content), raw=True)],
        "tensor: engine": lambda: prepare(opened(content), SPEC),
        "tensor: pydicom, RGB": lambda: prepare(decode_echo([io.BytesIO(content)])[0], SPEC),
        "tensor: pydicom, all frames at once, no look for colour": lambda: by_colour_to_tensor(content),
    }


def all_luma(loop: CineLoop) -> list[np.ndarray]:
    """Luma of all frames."""
    return list(loop.frames.luma(range(len(loop.frames))))


def by_colour(content: bytes) -> list[np.ndarray]:
    """Luma of pydicom's default result, red, green and blue."""
    return [np.asarray(np.rint(frame @ LUMA), np.uint8) for frame in iter_pixels(io.BytesIO(content))]


def by_colour_to_tensor(content: bytes) -> Prepared:
    """All frames in memory first, then the same preprocessing, which is spared the look for colour."""
    frames = ArrayFrames(frames_THW=np.stack(by_colour(content)))
    return prepare(replace(opened(content), frames=frames), SPEC)


def row(arm: str, times_ms: list[float], taken: dict[str, list[float]], correct: bool) -> dict[str, Any]:
    """What one arm did."""
    engine = taken[f"{arm.split(':', maxsplit=1)[0]}: engine"]
    ratio = statistics.median(time / own for time, own in zip(times_ms, engine, strict=True))
    peer = arm.endswith("RGB")
    return {
        "what": arm,
        "median ms": statistics.median(times_ms),
        "times the engine": ratio,
        "at least 2x": "" if not peer else "yes" if ratio >= AT_LEAST else "no",
        "correct": correct,
    }


if __name__ == "__main__":
    sys.exit(main())
