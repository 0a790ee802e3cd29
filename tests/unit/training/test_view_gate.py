"""The view check is trained on what it will see, and its gate says what it was measured to do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.bundle.golden import npz_arrays
from engines.errors import InputRefused, RefusalCode
from engines.preprocess.registry import prepare
from training.config import ViewDataConfig, describe, load_run, with_size
from training.data.augment import augment_view
from training.data.heart_arrays import columns_of, heart_arrays, inputs_per_heart
from training.data.sources.echo_views import VIEW_COLUMN, draw_view, view_number
from training.data.splits import Split
from training.losses import view_loss
from training.models.view_net import ViewNet
from training.phantoms.echo_views import APICAL_FOUR_CHAMBER, VIEWS, view_loop
from training.phantoms.subjects import draw_subject
from training.recipes.view_small import echo_clean_spec
from training.signature import input_of
from training.view_gate import OUTPUT, export_gate, gate_metrics, read_gate, threshold_of

RUN = load_run("view_small")


def small_run() -> object:
    """The recipe with few loops of coarse frames."""
    data = RUN.data
    assert isinstance(data, ViewDataConfig)
    spec = data.preprocess.model_copy(update={"size_px": 32})
    return dataclasses.replace(RUN, data=dataclasses.replace(data, hearts=8, preprocess=spec, frames=2))


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_is_a_loop(view: str) -> None:
    """Every view renders to a clip that the recipe's preprocessing accepts; the same generator gives the same frames."""
    first, again = (view_loop(view, draw_subject(np.random.default_rng(3)), np.random.default_rng(4)) for _ in range(2))
    one, other = (np.stack(list(loop.frames.luma(range(3)))) for loop in (first, again))
    assert np.array_equal(one, other)
    assert first.view is None
    clip = prepare(first, RUN.data.preprocess).arrays["clip"]
    assert clip.mean() > 4


def test_the_engine_refuses_turned_views_before_any_network() -> None:
    """The strict specification of an engine takes the upright views and refuses the turned one."""
    strict = echo_clean_spec(size_px=32, clip_frames=8, clips=1)
    rng = np.random.default_rng(2)
    prepare(view_loop(APICAL_FOUR_CHAMBER, draw_subject(rng), rng), strict)
    with pytest.raises(InputRefused) as caught:
        prepare(view_loop("turned", draw_subject(rng), rng), strict)
    assert caught.value.code is RefusalCode.SECTOR_IMPLAUSIBLE


def test_views_differ_by_their_structures() -> None:
    """With one heart and one scanner, no other view gives the picture of the four-chamber one."""
    pictures = {}
    for view in VIEWS:
        loop = view_loop(view, draw_subject(np.random.default_rng(3)), np.random.default_rng(4))
        (pictures[view],) = loop.frames.luma([5])
    wanted = pictures[APICAL_FOUR_CHAMBER].astype(int)
    assert all(
        np.abs(picture - wanted).mean() > 0.5 for view, picture in pictures.items() if view != APICAL_FOUR_CHAMBER
    )


def test_every_second_loop_is_the_wanted_view() -> None:
    """Half of the loops are apical four-chamber, the others all occur equally often."""
    numbers = [view_number(index) for index in range(100)]
    assert numbers.count(0) == 50
    assert {number: numbers.count(number) for number in range(1, len(VIEWS))} == dict.fromkeys(range(1, len(VIEWS)), 10)
    assert draw_view(5, 3).targets == {VIEW_COLUMN: float(view_number(3))}


def test_training_sees_the_frames_of_the_check(tmp_path: Path) -> None:
    """The arrays hold the frames that the view check would look at, and the number of the view."""
    run = small_run()
    arrays = heart_arrays(tmp_path, run.data, input_of(run.data), workers=1)  # type: ignore[attr-defined]
    assert arrays.inputs.shape == (8, 2, 1, 32, 32)
    assert arrays.columns == columns_of(run.data) == ("view",)  # type: ignore[attr-defined]
    assert inputs_per_heart(run.data) == 2  # type: ignore[attr-defined]
    assert arrays.targets[:, 0].tolist() == [view_number(index) for index in range(8)]
    assert set(arrays.clips.tolist()) == {2}


def test_the_network_is_small_and_its_loss_falls() -> None:
    """Under 150 thousand parameters; a few steps on one batch lower the loss."""
    torch.manual_seed(0)
    network = ViewNet.small()
    assert sum(weights.numel() for weights in network.parameters()) < 150_000
    frames = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8)
    targets = {"view": torch.arange(6, dtype=torch.float32)}
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = view_loss(network(frames), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_augmentation_follows_its_generator() -> None:
    """The same generator state gives the same frames, in their type."""
    frames = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    first, again, other = (augment_view(frames, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_gate_is_written_and_read_back(tmp_path: Path) -> None:
    """Graph, golden logits, manifest and metrics of an untrained network; no label is trusted unless a site says so."""
    run = small_run()
    arrays = heart_arrays(tmp_path, run.data, input_of(run.data), workers=1)  # type: ignore[attr-defined]
    everyone = np.arange(8)
    split = Split(train=everyone, validation=everyone, calibration=everyone, test=everyone)
    torch.manual_seed(0)
    folder = export_gate(run, ViewNet.small().eval(), arrays, split, tmp_path / "gate")  # type: ignore[arg-type]
    part = read_gate(folder)
    assert part.manifest.views == VIEWS
    assert part.manifest.input.shape == (-1, 1, 32, 32)
    assert part.manifest.trusted_labels == ()
    golden = npz_arrays(part.files.golden)
    assert golden[OUTPUT].shape == (8, len(VIEWS))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test_loops"] == 8
    assert f"{APICAL_FOUR_CHAMBER}_passed_share_low" in metrics


def test_only_views_become_a_gate(tmp_path: Path) -> None:
    """A run of hearts has no views to export."""
    with pytest.raises(TypeError, match="expected loops of views"):
        export_gate(load_run("echo_ef_small"), ViewNet.small(), None, None, tmp_path)  # type: ignore[arg-type]


def test_the_threshold_keeps_other_views_out() -> None:
    """It follows the surest of the other views, within its limits."""
    views = np.repeat([0, 1], 200)
    votes = np.zeros((400, 2))
    votes[:200, 0], votes[200:, 0] = 0.99, np.linspace(0, 0.8, 200)
    assert threshold_of(votes, views) == pytest.approx(0.796, abs=0.002)
    votes[200:, 0] = 0.1
    assert threshold_of(votes, views) == 0.5
    votes[200:, 0] = 0.99
    assert threshold_of(votes, views) == 0.9


def test_metrics_count_what_passes() -> None:
    """Threshold and margin decide, as they do when serving."""
    from tests.doubles.bundles import gate

    part = gate(views=("apical_four_chamber", "no_heart", "turned"), threshold_probability=0.6, margin_probability=0.3)
    votes = np.array([[0.9, 0.05, 0.05], [0.62, 0.38, 0.0], [0.5, 0.0, 0.5], [0.7, 0.3, 0.0]])
    metrics = gate_metrics(part, votes, np.array([0, 0, 2, 1]))
    assert metrics["apical_four_chamber_passed_share"] == 0.5
    assert metrics["no_heart_passed_share"] == 1.0
    assert metrics["other_views_passed_share"] == 0.5


def test_the_recipe_describes_itself() -> None:
    """The description is JSON, holds the frames of the check, and follows a change of size."""
    described = json.loads(json.dumps(describe(with_size(RUN, hearts=12, epochs=1))))
    assert described["data"]["hearts"] == 12
    assert described["data"]["frames"] == 8
    assert described["data"]["preprocess"]["preprocess_version"] == 2
