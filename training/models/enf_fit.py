"""Fitting latent clouds to images: a few gradient steps from a common start, and how a decoder is trained for that.

The decoder is meta-learned: every fit takes T steps from one start, and the decoder learns to be good after step T. The
other way, a table of clouds optimised together with the decoder, is in ``training.models.enf_autodecode``.

The loss of an image is its mean squared error; the loss of a batch is the SUM over images, so that the fit of an image
does not depend on what else is in the batch. That mean makes useful learning rates of contexts as large as 30 to 60.

A step keeps a turned image's cloud turned because the position rate is ONE number for both axes and all latents.

Legend: B images, P pixels, O channels, N latents.

Source: Wiers et al., MIDL 2026 (PMLR 315:3641-3658), section 3; Dupont et al., "From data to functa", ICML 2022. Own
code, licence of this project.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from training.models.enf import Enf, Geometry
from training.models.latent_cloud import LatentCloud, nearest_latents

GRADIENT_CLIP = 1.0
CHAOTIC_STD = 15.0
"""From these frequencies on, float32 fits with moving poses are chaotic: turned and unturned fits differ by units."""


class NonFiniteFit(RuntimeError):
    """A fit left the finite numbers; the decoder's weights are still those before.

    Attributes:
        step: steps done before the error was seen.
        images: which images of the batch.
    """

    def __init__(self, step: int, images: list[int]) -> None:
        super().__init__(
            f"the error of images {images} is not finite after step {step} of the fit; expected a finite number: "
            "lower the rate of the contexts, freeze the poses, or check the images"
        )
        self.step, self.images = step, images


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a cloud is fitted by gradient steps.

    Attributes:
        steps: T, gradient steps.
        lr_position: one number for both axes and all latents; 0 freezes positions.
        lr_orientation: of theta, which has another unit than a position; 0 freezes it.
        lr_context: of the contexts.
        lr_window: of the widths; 0 freezes them.
        order: "second" differentiates through the steps, "first" takes the fitted cloud as given.
    """

    steps: int = 3
    lr_position: float = 0.0
    lr_orientation: float = 0.0
    lr_context: float = 60.0
    lr_window: float = 0.0
    order: Literal["first", "second"] = "second"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps; a fit takes at least one")

    @property
    def moving_poses(self) -> bool:
        """Whether positions or orientations move."""
        return self.lr_position != 0.0 or self.lr_orientation != 0.0

    @property
    def moving(self) -> tuple[str, ...]:
        """Names of the tensors of a cloud that move."""
        rates = (("poses", self.moving_poses), ("contexts", self.lr_context != 0.0), ("window", self.lr_window != 0.0))
        return tuple(name for name, moves in rates if moves)


@dataclass(frozen=True)
class Fitted:
    """Clouds of a batch of images after the last step, and their mean squared errors [B]."""

    cloud: LatentCloud
    mse_B: Tensor


@dataclass(frozen=True)
class _Task:
    """Images to be reproduced by a decoder; ``frozen`` is the geometry where no pose moves."""

    enf: Enf
    images_BPO: Tensor
    pixels_P2: Tensor
    frozen: Geometry | None

    def errors(self, cloud: LatentCloud) -> Tensor:
        """Return the mean squared error of each image, [B]."""
        geometry = self.frozen or self.enf.geometry(self.pixels_P2, cloud.poses, cloud.window)
        return (self.enf.decode(geometry, cloud.contexts) - self.images_BPO).square().mean(dim=(1, 2))


def fit(  # noqa: PLR0913 - a decoder, its data, its start and its rule
    enf: Enf, images_BPO: Tensor, pixels_P2: Tensor, cloud: LatentCloud, config: FitConfig, *, create_graph: bool
) -> Fitted:
    """Take T gradient steps from the same cloud for every image.

    Args:
        enf: decoder; its weights do not change.
        images_BPO: values at the pixels, 0 to 1.
        pixels_P2: half fields of view; closed under quarter turns, or the fit is not equivariant.
        cloud: the start, without a batch axis, in the dtype of the decoder.
        config: steps and rates.
        create_graph: keep the graph through all steps, so that the result can be differentiated in the weights.

    Returns:
        Clouds with a batch axis and errors after step T, cut from the graph unless ``create_graph``.

    Raises:
        NonFiniteFit: when an error is NaN or infinite.
        ValueError: for a setting that cannot be equivariant, see ``require_exact``.
    """
    require_exact(enf, pixels_P2, cloud, moving_poses=config.moving_poses)
    with torch.set_grad_enabled(create_graph):
        still = config.moving == ("contexts",)
        task = _Task(enf, images_BPO, pixels_P2, enf.geometry(pixels_P2, cloud.poses, cloud.window) if still else None)
    fitted = cloud.batch(len(images_BPO))
    for step in range(config.steps):
        with torch.enable_grad():
            fitted = _step(task, fitted, config, step, create_graph=create_graph)
    with torch.set_grad_enabled(create_graph):
        return Fitted(fitted, require_finite(task.errors(fitted), config.steps))


def _step(task: _Task, cloud: LatentCloud, config: FitConfig, step: int, *, create_graph: bool) -> LatentCloud:
    """Return the clouds after one step; with ``create_graph`` as a function of those before."""
    moving = {name: _differentiable(getattr(cloud, name), keep=create_graph) for name in config.moving}
    cloud = replace(cloud, **moving)
    mse_B = require_finite(task.errors(cloud), step)
    gradients = torch.autograd.grad(mse_B.sum(), list(moving.values()), create_graph=create_graph)
    stepped = descend(cloud, dict(zip(moving, gradients, strict=True)), config)
    return stepped if create_graph else stepped.detach()


def _differentiable(tensor: Tensor, *, keep: bool) -> Tensor:
    return tensor if keep and tensor.requires_grad else tensor.detach().requires_grad_()


def descend(cloud: LatentCloud, gradients: dict[str, Tensor], config: FitConfig) -> LatentCloud:
    """Return the clouds a step down their gradients (by name of the tensor; a tensor without one stays)."""
    changed = {}
    if "poses" in gradients:
        position, orientation = config.lr_position, config.lr_orientation
        rate_3 = gradients["poses"].new_tensor([position, position, orientation])
        changed["poses"] = cloud.poses - rate_3[: cloud.poses.shape[-1]] * gradients["poses"]
    if "contexts" in gradients:
        changed["contexts"] = cloud.contexts - config.lr_context * gradients["contexts"]
    if "window" in gradients:
        changed["window"] = cloud.window - config.lr_window * gradients["window"]
    return replace(cloud, **changed)


def require_exact(enf: Enf, pixels_P2: Tensor, cloud: LatentCloud, *, moving_poses: bool) -> None:
    """Refuse what would make the fit of a turned image another than the turned fit.

    Raises:
        ValueError: when pixels have no unique nearest latents, or when poses move in float32 between frequencies so high
            that rounding decides where they go.
    """
    if enf.shape.neighbours is not None:
        nearest_latents(pixels_P2, cloud.poses, enf.shape.neighbours)
    std = max(enf.shape.std_query, enf.shape.std_value)
    if moving_poses and std >= CHAOTIC_STD and cloud.poses.dtype != torch.float64:
        raise ValueError(
            f"moving poses with frequencies of standard deviation {std:g} in {cloud.poses.dtype}: expected less than "
            f"{CHAOTIC_STD:g}; freeze the poses (lr_position = lr_orientation = 0) or fit in float64"
        )


def require_finite(mse_B: Tensor, step: int, images: list[int] | None = None) -> Tensor:
    """Return the errors unchanged; ``images`` are the numbers of the images where they are not 0 to B - 1.

    Raises:
        NonFiniteFit: when one is NaN or infinite.
    """
    finite = torch.isfinite(mse_B.detach())
    if not bool(finite.all()):
        numbers = images or range(len(mse_B))
        raise NonFiniteFit(step, [numbers[int(row)] for row in (~finite).nonzero()[:, 0]])
    return mse_B


def meta_loss(enf: Enf, images_BPO: Tensor, pixels_P2: Tensor, cloud: LatentCloud, config: FitConfig) -> Tensor:
    """Return the errors after step T, [B], to be differentiated in the weights of the decoder.

    Second order differentiates through the steps; first order holds the fitted clouds fixed.

    Raises:
        NonFiniteFit: when an error is NaN or infinite.
    """
    second = config.order == "second"
    fitted = fit(enf, images_BPO, pixels_P2, cloud, config, create_graph=second)
    if second:
        return fitted.mse_B
    return _Task(enf, images_BPO, pixels_P2, None).errors(fitted.cloud)


def meta_step(  # noqa: PLR0913 - a decoder, its data, its start, its rule and its optimiser
    enf: Enf,
    images_BPO: Tensor,
    pixels_P2: Tensor,
    cloud: LatentCloud,
    config: FitConfig,
    *,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """Change the decoder once, so that T steps fit these images better; return the errors before the change, [B].

    Raises:
        NonFiniteFit: before the weights change.
    """
    optimizer.zero_grad(set_to_none=True)
    mse_B = meta_loss(enf, images_BPO, pixels_P2, cloud, config)
    mse_B.sum().backward()
    clip_gradients(enf)
    optimizer.step()
    return mse_B.detach()


def clip_gradients(enf: Enf, max_norm: float = GRADIENT_CLIP) -> float:
    """Scale the gradient of the decoder down to ``max_norm`` where it is longer; return its length before.

    Raises:
        RuntimeError: when it is NaN or infinite; the weights are unchanged.
    """
    return float(nn.utils.clip_grad_norm_(enf.parameters(), max_norm, error_if_nonfinite=True))


def psnr_db(mse: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio, -10 log10(mse), for values in 0 to 1; infinite for no error."""
    return -10.0 * torch.log10(mse)


def require_psnr(psnr_db: Tensor, minimum_db: float) -> None:
    """Refuse images that the field does not reproduce: what is read from their latents would not be about them.

    Raises:
        ValueError: when an image lies below ``minimum_db`` or is NaN.
    """
    low = (~(psnr_db >= minimum_db)).flatten().nonzero()[:, 0]
    if len(low):
        worst = ", ".join(f"{int(image)}: {float(psnr_db.flatten()[image]):.1f} dB" for image in low[:5])
        raise ValueError(
            f"{len(low)} of {psnr_db.numel()} images are reproduced below {minimum_db:g} dB ({worst}); "
            "check crop and grey values, or fit more steps"
        )
