"""Clips of an apical four-chamber loop to the left ventricular ejection fraction.

Every candidate loop of the study gives up to K clips. Candidates unlike the training data are left out; the ejection
fraction is the mean over the clips that remain, and their spread says whether they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.calibration import EchoPostprocess
from engines.errors import RefusalCode
from engines.predictions import Abstention
from engines.predictors.answer import Answer, estimate, out_of_distribution, within_distribution
from engines.preprocess.registry import Prepared


def answer_echo(
    prepared: Sequence[Prepared],
    outputs: Sequence[Mapping[str, NDArray[Any]]],
    scores: Sequence[float],
    calibration: EchoPostprocess,
) -> Answer:
    """Average the clips of the candidates that resemble the training data.

    Args:
        prepared: the candidates, most likely first.
        outputs: per candidate, ``ef`` float32 [K, 1] in percent.
        scores: per candidate, out-of-distribution score.
        calibration: from the manifest.

    Returns:
        The LVEF with its interval, or an abstention.
    """
    kept = [index for index, score in enumerate(scores) if within_distribution(score)]
    if not kept:
        best = int(np.argmin(scores))
        return out_of_distribution([prepared[best]], scores[best])
    used = tuple(prepared[index] for index in kept)
    ef_C = np.concatenate([np.asarray(outputs[index]["ef"], dtype=np.float64).ravel() for index in kept])
    worst = max(scores[index] for index in kept)
    left_out = _left_out_note(len(prepared), len(kept))
    clip_sd = _clip_sd(ef_C)
    limit = calibration.clip_sd_limit_percent
    if clip_sd is not None and clip_sd > limit:
        return Answer(used=used, score=worst, abstention=_disagreement(clip_sd, limit, len(ef_C)), notes=left_out)
    # Of one clip the spread is unknown; the largest spread that is answered at all is the safe assumption.
    spread = limit if clip_sd is None else clip_sd
    lvef, notes = estimate(calibration.lvef, float(ef_C.mean()), spread=spread, clip_sd=clip_sd)
    clips = _clip_note(len(ef_C), len(kept), calibration)
    return Answer(used=used, score=worst, estimates=(lvef,), notes=(clips, *left_out, *notes))


def _clip_sd(ef_C: NDArray[np.float64]) -> float | None:
    return float(ef_C.std(ddof=1)) if len(ef_C) > 1 else None


def _disagreement(clip_sd: float, limit: float, clips: int) -> Abstention:
    reason = (
        f"The {clips} clips that were analysed disagree: standard deviation {clip_sd:.1f} EF points, limit {limit:.1f}."
        " No value is given; check the rhythm and the image quality, or read the study by other means."
    )
    return Abstention(code=RefusalCode.CLIPS_DISAGREE, reason=reason)


def _left_out_note(candidates: int, kept: int) -> tuple[str, ...]:
    if candidates == kept:
        return ()
    return (f"{candidates - kept} of {candidates} loops were left out: unlike the data the model was trained on.",)


def _clip_note(clips: int, loops: int, calibration: EchoPostprocess) -> str:
    if clips > 1:
        return f"Mean over {clips} clips of {loops} loop{'s' if loops > 1 else ''}."
    if calibration.lvef.sd_offset is None:
        return "One clip could be analysed."
    return "One clip could be analysed; the interval assumes the largest spread between clips that is accepted."
