"""Towers of cardiac MR: shapes and sizes of the published ones, and that masked slices, slice order and time count as said."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from training.models.cmr_towers import SLICES, TowerKind, TowerSize, VolumeTower, build_tower, slow_trunk

SHAPES: dict[TowerKind, tuple[int, ...]] = {
    "slice": (2, 1, 40, 40),
    "slice_time": (2, 1, 5, 40, 40),
    "volume": (2, 1, SLICES, 40, 40),
}


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def built(kind: TowerKind, size: TowerSize = "small", **options: int) -> nn.Module:
    """The same tower every time, in evaluation mode."""
    torch.manual_seed(0)
    return build_tower(kind, size, **options).eval()


@pytest.mark.parametrize("kind", get_args(TowerKind))
def test_a_small_tower_gives_an_embedding_and_learns(kind: TowerKind) -> None:
    """The embedding is [B, width], depends on its input, and every parameter receives a gradient."""
    tower = built(kind).train()
    embedding = tower(torch.randn(SHAPES[kind]))
    assert embedding.shape == (2, tower.width)
    assert not torch.allclose(embedding[0], embedding[1])
    embedding.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in tower.parameters())


PUBLISHED = {
    # ResNet50 without its classifier and with one input channel.
    "slice": (2048, 23_501_760),
    # The same, fc 2048 -> 768 and an LSTM of 768.
    "slice_time": (768, 23_501_760 + 2048 * 768 + 768 + 4 * (2 * 768 * 768 + 2 * 768)),
    # Slow trunk 31,628,224 (31.63 M), slices 6 -> 1, fc 2048 -> 768: 33.20 M.
    "volume": (768, 31_628_224 + 7 + 2048 * 768 + 768),
}


@pytest.mark.parametrize("kind", get_args(TowerKind))
def test_published_sizes(kind: TowerKind) -> None:
    """Width and parameters are those of the published towers; the volume tower has 33.20 M, of which the trunk 31.63 M."""
    with torch.device("meta"):
        tower = build_tower(kind, "published", slices=6)
    assert (tower.width, parameters(tower)) == PUBLISHED[kind]
    if isinstance(tower, VolumeTower):
        assert f"{parameters(tower) / 1e6:.2f}" == "33.20"
        trunk = parameters(tower.stem) + parameters(tower.within_slices) + parameters(tower.across_slices)
        assert f"{trunk / 1e6:.2f}" == "31.63"


def test_published_maps() -> None:
    """[B, 1, 6, 85, 92] becomes [B, 2048, 6, 3, 3]: no stride along the slices."""
    with torch.device("meta"):
        stem, stages, features = slow_trunk(widths=(64, 128, 256, 512), blocks=(3, 4, 6, 3), expansion=4)
        x = nn.Sequential(stem, *stages)(torch.zeros(1, 1, 6, 85, 92))
    assert features == 2048
    assert x.shape == (1, 2048, 6, 3, 3)


@pytest.mark.parametrize("training", [False, True])
def test_what_stands_in_a_masked_slice_changes_nothing(training: bool) -> None:
    """Padding has no say, neither in evaluation nor through the statistics of BatchNorm."""
    tower = built("volume").train(training)
    volume, mask = torch.randn(SHAPES["volume"]), torch.ones(2, SLICES, dtype=torch.bool)
    mask[:, :3] = mask[:, -2:] = False
    other = torch.where(mask[:, None, :, None, None], volume, 9 * torch.randn_like(volume))
    assert torch.equal(tower(volume, mask), tower(other, mask))
    assert not torch.allclose(tower(volume), tower(other))


def test_a_missing_mask_means_every_slice() -> None:
    """No mask and a mask of ones are the same."""
    tower, volume = built("volume"), torch.randn(SHAPES["volume"])
    assert torch.equal(tower(volume), tower(volume, torch.ones(2, SLICES)))


@pytest.mark.parametrize(("kind", "axis"), [("slice_time", 2), ("volume", 2)])
def test_order_counts(kind: TowerKind, axis: int) -> None:
    """The beat backwards, or base and apex swapped, is another embedding."""
    tower, x = built(kind), torch.randn(SHAPES[kind])
    if isinstance(tower, VolumeTower):
        with torch.no_grad():
            tower.mix.weight.copy_(torch.linspace(0, 1, SLICES)[None])
    assert not torch.allclose(tower(x), tower(x.flip(axis)), atol=1e-5)


def test_any_number_of_phases() -> None:
    """A cine of 5 and one of 9 phases go through the same tower."""
    tower = built("slice_time")
    assert tower(torch.randn(1, 1, 9, 40, 40)).shape == tower(torch.randn(1, 1, 5, 40, 40)).shape


@pytest.mark.parametrize(
    ("kind", "shape", "mask", "said"),
    [
        ("slice", (2, 3, 40, 40), None, r"reads \[B, 1, S, S\]; found \(2, 3, 40, 40\)"),
        ("slice", (2, 1, 40, 44), None, "found"),
        ("slice_time", (2, 1, 40, 40), None, r"\[B, 1, T, S, S\]"),
        ("volume", (2, 1, 7, 40, 40), None, f"has 7 slices; this tower mixes {SLICES}"),
        ("volume", SHAPES["volume"], (2, 7), "slice mask is"),
    ],
)
def test_other_shapes_are_refused(
    kind: TowerKind, shape: tuple[int, ...], mask: tuple[int, int] | None, said: str
) -> None:
    """What does not fit is named with what was expected; nothing is sliced, padded or broadcast."""
    masks: list[Tensor] = [] if mask is None else [torch.ones(mask)]
    with pytest.raises(ValueError, match=said):
        built(kind)(torch.zeros(shape), *masks)


def test_an_unknown_tower_is_refused() -> None:
    """A name that is no kind or size is a mistake of the caller."""
    with pytest.raises(ValueError, match="no tower of kind"):
        build_tower("atrium", "small")  # type: ignore[arg-type]
