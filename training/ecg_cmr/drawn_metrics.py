"""Metrics under many drawings of the patients at once: one pass of matrix products in place of a thousand loops.

Pure numpy. Called by ``training.ecg_cmr.evaluation``; knows no model and no data set. Every function returns one value per
drawing; the first drawing takes each row once, so its value is the metric itself and the others are its bootstrap.

Letters: B drawings, N rows, L distinct scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.metrics import Measured, patient_draws

FloatArray = NDArray[np.float64]
Drawn = dict[str, FloatArray]
"""One value per drawing, by name of the metric."""

REGRESSION = ("r2", "pearson", "mae", "bias", "loa_low", "loa_high", "slope")
CLASSIFICATION = ("auroc", "auprc", "brier", "prevalence", "mean_probability")
_LIMITS_OF_AGREEMENT_SD = 1.96


def patient_weights(patients: Sequence[str], *, draws: int, seed: int = 0) -> FloatArray:
    """Return how often each row is taken, [1 + draws, N]: once each, then as many patients as there are, with replacement.

    All rows of a patient are drawn together.
    """
    rows = patient_draws(patients, draws=draws, seed=seed)
    counts = [np.bincount(each, minlength=len(patients)) for each in rows]
    return np.stack([np.ones(len(patients)), *counts]).astype(np.float64)


def regression(truth_N: FloatArray, given_N: FloatArray, weights_BN: FloatArray) -> Drawn:
    """Return the metrics of ``REGRESSION``; rows without a truth (NaN) count in none of them.

    The slope is of the answer on the truth, as ``training.metrics.calibration_slope``: below 1 is shrinkage towards the
    mean. Bias and limits of agreement are of answer less truth.

    Source: Bland and Altman, Lancet 327 (1986), 307-310: bias plus and minus 1.96 standard deviations of the difference.
    """
    known = np.isfinite(truth_N)
    truth, given = truth_N[known], given_N[known]
    centre = truth.mean() if len(truth) else 0.0
    t, g = truth - centre, given - centre  # centred, so that sums of squares keep their digits
    columns = np.stack([np.ones_like(t), t, g, t * t, g * g, t * g, np.abs(g - t)], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        count, *sums = (weights_BN[:, known] @ columns).T
        means = [each / count for each in sums]
        return _of_moments(count, means)


def _of_moments(count: FloatArray, means: Sequence[FloatArray]) -> Drawn:
    t, g, tt, gg, tg, absolute = means
    variance_t, variance_g, covariance = tt - t * t, gg - g * g, tg - t * g
    variance_t = np.where(variance_t > 1e-12 * np.nanmax(tt, initial=0.0), variance_t, np.nan)
    squared, bias = gg - 2 * tg + tt, g - t
    spread = np.sqrt(np.maximum(squared - bias * bias, 0.0) * count / (count - 1))
    return {
        "r2": 1 - squared / variance_t,
        "pearson": covariance / np.sqrt(variance_t * np.maximum(variance_g, 0.0)),
        "mae": absolute,
        "bias": bias,
        "loa_low": bias - _LIMITS_OF_AGREEMENT_SD * spread,
        "loa_high": bias + _LIMITS_OF_AGREEMENT_SD * spread,
        "slope": covariance / variance_t,
    }


def classification(label_N: FloatArray, probability_N: FloatArray, weights_BN: FloatArray) -> Drawn:
    """Return the metrics of ``CLASSIFICATION`` at the prevalence the rows have; rows without a label (NaN) count in none.

    Ties count half in the AUROC (Mann-Whitney); the AUPRC is the average precision, sum of precision times gain in recall.
    A drawing of one class only says nothing of either: NaN.
    """
    known = np.isfinite(label_N)
    label, score, weights = label_N[known], probability_N[known], weights_BN[:, known]
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weights.sum(axis=1)
        return {
            **_ranked(label, score, weights),
            "brier": weights @ (score - label) ** 2 / total,
            "prevalence": weights @ label / total,
            "mean_probability": weights @ score / total,
        }


def _ranked(label: FloatArray, score: FloatArray, weights: FloatArray) -> Drawn:
    """AUROC and AUPRC from the positives and negatives at each distinct score, highest first."""
    nothing = np.full(len(weights), np.nan)
    if not len(label):
        return {"auroc": nothing, "auprc": nothing}
    levels, place = np.unique(-score, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(levels)))
    positive_BL = np.add.reduceat((weights * label)[:, order], starts, axis=1)
    negative_BL = np.add.reduceat((weights * (1 - label))[:, order], starts, axis=1)
    above_BL, taken_BL = positive_BL.cumsum(axis=1), (positive_BL + negative_BL).cumsum(axis=1)
    positives, negatives = above_BL[:, -1], negative_BL.sum(axis=1)
    both = (positives > 0) & (negatives > 0)
    auroc = ((above_BL - positive_BL / 2) * negative_BL).sum(axis=1) / (positives * negatives)
    precision_BL = np.divide(above_BL, taken_BL, out=np.zeros_like(above_BL), where=taken_BL > 0)
    auprc = (positive_BL * precision_BL).sum(axis=1) / positives
    return {"auroc": np.where(both, auroc, np.nan), "auprc": np.where(both, auprc, np.nan)}


def share(hit_N: NDArray[np.bool_], weights_BN: FloatArray) -> FloatArray:
    """Return the share of rows that are hits, one per drawing."""
    return np.asarray(weights_BN @ hit_N.astype(np.float64) / weights_BN.sum(axis=1))


def measured(values_B: FloatArray) -> Measured:
    """Return the value of the first drawing with the 95 % percentile interval over the others that have one."""
    finite = values_B[1:][np.isfinite(values_B[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (math.nan, math.nan)
    return Measured(value=float(values_B[0]), low=float(low), high=float(high))


def as_json(found: Measured) -> dict[str, float | None]:
    """Return the three numbers, None where there is none: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in found.as_dict().items()}


def mean_of(drawn: Sequence[Mapping[str, FloatArray]]) -> Drawn:
    """Return the drawing-wise mean over seeds of metrics that all have."""
    return {name: np.mean([each[name] for each in drawn], axis=0) for name in drawn[0]}
