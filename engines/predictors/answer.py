"""From calibrated numbers of the manifest to estimates, probabilities and abstentions.

What the three modalities share. An ``Answer`` is a prediction without the identity of its model; ``base`` adds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.bundle.calibration import ConformalEstimate, ProbabilityTable
from engines.errors import RefusalCode
from engines.predictions import Abstention, ClassProbability, Estimate, Interval
from engines.predictors.latent_picture import Latents
from engines.preprocess.registry import Prepared

_Number = TypeVar("_Number", float, NDArray[np.float64])
_WORDS = {
    "lvef": "LVEF",
    "rvef": "RVEF",
    "cardiac_output": "Cardiac output",
    "lvedv": "LV end-diastolic volume",
    "lvesv": "LV end-systolic volume",
    "lv_mass": "LV mass",
    "rvedv": "RV end-diastolic volume",
    "rvesv": "RV end-systolic volume",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Either numbers or an abstention; ``used`` are the candidates it rests on, the one to show first.

    ``score`` is the out-of-distribution score of the least typical candidate used (of the most typical one where
    all were left out); None where the engine's graph did not run.
    ``latents`` are given where a picture can show what the answer rests on.
    """

    used: tuple[Prepared, ...]
    score: float | None
    estimates: tuple[Estimate, ...] = ()
    probabilities: tuple[ClassProbability, ...] = ()
    abstention: Abstention | None = None
    notes: tuple[str, ...] = ()
    latents: Latents | None = None


def estimate(
    calibration: ConformalEstimate, value: float, *, spread: float | None = None, clip_sd: float | None = None
) -> tuple[Estimate, tuple[str, ...]]:
    """Put the conformal interval around a value.

    Args:
        calibration: of this quantity.
        value: what the network says, in the unit of the quantity.
        spread: what the half width is multiplied with besides the offset, where the calibration asks for it.
        clip_sd: standard deviation between clips, for the report.

    Returns:
        The estimate, and a note for everything that was cut off at the limits of the quantity.
    """
    half_width = calibration.conformal_quantile * _scale(calibration, spread)
    low, high = (_clamped(calibration, end) for end in (value - half_width, value + half_width))
    result = Estimate(
        quantity=calibration.quantity,
        value=_clamped(calibration, value),
        unit=calibration.unit,
        interval=Interval(low=low, high=high, coverage_percent=calibration.coverage_percent),
        between_clip_sd=clip_sd,
    )
    return result, tuple(_limit_notes(calibration, value, half_width))


def merged_probability(low: _Number, high: _Number) -> _Number:
    """Merge a Venn-Abers pair, or arrays of pairs, to high / (1 - low + high): it minimises the regret of the log loss."""
    return high / (1.0 - low + high)


def probability(table: ProbabilityTable, logit: float, *, undecided_logits: float = 0.0) -> ClassProbability:
    """Look up the Venn-Abers pair of a logit and merge it to one probability.

    The condition is called only where the whole interval lies on one side of the threshold, and the logit farther than
    ``undecided_logits`` from where the table crosses it.

    Source: Vovk, Petej, Fedorova, "Large-scale probabilistic predictors with and without guarantees of validity",
        NeurIPS 2015.
    """
    far = undecided_logits == 0.0 or abs(logit - table.crossing_logit) > undecided_logits
    low = float(np.interp(logit, table.logits, table.low))
    high = float(np.interp(logit, table.logits, table.high))
    return ClassProbability(
        condition=table.condition,
        probability=merged_probability(low, high),
        interval=Interval(low=low, high=high, coverage_percent=table.coverage_percent),
        threshold_probability=table.threshold_probability,
        decision=_decision(low, high, table.threshold_probability) if far else None,
    )


def out_of_distribution(candidates: Sequence[Prepared], score: float) -> Answer:
    """Abstain because the input is unlike what the model was trained on."""
    reason = (
        f"The input is unlike the data the model was trained on: distance {score:.2f}, limit 1.00. "
        "No value is given; read the study by other means."
    )
    return Answer(
        used=tuple(candidates),
        score=score,
        abstention=Abstention(code=RefusalCode.OUT_OF_DISTRIBUTION, reason=reason),
    )


def noted(answer: Answer, note: str) -> Answer:
    """Put a note before the others."""
    return replace(answer, notes=(note, *answer.notes))


def within_distribution(score: float) -> bool:
    """Whether a score allows an answer; a score that is not a number does not."""
    return math.isfinite(score) and score <= 1.0


def unique(notes: Iterable[str]) -> tuple[str, ...]:
    """Drop repeated notes, keep their order."""
    return tuple(dict.fromkeys(notes))


def with_wide_interval(
    given: Estimate, calibration: ConformalEstimate, value: float, *, half_width: float, coverage_percent: float
) -> tuple[Estimate, tuple[str, ...]]:
    """Put a second interval around an estimate.

    Args:
        given: the estimate with its first interval.
        calibration: of this quantity.
        value: what the network says, before it was cut off.
        half_width: of the second interval, in the unit of the quantity.
        coverage_percent: of the second interval.

    Returns:
        The estimate, and a note where the second interval was cut off at the limits of the quantity.
    """
    ends = (value - half_width, value + half_width)
    low, high = (_clamped(calibration, end) for end in ends)
    result = replace(given, wide_interval=Interval(low=low, high=high, coverage_percent=coverage_percent))
    if (low, high) == ends:
        return result, ()
    limits = f"{calibration.minimum:g} to {calibration.maximum:g} {calibration.unit}"
    word = _WORDS.get(calibration.quantity, calibration.quantity)
    return result, (f"{word}: the {coverage_percent:g} % interval is cut off at the limits of {limits}.",)


def _scale(calibration: ConformalEstimate, spread: float | None) -> float:
    if calibration.sd_offset is None:
        return 1.0
    if spread is None:
        msg = f"the interval of {calibration.quantity} depends on the spread between clips; none was given"
        raise ValueError(msg)
    return spread + calibration.sd_offset


def _clamped(calibration: ConformalEstimate, value: float) -> float:
    return min(max(value, calibration.minimum), calibration.maximum)


def _limit_notes(calibration: ConformalEstimate, value: float, half_width: float) -> Iterable[str]:
    word = _WORDS.get(calibration.quantity, calibration.quantity)
    limits = f"{calibration.minimum:g} to {calibration.maximum:g} {calibration.unit}"
    if value != _clamped(calibration, value):
        yield f"{word}: the model gave {value:.4g}, reported at the limit of {limits}."
    if value - half_width < calibration.minimum or value + half_width > calibration.maximum:
        yield f"{word}: the interval is cut off at the limits of {limits}."


def _decision(low: float, high: float, threshold: float) -> bool | None:
    if low > threshold:
        return True
    return False if high < threshold else None
