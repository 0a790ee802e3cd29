"""Conformal intervals cover, Venn-Abers brackets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import calibrate
from training.calibrate import conformal_half_width, smoothed_venn_abers_table, venn_abers_table


@pytest.mark.parametrize("coverage_percent", [80.0, 90.0])
def test_conformal_interval_covers_new_hearts(coverage_percent: float) -> None:
    """Averaged over calibration sets, the share of new hearts inside is the asked one, also for heavy tails."""
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(300):
        half_width = conformal_half_width(np.abs(rng.standard_t(3, 100)), coverage_percent)
        inside.append(np.mean(np.abs(rng.standard_t(3, 200)) <= half_width))
    assert 100 * np.mean(inside) == pytest.approx(coverage_percent, abs=1.5)


def test_conformal_half_width_is_the_rank_of_the_paper() -> None:
    """Of nine residuals the 90 % half width is the ninth, the 80 % one the eighth."""
    residuals = np.arange(9.0, 0.0, -1.0)
    assert conformal_half_width(residuals, 90.0) == 9.0
    assert conformal_half_width(residuals, 80.0) == 8.0


def test_too_few_hearts_for_the_coverage_are_refused() -> None:
    """Eight hearts cannot promise 90 %."""
    with pytest.raises(ValueError, match="more hearts"):
        conformal_half_width(np.ones(8), 90.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 80))
def test_venn_abers_is_monotone_and_brackets(seed: int, count: int) -> None:
    """Both ends rise with the score, low is never above high, both are probabilities."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=count), 1)
    labels = (rng.random(count) < 1 / (1 + np.exp(-2 * scores))).astype(float)
    labels[:2] = [0.0, 1.0]
    table = venn_abers_table(scores, labels, grid_points=17)
    assert np.all(np.diff(table.scores) > 0)
    assert np.all(np.diff(table.low_probabilities) >= 0)
    assert np.all(np.diff(table.high_probabilities) >= 0)
    assert np.all(table.low_probabilities <= table.high_probabilities)
    assert table.low_probabilities.min() >= 0
    assert table.high_probabilities.max() <= 1


def test_venn_abers_brackets_the_true_probability_on_many_hearts() -> None:
    """With many hearts the pair is narrow and close to the probability the labels were drawn with."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-2 * scores))).astype(float)
    table = venn_abers_table(scores, labels, grid_points=33)
    middle = slice(4, -4)
    truth = 1 / (1 + np.exp(-2 * table.scores[middle]))
    merged = (table.low_probabilities[middle] + table.high_probabilities[middle]) / 2
    assert np.abs(merged - truth).max() < 0.1
    assert np.max(table.high_probabilities[middle] - table.low_probabilities[middle]) < 0.1


def test_venn_abers_of_two_hearts_by_hand() -> None:
    """Scores 0 (absent) and 1 (present): at 1 the pair is (1/2, 1), at 0 it is (0, 1/2)."""
    table = venn_abers_table(np.array([0.0, 1.0]), np.array([0.0, 1.0]), grid_points=2)
    np.testing.assert_allclose(table.low_probabilities, [0.0, 0.5])
    np.testing.assert_allclose(table.high_probabilities, [0.5, 1.0])


def test_venn_abers_without_positives_claims_no_certainty() -> None:
    """Nine hearts without the condition: at the highest score the probability may be anything from 0 to one half."""
    table = venn_abers_table(np.arange(9.0), np.zeros(9))
    assert table.low_probabilities.max() == 0.0
    assert table.high_probabilities[-1] == 0.5
    assert table.high_probabilities[0] == pytest.approx(0.1)


def _steep(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose probability is their logistic, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0.0, 3.0, count)
    return scores, (rng.random(count) < 1.0 / (1.0 + np.exp(-scores))).astype(float)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_smoothed_pairs_are_monotone_bracket_and_have_smaller_steps(seed: int) -> None:
    """The largest step of the smoothed pair is smaller than that of the plain one, and both lie near the truth."""
    scores, labels = _steep(seed, 150)
    plain = venn_abers_table(scores, labels, grid_points=65)
    smooth = smoothed_venn_abers_table(scores, labels, resamples=20, grid_points=65)
    assert np.array_equal(smooth.scores, plain.scores)
    assert (smooth.low_probabilities <= smooth.high_probabilities).all()
    for values in (smooth.low_probabilities, smooth.high_probabilities):
        assert (np.diff(values) >= 0).all()
        assert np.abs(values - 1.0 / (1.0 + np.exp(-smooth.scores))).max() < 0.3
    assert np.diff(smooth.low_probabilities).max() < np.diff(plain.low_probabilities).max()
    assert np.diff(smooth.high_probabilities).max() < np.diff(plain.high_probabilities).max()


def test_smoothed_pairs_are_always_the_same() -> None:
    """The resamples are drawn from a fixed seed; one resample is the plain table of the drawn hearts."""
    scores, labels = _steep(3, 60)
    one = smoothed_venn_abers_table(scores, labels, resamples=1, grid_points=9)
    again = smoothed_venn_abers_table(scores, labels, resamples=1, grid_points=9)
    assert np.array_equal(one.low_probabilities, again.low_probabilities)
    drawn = np.random.default_rng(0).integers(60, size=60)
    lows = [calibrate._isotonic_at(score, 0.0, scores[drawn], labels[drawn]) for score in one.scores]
    np.testing.assert_allclose(one.low_probabilities, lows, atol=1e-9)
