"""A run small enough for a unit test: twelve-lead records of noise whose mean is the truth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.config import OptimConfig, RunConfig, load_run
from training.data.heart_arrays import HeartArrays
from training.data.targets import COLUMNS

HEARTS = 40


class TinyNet(nn.Module):
    """The mean of every lead, dropped out, to the outputs of an ECG network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.2))
        self.estimates = nn.Linear(8, 3)
        self.diseases = nn.Linear(8, 6)

    def forward(self, ecg: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        x = self.body(ecg.mean(dim=2))
        return {"estimates": self.estimates(x), "disease_logits": self.diseases(x), "embedding": x}


def add_noise(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Augment with noise from the generator."""
    return batch + 0.01 * torch.randn(batch.shape, generator=generator)


@pytest.fixture
def tiny_arrays() -> HeartArrays:
    """Records of 50 samples; the last heart was refused."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(HEARTS, 1, 12, 50)).astype(np.float32)
    targets = rng.random((HEARTS, len(COLUMNS))).round().astype(np.float32)
    targets[:, 0] = 50 + 10 * inputs.mean(axis=(1, 3))[:, 0]
    clips = np.ones(HEARTS, dtype=np.uint8)
    clips[-1] = 255
    return HeartArrays(inputs=inputs, targets=targets, clips=clips, sha256="0" * 64)


@pytest.fixture
def tiny_config() -> RunConfig:
    """Four epochs over the tiny records."""
    base = load_run("ecg_cmr_small")
    optim = OptimConfig(
        epochs=4,
        batch_size=8,
        learning_rate=1e-2,
        weight_decay=0.01,
        warmup_fraction=0.1,
        gradient_clip=1.0,
        autocast_bfloat16=False,
    )
    changes: dict[str, Any] = {"model": TinyNet, "augment": add_noise, "optim": optim, "recipe": "tiny"}
    return dataclasses.replace(base, data=dataclasses.replace(base.data, hearts=HEARTS), **changes)
