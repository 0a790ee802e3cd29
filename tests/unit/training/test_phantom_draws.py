"""Even samples: spread as the population is, in their ejection fractions and in how far an ECG misleads about them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from training.phantoms.draws import CANDIDATES, METHODS, Draw, even_draws, plain_draws, shown_lvef
from training.phantoms.subjects import draw_subject

HEARTS, SEEDS = 60, 8


@cache
def lvef_of_draw(draw: Draw) -> float:
    """Ejection fraction, percent."""
    return draw_subject(draw.generator()).lvef_percent


def lvef_of(draws: list[Draw]) -> np.ndarray:
    """Ejection fractions, percent."""
    return np.array([lvef_of_draw(draw) for draw in draws])


@cache
def population() -> list[Draw]:
    """Many hearts of a seed of their own."""
    return plain_draws("ecg", 99, 2000)


@cache
def samples() -> dict[str, list[list[Draw]]]:
    """Samples of the same seeds, even and plain."""
    return {
        "even": [even_draws("ecg", seed, HEARTS) for seed in range(SEEDS)],
        "plain": [plain_draws("ecg", seed, HEARTS) for seed in range(SEEDS)],
    }


def misled(draws: list[Draw]) -> np.ndarray:
    """Square of what the waves show less what is true; one reading, mostly that of the population, reads them all."""
    known = [*population(), *draws]
    error = shown_lvef(known, lvef_of(known)) - lvef_of(known)
    return error[-len(draws) :] ** 2


@pytest.mark.parametrize("method", METHODS)
def test_an_even_sample_has_one_heart_of_each_part_of_the_population(method: str) -> None:
    """Of every run of candidates in order of their ejection fraction one, in random order; another seed has others."""
    draws = even_draws(method, 7, 20)
    pool = np.sort(lvef_of([Draw(method=method, seed=7, heart=(k, c)) for k in range(20) for c in range(CANDIDATES)]))
    found = lvef_of(draws)
    for part, lvef in enumerate(np.sort(found)):
        assert pool[CANDIDATES * part] <= lvef <= pool[CANDIDATES * (part + 1) - 1]
    assert (np.diff(found) < 0).any()
    assert even_draws(method, 7, 20) == draws
    assert not set(lvef_of(even_draws(method, 8, 20))) & set(found)


def test_the_spread_of_an_even_sample_is_steadier_and_the_same_on_average() -> None:
    """Over seeds the standard deviation scatters less than half as much as over plain samples, about that of many hearts."""
    even, plain = (np.array([lvef_of(sample).std() for sample in samples()[kind]]) for kind in ("even", "plain"))
    assert even.std() < plain.std() / 2
    assert even.mean() == pytest.approx(lvef_of(population()).std(), rel=0.05)


def test_ecgs_of_an_even_sample_mislead_as_those_of_the_population_do() -> None:
    """How far waves show another ejection fraction than the true one scatters less from seed to seed, about the same mean."""
    even, plain = (np.array([misled(sample).mean() for sample in samples()[kind]]) for kind in ("even", "plain"))
    assert even.std() < plain.std() / 3
    assert even.mean() == pytest.approx(misled(population()).mean(), rel=0.08)


def test_every_candidate_is_as_likely_as_any_other() -> None:
    """Over seeds the taken one lies in each fifth of its run, by what its waves show, in a fifth of the runs."""
    fifths = np.zeros(5)
    for seed in range(SEEDS):
        pool = [Draw(method="ecg", seed=seed, heart=(k, c)) for k in range(HEARTS) for c in range(CANDIDATES)]
        lvef = lvef_of(pool)
        shown = dict(zip(pool, shown_lvef(pool, lvef), strict=True))
        runs = np.argsort(lvef).reshape(HEARTS, CANDIDATES)
        taken = set(samples()["even"][seed])
        for run in runs:
            looks = sorted((pool[place] for place in run), key=shown.__getitem__)
            (rank,) = [place for place, draw in enumerate(looks) if draw in taken]
            fifths[5 * rank // CANDIDATES] += 1
    assert fifths.sum() == SEEDS * HEARTS
    assert fifths / fifths.sum() == pytest.approx([0.2] * 5, abs=0.02)


def test_waves_show_most_of_the_ejection_fraction_and_not_all() -> None:
    """The reading explains between 0.65 and 0.80 of the variance of the ejection fraction."""
    lvef = lvef_of(population())
    shown = shown_lvef(population(), lvef)
    assert 0.65 < 1 - np.mean((shown - lvef) ** 2) / lvef.var() < 0.80
