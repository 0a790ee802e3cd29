"""The frozen-pose form is the reference field, number for number, and turns with the image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.models.bi_invariants import pair_invariant
from training.models.enf import Enf, EnfShape
from training.models.enf_fit import FitConfig, fit
from training.models.enf_frozen import (
    FieldConstants,
    FittedFrames,
    FrozenField,
    decode_frames,
    field_constants,
    field_factors,
    first_step,
    fit_frames,
    psnr_db,
)
from training.models.enf_orbits import PairTables, pair_tables
from training.models.enf_risk_net import EnfRiskNet
from training.models.invariant_transformer import InvariantTransformer, TransformerShape
from training.models.latent_cloud import LatentCloud, initial_cloud, pixel_grid

SIZE = 16
SHAPE = dataclasses.replace(EnfShape.small(), latents=16, context_width=4, hidden=8, heads=2, key_width=4)
RATE = 5.0


@pytest.fixture(scope="module")
def enf() -> Enf:
    """An untrained decoder in double precision whose biases are not zero."""
    torch.manual_seed(3)
    decoder = Enf(SHAPE).double()
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.3)
    return decoder


@pytest.fixture(scope="module")
def cloud() -> LatentCloud:
    """The start of every fit."""
    return initial_cloud(SHAPE.latents, SHAPE.context_width)


def tables() -> PairTables:
    """All pixels of the small image."""
    return pair_tables(SIZE, SHAPE.latents, SHAPE.neighbours)


def constants_of(enf: Enf, cloud: LatentCloud) -> FieldConstants:
    """The folded decoder at all pixels."""
    return field_constants(field_factors(enf, tables(), float(cloud.window[0])))


def fitted(frames_FP: Tensor, cloud: LatentCloud, constants: FieldConstants, steps: int = 3) -> FittedFrames:
    """The written fit from the start of the cloud."""
    start = cloud.contexts[0]
    return fit_frames(frames_FP, start, first_step(start, constants), constants, steps=steps, learning_rate=RATE)


def images(seed: int = 0, frames: int = 2) -> Tensor:
    """Random frames, [F, S, S]."""
    return torch.from_numpy(np.random.default_rng(seed).random((frames, SIZE, SIZE)))


def in_orbit_order(frames: Tensor) -> Tensor:
    """Frames as the frozen form takes them, [F, P]."""
    return frames.flatten(1)[:, tables().pixels]


def test_pixels_in_orbit_order_turn_by_a_shift_of_quarters() -> None:
    """Turning the image moves each quarter of the orbit-ordered pixels to the next one."""
    frame = images(frames=1)
    turned = in_orbit_order(torch.rot90(frame, 1, (1, 2))).view(4, -1)
    assert torch.equal(turned, in_orbit_order(frame).view(4, -1).roll(1, 0))


def test_every_pixel_has_its_nearest_latents_once() -> None:
    """The permutations are inverse to each other, and the slots hold every pair of pixel and latent."""
    made = tables()
    pairs = SIZE * SIZE * made.neighbours
    assert sorted(made.to_pixels.tolist()) == sorted(set(made.to_pixels.tolist()))
    assert torch.equal(made.to_latents[made.to_pixels], torch.arange(pairs))
    assert sum(int(block.filled.sum()) for block in made.blocks) * 4 == pairs


def test_decoding_agrees_with_the_reference(enf: Enf, cloud: LatentCloud) -> None:
    """Any contexts give the reference's values to rounding."""
    contexts = torch.randn(3, SHAPE.latents, SHAPE.context_width, dtype=torch.float64)
    frozen = decode_frames(contexts, constants_of(enf, cloud))
    reference = enf(pixel_grid(SIZE), LatentCloud(cloud.poses, contexts, cloud.window))[..., 0]
    torch.testing.assert_close(frozen, reference[:, tables().pixels], rtol=0, atol=1e-12)


def test_the_written_gradient_is_the_automatic_one(enf: Enf, cloud: LatentCloud) -> None:
    """Three steps end in the contexts and errors of the reference fit."""
    frames = images()
    config = FitConfig(steps=3, lr_context=RATE)
    reference = fit(enf, frames.flatten(1)[..., None], pixel_grid(SIZE), cloud, config, create_graph=False)
    constants = constants_of(enf, cloud)
    frozen = fitted(in_orbit_order(frames), cloud, constants)
    torch.testing.assert_close(frozen.contexts, reference.cloud.contexts, rtol=0, atol=1e-12)
    torch.testing.assert_close(frozen.errors, reference.mse_B, rtol=0, atol=1e-12)


def test_a_subset_of_orbits_fits_those_pixels_only(enf: Enf, cloud: LatentCloud) -> None:
    """Tables of some orbits decode the same values at those pixels."""
    orbits = np.array([0, 3, 17, 40])
    some = pair_tables(SIZE, SHAPE.latents, SHAPE.neighbours, orbits)
    contexts = torch.randn(1, SHAPE.latents, SHAPE.context_width, dtype=torch.float64)
    window = float(cloud.window[0])
    whole = torch.empty(1, SIZE * SIZE, dtype=torch.float64)
    whole[:, tables().pixels] = decode_frames(contexts, field_constants(field_factors(enf, tables(), window)))
    part = decode_frames(contexts, field_constants(field_factors(enf, some, window)))
    torch.testing.assert_close(part, whole[:, some.pixels], rtol=0, atol=1e-12)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_frame_gives_turned_contexts_exactly(enf: Enf, cloud: LatentCloud, turns: int) -> None:
    """Contexts move to the next quarter and change no bit; the wrong quarter differs."""
    constants = constants_of(enf, cloud)
    frames = images()
    before = fitted(in_orbit_order(frames), cloud, constants)
    turned = in_orbit_order(torch.rot90(frames, turns, (1, 2)))
    after = fitted(turned, cloud, constants)
    quarters = before.contexts.unflatten(1, (4, -1))
    assert torch.equal(after.contexts.unflatten(1, (4, -1)), quarters.roll(turns, 1))
    assert (after.contexts.unflatten(1, (4, -1)) - quarters).abs().max() > 1e-3


def test_second_order_gradients_reach_the_decoder_through_the_written_fit(enf: Enf, cloud: LatentCloud) -> None:
    """The derivative of the error after the fit agrees with a finite difference."""
    frames = in_orbit_order(images())

    def error(scale: float) -> Tensor:
        moved = Enf(SHAPE).double()
        moved.load_state_dict(enf.state_dict())
        with torch.no_grad():
            moved.value_hidden.weight[0, 1] += scale
        constants = constants_of(moved, cloud)
        found = fitted(frames, cloud, constants, steps=2).errors.mean()
        if scale == 0.0:
            found.backward()
            gradients.append(float(moved.value_hidden.weight.grad[0, 1]))
        return found.detach()

    gradients: list[float] = []
    error(0.0)
    step = 1e-5
    assert gradients[0] == pytest.approx(float(error(step) - error(-step)) / (2 * step), rel=1e-4, abs=1e-9)


def test_an_odd_image_and_all_latents_are_refused() -> None:
    """The messages say what was found and what to do."""
    with pytest.raises(ValueError, match="15 pixels wide; expected an even number"):
        pair_tables(15, 16, 4)
    with pytest.raises(ValueError, match="found None"):
        pair_tables(16, 16, None)


def test_psnr_of_known_errors() -> None:
    """An error of 0.01 is 20 dB."""
    torch.testing.assert_close(psnr_db(torch.tensor([0.01, 0.001])), torch.tensor([20.0, 30.0]))


@pytest.fixture(scope="module")
def network(enf: Enf, cloud: LatentCloud) -> EnfRiskNet:
    """The released network in single precision, untrained."""
    torch.manual_seed(4)
    start = cloud.contexts[0]
    field = FrozenField(enf, tables(), window=float(cloud.window[0]), start=start, steps=3, learning_rate=RATE)
    shape = TransformerShape(width=16, layers=2, heads=2, dropout=0.1)
    width = SHAPE.context_width
    classifier = InvariantTransformer(shape, cloud.poses, torch.zeros(width), torch.full((width,), 0.1))
    with torch.no_grad():  # an untrained classifier hardly looks at anything
        classifier.spread.fill_(0.01)
        classifier.frame.normal_()
        classifier.relate[-1].weight.mul_(20.0)
    return EnfRiskNet(field, classifier, cloud.poses).eval()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), turns=st.sampled_from([1, 2, 3]))
def test_the_answer_does_not_turn(network: EnfRiskNet, seed: int, turns: int) -> None:
    """Logit, embedding and PSNR stay; contexts and relevance permute with the latents."""
    pair = images(seed).float()[None]
    with torch.inference_mode():
        before, after = network(pair), network(torch.rot90(pair, turns, (2, 3)))
    for name in ("logit", "embedding", "psnr_db"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-4)
    for name in ("contexts", "relevance"):
        quarters = before[name].unflatten(2, (4, -1)).roll(turns, 2).flatten(2, 3)
        torch.testing.assert_close(after[name], quarters, rtol=0, atol=1e-4)


def test_an_absolute_position_would_turn(network: EnfRiskNet, cloud: LatentCloud) -> None:
    """With a bias of absolute positions in place of relative poses the logit changes: the check can fail."""
    pair = images().float()[None]
    broken = EnfRiskNet(network.field, network.classifier, cloud.poses)
    kept = network.classifier.pairs.clone()
    absolute = cloud.poses[:, 0].float().repeat(2)
    network.classifier.pairs[..., 0] = absolute[None, :]
    try:
        with torch.inference_mode():
            change = (broken(pair)["logit"] - broken(torch.rot90(pair, 1, (2, 3)))["logit"]).abs().max()
    finally:
        network.classifier.pairs.copy_(kept)
    assert change > 1e-4


def test_the_classifier_sees_the_pair_invariant(network: EnfRiskNet, cloud: LatentCloud) -> None:
    """The first four features of a pair of tokens are R(-theta_i)(t_j - t_i) and the cosine and sine of theta_j - theta_i."""
    x, y, theta = cloud.poses.T
    from_x, from_y = x[None] - x[:, None], y[None] - y[:, None]
    cos, sin = torch.cos(theta)[:, None], torch.sin(theta)[:, None]
    turn = theta[None] - theta[:, None]
    expected = torch.stack([from_x * cos + from_y * sin, from_y * cos - from_x * sin, turn.cos(), turn.sin()], dim=-1)
    seen = network.classifier.pairs[..., :4].double()
    torch.testing.assert_close(seen, expected.repeat(2, 2, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        seen[: SHAPE.latents, : SHAPE.latents], pair_invariant(cloud.poses[:, None], cloud.poses), rtol=0, atol=1e-6
    )
    assert network.classifier.pairs[..., 4:].sum(dim=-1).eq(1).all()


def test_the_shares_of_the_tokens_sum_to_the_logit(network: EnfRiskNet) -> None:
    """Relevance and a constant that no image changes make the logit."""
    with torch.inference_mode():
        answers = [network(images(seed).float()[None]) for seed in (1, 2)]
        rest = [answer["logit"][0, 0] - answer["relevance"].sum() for answer in answers]
    torch.testing.assert_close(rest[0], rest[1], rtol=0, atol=1e-5)


def test_the_classifier_does_not_count_tokens_by_place(network: EnfRiskNet) -> None:
    """Swapping end-diastole and end-systole changes the answer: the frames are told apart."""
    contexts = torch.randn(1, 2, SHAPE.latents, SHAPE.context_width, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        change = (network.classifier(contexts)["logit"] - network.classifier(contexts.flip(1))["logit"]).abs().max()
    assert change > 1e-4


def test_the_released_constants_are_doubles_stored_in_single(enf: Enf, network: EnfRiskNet) -> None:
    """The constants are computed in double precision and stored in single; they agree with the double fit to 1e-4."""
    cloud = initial_cloud(SHAPE.latents, SHAPE.context_width)
    constants = constants_of(enf, cloud)
    frames = images(6)
    exact = fitted(in_orbit_order(frames), cloud, constants)
    with torch.inference_mode():
        single = network.field(frames.float())
    torch.testing.assert_close(single.contexts.double(), exact.contexts, rtol=0, atol=1e-4)
    assert single.contexts.dtype == torch.float32
