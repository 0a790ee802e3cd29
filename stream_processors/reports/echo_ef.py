"""What an echo report says: the left ventricular ejection fraction of the study, on the region that was analysed.

One group (TID 1410), so that viewers open the clip and print the number on it. Called by ``measurement_report``.
"""

from __future__ import annotations

from engines.predictions import Estimate
from engines.records import Modality
from stream_processors.reports import codes
from stream_processors.reports.content import Items, Subject, estimate_number, group, image_sources, modifier
from stream_processors.reports.evidence import first_value


def groups(subject: Subject) -> Items:
    """The measurement groups of an answered echo study.

    Raises:
        ValueError: the prediction holds anything but one ejection fraction.
    """
    estimates = subject.prediction.estimates
    if [estimate.quantity for estimate in estimates] != ["lvef"] or subject.prediction.probabilities:
        msg = f"an echo report states one LVEF; the prediction holds {[estimate.quantity for estimate in estimates]}"
        raise ValueError(msg)
    quantity = codes.QUANTITIES[Modality.ECHO, "lvef"]
    modifiers, sources = _modifiers(subject, estimates[0]), image_sources(subject.evidence.sources)
    item = estimate_number(estimates[0], quantity, modifiers, sources)
    return [group(subject, "lvef", quantity.label, measurements=[item])]


def _modifiers(subject: Subject, estimate: Estimate) -> Items:
    """Derivation, site, and the view where the sources state it: an assumed view is not written as a fact."""
    averaged = estimate.between_clip_sd is not None
    modifiers = [
        modifier(codes.DERIVATION, codes.MEAN if averaged else codes.ESTIMATED),
        modifier(codes.FINDING_SITE, codes.LEFT_VENTRICLE),
    ]
    if _view_is_stated(subject):
        modifiers.append(modifier(codes.IMAGE_VIEW, codes.APICAL_FOUR_CHAMBER))
    return modifiers


def _view_is_stated(subject: Subject) -> bool:
    used = {source.sop_instance_uid for source in subject.prediction.sources}
    views = [
        first_value(item, "CodeValue")
        for header in subject.context.evidence
        if header.SOPInstanceUID in used
        for item in header.get("ViewCodeSequence", ())
    ]
    return len(views) == len(used) and set(views) == {codes.APICAL_FOUR_CHAMBER.value}
