"""Which patient serves which purpose: a hash of the patient and nothing else, the same for every modality and every stage.

So a tower, an encoder and a probe that were trained apart never met a test patient, and neither order nor number of the
other patients moves anybody.
"""

from __future__ import annotations

import hashlib

PARTS = ("train", "validation", "test")
SHARES_PERCENT = (70, 15, 15)


def hash_split(patient: str, salt: str) -> str:
    """Return the part of a patient: ``sha256(salt | patient) mod 100`` below 70, below 85, or above.

    Args:
        patient: names the patient; all records of one carry the same name.
        salt: names the split; another salt is another split.

    Raises:
        ValueError: no patient is named.
    """
    if not patient:
        raise ValueError("a record names no patient; expected a name, so that no patient is in two parts")
    place = int.from_bytes(hashlib.sha256(f"{salt}|{patient}".encode()).digest(), "big") % 100
    edge = 0
    for part, share in zip(PARTS, SHARES_PERCENT, strict=True):
        edge += share
        if place < edge:
            return part
    raise AssertionError("the shares do not sum to 100")
