"""Calibration hearts to the calibration numbers of the manifest, one function per modality.

Called by ``training.export``. The predictor of the engines reads these numbers; both sides average clips alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines.bundle.calibration import (
    CmrPostprocess,
    ConformalEstimate,
    EcgPostprocess,
    EchoPostprocess,
    ProbabilityTable,
    ReconstructionGate,
    WideIntervals,
)
from engines.predictors.distance import EmbeddingStatistics
from engines.records import Modality
from training.calibrate import VennAbersTable, conformal_half_width, smoothed_venn_abers_table, venn_abers_table
from training.data.targets import DISEASES, ESTIMATES, LVEF_CONDITIONS
from training.outputs import HeartOutputs

FloatArray = NDArray[np.float64]

LIMIT_PERCENTILE = 99.5
GATE_PERCENTILE = 0.5
LEAST_OFFSET = 0.1
"""EF points; clips that agree exactly do not make an interval without width."""
UNDECIDED_PERCENT = 2.0
"""Share of the calibration hearts, those nearest to the threshold, that a cardiac MR engine calls neither present nor absent."""
UNITS = {
    "lvef": "%",
    "rvef": "%",
    "cardiac_output": "l/min",
    "lvedv": "ml",
    "lvesv": "ml",
    "rvedv": "ml",
    "rvesv": "ml",
    "lv_mass": "g",
}
"""UCUM code of every quantity that a bundle may estimate."""
RANGES = {
    "lvef": (0.0, 100.0),
    "rvef": (0.0, 100.0),
    "cardiac_output": (0.0, 30.0),
    "lvedv": (0.0, 1000.0),
    "lvesv": (0.0, 1000.0),
    "rvedv": (0.0, 1000.0),
    "rvesv": (0.0, 1000.0),
    "lv_mass": (0.0, 1000.0),
}
"""What a quantity can be at all, in its unit."""
_THRESHOLD_PROBABILITY = 0.5
_VENN_ABERS_COVERAGE: Literal[100] = 100


def echo_postprocess(
    calibration: HeartOutputs, coverage_percent: float | None, *, by_spread: bool = False
) -> EchoPostprocess:
    """Return interval and spread limit of the ejection fraction, averaged over clips.

    Args:
        calibration: hearts the network never saw.
        coverage_percent: of the interval.
        by_spread: widen the interval where the clips of a heart differ more: residuals are divided by (standard deviation
            between clips + its median over the hearts). Of one clip the spread is the limit, as the predictor assumes.

    Source: Papadopoulos, Gammerman, Vovk, "Normalized nonconformity measures for regression conformal prediction", 2008.
    """
    estimate = _conformal("lvef", calibration.heart_means("ef")[:, 0], calibration.targets["lvef"], coverage_percent)
    spreads = [float(clips[:, 0].std(ddof=1)) if len(clips) > 1 else np.nan for clips in calibration.clips["ef"]]
    limit = round(float(np.nanpercentile(spreads, LIMIT_PERCENTILE)), 3)
    if by_spread:
        estimate = _by_spread(estimate, calibration, np.nan_to_num(np.array(spreads), nan=limit))
    return EchoPostprocess(modality=Modality.ECHO, lvef=estimate, clip_sd_limit_percent=limit)


def _by_spread(estimate: ConformalEstimate, calibration: HeartOutputs, spreads: FloatArray) -> ConformalEstimate:
    offset = round(max(float(np.median(spreads)), LEAST_OFFSET), 4)
    residuals = np.abs(calibration.heart_means("ef")[:, 0] - calibration.targets["lvef"])
    quantile = conformal_half_width(residuals / (spreads + offset), estimate.coverage_percent)
    return estimate.model_copy(update={"conformal_quantile": round(quantile, 4), "sd_offset": offset})


def cmr_postprocess(calibration: HeartOutputs, condition: str | None) -> CmrPostprocess:
    """Return the probability table of a condition of ``LVEF_CONDITIONS``; Venn-Abers pairs name no coverage."""
    if condition is None:
        msg = f"a cardiac MR bundle states no condition; expected one of {', '.join(LVEF_CONDITIONS)}"
        raise ValueError(msg)
    logits = calibration.heart_means("logit")[:, 0]
    risk = _table(condition, logits, calibration, smoothed_venn_abers_table)
    return CmrPostprocess(
        modality=Modality.CMR,
        risk=risk,
        undecided_logits=_undecided_logits(risk, logits),
        reconstruction_gate=_reconstruction_gate(calibration),
    )


def _undecided_logits(risk: ProbabilityTable, logits: FloatArray) -> float:
    """Return the distance from the crossing of the threshold that ``UNDECIDED_PERCENT`` of the hearts do not exceed."""
    if not np.isfinite(risk.crossing_logit):
        return 0.0
    return round(float(np.percentile(np.abs(logits - risk.crossing_logit), UNDECIDED_PERCENT)), 4)


def _reconstruction_gate(calibration: HeartOutputs) -> ReconstructionGate | None:
    """Return the PSNR that ``GATE_PERCENTILE`` of the hearts stay below in one of their frames; None without one."""
    if "psnr_db" not in calibration.clips:
        return None
    worst_db = calibration.all_rows("psnr_db").min(axis=1)
    minimum_db = float(np.percentile(worst_db, GATE_PERCENTILE))
    return ReconstructionGate(output="psnr_db", minimum_db=round(minimum_db, 3), percentile=GATE_PERCENTILE)


def ecg_postprocess(
    calibration: HeartOutputs,
    coverage_percent: float | None,
    *,
    estimates: Sequence[str] = ESTIMATES,
    diseases: Sequence[str] = DISEASES,
) -> EcgPostprocess:
    """Return the intervals of the estimates and the tables of the conditions, in the order of the network's columns."""
    values = calibration.heart_means("estimates")
    logits = calibration.heart_means("disease_logits")
    intervals = [
        _conformal(name, values[:, index], calibration.targets[name], coverage_percent)
        for index, name in enumerate(estimates)
    ]
    conditions = [_table(name, logits[:, index], calibration) for index, name in enumerate(diseases)]
    return EcgPostprocess(modality=Modality.ECG, estimates=tuple(intervals), conditions=tuple(conditions))


def wide_intervals(
    calibration: HeartOutputs, coverage_percent: float, estimates: Sequence[str] = ESTIMATES
) -> WideIntervals:
    """Return the second intervals of the estimates of an ECG network, from the same hearts as the first."""
    values = calibration.heart_means("estimates")
    found = [
        _conformal(name, values[:, index], calibration.targets[name], coverage_percent)
        for index, name in enumerate(estimates)
    ]
    return WideIntervals(
        coverage_percent=coverage_percent, conformal_quantiles=tuple(each.conformal_quantile for each in found)
    )


def distance_limit(statistics: EmbeddingStatistics, held_out: HeartOutputs) -> float:
    """Return the distance that ``LIMIT_PERCENTILE`` of held-out hearts stay under."""
    distances = [statistics.distance(clips) for clips in held_out.clips["embedding"]]
    return float(np.percentile(distances, LIMIT_PERCENTILE))


def _conformal(
    quantity: str, predicted: FloatArray, truth: FloatArray, coverage_percent: float | None
) -> ConformalEstimate:
    if coverage_percent is None:
        msg = f"the interval of {quantity} has no coverage; state coverage_percent in the recipe"
        raise ValueError(msg)
    minimum, maximum = RANGES[quantity]
    return ConformalEstimate(
        quantity=quantity,
        unit=UNITS[quantity],
        coverage_percent=coverage_percent,
        conformal_quantile=round(conformal_half_width(np.abs(predicted - truth), coverage_percent), 4),
        sd_offset=None,
        minimum=minimum,
        maximum=maximum,
    )


def _table(
    condition: str,
    logits: FloatArray,
    calibration: HeartOutputs,
    table_of: Callable[[FloatArray, FloatArray], VennAbersTable] = venn_abers_table,
) -> ProbabilityTable:
    table = table_of(logits, calibration.targets[condition])
    return ProbabilityTable(
        condition=condition,
        threshold_probability=_THRESHOLD_PROBABILITY,
        coverage_percent=_VENN_ABERS_COVERAGE,
        logits=tuple(table.scores.tolist()),
        low=tuple(table.low_probabilities.tolist()),
        high=tuple(table.high_probabilities.tolist()),
    )
