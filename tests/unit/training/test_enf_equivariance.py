"""A turned image gives a turned cloud: what holds exactly, and what breaks it.

Every row fits the same images as they are and turned by a quarter, moves the first clouds by the same turn and pairs
them with the second ones. An exact setting differs by rounding; a broken one by tenths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from training.models import enf_fit
from training.models.enf import Enf, EnfShape
from training.models.enf_autodecode import AutodecodeConfig, refit
from training.models.enf_fit import FitConfig, fit
from training.models.latent_cloud import LatentCloud, initial_cloud, pixel_grid, turn_quarter, wrap_rad

SIZE, CONTEXT = 16, 4
MOVING = FitConfig(lr_position=1.0, lr_orientation=0.5, lr_context=30.0)
FROZEN = FitConfig(lr_context=30.0)


@dataclass(frozen=True)
class Drift:
    """How far the fits of turned images are from the turned fits."""

    pose: float
    context: float


def _shape(**changes: Any) -> EnfShape:
    base = EnfShape(
        latents=16,
        context_width=CONTEXT,
        hidden=16,
        heads=2,
        key_width=8,
        std_query=3.0,
        std_value=5.0,
        neighbours=None,
        invariant="se2",
    )
    return replace(base, **changes)


def _images(size: int = SIZE, seed: int = 1) -> Tensor:
    """Two smooth images without symmetry, float64 [2, size, size] in 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[:, 0]


def _flat(images_BSS: Tensor) -> Tensor:
    return images_BSS.flatten(1)[..., None]


def _enf(shape: EnfShape, dtype: torch.dtype = torch.float64) -> Enf:
    torch.manual_seed(0)
    return Enf(shape).double().to(dtype)


def _cloud(shape: EnfShape, tilt_rad: float = 0.0, **options: Any) -> LatentCloud:
    return initial_cloud(shape.latents, shape.context_width, tilt_rad, **options)


def _fitted(enf: Enf, images_BSS: Tensor, cloud: LatentCloud, config: FitConfig) -> LatentCloud:
    dtype = enf.head.weight.dtype
    pixels = pixel_grid(images_BSS.shape[-1]).to(dtype)
    return fit(enf, _flat(images_BSS).to(dtype), pixels, cloud.to(dtype), config, create_graph=False).cloud


def _drift(expected: LatentCloud, found: LatentCloud) -> Drift:
    """Pair the latents of each image as well as they can be, and return the worst differences.

    Contexts are counted in standard deviations of the expected ones.
    """
    sd = expected.contexts.std().double()
    worst_pose = worst_context = 0.0
    for image in range(len(expected.poses)):
        pose_a, pose_b = expected.poses[image].double(), found.poses[image].double()
        gap = (pose_a[:, None, :2] - pose_b[None, :, :2]).abs().amax(dim=-1)
        gap = torch.maximum(gap, wrap_rad(pose_a[:, None, 2] - pose_b[None, :, 2]).abs())
        contexts_a, contexts_b = expected.contexts[image].double(), found.contexts[image].double()
        context_gap = (contexts_a[:, None] - contexts_b[None]).abs().amax(dim=-1) / sd
        rows, columns = linear_sum_assignment((gap + context_gap).numpy())
        worst_pose = max(worst_pose, float(gap[rows, columns].max()))
        worst_context = max(worst_context, float(context_gap[rows, columns].max()))
    return Drift(worst_pose, worst_context)


def _turned_drift(enf: Enf, cloud: LatentCloud, config: FitConfig, turns: int = 1) -> Drift:
    images = _images()
    upright = _fitted(enf, images, cloud, config)
    turned = _fitted(enf, torch.rot90(images, turns, dims=(1, 2)), cloud, config)
    return _drift(replace(upright, poses=turn_quarter(upright.poses, turns)), turned)


def _plain_grid(per_axis: int, keep: int) -> LatentCloud:
    """The first ``keep`` sites of a square grid, row by row, theta away from the centre: how the grid is cut elsewhere."""
    end = 1.0 - 1.0 / per_axis
    axis = torch.linspace(-end, end, per_axis, dtype=torch.float64)
    y, x = (grid.reshape(-1)[:keep] for grid in torch.meshgrid(axis, axis, indexing="ij"))
    poses = torch.stack([x, y, torch.atan2(y, x)], dim=-1)
    contexts = torch.full((keep, CONTEXT), 1.0 / CONTEXT, dtype=torch.float64)
    return LatentCloud(poses, contexts, torch.full((keep,), 2.0 / per_axis, dtype=torch.float64))


def _with_theta(cloud: LatentCloud, theta_rad: Tensor) -> LatentCloud:
    return replace(cloud, poses=torch.cat([cloud.poses[:, :2], theta_rad[:, None].double()], dim=1))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_dense_se2_fit_with_moving_poses_is_exact_in_float64(turns: int) -> None:
    """Poses and contexts of the turned image are the turned ones, up to rounding, for every quarter turn."""
    drift = _turned_drift(_enf(_shape()), _cloud(_shape()), MOVING, turns)
    assert max(drift.pose, drift.context) <= 1e-9


def test_dense_se2_fit_with_moving_poses_holds_in_float32_not_in_bfloat16() -> None:
    """Single precision keeps five digits; half of it keeps none."""
    single = _turned_drift(_enf(_shape(), torch.float32), _cloud(_shape()), MOVING)
    assert max(single.pose, single.context) <= 1e-4
    assert _turned_drift(_enf(_shape(), torch.bfloat16), _cloud(_shape()), MOVING).context > 0.03


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_nearest_neighbours_on_the_tilted_grid_are_exact(dtype: torch.dtype, bound: float) -> None:
    """Four neighbours on a grid tilted by 0.2 rad: exact with frozen and with moving poses."""
    shape = _shape(neighbours=4)
    for config in (FROZEN, MOVING):
        drift = _turned_drift(_enf(shape, dtype), _cloud(shape, 0.2), config)
        assert max(drift.pose, drift.context) <= bound


def test_a_turned_image_moves_the_contexts_to_the_next_place_of_their_orbit() -> None:
    """Contexts of the image turned once, seen as [4, N / 4], are those of the upright one one row further."""
    shape = _shape(neighbours=4)
    enf, cloud, images = _enf(shape), _cloud(shape, 0.2), _images()
    upright = _fitted(enf, images, cloud, FROZEN).contexts.unflatten(1, (4, -1))
    turned = _fitted(enf, torch.rot90(images, 1, dims=(1, 2)), cloud, FROZEN).contexts.unflatten(1, (4, -1))
    torch.testing.assert_close(turned, upright.roll(1, dims=1), rtol=0, atol=1e-12)
    assert float((turned - upright).abs().max()) > 0.1 * float(upright.std())


@pytest.mark.parametrize("latents", [16, 36])
def test_four_orientations_per_site_are_exact_on_even_and_odd_grids(latents: int) -> None:
    """A 2 x 2 and a 3 x 3 grid, whose centre holds four latents, are both closed."""
    shape = _shape(latents=latents)
    drift = _turned_drift(_enf(shape), _cloud(shape, orientation="four"), MOVING)
    assert max(drift.pose, drift.context) <= 1e-9


def test_radial_bi_invariant_is_exact_on_any_closed_grid() -> None:
    """Without orientations even a 3 x 3 grid with a latent in the centre is exact."""
    shape = _shape(latents=9, invariant="radial")
    images, cloud = _images(), _with_theta(_plain_grid(3, 9), torch.zeros(9))
    upright = _fitted(_enf(shape), images, cloud, MOVING)
    turned = _fitted(_enf(shape), torch.rot90(images, 1, dims=(1, 2)), cloud, MOVING)
    poses = torch.cat([turn_quarter(upright.poses, 1)[..., :2], upright.poses[..., 2:]], dim=-1)
    drift = _drift(replace(upright, poses=poses), turned)
    assert max(drift.pose, drift.context) <= 1e-9


def test_steps_of_adam_are_exact_under_quarter_turns() -> None:
    """Adam works coordinate by coordinate, and quarter turns only permute and negate coordinates."""
    shape = _shape()
    config = AutodecodeConfig(epochs=3, batch_size=2, lr_context=0.1, lr_position=0.01, lr_orientation=0.01)
    images, pixels, cloud = _images(), pixel_grid(SIZE), _cloud(shape)
    upright = refit(_enf(shape), _flat(images), pixels, cloud, config).cloud
    turned = refit(_enf(shape), _flat(torch.rot90(images, 1, dims=(1, 2))), pixels, cloud, config).cloud
    drift = _drift(replace(upright, poses=turn_quarter(upright.poses, 1)), turned)
    assert float((upright.poses - cloud.poses).abs().max()) > 0.01
    assert max(drift.pose, drift.context) <= 1e-9


def test_translation_bi_invariant_breaks_it() -> None:
    """No start can save a decoder that is not steerable under rotations."""
    shape = _shape(invariant="translation")
    assert _turned_drift(_enf(shape), _cloud(shape), FROZEN).context > 0.5


@pytest.mark.parametrize("field", ["zero", "linspace", "random"])
def test_an_orientation_field_that_does_not_turn_with_the_grid_breaks_it(field: str) -> None:
    """Theta zero, evenly spread by index, or random: no quarter turn maps the start onto itself."""
    spread = torch.linspace(0.0, 2.0 * math.pi, 16)
    random = 2.0 * math.pi * torch.rand(16, generator=torch.Generator().manual_seed(0))
    theta_rad = {"zero": torch.zeros(16), "linspace": spread, "random": random}[field]
    assert _turned_drift(_enf(_shape()), _with_theta(_cloud(_shape()), theta_rad), FROZEN).context > 0.3


@pytest.mark.parametrize(("per_axis", "keep"), [(3, 9), (6, 32)])
def test_a_centre_latent_and_a_cut_grid_break_it(per_axis: int, keep: int) -> None:
    """The latent in the centre of 3 x 3 has no direction to point to; 32 of 6 x 6 sites have no turned image."""
    shape = _shape(latents=keep)
    assert _turned_drift(_enf(shape), _plain_grid(per_axis, keep), FROZEN).context > 0.3


def test_ties_of_neighbours_on_the_straight_grid_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels equally far from two latents take the one with the lower index, and are refused for it."""
    shape = _shape(neighbours=4)
    with pytest.raises(ValueError, match=r"of 256 pixels lie equally far"):
        _turned_drift(_enf(shape), _cloud(shape, 0.0), FROZEN)
    monkeypatch.setattr(enf_fit, "require_exact", lambda *_, **__: None)
    assert _turned_drift(_enf(shape), _cloud(shape, 0.0), FROZEN).context > 0.03


def test_contexts_that_differ_within_an_orbit_break_it() -> None:
    """A start learned per latent must be tied over quarter turns; one tied over them is exact."""
    generator = torch.Generator().manual_seed(0)
    free = torch.rand(16, CONTEXT, generator=generator, dtype=torch.float64)
    cloud = _cloud(_shape())
    assert _turned_drift(_enf(_shape()), replace(cloud, contexts=free), FROZEN).context > 0.3
    tied = free[:4].repeat(4, 1)
    assert _turned_drift(_enf(_shape()), replace(cloud, contexts=tied), FROZEN).context <= 1e-9


def test_jitter_drawn_for_each_fit_breaks_it() -> None:
    """Noise on the poses, drawn anew for the turned image, moves the contexts."""
    shape, images = _shape(), _images()
    generator = torch.Generator().manual_seed(0)

    def jittered() -> LatentCloud:
        cloud = _cloud(shape)
        noise = 0.1 / math.sqrt(shape.latents) * torch.randn(16, 3, generator=generator, dtype=torch.float64)
        return replace(cloud, poses=cloud.poses + noise)

    upright = _fitted(_enf(shape), images, jittered(), FROZEN)
    turned = _fitted(_enf(shape), torch.rot90(images, 1, dims=(1, 2)), jittered(), FROZEN)
    assert _drift(replace(upright, poses=turn_quarter(upright.poses, 1)), turned).context > 0.1


def test_pixels_must_be_drawn_in_whole_orbits() -> None:
    """A quarter of the pixels drawn at random breaks it; the same share drawn by orbits is exact."""
    enf, cloud, images = _enf(_shape()), _cloud(_shape()), _images()
    orbit = torch.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    orbits = torch.stack([torch.rot90(orbit, turns)[: SIZE // 2, : SIZE // 2].flatten() for turns in range(4)])

    def drift(chosen: list[Tensor]) -> Drift:
        clouds = []
        for turns, pixels in enumerate(chosen):
            values = _flat(torch.rot90(images, turns, dims=(1, 2)))[:, pixels]
            clouds.append(fit(enf, values, pixel_grid(SIZE)[pixels], cloud, FROZEN, create_graph=False).cloud)
        return _drift(replace(clouds[0], poses=turn_quarter(clouds[0].poses, 1)), clouds[1])

    draws = [torch.randperm(SIZE * SIZE, generator=torch.Generator().manual_seed(seed))[:64] for seed in (0, 1)]
    assert drift(draws).context > 0.3
    whole = orbits[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))[:16]].flatten()
    assert drift([whole, whole]).context <= 1e-9


def test_a_position_rate_that_differs_between_the_axes_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of positions must be one number, or the step does not commute with a turn."""
    descend = enf_fit.descend

    def slower_in_y(cloud: LatentCloud, gradients: dict[str, Tensor], config: FitConfig) -> LatentCloud:
        scaled = gradients["poses"] * gradients["poses"].new_tensor([1.0, 0.25, 1.0])
        return descend(cloud, {**gradients, "poses": scaled}, config)

    monkeypatch.setattr(enf_fit, "descend", slower_in_y)
    drift = _turned_drift(_enf(_shape()), _cloud(_shape()), MOVING)
    assert drift.pose > 0.02
    assert drift.context > 0.05


def test_high_frequencies_with_moving_poses_are_chaotic_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """With frequencies 30 and 60 moving poses are refused in float32, where rounding decides; frozen poses are exact."""
    shape = _shape(std_query=30.0, std_value=60.0, hidden=32)
    cloud, fast = _cloud(shape), replace(MOVING, lr_position=2.0, lr_orientation=2.0)
    frozen = _turned_drift(_enf(shape, torch.float32), cloud, FROZEN)
    assert max(frozen.pose, frozen.context) <= 1e-4
    double = _turned_drift(_enf(shape), cloud, fast)
    assert max(double.pose, double.context) <= 1e-4
    with pytest.raises(ValueError, match="freeze the poses"):
        _turned_drift(_enf(shape, torch.float32), cloud, fast)
    monkeypatch.setattr(enf_fit, "require_exact", lambda *_, **__: None)
    assert _turned_drift(_enf(shape, torch.float32), cloud, fast).pose > 0.5


def _mirrored_drift(invariant: str, tilt_rad: float) -> Drift:
    """Fit images and their left-right mirror images: (x, y, theta) goes to (-x, y, pi - theta)."""
    shape, images = _shape(invariant=invariant), _images()
    plain = _fitted(_enf(shape), images, _cloud(shape, tilt_rad), FROZEN)
    mirrored = _fitted(_enf(shape), images.flip(2), _cloud(shape, tilt_rad), FROZEN)
    x, y, theta_rad = plain.poses.unbind(dim=-1)
    return _drift(replace(plain, poses=torch.stack([-x, y, math.pi - theta_rad], dim=-1)), mirrored)


def test_mirror_images_need_the_e2_bi_invariant_and_a_straight_grid() -> None:
    """A mirrored image gives the mirrored cloud only where decoder and start both have the mirror symmetry."""
    assert max(_mirrored_drift("e2", 0.0).pose, _mirrored_drift("e2", 0.0).context) <= 1e-9
    assert _mirrored_drift("se2", 0.0).context > 0.2
    assert _mirrored_drift("e2", 0.2).context > 0.2
