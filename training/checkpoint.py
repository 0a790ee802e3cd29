"""The state of a run on disk: tensors as safetensors, the rest as JSON; never pickle.

A checkpoint is written beside the old one and renamed over it, so that a kill leaves one or the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_NAME = "checkpoint.safetensors"
_META_NAME = "checkpoint.json"
BEST_NAME, RUN_NAME = "best.safetensors", "run.json"
_log = structlog.get_logger()

Optimizers: TypeAlias = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]
"""One optimiser, or several by name."""


class ForeignRunError(RuntimeError):
    """The folder holds a run with another config or other data."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: epochs done, and the digest of its config and data."""

    epochs_done: int
    run_sha256: str


def save_checkpoint(directory: Path, model: nn.Module, optimizer: Optimizers, progress: Progress) -> None:
    """Write model, optimiser (or several) and progress as one step."""
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for prefix, each in _prefixed(optimizer).items():
        tensors |= {f"{prefix}{name}": value for name, value in _optimizer_tensors(each).items()}
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"epochs_done": str(progress.epochs_done), "run_sha256": progress.run_sha256}
    partial = directory / f"{_NAME}.partial"
    save_file(tensors, partial, metadata=metadata)
    partial.replace(directory / _NAME)
    # For the reader; what is resumed from is the metadata inside the tensor file, which cannot disagree with it.
    (directory / _META_NAME).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(directory: Path, model: nn.Module, optimizer: Optimizers | None) -> Progress | None:
    """Restore model (and optimisers) in place; None when there is no checkpoint yet."""
    path = directory / _NAME
    if not path.exists():
        return None
    tensors = load_file(path)
    model.load_state_dict(_under(tensors, "model."))
    if optimizer is not None:
        for prefix, each in _prefixed(optimizer).items():
            _restore_optimizer(each, _under(tensors, prefix))
    return _progress(path)


def resumed_epochs(directory: Path, model: nn.Module, optimizer: Optimizers, run_sha256: str) -> int:
    """Restore a run where there is something of it, and return how many of its epochs are done.

    Raises:
        ForeignRunError: the checkpoint is of another run.
    """
    found = load_checkpoint(directory, model, optimizer)
    if found is None:
        return 0
    _require_own(directory, found.run_sha256, run_sha256)
    _log.info("run.resumed", folder=directory.name, epochs_done=found.epochs_done)
    return found.epochs_done


def keep_best(directory: Path, model: nn.Module) -> None:
    """Write the weights of the best epoch so far as one step."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{BEST_NAME}.partial"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)
    partial.replace(directory / BEST_NAME)


def claim_folder(directory: Path, about: Mapping[str, Any]) -> None:
    """Write what a run is to ``run.json``; where it is written already, it must be this one.

    Args:
        directory: of the run.
        about: plain JSON values; ``sha256`` tells it from other runs.

    Raises:
        ForeignRunError: it is another one.
    """
    file = directory / RUN_NAME
    if file.exists():
        _require_own(directory, json.loads(file.read_text(encoding="utf-8"))["sha256"], about["sha256"])
        return
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _require_own(directory: Path, found_sha256: str, run_sha256: str) -> None:
    if found_sha256 != run_sha256:
        raise ForeignRunError(
            f"{directory} holds a run with another config or other data; choose another folder or remove it"
        )


def _progress(path: Path) -> Progress:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    return Progress(epochs_done=int(metadata["epochs_done"]), run_sha256=metadata["run_sha256"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _prefixed(optimizer: Optimizers) -> dict[str, torch.optim.Optimizer]:
    """Return the optimisers by the beginning of their tensors' names."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return {"optimizer.": optimizer}
    return {f"optimizer.{name}.": each for name, each in optimizer.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
