"""What an ECG report says: cardiac function inferred from the ECG, and the probability of each disease.

One group (TID 1501) with the estimates, then one for each disease: a finding alone would read as a statement that it
is there, so each carries its presence beside the probability. Sources are WAVEFORM items. No concept names a method of
measuring, and each number carries the ECG as its method: an inferred value never passes for a measured one. Called by
``measurement_report``.
"""

from __future__ import annotations

from typing import Any

import highdicom as hd
from highdicom.sr import RelationshipTypeValues as Relationship

from engines.predictions import ClassProbability, Estimate
from engines.records import Modality
from stream_processors.reports import codes
from stream_processors.reports.content import (
    Items,
    Subject,
    algorithm,
    estimate_number,
    modifier,
    probability_number,
    tracking,
    waveform_sources,
)


def groups(subject: Subject) -> Items:
    """The measurement groups of an answered ECG.

    Raises:
        ValueError: a quantity or condition that this report has no code for.
    """
    prediction = subject.prediction
    unknown = [estimate.quantity for estimate in prediction.estimates if _key(estimate) not in codes.QUANTITIES]
    unknown += [item.condition for item in prediction.probabilities if item.condition not in codes.CONDITIONS]
    if unknown:
        msg = f"no code for {unknown}; add it to stream_processors.reports.codes"
        raise ValueError(msg)
    function = [_function_group(subject)] if prediction.estimates else []
    return function + [_disease_group(subject, probability) for probability in prediction.probabilities]


def _function_group(subject: Subject) -> Any:
    measurements = [_function_number(subject, estimate) for estimate in subject.prediction.estimates]
    return _group(subject, "cardiac_function", "Cardiac function, inferred from ECG", measurements=measurements)


def _function_number(subject: Subject, estimate: Estimate) -> Any:
    quantity = codes.QUANTITIES[_key(estimate)]
    modifiers = [
        modifier(codes.DERIVATION, codes.ESTIMATED),
        modifier(codes.MEASUREMENT_METHOD, codes.TWELVE_LEAD_ECG),
        modifier(codes.FINDING_SITE, quantity.site),
    ]
    return estimate_number(estimate, quantity, modifiers, _inferred_from(subject))


def _disease_group(subject: Subject, probability: ClassProbability) -> Any:
    condition = codes.CONDITIONS[probability.condition]
    return _group(
        subject,
        probability.condition,
        f"Probability, inferred from ECG: {condition.label}",
        finding_type=condition.finding,
        measurements=[probability_number(probability, _inferred_from(subject))],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(codes.PRESENCE_OF_PROPERTY, codes.presence_of(probability.decision))
        ],
    )


def _group(subject: Subject, quantity: str, label: str, **content: Any) -> Any:
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking(subject, quantity, label),
        algorithm_id=algorithm(subject),
        **content,
    )


def _inferred_from(subject: Subject) -> Items:
    return waveform_sources(subject.evidence.sources, Relationship.INFERRED_FROM)


def _key(estimate: Estimate) -> tuple[Modality, str]:
    return Modality.ECG, estimate.quantity
