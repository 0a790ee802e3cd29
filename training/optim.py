"""The optimiser and its schedule: AdamW, linear warm-up, cosine to zero."""

from __future__ import annotations

import math

import torch
from torch import nn

from training.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over all parameters; vectors (biases, norms) are not decayed."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


def learning_rate_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """Return the learning rate of a step, 0-based: it rises linearly, then falls along a cosine.

    Raises:
        ValueError: when ``step`` lies outside 0 to ``total_steps`` - 1.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} lies outside the run of {total_steps} steps")
    warm_up = max(1, round(config.warmup_fraction * total_steps))
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    done = (step - warm_up) / max(1, total_steps - warm_up)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
