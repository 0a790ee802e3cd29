"""Rank-N-Contrast: golden values, a second implementation, both forms with their gradients, and what it is invariant to."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.coreecho.rank_n_contrast import rank_n_contrast_loss, rank_n_contrast_loss_sorted

Loss = Callable[..., Tensor]
FORMS = (rank_n_contrast_loss, rank_n_contrast_loss_sorted)
both_forms = pytest.mark.parametrize("loss", FORMS)

FIRST_VIEW = [[0.0, 0.0], [0.0, 2.0], [3.0, 0.0]]
SECOND_VIEW = [[1.0, 0.0], [1.0, 2.0], [3.0, 4.0]]
EMBEDDINGS = torch.tensor(FIRST_VIEW + SECOND_VIEW)
LABELS = torch.tensor([30.0, 55.0, 62.0]).repeat(2)

_SMALL = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)
sizes = st.integers(2, 9)


def _by_hand(embeddings: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The sum over anchors and partners as it stands in the paper, in 64 bits."""
    terms = []
    for i in range(len(labels)):
        others = [k for k in range(len(labels)) if k != i]
        similarity = {k: -np.linalg.norm(embeddings[i] - embeddings[k]) / temperature for k in others}
        for j in others:
            farther = [similarity[k] for k in others if abs(labels[i] - labels[k]) >= abs(labels[i] - labels[j])]
            terms.append(np.logaddexp.reduce(farther) - similarity[j])
    return float(np.mean(terms))


def _drawn(seed: int, clips: int, *, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Embeddings [n, 3] and whole labels of few values, so that many tie."""
    rng = np.random.default_rng(seed)
    embeddings = torch.from_numpy(spread * rng.normal(size=(clips, 3)))
    return embeddings, torch.from_numpy(rng.integers(30, 36, clips).astype(float))


def _gradient(loss: Loss, embeddings: Tensor, labels: Tensor) -> Tensor:
    leaf = embeddings.clone().requires_grad_()
    loss(leaf, labels).backward()
    assert leaf.grad is not None
    return leaf.grad


@both_forms
@pytest.mark.parametrize(
    ("labels", "temperature", "expected"),
    [(LABELS, 1.0, 1.2109437), (LABELS, 2.0, 1.1233820), (torch.full((6,), 55.0), 1.0, 1.9964154)],
)
def test_golden_values(loss: Loss, labels: Tensor, temperature: float, expected: float) -> None:
    """Three videos, two views each: the values of the authors' code in 32 bits."""
    assert loss(EMBEDDINGS, labels, temperature=temperature).item() == pytest.approx(expected, abs=5e-7)


@both_forms
def test_the_golden_value_in_64_bits(loss: Loss) -> None:
    """64 bits stay 64 bits; the temperature is 1 where none is named."""
    value = loss(EMBEDDINGS.double(), LABELS.double())
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(1.210943701060, abs=1e-11)


@both_forms
@given(seed=seeds, clips=sizes, temperature=st.sampled_from([0.3, 1.0, 2.0]))
@_SMALL
def test_the_loss_is_the_sum_of_the_paper(loss: Loss, seed: int, clips: int, temperature: float) -> None:
    """For any embeddings and labels, ties included, the loss is that of a loop over anchors and partners."""
    embeddings, labels = _drawn(seed, clips)
    found = loss(embeddings, labels, temperature=temperature).item()
    assert found == pytest.approx(_by_hand(embeddings.numpy(), labels.numpy(), temperature), abs=1e-10)


@given(seed=seeds, clips=sizes, spread=st.sampled_from([0.1, 1.0, 30.0]))
@_SMALL
def test_both_forms_have_one_gradient(seed: int, clips: int, spread: float) -> None:
    """The sorted form pulls every embedding as the dense one does."""
    embeddings, labels = _drawn(seed, clips, spread=spread)
    dense, ordered = (_gradient(loss, embeddings, labels) for loss in FORMS)
    torch.testing.assert_close(ordered, dense, atol=1e-9, rtol=1e-7)


def test_both_forms_have_one_gradient_at_the_size_of_a_batch() -> None:
    """16 videos in two views of 512 numbers, in 32 bits."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(32, 512), (20.0 + 55.0 * torch.rand(16)).repeat(2)
    dense, ordered = (_gradient(loss, embeddings, labels) for loss in FORMS)
    assert dense.abs().max() > 1e-4
    torch.testing.assert_close(ordered, dense, atol=1e-7, rtol=1e-4)


@both_forms
def test_the_gradient_is_that_of_finite_differences(loss: Loss) -> None:
    """Automatic and numerical derivative agree in 64 bits, where labels tie as well."""
    embeddings, labels = _drawn(3, 6)
    assert torch.autograd.gradcheck(lambda leaf: loss(leaf, labels), embeddings.requires_grad_())


@both_forms
def test_equal_embeddings_give_the_mean_count_of_those_as_far(loss: Loss) -> None:
    """All zero: the loss is the mean of log of how many lie as far, and no gradient is NaN."""
    labels = torch.from_numpy(np.random.default_rng(0).uniform(20, 75, 16)).repeat(2).float()
    distance = (labels[:, None] - labels).abs()
    others = ~torch.eye(32, dtype=torch.bool)
    counts = [(distance[i, others[i]] >= distance[i, j]).sum() for i in range(32) for j in range(32) if i != j]
    embeddings = torch.zeros(32, 8)
    assert loss(embeddings, labels).item() == pytest.approx(torch.stack(counts).log().mean().item(), abs=1e-5)
    assert torch.equal(_gradient(loss, embeddings, labels), torch.zeros(32, 8))


@both_forms
def test_embeddings_far_apart_stay_finite(loss: Loss) -> None:
    """With a spread of 30 in 512 numbers every exponential underflows in 32 bits, and value and gradient are right."""
    rng = np.random.default_rng(0)
    drawn, labels = 30.0 * rng.normal(size=(32, 512)), np.tile(rng.uniform(20, 75, 16), 2)
    embeddings = torch.from_numpy(drawn).float()
    assert torch.pdist(embeddings).neg().exp().sum() == 0.0
    found = loss(embeddings, torch.from_numpy(labels)).item()
    assert 30.0 < found < 60.0
    assert found == pytest.approx(_by_hand(drawn, labels, 1.0), rel=1e-5)
    gradient = _gradient(loss, embeddings, torch.from_numpy(labels))
    expected = _gradient(loss, torch.from_numpy(drawn), torch.from_numpy(labels))
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected.float(), atol=1e-6, rtol=1e-3)


@both_forms
def test_embeddings_far_from_the_origin_keep_their_distances(loss: Loss) -> None:
    """An offset of 1000 that all share costs no digit of the distances: they are not made from squared lengths."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(32, 8) + 1000.0, torch.arange(32.0)
    assert loss(embeddings, labels).item() == pytest.approx(loss(embeddings.double(), labels).item(), rel=1e-5)


@both_forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_32_bits(loss: Loss, dtype: torch.dtype) -> None:
    """Embeddings of 16 bits give the loss of the same numbers in 32, also inside autocast; gradients come back in 16."""
    torch.manual_seed(0)
    embeddings, labels = (10.0 * torch.randn(12, 64)).to(dtype), torch.arange(30.0, 42.0)
    expected = loss(embeddings.float(), labels)
    found = loss(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(embeddings, labels)
    assert found.dtype == inside.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(inside, expected)
    gradient = _gradient(loss, embeddings, labels)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@both_forms
@given(seed=seeds, clips=sizes, shift=st.integers(-20, 20), factor=st.sampled_from([-2.0, -1.0, 0.5, 3.0]))
@_SMALL
def test_only_distances_and_the_order_of_label_distances_count(
    loss: Loss, seed: int, clips: int, shift: int, factor: float
) -> None:
    """Clips in another order, labels on another scale, and embeddings turned and moved, give the same loss."""
    embeddings, labels = _drawn(seed, clips)
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(clips))
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(3, 3)))[0])
    expected = loss(embeddings, labels).item()
    assert loss(embeddings[order], labels[order]).item() == pytest.approx(expected, abs=1e-10)
    assert loss(embeddings, factor * labels + shift).item() == pytest.approx(expected, abs=1e-10)
    assert loss(embeddings @ turn + 7.0, labels).item() == pytest.approx(expected, abs=1e-9)


@both_forms
@given(seed=seeds, clips=sizes)
@_SMALL
def test_the_loss_is_never_negative(loss: Loss, seed: int, clips: int) -> None:
    """The partner is in its own sum; two clips leave nothing else, and the loss is zero."""
    embeddings, labels = _drawn(seed, clips)
    assert loss(embeddings, labels).item() >= -1e-12
    assert loss(embeddings[:2], labels[:2]).item() == pytest.approx(0.0, abs=1e-12)


@both_forms
def test_embeddings_in_the_order_of_their_labels_have_a_small_loss(loss: Loss) -> None:
    """On a line in order, far apart, the loss is near zero; with two of them exchanged it is not."""
    labels = torch.tensor([20.0, 31.0, 45.0, 75.0])
    line = 3.0 * labels[:, None]
    assert loss(line, labels).item() < 0.01
    assert loss(line[[0, 3, 2, 1]], labels).item() > 5.0


@both_forms
@pytest.mark.parametrize(
    ("embeddings", "labels", "temperature", "reason"),
    [
        (EMBEDDINGS, LABELS[:5], 1.0, r"\[6, 2\] and labels \[5\]"),
        (EMBEDDINGS, LABELS[:, None], 1.0, r"labels \[6, 1\]"),
        (EMBEDDINGS[None], LABELS, 1.0, r"\[1, 6, 2\]"),
        (EMBEDDINGS[:1], LABELS[:1], 1.0, "n of 2 or more"),
        (EMBEDDINGS, LABELS, 0.0, "temperature is 0.0"),
        (EMBEDDINGS, LABELS, math.nan, "temperature is nan"),
        (EMBEDDINGS, torch.tensor([30.0, math.nan, 60.0]).repeat(2), 1.0, "not a finite number"),
    ],
)
def test_what_has_no_loss_is_refused(
    loss: Loss, embeddings: Tensor, labels: Tensor, temperature: float, reason: str
) -> None:
    """Shapes that do not belong together, one clip, no temperature, or a label that is no number."""
    with pytest.raises(ValueError, match=reason):
        loss(embeddings, labels, temperature=temperature)
