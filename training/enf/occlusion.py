"""What the answer becomes without one latent: the check of the shares that the report draws.

A latent is taken away by giving it the mean context of the training set, which says nothing of this heart.

Letters: B hearts, F = 2 frames, N latents, C context.

Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, on latents for patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from training.models.invariant_transformer import FRAMES, InvariantTransformer

FloatArray = NDArray[np.float64]
_REMOVED = 13
"""About a tenth of the tokens of the small recipe."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the shares in the logit say what occlusion says, over hearts.

    Args:
        spearman: median rank correlation of a heart's shares and its changes by occlusion.
        top_removed: median fall of the logit's size when the tokens that carry most of it go together.
        random_removed: the same for as many tokens at random.
        removed: how many tokens that is.
    """

    spearman: float
    top_removed: float
    random_removed: float
    removed: int


@torch.inference_mode()
def occlusion(classifier: InvariantTransformer, contexts_BFNC: Tensor) -> FloatArray:
    """Return how far the logit falls without each latent, float64 [B, F, N]; positive speaks for the condition."""
    changes = [_occluded(classifier, contexts) for contexts in contexts_BFNC]
    return torch.stack(changes).double().numpy()


def _occluded(classifier: InvariantTransformer, contexts_FNC: Tensor) -> Tensor:
    latents = contexts_FNC.shape[1]
    tokens = FRAMES * latents
    without = contexts_FNC.expand(tokens, *contexts_FNC.shape).clone().flatten(1, 2)  # [T, T, C]
    every = torch.arange(tokens)
    without[every, every] = _mean(classifier)
    whole = classifier(contexts_FNC[None])["logit"]  # [1, 1]
    parts = classifier(without.unflatten(1, (FRAMES, latents)))["logit"]  # [T, 1]
    return (whole - parts).reshape(FRAMES, latents)


@torch.inference_mode()
def agreement(classifier: InvariantTransformer, contexts_BFNC: Tensor, *, seed: int) -> Agreement:
    """Compare the shares in the logit with occlusion, latent by latent and for the heaviest together."""
    answer = classifier(contexts_BFNC)
    shares_BT = answer["relevance"].flatten(1).double().numpy()
    falls_BT = occlusion(classifier, contexts_BFNC).reshape(shares_BT.shape)
    ranks = [spearmanr(share, fall).statistic for share, fall in zip(shares_BT, falls_BT, strict=True)]
    logits_B = answer["logit"][:, 0].double().numpy()
    sign_B = np.sign(logits_B)
    order_BT = np.argsort(-shares_BT * sign_B[:, None], axis=1)
    rng = np.random.default_rng(seed)
    return Agreement(
        spearman=float(np.median(ranks)),
        top_removed=float(np.median(sign_B * (logits_B - _without(classifier, contexts_BFNC, order_BT)))),
        random_removed=float(
            np.median(sign_B * (logits_B - _without(classifier, contexts_BFNC, rng.permuted(order_BT, axis=1))))
        ),
        removed=min(_REMOVED, shares_BT.shape[1]),
    )


def _without(classifier: InvariantTransformer, contexts_BFNC: Tensor, order_BT: NDArray[np.int64]) -> FloatArray:
    """Logits without the first tokens of each row of the order, float64 [B]."""
    tokens = contexts_BFNC.flatten(1, 2).clone()  # [B, T, C]
    removed = torch.from_numpy(order_BT[:, :_REMOVED].copy())
    tokens[torch.arange(len(tokens))[:, None], removed] = _mean(classifier)
    return np.asarray(classifier(tokens.reshape(contexts_BFNC.shape))["logit"][:, 0].double().numpy())


def _mean(classifier: InvariantTransformer) -> Tensor:
    mean = classifier.mean
    assert isinstance(mean, Tensor)
    return mean
