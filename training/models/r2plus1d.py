"""R(2+1)D with 18 layers on a clip: the network of EchoNet-Dynamic, a baseline of the comparison.

Papers: D. Tran et al., A Closer Look at Spatiotemporal Convolutions for Action Recognition, CVPR 2018, arXiv 1711.11248;
D. Ouyang et al., Video-based AI for beat-to-beat assessment of cardiac function, Nature 580, 2020.
Code: ``torchvision.models.video`` of torchvision, BSD-3-Clause. Weights: none here; those of Kinetics-400 load from a file
(``training.coreecho.pretrained``).
"""

from __future__ import annotations

from typing import ClassVar, Self

from torch import Tensor, nn
from torchvision.models.video import r2plus1d_18
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D

from training.models.encoded import MEAN_EF_PERCENT, Encoded, PublishedNames, percent_head, pooled


class R2Plus1d(nn.Module):
    """Clip float32 [B, 3, T, S, S], normalised, to ``Encoded``; any T and S.

    Legend: B clips, T frames, S pixels, D width of the embedding.

    Args:
        body: with the children ``stem`` and ``layer1`` to ``layer4``, clip to maps [B, D, T / 8, S / 16, S / 16].
        width: D.
        start_percent: where the head starts.
    """

    published_names: ClassVar[PublishedNames] = PublishedNames(body="body.", file_head="fc")

    def __init__(self, body: nn.Module, width: int, *, start_percent: float = MEAN_EF_PERCENT) -> None:
        super().__init__()
        self.body = body
        self.head = percent_head(width, start_percent)

    @classmethod
    def published(cls) -> Self:
        """Return the published widths: 31,300,638 parameters, 512 of them and a bias in the head."""
        body = r2plus1d_18(weights=None)
        body.fc = nn.Identity()
        return cls(body, 512)

    @classmethod
    def small(cls) -> Self:
        """Return a network of ten layers with an eighth of the published widths."""
        return cls(_body((8, 16, 32, 64)), 64)

    def features(self, clip_BCTHW: Tensor) -> dict[str, Tensor]:
        """Return the output of the third stage, ``layer3``, and of the last, ``layer4``, each [B, ., T', H', W']."""
        body = self.body
        x = body.layer2(body.layer1(body.stem(clip_BCTHW)))  # [B, ., T/2, S/4, S/4]
        third = body.layer3(x)  # [B, ., T/4, S/8, S/8]
        return {"layer3": third, "layer4": body.layer4(third)}

    def forward(self, clip_BCTHW: Tensor) -> Encoded:
        """Return head [B, 1] and embedding [B, D]."""
        embedding = pooled(self.features(clip_BCTHW)["layer4"])
        return Encoded(head=self.head(embedding), embedding=embedding)


def _body(widths: tuple[int, int, int, int]) -> nn.Module:
    """One block per stage, each made of torchvision's blocks; its own builder has the published widths only."""
    body = nn.Module()
    body.stem = nn.Sequential(
        *_split_convolution(3, widths[0] // 2, (1, 7, 7), (1, 2, 2)),
        *_split_convolution(widths[0] // 2, widths[0], (3, 1, 1), (1, 1, 1)),
    )
    body.layer1 = _stage(widths[0], widths[0], 1)
    body.layer2 = _stage(widths[0], widths[1], 2)
    body.layer3 = _stage(widths[1], widths[2], 2)
    body.layer4 = _stage(widths[2], widths[3], 2)
    return body


def _split_convolution(inputs: int, outputs: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[nn.Module]:
    padding = tuple(size // 2 for size in kernel)
    convolution = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    return [convolution, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)]


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1:
        shortcut = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm3d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, Conv2Plus1D, stride, shortcut))
