"""Occlusion takes one latent away, and the shares of the report are held against it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.enf.occlusion import agreement, occlusion
from training.models.invariant_transformer import InvariantTransformer, TransformerShape
from training.models.latent_cloud import initial_cloud

LATENTS, CONTEXT, HEARTS = 16, 4, 6


@pytest.fixture(scope="module")
def classifier() -> InvariantTransformer:
    """An untrained classifier whose mean context is not zero."""
    torch.manual_seed(4)
    shape = TransformerShape(width=16, layers=2, heads=2, dropout=0.0)
    mean, spread = torch.full((CONTEXT,), 0.7), torch.full((CONTEXT,), 1.3)
    return InvariantTransformer(shape, initial_cloud(LATENTS, CONTEXT).poses, mean, spread).eval()


@pytest.fixture
def contexts() -> Tensor:
    """Fits of hearts, [6, 2, 16, 4]."""
    return torch.randn(HEARTS, 2, LATENTS, CONTEXT, generator=torch.Generator().manual_seed(5)) + 0.7


@torch.inference_mode()
def test_a_latent_weighs_what_the_logit_loses_without_it(classifier: InvariantTransformer, contexts: Tensor) -> None:
    """The change is that of the whole network with this one context at the mean."""
    changes = occlusion(classifier, contexts)
    without = contexts.clone()
    without[2, 1, 5] = 0.7
    expected = classifier(contexts)["logit"][2, 0] - classifier(without)["logit"][2, 0]
    assert changes.shape == (HEARTS, 2, LATENTS)
    assert changes[2, 1, 5] == pytest.approx(float(expected), abs=1e-6)
    assert abs(changes[2, 1, 5]) > 1e-4


def test_a_latent_at_the_mean_weighs_nothing(classifier: InvariantTransformer, contexts: Tensor) -> None:
    """What says nothing of the heart takes nothing away."""
    contexts[:, 0, 3] = 0.7
    assert occlusion(classifier, contexts)[:, 0, 3] == pytest.approx(0, abs=1e-6)


def test_shares_agree_with_occlusion_where_latents_do_not_mix(contexts: Tensor) -> None:
    """Without attention a share differs from its occlusion by a constant of the token and the scale of the norm."""
    torch.manual_seed(6)
    shape = TransformerShape(width=16, layers=0, heads=2, dropout=0.0)
    spread = torch.ones(CONTEXT)
    alone = InvariantTransformer(shape, initial_cloud(LATENTS, CONTEXT).poses, torch.full((CONTEXT,), 0.7), spread)
    found = agreement(alone.eval(), contexts, seed=0)
    assert found.spearman > 0.8
    assert found.top_removed > abs(found.random_removed)
