"""One step of an optimiser, as the baselines take it. Called by ``baselines`` and ``segmentation``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.loop import NonFiniteLossError


def descend(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip: float) -> float:
    """Take one step against the gradient and return the loss.

    Args:
        network: whose parameters ``optimizer`` holds.
        optimizer: its rate is set to ``rate``.
        loss: of this batch.
        rate: learning rate.
        clip: largest norm of the gradient.

    Raises:
        NonFiniteLossError: before the step; the weights are still those of the step before.
    """
    value = float(loss.item())
    if not math.isfinite(value):
        raise NonFiniteLossError(f"the loss is {value}; expected a finite number: lower the rate or check the data")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip, error_if_nonfinite=True)
    optimizer.step()
    return value
