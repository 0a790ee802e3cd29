"""Statistics of turned images against closed forms, other software and published arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from training.enf.statistics import (
    Share,
    adjusted_mcnemar_p,
    area_under_curve,
    fisher_p,
    mcnemar_p,
    over_seeds,
    pooled,
    right_decisions,
    turn_effect,
)

LABELS = np.array([True, True, False, False])
BEFORE = np.array([1.0, -1.0, -3.0, 3.0])
"""Right, wrong, right, wrong; standard deviation sqrt(5)."""


def test_fifty_two_of_sixty_has_the_wilson_interval_of_the_publication() -> None:
    """52 of 60 is 86.7 % with 75.8 to 93.1."""
    measured = Share(count=52, of=60).measured
    assert [round(100 * value, 1) for value in (measured.value, measured.low, measured.high)] == [86.7, 75.8, 93.1]


def test_published_accuracies_of_sixty_hearts_do_not_differ() -> None:
    """55/60 against 50/60 has Fisher p 0.27, and 52/60 against 50/60 has 0.80."""
    assert round(fisher_p(Share(count=55, of=60), Share(count=50, of=60)), 2) == 0.27
    assert round(fisher_p(Share(count=52, of=60), Share(count=50, of=60)), 2) == 0.80


@given(st.integers(1, 300).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_share_has_the_wilson_interval_of_statsmodels(pair: tuple[int, int]) -> None:
    """Two independent programs agree on every proportion."""
    count, of = pair
    low, high = proportion_confint(count, of, alpha=0.05, method="wilson")
    measured = Share(count=count, of=of).measured
    assert (measured.low, measured.high) == pytest.approx((low, high), abs=1e-12)


def test_decisions_are_right_where_the_sign_fits_the_label() -> None:
    """A logit above 0 says LVEF <= 40 %; 0 itself does not."""
    assert right_decisions(LABELS, BEFORE) == Share(count=2, of=4)
    assert right_decisions(np.array([True, False]), np.zeros(2)) == Share(count=1, of=2)


def test_area_under_curve_follows_the_logits() -> None:
    """Three of the four pairs of BEFORE are out of order or in order as counted by hand."""
    assert area_under_curve(LABELS, BEFORE) == 0.5
    assert area_under_curve(LABELS, np.array([2.0, 1.0, -1.0, -2.0])) == 1.0


def test_turn_that_loses_one_and_gains_one_keeps_the_accuracy_and_has_two_flips() -> None:
    """Equal accuracy hides flips: they are counted on the same hearts."""
    effect = turn_effect(LABELS, BEFORE, [np.array([-1.0, 1.0, -3.0, 3.0])])
    assert (effect.right, effect.flips, effect.hearts_flipped) == (Share(count=2, of=4), *[Share(count=2, of=4)] * 2)
    assert (effect.lost, effect.gained, effect.mcnemar_p) == (1, 1, 1.0)


def test_change_is_in_standard_deviations_of_the_unturned_logits() -> None:
    """A change of 2 on one of four logits with SD sqrt(5): largest 2 / sqrt(5), mean a quarter of it."""
    effect = turn_effect(LABELS, BEFORE, [BEFORE + np.array([0.0, 0.0, -2.0, 0.0])])
    assert effect.max_change_sd == pytest.approx(2 / 5**0.5)
    assert effect.mean_change_sd == pytest.approx(0.5 / 5**0.5)


@given(st.floats(0.01, 100.0), st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_effect_does_not_depend_on_the_scale_of_the_logits(scale: float, change: list[float]) -> None:
    """Logits and changes in another unit give the same flips and the same change in SD."""
    after = BEFORE + np.array(change)
    plain, scaled = turn_effect(LABELS, BEFORE, [after]), turn_effect(LABELS, scale * BEFORE, [scale * after])
    assert scaled.flips == plain.flips
    assert scaled.max_change_sd == pytest.approx(plain.max_change_sd)


def test_pooled_turns_count_decisions_and_hearts_apart() -> None:
    """One heart that flips in two of three turns is two flips of 12 and one heart of 4."""
    flipped = BEFORE * np.array([-1.0, 1.0, 1.0, 1.0])
    effect = turn_effect(LABELS, BEFORE, [flipped, BEFORE, flipped])
    assert (effect.flips, effect.hearts_flipped) == (Share(count=2, of=12), Share(count=1, of=4))
    assert effect.right == Share(count=4, of=12)
    assert effect.lost == 2


def test_unturned_images_again_change_nothing() -> None:
    """The identity has no flips, no change and p 1."""
    effect = turn_effect(LABELS, BEFORE, [BEFORE])
    assert (effect.flips.count, effect.mcnemar_p, effect.max_change_sd, effect.mean_change_sd) == (0, 1.0, 0.0, 0.0)


def test_constant_logits_have_no_change_in_their_own_unit() -> None:
    """A collapsed model is said to have none, rather than 0 or infinity."""
    effect = turn_effect(LABELS, np.ones(4), [np.ones(4)])
    assert (effect.max_change_sd, effect.mean_change_sd) == (None, None)


@pytest.mark.parametrize("after", [[], [np.ones(3)]])
def test_comparison_without_the_same_hearts_is_refused(after: list[np.ndarray]) -> None:
    """No change, or a change of other hearts, is a mistake of the caller."""
    with pytest.raises(ValueError, match=r"no changed image|expected the same hearts"):
        turn_effect(LABELS, BEFORE, after)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_the_changed_pairs(lost: int, gained: int) -> None:
    """The exact p is that of a fair coin on the discordant pairs, 1 when there are none."""
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar_p(lost, gained) == pytest.approx(expected, abs=1e-9)


def test_several_turns_are_tested_by_their_smallest_p_times_their_number() -> None:
    """Bonferroni over three turns: 6 losses alone have p 1/32, so 3/32."""
    labels, before = np.ones(20, dtype=bool), np.linspace(1, 2, 20)
    lost = np.where(np.arange(20) < 6, -before, before)
    effects = [turn_effect(labels, before, [after]) for after in (lost, before, before)]
    assert adjusted_mcnemar_p(effects) == pytest.approx(3 / 32)
    assert adjusted_mcnemar_p(effects[1:]) == 1.0
    with pytest.raises(ValueError, match="no change to test"):
        adjusted_mcnemar_p([])


def test_seeds_have_mean_sample_deviation_and_range() -> None:
    """1, 2, 6: mean 3, sample SD sqrt(7); one seed has no SD."""
    summary = over_seeds([1.0, 6.0, 2.0])
    assert (summary.mean, summary.low, summary.high) == (3.0, 1.0, 6.0)
    assert summary.sd == pytest.approx(7**0.5)
    assert over_seeds([2.0]).sd is None
    with pytest.raises(ValueError, match="no seed"):
        over_seeds([])


def test_pooled_share_is_the_sum_of_its_parts() -> None:
    """Counts add up, so three seeds of 60 are 180."""
    assert pooled([Share(count=50, of=60)] * 3) == Share(count=150, of=180)
