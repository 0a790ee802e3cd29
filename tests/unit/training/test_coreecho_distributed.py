"""Two processes train as one on the doubled batch: the same loss, the same gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from training.coreecho.distributed import Processes, gathered, own_share, parallel, processes, summed

_WIDTH = 5


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of six videos, view 1 before view 2, and their labels."""
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(12, 7, generator=generator)
    return views, torch.linspace(20, 70, 6).repeat(2)


def _encoder() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(7, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, _WIDTH))


def _gradients(encoder: nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): value.grad for name, value in encoder.named_parameters()}


def _one_of_two(rank: int, rendezvous: str, out: str) -> None:
    """Contrast over the clips of both processes, each with three of the six videos."""
    from training.coreecho.steps import contrast_loss

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    views, labels = _inputs()
    rows = own_share(np.arange(6))
    mine = np.concatenate([rows, rows + 6])
    encoder = parallel(_encoder())
    loss = contrast_loss(encoder(views[mine]), labels[mine], 1.0)
    loss.backward()
    total = summed(torch.tensor([float(rank + 1)]))
    torch.save(
        {"loss": loss.detach(), "gradients": _gradients(encoder), "rows": rows, "sum": total}, f"{out}/{rank}.pt"
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_on_the_doubled_batch(tmp_path: Path) -> None:
    """Loss and every gradient of the encoder are those of one process with all clips."""
    from training.coreecho.steps import contrast_loss

    views, labels = _inputs()
    encoder = _encoder()
    loss = contrast_loss(encoder(views), labels, 1.0)
    loss.backward()
    multiprocessing.start_processes(
        _one_of_two, args=(str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2, start_method="spawn"
    )
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert sorted(np.concatenate([each["rows"] for each in found]).tolist()) == list(range(6))
    for each in found:
        assert float(each["loss"]) == pytest.approx(float(loss.detach()), abs=1e-5)
        assert float(each["sum"]) == 3.0
        for name, expected in _gradients(encoder).items():
            assert torch.allclose(each["gradients"][name], expected, atol=1e-6), name
    assert any(float(value.abs().max()) > 1e-3 for value in _gradients(encoder).values())


def test_alone_every_function_is_the_identity() -> None:
    """One process gathers, sums and shares with itself, and wraps nothing."""
    assert processes() == Processes(rank=0, count=1)
    rows = torch.ones(3, 2, requires_grad=True)
    assert gathered(rows) is rows
    assert summed(rows) is rows
    assert own_share([1, 2, 3]) == [1, 2, 3]
    encoder = _encoder()
    assert parallel(encoder) is encoder
    assert not dist.is_initialized()
