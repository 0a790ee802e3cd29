"""Two short-axis images to the calibrated probability of a reduced ejection fraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from engines.bundle.manifest import CmrPostprocess
from engines.predictors.answer import Answer, out_of_distribution, probability, within_distribution
from engines.preprocess.registry import Prepared


def answer_cmr(
    prepared: Sequence[Prepared],
    outputs: Sequence[Mapping[str, NDArray[Any]]],
    scores: Sequence[float],
    calibration: CmrPostprocess,
) -> Answer:
    """Calibrate the logit of the one stack.

    Args:
        prepared: the one stack.
        outputs: of it, ``logit`` float32 [1, 1].
        scores: of it.
        calibration: from the manifest.
    """
    score = scores[0]
    if not within_distribution(score):
        return out_of_distribution(prepared, score)
    risk = probability(calibration.risk, float(outputs[0]["logit"][0, 0]))
    return Answer(used=tuple(prepared), score=score, probabilities=(risk,), notes=_undecided(risk.decision))


def _undecided(decision: bool | None) -> tuple[str, ...]:
    return () if decision is not None else ("The interval holds the threshold: neither present nor absent is called.",)
