"""Whether an ECG finds the images of its own patient among all others, and the images the ECG.

Pure numpy. Called by ``training.ecg_cmr.evaluation``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.predictors.similarity import directions
from training.ecg_cmr.drawn_metrics import Drawn, share

FloatArray = NDArray[np.float64]
TOP = (1, 5)


def retrieval(ecg_NE: FloatArray, cmr_NE: FloatArray, patients: Sequence[str], weights_BN: FloatArray) -> Drawn:
    """Return top-1 and top-5 of both directions, and the chance of each, per drawing.

    The gallery is every row whose weight in the first drawing is not 0; only who asks is drawn. A row of the same patient
    counts as found, because a repeat visit is no wrong answer.

    Args:
        ecg_NE: projections of the ECGs.
        cmr_NE: projections of the images, row by row of the same patients.
        patients: one a row.
        weights_BN: drawings of the rows.
    """
    gallery = np.flatnonzero(weights_BN[0] > 0)
    asked = [patients[int(row)] for row in gallery]
    similarity = directions(ecg_NE[gallery]) @ directions(cmr_NE[gallery]).T
    weights = weights_BN[:, gallery]
    ranks = {"ecg_to_cmr": ranks_of_own(similarity, asked), "cmr_to_ecg": ranks_of_own(similarity.T, asked)}
    found = {f"{direction}_top{top}": share(rank < top, weights) for direction, rank in ranks.items() for top in TOP}
    chance = {f"chance_top{top}": np.full(len(weights), min(1.0, top / len(gallery))) for top in TOP}
    return found | chance


def ranks_of_own(similarity_NN: FloatArray, patients: Sequence[str]) -> NDArray[np.int64]:
    """Return how many rows of other patients are at least as similar to each row as the best of its own, [N].

    A tie counts against the model: where everything lies in one point nothing is found.
    """
    names = np.asarray(patients)
    own_NN = names[:, None] == names[None, :]
    best_N = np.where(own_NN, similarity_NN, -np.inf).max(axis=1)
    return np.asarray((~own_NN & (similarity_NN >= best_N[:, None])).sum(axis=1), np.int64)
