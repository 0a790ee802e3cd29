"""Wide crops of hearts, their views, and the meta-learning that survives trouble."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.cmr import prepare_cmr
from engines.records import CineStack
from training.data.sources.cmr_studies import FoundStudies
from training.enf import hearts as hearts_module
from training.enf import meta
from training.enf import pairs as pairs_module
from training.enf.config import EnfRun, FieldFit, Task, with_enf_size
from training.enf.hearts import phantom_studies, prepared_pairs, turned_stack
from training.enf.pairs import Pairs, wide_px
from training.enf.protocol import phantoms_of
from training.models.enf import Enf
from training.recipes.enf_small import recipe


def some_pairs(count: int = 4, size: int = 16, wide: int = 32) -> Pairs:
    """Crops of noise with a known order of grey."""
    rng = np.random.default_rng(1)
    spec = recipe().preprocess.model_copy(update={"size_px": size})
    lvef = np.linspace(20.0, 60.0, count)
    crops = rng.random((count, 2, wide, wide)).astype(np.float32)
    return Pairs(wide_N2WW=crops, lvef_percent=lvef, keys=tuple(f"k{i}" for i in range(count)), spec=spec)


def tiny_run(iterations: int = 4) -> EnfRun:
    """A decoder that steps in milliseconds."""
    run = recipe()
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, preprocess=run.preprocess.model_copy(update={"size_px": 16})),
        shape=dataclasses.replace(run.shape, latents=16, hidden=8, key_width=4, context_width=4),
        meta=dataclasses.replace(run.meta, iterations=iterations, batch_frames=3, pixel_fraction=0.5),
    )


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_quarter_turned_view_is_the_turned_view(turns: int) -> None:
    """No pixel is interpolated: the numbers are those of the unturned view, elsewhere."""
    pairs = some_pairs()
    rows = np.arange(len(pairs))
    assert np.array_equal(pairs.views(rows, 90.0 * turns), np.rot90(pairs.views(rows), turns, axes=(2, 3)))


def test_a_shifted_view_moves_pixels_down_and_right() -> None:
    """A whole-pixel shift moves every value and interpolates none."""
    pairs = some_pairs()
    wide = pairs.wide_N2WW[0].astype(np.float64)
    shifted = pairs.views(np.array([0]), shift_px=(3.0, 2.0))[0]
    cut = wide[:, 8 - 3 : 24 - 3, 8 - 2 : 24 - 2]
    order = np.argsort(cut.ravel())
    assert np.all(np.diff(shifted.ravel()[order]) >= 0)


def test_a_small_angle_turns_the_same_way_as_a_quarter() -> None:
    """89 degrees lies nearer to 90 than to -90 degrees; 0.001 degrees hardly changes anything."""
    pairs = some_pairs()
    smooth = Pairs(
        wide_N2WW=np.cumsum(np.cumsum(pairs.wide_N2WW, axis=2), axis=3),
        lvef_percent=pairs.lvef_percent,
        keys=pairs.keys,
        spec=pairs.spec,
    )
    rows = np.arange(len(pairs))
    nearly = smooth.views(rows, 89.0)
    assert np.abs(nearly - smooth.views(rows, 90.0)).mean() < 0.1 * np.abs(nearly - smooth.views(rows, 270.0)).mean()
    assert np.abs(smooth.views(rows, 0.001) - smooth.views(rows)).max() < 1e-2


def test_a_shift_out_of_the_crop_is_refused() -> None:
    """The message says how far a view may be shifted."""
    with pytest.raises(ValueError, match="at most 8 px"):
        some_pairs().views(np.array([0]), shift_px=(9.0, 0.0))


def test_random_views_follow_their_generator_and_labels_their_threshold() -> None:
    """Equal generators give equal views; a heart at the threshold is positive."""
    pairs = some_pairs()
    rows = np.arange(len(pairs))
    first, again = (pairs.random_views(rows, np.random.default_rng(2)) for _ in range(2))
    assert np.array_equal(first, again)
    assert pairs.labels(float(pairs.lvef_percent[1])).tolist() == [True, True, False, False]


def test_crops_and_keys_must_fit() -> None:
    """A missing key or a crop without a margin of whole pixels is refused."""
    pairs = some_pairs()
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(pairs, keys=pairs.keys[:-1])
    with pytest.raises(ValueError, match="even margin"):
        dataclasses.replace(pairs, wide_N2WW=pairs.wide_N2WW[:, :, 1:, 1:])


def test_a_view_of_a_heart_is_what_serving_prepares(tmp_path: Path) -> None:
    """The unturned view of a digital heart equals the array of ``prepare_cmr`` to rounding."""
    studies = phantom_studies(31, 1)
    spec = recipe().preprocess
    pairs, refused = prepared_pairs(studies, studies.keys, spec, tmp_path)
    assert not refused
    served = prepare_cmr(studies.read(studies.keys[0]).stack, spec).arrays["image"]
    np.testing.assert_allclose(pairs.views(np.array([0])), served, atol=2e-4)


def test_balanced_phantoms_are_half_low_and_always_the_same() -> None:
    """Half of an even number of hearts lies at or below 40 %; a seed names its hearts."""
    first, again = (phantom_studies(5, 20, balanced_at_percent=40.0) for _ in range(2))
    assert first.keys == again.keys
    assert sum(first.lvef_percent(key) <= 40.0 for key in first.keys) == 10
    assert set(first.keys).isdisjoint(phantom_studies(6, 20, balanced_at_percent=40.0).keys)
    assert (
        sum(
            phantom_studies(5, 20, balanced_at_percent=35.0).lvef_percent(key) <= 35.0
            for key in phantom_studies(5, 20, balanced_at_percent=35.0).keys
        )
        == 10
    )


def test_a_refused_study_is_kept_with_its_reason_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run reads nothing and says the same."""
    calls: list[str] = []

    def refuse(key: str) -> CineStack:
        calls.append(key)
        raise InputRefused(RefusalCode.TOO_FEW_SLICES, "The stack has 1 slice.")

    studies = FoundStudies(name="broken", lvef_percent_by_key={"a": 30.0}, load=refuse)
    for _ in range(2):
        pairs, refused = prepared_pairs(studies, ("a",), recipe().preprocess, tmp_path)
        assert len(pairs) == 0
        assert [(each.key, each.code) for each in refused] == [("a", "too_few_slices")]
    assert calls == ["a"]
    monkeypatch.setattr(hearts_module, "source_digest", lambda _modality: "other code")
    prepared_pairs(studies, ("a",), recipe().preprocess, tmp_path)
    assert calls == ["a", "a"]


def test_a_turned_stack_swaps_spacing_and_keeps_orientation() -> None:
    """Rows become columns; ImageOrientationPatient does not follow."""
    stack = phantom_studies(31, 1)
    original = dataclasses.replace(stack.read(stack.keys[0]).stack, spacing_mm=(1.5, 1.6))
    turned = turned_stack(original, 1)
    assert turned.spacing_mm == (1.6, 1.5)
    assert turned.orientation == original.orientation
    assert np.array_equal(turned.images_SPHW[0, 0], np.rot90(original.images_SPHW[0, 0]))


def test_meta_learning_lowers_the_error_and_resumes_exactly(tmp_path: Path) -> None:
    """Two halves of a run end in the weights of the whole run."""
    pairs, run = some_pairs(), tiny_run(iterations=100)
    whole = meta.meta_learn(run, pairs, tmp_path / "whole")
    history = json.loads((tmp_path / "whole" / "curve.json").read_text())["history"]
    assert history[-1][1] > history[0][1]

    class Interrupted(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 50:
            raise Interrupted

    with pytest.raises(Interrupted):
        meta.meta_learn(run, pairs, tmp_path / "halves", progress=stop)
    resumed = meta.meta_learn(run, pairs, tmp_path / "halves")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_a_checkpoint_of_other_hearts_is_refused(tmp_path: Path) -> None:
    """The message says to move the folder away."""
    meta.meta_learn(tiny_run(), some_pairs(), tmp_path)
    with pytest.raises(ValueError, match="another run"):
        meta.meta_learn(tiny_run(), dataclasses.replace(some_pairs(), keys=("a", "b", "c", "d")), tmp_path)


def test_a_runaway_loss_rolls_back_and_the_third_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad step costs half the learning rate; three in a row end the run."""
    original, calls = meta.outer_step, [0]

    def sometimes(run: EnfRun, state: meta.MetaState, pairs: Pairs) -> float:
        calls[0] += 1
        return float("nan") if calls[0] == 2 else original(run, state, pairs)

    monkeypatch.setattr(meta, "outer_step", sometimes)
    meta.meta_learn(tiny_run(), some_pairs(), tmp_path / "once")
    kept = json.loads((tmp_path / "once" / "curve.json").read_text())
    assert (kept["rollbacks"], kept["rate_factor"]) == (1, 0.5)
    monkeypatch.setattr(meta, "outer_step", lambda *_: float("inf"))
    with pytest.raises(meta.MetaLearningDiverged, match="3 times in a row"):
        meta.meta_learn(tiny_run(), some_pairs(), tmp_path / "always")


def test_bad_steps_far_apart_do_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, each after another good state, are four roll-backs and no end."""
    calls = [0]

    def sometimes(*_: object) -> float:
        calls[0] += 1
        return float("inf") if calls[0] in {10, 90, 150, 210} else 0.1

    monkeypatch.setattr(meta, "outer_step", sometimes)
    meta.meta_learn(tiny_run(iterations=200), some_pairs(), tmp_path)
    assert json.loads((tmp_path / "curve.json").read_text())["rollbacks"] == 4


@pytest.mark.parametrize("poisoned", [50, 60])
def test_a_gradient_that_is_not_finite_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: int
) -> None:
    """A finite loss with NaN in its gradient, on the step that is kept or on the last, leaves finite weights."""
    calls = [0]

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: object, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(_ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return gradient * float("nan")

    original = meta.outer_loss

    def once(run: EnfRun, enf: Enf, frames: torch.Tensor, tables: meta.PairTables) -> torch.Tensor:
        calls[0] += 1
        loss = original(run, enf, frames, tables)
        return Poison.apply(loss) if calls[0] == poisoned else loss

    monkeypatch.setattr(meta, "outer_loss", once)
    calm = dataclasses.replace(tiny_run(iterations=60), fit=FieldFit(steps=3, learning_rate=2.0))
    enf = meta.meta_learn(calm, some_pairs(), tmp_path)
    assert all(bool(torch.isfinite(value).all()) for value in enf.state_dict().values())
    assert json.loads((tmp_path / "curve.json").read_text())["rollbacks"] == 1


@pytest.mark.parametrize("size", [32, 64, 78])
def test_a_random_view_never_leaves_the_wide_crop(size: int) -> None:
    """At every angle and the largest shift all pixels of a view come from the crop: no black corners."""
    spec = recipe().preprocess.model_copy(update={"size_px": size})
    wide = wide_px(size)
    ones = Pairs(
        wide_N2WW=1.0 + np.random.default_rng(0).random((1, 2, wide, wide), np.float32),
        lvef_percent=np.array([50.0]),
        keys=("a",),
        spec=spec,
    )
    for angle in (0.0, 17.0, 45.0, 80.0):
        for shift in ((4.0, 0.0), (-2.8, 2.8), (0.0, -4.0)):
            cut = pairs_module._cut(ones.wide_N2WW[0], angle, np.array(shift), size)
            assert cut.min() >= 1.0 - 1e-6


def test_first_and_second_order_differ_in_the_gradient_only() -> None:
    """The error after the fit is one number; its derivative with the fit held constant is another."""
    run, pairs = tiny_run(), some_pairs()
    tables = meta.pair_tables(16, 16, 4)
    frames = torch.from_numpy(pairs.views(np.arange(2))).flatten(0, 1).flatten(1)[:, tables.pixels]
    torch.manual_seed(0)
    enf = Enf(run.shape)
    found = {}
    for order in ("first", "second"):
        enf.zero_grad()
        changed = dataclasses.replace(run, meta=dataclasses.replace(run.meta, order=order))
        loss = meta.outer_loss(changed, enf, frames, tables)
        loss.backward()
        found[order] = (float(loss.detach()), enf.value_hidden.weight.grad.clone())
    assert found["first"][0] == pytest.approx(found["second"][0], rel=1e-6)
    assert (found["first"][1] - found["second"][1]).abs().max() > 1e-6


def test_a_task_decides_labels_phantoms_and_threshold() -> None:
    """A recipe of 35 % has half its phantoms at or below 35 %, labels them so, and an unknown condition is refused."""
    run = dataclasses.replace(recipe(), task=Task(condition="lvef_at_most_35", blur_percent=5.0))
    studies = phantoms_of(run, (6, 2, 2))(0)
    low = [studies.lvef_percent(key) <= 35.0 for key in studies.keys]
    assert sum(low) == len(low) // 2
    pairs = dataclasses.replace(some_pairs(), lvef_percent=np.array([30.0, 35.0, 38.0, 60.0]))
    assert pairs.labels(run.task.threshold_percent).tolist() == [True, True, False, False]
    targets = run.task.targets(np.array([10.0, 30.0, 35.0, 60.0]))
    np.testing.assert_allclose(targets, [1.0, 0.8413, 0.5, 0.0], atol=1e-4)
    with pytest.raises(ValueError, match="lvef_at_most_40"):
        Task(condition="lvef_at_most_42", blur_percent=5.0)
    with pytest.raises(ValueError, match="positive number"):
        Task(condition="lvef_at_most_40", blur_percent=0.0)


def test_sizes_for_trials_change_what_they_name_only() -> None:
    """Hearts and epochs can be set; nothing given changes nothing."""
    run = recipe()
    assert with_enf_size(run, hearts=30, epochs=2).data.hearts == 30
    assert with_enf_size(run, hearts=None, epochs=2).classifier.epochs == 2
    assert with_enf_size(run, hearts=None, epochs=None) == run
