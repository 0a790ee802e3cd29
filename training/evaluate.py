"""What a bundle says of hearts it never saw, measured through the serving path of the engines.

The answers are ``Prediction`` values, exactly as a report would get them; nothing here knows the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.bundle.parts import TensorSpec
from engines.predictions import Interval, Prediction
from engines.predictors.base import load_predictor
from engines.preprocess.registry import Prepared
from engines.records import SourceInstance
from training.data.heart_arrays import HeartArrays
from training.data.splits import Indices
from training.metrics import (
    Measured,
    auroc,
    bootstrap,
    brier_score,
    calibration_slope,
    mean_absolute_error,
    r_squared,
    root_mean_square_error,
    wilson_interval,
)

FloatArray = NDArray[np.float64]
Truths = Sequence[Mapping[str, float]]

_UNIT_NAMES = {"%": "percent", "l/min": "l_min", "ml": "ml", "g": "g"}
_NOWHERE = SourceInstance(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.66", sop_instance_uid="2.25.1", series_instance_uid="2.25.2"
)


def evaluate_bundle(bundle: Path, arrays: HeartArrays, hearts: Indices, input_spec: TensorSpec) -> dict[str, float]:
    """Return the metrics of a bundle on some hearts, by name with the unit at the end.

    Args:
        bundle: folder of the bundle.
        arrays: prepared with the bundle's own specification.
        hearts: rows to evaluate; those that the preprocessing refused count as refused.
        input_spec: of the bundle's one input.
    """
    usable = arrays.usable(hearts)
    predictor = load_predictor(bundle)
    try:
        predictions = [predictor.predict([_prepared(arrays, heart, input_spec.name)]) for heart in usable]
    finally:
        predictor.close()
    truths = [dict(zip(arrays.columns, map(float, arrays.targets[heart]), strict=True)) for heart in usable]
    return metrics_of(predictions, truths, refused_by_preprocessing=len(hearts) - len(usable))


def metrics_of(predictions: Sequence[Prediction], truths: Truths, *, refused_by_preprocessing: int) -> dict[str, float]:
    """Return the metrics of answers against truths; both in the same order, one per heart that was prepared."""
    total = len(predictions) + refused_by_preprocessing
    answered = [(given, truth) for given, truth in zip(predictions, truths, strict=True) if given.abstention is None]
    metrics = {"test_hearts": float(total)}
    metrics |= _flat("refused_or_abstained_share", wilson_interval(total - len(answered), total))
    if not answered:
        return metrics
    first = answered[0][0]
    for index, estimate in enumerate(first.estimates):
        metrics |= _estimate_metrics(index, estimate.quantity, _UNIT_NAMES[estimate.unit], answered)
    for index, probability in enumerate(first.probabilities):
        metrics |= _probability_metrics(index, probability.condition, answered)
    return metrics


Answered = Sequence[tuple[Prediction, Mapping[str, float]]]


def _estimate_metrics(index: int, quantity: str, unit: str, answered: Answered) -> dict[str, float]:
    estimates = [prediction.estimates[index] for prediction, _ in answered]
    truth = _array(truths[quantity] for _, truths in answered)
    value = _array(estimate.value for estimate in estimates)
    wide = [estimate.wide_interval for estimate in estimates if estimate.wide_interval is not None]
    return {
        **_flat(f"{quantity}_mean_absolute_error_{unit}", bootstrap(mean_absolute_error, truth, value)),
        **_flat(f"{quantity}_root_mean_square_error_{unit}", bootstrap(root_mean_square_error, truth, value)),
        **_flat(f"{quantity}_r_squared", bootstrap(r_squared, truth, value)),
        f"{quantity}_slope": calibration_slope(truth, value),
        **_interval_metrics(quantity, unit, truth, [estimate.interval for estimate in estimates], name="interval"),
        **(_interval_metrics(quantity, unit, truth, wide, name="wide_interval") if wide else {}),
    }


def _interval_metrics(
    quantity: str, unit: str, truth: FloatArray, intervals: Sequence[Interval], *, name: str
) -> dict[str, float]:
    low, high = _array(each.low for each in intervals), _array(each.high for each in intervals)
    coverage = f"{quantity}_inside_{intervals[0].coverage_percent:g}_percent_interval_share"
    return {
        **_flat(coverage, wilson_interval(int(np.sum((low <= truth) & (truth <= high))), len(truth))),
        f"{quantity}_median_{name}_width_{unit}": float(np.median(high - low)),
    }


def _probability_metrics(index: int, condition: str, answered: Answered) -> dict[str, float]:
    given = [prediction.probabilities[index] for prediction, _ in answered]
    label = _array(truths[condition] for _, truths in answered)
    probability = _array(item.probability for item in given)
    decided = [
        (item.decision, bool(truth)) for item, truth in zip(given, label, strict=True) if item.decision is not None
    ]
    metrics = {f"{condition}_prevalence": float(label.mean()), f"{condition}_brier": brier_score(label, probability)}
    if 0 < label.sum() < len(label):
        metrics |= _flat(f"{condition}_auroc", bootstrap(auroc, label, probability))
    metrics |= _flat(f"{condition}_decided_share", wilson_interval(len(decided), len(given)))
    if decided:
        right = sum(decision == truth for decision, truth in decided)
        metrics |= _flat(f"{condition}_decided_right_share", wilson_interval(right, len(decided)))
    return metrics


def _prepared(arrays: HeartArrays, heart: int, name: str) -> Prepared:
    inputs = np.array(arrays.inputs[heart, : arrays.clips[heart]])
    return Prepared(arrays={name: inputs}, sources=(_NOWHERE,), region_px=None, notes=())


def _flat(name: str, measured: Measured) -> dict[str, float]:
    return {
        name: round(measured.value, 4),
        f"{name}_low": round(measured.low, 4),
        f"{name}_high": round(measured.high, 4),
    }


def _array(values: Iterable[float]) -> FloatArray:
    return np.fromiter(values, dtype=np.float64)
