"""The Equivariant Neural Field with frozen poses: the same network as ``enf.Enf``, arranged for speed and export.

With frozen poses the queries, the FiLM parameters and the windows are constants of a pixel and a latent. Linear layers
that follow each other are folded (key into query; value, FiLM and hidden layer into one map of the context a pair; value
output and head into one vector a head), which changes no number. The first gradient step starts from the same context for
every image, so it is linear in the pixels: its matrix is a constant too. The gradient of the fit is written by hand: no
automatic differentiation is left in the graph, no scatter, no data-dependent shape. Everything is laid out latent by
latent, so that gradients are plain sums; only the attention logits and values of each pair are permuted between latents
and pixels.

Letters: F frames, P pixels, K neighbours, N latents, Q = N / 4 their orbits, R = 4 * F rows of an orbit (frame, quarter
turn), G orbits of a block, M slots a latent of it, C context, H hidden, E heads. "Latent order" is a list of [G, R, M, E],
one for each block, "pixel order" [F, K, P, E]; see ``enf_orbits``.

Source: Wiers et al., "Geometry-Aware Cardiac MRI Representation Learning with Equivariant Neural Fields", MIDL 2026;
Wessels, Knigge et al., "Grounding Continuous Representations in Geometry", ICLR 2025. Own code from the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training.models.enf import Enf
from training.models.enf_orbits import PairBlock, PairTables

_SIGMOID_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
_SIGMOID_CUBIC = 0.044715 * _SIGMOID_LINEAR


class BlockFactors(NamedTuple):
    """What the decoder's weights become for the pairs of one block.

    Args:
        key: [G, C, M * E], attention logits of a slot are linear in the context.
        key_bias: [G, 1, M * E], with the Gaussian window.
        film: [G, M, H], factor on the value of the context.
        shift: [G, M, H], pre-activation that the context does not change.
        filled: [G, 1, M, 1], 0 where a slot is empty.
    """

    key: Tensor
    key_bias: Tensor
    film: Tensor
    shift: Tensor
    filled: Tensor


class FieldFactors(NamedTuple):
    """What the decoder's weights become for one set of pair tables, before the large product: what a graph stores.

    Args:
        blocks: see ``BlockFactors``.
        value: [C + 1, H], context to value; the last row is the bias.
        hidden: [H, H], value to pre-activation.
        mix: [H, E], activation to the heads' share of the output.
        output_bias: [].
        to_pixels, to_latents: permutations, see ``PairTables``.
        pixels: int64 [P].
        restore: int64 [Q], where each orbit lies among those of the blocks.
    """

    blocks: tuple[BlockFactors, ...]
    value: Tensor
    hidden: Tensor
    mix: Tensor
    output_bias: Tensor
    to_pixels: Tensor
    to_latents: Tensor
    pixels: Tensor
    restore: Tensor


class Lift(NamedTuple):
    """The pre-activation of every pair of a block as one map of the context.

    Args:
        weight: [G, C, M * H].
        bias: [G, 1, M * H].
    """

    weight: Tensor
    bias: Tensor


class FieldConstants(NamedTuple):
    """The factors, and the lift of each block."""

    factors: FieldFactors
    lifts: tuple[Lift, ...]


class FirstStep(NamedTuple):
    """The first gradient step, whose only unknown are the pixels.

    Args:
        values: [P], what the start looks like, pixels in orbit order.
        gradients: of each block [G, M, C], derivative of a pair's pixel in the context of its latent.
    """

    values: Tensor
    gradients: tuple[Tensor, ...]


class _Activations(NamedTuple):
    """What one evaluation leaves for the gradient."""

    slopes: list[Tensor]  # of each block [G, R, M * H], derivative of the activation
    attention: Tensor  # [F, K, P, E]
    values: Tensor  # [F, K, P, E]


@dataclass(frozen=True, kw_only=True)
class FittedFrames:
    """Contexts after the last step and how well they reproduce the frames.

    Args:
        contexts: [F, N, C].
        errors: [F], mean squared error.
        values: [F, P], the reconstruction in orbit order.
    """

    contexts: Tensor
    errors: Tensor
    values: Tensor


def field_factors(enf: Enf, tables: PairTables, window: float) -> FieldFactors:
    """Fold the decoder's weights for the given pairs; differentiable in the weights.

    Args:
        enf: one output, SE(2) bi-invariant. Computes in its dtype.
        tables: of the image and the cloud.
        window: width of the Gaussian windows, half fields of view.
    """
    kernel_OEH, bias_O = enf.folded_output()
    return FieldFactors(
        blocks=tuple(_block_factors(enf, block, window) for block in tables.blocks),
        value=torch.cat([enf.value.weight.T, enf.value.bias[None]]),
        hidden=enf.value_hidden.weight.T,
        mix=kernel_OEH[0].T,
        output_bias=bias_O[0],
        to_pixels=tables.to_pixels,
        to_latents=tables.to_latents,
        pixels=tables.pixels,
        restore=torch.argsort(torch.cat([block.orbits for block in tables.blocks])),
    )


def _block_factors(enf: Enf, block: PairBlock, window: float) -> BlockFactors:
    dtype = enf.head.weight.dtype
    offsets, orientation = block.offsets.to(dtype), block.orientations.to(dtype)[:, None]
    cos, sin = torch.cos(orientation), torch.sin(orientation)
    x, y = offsets[..., 0], offsets[..., 1]
    invariant = torch.stack([x * cos + y * sin, -x * sin + y * cos], dim=-1)  # [G, M, 2]
    query = enf.folded_query(invariant)  # [G, M, E, C + 1]
    scale, shift = enf.film(enf.value_embedding(invariant)).chunk(2, dim=-1)  # both [G, M, H]
    return BlockFactors(
        key=query[..., :-1].permute(0, 3, 1, 2).flatten(2),
        key_bias=(query[..., -1] - ((x**2 + y**2) / window**2)[..., None]).flatten(1)[:, None],
        film=1.0 + scale,
        shift=enf.value_hidden(shift),
        filled=block.filled.to(dtype)[:, None, :, None],
    )


def field_constants(factors: FieldFactors) -> FieldConstants:
    """Multiply value, FiLM and hidden layer out, C + 1 numbers for each of M * H: once a run, or once a graph."""
    return FieldConstants(factors=factors, lifts=tuple(_lift(block, factors) for block in factors.blocks))


def _lift(block: BlockFactors, factors: FieldFactors) -> Lift:
    lifted = (factors.value[:, None] * block.film[:, None]) @ factors.hidden  # [G, C + 1, M, H]
    bias = lifted[:, -1:] + block.shift[:, None]
    return Lift(weight=lifted[:, :-1].flatten(2), bias=bias.flatten(2))


def first_step(start_C: Tensor, k: FieldConstants) -> FirstStep:
    """Return the first step from a context that all latents share; differentiable in the decoder's weights."""
    # All latents are alike: one frame, one quarter is enough.
    contexts = [start_C.expand(len(block.film), 1, len(start_C)) for block in k.factors.blocks]
    values, done = _evaluate(contexts, k)
    spread = done.attention * done.values
    to_logits = spread - done.attention * spread.sum(dim=1, keepdim=True)
    shares = zip(_in_latent_order(to_logits, k), _in_latent_order(done.attention, k), done.slopes, strict=True)
    return FirstStep(
        values=values[0],
        gradients=tuple(
            _pair_gradient(logits[:, 0], pair_values[:, 0], slope, block, lift, k)
            for (logits, pair_values, slope), block, lift in zip(shares, k.factors.blocks, k.lifts, strict=True)
        ),
    )


def _pair_gradient(  # noqa: PLR0913, PLR0917 - what reaches a block and the block
    to_logits_GME: Tensor, to_values_GME: Tensor, slope: Tensor, block: BlockFactors, lift: Lift, k: FieldConstants
) -> Tensor:
    """Return what each pair alone gives to the gradient of its latent, [G, M, C]."""
    before = (to_values_GME @ k.factors.mix.T) * slope.reshape(block.film.shape)  # [G, M, H]
    lift_GMHC = lift.weight.unflatten(2, block.film.shape[1:]).permute(0, 2, 3, 1)
    key_GMEC = block.key.unflatten(2, to_logits_GME.shape[1:]).permute(0, 2, 3, 1)
    return (before[:, :, None] @ lift_GMHC + to_logits_GME[:, :, None] @ key_GMEC)[:, :, 0]


def fit_frames(  # noqa: PLR0913 - what is fitted, from where, with what, how far
    images_FP: Tensor, start_C: Tensor, first: FirstStep, k: FieldConstants, *, steps: int, learning_rate: float
) -> FittedFrames:
    """Take ``steps`` gradient steps on the contexts of every frame, all from the same start.

    Args:
        images_FP: grey values, pixels in orbit order.
        start_C: [C], the context every latent starts from.
        first: of this start.
        k: constants of the decoder.
        steps: T, at least one.
        learning_rate: of the contexts; the loss of a frame is the mean over its pixels.
    """
    rate = learning_rate * 2.0 / images_FP.shape[1]
    steps_down = _first_gradients(first.values - images_FP, first, k)
    contexts = [start_C - rate * step for step in steps_down]  # of each block [G, R, C]
    for _ in range(steps - 1):
        values, activations = _evaluate(contexts, k)
        steps_down = _gradients(values - images_FP, activations, k)
        contexts = [context - rate * step for context, step in zip(contexts, steps_down, strict=True)]
    values, _ = _evaluate(contexts, k)
    errors = ((values - images_FP) ** 2).mean(dim=1)
    return FittedFrames(contexts=_by_frame(contexts, k), errors=errors, values=values)


def decode_frames(contexts_FNC: Tensor, k: FieldConstants) -> Tensor:
    """Return the field's values [F, P], pixels in orbit order."""
    frames, latents, width = contexts_FNC.shape
    rows = contexts_FNC.reshape(frames * 4, latents // 4, width).transpose(0, 1)  # [Q, R, C]
    ordered = rows.index_select(0, torch.argsort(k.factors.restore))
    values, _ = _evaluate(list(ordered.split([len(block.film) for block in k.factors.blocks])), k)
    return values


def _by_frame(contexts: list[Tensor], k: FieldConstants) -> Tensor:
    """Blocks of [G, R, C] to [F, N, C]."""
    rows = torch.cat(contexts).index_select(0, k.factors.restore)  # [Q, R, C]
    orbits, _, width = rows.shape
    return rows.transpose(0, 1).reshape(-1, 4 * orbits, width)


def _evaluate(contexts: list[Tensor], k: FieldConstants) -> tuple[Tensor, _Activations]:
    """Return values [F, P] and what the gradient needs; one row stands for all four quarters of one frame."""
    logits, shares, slopes = [], [], []
    for context_GRC, block, lift in zip(contexts, k.factors.blocks, k.lifts, strict=True):
        activation, slope = _gelu(context_GRC @ lift.weight + lift.bias)  # both [G, R, M * H]
        sizes = (len(context_GRC), -1, block.film.shape[1])
        shares.append(activation.reshape(*sizes, block.film.shape[2]) @ k.factors.mix)  # [G, R, M, E]
        logits.append((context_GRC @ block.key + block.key_bias).reshape(*sizes, k.factors.mix.shape[1]))
        slopes.append(slope)
    attention = torch.softmax(_in_pixel_order(logits, k), dim=1)
    values = _in_pixel_order(shares, k)  # [F, K, P, E]
    return (attention * values).sum(dim=(1, 3)) + k.factors.output_bias, _Activations(slopes, attention, values)


def _gradients(residual_FP: Tensor, done: _Activations, k: FieldConstants) -> list[Tensor]:
    """Return half the gradient of the summed squared residual of each frame in its contexts, blocks of [G, R, C]."""
    to_values = residual_FP[:, None, :, None] * done.attention  # [F, K, P, E]
    spread = to_values * done.values
    to_logits = spread - done.attention * spread.sum(dim=1, keepdim=True)
    shares = zip(_in_latent_order(to_logits, k), _in_latent_order(to_values, k), done.slopes, strict=True)
    return [
        ((pair_values @ k.factors.mix.T).flatten(2) * slope) @ lift.weight.transpose(1, 2)
        + logits.flatten(2) @ block.key.transpose(1, 2)
        for (logits, pair_values, slope), block, lift in zip(shares, k.factors.blocks, k.lifts, strict=True)
    ]


def _first_gradients(residual_FP: Tensor, first: FirstStep, k: FieldConstants) -> list[Tensor]:
    """Return the same at the start."""
    neighbours = k.factors.to_pixels.shape[0] // k.factors.pixels.shape[0]
    pairs = _in_latent_order(residual_FP[:, None, :, None].expand(-1, neighbours, -1, 1), k)
    return [pair[..., 0] @ gradient for pair, gradient in zip(pairs, first.gradients, strict=True)]


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return GELU in its tanh form, x times the sigmoid of an odd cubic, and its derivative."""
    squared = x * x
    sigmoid = torch.sigmoid(x * (_SIGMOID_CUBIC * squared + _SIGMOID_LINEAR))
    value = x * sigmoid
    return value, sigmoid + (value - value * sigmoid) * (3.0 * _SIGMOID_CUBIC * squared + _SIGMOID_LINEAR)


def _in_pixel_order(slots: list[Tensor], k: FieldConstants) -> Tensor:
    """Permute blocks of [G, R or 1, M, E] to [F, K, P, E]; one row stands for the four of one frame."""
    rows = torch.cat([block.transpose(0, 1).flatten(1, 2) for block in slots], dim=1)  # [R or 1, S, E]
    if slots[0].shape[1] == 1:
        rows = rows.expand(4, -1, -1)
    flat = rows.reshape(-1, k.factors.to_latents.shape[0], rows.shape[2])
    found = flat.index_select(1, k.factors.to_pixels)
    return found.reshape(found.shape[0], -1, k.factors.pixels.shape[0], rows.shape[2])


def _in_latent_order(pairs_FKPE: Tensor, k: FieldConstants) -> list[Tensor]:
    """Permute [F, K, P, E] to blocks of [G, R, M, E], with 0 in empty slots."""
    flat = pairs_FKPE.flatten(1, 2).index_select(1, k.factors.to_latents)
    rows = flat.reshape(-1, k.factors.to_latents.shape[0] // 4, flat.shape[2])  # [R, S, E]
    sizes = [block.film.shape[:2] for block in k.factors.blocks]
    parts = rows.split([orbits * slots for orbits, slots in sizes], dim=1)
    return [
        part.unflatten(1, size).transpose(0, 1) * block.filled
        for part, size, block in zip(parts, sizes, k.factors.blocks, strict=True)
    ]


def psnr_db(errors: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of images from 0 to 1."""
    return -10.0 * torch.log10(errors.clamp_min(1e-12))


class FrozenField(nn.Module):
    """Factors and first step of a trained decoder as float32 buffers, computed in float64: the fit of the engine.

    The product of ``field_constants`` is left in the graph, where runtimes compute it once when they load it: its numbers
    would be nine tenths of the file.

    Args:
        enf: trained decoder.
        tables: of the released image size.
        window: width of the Gaussian windows.
        start: [C], start of the contexts.
        steps: T.
        learning_rate: of the contexts.
    """

    def __init__(  # noqa: PLR0913 - a decoder, its cloud and its fit
        self, enf: Enf, tables: PairTables, *, window: float, start: Tensor, steps: int, learning_rate: float
    ) -> None:
        super().__init__()
        with torch.no_grad():
            factors = field_factors(_double(enf), tables, window)
            first = first_step(start.double(), field_constants(factors))
        self.blocks = len(factors.blocks)
        for name in _SHARED:
            self._keep(name, getattr(factors, name))
        for number, (block, gradient) in enumerate(zip(factors.blocks, first.gradients, strict=True)):
            for name, value in (block._asdict() | {"gradient": gradient}).items():
                self._keep(f"block{number}_{name}", value)
        self._keep("first_values", first.values)
        self._keep("start", start)
        self.steps, self.learning_rate = steps, learning_rate

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float().contiguous() if value.is_floating_point() else value)

    def forward(self, images_FSS: Tensor) -> FittedFrames:
        """Fit frames [F, S, S]."""
        return self.fit(images_FSS, self.constants())

    def fit(self, images_FSS: Tensor, constants: FieldConstants) -> FittedFrames:
        """Fit frames [F, S, S] with the product of ``constants``, for who fits many."""
        pixels = images_FSS.flatten(1).index_select(1, constants.factors.pixels)
        first = FirstStep(values=self.first_values, gradients=self._of_blocks("gradient"))
        start: Any = self.start
        return fit_frames(pixels, start, first, constants, steps=self.steps, learning_rate=self.learning_rate)

    def constants(self) -> FieldConstants:
        """Return the buffers by name, multiplied out."""
        columns = {name: self._of_blocks(name) for name in BlockFactors._fields}
        blocks = tuple(
            BlockFactors(**{name: column[number] for name, column in columns.items()}) for number in range(self.blocks)
        )
        return field_constants(FieldFactors(blocks=blocks, **{name: getattr(self, name) for name in _SHARED}))

    def _of_blocks(self, name: str) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"block{number}_{name}") for number in range(self.blocks))


_SHARED = tuple(name for name in FieldFactors._fields if name != "blocks")


def _double(enf: Enf) -> Enf:
    copy = Enf(enf.shape).double()
    copy.load_state_dict({name: value.double() for name, value in enf.state_dict().items()})
    return copy
