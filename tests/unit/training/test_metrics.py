"""Metrics against closed forms and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import (
    auroc,
    bootstrap,
    brier_score,
    calibration_slope,
    mean_absolute_error,
    r_squared,
    root_mean_square_error,
    wilson_interval,
)

TRUTH = np.array([1.0, 2.0, 3.0, 4.0])


def test_errors_of_a_constant_offset() -> None:
    """An offset of 2 has MAE 2, RMSE 2 and slope 1."""
    assert mean_absolute_error(TRUTH, TRUTH + 2) == 2.0
    assert root_mean_square_error(TRUTH, TRUTH + 2) == 2.0
    assert calibration_slope(TRUTH, TRUTH + 2) == pytest.approx(1.0)


def test_rmse_weighs_one_large_error_more_than_mae() -> None:
    """One error of 4 among four gives MAE 1 and RMSE 2."""
    predicted = TRUTH + np.array([0.0, 0.0, 0.0, 4.0])
    assert (mean_absolute_error(TRUTH, predicted), root_mean_square_error(TRUTH, predicted)) == (1.0, 2.0)


def test_r_squared_of_the_mean_is_zero_and_of_the_truth_is_one() -> None:
    """R2 counts from the mean of the truth."""
    assert r_squared(TRUTH, np.full(4, TRUTH.mean())) == 0.0
    assert r_squared(TRUTH, TRUTH) == 1.0


def test_r_squared_of_constant_truth_is_refused() -> None:
    """A constant truth has no variance to explain."""
    with pytest.raises(ValueError, match="constant truth"):
        r_squared(np.ones(3), TRUTH[:3])


def test_slope_shows_shrinkage() -> None:
    """Predictions half as far from the mean have slope 0.5."""
    assert calibration_slope(TRUTH, 2.5 + 0.5 * (TRUTH - 2.5)) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auroc_is_the_share_of_ordered_pairs(cases: list[tuple[bool, int]]) -> None:
    """AUROC equals the share of (positive, negative) pairs in the right order, ties counted half."""
    positives = [score for label, score in cases if label]
    negatives = [score for label, score in cases if not label]
    label, score = np.array([float(one) for one, _ in cases]), np.array([float(value) for _, value in cases])
    if not positives or not negatives:
        with pytest.raises(ValueError, match="both classes"):
            auroc(label, score)
        return
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    assert auroc(label, score) == pytest.approx(wins / (len(positives) * len(negatives)))


def test_brier_of_a_coin_is_a_quarter() -> None:
    """Saying 0.5 always costs 0.25."""
    assert brier_score(np.array([0.0, 1.0]), np.array([0.5, 0.5])) == 0.25


def test_wilson_interval_of_a_textbook_case() -> None:
    """8 of 10 lies in 0.4902 to 0.9433 (95 %)."""
    measured = wilson_interval(8, 10)
    assert (measured.value, round(measured.low, 4), round(measured.high, 4)) == (0.8, 0.4902, 0.9433)


def test_wilson_interval_at_the_edges_stays_a_proportion() -> None:
    """0 of 5 and 5 of 5 give intervals inside 0 to 1 that are not points."""
    none, all_ = wilson_interval(0, 5), wilson_interval(5, 5)
    assert none.low == 0.0
    assert 0 < none.high < 1
    assert all_.high == 1.0
    assert 0 < all_.low < 1


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_proportion(successes: int, trials: int) -> None:
    """More successes than trials, or no trials, is the caller's mistake."""
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(successes, trials)


def test_bootstrap_interval_of_a_mean_matches_its_standard_error() -> None:
    """The 95 % interval of the mean error of 400 hearts is about 1.96 standard errors wide on both sides."""
    errors = np.random.default_rng(0).normal(5.0, 2.0, 400).clip(min=0.0)
    measured = bootstrap(mean_absolute_error, np.zeros(400), errors)
    expected = 1.96 * errors.std() / math.sqrt(400)
    assert measured.high - measured.value == pytest.approx(expected, rel=0.15)
    assert measured.value - measured.low == pytest.approx(expected, rel=0.15)


def test_bootstrap_leaves_out_draws_with_one_class() -> None:
    """A rare class does not make the interval NaN."""
    label, score = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.9, 0.1, 0.2, 0.95])
    measured = bootstrap(auroc, label, score, draws=200)
    assert math.isfinite(measured.low)
    assert measured.low <= measured.value <= measured.high
