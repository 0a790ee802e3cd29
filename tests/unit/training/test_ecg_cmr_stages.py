"""The trainer of the five variants: exact resume, shared stages, frozen towers, fatal losses, one pair of a patient a batch.

Tests named after a defect check that the one of this number in the published code is not ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.doubles.ecg_cmr_runs import OPTIM, SHAPE, Hearts, tiny
from training.checkpoint import BEST_NAME, ForeignRunError
from training.config import load_recipe
from training.curves import read_rows
from training.ecg_cmr import stages, steps
from training.ecg_cmr.alignment import Aligned, embed_ecg
from training.ecg_cmr.augment import EcgAugment
from training.ecg_cmr.config import EcgCmrRun, MaeStage, with_seed
from training.ecg_cmr.stages import pretrained_ecg, tower_of, train_ecg_cmr
from training.ecg_cmr.steps import drawn_rows
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.store_build import build_pair_store
from training.ecg_cmr.tower_inputs import CmrAugment
from training.ecg_cmr.variants import LOOKS, Variant
from training.loop import NonFiniteLossError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """Fifty patients, sixty pairs."""
    torch.set_num_threads(1)
    return build_pair_store(Hearts(), tmp_path_factory.mktemp("hearts"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages that the tests have in common."""
    return tmp_path_factory.mktemp("shared")


class _Killed(Exception):
    """Stands for a kill."""


def _killed_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Kill the run when it begins its next epoch after so many; returns what lifts the curse."""
    genuine, done = stages.run_epoch, [0]

    def run_epoch(*given: Any) -> dict[str, float]:
        if done[0] == epochs:
            raise _Killed
        done[0] += 1
        return genuine(*given)

    monkeypatch.setattr(stages, "run_epoch", run_epoch)
    return lambda: monkeypatch.setattr(stages, "run_epoch", genuine)


def _weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _numbers(folder: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_rows(folder)]


@pytest.fixture(scope="module")
def straight(store: PairStore, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Aligned]:
    """A run of the triplet that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    trained = train_ecg_cmr(tiny(), store, folder, shared=shared)
    assert trained.aligned is not None
    return folder, trained.aligned


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_run_ends_the_same_wherever_it_was_interrupted(
    epochs: int, store: PairStore, straight: tuple[Path, Aligned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the autoencoder, between the stages or in the contrast, weights and curves are bit for bit the same."""
    lift = _killed_after(epochs, monkeypatch)
    with pytest.raises(_Killed):
        train_ecg_cmr(tiny(), store, tmp_path)
    lift()
    resumed = train_ecg_cmr(tiny(), store, tmp_path).aligned
    assert resumed is not None
    assert _same(_weights(straight[1]), _weights(resumed))
    rows = _numbers(tmp_path / "contrast")
    assert len(rows) == 3
    assert rows == _numbers(straight[0] / "contrast")


def test_a_run_leaves_curves_digests_and_the_best_weights(
    straight: tuple[Path, Aligned], store: PairStore, shared: Path
) -> None:
    """``run.json`` names config and data; every pair has its own column; the chosen weights are those of the best epoch."""
    folder, network = straight
    about = json.loads((folder / "run.json").read_text())
    assert about["store"]["sha256"] == store.sha256
    assert about["run"]["contrast"]["form"] == "triplet"
    rows = read_rows(folder / "contrast")
    for pair in ("ecg_ed", "ecg_es", "ed_es"):
        assert {f"validation_{pair}_loss", f"train_{pair}_accuracy"} <= rows[0].keys()
    expected = (rows[1]["validation_ecg_ed_loss"] + rows[1]["validation_ecg_es_loss"]) / 2
    assert rows[1]["validation_alignment"] == pytest.approx(expected)
    assert (folder / "contrast" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (shared / f"mae-{about['mae_sha256'][:12]}" / "curve.png").exists()
    assert _same(load_file(folder / "contrast" / BEST_NAME), _weights(network))


def test_the_weights_are_those_of_the_best_alignment(
    store: PairStore, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three epochs whose second aligns best, though its total is worst, the weights of the second are returned."""
    genuine, kept = steps.ContrastStep.validate, []

    def validate(self: steps.ContrastStep) -> dict[str, float]:
        kept.append(_weights(self.network))
        alignment, total = [(9.0, 1.0), (5.0, 8.0), (7.0, 1.0)][len(kept) - 1]
        return {**genuine(self), "alignment": alignment, "total": total}

    monkeypatch.setattr(steps.ContrastStep, "validate", validate)
    trained = train_ecg_cmr(tiny(), store, tmp_path, shared=shared)
    assert _same(kept[1], _weights(trained.aligned))


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_variant_trains_by_the_one_trainer(
    variant: Variant, store: PairStore, shared: Path, tmp_path: Path
) -> None:
    """Each gives an encoder, and all share one masked autoencoder."""
    run = tiny(variant)
    trained = train_ecg_cmr(run, store, tmp_path, shared=shared)
    rows = embed_ecg(trained.encoder, torch.from_numpy(store.read("ecg", [0, 1, 2])), batch=2)
    assert rows.shape == (3, SHAPE.width)
    assert (trained.aligned is None) == (variant == "ecg_only")
    assert len(list(shared.glob("mae-*"))) == 1
    pretrained, _ = pretrained_ecg(run, store, shared)
    assert _same(_weights(pretrained), _weights(trained.encoder)) == (variant == "ecg_only")


@pytest.mark.parametrize("augment", [None, CmrAugment()])
def test_defect_04_frozen_towers_stay_to_the_bit(
    augment: CmrAugment | None, store: PairStore, shared: Path, tmp_path: Path
) -> None:
    """Weights and BatchNorm statistics of both towers are those of stage B, asked once or in every step."""
    run = tiny(cmr_augment=augment)
    before = {
        name: _weights(tower_of(config, store, shared)) for name, config in zip(run.names, run.towers, strict=True)
    }
    trained = train_ecg_cmr(run, store, tmp_path, shared=shared)
    assert trained.aligned is not None
    for name, weights in before.items():
        assert any("running_mean" in each for each in weights)
        assert _same(weights, _weights(trained.aligned.towers[name])), name
    assert not [name for name, value in trained.aligned.towers.named_parameters() if value.requires_grad]


def test_towers_that_are_not_frozen_learn(store: PairStore, shared: Path, tmp_path: Path) -> None:
    """Weights and BatchNorm statistics move on from stage B."""
    run = tiny("volume", frozen=False)
    before = _weights(tower_of(run.towers[0], store, shared).network)
    trained = train_ecg_cmr(run, store, tmp_path, shared=shared)
    assert trained.aligned is not None
    after = _weights(trained.aligned.towers["cmr"])
    assert before.keys() == after.keys()
    assert {name for name in before if torch.equal(before[name], after[name])} == set()


def test_defect_03_validation_is_never_changed_at_random(store: PairStore, shared: Path) -> None:
    """With every change switched on, two validations give the same numbers, and so does one without changes."""
    found = []
    for augment, changed in ((CmrAugment(), EcgAugment()), (CmrAugment(), EcgAugment()), (None, None)):
        run = replace(tiny(cmr_augment=augment), augment=changed)
        encoder = pretrained_ecg(tiny(), store, shared)[0]
        towers = {name: tower_of(each, store, shared) for name, each in zip(run.names, run.towers, strict=True)}
        torch.manual_seed(0)
        network = Aligned(encoder, towers, run.contrast).eval()
        found.append(steps.ContrastStep(run, network, store).validate())
    assert found[0] == found[1] == found[2]


def test_defect_09_each_phase_has_a_tower_of_its_own(straight: tuple[Path, Aligned]) -> None:
    """Both pre-trained towers are in the network, and they are not one."""
    towers = straight[1].towers
    assert set(towers) == {"ed", "es"}
    assert not _same(_weights(towers["ed"]), _weights(towers["es"]))


def test_defect_06_what_is_written_down_is_a_mean(store: PairStore, shared: Path, tmp_path: Path) -> None:
    """The loss of chance is ln of the batch, and the recorded losses are near it at the start, whatever their number."""
    run = tiny("slice", optim=replace(OPTIM, epochs=1, learning_rate=1e-9), temperature=1.0)
    train_ecg_cmr(run, store, tmp_path, shared=shared)
    (row,) = read_rows(tmp_path / "contrast")
    assert row["train_chance"] == pytest.approx(np.log(8))
    assert row["train_total"] == pytest.approx(row["train_chance"], abs=0.7)


def test_a_patient_who_came_twice_is_drawn_once() -> None:
    """Every patient has one row an epoch, over epochs both of them, and the order changes."""
    patients = ["a", "b", "c", "b", "a"]
    seen = [drawn_rows(patients, np.random.default_rng(seed)) for seed in range(30)]
    assert all(sorted(patients[row] for row in rows) == ["a", "b", "c"] for rows in seen)
    assert {int(row) for rows in seen for row in rows} == {0, 1, 2, 3, 4}
    assert len({tuple(rows.tolist()) for rows in seen}) > 10


@pytest.mark.parametrize("form", ["triplet", "anchor", "margin"])
def test_the_forms_are_selectable(form: str, store: PairStore, shared: Path, tmp_path: Path) -> None:
    """Each trains; in the anchor form the total is the alignment, in the others it is not."""
    train_ecg_cmr(tiny(form=form, learned_temperature=True), store, tmp_path, shared=shared)
    row = read_rows(tmp_path / "contrast")[-1]
    assert (row["train_total"] == pytest.approx(row["train_alignment"])) == (form == "anchor")
    assert (row["validation_temperature"] == pytest.approx(0.07, abs=1e-6)) == (form == "margin")


@pytest.mark.parametrize("stage", [steps.MaeStep, steps.ContrastStep])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(
    stage: type, store: PairStore, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN in the second step of a stage: nothing of that step is written, and the error says the loss."""
    genuine, seen = stage.terms, []

    def terms(self: Any, *given: Any) -> steps.Terms:
        seen.append(_weights(self.network))
        found = genuine(self, *given)
        return replace(found, total=found.total * float("nan")) if len(seen) == 2 else found

    monkeypatch.setattr(stage, "terms", terms)
    run = with_seed(tiny(), 99)
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        train_ecg_cmr(run, store, tmp_path)
    assert not list(tmp_path.glob(f"{'mae-*' if stage is steps.MaeStep else 'contrast'}/checkpoint.safetensors"))


def test_a_folder_with_another_run_is_refused_and_left_alone(
    straight: tuple[Path, Aligned], store: PairStore, shared: Path
) -> None:
    """Another seed is not continued, and ``run.json`` still describes the first run."""
    described = (straight[0] / "run.json").read_text()
    with pytest.raises(ForeignRunError, match="another config or other data"):
        train_ecg_cmr(with_seed(tiny(), 4), store, straight[0], shared=shared)
    assert (straight[0] / "run.json").read_text() == described


def test_too_few_patients_for_a_batch_are_counted(store: PairStore, tmp_path: Path) -> None:
    """Fifty patients do not fill a batch of a thousand."""
    run = replace(tiny("ecg_only"), mae=MaeStage(optim=replace(OPTIM, batch_size=1000)))
    with pytest.raises(ValueError, match="do not fill one batch of 1000"):
        train_ecg_cmr(run, store, tmp_path)


@pytest.mark.parametrize(
    ("variant", "form"), [("triplet", "pairwise"), ("volume", "triplet"), ("slice", "margin"), ("volume", "anchor")]
)
def test_a_form_that_does_not_fit_its_towers_is_refused(variant: Variant, form: str) -> None:
    """The pairwise form takes one tower, the others end-diastole and end-systole."""
    with pytest.raises(ValueError, match="expected no tower without contrast"):
        tiny(variant, form=form)


@pytest.mark.parametrize("dtype", [True, False])
def test_defect_12_a_run_takes_either_precision(dtype: bool, store: PairStore, shared: Path, tmp_path: Path) -> None:
    """With and without autocast to bfloat16 every recorded number is finite."""
    optim = replace(OPTIM, epochs=1, autocast_bfloat16=dtype)
    train_ecg_cmr(replace(tiny("slice", optim=optim), mae=MaeStage(optim=optim)), store, tmp_path)
    assert all(np.isfinite(value) for value in read_rows(tmp_path / "contrast")[0].values())


@pytest.mark.parametrize("size", ["small", "published"])
@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_variant_is_a_recipe(variant: Variant, size: str) -> None:
    """The five differ in their towers and the form alone; M and published towers, or small ones."""
    run = load_recipe(f"ecg_cmr_{variant}_{size}")
    other = load_recipe(f"ecg_cmr_ecg_only_{size}")
    assert isinstance(run, EcgCmrRun)
    assert run.recipe == f"ecg_cmr_{variant}_{size}"
    assert tuple(tower.look for tower in run.towers) == LOOKS[variant]
    assert replace(run, recipe=other.recipe, towers=(), contrast=None) == other
    assert (run.encoder.width, run.encoder.depth) == {"small": (128, 3), "published": (576, 12)}[size]
    assert {tower.size for tower in run.towers} <= {size}
