"""The fit and what trains a decoder for it: gradients, guards, quality gate, autodecoding."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from training.models.enf import Enf, EnfShape
from training.models.enf_autodecode import AutodecodeConfig, autodecode, refit
from training.models.enf_fit import (
    FitConfig,
    NonFiniteFit,
    clip_gradients,
    fit,
    meta_loss,
    meta_step,
    psnr_db,
    require_psnr,
)
from training.models.latent_cloud import LatentCloud, initial_cloud, pixel_grid

SIZE = 12
PIXELS = pixel_grid(SIZE)
FROZEN = FitConfig(lr_context=10.0)
MOVING = FitConfig(lr_context=10.0, lr_position=0.5, lr_orientation=0.2, lr_window=0.01)


def _enf(neighbours: int | None = 4) -> Enf:
    torch.manual_seed(0)
    shape = EnfShape(
        latents=16,
        context_width=8,
        hidden=16,
        heads=2,
        key_width=8,
        std_query=1.0,
        std_value=2.0,
        neighbours=neighbours,
        invariant="se2",
    )
    return Enf(shape).double()


def _cloud() -> LatentCloud:
    return initial_cloud(16, 8)


def _images(count: int = 3) -> Tensor:
    """Discs of different places and sizes: float64 [B, P, 1] in 0 to 1."""
    generator = torch.Generator().manual_seed(2)
    centre = torch.rand(count, 1, 2, generator=generator, dtype=torch.float64) - 0.5
    radius = 0.3 + 0.3 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return torch.sigmoid(12.0 * (radius - (PIXELS[None] - centre).norm(dim=-1)))[..., None]


def test_the_fit_is_steps_down_the_gradient_of_each_image() -> None:
    """Three steps written out with the plain decoder give the same clouds, frozen and moving."""
    enf, images = _enf(), _images()
    for config in (FROZEN, MOVING):
        leaves = [tensor.clone() for tensor in (_cloud().batch(3).poses, _cloud().batch(3).contexts)]
        leaves.append(_cloud().batch(3).window.clone())
        rate_3 = torch.tensor([config.lr_position] * 2 + [config.lr_orientation], dtype=torch.float64)
        rates = [rate_3, config.lr_context, config.lr_window]
        for _ in range(config.steps):
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            loss = (enf(PIXELS, LatentCloud(*leaves)) - images).square().mean(dim=(1, 2)).sum()
            gradients = torch.autograd.grad(loss, leaves)
            leaves = [leaf - rate * slope for leaf, rate, slope in zip(leaves, rates, gradients, strict=True)]
        found = fit(enf, images, PIXELS, _cloud(), config, create_graph=False).cloud
        for expected, tensor in zip(leaves, (found.poses, found.contexts, found.window), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-12)


def test_an_image_is_fitted_alike_in_any_batch() -> None:
    """The loss is the sum over images, so a neighbour in the batch changes nothing."""
    enf, images = _enf(), _images()
    together = fit(enf, images, PIXELS, _cloud(), MOVING, create_graph=False)
    alone = fit(enf, images[1:2], PIXELS, _cloud(), MOVING, create_graph=False)
    torch.testing.assert_close(together.cloud.contexts[1:2], alone.cloud.contexts, rtol=0, atol=1e-13)
    torch.testing.assert_close(together.mse_B[1:2], alone.mse_B, rtol=0, atol=1e-13)


def test_the_fit_lowers_the_error_and_leaves_no_trace() -> None:
    """Errors fall, weights have no gradient, nothing returned holds a graph, also under no_grad."""
    enf, images = _enf(), _images()
    before = (enf(PIXELS, _cloud().batch(3)) - images).square().mean(dim=(1, 2))
    with torch.no_grad():
        fitted = fit(enf, images, PIXELS, _cloud(), FROZEN, create_graph=False)
    assert bool((fitted.mse_B < 0.9 * before).all())
    assert not fitted.mse_B.requires_grad
    assert not fitted.cloud.contexts.requires_grad
    assert all(parameter.grad is None for parameter in enf.parameters())
    assert torch.equal(fitted.cloud.poses[0], _cloud().poses)


def _slope(enf: Enf, config: FitConfig) -> Tensor:
    """Gradient of the meta loss in the kernel of ``value_hidden``."""
    loss = meta_loss(enf, _images(), PIXELS, _cloud(), config).sum()
    return torch.autograd.grad(loss, enf.value_hidden.weight)[0]


@pytest.mark.parametrize("config", [FROZEN, MOVING], ids=["frozen", "moving"])
def test_second_order_is_the_gradient_of_the_fit_and_first_order_is_not(config: FitConfig) -> None:
    """Only the second-order gradient agrees with a finite difference of the error after the fit."""
    enf = _enf()
    direction = torch.randn(16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    step, ends = 1e-5, []
    for sign in (1.0, -1.0):
        moved = copy.deepcopy(enf)
        with torch.no_grad():
            moved.value_hidden.weight += sign * step * direction
        ends.append(float(fit(moved, _images(), PIXELS, _cloud(), config, create_graph=False).mse_B.sum()))
    numeric = (ends[0] - ends[1]) / (2 * step)
    second = float((_slope(enf, config) * direction).sum())
    first = float((_slope(enf, replace(config, order="first")) * direction).sum())
    assert second == pytest.approx(numeric, rel=1e-5)
    assert abs(first - numeric) > 0.01 * abs(numeric)


def test_first_order_is_the_gradient_at_the_fitted_clouds() -> None:
    """First order sees the clouds as data."""
    enf = _enf()
    fitted = fit(enf, _images(), PIXELS, _cloud(), FROZEN, create_graph=False).cloud
    loss = (enf(PIXELS, fitted) - _images()).square().mean(dim=(1, 2)).sum()
    expected = torch.autograd.grad(loss, enf.value_hidden.weight)[0]
    torch.testing.assert_close(_slope(enf, replace(FROZEN, order="first")), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", ["first", "second"])
def test_meta_steps_teach_the_decoder_to_be_fitted(order: Any) -> None:
    """Thirty steps take a third off the error that three steps of the fit leave."""
    enf, images = _enf(), _images()
    optimizer = torch.optim.Adam(enf.parameters(), lr=3e-3)
    config = replace(FROZEN, order=order)
    errors = [float(meta_step(enf, images, PIXELS, _cloud(), config, optimizer=optimizer).sum()) for _ in range(30)]
    assert errors[-1] < 0.67 * errors[0]


def test_a_non_finite_image_stops_the_fit_and_names_it() -> None:
    """The guard says which image and which step, and the weights stay."""
    enf, images = _enf(), _images()
    images[1, 7] = math.nan
    before = copy.deepcopy(enf.state_dict())
    optimizer = torch.optim.Adam(enf.parameters())
    with pytest.raises(NonFiniteFit, match=r"images \[1\] is not finite after step 0") as caught:
        meta_step(enf, images, PIXELS, _cloud(), FROZEN, optimizer=optimizer)
    assert (caught.value.step, caught.value.images) == (0, [1])
    assert all(torch.equal(value, before[name]) for name, value in enf.state_dict().items())


def test_a_rate_that_explodes_stops_the_fit_after_its_first_step() -> None:
    """Contexts thrown to infinity are seen at the next error."""
    with pytest.raises(NonFiniteFit, match="lower the rate") as caught:
        fit(_enf(), _images(), PIXELS, _cloud(), FitConfig(lr_context=1e308), create_graph=False)
    assert caught.value.step == 1
    assert caught.value.images == [0, 1, 2]


def test_gradients_are_clipped_to_their_norm() -> None:
    """A long gradient keeps its direction, a short one is untouched, a NaN is fatal."""
    enf = _enf()
    for scale, expected in ((100.0, 1.0), (1e-4, None)):
        for parameter in enf.parameters():
            parameter.grad = torch.full_like(parameter, scale)
        norm = clip_gradients(enf)
        after = math.sqrt(sum(float(p.grad.square().sum()) for p in enf.parameters() if p.grad is not None))
        assert after == pytest.approx(norm if expected is None else expected, rel=1e-5)
    enf.head.bias.grad = torch.full_like(enf.head.bias, math.nan)
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_gradients(enf)


def test_a_meta_step_follows_the_clipped_gradient() -> None:
    """Images far out of range pull hard, and plain gradient descent still moves the weights by its rate at most."""
    enf = _enf()
    before = torch.cat([parameter.detach().clone().flatten() for parameter in enf.parameters()])
    optimizer = torch.optim.SGD(enf.parameters(), lr=1e-3)
    meta_step(enf, 10.0 * _images(), PIXELS, _cloud(), FROZEN, optimizer=optimizer)
    after = torch.cat([parameter.detach().flatten() for parameter in enf.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-4)


def test_psnr_of_known_errors() -> None:
    """An error of 0.1 is 20 dB, of 0.01 is 40 dB."""
    torch.testing.assert_close(psnr_db(torch.tensor([1e-2, 1e-4])), torch.tensor([20.0, 40.0]))


def test_images_below_the_quality_gate_are_refused() -> None:
    """The message counts and names them; NaN counts as below; at the gate is enough."""
    require_psnr(torch.tensor([[25.0, 30.0]]), 25.0)
    with pytest.raises(ValueError, match=r"2 of 4 images are reproduced below 25 dB \(1: 24.9 dB, 3: nan dB\)"):
        require_psnr(torch.tensor([[25.0, 24.9], [30.0, math.nan]]), 25.0)


def test_a_fit_without_steps_is_refused() -> None:
    """Zero steps fit nothing."""
    with pytest.raises(ValueError, match="at least one"):
        FitConfig(steps=0)


def test_autodecoding_lowers_the_error_and_a_refit_of_new_images_leaves_the_decoder() -> None:
    """Table and decoder together reach a tenth of the error; refitting moves only the new clouds."""
    enf, images = _enf(), _images(4)
    config = AutodecodeConfig(epochs=60, batch_size=2, lr_decoder=3e-3, lr_context=2e-2, lr_position=1e-3)
    before = (enf(PIXELS, _cloud().batch(4)) - images).square().mean(dim=(1, 2))
    untrained = copy.deepcopy(enf.state_dict())
    table = autodecode(enf, images[:3], PIXELS, _cloud(), config)
    assert not any(torch.equal(value, untrained[name]) for name, value in enf.state_dict().items())
    assert float(table.mse_B.max()) < 0.1 * float(before.detach().max())
    assert float((table.cloud.poses - _cloud().poses).abs().max()) > 1e-3
    weights = copy.deepcopy(enf.state_dict())
    for parameter in enf.parameters():
        parameter.grad = None
    start = (enf(PIXELS, _cloud().batch(1)) - images[3:]).square().mean()
    new = refit(enf, images[3:], PIXELS, _cloud(), replace(config, epochs=40))
    assert float(new.mse_B) < 0.5 * float(start.detach())
    assert all(torch.equal(value, weights[name]) for name, value in enf.state_dict().items())
    assert all(parameter.grad is None for parameter in enf.parameters())


def test_a_cloud_is_moved_only_by_its_own_image() -> None:
    """Refitting two images in batches of one gives what each gives alone."""
    enf, images = _enf(), _images(2)
    config = AutodecodeConfig(epochs=5, batch_size=1, lr_context=0.05)
    both = refit(enf, images, PIXELS, _cloud(), config).cloud.contexts
    alone = refit(enf, images[1:], PIXELS, _cloud(), config).cloud.contexts
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-13)


def test_autodecoding_names_the_non_finite_image() -> None:
    """The number is that of the image, not of its place in the batch."""
    images = _images(3)
    images[2, 0] = math.inf
    with pytest.raises(NonFiniteFit) as caught:
        refit(_enf(), images, PIXELS, _cloud(), AutodecodeConfig(epochs=1, batch_size=1))
    assert caught.value.images == [2]
