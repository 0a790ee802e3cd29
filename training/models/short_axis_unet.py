"""A small U-Net that names the tissue of every pixel of a short-axis image.

Papers: O. Ronneberger, P. Fischer, T. Brox, U-Net, MICCAI 2015, arXiv 1505.04597; with the residual units of
E. Kerfoot et al., Left-Ventricle Quantification Using Residual U-Net, STACOM 2018.
Code: ``monai.networks.nets.UNet`` of MONAI, Apache-2.0. Weights: none, trained from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Self

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn


class Tissue(IntEnum):
    """Classes of the segmentation, in the order of the network's channels."""

    BACKGROUND = 0
    LEFT_CAVITY = 1
    MYOCARDIUM = 2
    RIGHT_CAVITY = 3


class ShortAxisUnet(nn.Module):
    """Image float32 [B, 1, S, S], any grey scale, to logits [B, 4, S, S]; S a multiple of 2 ** (levels - 1).

    Each image is scaled to mean 0 and standard deviation 1 first, here and nowhere else, so that training and use agree.

    Args:
        widths: channels of each level, the finest first.
        residual_units: convolutions of each level.
    """

    def __init__(self, *, widths: Sequence[int], residual_units: int) -> None:
        super().__init__()
        self.body = UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=len(Tissue),
            channels=tuple(widths),
            strides=(2,) * (len(widths) - 1),
            num_res_units=residual_units,
        )

    @classmethod
    def small(cls) -> Self:
        """Return the network of the comparison: five levels, for 96 pixel images."""
        return cls(widths=(24, 48, 96, 128, 128), residual_units=2)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of the four tissues, [B, 4, S, S]."""
        spread = image.std(dim=(2, 3), keepdim=True, correction=0)  # [B, 1, 1, 1]
        x = (image - image.mean(dim=(2, 3), keepdim=True)) / (spread + torch.finfo(image.dtype).tiny)
        logits: Tensor = self.body(x)  # [B, 4, S, S]
        return logits
