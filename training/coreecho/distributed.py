"""Several processes that train one network: each sees a share of a batch, the contrast sees all of it.

Started by ``torchrun``; alone, every function is the identity. Rank-N-Contrast compares every clip with every other, so
the embeddings of all processes are gathered before it, and gradients flow back through the gathering.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which process this is, and of how many."""

    rank: int
    count: int

    @property
    def first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0


def processes() -> Processes:
    """Return this process among those that train together."""
    if dist.is_available() and dist.is_initialized():
        return Processes(rank=dist.get_rank(), count=dist.get_world_size())
    return Processes(rank=0, count=1)


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the processes that ``torchrun`` started, if it did, and yield the device of this one."""
    if not (dist.is_available() and dist.is_torchelastic_launched()) or dist.is_initialized():
        yield device
        return
    on_gpu = device.startswith("cuda")
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        own = f"cuda:{dist.get_node_local_rank()}" if on_gpu else device
        if on_gpu:
            torch.cuda.set_device(own)
        yield own
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All rows of all processes; backward sums the gradients that all of them have for the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Return [processes x n, ...], process by process."""
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the own rows."""
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes, [processes x n, ...], with gradient; all must bring equally many.

    Each process computes the same loss of all rows, so the summed gradient of a row is that of the loss times the number of
    processes; the mean over processes that ``DistributedDataParallel`` takes undoes it exactly.
    """
    if processes().count == 1:
        return rows
    found: Tensor = _Gather.apply(rows)
    return found


def summed(values: Tensor) -> Tensor:
    """Return the sum over processes, without gradient."""
    if processes().count == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def wait() -> None:
    """Wait until every process is here."""
    if processes().count > 1:
        dist.barrier()


def parallel(network: nn.Module) -> nn.Module:
    """Return the network whose gradients are averaged over processes; itself where there is one, or nothing to train.

    On a GPU batch statistics are those of all processes too. On a CPU torch has no such layer: each process normalises by
    its own share, as the published code does with each of its GPUs.
    """
    if processes().count == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    from torch.nn.parallel import DistributedDataParallel

    device = next(network.parameters()).device
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def synchronised(network: nn.Module) -> nn.Module:
    """Return the network with batch statistics over all processes where torch has them: on GPUs."""
    on_gpu = next(network.parameters()).device.type == "cuda"
    if processes().count == 1 or not on_gpu:
        return network
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


def own_share(rows: Any) -> Any:
    """Return every n-th of the rows, from this process's place on; n is the number of processes."""
    here = processes()
    return rows[here.rank :: here.count]
