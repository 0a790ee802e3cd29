"""Numbers of the turned-image comparison: same hearts before and after, over turns and over seeds.

Pure functions of labels and logits; a logit above 0 decides LVEF <= 40 %. Called by ``training.enf.table``.
Wilson intervals and AUROC are those of ``training.metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from training.metrics import Measured, auroc, wilson_interval

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Share:
    """So many of so many."""

    count: int
    of: int

    @property
    def measured(self) -> Measured:
        """The proportion with its 95 % Wilson interval."""
        return wilson_interval(self.count, self.of)


@dataclass(frozen=True, kw_only=True)
class TurnEffect:
    """What one change of the image, or several pooled, did to the decisions on the same hearts.

    Attributes:
        right: right decisions after the change.
        flips: decisions that differ from those on the unturned images.
        hearts_flipped: hearts with at least one flip; equals ``flips`` for a single change.
        lost: right before, wrong after.
        gained: wrong before, right after.
        mcnemar_p: exact, two-sided, of ``lost`` against ``gained``.
        max_change_sd: largest |logit change| in standard deviations of the unturned logits; None if those are constant.
        mean_change_sd: mean |logit change| in the same unit.
    """

    right: Share
    flips: Share
    hearts_flipped: Share
    lost: int
    gained: int
    mcnemar_p: float
    max_change_sd: float | None
    mean_change_sd: float | None


@dataclass(frozen=True, kw_only=True)
class SeedSummary:
    """One number over the seeds; ``sd`` is the sample standard deviation, None for a single seed."""

    mean: float
    sd: float | None
    low: float
    high: float


def right_decisions(labels: BoolArray, logits: FloatArray) -> Share:
    """Return how many decisions are right; both [N]."""
    return Share(count=int(np.sum((logits > 0) == labels)), of=len(labels))


def area_under_curve(labels: BoolArray, logits: FloatArray) -> float:
    """Return the AUROC of logits; both [N].

    Raises:
        ValueError: when only one class is present.
    """
    return auroc(labels.astype(np.float64), logits)


def turn_effect(labels: BoolArray, before: FloatArray, after: Sequence[FloatArray]) -> TurnEffect:
    """Return the effect of one change, or of several pooled, on the same hearts.

    Args:
        labels: [N].
        before: logits of the unturned images, [N].
        after: logits of the changed images, one [N] per change. With several, the p of McNemar counts each
            heart several times and is too small: read it as a description, and ``adjusted_mcnemar_p`` as the test.

    Raises:
        ValueError: when there is no change to compare, or the lengths differ.
    """
    after_TN = _stacked(labels, before, after)  # T changes, N hearts
    decided_N, decided_TN = before > 0, after_TN > 0
    right_TN, flipped_TN = decided_TN == labels, decided_TN != decided_N
    lost = int(np.sum(flipped_TN & ~right_TN))
    gained = int(np.sum(flipped_TN & right_TN))
    change_TN = _change_sd(before, after_TN)
    return TurnEffect(
        right=Share(count=int(right_TN.sum()), of=right_TN.size),
        flips=Share(count=int(flipped_TN.sum()), of=flipped_TN.size),
        hearts_flipped=Share(count=int(flipped_TN.any(axis=0).sum()), of=len(labels)),
        lost=lost,
        gained=gained,
        mcnemar_p=mcnemar_p(lost, gained),
        max_change_sd=None if change_TN is None else float(change_TN.max()),
        mean_change_sd=None if change_TN is None else float(change_TN.mean()),
    )


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the exact two-sided p of McNemar's test; 1 when nothing changed.

    Args:
        lost: pairs right before and wrong after.
        gained: pairs wrong before and right after.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157; exact form: binomial with share 1/2.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    return min(1.0, float(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue))


def adjusted_mcnemar_p(effects: Sequence[TurnEffect]) -> float:
    """Return the smallest p of single changes times their number (Bonferroni), at most 1.

    It holds although the changes share their hearts.

    Raises:
        ValueError: when there is no effect.
    """
    if not effects:
        raise ValueError("no change to test; give at least one effect")
    return min(1.0, len(effects) * min(effect.mcnemar_p for effect in effects))


def fisher_p(first: Share, second: Share) -> float:
    """Return the two-sided exact p of Fisher for two proportions of different hearts.

    Source: R. A. Fisher, J. R. Stat. Soc. 85 (1922), 87-94.
    """
    table = [[first.count, first.of - first.count], [second.count, second.of - second.count]]
    return float(fisher_exact(table).pvalue)


def over_seeds(values: Sequence[float]) -> SeedSummary:
    """Return mean, sample standard deviation and range of one number over the seeds.

    Raises:
        ValueError: when there is no seed.
    """
    if not values:
        raise ValueError("no seed to summarise; give at least one value")
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return SeedSummary(mean=float(np.mean(values)), sd=sd, low=float(min(values)), high=float(max(values)))


def pooled(shares: Sequence[Share]) -> Share:
    """Return the sum of shares; its Wilson interval treats all decisions as independent, which seeds are not."""
    return Share(count=sum(share.count for share in shares), of=sum(share.of for share in shares))


def _stacked(labels: BoolArray, before: FloatArray, after: Sequence[FloatArray]) -> FloatArray:
    if not after:
        raise ValueError("no changed image to compare; give at least one array of logits")
    lengths = [len(labels), len(before), *map(len, after)]
    if len(set(lengths)) > 1:
        raise ValueError(f"labels, logits before and after have lengths {lengths}; expected the same hearts in each")
    return np.stack(after)


def _change_sd(before: FloatArray, after_TN: FloatArray) -> FloatArray | None:
    sd = float(np.std(before))
    if sd == 0.0:
        return None
    change_TN: FloatArray = np.abs(after_TN - before) / sd
    return change_TN
