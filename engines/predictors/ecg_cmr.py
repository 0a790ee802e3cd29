"""A twelve-lead ECG to what cardiac MR would measure, and to the probabilities of six conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from engines.bundle.manifest import EcgPostprocess
from engines.predictors.answer import Answer, estimate, noted, out_of_distribution, probability, within_distribution
from engines.preprocess.registry import Prepared

INFERRED = "Inferred from an ECG; nothing was measured on images."


def answer_ecg(
    prepared: Sequence[Prepared],
    outputs: Sequence[Mapping[str, NDArray[Any]]],
    scores: Sequence[float],
    calibration: EcgPostprocess,
) -> Answer:
    """Put intervals around the estimates and calibrate the logits of the one record.

    Args:
        prepared: the one record.
        outputs: of it, ``estimates`` float32 [1, Q] and ``disease_logits`` float32 [1, D], columns as in the manifest.
        scores: of it.
        calibration: from the manifest.
    """
    if not within_distribution(scores[0]):
        return noted(out_of_distribution(prepared, scores[0]), INFERRED)
    pairs = [
        estimate(quantity, float(value))
        for quantity, value in zip(calibration.estimates, outputs[0]["estimates"][0], strict=True)
    ]
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
