"""The regressor has the published size, starts at the mean ejection fraction, and does what its text says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.models.ef_regressor import EfRegressor


def test_the_regressor_has_the_published_parameters() -> None:
    """265,217 at a width of 512, and dropout of 0.4 twice."""
    regressor = EfRegressor(512)
    assert sum(parameter.numel() for parameter in regressor.parameters()) == 265_217
    assert [module.p for module in regressor.modules() if isinstance(module, nn.Dropout)] == [0.4]
    assert regressor.answer.bias.item() == pytest.approx(55.6)


def test_an_untrained_regressor_answers_where_it_starts() -> None:
    """Whatever the embedding, the answer is near the start, in percent."""
    torch.manual_seed(0)
    regressor = EfRegressor(16, start_percent=42.0).eval()
    answer = regressor(torch.randn(9, 16))
    assert answer.shape == (9, 1)
    assert (answer - 42.0).abs().max() < 2.0


def test_layers_come_in_the_published_order() -> None:
    """Norm, linear, norm, GELU, linear: as a sequence of PyTorch's own layers gives it."""
    torch.manual_seed(0)
    regressor = EfRegressor(8).eval()
    for norm in (regressor.norm_in, regressor.norm_hidden):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3.0)
    layers = (regressor.norm_in, regressor.hidden, regressor.norm_hidden, nn.GELU(), regressor.answer)
    embedding = torch.randn(5, 8)
    torch.testing.assert_close(regressor(embedding), nn.Sequential(*layers)(embedding))


def test_dropout_comes_before_each_linear_layer() -> None:
    """In training the inputs of both linear layers hold zeros, about four in ten."""
    torch.manual_seed(0)
    regressor, shares = EfRegressor(64).train(), []
    for layer in (regressor.hidden, regressor.answer):
        layer.register_forward_pre_hook(lambda _, inputs: shares.append((inputs[0] == 0).float().mean().item()))
    regressor(torch.randn(200, 64))
    assert shares == pytest.approx([0.4, 0.4], abs=0.03)
