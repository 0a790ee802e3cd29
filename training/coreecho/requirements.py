"""What the comparison must show, held against what it measured: each line is met or not, and the command says so.

Called by ``study``. The order of the embeddings and the error on other scanners are held on phantoms; on a data set of
patients nothing is required, because its numbers are what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from training.enf.requirements import Requirement, as_markdown, as_rows

__all__ = ["Requirement", "as_markdown", "as_rows", "requirements"]

Document = Mapping[str, Any]
_DOMAINS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain"}


def requirements(measured: Document, *, phantoms: bool) -> list[Requirement]:
    """Return every requirement.

    Args:
        measured: from ``training.coreecho.measurements.document``.
        phantoms: whether the hearts are phantoms.
    """
    return [*_order(measured), *_error(measured)] if phantoms else []


def _order(measured: Document) -> Iterator[Requirement]:
    for domain, words in _DOMAINS.items():
        ours, theirs = _both(measured, domain, "order")
        yield Requirement(
            wanted=f"CoReEcho orders {words} embeddings by ejection fraction better than L1 alone (Spearman, mean of seeds)",
            found=f"{ours:.3f} against {theirs:.3f}",
            met=ours > theirs,
        )


def _error(measured: Document) -> Iterator[Requirement]:
    ours, theirs = _both(measured, "out_of_domain", "mae")
    yield Requirement(
        wanted="CoReEcho: out-of-domain MAE no larger than that of L1 alone (mean of seeds)",
        found=f"{ours:.2f} against {theirs:.2f}",
        met=ours <= theirs,
    )


def _both(measured: Document, domain: str, metric: str) -> tuple[float, float]:
    """Return the means over seeds of the method and of the baseline."""
    method, baseline = (model["domains"][domain][metric]["mean"] for model in measured["models"][:2])
    return float(method), float(baseline)
