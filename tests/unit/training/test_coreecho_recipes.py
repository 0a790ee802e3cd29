"""Recipes on clips: the published numbers, the same conditions for both small ones, and the description of every recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from training.cli import main
from training.config import config_digest, describe, load_recipe, recipe_names
from training.coreecho.config import (
    BaselineRun,
    CoReEchoRun,
    EchoRun,
    training_digest,
    with_echo_size,
    with_speed,
    with_weights,
)
from training.models.uniformer import UniFormerShape
from training.recipes import coreecho_published, coreecho_small, echocotr_published, echocotr_small, r2plus1d_published

ON_CLIPS = ("coreecho_published", "coreecho_small", "echocotr_published", "echocotr_small", "r2plus1d_published")


def test_coreecho_is_published_so() -> None:
    """26 epochs of 16 videos at 1e-4, a tenth from index 15, temperature 1; 5 epochs of the regressor; 36 frames 4 apart."""
    run = coreecho_published.recipe()
    first, second = run.stage1, run.stage2
    assert (first.epochs, first.batch_videos, first.weight_decay, first.temperature) == (26, 16, 1e-4, 1.0)
    assert [first.schedule.rate(epoch) for epoch in (0, 14, 15, 25)] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    assert (second.epochs, second.batch_videos, second.weight_decay) == (5, 16, 1e-4)
    assert second.schedule.rate(4) == 1e-4
    assert (run.clips.frames, run.clips.period_frames, run.preprocess.size_px) == (36, 4, 112)
    assert (run.translation_px, run.dropout, run.start_percent, run.validation_clips) == (6, 0.4, 55.6, 3)
    assert run.encoder == UniFormerShape.published()


def test_the_peers_are_published_so() -> None:
    """45 epochs of the squared error, a tenth after each 15: 25 videos with AdamW, 20 with SGD."""
    for run, batch, optimiser, frames, period in (
        (echocotr_published.recipe(), 25, "adamw", 36, 4),
        (r2plus1d_published.recipe(), 20, "sgd", 32, 2),
    ):
        fit = run.fit
        assert (fit.epochs, fit.batch_videos, fit.views, fit.loss, fit.optimiser) == (45, batch, 1, "mse", optimiser)
        assert [fit.schedule.rate(epoch) for epoch in (14, 15, 30, 44)] == pytest.approx([1e-4, 1e-5, 1e-6, 1e-6])
        assert (run.clips.frames, run.clips.period_frames) == (frames, period)
        assert run.preprocess.clip_frames == frames


def test_the_small_ones_differ_in_their_loss_alone() -> None:
    """Same hearts, encoder, start, clips, shifts, batches, rates and epochs of the encoder."""
    ours, theirs = coreecho_small.recipe(), echocotr_small.recipe()
    for name in EchoRun.__dataclass_fields__:
        if name not in {"recipe", "bundle"}:
            assert getattr(ours, name) == getattr(theirs, name), name
    stage, fit = ours.stage1, theirs.fit
    assert (fit.epochs, fit.batch_videos, fit.schedule, fit.weight_decay) == (
        stage.epochs,
        stage.batch_videos,
        stage.schedule,
        stage.weight_decay,
    )
    assert (fit.views, fit.loss) == (2, "l1")


@pytest.mark.parametrize("name", ON_CLIPS)
def test_clips_fit_encoder_and_preprocessing(name: str) -> None:
    """Frames and side of a clip are those that the encoder takes and that serving prepares; names agree."""
    run = load_recipe(name)
    assert isinstance(run, CoReEchoRun if name.startswith("coreecho") else BaselineRun)
    assert run.recipe == name
    assert run.clips.frames == run.preprocess.clip_frames
    if isinstance(run.encoder, UniFormerShape):
        assert (run.encoder.frames, run.encoder.size_px) == (run.preprocess.clip_frames, run.preprocess.size_px)
    assert run.bundle.training_data == "digital phantoms only, no patients"
    assert json.loads(json.dumps(describe(run)))["recipe"] == name


def test_a_digest_knows_what_decides_the_weights(tmp_path: Path) -> None:
    """Epochs, videos, method and the content of a weights file change it; the release and the file's name do not."""
    run = coreecho_small.recipe()
    file, same, other = (tmp_path / name for name in ("a", "b", "c"))
    file.write_bytes(b"weights")
    same.write_bytes(b"weights")
    other.write_bytes(b"others")
    base = training_digest(run, "videos")
    assert training_digest(with_echo_size(run, hearts=40, epochs=None), "videos") == base
    assert training_digest(with_weights(run, file)) == training_digest(with_weights(run, same))
    digests = {
        base,
        training_digest(run, "others"),
        training_digest(with_echo_size(run, hearts=None, epochs=3), "videos"),
        training_digest(with_weights(run, file), "videos"),
        training_digest(with_weights(run, other), "videos"),
        training_digest(echocotr_small.recipe(), "videos"),
    }
    assert len(digests) == 6
    assert len({config_digest(load_recipe(name)) for name in ON_CLIPS}) == len(ON_CLIPS)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_described(name: str) -> None:
    """Networks with layers and parameter counts, loss, schedule and data, as JSON."""
    result = CliRunner().invoke(main, ["describe", name])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["recipe"] == name
    assert {"networks", "loss", "schedule", "data"} <= found.keys()
    assert found["data"]["preprocess"]
    for network in found["networks"]:
        assert len(network["layers"]) > 3
        top = [layer for layer in network["layers"] if "." not in layer["layer"]]
        assert 0 < sum(layer["parameters"] for layer in top) <= network["parameters"]


def test_the_description_counts_the_published_network() -> None:
    """21,195,713 parameters in the encoder, 265,217 in the regressor, and the shapes after the last stages."""
    found = json.loads(CliRunner().invoke(main, ["describe", "coreecho_published"]).output)
    layers = {layer["layer"]: layer for layer in found["networks"][0]["layers"]}
    assert layers["encoder"]["parameters"] == 21_195_713
    assert layers["regressor"]["parameters"] == 265_217
    assert found["networks"][0]["parameters"] == 21_195_713 + 265_217
    assert layers["encoder.blocks3"]["output"] == [320, 18, 7, 7]
    assert layers["encoder.blocks4"]["output"] == [512, 18, 3, 3]
    assert "Rank-N-Contrast" in found["loss"]["stage1"]
    assert found["schedule"]["stage1"]["epochs"] == 26


def test_options_of_clips_are_for_recipes_on_clips(tmp_path: Path) -> None:
    """A device for another kind of recipe is refused by name, before anything is made."""
    result = CliRunner().invoke(main, ["train", "ecg_cmr_small", "--device", "cuda", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "ecg_cmr_small is no recipe on clips" in result.output
    assert list(tmp_path.iterdir()) == []


def test_fast_runs_in_half_the_bytes_and_compiled() -> None:
    """Nothing else of the run changes, and the weights are not taken for those of the exact one."""
    run = coreecho_published.recipe()
    fast = with_speed(run, fast=True)
    assert (run.speed.autocast_bfloat16, run.speed.compile) == (False, False)
    assert (fast.speed.autocast_bfloat16, fast.speed.compile) == (True, True)
    assert dataclasses.replace(fast, speed=run.speed) == run
    assert training_digest(fast, "a") != training_digest(run, "a")
    assert with_speed(run, fast=False) is run
