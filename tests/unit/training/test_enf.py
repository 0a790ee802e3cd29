"""The field itself: sizes, formula, bi-invariants and steerability of the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.models.bi_invariants import BI_INVARIANTS, bi_invariant, pair_invariant
from training.models.enf import Enf, EnfShape
from training.models.latent_cloud import LatentCloud, nearest_latents, squared_distance

ANGLES_RAD = st.floats(-math.pi, math.pi)
SHIFTS = st.tuples(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0))
Motion = Callable[[Tensor], Tensor]


def _shape(**changes: Any) -> EnfShape:
    base = EnfShape(
        latents=16,
        context_width=5,
        hidden=16,
        heads=3,
        key_width=7,
        std_query=1.0,
        std_value=2.0,
        neighbours=None,
        invariant="se2",
    )
    return replace(base, **changes)


def _enf(**changes: Any) -> Enf:
    torch.manual_seed(0)
    enf = Enf(_shape(**changes)).double()
    for parameter in enf.parameters():  # biases too, so that no term can hide behind a zero
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    return enf


def _random_cloud(images: int = 2, latents: int = 16) -> LatentCloud:
    generator = torch.Generator().manual_seed(3)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    poses = 2.0 * torch.rand(images, latents, 3, **options) - 1.0
    poses[..., 2] *= math.pi
    return LatentCloud(poses, torch.randn(images, latents, 5, **options), 0.2 + torch.rand(images, latents, **options))


def _random_pixels(count: int = 40) -> Tensor:
    return 2.0 * torch.rand(count, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 1.0


def _as_written(enf: Enf, pixels_P2: Tensor, cloud: LatentCloud) -> Tensor:
    """The decoder term by term as published, all latents, no products drawn together."""
    heads, hidden = enf.shape.heads, enf.shape.hidden
    a = enf.invariant(pixels_P2[None, :, None], cloud.poses[:, None])

    def embedded(embedding: Any) -> Tensor:
        e = (math.pi * (a + 1)) @ embedding.frequencies
        return embedding.mix(torch.sin(torch.cat([a, e, e + math.pi / 2], dim=-1)))

    q = enf.query(embedded(enf.query_embedding)).unflatten(-1, (heads, -1))
    b, g = enf.film(embedded(enf.value_embedding)).split(hidden, dim=-1)
    k = enf.key(cloud.contexts).unflatten(-1, (heads, -1))[:, None]
    inner = enf.value_hidden(enf.value(cloud.contexts)[:, None] * (1 + b) + g)
    gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    v = enf.value_out(gelu).unflatten(-1, (heads, hidden))
    window = squared_distance(pixels_P2, cloud.poses) / cloud.window[:, None] ** 2
    w = torch.softmax((q * k).sum(dim=-1) - window[..., None], dim=2)
    return enf.head((w[..., None] * v).sum(dim=2).flatten(-2))


@pytest.mark.parametrize(("context_width", "parameters"), [(16, 743_425), (32, 759_809), (64, 792_577)])
def test_published_sizes_have_the_published_parameters(context_width: int, parameters: int) -> None:
    """The decoder of the MIDL 2026 paper is reproduced to the last parameter."""
    enf = Enf(EnfShape.published(context_width))
    assert sum(parameter.numel() for parameter in enf.parameters()) == parameters


def test_small_field_has_the_latents_of_the_published_one() -> None:
    """The small field differs in widths and frequencies only."""
    small, published = EnfShape.small(), EnfShape.published(16)
    assert (small.latents, small.neighbours, small.invariant) == (64, 4, "se2")
    assert replace(small, hidden=256, key_width=256, std_query=30.0, std_value=60.0) == published


def test_weights_start_lecun_normal_and_biases_at_zero() -> None:
    """Kernels have variance 1 / fan-in and no outliers; frequencies have the given spread."""
    torch.manual_seed(0)
    enf = Enf(EnfShape.published(32))
    assert float(enf.value_out.weight.detach().std()) == pytest.approx(1 / 16, rel=0.02)
    assert float(enf.value_out.weight.detach().abs().max()) <= 2.01 / 16 / 0.8796
    assert float(enf.value_out.bias.detach().abs().max()) == 0.0
    assert float(enf.query_embedding.frequencies.detach().std()) == pytest.approx(30.0, rel=0.15)
    assert float(enf.value_embedding.frequencies.detach().std()) == pytest.approx(60.0, rel=0.15)


@pytest.mark.parametrize("name", BI_INVARIANTS)
def test_decoder_is_the_published_formula(name: str) -> None:
    """Products drawn together change no number, for every bi-invariant."""
    enf, pixels, cloud = _enf(invariant=name, outputs=2), _random_pixels(), _random_cloud()
    found = enf(pixels, cloud)
    assert found.shape == (2, 40, 2)
    torch.testing.assert_close(found, _as_written(enf, pixels, cloud), rtol=0, atol=1e-11)


def test_nearest_latents_decode_as_if_the_others_were_not_there() -> None:
    """With k neighbours a pixel's value is that of a dense decoder with only these latents."""
    enf, pixels, cloud = _enf(neighbours=4), _random_pixels(), _random_cloud(images=1)
    index = nearest_latents(pixels, cloud.poses[0], 4)
    for pixel in range(5):
        few = cloud.map(lambda tensor, rows=index[pixel]: tensor[:, rows])
        expected = _as_written(enf, pixels[pixel : pixel + 1], few)
        torch.testing.assert_close(enf(pixels[pixel : pixel + 1], cloud), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("neighbours", [None, 4])
def test_shared_poses_decode_as_a_batch_of_equal_ones(neighbours: int | None) -> None:
    """Poses without a batch axis stand for all images."""
    enf, pixels, cloud = _enf(neighbours=neighbours), _random_pixels(), _random_cloud()
    shared = replace(cloud, poses=cloud.poses[0], window=cloud.window[0])
    repeated = replace(cloud, poses=cloud.poses[:1].repeat(2, 1, 1), window=cloud.window[:1].repeat(2, 1))
    torch.testing.assert_close(enf(pixels, shared), enf(pixels, repeated), rtol=0, atol=1e-12)


def test_latents_have_no_order() -> None:
    """A permuted cloud decodes to the same image."""
    enf, pixels, cloud = _enf(neighbours=4), _random_pixels(), _random_cloud()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    permuted = cloud.map(lambda tensor: tensor[:, order])
    torch.testing.assert_close(enf(pixels, cloud), enf(pixels, permuted), rtol=0, atol=1e-12)


def _moved(name: str, neighbours: int | None, motion: Motion, turn: Motion) -> float:
    """Return the largest |f(x; z) - f(g x; g z)|; theta goes through ``turn``."""
    enf, pixels, cloud = _enf(invariant=name, neighbours=neighbours), _random_pixels(), _random_cloud()
    poses = torch.cat([motion(cloud.poses[..., :2]), turn(cloud.poses[..., 2:])], dim=-1)
    with torch.no_grad():
        return float((enf(pixels, cloud) - enf(motion(pixels), replace(cloud, poses=poses))).abs().max())


def _rigid(angle_rad: float, shift: tuple[float, float], *, mirrored: bool = False) -> tuple[Motion, Motion]:
    """Return x to R x + v on points, and what it does to theta; ``mirrored`` first negates y."""
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    sign = -1.0 if mirrored else 1.0
    matrix = torch.tensor([[cos, -sign * sin], [sin, sign * cos]], dtype=torch.float64)
    moved = torch.tensor(shift, dtype=torch.float64)
    return (lambda points: points @ matrix.T + moved), (lambda theta_rad: sign * theta_rad + angle_rad)


@settings(max_examples=15, deadline=None)
@given(ANGLES_RAD, SHIFTS, st.sampled_from(["se2", "e2", "radial"]), st.sampled_from([None, 4]))
def test_decoder_is_steerable_under_rigid_motions(
    angle_rad: float, shift: tuple[float, float], name: str, neighbours: int | None
) -> None:
    """f(g^-1 x; z) = f(x; g z) for any rotation and shift, dense and with neighbours."""
    assert _moved(name, neighbours, *_rigid(angle_rad, shift)) <= 1e-10


@settings(max_examples=10, deadline=None)
@given(ANGLES_RAD, SHIFTS, st.sampled_from(["e2", "radial"]))
def test_decoder_is_steerable_under_reflections(angle_rad: float, shift: tuple[float, float], name: str) -> None:
    """The E(2) bi-invariants see no handedness."""
    assert _moved(name, None, *_rigid(angle_rad, shift, mirrored=True)) <= 1e-10


@settings(max_examples=10, deadline=None)
@given(SHIFTS, st.sampled_from(["translation", "periodic"]))
def test_decoder_is_steerable_under_shifts(shift: tuple[float, float], name: str) -> None:
    """R^2 and the torus see offsets only."""
    assert _moved(name, None, *_rigid(0.0, shift)) <= 1e-10


@pytest.mark.parametrize(
    ("name", "motion"),
    [
        ("absolute", _rigid(0.0, (0.3, 0.0))),
        ("absolute_pair", _rigid(0.0, (0.3, 0.0))),
        ("translation", _rigid(0.5, (0.0, 0.0))),
        ("periodic", _rigid(0.5, (0.0, 0.0))),
        ("se2", _rigid(0.0, (0.0, 0.0), mirrored=True)),
    ],
)
def test_decoder_is_not_steerable_beyond_its_group(name: str, motion: tuple[Motion, Motion]) -> None:
    """Each bi-invariant breaks under the next larger group."""
    assert _moved(name, None, *motion) > 1e-2


def test_periodic_bi_invariant_lives_on_the_torus() -> None:
    """A pixel that leaves on the right comes in on the left."""
    pixels, poses = _random_pixels(), _random_cloud().poses[0, 0]
    numbers = bi_invariant("periodic")
    shift = torch.tensor([2.0, -4.0], dtype=torch.float64)
    torch.testing.assert_close(numbers(pixels + shift, poses), numbers(pixels, poses), rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", BI_INVARIANTS.values(), ids=lambda row: row.name)
def test_bi_invariants_have_their_dimension(row: Any) -> None:
    """Leading axes broadcast, the last one is the dimension; orientation is asked for where it is used."""
    pixels, poses = _random_pixels()[:, None], _random_cloud().poses[0]
    assert row(pixels, poses).shape == (40, 16, row.dimension)
    if row.needs_orientation:
        with pytest.raises(ValueError, match="needs poses"):
            row(pixels, poses[:, :2])
    else:
        torch.testing.assert_close(row(pixels, poses[:, :2]), row(pixels, poses))


def test_se2_bi_invariant_turns_against_theta() -> None:
    """A point ahead of the pose lies on its first axis: R(-theta), not R(theta)."""
    pose = torch.tensor([0.2, -0.1, 0.7], dtype=torch.float64)
    ahead = pose[:2] + 0.5 * torch.stack([torch.cos(pose[2]), torch.sin(pose[2])])
    expected = torch.tensor([0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(bi_invariant("se2")(ahead, pose), expected, rtol=0, atol=1e-15)


def test_unknown_bi_invariant_is_refused() -> None:
    """The message lists what there is."""
    with pytest.raises(ValueError, match=r"'se3'.*translation"):
        bi_invariant("se3")


@settings(max_examples=20, deadline=None)
@given(ANGLES_RAD, SHIFTS)
def test_pair_invariant_sees_relative_poses_only(angle_rad: float, shift: tuple[float, float]) -> None:
    """Four numbers per pair of latents do not change when both move, and do when one does."""
    poses = _random_cloud().poses[0]
    motion, turn = _rigid(angle_rad, shift)
    moved = torch.cat([motion(poses[:, :2]), turn(poses[:, 2:])], dim=-1)
    before, after = (pair_invariant(some[:, None], some[None]) for some in (poses, moved))
    assert before.shape == (16, 16, 4)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    assert float((pair_invariant(poses[:, None], poses.roll(1, 0)[None]) - before).abs().max()) > 0.1


def test_an_odd_hidden_width_is_refused() -> None:
    """Sines and cosines come in pairs."""
    with pytest.raises(ValueError, match="odd"):
        Enf(_shape(hidden=15))
