"""Meta-learning of the decoder: after a few gradient steps on its contexts any frame must be reproduced well.

A run takes up where it was interrupted. A loss or a gradient that is not finite, or a loss far above what it was, rolls the
run back to its last good state with half the learning rate; the third time in a row it stops.

Source: Wiers et al., MIDL 2026 (Adam, random pixels, three inner steps); Finn et al., "Model-Agnostic Meta-Learning
for Fast Adaptation of Deep Networks", ICML 2017 (first and second order).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.enf.config import EnfRun
from training.enf.pairs import Pairs
from training.models.enf import Enf
from training.models.enf_frozen import (
    FittedFrames,
    decode_frames,
    field_constants,
    field_factors,
    first_step,
    fit_frames,
)
from training.models.enf_orbits import PairTables, pair_tables
from training.models.latent_cloud import initial_cloud

_REPORT_EVERY = 50
_ROLLBACKS_MAX = 3
_RUNAWAY = 20.0
_CURVE = "curve.json"
_log = structlog.get_logger()


class MetaLearningDiverged(RuntimeError):
    """The loss left the finite world again and again."""


@dataclass
class MetaState:
    """A run between two outer steps; ``history`` holds [iteration, PSNR in dB] of the training frames.

    ``rollbacks`` counts all of them and is part of what draws the next batch; ``rollbacks_in_a_row`` counts those since the
    last good state; ``seconds`` is the time of all outer steps, those before an interruption included.
    """

    enf: Enf
    optimizer: torch.optim.Optimizer
    iteration: int = 0
    rollbacks: int = 0
    rollbacks_in_a_row: int = 0
    rate_factor: float = 1.0
    smooth_error: float | None = None
    seconds: float = 0.0
    history: list[tuple[int, float]] = field(default_factory=list)


def start_context(run: EnfRun) -> Tensor:
    """Return the context that every latent starts from, [C]."""
    return torch.full((run.shape.context_width,), 1.0 / run.shape.context_width)


def meta_learn(
    run: EnfRun,
    pairs: Pairs,
    folder: Path,
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Enf:
    """Train the decoder, or finish what is in ``folder``; it comes back on the CPU.

    Args:
        run: recipe.
        pairs: training hearts.
        folder: of checkpoint and curve.
        device: of the outer steps, such as ``cuda``; a checkpoint goes on on any.
        progress: called with iterations done and to do.

    Raises:
        MetaLearningDiverged: after repeated roll-backs.
    """
    torch.manual_seed(run.seed)
    enf = Enf(run.shape).to(device)
    state = MetaState(enf=enf, optimizer=torch.optim.Adam(enf.parameters(), lr=run.meta.learning_rate))
    digest = meta_digest(run, pairs)
    _resume(folder, state, digest)
    good = _snapshot(state)
    while state.iteration < run.meta.iterations:
        started = time.perf_counter()
        error = outer_step(run, state, pairs)
        state.seconds += time.perf_counter() - started
        if not _sound(state, error):
            _roll_back(state, good)
            continue
        state.smooth_error = error if state.smooth_error is None else 0.98 * state.smooth_error + 0.02 * error
        state.iteration += 1
        if state.iteration % _REPORT_EVERY == 0 or state.iteration == run.meta.iterations:
            _report(state, run)
            state.rollbacks_in_a_row = 0
            _save(folder, state, digest)
            good = _snapshot(state)
            if progress is not None:
                progress(state.iteration, run.meta.iterations)
    return enf.cpu().eval()


def outer_step(run: EnfRun, state: MetaState, pairs: Pairs) -> float:
    """Take one outer step and return the mean squared error after the fit.

    Where the error or its gradient is not finite no weight is changed, and the error returned is infinite.
    """
    rng = np.random.default_rng([run.seed, state.iteration, state.rollbacks])
    frames, tables = _batch(run, pairs, rng)
    device = next(state.enf.parameters()).device
    _set_rate(state, run)
    state.optimizer.zero_grad(set_to_none=True)
    loss = outer_loss(run, state.enf, frames.to(device), tables.to(device))
    if not bool(torch.isfinite(loss)):
        return math.inf
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.enf.parameters(), run.meta.gradient_clip, error_if_nonfinite=False)
    if not bool(torch.isfinite(norm)):
        return math.inf
    state.optimizer.step()
    return float(loss.detach())


def outer_loss(run: EnfRun, enf: Enf, frames_FP: Tensor, tables: PairTables) -> Tensor:
    """Return the mean over frames of the error after the fit, differentiable in the decoder's weights.

    Args:
        run: fit and order.
        enf: decoder.
        frames_FP: grey values at the pixels of ``tables``, in its order.
        tables: of the drawn pixels.
    """
    constants = field_constants(field_factors(enf, tables, float(initial_cloud(run.shape.latents, 1).window[0])))
    start = start_context(run).to(frames_FP.device)

    def fitted() -> FittedFrames:
        first = first_step(start, constants)
        return fit_frames(frames_FP, start, first, constants, steps=run.fit.steps, learning_rate=run.fit.learning_rate)

    if run.meta.order == "second":
        return fitted().errors.mean()
    with torch.no_grad():
        contexts = fitted().contexts
    return ((decode_frames(contexts, constants) - frames_FP) ** 2).mean()


def _batch(run: EnfRun, pairs: Pairs, rng: np.random.Generator) -> tuple[Tensor, PairTables]:
    hearts = rng.integers(len(pairs), size=(run.meta.batch_frames + 1) // 2)
    frames = torch.from_numpy(pairs.random_views(hearts, rng)).flatten(0, 1)[: run.meta.batch_frames]
    size = pairs.spec.size_px
    count = max(1, round(run.meta.pixel_fraction * size * size / 4))
    orbits = np.sort(rng.permutation(size * size // 4)[:count])
    tables = pair_tables(size, run.shape.latents, run.shape.neighbours, orbits)
    return frames.flatten(1).index_select(1, tables.pixels), tables


def _set_rate(state: MetaState, run: EnfRun) -> None:
    warmup = max(1, round(run.meta.warmup_fraction * run.meta.iterations))
    done = state.iteration / run.meta.iterations
    factor = min(1.0, (state.iteration + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
    for group in state.optimizer.param_groups:
        group["lr"] = run.meta.learning_rate * state.rate_factor * factor


def _sound(state: MetaState, error: float) -> bool:
    return math.isfinite(error) and (state.smooth_error is None or error < _RUNAWAY * state.smooth_error)


def _snapshot(state: MetaState) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "enf": state.enf.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "iteration": state.iteration,
            "smooth_error": state.smooth_error,
        }
    )


def _roll_back(state: MetaState, good: dict[str, Any]) -> None:
    state.rollbacks += 1
    state.rollbacks_in_a_row += 1
    if state.rollbacks_in_a_row >= _ROLLBACKS_MAX:
        msg = f"the fit diverged {_ROLLBACKS_MAX} times in a row by iteration {state.iteration}; lower a learning rate"
        raise MetaLearningDiverged(msg)
    state.enf.load_state_dict(good["enf"])
    state.optimizer.load_state_dict(good["optimizer"])
    state.iteration, state.smooth_error = good["iteration"], good["smooth_error"]
    state.rate_factor *= 0.5
    _log.warning("meta.rolled_back", iteration=state.iteration, rollbacks=state.rollbacks)


def meta_digest(run: EnfRun, pairs: Pairs) -> str:
    """Return the SHA-256 of what decides the decoder: recipe and hearts, not the classifier."""
    parts = (run.seed, run.shape, run.fit, run.meta, pairs.sha256)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _save(folder: Path, state: MetaState, digest: str) -> None:
    names = ("rollbacks", "rollbacks_in_a_row", "rate_factor", "smooth_error", "seconds", "history")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CURVE).write_text(json.dumps({name: getattr(state, name) for name in names}) + "\n", encoding="utf-8")
    save_checkpoint(folder, state.enf, state.optimizer, Progress(epochs_done=state.iteration, run_sha256=digest))


def _resume(folder: Path, state: MetaState, digest: str) -> None:
    found = load_checkpoint(folder, state.enf, state.optimizer)
    if found is None:
        return
    if found.run_sha256 != digest:
        msg = f"{folder} holds a decoder of another run; expected {digest[:12]}, found {found.run_sha256[:12]}: move it away"
        raise ValueError(msg)
    state.iteration = found.epochs_done
    for name, value in json.loads((folder / _CURVE).read_text(encoding="utf-8")).items():
        setattr(state, name, value)
    # The curve is written before the checkpoint: killed in between, it is one point ahead.
    state.history = [point for point in state.history if point[0] <= state.iteration]


def seconds_of(folder: Path) -> float:
    """Return the time that the outer steps of a run took."""
    return float(json.loads((folder / _CURVE).read_text(encoding="utf-8"))["seconds"])


def _report(state: MetaState, run: EnfRun) -> None:
    assert state.smooth_error is not None
    psnr = -10 * math.log10(state.smooth_error)
    state.history.append((state.iteration, psnr))
    _log.info("meta.step", iteration=state.iteration, of=run.meta.iterations, psnr_db=round(psnr, 2))
