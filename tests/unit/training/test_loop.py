"""The training loop: exact resume, fatal non-finite losses, no mixing of runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from training import checkpoint, loop
from training.checkpoint import load_checkpoint
from training.config import RunConfig
from training.data.heart_arrays import HeartArrays
from training.data.splits import Split, split_hearts
from training.optim import learning_rate_at, make_optimizer
from training.telemetry import EpochRecord, read_curves


def _split(config: RunConfig) -> Split:
    return split_hearts(config.data.hearts, config.data.split, config.data.seed)


class _Killed(Exception):
    """Stands for a kill."""


def test_a_resumed_run_repeats_the_uninterrupted_one_exactly(
    tiny_config: RunConfig, tiny_arrays: HeartArrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside the third epoch and started again, losses and weights are bit for bit the same."""
    straight = loop.train(tiny_config, tiny_arrays, _split(tiny_config), tmp_path / "straight")

    run_epoch = loop.run_epoch

    def killed_in_third(run: loop.Run, epoch: int) -> EpochRecord:
        record = run_epoch(run, epoch)
        if epoch == 2:
            raise _Killed
        return record

    monkeypatch.setattr(loop, "run_epoch", killed_in_third)
    with pytest.raises(_Killed):
        loop.train(tiny_config, tiny_arrays, _split(tiny_config), tmp_path / "resumed")
    monkeypatch.setattr(loop, "run_epoch", run_epoch)
    resumed = loop.train(tiny_config, tiny_arrays, _split(tiny_config), tmp_path / "resumed")

    curves = [read_curves(tmp_path / name) for name in ("straight", "resumed")]
    assert len(curves[0]) == 4
    assert curves[0] == curves[1]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_training_lowers_the_loss(tiny_config: RunConfig, tiny_arrays: HeartArrays, tmp_path: Path) -> None:
    """Forty epochs on a mean that is the truth end well below where they began."""
    config = dataclasses.replace(
        tiny_config, optim=dataclasses.replace(tiny_config.optim, epochs=40, learning_rate=0.1)
    )
    loop.train(config, tiny_arrays, _split(config), tmp_path)
    curves = read_curves(tmp_path)
    assert curves[-1].train_loss < 0.6 * curves[0].train_loss
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_non_finite_loss_is_fatal_before_the_step(
    tiny_config: RunConfig, tiny_arrays: HeartArrays, poison: float
) -> None:
    """A NaN in one record stops the run, and the weights are those before the step."""
    torch.manual_seed(0)
    model = tiny_config.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = np.array(tiny_arrays.inputs)
    inputs[:, 0, 0, 0] = poison
    poisoned = dataclasses.replace(tiny_arrays, inputs=inputs)
    optimizer = make_optimizer(model, tiny_config.optim)
    run = loop.Run(config=tiny_config, model=model, optimizer=optimizer, arrays=poisoned, split=_split(tiny_config))
    with pytest.raises(loop.NonFiniteLossError, match="finite"):
        loop.run_epoch(run, 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_folder_with_another_run_is_refused(tiny_config: RunConfig, tiny_arrays: HeartArrays, tmp_path: Path) -> None:
    """A checkpoint made with another seed, or on other data, is not continued."""
    loop.train(tiny_config, tiny_arrays, _split(tiny_config), tmp_path)
    other = dataclasses.replace(tiny_config, seed=99)
    with pytest.raises(checkpoint.ForeignRunError, match="another config or other data"):
        loop.train(other, tiny_arrays, _split(other), tmp_path)
    other_data = dataclasses.replace(tiny_arrays, sha256="1" * 64)
    with pytest.raises(checkpoint.ForeignRunError, match="another config or other data"):
        loop.train(tiny_config, other_data, _split(tiny_config), tmp_path)


def test_a_refused_heart_is_never_seen(tiny_config: RunConfig, tiny_arrays: HeartArrays, tmp_path: Path) -> None:
    """Rows that the preprocessing refused may hold anything, even NaN."""
    inputs = np.array(tiny_arrays.inputs)
    inputs[-1] = np.nan
    loop.train(tiny_config, dataclasses.replace(tiny_arrays, inputs=inputs), _split(tiny_config), tmp_path)
    assert all(np.isfinite(record.validation_loss) for record in read_curves(tmp_path))


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, tiny_config: RunConfig) -> None:
    """A folder with only a partial file counts as not begun."""
    (tmp_path / "checkpoint.safetensors.partial").write_bytes(b"half")
    assert load_checkpoint(tmp_path, tiny_config.model(), None) is None


def test_the_learning_rate_rises_then_falls_to_nearly_zero(tiny_config: RunConfig) -> None:
    """Warm-up is linear, the cosine ends near zero, steps outside are refused."""
    rates = [learning_rate_at(step, 100, tiny_config.optim) for step in range(100)]
    peak = int(np.argmax(rates))
    assert rates[peak] == tiny_config.optim.learning_rate
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert np.all(np.diff(rates[peak + 1 :]) < 0)
    assert rates[-1] < 1e-3 * rates[peak] + 1e-5
    with pytest.raises(ValueError, match="outside"):
        learning_rate_at(100, 100, tiny_config.optim)
