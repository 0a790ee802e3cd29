"""Two stages on clips, and the baseline: exact resume, what each step trains, fatal losses, choice by validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.doubles.echo_runs import FRAMES, SIDE, Discs, discs, tiny_baseline, tiny_run, use_tiny_encoder
from training.checkpoint import ForeignRunError
from training.coreecho import stages, steps
from training.coreecho.config import AnyEchoRun
from training.coreecho.curves import Point, read_points
from training.coreecho.networks import build_network
from training.loop import NonFiniteLossError

TRAIN, VALIDATION = discs(10, seed=1), discs(5, seed=2)
RUNS = {"two stages": tiny_run, "end to end": tiny_baseline}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_encoder(monkeypatch)


class _Killed(Exception):
    """Stands for a kill."""


def _killed_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Kill the run when it begins its next epoch after so many; returns what lifts the curse."""
    genuine, done = stages.run_epoch, [0]

    def run_epoch(job: stages._Job, epoch: int) -> Point:
        if done[0] == epochs:
            raise _Killed
        done[0] += 1
        return genuine(job, epoch)

    monkeypatch.setattr(stages, "run_epoch", run_epoch)
    return lambda: monkeypatch.setattr(stages, "run_epoch", genuine)


def _points(folder: Path, names: tuple[str, ...]) -> list[dict[str, float]]:
    """Every recorded epoch but its seconds."""
    return [
        {key: repr(value) for key, value in vars(point).items() if key != "seconds"}
        for name in names
        for point in read_points(folder / name)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_a_run_of_two_stages_ends_the_same_wherever_it_was_interrupted(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any epoch of either stage and started again, weights and curves are bit for bit the same."""
    straight = stages.train_echo(tiny_run(), TRAIN, VALIDATION, tmp_path / "straight").network
    lift = _killed_after(epochs, monkeypatch)
    with pytest.raises(_Killed):
        stages.train_echo(tiny_run(), TRAIN, VALIDATION, tmp_path / "resumed")
    lift()
    resumed = stages.train_echo(tiny_run(), TRAIN, VALIDATION, tmp_path / "resumed").network
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    names = ("stage1", "stage2")
    points = _points(tmp_path / "straight", names)
    assert len(points) == 5
    assert points == _points(tmp_path / "resumed", names)


def test_a_baseline_ends_the_same_when_it_was_killed_between_curve_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curve and best weights of an epoch are there, its checkpoint is not: the epoch is run again, to the same end."""
    straight = stages.train_echo(tiny_baseline(), TRAIN, VALIDATION, tmp_path / "straight").network
    genuine = stages.save_checkpoint

    def save_checkpoint(directory: Path, *given: object) -> None:
        if len(read_points(directory)) == 2:
            raise _Killed
        genuine(directory, *given)

    monkeypatch.setattr(stages, "save_checkpoint", save_checkpoint)
    with pytest.raises(_Killed):
        stages.train_echo(tiny_baseline(), TRAIN, VALIDATION, tmp_path / "resumed")
    monkeypatch.setattr(stages, "save_checkpoint", genuine)
    resumed = stages.train_echo(tiny_baseline(), TRAIN, VALIDATION, tmp_path / "resumed").network
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert _points(tmp_path / "straight", ("fit",)) == _points(tmp_path / "resumed", ("fit",))


def test_no_gradient_of_the_regression_reaches_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a contrast that is constant, a step of stage 1 moves the regressor and leaves the encoder's weights."""
    run, before, after = _one_step(monkeypatch, contrast=lambda rows, _labels, **_given: 0.0 * rows.sum())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("regressor.") for name in moved)
    # Weight decay alone moves weights by rate x decay; any gradient moves them by the rate.
    kept = 1 - run.stage1.schedule.learning_rate * run.stage1.weight_decay
    weights = [name for name in before if name.startswith("encoder.") and name.endswith(("weight", "bias"))]
    assert len(weights) == 8
    for name in weights:
        decayed = before[name] if "head" in name else kept * before[name]
        assert torch.allclose(after[name], decayed, atol=1e-8, rtol=0), name


def test_the_contrast_moves_the_encoder_and_not_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder's convolutions follow the contrast; its unused head keeps its weights."""
    _, before, after = _one_step(monkeypatch)
    assert not torch.equal(before["encoder.widen.weight"], after["encoder.widen.weight"])
    assert torch.equal(before["encoder.head.weight"], after["encoder.head.weight"])


def _one_step(monkeypatch: pytest.MonkeyPatch, contrast: Callable | None = None) -> tuple:
    if contrast is not None:
        monkeypatch.setattr(steps, "rank_n_contrast_loss", contrast)
    run = tiny_run()
    network = build_network(run)
    stage = steps.ContrastStep(run, network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stage.begin_epoch()
    stage.step(*_batch(TRAIN, 4, views=2))
    return run, before, network.state_dict()


def _batch(videos: Discs, count: int, *, views: int) -> tuple[torch.Tensor, torch.Tensor]:
    clips = np.stack([videos.video(row).frames_FSS[:FRAMES] for row in range(count)])[:, None]
    ef = torch.from_numpy(videos.ef_percent[:count]).float()
    return torch.from_numpy(np.tile(clips, (views, 1, 1, 1, 1))), ef.repeat(views)


def test_the_regressor_sees_the_embeddings_from_before_the_encoder_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step equals one on embeddings that were computed first, whatever the encoder did meanwhile."""
    run = tiny_run()
    still, moving = build_network(run), build_network(run)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda _self, given: given)
    batch = _batch(TRAIN, 4, views=2)
    stage = steps.ContrastStep(run, moving)
    stage.begin_epoch()
    stage.step(*batch)
    expected = steps.ContrastStep(run, still)
    expected.begin_epoch()
    embeddings = steps._embeddings(still.encoder, batch[0], run).detach()
    loss = torch.nn.functional.l1_loss(still.regressor(embeddings)[:, 0], batch[1])
    steps._descend(expected.optimizers["regressor"], loss)
    for name, value in still.regressor.state_dict().items():
        assert torch.equal(value, moving.regressor.state_dict()[name]), name


def test_stage_two_leaves_the_encoder_bit_for_bit(tmp_path: Path) -> None:
    """Weights and batch statistics of the encoder are those chosen in stage 1; the regressor has gone on."""
    network = stages.train_echo(tiny_run(), TRAIN, VALIDATION, tmp_path).network
    first = load_file(tmp_path / "stage1" / stages.BEST_NAME)
    last = load_file(tmp_path / "stage2" / "checkpoint.safetensors")
    for name, value in first.items():
        if name.startswith("encoder."):
            assert torch.equal(value, last[f"model.{name}"]), name
            assert torch.equal(value, network.state_dict()[name]), name
    assert any(not torch.equal(value, last[f"model.{name}"]) for name, value in first.items())


def test_stage_two_goes_on_from_the_regressor_of_stage_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stage 2 starts with is the chosen regressor of stage 1, not a new one."""
    seen = {}
    genuine = steps.ProbeStep.__init__

    def init(self: steps.ProbeStep, run: AnyEchoRun, network: torch.nn.Module) -> None:
        seen.update({name: value.clone() for name, value in network.state_dict().items()})
        genuine(self, run, network)

    monkeypatch.setattr(steps.ProbeStep, "__init__", init)
    stages.train_echo(tiny_run(), TRAIN, VALIDATION, tmp_path)
    first = load_file(tmp_path / "stage1" / stages.BEST_NAME)
    assert seen.keys() == first.keys()
    for name, value in first.items():
        assert torch.equal(value, seen[name]), name


def test_the_network_is_that_of_the_smallest_validation_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three epochs whose second is best, the weights of the second are returned."""
    errors = iter([9.0, 5.0, 7.0])
    monkeypatch.setattr(stages, "_validation_mae", lambda _job, _device: next(errors))
    kept = []
    genuine = stages.save_checkpoint

    def save_checkpoint(directory: Path, network: torch.nn.Module, *given: object) -> None:
        kept.append({name: value.clone() for name, value in network.state_dict().items()})
        genuine(directory, network, *given)

    monkeypatch.setattr(stages, "save_checkpoint", save_checkpoint)
    network = stages.train_echo(tiny_baseline(), TRAIN, VALIDATION, tmp_path).network
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[1][name]), name


@pytest.mark.parametrize("part", ["contrast", "regression"])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in either loss of stage 1 leaves encoder and regressor as they were."""
    if part == "contrast":
        monkeypatch.setattr(steps, "rank_n_contrast_loss", lambda rows, _labels, **_given: rows.sum() * np.nan)
    else:
        monkeypatch.setattr(steps.functional, "l1_loss", lambda given, _truth: given.sum() * np.inf)
    run = tiny_run()
    network = build_network(run)
    stage = steps.ContrastStep(run, network)
    weights = {name: value.clone() for name, value in network.named_parameters()}
    stage.begin_epoch()
    with pytest.raises(NonFiniteLossError, match=part):
        stage.step(*_batch(TRAIN, 4, views=2))
    for name, value in network.named_parameters():
        assert torch.equal(value, weights[name]), name


def test_a_gradient_that_is_not_finite_stops_before_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss with an infinite slope leaves the weights as they were."""

    def steep(rows: torch.Tensor, _labels: torch.Tensor, *, temperature: float) -> torch.Tensor:
        return torch.sqrt((0.0 * rows).sum() ** 2)

    monkeypatch.setattr(steps, "rank_n_contrast_loss", steep)
    run = tiny_run()
    network = build_network(run)
    stage = steps.ContrastStep(run, network)
    weights = {name: value.clone() for name, value in network.named_parameters()}
    stage.begin_epoch()
    with pytest.raises(NonFiniteLossError, match="gradient"):
        stage.step(*_batch(TRAIN, 4, views=2))
    for name, value in network.named_parameters():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("name", RUNS)
def test_a_folder_with_another_run_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    """Another seed or other videos are not continued, and ``run.json`` still describes the first run."""
    run = RUNS[name]()
    stages.train_echo(run, TRAIN, VALIDATION, tmp_path)
    described = (tmp_path / "run.json").read_text()
    with pytest.raises(ForeignRunError, match="another config or other data"):
        stages.train_echo(replace(run, seed=99), TRAIN, VALIDATION, tmp_path)
    with pytest.raises(ForeignRunError, match="another config or other data"):
        stages.train_echo(run, discs(10, seed=3), VALIDATION, tmp_path)
    assert (tmp_path / "run.json").read_text() == described


def test_a_run_that_was_killed_in_its_first_epoch_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Described, but without a checkpoint: another run does not move in."""
    _killed_after(0, monkeypatch)
    with pytest.raises(_Killed):
        stages.train_echo(tiny_run(), TRAIN, VALIDATION, tmp_path)
    with pytest.raises(ForeignRunError, match="another config or other data"):
        stages.train_echo(replace(tiny_run(), seed=99), TRAIN, VALIDATION, tmp_path)


def test_a_video_without_a_truth_is_named(tmp_path: Path) -> None:
    """A truth that is no number stops the run before anything is written."""
    wrong = replace(TRAIN, ef_percent=np.where(np.arange(10) == 3, np.nan, TRAIN.ef_percent))
    with pytest.raises(ValueError, match="disc-1-003 has no ejection fraction"):
        stages.train_echo(tiny_run(), wrong, VALIDATION, tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_too_few_videos_for_a_batch_are_counted(tmp_path: Path) -> None:
    """Three videos do not fill a batch of four."""
    with pytest.raises(ValueError, match="3 videos, batches of 4"):
        stages.train_echo(tiny_run(), discs(3, seed=1), VALIDATION, tmp_path)


def test_the_rate_falls_as_published() -> None:
    """A tenth from epoch index 15 on, once for CoReEcho; again at 30 for a repeated schedule; never without an epoch."""
    once = replace(tiny_run().stage1.schedule, learning_rate=1e-4, decay_epoch=15)
    assert [once.rate(epoch) for epoch in (0, 14, 15, 25)] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    assert once.rate(30) == pytest.approx(1e-5)
    assert replace(once, repeated=True).rate(30) == pytest.approx(1e-6)
    assert replace(once, decay_epoch=None).rate(40) == 1e-4


def test_a_run_leaves_curves_and_checkpoints(tmp_path: Path) -> None:
    """Each stage has numbers, a picture, a checkpoint and its best weights; the recorded rates are those of the schedule."""
    run = tiny_run()
    stages.train_echo(run, TRAIN, VALIDATION, tmp_path)
    for name in ("stage1", "stage2"):
        assert (tmp_path / name / "curve.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / name / "checkpoint.safetensors").exists()
        assert (tmp_path / name / stages.BEST_NAME).exists()
    points = read_points(tmp_path / "stage1")
    assert [point.learning_rate for point in points] == pytest.approx([1e-2, 1e-2, 1e-3])
    assert all(np.isfinite(point.contrast) for point in points)
    assert all(np.isnan(point.contrast) for point in read_points(tmp_path / "stage2"))


def test_training_learns_the_discs(tmp_path: Path) -> None:
    """Thirty epochs end to end on discs beat the error of their mean."""
    run = tiny_baseline()
    run = replace(run, fit=replace(run.fit, epochs=30, schedule=replace(run.fit.schedule, decay_epoch=None)))
    many, few = discs(32, seed=4, frames=20), discs(12, seed=5, frames=20)
    stages.train_echo(run, many, few, tmp_path)
    constant = float(np.abs(few.ef_percent - np.median(many.ef_percent)).mean())
    assert min(point.validation_mae for point in read_points(tmp_path / "fit")) < 0.8 * constant


def test_the_contrast_of_many_clips_takes_the_fast_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 256 clips every pair is compared at once; more go through the sorted form."""
    called = []
    for name in ("rank_n_contrast_loss", "rank_n_contrast_loss_sorted"):
        monkeypatch.setattr(steps, name, lambda *_given, name=name, **_more: called.append(name))
    for count in (256, 257):
        steps.contrast_loss(torch.zeros(count, 2), torch.zeros(count), 1.0)
    assert called == ["rank_n_contrast_loss", "rank_n_contrast_loss_sorted"]


def test_a_clip_of_the_doubles_fits() -> None:
    """The doubles cut clips of the size that the tiny runs state."""
    run = tiny_run()
    clips = stages.training_clips(TRAIN, np.array([0, 1]), run, views=2, epoch=0)
    assert clips.shape == (4, 1, FRAMES, SIDE, SIDE)
    assert clips.dtype == np.uint8


def test_a_run_starts_from_the_weights_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is loaded into the encoder before the first step; a run that names none loads none."""
    loaded = []
    monkeypatch.setattr(stages, "load_kinetics", lambda encoder, path: loaded.append((type(encoder).__name__, path)))
    file = tmp_path / "weights.pth"
    file.write_bytes(b"published")
    run = replace(tiny_baseline(), weights=str(file))
    stages.train_echo(run, TRAIN, VALIDATION, tmp_path / "run")
    assert loaded == [("TinyEncoder", file)]
    stages.train_echo(tiny_baseline(), TRAIN, VALIDATION, tmp_path / "other")
    assert len(loaded) == 1
