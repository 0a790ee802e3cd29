"""ResNet50 on an end-diastolic and an end-systolic image: the baseline of the comparison.

Paper: K. He, X. Zhang, S. Ren, J. Sun, Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385.
Code: ``monai.networks.nets.resnet50`` of MONAI, Apache-2.0. Weights: none, trained from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from monai.networks.nets import resnet50
from torch import Tensor, nn


class PairResNet(nn.Module):
    """Image float32 [B, 2, S, S], 0 to 1, to a logit [B]; positive means a low ejection fraction.

    The two images are two channels. The stem is the published one: kernel 7, stride 2, then max pooling. A stem for small
    images (kernel 3, stride 1) costs 3.6 times as much at 64 pixels on one CPU core.

    Args:
        body: image [B, 2, S, S] to [B, 1].
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.to(memory_format=torch.channels_last)

    @classmethod
    def fifty(cls) -> Self:
        """Return the network with 50 layers, 23.5 million parameters."""
        return cls.of(resnet50)

    @classmethod
    def of(cls, build: Callable[..., nn.Module], **more: Any) -> Self:
        """Return a network of another depth or width.

        Args:
            build: one of MONAI's ``resnet*``.
            more: further arguments of it.
        """
        return cls(
            build(
                pretrained=False,
                spatial_dims=2,
                n_input_channels=2,
                num_classes=1,
                conv1_t_size=7,
                conv1_t_stride=2,
                bias_downsample=False,
                **more,
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits, [B]."""
        x = (2.0 * image - 1.0).contiguous(memory_format=torch.channels_last)  # [B, 2, S, S]
        return self.body(x)[:, 0]  # [B]
