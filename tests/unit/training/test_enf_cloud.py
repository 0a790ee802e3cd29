"""The start of the latents: its coordinates, its quarter turns, and which latents are near a pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from training.models.latent_cloud import (
    initial_cloud,
    nearest_latents,
    pixel_grid,
    rotate_quarter,
    squared_distance,
    turn_quarter,
    wrap_rad,
)
from training.recipes import enf_published, enf_small


def test_rotate_quarter_is_what_rot90_does() -> None:
    """The value of a turned image at a turned pixel is that of the image at the pixel, for 1 to 3 turns."""
    image, pixels = torch.arange(49.0).reshape(7, 7), pixel_grid(7)
    for turns in (1, 2, 3):
        turned = torch.rot90(image, turns).flatten()
        place = squared_distance(rotate_quarter(pixels, turns), pixels).argmin(dim=1)
        assert torch.equal(turned[place], image.flatten())
        assert float(squared_distance(rotate_quarter(pixels, turns), pixels).amin(dim=1).max()) < 1e-20


def test_pixel_grid_counts_columns_as_x_and_rows_as_y() -> None:
    """The first row of a 3 x 3 image lies at y = -1 and runs from x = -1 to 1."""
    assert pixel_grid(3)[:3].tolist() == [[-1.0, -1.0], [0.0, -1.0], [1.0, -1.0]]


def test_theta_turns_with_the_arrow_it_stands_for() -> None:
    """Turning a pose turns the point ahead of it."""
    generator = torch.Generator().manual_seed(3)
    poses = 2.0 * torch.rand(16, 3, generator=generator, dtype=torch.float64) - 1.0

    def ahead(some: Tensor) -> Tensor:
        return some[:, :2] + torch.stack([torch.cos(some[:, 2]), torch.sin(some[:, 2])], dim=-1)

    for turns in range(-1, 5):
        torch.testing.assert_close(ahead(turn_quarter(poses, turns)), rotate_quarter(ahead(poses), turns))


@pytest.mark.parametrize(("latents", "orientation"), [(4, "radial"), (64, "radial"), (36, "four"), (64, "four")])
def test_the_start_is_closed_under_quarter_turns(latents: int, orientation: Any) -> None:
    """A turned start is the start with its orbits one place further: positions bit for bit, theta but for rounding."""
    cloud = initial_cloud(latents, 8, orientation=orientation)
    orbits = cloud.poses.unflatten(0, (4, -1))
    turned = turn_quarter(orbits, 1).roll(1, dims=0)
    assert torch.equal(turned[..., :2], orbits[..., :2])
    assert float(wrap_rad(turned[..., 2] - orbits[..., 2]).abs().max()) < 1e-14
    assert torch.equal(cloud.contexts, torch.full((latents, 8), 0.125, dtype=torch.float64))


def test_the_start_without_tilt_is_the_published_grid() -> None:
    """Positions are linspace(-(1 - 1/n), 1 - 1/n, n) squared, theta points outwards, the width is 2 / sqrt(N)."""
    cloud = initial_cloud(16, 8, tilt_rad=0.0)
    places = sorted({(round(x, 9), round(y, 9)) for x, y in cloud.poses[:, :2].tolist()})
    assert places == [(x, y) for x in (-0.75, -0.25, 0.25, 0.75) for y in (-0.75, -0.25, 0.25, 0.75)]
    outwards = torch.atan2(cloud.poses[:, 1], cloud.poses[:, 0])
    assert float(wrap_rad(outwards - cloud.poses[:, 2]).abs().max()) < 1e-14
    assert cloud.window.tolist() == [0.5] * 16


def test_the_tilt_turns_positions_and_orientations_together() -> None:
    """Distances to the centre stay, and theta still points outwards."""
    straight, tilted = (initial_cloud(16, 8, tilt_rad=tilt_rad).poses for tilt_rad in (0.0, 0.2))
    torch.testing.assert_close(tilted[:, :2].norm(dim=1), straight[:, :2].norm(dim=1))
    torch.testing.assert_close(wrap_rad(tilted[:, 2] - straight[:, 2]), torch.full((16,), 0.2, dtype=torch.float64))
    torch.testing.assert_close(torch.atan2(tilted[:, 1], tilted[:, 0]), tilted[:, 2])


@pytest.mark.parametrize(
    ("latents", "orientation", "message"),
    [
        (32, "radial", "not closed"),
        (128, "radial", "not closed"),
        (9, "radial", "centre"),
        (0, "radial", "16, 36"),
        (12, "four", "four orientations"),
        (9, "four", "four orientations"),
        (0, "four", "four orientations"),
    ],
)
def test_grids_that_are_not_closed_are_refused(latents: int, orientation: Any, message: str) -> None:
    """32 and 128 cut grids, odd grids and empty ones name what to use instead."""
    with pytest.raises(ValueError, match=message):
        initial_cloud(latents, 8, orientation=orientation)


def test_neighbours_are_the_nearest_by_position() -> None:
    """Distances use positions only, are sorted, and k must lie in 1 to N."""
    pixels, poses = pixel_grid(8), initial_cloud(16, 1).poses
    index = nearest_latents(pixels, poses, 4)
    brute = ((pixels[:, None] - poses[None, :, :2]) ** 2).sum(dim=-1).argsort(dim=1)[:, :4]
    assert torch.equal(index, brute)
    assert torch.equal(nearest_latents(pixels, poses[:, :2], 16).sort(dim=1).values[0], torch.arange(16))
    for k in (0, 17):
        with pytest.raises(ValueError, match="expected 1 to 16"):
            nearest_latents(pixels, poses, k)


def test_the_released_sizes_are_those_tested_below() -> None:
    """The recipes cut 64 and 78 pixels."""
    assert [recipe().preprocess.size_px for recipe in (enf_small.recipe, enf_published.recipe)] == [64, 78]


@pytest.mark.parametrize(("size", "tied"), [(64, "112 of 4096"), (77, "552 of 5929"), (78, "144 of 6084")])
def test_neighbours_of_the_released_sizes_have_no_ties(size: int, tied: str) -> None:
    """64 and 78 pixels, and the 77 of the paper, 8 x 8 and 12 x 12 latents: none on the tilted grid, many on the straight."""
    for latents in (64, 144):
        assert nearest_latents(pixel_grid(size), initial_cloud(latents, 1).poses, 4).shape == (size * size, 4)
    with pytest.raises(ValueError, match=f"{tied} pixels"):
        nearest_latents(pixel_grid(size), initial_cloud(64, 1, tilt_rad=0.0).poses, 4)
