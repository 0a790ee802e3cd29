"""What the study on phantoms must show, held against what it measured: each line is met or not, and the command says so.

Called by the study. On a data set of patients nothing is required, because its numbers are what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from training.ecg_cmr.outcome import MODELS, VARIANTS
from training.enf.requirements import Requirement, as_markdown, as_rows

__all__ = ["Requirement", "as_markdown", "as_rows", "requirements"]

Document = Mapping[str, Any]
WORSE_R2 = 0.02
"""A variant is not worse where its R2 is at most this much lower and the interval of the difference does not lie below 0."""
LEAST_TOP1 = 0.8
_NOT_WORSE = (
    ("triplet", "volume"),
    ("volume", "slice"),
    *((variant, "ecg_only") for variant in VARIANTS if variant != "ecg_only"),
)


def requirements(
    measured: Document, *, phantoms: bool, easy: Document | None = None, probe: str = "linear"
) -> list[Requirement]:
    """Return every requirement.

    Args:
        measured: from ``training.ecg_cmr.measurements.document``.
        phantoms: whether the hearts are phantoms.
        easy: document of the easy set, on which retrieval is held; None where it was not run.
        probe: the order is held for.

    Raises:
        ValueError: a variant the requirements speak of was not run.
    """
    if not phantoms:
        return []
    return [*_order(measured, probe), *(_retrieval(easy) if easy is not None else ())]


def _order(measured: Document, probe: str) -> Iterator[Requirement]:
    for model, less in _NOT_WORSE:
        found = _difference(measured, model, less, probe)
        value, low, high = (float(found[name]) for name in ("value", "low", "high"))
        yield Requirement(
            wanted=f"LVEF: {VARIANTS[model]} is not worse than {VARIANTS[less]} (R2 at most {WORSE_R2:g} lower, not all below 0)",
            found=f"{value:+.3f} [{low:+.3f}, {high:+.3f}]",
            met=value >= -WORSE_R2 and high >= 0,
        )


def _difference(measured: Document, model: str, less: str, probe: str) -> Document:
    for each in measured["differences"]:
        if (each["model"], each["less"], each["probe"]) == (model, less, probe) and "lvef" in each["numbers"]:
            found: Document = each["numbers"]["lvef"]["r2"]
            return found
    raise ValueError(f"no difference of {model} and {less} in LVEF with the {probe} probe; run both variants")


def _retrieval(easy: Document) -> Iterator[Requirement]:
    """The triplet and every pairwise variant must find the patient's own images on the easy set."""
    found = [model for model in easy["models"] if "retrieval" in model["numbers"]]
    if not found:
        raise ValueError("no model of the easy set has projections; run a contrastive variant on it")
    for model in found:
        for direction, words in (("ecg_to_cmr", "images by ECG"), ("cmr_to_ecg", "ECG by images")):
            top1 = model["numbers"]["retrieval"][f"{direction}_top1"]
            yield Requirement(
                wanted=f"easy set: {MODELS[model['model']]} finds {words} first in more than {LEAST_TOP1:g} of patients",
                found=f"{top1['value']:.3f} [{top1['low']:.3f}, {top1['high']:.3f}]",
                met=float(top1["value"]) > LEAST_TOP1,
            )
