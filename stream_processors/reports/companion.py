"""The companion of a measurement report: the same result as a text that every viewer prints.

Enhanced SR with the Diagnostic Imaging Report root (TID 2000): viewers that show nothing for a measurement report
without coordinates show this one in full. Headings with TEXT items only, since viewers print no deeper. Called by
``measurement_report``.
"""

from __future__ import annotations

from typing import Any

import highdicom as hd
from highdicom.sr import RelationshipTypeValues as Relationship
from pydicom.sr.coding import Code

from engines.predictions import Prediction
from stream_processors.cross_modal import CrossModalFinding
from stream_processors.reports import codes
from stream_processors.reports.content import text
from stream_processors.reports.evidence import Evidence
from stream_processors.reports.wording import (
    cross_modal_sentences,
    evidence_sentences,
    model_sentences,
    picture_sentences,
    result_sentences,
    status_sentences,
)

COMPANION_SOP_CLASS_UID = "1.2.840.10008.5.1.4.1.1.88.22"


def companion_root(
    prediction: Prediction,
    evidence: Evidence,
    observation_context: Any,
    cross_modal: CrossModalFinding | None,
) -> Any:
    """Content tree of the companion.

    Args:
        prediction: what it says.
        evidence: what the report could refer to.
        observation_context: language and device observer, as in the measurement report.
        cross_modal: what the check against the patient's other study found, or None.
    """
    root = hd.sr.ContainerContentItem(codes.DIAGNOSTIC_IMAGING_REPORT, template_id="2000")
    root.ContentSequence = hd.sr.ContentSequence(observation_context)
    findings = [*status_sentences(prediction.model), *result_sentences(prediction)]
    root.ContentSequence.append(_section(codes.FINDINGS, codes.FINDING, findings))
    notes = [
        *cross_modal_sentences(cross_modal),
        *prediction.notes,
        *picture_sentences(prediction),
        *evidence_sentences(evidence),
    ]
    if notes:
        root.ContentSequence.append(_section(codes.SUMMARY, codes.CONCLUSION, notes))
    procedure = _section(codes.CURRENT_PROCEDURE_DESCRIPTIONS, codes.PROCEDURE_DESCRIPTION, model_sentences(prediction))
    root.ContentSequence.append(procedure)
    return root


def _section(heading: Code, element: Code, sentences: list[str]) -> Any:
    section = hd.sr.ContainerContentItem(heading, relationship_type=Relationship.CONTAINS)
    section.ContentSequence = hd.sr.ContentSequence([text(element, sentence) for sentence in sentences])
    return section
