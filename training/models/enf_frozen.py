"""The Equivariant Neural Field with frozen poses: the same network as ``enf.Enf``, arranged for speed and export.

With frozen poses the queries, the FiLM parameters and the windows are constants of a pixel and a latent. Linear layers
that follow each other are folded (key into query; value output and head into one vector a head), which changes no
number and takes a quarter of the operations. The gradient of the fit is written by hand: no automatic differentiation
is left in the graph, no scatter, no data-dependent shape. Everything is laid out latent by latent, so that gradients
are plain sums; only the attention logits and values of each pair are permuted between latents and pixels.

Letters: F frames, P pixels, K neighbours, N latents, Q = N / 4 their orbits, M slots a latent, C context, H hidden,
E heads. "Latent order" is [F, 4, Q, M], "pixel order" [F, P, K]; see ``enf_orbits``.

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
from training.models.enf_orbits import PairTables

_GELU_SCALE = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


class FieldConstants(NamedTuple):
    """What the decoder's weights become for one set of pair tables.

    Args:
        key: [Q, C, M * E], attention logits of a slot are linear in the context.
        key_bias: [Q, M, E], with the Gaussian window.
        film: [Q, M, H], factor on the value of the context.
        shift: [Q, M, H], pre-activation that the context does not change.
        value: [C, H] and value_bias [H], context to value.
        hidden: [H, H], value to pre-activation.
        mix: [H, E], activation to the heads' share of the output.
        output_bias: [].
        filled: [Q, M, 1], 0 where a slot is empty.
        to_pixels, to_latents: permutations, see ``PairTables``.
        pixels: int64 [P].
    """

    key: Tensor
    key_bias: Tensor
    film: Tensor
    shift: Tensor
    value: Tensor
    value_bias: Tensor
    hidden: Tensor
    mix: Tensor
    output_bias: Tensor
    filled: Tensor
    to_pixels: Tensor
    to_latents: Tensor
    pixels: Tensor


class _Activations(NamedTuple):
    """What one evaluation leaves for the gradient."""

    slope: Tensor  # [F, 4, Q, M, H], derivative of the activation
    attention: Tensor  # [F, P, K, E]
    values: Tensor  # [F, P, K, E]


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


def field_constants(enf: Enf, tables: PairTables, window: float) -> FieldConstants:
    """Fold the decoder's weights for the given pairs; differentiable in the weights.

    Args:
        enf: one output, SE(2) bi-invariant. Computes in its dtype.
        tables: of the image and the cloud.
        window: width of the Gaussian windows, half fields of view.
    """
    dtype = enf.head.weight.dtype
    offsets, orientation = tables.offsets.to(dtype), tables.orientations.to(dtype)[:, None]
    cos, sin = torch.cos(orientation), torch.sin(orientation)
    x, y = offsets[..., 0], offsets[..., 1]
    invariant = torch.stack([x * cos + y * sin, -x * sin + y * cos], dim=-1)  # [Q, M, 2]
    query = enf.folded_query(invariant)  # [Q, M, E, C + 1]
    scale, shift = enf.film(enf.value_embedding(invariant)).chunk(2, dim=-1)  # both [Q, M, H]
    kernel_OEH, bias_O = enf.folded_output()
    return FieldConstants(
        key=query[..., :-1].permute(0, 3, 1, 2).flatten(2),
        key_bias=query[..., -1] - ((x**2 + y**2) / window**2)[..., None],
        film=1.0 + scale,
        shift=enf.value_hidden(shift),
        value=enf.value.weight.T,
        value_bias=enf.value.bias,
        hidden=enf.value_hidden.weight.T,
        mix=kernel_OEH[0].T,
        output_bias=bias_O[0],
        filled=tables.filled.to(dtype)[..., None],
        to_pixels=tables.to_pixels,
        to_latents=tables.to_latents,
        pixels=tables.pixels,
    )


def fit_frames(
    images_FP: Tensor, start_C: Tensor, constants: FieldConstants, *, steps: int, learning_rate: float
) -> FittedFrames:
    """Take ``steps`` gradient steps on the contexts of every frame, all from the same start.

    Args:
        images_FP: grey values, pixels in orbit order.
        start_C: [C], the context every latent starts from.
        constants: of the decoder.
        steps: T.
        learning_rate: of the contexts; the loss of a frame is the mean over its pixels.
    """
    orbits, latents = constants.film.shape[0], 4 * constants.film.shape[0]
    contexts = start_C.expand(1, 1, orbits, len(start_C))  # all latents alike: one frame, one quarter is enough
    for _ in range(steps):
        values, activations = _evaluate(contexts, constants)
        contexts = contexts - learning_rate * _gradient(values - images_FP, activations, constants)
    values, _ = _evaluate(contexts, constants)
    errors = ((values - images_FP) ** 2).mean(dim=1)
    return FittedFrames(contexts=contexts.reshape(-1, latents, len(start_C)), errors=errors, values=values)


def decode_frames(contexts_FNC: Tensor, constants: FieldConstants) -> Tensor:
    """Return the field's values [F, P], pixels in orbit order."""
    orbits = constants.film.shape[0]
    values, _ = _evaluate(contexts_FNC.reshape(-1, 4, orbits, contexts_FNC.shape[-1]), constants)
    return values


def _evaluate(contexts_F4QC: Tensor, k: FieldConstants) -> tuple[Tensor, _Activations]:
    slots, heads = k.film.shape[1], k.mix.shape[1]
    logits = (contexts_F4QC[..., None, :] @ k.key).reshape(*contexts_F4QC.shape[:3], slots, heads) + k.key_bias
    value = contexts_F4QC @ k.value + k.value_bias  # [F, 4, Q, H]
    before = (value[..., None, :] * k.film) @ k.hidden + k.shift  # [F, 4, Q, M, H]
    activation, slope = _gelu(before)
    attention = torch.softmax(_in_pixel_order(logits, k), dim=2)  # [F, P, K, E]
    values = _in_pixel_order(activation @ k.mix, k)  # [F, P, K, E]
    return (attention * values).sum(dim=(2, 3)) + k.output_bias, _Activations(slope, attention, values)


def _gradient(residual_FP: Tensor, done: _Activations, k: FieldConstants) -> Tensor:
    """Return the gradient of the mean squared residual of each frame in its contexts, [F, 4, Q, C]."""
    upstream = (2.0 / residual_FP.shape[1]) * residual_FP[..., None, None]  # [F, P, 1, 1]
    to_values = upstream * done.attention  # [F, P, K, E]
    spread = to_values * done.values
    to_logits = spread - done.attention * spread.sum(dim=2, keepdim=True)
    latent_logits, latent_values = _in_latent_order(to_logits, k), _in_latent_order(to_values, k)  # [F, 4, Q, M, E]
    before = (latent_values @ k.mix.T) * done.slope  # [F, 4, Q, M, H]
    value = ((before @ k.hidden.T) * k.film).sum(dim=3)  # [F, 4, Q, H]
    through_keys = (latent_logits.flatten(3)[..., None, :] @ k.key.transpose(1, 2))[..., 0, :]
    return value @ k.value.T + through_keys


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return GELU in its tanh form, and its derivative."""
    squared = x * x
    tanh = torch.tanh(_GELU_SCALE * x * (1.0 + _GELU_CUBIC * squared))
    half = 0.5 * (1.0 + tanh)
    inner = _GELU_SCALE * (1.0 + 3.0 * _GELU_CUBIC * squared)
    return x * half, half + 0.5 * x * (1.0 - tanh * tanh) * inner


def _in_pixel_order(slots_F4QME: Tensor, k: FieldConstants) -> Tensor:
    """Permute [F, 4 or 1, Q, M, E] to [F, P, K, E]; one quarter stands for all four where they are alike."""
    frames, _, orbits, slots, heads = slots_F4QME.shape
    flat = slots_F4QME.expand(frames, 4, orbits, slots, heads).reshape(frames, 4 * orbits * slots, heads)
    return flat.index_select(1, k.to_pixels).reshape(frames, k.pixels.shape[0], -1, heads)


def _in_latent_order(pairs_FPKE: Tensor, k: FieldConstants) -> Tensor:
    """Permute [F, P, K, E] to [F, 4, Q, M, E], with 0 in empty slots."""
    orbits, slots = k.film.shape[:2]
    flat = pairs_FPKE.flatten(1, 2).index_select(1, k.to_latents)
    return flat.reshape(-1, 4, orbits, slots, pairs_FPKE.shape[-1]) * k.filled


def psnr_db(errors: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of images from 0 to 1."""
    return -10.0 * torch.log10(errors.clamp_min(1e-12))


class FrozenField(nn.Module):
    """Constants of a trained decoder as float32 buffers, computed in float64: the fit of the engine.

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
            constants = field_constants(_double(enf), tables, window)
        for name, value in constants._asdict().items():
            self.register_buffer(name, value.float() if value.is_floating_point() else value)
        self.register_buffer("start", start.float())
        self.steps, self.learning_rate = steps, learning_rate

    def forward(self, images_FSS: Tensor) -> FittedFrames:
        """Fit frames [F, S, S]."""
        constants = self.constants()
        pixels = images_FSS.flatten(1).index_select(1, constants.pixels)
        start: Any = self.start
        return fit_frames(pixels, start, constants, steps=self.steps, learning_rate=self.learning_rate)

    def constants(self) -> FieldConstants:
        """Return the buffers by name."""
        return FieldConstants(**{name: getattr(self, name) for name in FieldConstants._fields})


def _double(enf: Enf) -> Enf:
    copy = Enf(enf.shape).double()
    copy.load_state_dict({name: value.double() for name, value in enf.state_dict().items()})
    return copy
