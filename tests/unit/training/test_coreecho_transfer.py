"""Transfer by cross-validation: who trains, who is held out, what is kept, and the numbers made of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.doubles.echo_runs import TinyEncoder, discs, tiny_run
from training.coreecho import transfer
from training.coreecho.networks import EndToEndNet
from training.coreecho.transfer import TransferConfig, cross_validated, ef_result, infarction_result, rows_of
from training.data.folds import sorted_folds

VIDEOS = discs(12, seed=11)
FOLDS = rows_of(sorted_folds(VIDEOS.keys, 3), VIDEOS.keys)


def _config(mode: str, task: str = "ef") -> TransferConfig:
    return TransferConfig(mode=mode, task=task, epochs=2, batch_videos=4, learning_rate=1e-2, weight_decay=0.0, seed=5)


def _network() -> nn.Module:
    torch.manual_seed(2)
    torch.set_num_threads(1)
    return EndToEndNet(TinyEncoder())


@pytest.mark.parametrize("mode", ["probe", "finetune"])
def test_the_truth_of_a_held_out_video_has_no_part_in_its_answer(mode: str, tmp_path: Path) -> None:
    """Another truth for the held-out videos of a fold leaves their answers as they are, and changes the others'."""
    given = cross_validated(_network(), tiny_run(), VIDEOS, VIDEOS.ef_percent, FOLDS, _config(mode), tmp_path / "a")
    changed = VIDEOS.ef_percent.copy()
    changed[FOLDS[0][1]] += 20.0
    other = cross_validated(_network(), tiny_run(), VIDEOS, changed, FOLDS, _config(mode), tmp_path / "b")
    assert np.array_equal(given[FOLDS[0][1]], other[FOLDS[0][1]])
    assert not np.any(given[FOLDS[1][1]] == other[FOLDS[1][1]])


def test_every_video_is_answered_and_the_network_is_left_alone(tmp_path: Path) -> None:
    """Fine-tuning works on copies: weights and statistics of the given network stay."""
    network = _network()
    before = copy.deepcopy(network.state_dict())
    given = cross_validated(network, tiny_run(), VIDEOS, VIDEOS.ef_percent, FOLDS, _config("finetune"), tmp_path)
    assert np.isfinite(given).all()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_finished_fold_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after its first fold, a transfer goes on with the second; other settings begin anew."""
    trained = []
    genuine = transfer._of_fold

    def of_fold(fold: object, truth: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        if len(trained) == 1:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(held_out.tolist())
        return genuine(fold, truth, train, held_out)

    monkeypatch.setattr(transfer, "_of_fold", of_fold)
    given = (tiny_run(), VIDEOS, VIDEOS.ef_percent, FOLDS, _config("probe"), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cross_validated(_network(), *given)
    resumed = cross_validated(_network(), *given)
    assert [fold for fold in trained if fold != "killed"] == [fold[1].tolist() for fold in FOLDS]
    assert np.array_equal(resumed, cross_validated(_network(), *given))
    cross_validated(_network(), *given[:4], replace(_config("probe"), epochs=1), tmp_path)
    assert len(trained) == 7


def test_folds_that_miss_a_video_or_train_on_it_are_refused(tmp_path: Path) -> None:
    """Each video is held out once and trains no fold that holds it out."""
    given = (_network(), tiny_run(), VIDEOS, VIDEOS.ef_percent)
    with pytest.raises(ValueError, match="each of them once"):
        cross_validated(*given, FOLDS[1:], _config("probe"), tmp_path)
    leaking = [(np.arange(12), FOLDS[0][1]), *FOLDS[1:]]
    with pytest.raises(ValueError, match="trains the fold"):
        cross_validated(*given, leaking, _config("probe"), tmp_path)


def _state(encoder: nn.Module) -> torch.Tensor:
    """Weights of the last layer and running means of the first, in one vector."""
    return torch.cat([encoder.widen.weight.detach().flatten(), encoder.blocks3[1].running_mean]).clone()


def test_probing_leaves_the_encoder_and_fine_tuning_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What answers after probing has the pre-trained weights and batch statistics; after fine-tuning it has others."""
    seen: list[torch.Tensor] = []
    genuine = transfer._embedded

    def embedded(encoder: nn.Module, clips: np.ndarray, device: str) -> torch.Tensor:
        seen.append(_state(encoder))
        return genuine(encoder, clips, device)

    monkeypatch.setattr(transfer, "_embedded", embedded)
    start = _state(_network().encoder)
    for mode, moved in (("probe", False), ("finetune", True)):
        seen.clear()
        cross_validated(_network(), tiny_run(), VIDEOS, VIDEOS.ef_percent, FOLDS, _config(mode), tmp_path)
        assert torch.equal(seen[-1], start) is not moved


def test_the_numbers_of_camus_are_by_quality() -> None:
    """Correlation and error of good and medium images, and of poor ones, each of its own videos."""
    rng = np.random.default_rng(0)
    given = VIDEOS.ef_percent + rng.normal(0, 3, 12)
    given[np.array(VIDEOS.qualities) == "Poor"] += 10
    found = ef_result(VIDEOS, VIDEOS.ef_percent, given)
    assert found["good_and_medium"]["videos"] == 9
    assert found["poor"]["videos"] == 3
    good = np.array(VIDEOS.qualities) == "Good"
    assert found["good_and_medium"]["mae"]["value"] == pytest.approx(
        np.abs(given - VIDEOS.ef_percent)[good].mean(), abs=1e-4
    )
    assert found["good_and_medium"]["correlation"]["value"] == pytest.approx(
        np.corrcoef(given[good], VIDEOS.ef_percent[good])[0, 1], abs=1e-4
    )
    assert found["poor"]["mae"]["value"] > found["good_and_medium"]["mae"]["value"]


def test_the_numbers_of_an_infarction_are_those_of_its_table() -> None:
    """Three of four infarctions found, one of two others cleared."""
    labels = np.array([True, True, True, True, False, False])
    found = infarction_result(labels, np.array([1.0, 1.0, 1.0, -1.0, 1.0, -1.0]))
    assert found["sensitivity"]["value"] == pytest.approx(3 / 4)
    assert found["specificity"]["value"] == pytest.approx(1 / 2)
    assert found["precision"]["value"] == pytest.approx(3 / 4)
    assert found["accuracy"]["value"] == pytest.approx(4 / 6, abs=1e-4)
    assert found["f1"] == pytest.approx(3 / 4)
    assert infarction_result(labels, -np.ones(6))["precision"] is None


def test_an_infarction_is_trained_as_a_logit(tmp_path: Path) -> None:
    """The answers are logits around zero, not percent."""
    truth = (VIDEOS.ef_percent < np.median(VIDEOS.ef_percent)).astype(np.float64)
    given = cross_validated(_network(), tiny_run(), VIDEOS, truth, FOLDS, _config("probe", "infarction"), tmp_path)
    assert np.abs(given).max() < 10
