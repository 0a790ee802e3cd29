"""Which hearts a set of studies holds: a plain sample of the population, or one that is spread as the population is.

Called by ``make``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.phantoms.ecg import draw_ecg
from training.phantoms.subjects import Floats, draw_subject

METHODS = ("cmr", "echo", "ecg")
CANDIDATES = 40
"""Hearts drawn for each that an even sample takes."""
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
"""Step of a lattice whose every stretch is spread over the unit interval."""
_STREAMS = {"cmr": 1, "echo": 2, "ecg": 3}


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One heart of a seed, by its place in a plain sample, or by place and candidate in an even one."""

    method: str
    seed: int
    heart: tuple[int, ...]

    @property
    def name(self) -> str:
        """``<seed>-<heart>``."""
        return "-".join(map(str, (self.seed, *self.heart)))

    def generator(self) -> np.random.Generator:
        """Return the generator that draws the heart, then whatever renders it."""
        return np.random.default_rng([*_words(self.method, self.seed), *self.heart])


def plain_draws(method: str, seed: int, count: int) -> list[Draw]:
    """Return the first hearts of a seed, each drawn by itself."""
    return [Draw(method=method, seed=seed, heart=(place,)) for place in range(count)]


def even_draws(method: str, seed: int, count: int) -> list[Draw]:
    """Return hearts whose ejection fractions are spread as the population's are, one from each of ``count`` equal parts of it.

    ``CANDIDATES`` times as many are drawn and put in order of their ejection fraction; each run of ``CANDIDATES`` gives one.
    Of an ECG that one is chosen by its rank in the run, by the ejection fraction that its waves show; ranks follow a lattice
    with a random shift, so that every rank is as likely as any other, and hearts that an ECG makes look weaker or stronger
    than they are come in their share among weak and strong hearts alike. Of other methods it is any one of the run.

    Figures such as R2 and coverage scatter less from seed to seed than over a plain sample, about the same mean. The order of
    the result is random.
    """
    rng = np.random.default_rng(_words(method, seed))
    pool = [Draw(method=method, seed=seed, heart=(k, c)) for k in range(count) for c in range(CANDIDATES)]
    lvef = np.array([draw_subject(draw.generator()).lvef_percent for draw in pool])
    second = shown_lvef(pool, lvef) if method == "ecg" else rng.random(len(pool))
    shares = (_GOLDEN * np.arange(count) + rng.random()) % 1.0
    runs = np.argsort(lvef).reshape(count, CANDIDATES)
    chosen = [run[np.argsort(second[run])[int(CANDIDATES * share)]] for run, share in zip(runs, shares, strict=True)]
    return [pool[place] for place in rng.permutation(chosen)]


def shown_lvef(draws: Sequence[Draw], lvef_percent: Floats) -> Floats:
    """Return what the waves of each ECG show of the ejection fraction: their best linear reading over these hearts, percent.

    Args:
        draws: of ECGs.
        lvef_percent: true values [N].
    """
    waves = np.stack([_waves(draw) for draw in draws])
    spread = waves.std(axis=0)
    scaled = (waves - waves.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    mean = lvef_percent.mean()
    weights, *_ = np.linalg.lstsq(scaled, lvef_percent - mean, rcond=None)
    return np.asarray(mean + scaled @ weights)


def _waves(draw: Draw) -> Floats:
    """Delay, width and vector of every wave, one after the other."""
    rng = draw.generator()
    drawn = draw_ecg(draw_subject(rng), rng)
    return np.concatenate([[delay, width, *vector] for delay, width, vector in drawn.waves])


def _words(method: str, seed: int) -> list[int]:
    """What a generator of a seed begins with; negative seeds are others than positive ones."""
    return [abs(seed), int(seed < 0), _STREAMS[method]]
