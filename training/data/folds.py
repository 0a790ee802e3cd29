"""Folds of the transfer protocols: which videos are held out together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Fold = tuple[tuple[str, ...], tuple[str, ...]]
"""Keys to train on and keys held out."""


def sorted_folds(keys: Sequence[str], folds: int = 10) -> list[Fold]:
    """Return consecutive runs of the sorted keys, each held out once: the published folds of CAMUS, 50 of 500.

    Raises:
        ValueError: fewer keys than folds.
    """
    if len(keys) < folds:
        raise ValueError(f"{len(keys)} videos are too few for {folds} folds")
    ordered = sorted(keys)
    held_out = [set(part.tolist()) for part in np.array_split(np.array(ordered), folds)]
    return [_fold(ordered, part) for part in held_out]


def stratified_folds(
    labels: Mapping[str, int], patients: Mapping[str, str], *, folds: int = 5, seed: int = 0
) -> list[Fold]:
    """Return shuffled folds with the classes in the same shares, the videos of a patient together: HMC-QU.

    Args:
        labels: class of each video by key.
        patients: patient of each video by key.
        folds: how many.
        seed: of the shuffling.

    Raises:
        ValueError: a class has fewer patients than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    keys = sorted(labels)
    for label in sorted(set(labels.values())):
        members = {patients[key] for key in keys if labels[key] == label}
        if len(members) < folds:
            raise ValueError(f"class {label} has {len(members)} patients, too few for {folds} folds")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = splitter.split(keys, [labels[key] for key in keys], [patients[key] for key in keys])
    return [_fold(keys, {keys[row] for row in held_out}) for _, held_out in parts]


def _fold(keys: Sequence[str], held_out: set[str]) -> Fold:
    return tuple(key for key in keys if key not in held_out), tuple(key for key in keys if key in held_out)
