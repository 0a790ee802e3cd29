"""Training steps a second: the field's outer step and CoReEcho's first stage, in FP32, TF32 and BF16, compiled or not.

All start from the same weights and see the same batch again and again, so that the first error of each must agree with
that of FP32; one that does not scores nothing. The field's fit needs more bits than TF32 has, and may well be refused.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from tests.benchmarks.on_gpu.results import Recorder

Step = Callable[[], float]
"""Takes one step and returns the error before it."""

MODES = ("fp32", "tf32", "bf16")
TOLERANCES = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""Relative difference of the first error from that of FP32."""
_NEEDS_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained: a name, its batch in words, and what makes the next step of a fresh run."""

    name: str
    batch: str
    make: Callable[[str, bool], Step]


def measure_training(works: Sequence[Work], device: str, steps: int, section: Recorder, *, compiled: bool) -> None:
    """Add one row for every work and mode."""
    modes = MODES if device != "cpu" else ("fp32", "bf16")
    if device == "cpu":
        section.leave_out("TF32", "a CPU has none")
    if not compiled:
        section.leave_out("compiled steps", "they were not asked for (--compile)")
    for work in works:
        reference: float | None = None
        for graph in (False, True) if compiled else (False,):
            for mode in modes:
                what = f"{work.name}, {mode}{', compiled' if graph else ''}"
                if section.has_time(what, _NEEDS_S):
                    reference = _measured(work, mode, graph, steps, reference, device, section)


def _measured(  # noqa: PLR0917 - one work in one mode
    work: Work, mode: str, compiled: bool, steps: int, reference: float | None, device: str, section: Recorder
) -> float | None:
    """Add the row of a work in a mode, and return the first error of FP32."""
    what = f"{work.name}, {mode}{', compiled' if compiled else ''}"
    try:
        with precision(mode):
            first, taken_s, peak_bytes = _steps(work.make(mode, compiled), steps, device)
    except Exception as error:  # noqa: BLE001 - a compiler may raise anything; the other modes are still measured
        section.leave_out(what, f"{type(error).__name__}: {error}")
        return reference
    expected = first if reference is None else reference
    apart = abs(first - expected) / abs(expected)
    if not apart <= TOLERANCES[mode] or not math.isfinite(first):
        section.reject(
            what,
            f"the first error is {first:.6g}, in FP32 {expected:.6g}: {apart:.2g} apart, limit {TOLERANCES[mode]:g}",
        )
        return expected
    section.row(
        what=work.name,
        batch=work.batch,
        precision=mode,
        compiled=compiled,
        **{
            "steps/s": 1 / statistics.median(taken_s),
            "median ms": 1000 * statistics.median(taken_s),
            "slowest ms": 1000 * max(taken_s),
            "steps": len(taken_s),
            "GPU MB": None if peak_bytes is None else peak_bytes / 1e6,
            "first error": first,
            "apart from FP32": apart,
        },
    )
    return expected


def _steps(step: Step, count: int, device: str) -> tuple[float, list[float], int | None]:
    """First error, seconds of the steps after two that are not counted, and the most memory that was held."""
    import torch

    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    first = step()
    step()
    taken_s = []
    for _ in range(count):
        started_s = time.perf_counter()
        step()  # returns a number, so it has waited for the GPU
        taken_s.append(time.perf_counter() - started_s)
    return first, taken_s, int(torch.cuda.max_memory_allocated()) if on_gpu else None


@contextmanager
def precision(mode: str) -> Iterator[None]:
    """Let products use TF32 or not, and put it back."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if mode == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = mode == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _autocast(device: str, mode: str) -> Any:
    import torch

    return torch.autocast(device, torch.bfloat16) if mode == "bf16" else nullcontext()


def works_for(device: str) -> list[Work]:
    """Return the field and CoReEcho at their published sizes; small on a CPU."""
    if device == "cpu":
        import torch

        torch.set_num_threads(1)
    field_recipe = "enf_small" if device == "cpu" else "enf_published"
    contrast_recipe = "coreecho_small" if device == "cpu" else "coreecho_published"
    return [_field_work(field_recipe, device), _contrast_work(contrast_recipe, device)]


def _field_work(recipe: str, device: str) -> Work:
    from training.config import load_recipe
    from training.enf.config import EnfRun

    run = load_recipe(recipe)
    assert isinstance(run, EnfRun)
    if device == "cpu":
        run = dataclasses.replace(run, meta=dataclasses.replace(run.meta, batch_frames=2))
    size = run.preprocess.size_px
    batch = f"{run.meta.batch_frames} frames of {size} x {size}, {run.meta.pixel_fraction:g} of the pixels"
    return Work(name=f"field, outer step ({recipe})", batch=batch, make=lambda *how: _field_steps(run, device, *how))


def _field_steps(run: Any, device: str, mode: str, compiled: bool) -> Step:
    import torch

    from training.enf import meta
    from training.models.enf import Enf

    torch.manual_seed(run.seed)
    decoder = Enf(run.shape).to(device)
    state = meta.MetaState(enf=decoder, optimizer=torch.optim.Adam(decoder.parameters(), lr=run.meta.learning_rate))
    hearts = _noise_hearts(run)
    loss = torch.compile(meta.outer_loss) if compiled else meta.outer_loss

    def in_mode(*arguments: Any) -> Any:
        with _autocast(device, mode):
            return loss(*arguments)

    def step() -> float:
        with mock.patch.object(meta, "outer_loss", in_mode):
            return float(meta.outer_step(run, state, hearts))  # the iteration stays: the same batch again

    return step


def _noise_hearts(run: Any, count: int = 8) -> Any:
    """Wide crops of noise: what a view costs does not depend on what it shows."""
    from training.enf.pairs import Pairs

    wide = 2 * run.preprocess.size_px
    return Pairs(
        wide_N2WW=np.random.default_rng(0).random((count, 2, wide, wide), np.float32),
        lvef_percent=np.linspace(20.0, 60.0, count),
        keys=tuple(f"noise {number}" for number in range(count)),
        spec=run.preprocess,
    )


def _contrast_work(recipe: str, device: str) -> Work:
    from training.coreecho.config import CoReEchoRun
    from training.coreecho.protocol import echo_run

    run = echo_run(recipe)
    assert isinstance(run, CoReEchoRun)
    clips = 4 if device == "cpu" else 2 * run.stage1.batch_videos
    batch = f"{clips} clips of {run.clips.frames} frames, {run.preprocess.size_px} x {run.preprocess.size_px}"
    return Work(
        name=f"Rank-N-Contrast, stage 1 ({recipe})",
        batch=batch,
        make=lambda *how: _contrast_steps(run, clips, device, *how),
    )


def _contrast_steps(run: Any, clips: int, device: str, mode: str, compiled: bool) -> Step:
    """Steps of stage 1 without dropout, whose random numbers differ from mode to mode; the error is the contrast."""
    import torch

    from training.coreecho.config import Speed
    from training.coreecho.networks import build_network
    from training.coreecho.steps import ContrastStep

    torch.manual_seed(run.seed)
    own = dataclasses.replace(
        run,
        weights=None,
        dropout=0.0,
        encoder=dataclasses.replace(run.encoder, dropout=0.0),
        speed=Speed(autocast_bfloat16=mode == "bf16", compile=compiled),
    )
    stage = ContrastStep(own, build_network(own).to(device))
    stage.begin_epoch()
    shape = (clips, 1, run.clips.frames, run.preprocess.size_px, run.preprocess.size_px)
    shown = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    ef_percent = torch.linspace(20.0, 70.0, clips).to(device)
    return lambda: stage.step(shown, ef_percent).contrast
