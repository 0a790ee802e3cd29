"""Calibrated numbers: intervals hold their value, nothing is cut off in silence, doubt is not a decision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.bundle.calibration import ProbabilityTable
from engines.errors import BundleCorrupt
from engines.predictors.answer import estimate, probability, within_distribution
from engines.predictors.distance import EmbeddingStatistics
from tests.doubles.bundles import conformal, table


@given(value=st.floats(-200, 300), quantile=st.floats(0.01, 200))
def test_estimate_lies_in_its_interval_and_limits(value: float, quantile: float) -> None:
    """Whatever the network says, the reported value lies inside its interval, and both inside the limits."""
    result, notes = estimate(conformal(conformal_quantile=quantile), value)
    assert 0.0 <= result.interval.low <= result.value <= result.interval.high <= 100.0
    cut = value - quantile < 0 or value + quantile > 100
    assert any("interval is cut off" in note for note in notes) == cut
    assert any("reported at the limit" in note for note in notes) == (not 0 <= value <= 100)


def test_interval_has_the_width_of_the_manifest() -> None:
    """A constant interval is value minus and plus the quantile, with the manifest's coverage."""
    result, notes = estimate(conformal(), 50.0)
    assert (result.interval.low, result.interval.high, result.interval.coverage_percent) == (45.0, 55.0, 90.0)
    assert (result.quantity, result.unit, result.between_clip_sd, notes) == ("lvef", "%", None, ())


def test_value_outside_the_limits_is_reported_with_its_note() -> None:
    """A value that cannot be is reported at the limit, and the note says what the model gave."""
    result, notes = estimate(conformal(), 104.2)
    assert result.value == 100.0
    assert notes[0] == "LVEF: the model gave 104.2, reported at the limit of 0 to 100 %."


@given(spread=st.floats(0, 20))
def test_normalised_interval_grows_with_the_spread(spread: float) -> None:
    """Where the manifest says so, the half width is the quantile times (spread + offset)."""
    result, _ = estimate(conformal(conformal_quantile=2.0, sd_offset=1.0, minimum=-500.0), 50.0, spread=spread)
    assert result.value - result.interval.low == pytest.approx(2.0 * (spread + 1.0))


def test_normalised_interval_needs_a_spread() -> None:
    """A spread that is needed and not given is a mistake, not a zero."""
    with pytest.raises(ValueError, match="depends on the spread"):
        estimate(conformal(sd_offset=1.0), 50.0)


@pytest.mark.parametrize(
    ("logit", "low", "high", "decision"),
    [(-9.0, 0.0, 0.1, False), (-4.0, 0.0, 0.1, False), (0.0, 0.35, 0.65, None), (4.0, 0.9, 1.0, True)],
)
def test_probability_is_read_off_the_table(logit: float, low: float, high: float, decision: bool | None) -> None:
    """On and between grid points the interval is the table's, outside it is constant; straddling is undecided."""
    result = probability(table(), logit)
    assert (result.interval.low, result.interval.high) == pytest.approx((low, high))
    assert result.decision is decision
    assert result.interval.coverage_percent == 100.0


@given(logits=st.lists(st.floats(-20, 20), min_size=2, max_size=20))
def test_probability_never_falls_as_the_logit_rises(logits: list[float]) -> None:
    """A higher logit never gives a lower probability, and each probability lies in its interval."""
    results = [probability(table(), logit) for logit in sorted(logits)]
    values = [result.probability for result in results]
    assert np.all(np.diff(values) >= -1e-12)
    assert all(r.interval.low - 1e-12 <= r.probability <= r.interval.high + 1e-12 for r in results)


@given(
    low=st.floats(0, 1), high=st.floats(0, 1), threshold=st.floats(0.01, 0.99)
)  # every pair, also the degenerate ones
def test_decision_needs_the_whole_interval_on_one_side(low: float, high: float, threshold: float) -> None:
    """A condition is called present or absent only where no end of the interval touches the threshold."""
    low, high = sorted((low, high))
    pair = ProbabilityTable(
        condition="c",
        threshold_probability=threshold,
        coverage_percent=100.0,
        logits=(0.0, 1.0),
        low=(low, low),
        high=(high, high),
    )
    decision = probability(pair, 0.5).decision
    assert decision is (True if low > threshold else False if high < threshold else None)


def test_certain_pairs_merge_to_certainty() -> None:
    """The pairs (0, 0), (1, 1) and (0, 1) merge to 0, 1 and one half."""
    pairs = {(0.0, 0.0): 0.0, (1.0, 1.0): 1.0, (0.0, 1.0): 0.5, (0.2, 0.4): 0.4 / 1.2}
    for (low, high), merged in pairs.items():
        both = table().model_copy(update={"low": (low,) * 4, "high": (high,) * 4})
        assert probability(both, 0.0).probability == pytest.approx(merged)


@pytest.mark.parametrize(("score", "answers"), [(0.0, True), (1.0, True), (1.0001, False), (np.inf, False)])
def test_limit_of_the_distribution(score: float, answers: bool) -> None:
    """A score up to one answers, above it or not finite it does not."""
    assert within_distribution(score) is answers
    assert within_distribution(float("nan")) is False


def test_distance_is_mahalanobis() -> None:
    """The distance is the root of the quadratic form of the offset, averaged over rows."""
    precision = np.array([[2.0, 0.5], [0.5, 1.0]])
    statistics = EmbeddingStatistics(mean=np.array([1.0, -1.0]), precision=precision)
    assert statistics.distance(np.array([[1.0, -1.0]])) == 0.0
    assert statistics.distance(np.array([[2.0, 1.0]])) == pytest.approx(np.sqrt(2 + 2 * 0.5 * 2 + 4))
    two = statistics.distance(np.array([[1.0, -1.0], [2.0, 1.0]]))
    assert two == pytest.approx(statistics.distance(np.array([[2.0, 1.0]])) / 2)


def test_fit_scores_typical_low_and_strange_high() -> None:
    """Statistics fitted to correlated samples give typical samples a small distance and an outlier a large one."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    samples = rng.normal(size=(400, 6)) @ mixing + 3.0
    statistics = EmbeddingStatistics.fit(samples)
    typical = [statistics.distance(row[None]) for row in rng.normal(size=(200, 6)) @ mixing + 3.0]
    assert np.mean(np.square(typical)) == pytest.approx(6.0, rel=0.2)
    assert statistics.distance(samples[:1] + 100.0) > 10 * max(typical)


@pytest.mark.parametrize("count", [3, 5, 50])
def test_fit_works_with_fewer_samples_than_dimensions(count: int) -> None:
    """Shrinkage keeps the covariance invertible when samples are few or do not vary in some direction."""
    samples = np.zeros((count, 8))
    samples[:, 0] = np.arange(count)
    statistics = EmbeddingStatistics.fit(samples)
    assert np.isfinite(statistics.distance(samples + 1.0))


@pytest.mark.parametrize("samples", [np.ones((1, 3)), np.ones((5, 3)), np.eye(3)[:2]])
def test_fit_refuses_samples_without_a_covariance(samples: np.ndarray) -> None:
    """Equal samples, or too few, have no covariance and are refused."""
    with pytest.raises(ValueError, match="give more different ones"):
        EmbeddingStatistics.fit(samples)


def test_fit_is_ledoit_wolf() -> None:
    """The shrunk covariance is the reference implementation's, to rounding."""
    covariance = pytest.importorskip("sklearn.covariance")
    samples = np.random.default_rng(1).normal(size=(30, 10)) * np.arange(1, 11)
    expected = covariance.LedoitWolf().fit(samples)
    found = EmbeddingStatistics.fit(samples)
    np.testing.assert_allclose(np.linalg.inv(found.precision), expected.covariance_, rtol=1e-6, atol=1e-9)


def test_statistics_survive_the_file() -> None:
    """Statistics come back from their archive bit for bit."""
    original = EmbeddingStatistics.fit(np.random.default_rng(2).normal(size=(20, 3)))
    found = EmbeddingStatistics.from_bytes(original.to_bytes(), size=3)
    assert np.array_equal(found.mean, original.mean)
    assert np.array_equal(found.precision, original.precision)


def test_statistics_of_another_size_are_corrupt() -> None:
    """Statistics that do not fit the network's embedding are refused when the bundle is opened."""
    archive = EmbeddingStatistics(mean=np.zeros(3), precision=np.eye(3)).to_bytes()
    with pytest.raises(BundleCorrupt, match="have 3 dimensions; the network gives 4"):
        EmbeddingStatistics.from_bytes(archive, size=4)
    with pytest.raises(BundleCorrupt, match="not a readable"):
        EmbeddingStatistics.from_bytes(b"junk", size=4)


@pytest.mark.parametrize(
    ("mean", "precision"),
    [
        (np.zeros(3), np.eye(2)),
        (np.zeros((1, 3)), np.eye(3)),
        (np.full(3, np.nan), np.eye(3)),
        (np.zeros(3), np.full((3, 3), np.inf)),
        (np.zeros(0), np.zeros((0, 0))),
    ],
)
def test_impossible_statistics_are_refused(mean: np.ndarray, precision: np.ndarray) -> None:
    """Statistics of other shapes, or with values that are not finite, cannot be made."""
    with pytest.raises(ValueError, match=r"embeddings|expected"):
        EmbeddingStatistics(mean=mean, precision=precision)
