"""Two short-axis images to the calibrated probability of a reduced ejection fraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.calibration import CmrPostprocess, ReconstructionGate
from engines.errors import RefusalCode
from engines.predictions import Abstention
from engines.predictors.answer import Answer, out_of_distribution, probability, within_distribution
from engines.predictors.latent_picture import Latents
from engines.preprocess.registry import Prepared

Outputs = Mapping[str, NDArray[Any]]


def answer_cmr(
    prepared: Sequence[Prepared], outputs: Sequence[Outputs], scores: Sequence[float], calibration: CmrPostprocess
) -> Answer:
    """Calibrate the logit of the one stack.

    Where the network rebuilds its images, a poor reconstruction comes first: its latents do not hold the heart, so
    neither the logit nor the distance to the training data means anything.

    Args:
        prepared: the one stack.
        outputs: of it, ``logit`` float32 [1, 1]; where the manifest has a gate ``psnr_db`` float32 [1, 2]; where the
            network gives them ``poses`` float32 [1, N, 3] and ``relevance`` float32 [1, 2, N].
        scores: of it.
        calibration: from the manifest.
    """
    output, score, gate = outputs[0], scores[0], calibration.reconstruction_gate
    if gate is not None and not _rebuilt(output, gate):
        return Answer(used=tuple(prepared), score=score, abstention=_poor_reconstruction(output, gate))
    if not within_distribution(score):
        return replace(out_of_distribution(prepared, score), notes=_reconstruction_note(output, gate))
    risk = probability(calibration.risk, float(output["logit"][0, 0]), undecided_logits=calibration.undecided_logits)
    return Answer(
        used=tuple(prepared),
        score=score,
        probabilities=(risk,),
        notes=(*_undecided(risk.decision), *_reconstruction_note(output, gate)),
        latents=_latents(prepared[0], output),
    )


def _undecided(decision: bool | None) -> tuple[str, ...]:
    if decision is not None:
        return ()
    return ("The result lies too near to the threshold: neither present nor absent is called.",)


def _rebuilt(output: Outputs, gate: ReconstructionGate) -> bool:
    return bool(np.all(output[gate.output][0] >= gate.minimum_db))


def _poor_reconstruction(output: Outputs, gate: ReconstructionGate) -> Abstention:
    reason = (
        f"The model could not rebuild the images from what it read: {_found(output, gate)}, expected at least "
        f"{gate.minimum_db:.1f} dB for both. No value is given; check the cine for artefacts and wrong slices, "
        "or read the study by other means."
    )
    return Abstention(code=RefusalCode.RECONSTRUCTION_POOR, reason=reason)


def _reconstruction_note(output: Outputs, gate: ReconstructionGate | None) -> tuple[str, ...]:
    if gate is None:
        return ()
    return (f"Reconstruction of the images: {_found(output, gate)} (accepted from {gate.minimum_db:.1f} dB).",)


def _found(output: Outputs, gate: ReconstructionGate) -> str:
    end_diastole_db, end_systole_db = (float(value) for value in output[gate.output][0])
    return f"PSNR {end_diastole_db:.1f} dB at end-diastole, {end_systole_db:.1f} dB at end-systole"


def _latents(stack: Prepared, output: Outputs) -> Latents | None:
    if not {"poses", "relevance"} <= output.keys():
        return None
    return Latents(
        images_FSS=stack.arrays["image"][0],
        poses_N3=output["poses"][0],
        relevance_FN=output["relevance"][0],
        shown=stack.notes,
    )
