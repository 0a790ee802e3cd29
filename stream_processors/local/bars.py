"""What each method must keep on new phantoms, whatever their seed: shares, errors and widths over all studies of a verification.

Called by ``verify``. The numbers speak of the pixels of phantoms, not of patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, median
from typing import Any

from engines.bundle.reader import load_bundle, released_bundle
from engines.records import Modality

BARS_FROM = 100
"""Fewer studies say too little: a share of ten is a matter of luck."""

CARD_R_SQUARED = "lvef_r_squared"
CARD_BASELINE = "lvef_demographics_only_r_squared"
"""What the model card states of LVEF: R2 of the engine, and of age, sex, height and weight without an ECG."""

Judged = Sequence[Mapping[str, Any]]


class Verdict(StrEnum):
    """How one report compares with the truth."""

    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "wrong"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a method must keep.

    Args:
        right_min: least share of right ones among the answered.
        right_max: largest; an interval that is always right is too wide.
        refused_max: largest share of refused ones.
        error_percent: the mean absolute error of the LVEF lies below, in EF points; None where no number is reported.
        width_percent: the median width of the interval lies below, in EF points; None likewise.
        r_squared_within: R2 of the LVEF lies at most this far from that of the model card, and above that of the card's
            baseline without an ECG; None where the card states no baseline.
    """

    right_min: float
    right_max: float = 1.0
    refused_max: float
    error_percent: float | None = None
    width_percent: float | None = None
    r_squared_within: float | None = None


BARS = {
    "cmr": Bar(right_min=0.85, refused_max=0.10),
    "echo": Bar(right_min=0.84, right_max=0.97, refused_max=0.10, error_percent=6.0, width_percent=22.0),
    "ecg": Bar(right_min=0.74, right_max=0.86, refused_max=0.03, r_squared_within=0.05),
}


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Of the studies with a number.

    Args:
        error_percent: mean absolute error of the LVEF, in EF points.
        width_percent: median width of its interval, in EF points.
        r_squared: 1 - squared error over the variance of the truth; None where all truths are the same.
    """

    error_percent: float
    width_percent: float
    r_squared: float | None

    @property
    def line(self) -> str:
        """``mean absolute error E median interval width W EF points``, and ``R2 R`` where there is one."""
        told = f"mean absolute error {self.error_percent:.2f} median interval width {self.width_percent:.2f} EF points"
        return told if self.r_squared is None else f"{told} R2 {self.r_squared:.3f}"


def accuracy_of(judged: Judged) -> Accuracy | None:
    """Return error and width over the studies with a reported LVEF; None where there is none."""
    pairs = [(_lvef(entry), entry["truth"]["lvef_percent"]) for entry in judged if entry["measurements"]]
    given = [(lvef, truth) for lvef, truth in pairs if lvef is not None]
    if not given:
        return None
    return Accuracy(
        error_percent=fmean(abs(lvef["value"] - truth) for lvef, truth in given),
        width_percent=median(lvef["interval"]["high"] - lvef["interval"]["low"] for lvef, _ in given),
        r_squared=_r_squared([(lvef["value"], truth) for lvef, truth in given]),
    )


def _r_squared(pairs: Sequence[tuple[float, float]]) -> float | None:
    centre = fmean(truth for _, truth in pairs)
    spread = sum((truth - centre) ** 2 for _, truth in pairs)
    return None if spread == 0 else 1.0 - sum((value - truth) ** 2 for value, truth in pairs) / spread


def missed_bars(method: str, judged: Judged, card: Mapping[str, float] | None = None) -> list[str]:
    """Return one sentence for each bar of the method that these studies miss.

    Args:
        method: ``cmr``, ``echo`` or ``ecg``.
        judged: studies with their truths and verdicts.
        card: metrics of the model card; None for that of the released bundle.
    """
    bar = BARS.get(method)
    if bar is None or len(judged) < BARS_FROM:
        return []
    missed = [*_missed_shares(bar, judged), *_missed_accuracy(bar, judged)]
    if bar.r_squared_within is None:
        return missed
    metrics = load_bundle(released_bundle(Modality(method))).manifest.metrics if card is None else card
    return [*missed, *_missed_r_squared(bar.r_squared_within, judged, metrics)]


def _missed_shares(bar: Bar, judged: Judged) -> list[str]:
    counts = Counter(entry["verdict"] for entry in judged)
    refused = counts[Verdict.REFUSED] / len(judged)
    right = counts[Verdict.RIGHT] / max(1, len(judged) - counts[Verdict.REFUSED])
    missed = []
    if not bar.right_min <= right <= bar.right_max:
        expected = f"at least {100 * bar.right_min:g} %" if bar.right_max == 1.0 else _between(bar)
        missed.append(f"right of the answered {100 * right:.1f} %; expected {expected}")
    if refused > bar.refused_max:
        missed.append(f"refused {100 * refused:.1f} %; expected at most {100 * bar.refused_max:g} %")
    return missed


def _between(bar: Bar) -> str:
    return f"{100 * bar.right_min:g} to {100 * bar.right_max:g} %"


def _missed_accuracy(bar: Bar, judged: Judged) -> list[str]:
    if bar.error_percent is None or bar.width_percent is None:
        return []
    found = accuracy_of(judged)
    if found is None:
        return ["no study has a number; expected an ejection fraction"]
    missed = []
    if found.error_percent >= bar.error_percent:
        missed.append(f"mean absolute error {found.error_percent:.2f}; expected less than {bar.error_percent:g}")
    if found.width_percent >= bar.width_percent:
        missed.append(f"median interval width {found.width_percent:.2f}; expected less than {bar.width_percent:g}")
    return missed


def _missed_r_squared(within: float, judged: Judged, card: Mapping[str, float]) -> list[str]:
    if lacking := [name for name in (CARD_R_SQUARED, CARD_BASELINE) if name not in card]:
        return [f"the model card states no {' and no '.join(lacking)}; release the bundle again with its baseline"]
    found = accuracy_of(judged)
    if found is None or found.r_squared is None:
        return ["no R2, without numbers or with one and the same truth; expected an ejection fraction of each study"]
    missed, stated, baseline = [], card[CARD_R_SQUARED], card[CARD_BASELINE]
    # Rounded, since 0.05 apart is within 0.05 whatever binary fractions make of it.
    if round(abs(found.r_squared - stated), 6) > within:
        missed.append(f"R2 of LVEF {found.r_squared:.3f}; expected within {within:g} of the model card's {stated:.3f}")
    if found.r_squared <= baseline:
        missed.append(f"R2 of LVEF {found.r_squared:.3f}; expected above {baseline:.3f} of demographics without an ECG")
    return missed


def _lvef(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((each for each in entry["measurements"] if each["quantity"] == "lvef"), None)
