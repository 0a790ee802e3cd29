"""What a cardiac MR report says: the probability that the left ventricular ejection fraction is low.

One group (TID 1410) on the analysed crop of the end-diastolic frame, with the picture that explains the probability
where the engine drew one. Called by ``measurement_report``.
"""

from __future__ import annotations

import highdicom as hd

from stream_processors.reports import codes
from stream_processors.reports.content import Items, Subject, group, image_sources, probability_number
from stream_processors.reports.picture import picture_item


def groups(subject: Subject) -> Items:
    """The measurement groups of an answered cardiac MR study.

    Raises:
        ValueError: the prediction holds anything but one probability of ``codes.LVEF_CONDITIONS``.
    """
    probabilities = subject.prediction.probabilities
    conditions = [probability.condition for probability in probabilities]
    if len(conditions) != 1 or conditions[0] not in codes.LVEF_CONDITIONS or subject.prediction.estimates:
        known = ", ".join(codes.LVEF_CONDITIONS)
        msg = f"a cardiac MR report states one probability, of {known}; the prediction holds {conditions}"
        raise ValueError(msg)
    decision = probabilities[0].decision
    condition = codes.LVEF_CONDITIONS[conditions[0]]
    answer = group(
        subject,
        conditions[0],
        f"Probability: {condition.label}",
        finding_type=condition.finding,
        measurements=[probability_number(probabilities[0], image_sources(subject.evidence.sources))],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(codes.PRESENCE_OF_PROPERTY, codes.presence_of(decision)),
            hd.sr.QualitativeEvaluation(codes.CARDIOVASCULAR_EVENT_RISK, codes.risk_of(decision)),
        ],
    )
    if subject.prediction.picture is not None:
        answer[0].ContentSequence.append(picture_item(subject.context.key))
    return [answer]
