"""Which part a patient serves: from a hash of the patient alone, so that no order, file or modality moves anybody.

The same salt gives the same part to a patient's ECGs and images, in every stage of training. Called by the stores and studies.

Source: sha256(salt|patient) mod 100.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
PUBLISHED_SHARES = {"training": 70, "validation": 15, "test": 15}
CALIBRATED_SHARES = {"training": 60, "validation": 10, "calibration": 15, "test": 15}
"""Percent of the patients; the second keeps some that set intervals and probabilities, whom no network saw."""


def part_of(patient: str, salt: str, shares: Mapping[str, int] = PUBLISHED_SHARES) -> str:
    """Return the part of a patient.

    Args:
        patient: key of the patient within the data set.
        salt: another salt is another split.
        shares: percent by part, together 100.

    Raises:
        ValueError: the shares are not together 100, or the patient has no key.
    """
    if sum(shares.values()) != 100 or min(shares.values()) < 1:
        raise ValueError(f"shares are {dict(shares)}; expected percents of at least 1 that are together 100")
    if not patient:
        raise ValueError("a patient without a key cannot be split; give every row its patient")
    place = int(hashlib.sha256(f"{salt}|{patient}".encode()).hexdigest(), 16) % 100
    ends = np.cumsum(list(shares.values()))
    return list(shares)[int(np.searchsorted(ends, place, side="right"))]


def split_by_patient(
    patients: Sequence[str], salt: str, shares: Mapping[str, int] = PUBLISHED_SHARES
) -> dict[str, Rows]:
    """Return the rows of each part, in the order of the input.

    Raises:
        ValueError: as ``part_of``, or a part has no patient.
    """
    parts = np.array([part_of(patient, salt, shares) for patient in patients])
    rows = {name: np.flatnonzero(parts == name) for name in shares}
    empty = [name for name, each in rows.items() if not len(each)]
    if empty:
        raise ValueError(f"{len(set(patients))} patients leave no one for {', '.join(empty)}; give more patients")
    return rows


def site_held_out(sites: Sequence[str], held_out: str) -> tuple[Rows, Rows]:
    """Return the rows of all other sites, and those of the held-out site.

    Raises:
        ValueError: nobody is of that site, or nobody of another.
    """
    names = np.asarray(sites)
    outside, inside = np.flatnonzero(names != held_out), np.flatnonzero(names == held_out)
    if not len(inside) or not len(outside):
        known = ", ".join(sorted(set(sites))[:9])
        raise ValueError(
            f"{len(inside)} rows are of site {held_out!r} and {len(outside)} of others; the sites are {known}"
        )
    return outside, inside
