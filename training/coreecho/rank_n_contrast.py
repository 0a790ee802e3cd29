"""Rank-N-Contrast: embeddings lie near to each other in the order of their labels.

For an anchor i and another clip j, every clip k whose label differs from that of i by at least as much as that of j must lie
farther from i than j does. With s(i, j) = -|v_i - v_j| / temperature,

    loss = mean over i and j != i of log sum over {k != i: |y_i - y_k| >= |y_i - y_j|} of exp s(i, k)  -  s(i, j)

The sum stands in the logarithm as log-sum-exp, in 32 bits at least: exp s underflows where embeddings lie 100 apart. Two
forms give the same number: the dense one for the batches of the paper, the sorted one for large batches.

Paper: K. Zha et al., Rank-N-Contrast: Learning Continuous Representations for Regression, NeurIPS 2023, arXiv 2210.01189.
Built from its formula; licence of this project. Called by the first stage of training.

Legend: n clips, D width of the embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rank_n_contrast_loss(embeddings: Tensor, ef_percent: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the loss, a scalar; time and memory grow with n ** 3.

    Args:
        embeddings: [n, D], any floating type; n at least 2. The order of the rows is of no matter.
        ef_percent: [n], in percent.
        temperature: in units of the embedding's distance.

    Raises:
        ValueError: shapes that do not belong together, fewer than two rows, a label that is no number, or a temperature
            that is not positive.
    """
    similarity, distance = _pairs(embeddings, ef_percent, temperature)  # [n, n] each, the diagonal last of all
    others = ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    at_least_as_far = (distance[:, None, :] >= distance[:, :, None]) & others[:, None, :]  # [i, j, k]
    terms = similarity[:, None, :].masked_fill(~at_least_as_far, -torch.inf)
    return (torch.logsumexp(terms[others], dim=1) - similarity[others]).mean()


def rank_n_contrast_loss_sorted(embeddings: Tensor, ef_percent: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the same loss in time n ** 2 * log n and memory n ** 2.

    Each row is sorted by label distance, the farthest first. The sum for j is then the running sum at the last of those
    that lie as far as j.

    Args, Raises: as ``rank_n_contrast_loss``.
    """
    similarity, distance = _pairs(embeddings, ef_percent, temperature)
    nearness, order = torch.sort(-distance, dim=1)  # the anchor itself lies at -1, so it comes last
    nearness, order = nearness[:, :-1].contiguous(), order[:, :-1]
    ordered = similarity.gather(1, order)  # [n, n - 1]
    running = torch.logcumsumexp(ordered, dim=1)
    last_of_tie = torch.searchsorted(nearness, nearness, right=True) - 1
    return (running.gather(1, last_of_tie) - ordered).mean()


def _pairs(embeddings: Tensor, ef_percent: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return similarity and label distance of all pairs, [n, n]; the label distance of a clip to itself is -1."""
    _require(embeddings, ef_percent, temperature)
    with torch.autocast(embeddings.device.type, enabled=False):
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        apart = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    labels = ef_percent.to(torch.promote_types(ef_percent.dtype, torch.float32))
    distance = (labels[:, None] - labels[None, :]).abs()
    return -apart / temperature, distance.fill_diagonal_(-1.0)


def _require(embeddings: Tensor, ef_percent: Tensor, temperature: float) -> None:
    if embeddings.ndim != 2 or ef_percent.shape != embeddings.shape[:1] or len(embeddings) < 2:
        msg = (
            f"embeddings are {list(embeddings.shape)} and labels {list(ef_percent.shape)}; "
            "expected [n, D] and [n] with n of 2 or more"
        )
        raise ValueError(msg)
    if not temperature > 0.0:
        msg = f"temperature is {temperature}; expected a positive number"
        raise ValueError(msg)
    if not torch.isfinite(ef_percent).all():
        msg = "a label is not a finite number; leave videos without an ejection fraction out of the batch"
        raise ValueError(msg)
