"""R(2+1)D has the count of parameters that its formula gives, and the outputs that every encoder has."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from training.models.encoded import pooled
from training.models.r2plus1d import R2Plus1d


def _middle(inputs: int, outputs: int) -> int:
    """Planes between the two parts of a split convolution: as many parameters as 3 x 3 x 3 would have had."""
    return (27 * inputs * outputs) // (9 * inputs + 3 * outputs)


def _block(inputs: int, outputs: int) -> int:
    """Parameters of a block; both its convolutions have the middle planes of the first, as the authors' code does."""
    middle = _middle(inputs, outputs)
    first = 9 * inputs * middle + 2 * middle + 3 * middle * outputs + 2 * outputs
    second = 9 * outputs * middle + 2 * middle + 3 * middle * outputs + 2 * outputs
    return first + second + (inputs * outputs + 2 * outputs if inputs != outputs else 0)


def _stem(middle: int, outputs: int) -> int:
    return 49 * 3 * middle + 2 * middle + 3 * middle * outputs + 2 * outputs


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_network_has_the_parameters_of_its_formula() -> None:
    """31,300,125 and a head of 513; with 400 classes instead it would be 31,505,325, the published 31.5 million."""
    widths = (64, 64, 128, 256, 512)
    pairs = pairwise(widths)
    expected = _stem(45, 64) + sum(_block(inputs, outputs) + _block(outputs, outputs) for inputs, outputs in pairs)
    with torch.device("meta"):
        network = R2Plus1d.published()
    assert expected == 31_300_125
    assert _count(network.body) == expected
    assert _count(network) == 31_300_638
    assert expected + 400 * 513 == 31_505_325


def test_the_published_network_takes_the_published_clip() -> None:
    """32 frames of 112 pixels become 512 numbers and one."""
    with torch.device("meta"):
        network = R2Plus1d.published().eval()
        encoded = network(torch.empty(2, 3, 32, 112, 112))
        maps = network.features(torch.empty(2, 3, 32, 112, 112))
    assert (encoded.head.shape, encoded.embedding.shape) == ((2, 1), (2, 512))
    assert [tuple(each.shape[1:]) for each in maps.values()] == [(256, 8, 14, 14), (512, 4, 7, 7)]


def test_features_are_what_the_library_computes() -> None:
    """Stem and layers in our order give the library's own forward."""
    torch.manual_seed(0)
    network = R2Plus1d.published().eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(clip).embedding, network.body(clip))


def test_the_small_network_is_made_of_the_same_blocks() -> None:
    """196,317 parameters by the same formula, all with a gradient; the head starts at 55.6 percent."""
    torch.manual_seed(0)
    network = R2Plus1d.small()
    widths = (8, 8, 16, 32, 64)
    blocks = sum(_block(inputs, outputs) for inputs, outputs in pairwise(widths))
    assert _count(network) == _stem(4, 8) + blocks + 65
    clip = torch.randn(2, 3, 8, 32, 32)
    encoded = network(clip)
    encoded.head.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    torch.testing.assert_close(pooled(network.eval().features(clip)["layer4"]), network(clip).embedding)
    assert (network(clip).head - 55.6).abs().max() < 3.0
