"""Stacks painted by tissue, and the network that reads the paint: a segmentation without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.records import CineStack
from tests.doubles.hearts import small_mr_scan
from training.data.sources.paired_subjects import draw_patient, targets_of
from training.models.short_axis_unet import Tissue
from training.phantoms.cmr import rendered_with_labels

GREYS = {Tissue.RIGHT_CAVITY: 0, Tissue.BACKGROUND: 60, Tissue.MYOCARDIUM: 120, Tissue.LEFT_CAVITY: 200}
"""Neighbouring tissues have neighbouring greys, so that a blurred border is one of the two."""


class ReadsPaint(nn.Module):
    """Names each pixel by the nearest grey of ``GREYS``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("greys", torch.tensor([float(GREYS[tissue]) for tissue in Tissue]))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 4, S, S]."""
        return -((image - self.greys.view(1, -1, 1, 1)) ** 2)


def painted(stack: CineStack, labels_SPHW: NDArray[np.uint8]) -> CineStack:
    """The stack with its tissues in flat greys."""
    greys = np.array([GREYS[tissue] for tissue in Tissue], np.uint16)
    return replace(stack, images_SPHW=greys[labels_SPHW])


@dataclass(frozen=True, kw_only=True)
class PaintedStacks:
    """Small painted hearts as the source of the study.

    Args:
        stacks: how many.
        blank: number of one that holds nothing.
    """

    stacks: int
    blank: int | None = None

    @property
    def name(self) -> str:
        return "painted"

    @property
    def keys(self) -> Sequence[str]:
        return [f"participant-{number}" for number in range(self.stacks)]

    def stated(self, number: int) -> Mapping[str, float]:
        return targets_of(draw_patient(3, number, "standard"))

    def read(self, number: int) -> tuple[CineStack, NDArray[np.uint8] | None]:
        scan = small_mr_scan(number, spacing_mm=2.0, size_px=132, slice_distance_mm=6.0)
        heart = draw_patient(3, number, "standard").heart
        stack, labels = rendered_with_labels(heart, scan, np.random.default_rng(number))
        if number == self.blank:
            labels = np.zeros_like(labels)
        return painted(stack, labels), labels
