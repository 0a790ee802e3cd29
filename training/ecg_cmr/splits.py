"""Which patient serves which purpose: a hash of the patient and nothing else, the same for every modality and every stage.

So a tower, an encoder and a probe that were trained apart never met a test patient, and neither order nor number of the
other patients moves anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

PUBLISHED_SHARES = {"training": 70, "validation": 15, "test": 15}
CALIBRATED_SHARES = {"training": 60, "validation": 10, "calibration": 15, "test": 15}
"""Percent of the patients; the second keeps some that set intervals and probabilities, whom no network saw."""


def part_of(patient: str, salt: str, shares: Mapping[str, int] = PUBLISHED_SHARES) -> str:
    """Return the part of a patient, by ``sha256(salt|patient) mod 100``.

    Args:
        patient: names the patient; all records of one carry the same name.
        salt: names the split; another salt is another split.
        shares: percent by part, together 100.

    Raises:
        ValueError: no patient is named, or the shares are not together 100.
    """
    if not patient:
        raise ValueError("a record names no patient; expected a name, so that no patient is in two parts")
    if sum(shares.values()) != 100:
        raise ValueError(f"the shares are {dict(shares)}; expected percents that are together 100")
    place = int.from_bytes(hashlib.sha256(f"{salt}|{patient}".encode()).digest(), "big") % 100
    ends = iter(shares.items())
    part, edge = next(ends)
    while place >= edge:
        part, share = next(ends)
        edge += share
    return part
