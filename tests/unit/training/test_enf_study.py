"""The whole comparison on a handful of phantoms: it runs, resumes, and says what it measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import resnet10

from training.config import OptimConfig
from training.enf import study
from training.enf.baselines import BaselineConfig
from training.enf.config import EnfRun, Task
from training.models.pair_resnet import PairResNet
from training.options import as_typed
from training.recipes.enf_small import recipe

SIZES = (10, 4, 4)


def tiny_run() -> EnfRun:
    """A field that trains in seconds and learns nothing."""
    run = recipe()
    return replace(
        run,
        data=replace(run.data, preprocess=run.preprocess.model_copy(update={"size_px": 32})),
        shape=replace(run.shape, latents=16, hidden=8, key_width=4, context_width=4),
        meta=replace(run.meta, iterations=3, batch_frames=2),
        classifier=replace(
            run.classifier, views=2, epochs=2, batch_size=4, shape=replace(run.classifier.shape, width=16)
        ),
    )


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    """The study finds the tiny recipe and a small baseline."""
    optim = OptimConfig(
        epochs=1,
        batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup_fraction=0.1,
        gradient_clip=1.0,
        autocast_bfloat16=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "load_recipe", lambda _name: tiny_run())
        patch.setattr(study, "BaselineConfig", lambda task: _baseline(optim, task))
        yield


def options_in(folder: Path) -> study.StudyOptions:
    """One seed, no segmentation, two DICOM studies."""
    return study.StudyOptions(
        recipe="enf_small",
        data=None,
        cmr=study.CmrOptions(),
        out=folder / "out",
        docs=folder / "docs",
        sizes=SIZES,
        seeds=1,
        first_seed=0,
        dicom_studies=2,
        segmentation_hearts=0,
        contours=None,
        workers=1,
        command="purkinje-train evaluate enf",
    )


def _baseline(optim: OptimConfig, task: Task) -> BaselineConfig:
    return BaselineConfig(optim=optim, task=task, network=_small_network)


def _small_network() -> PairResNet:
    """Ten thin layers in place of fifty: what is tested is the comparison."""
    return PairResNet.of(resnet10, widen_factor=0.25)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[study.StudyOptions, study.Study]:
    """The comparison, run once."""
    torch.manual_seed(0)
    options = options_in(tmp_path_factory.mktemp("compared"))
    return options, study.run_study(options, lambda _text: None)


def test_the_comparison_writes_table_numbers_and_pictures(compared: tuple[study.StudyOptions, study.Study]) -> None:
    """The field's answers do not turn, every logit of every model is a number, and the page says what does not hold."""
    options, found = compared
    table = found.table
    numbers = json.loads((options.docs / "enf.json").read_text())
    models = {model["model"]: model for model in numbers["models"]}
    assert list(models) == ["ENF", "ResNet50", "ResNet50 C4", "ResNet50 rotated"]
    assert models["ENF"]["quarter_turns"]["flips"]["count"] == 0
    assert numbers["further"]["dicom"]["ENF"]["changed_answers"] == 0
    assert numbers["further"]["dicom"]["ENF"]["largest_logit_change_sd"] <= 1e-3
    assert "purkinje-train evaluate enf" in table
    assert not found.holds  # a network that learnt nothing is not accurate
    assert [each["met"] for each in numbers["requirements"]] == [True, True, True, True, False, False]
    assert list(numbers["further"]["refused"]) == ["0"]
    assert "Not for clinical use" in table
    pictures = {file.name for file in (options.docs / "enf").iterdir()}
    assert pictures == {
        "reconstruction.png",
        "latents.png",
        "occlusion.png",
        "embedding.png",
        "turns.png",
        "meta-learning.png",
        "gallery.png",
    }
    for file in options.out.glob("seed-*.json"):
        assert np.isfinite(json.loads(file.read_text())["test_logits"]).all()


def test_a_second_run_trains_only_what_is_of_other_settings(
    compared: tuple[study.StudyOptions, study.Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the folder of another classifier or of other hearts is not taken for this one's; the rest is."""
    options, found = compared
    again = replace(options, out=tmp_path / "out", docs=tmp_path / "docs")
    shutil.copytree(options.out, again.out)
    file = again.out / "seed-0-enf.json"
    first = json.loads(file.read_text())
    file.write_text(json.dumps(first | {"made_from": "of others", "test_logits": [9.0] * SIZES[2]}))
    monkeypatch.setattr("training.enf.meta.outer_step", _must_not_run)
    monkeypatch.setattr("training.enf.baselines._epoch", _must_not_run)
    assert study.run_study(again, lambda _text: None).holds is found.holds
    assert json.loads(file.read_text())["test_logits"] == first["test_logits"]


def _must_not_run(*_args: object, **_given: object) -> float:
    raise AssertionError("trained again")


def test_an_unturned_image_in_place_of_a_turned_one_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A harness that forgets to turn would find every model invariant."""
    monkeypatch.setattr("training.enf.hearts.turned_stack", lambda stack, _turns: stack)
    with pytest.raises(AssertionError, match="equal the unturned"):
        study.run_study(options_in(tmp_path), lambda _text: None)


def test_a_recipe_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the recipes that are fields."""
    monkeypatch.setattr(study, "load_recipe", lambda _name: object())
    with pytest.raises(ValueError, match="enf_small"):
        study.run_study(options_in(tmp_path), lambda _text: None)


def test_the_page_says_which_seeds_were_seen() -> None:
    """Seeds 0 and 1 are named where they stand in the table; later ones had no part in any choice."""
    assert study._seen((0, 1, 2)).endswith("of seeds 0 and 1: 0 and 1 stand here")
    assert study._seen((1, 2)).endswith(": 1 stand here")
    assert study._seen((2, 3, 4)).endswith(": neither stands here")


def test_the_command_on_the_page_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--out`` and its folder are left out, everything else stays as it was typed."""
    monkeypatch.setattr("sys.argv", ["x/purkinje-train", "evaluate", "enf", "--out", "/home/me/runs", "--seeds", "3"])
    assert as_typed() == "purkinje-train evaluate enf --seeds 3"
