"""What the cross-modal check found: how alike a study and one of the same patient in the other modality are.

The record of it, and the form it has in an event and among the algorithm parameters of a report. Made by
``partner_check``; no number in it measures the heart, and nothing in it names the patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from engines.predictors.similarity import Similarity
from engines.records import Modality

PARTNERS: Final = {Modality.ECG: Modality.CMR, Modality.CMR: Modality.ECG}
"""Which modality each one is compared with."""

NAMES: Final = {Modality.ECG: "ECG", Modality.CMR: "cardiac MR"}
"""What sentences call them."""

_PREFIX: Final = "cross_modal_"
_TRUTH: Final = {"yes": True, "no": False}
_EMBEDDING_DIGITS: Final = 6
_COSINE_DIGITS, _PERCENT_DIGITS = 3, 1


@dataclass(frozen=True, kw_only=True)
class CrossModalFinding:
    """A comparison, or why there was none although the partner is there.

    Args:
        partner_study_instance_uid: of the study of the same patient.
        partner_modality: what it holds.
        days_apart: between both Study Dates.
        bundle_sha256: of the engine that compares; for a cardiac MR study another one than that of its answer.
        similarity: what was found, or None.
        embedding: of the images, in the space shared with the ECG; empty where a report was read, which keeps none.
        not_compared: why there is no similarity, as the end of a sentence, or None.

    Raises:
        ValueError: both or neither of similarity and reason are given.
    """

    partner_study_instance_uid: str
    partner_modality: Modality
    days_apart: int
    bundle_sha256: str
    similarity: Similarity | None = None
    embedding: tuple[float, ...] = ()
    not_compared: str | None = None

    def __post_init__(self) -> None:
        if (self.similarity is None) == (self.not_compared is None):
            msg = "a finding holds either a similarity or the reason why there is none; give exactly one of them"
            raise ValueError(msg)

    def event(self) -> dict[str, Any]:
        """The finding as JSON values; numbers are null where nothing was compared."""
        said = self.similarity
        return {
            "partner_study_instance_uid": self.partner_study_instance_uid,
            "partner_modality": self.partner_modality.value,
            "days_apart": self.days_apart,
            "bundle_sha256": self.bundle_sha256,
            "cosine": None if said is None else said.cosine,
            "own_percent": None if said is None else said.own_percent,
            "others_percent": None if said is None else said.others_percent,
            "below_limit": None if said is None else said.below_limit,
            "embedding": None if said is None else [round(each, _EMBEDDING_DIGITS) + 0.0 for each in self.embedding],
            "not_compared": self.not_compared,
        }

    def parameters(self) -> dict[str, str]:
        """The finding as algorithm parameters; the embedding is for the log only."""
        stated = {
            "partner_study_instance_uid": self.partner_study_instance_uid,
            "partner_modality": self.partner_modality.value,
            "days_apart": str(self.days_apart),
            "bundle_sha256": self.bundle_sha256,
            **({} if self.not_compared is None else {"not_compared": self.not_compared}),
            **({} if self.similarity is None else _numbers(self.similarity)),
        }
        return {f"{_PREFIX}{name}": value for name, value in stated.items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self | None:
        """What ``parameters`` stated; None where a report holds none of them.

        Raises:
            KeyError: one is missing.
            ValueError: one is not of its form.
        """
        stated = {name.removeprefix(_PREFIX): text for name, text in parameters.items() if name.startswith(_PREFIX)}
        if not stated:
            return None
        return cls(
            partner_study_instance_uid=stated["partner_study_instance_uid"],
            partner_modality=Modality(stated["partner_modality"]),
            days_apart=int(stated["days_apart"]),
            bundle_sha256=stated["bundle_sha256"],
            similarity=_similarity(stated) if "cosine" in stated else None,
            not_compared=stated.get("not_compared"),
        )

    def with_embedding(self, found: CrossModalFinding | None) -> CrossModalFinding:
        """The finding with the embedding of the one that was just made, which no report keeps."""
        return self if found is None else replace(self, embedding=found.embedding)


def cosine_text(similarity: Similarity) -> str:
    """The cosine as everybody reads it."""
    return f"{round(similarity.cosine, _COSINE_DIGITS) + 0.0:.{_COSINE_DIGITS}f}"


def percent_text(percent: float) -> str:
    """A share as everybody reads it, without its unit."""
    return f"{round(percent, _PERCENT_DIGITS) + 0.0:.{_PERCENT_DIGITS}f}"


def _numbers(similarity: Similarity) -> dict[str, str]:
    return {
        "cosine": cosine_text(similarity),
        "own_percent": percent_text(similarity.own_percent),
        "others_percent": percent_text(similarity.others_percent),
        "below_limit": next(word for word, truth in _TRUTH.items() if truth == similarity.below_limit),
    }


def _similarity(stated: Mapping[str, str]) -> Similarity:
    return Similarity(
        cosine=_within(stated["cosine"], -1.0, 1.0),
        own_percent=_within(stated["own_percent"], 0.0, 100.0),
        others_percent=_within(stated["others_percent"], 0.0, 100.0),
        below_limit=_TRUTH[stated["below_limit"]],
    )


def _within(text: str, low: float, high: float) -> float:
    number = float(text)
    if not low <= number <= high:
        msg = f"a number of the cross-modal check lies outside {low:g} to {high:g}"
        raise ValueError(msg)
    return number
