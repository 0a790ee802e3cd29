"""A twelve-lead ECG to what cardiac MR would measure, and to the probabilities of six conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from engines.bundle.calibration import EcgPostprocess, WideIntervals
from engines.predictions import Estimate
from engines.predictors.answer import (
    Answer,
    estimate,
    noted,
    out_of_distribution,
    probability,
    with_wide_interval,
    within_distribution,
)
from engines.preprocess.registry import Prepared

INFERRED = "Inferred from an ECG; nothing was measured on images."


def answer_ecg(
    prepared: Sequence[Prepared],
    outputs: Sequence[Mapping[str, NDArray[Any]]],
    scores: Sequence[float],
    calibration: EcgPostprocess,
    wide: WideIntervals | None = None,
) -> Answer:
    """Put intervals around the estimates and calibrate the logits of the one record.

    Args:
        prepared: the one record.
        outputs: of it, ``estimates`` float32 [1, Q] and ``disease_logits`` float32 [1, D], columns as in the manifest.
        scores: of it.
        calibration: from the manifest.
        wide: from the manifest; None for a bundle that states one interval.
    """
    if not within_distribution(scores[0]):
        return noted(out_of_distribution(prepared, scores[0]), INFERRED)
    pairs = _estimates(calibration, outputs[0]["estimates"][0], wide)
    logits = outputs[0]["disease_logits"][0]
    return Answer(
        used=tuple(prepared),
        score=scores[0],
        estimates=tuple(value for value, _ in pairs),
        probabilities=tuple(
            probability(table, float(logit)) for table, logit in zip(calibration.conditions, logits, strict=True)
        ),
        notes=(INFERRED, *(note for _, notes in pairs for note in notes)),
    )


def _estimates(
    calibration: EcgPostprocess, values_Q: NDArray[Any], wide: WideIntervals | None
) -> list[tuple[Estimate, tuple[str, ...]]]:
    """Each estimate with its intervals, and the notes on it."""
    found = []
    for index, (quantity, given) in enumerate(zip(calibration.estimates, values_Q, strict=True)):
        result, notes = estimate(quantity, float(given))
        if wide is not None:
            width, coverage = wide.conformal_quantiles[index], wide.coverage_percent
            result, more = with_wide_interval(
                result, quantity, float(given), half_width=width, coverage_percent=coverage
            )
            notes += more
        found.append((result, notes))
    return found
