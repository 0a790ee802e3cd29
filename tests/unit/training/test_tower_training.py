"""Pre-training of the CMR towers: missing numbers, equal changes, exact resume, and frozen for good.

Tests named after a defect check that the one of this number in the published code is not ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from training.checkpoint import load_checkpoint
from training.config import OptimConfig
from training.data.patient_split import PUBLISHED_SHARES, part_of
from training.ecg_cmr import tower_training
from training.ecg_cmr.frozen import Frozen
from training.ecg_cmr.pair_source import PairEntry, pair_key
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.store_build import build_pair_store
from training.ecg_cmr.tower_inputs import CmrAugment, Look, Seen, changed_alike, seen_by
from training.ecg_cmr.tower_training import (
    SupervisedTower,
    TowerConfig,
    frozen_tower,
    masked_squares,
    measured_by,
    target_scale,
    train_tower,
    validation_loss,
)
from training.loop import ForeignRunError
from training.models.cmr_towers import build_tower

SLICES, PHASES, SIDE = 4, 3, 32


@dataclass(frozen=True, kw_only=True)
class Discs:
    """Bright discs: the one of end-diastole is as large as LVEDV says, that of end-systole as LVESV says."""

    count: int = 60
    salt: str = "discs"
    shares: Mapping[str, int] = field(default_factory=lambda: PUBLISHED_SHARES)
    spec: Mapping[str, Any] = field(default_factory=dict)
    name = "discs"

    def entries(self) -> Sequence[PairEntry]:
        return [self._entry(number) for number in range(self.count)]

    def _entry(self, number: int) -> PairEntry:
        large, small = self._sizes(number)
        day = date(2020, 1, 1)
        return PairEntry(
            key=pair_key(f"disc-{number}", day, day),
            patient=f"disc-{number}",
            ecg_on=day,
            cmr_on=day,
            targets={"lvedv": 100 + 20 * large, "lvesv": math.nan if number % 3 == 0 else 50 + 5 * small},
            diseases={},
        )

    def _sizes(self, number: int) -> tuple[float, float]:
        large, small = np.random.default_rng(number).uniform(3, 12, 2)
        return float(large), float(small)

    def read(self, number: int) -> Mapping[str, NDArray[Any]]:
        rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        discs = [(np.hypot(rows, columns) < size).astype(np.float16) for size in self._sizes(number)]
        volumes = np.repeat(np.stack(discs)[:, None], SLICES, axis=1)
        return {
            "volumes": volumes,
            "slice_mask": np.arange(SLICES) < SLICES - 1,
            "cine": np.stack([discs[0], discs[1], discs[0]]),
        }


OPTIM = OptimConfig(
    epochs=3,
    batch_size=8,
    learning_rate=3e-3,
    weight_decay=0.01,
    warmup_fraction=0.1,
    gradient_clip=1.0,
    autocast_bfloat16=False,
)


def config_of(look: Look = "ed_volume", **changes: Any) -> TowerConfig:
    """A run of seconds."""
    fields: dict[str, Any] = {
        "look": look,
        "size": "small",
        "targets": ("lvedv", "lvesv"),
        "seed": 1,
        "optim": OPTIM,
        "slices": SLICES,
    }
    return TowerConfig(**fields | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """Sixty subjects of discs."""
    return build_pair_store(Discs(), tmp_path_factory.mktemp("discs"))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything a network holds."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two networks are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("look", get_args(Look))
def test_each_tower_sees_its_part(look: Look, store: PairStore) -> None:
    """Mid slice, cine, or the volume of its own phase with the mask; float32, whatever is stored."""
    seen = seen_by(store, look, [3, 1])
    assert seen.images.dtype == torch.float32
    stored = {name: torch.from_numpy(store.read(name, [3, 1])).float() for name in ("volumes", "cine", "slice_mask")}
    expected = {
        "slice": stored["cine"][:, None, 0],
        "slice_time": stored["cine"][:, None],
        "ed_volume": stored["volumes"][:, None, 0],
        "es_volume": stored["volumes"][:, None, 1],
    }
    assert torch.equal(seen.images, expected[look])
    assert (seen.mask_BD is not None) == look.endswith("volume")
    assert seen.mask_BD is None or torch.equal(seen.mask_BD, stored["slice_mask"])
    assert config_of(look).tower().eval()(*seen.arguments()).shape[0] == 2
    with pytest.raises(ValueError, match="no look 'echo'"):
        seen_by(store, "echo", [0])  # type: ignore[arg-type]


def test_defect_3_both_phases_of_a_subject_change_alike() -> None:
    """Equal images of end-diastole and end-systole stay equal, every slice alike; subjects differ; nothing is mirrored."""
    image = torch.zeros(6, 1, SLICES, SIDE, SIDE)
    image[:, :, :, 6:26, 12:18] = 1.0
    image[:, :, :, 6:12, 18:22] = 0.6
    seen = (Seen(image, torch.ones(6, SLICES)), Seen(image.clone(), None))
    one, other = changed_alike(seen, CmrAugment(), torch.Generator().manual_seed(0))
    assert torch.equal(one.images, other.images)
    assert torch.allclose(one.images[:, :, 0], one.images[:, :, -1], atol=1e-6)
    assert not torch.allclose(one.images[0], one.images[1], atol=0.05)
    assert not torch.allclose(one.images, image, atol=0.05)
    likeness = [float((each * image[0]).sum() - (each * image[0].flip(-1)).sum()) for each in one.images]
    assert min(likeness) > 0
    assert one.mask_BD is seen[0].mask_BD


def test_defect_8_no_change_means_both_phases_as_they_are() -> None:
    """Without an augmentation nothing is changed and neither phase is left out."""
    seen = (Seen(torch.rand(2, 1, 3, 8, 8), None), Seen(torch.rand(2, 1, 3, 8, 8), None))
    found = changed_alike(seen, None, torch.Generator())
    assert len(found) == 2
    assert all(a.images is b.images for a, b in zip(found, seen, strict=True))


def test_change_keeps_the_background_and_the_range() -> None:
    """What turns in from outside is the darkest value; the grey range of a subject stays."""
    image = torch.full((4, 1, 2, SIDE, SIDE), -1.2)
    image[..., 8:24, 8:24] = 2.0
    (seen,) = changed_alike([Seen(image, None)], CmrAugment(turn_degrees=40), torch.Generator().manual_seed(0))
    assert seen.images.min() == pytest.approx(-1.2, abs=1e-5)
    assert seen.images.max() <= 2.0 + 1e-5
    assert seen.images[..., 15:17, 15:17] == pytest.approx(2.0, abs=1e-4)
    assert seen.images[..., 0, 0] == pytest.approx(-1.2, abs=1e-5)


def test_a_missing_number_leaves_out_itself_only() -> None:
    """Errors of the measured numbers count, those of missing ones do not, and no gradient becomes NaN."""
    predicted = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    squares, count = masked_squares(predicted, torch.tensor([[0.0, torch.nan], [1.0, 4.0]]))
    assert (float(squares.detach()), int(count)) == (1 + 4 + 0, 3)
    squares.backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[2.0, 0.0], [4.0, 0.0]]


def test_targets_are_scaled_by_what_was_measured() -> None:
    """Mean and spread skip what is missing; back in units they are the targets; what cannot be scaled is refused."""
    targets = np.array([[100.0, np.nan], [120.0, 4.0], [140.0, 8.0]])
    mean, spread = target_scale(targets, ("a", "b"))
    assert mean.tolist() == [120.0, 6.0]
    assert spread.numpy() == pytest.approx(np.array([np.std([100, 120, 140]), 2.0]))
    model = SupervisedTower(build_tower("slice", "small"), 2).eval()
    model.mean, model.spread = mean, spread
    image = torch.rand(2, 1, 32, 32)
    assert torch.allclose(model.standardised(model.in_units(image)), model(image), atol=1e-5)
    with pytest.raises(ValueError, match="b: measured in less than two"):
        target_scale(targets[:2], ("a", "b"))
    with pytest.raises(ValueError, match="a: the same in all"):
        target_scale(np.array([[1.0], [1.0]]), ("a",))


def test_a_tower_learns_what_its_volume_shows(store: PairStore, tmp_path: Path) -> None:
    """In a few epochs the volume at end-diastole tells LVEDV, in millilitre."""
    optim = replace(OPTIM, epochs=14, learning_rate=1e-2)
    config = config_of(targets=("lvedv",), optim=optim, augment=None)
    model = train_tower(store, config, tmp_path)
    truth = store.subset("training").targets(["lvedv"])[:, 0]
    found = measured_by(model, store.subset("training"), config)[:, 0]
    assert np.corrcoef(truth, found)[0, 1] > 0.9
    assert abs(float(np.mean(found - truth))) < 0.3 * truth.std()


def test_a_killed_run_goes_on_to_the_same_bits(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first epoch and started again, weights and curves are those of one go."""
    config = config_of("es_volume")
    whole = weights(train_tower(store, config, tmp_path / "whole"))
    epoch = tower_training._epoch

    def dying(run: Any, number: int) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return epoch(run, number)

    monkeypatch.setattr(tower_training, "_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        train_tower(store, config, tmp_path / "killed")
    monkeypatch.undo()
    assert same(weights(train_tower(store, config, tmp_path / "killed")), whole)
    assert (tmp_path / "killed/curves.csv").read_text() == (tmp_path / "whole/curves.csv").read_text()
    with pytest.raises(ForeignRunError):
        train_tower(store, replace(config, seed=2), tmp_path / "whole")


def test_defect_14_learning_and_scaling_never_see_the_other_parts(tmp_path: Path) -> None:
    """Wild truths of validation and test patients change no weight: one hash split serves every stage."""

    @dataclass(frozen=True, kw_only=True)
    class Wild(Discs):
        def _entry(self, number: int) -> PairEntry:
            entry = super()._entry(number)
            wild = part_of(entry.patient, self.salt) != "training"
            return replace(entry, targets={"lvedv": 9e9, "lvesv": 0.0}) if wild else entry

    config = config_of(optim=replace(OPTIM, epochs=1))
    models = [
        weights(train_tower(build_pair_store(source, tmp_path / source.__class__.__name__), config, tmp_path / name))
        for source, name in ((Discs(), "run"), (Wild(), "wild run"))
    ]
    assert same(*models)


def test_defect_6_the_loss_is_a_mean_over_numbers(store: PairStore) -> None:
    """It does not depend on the batch, no random change touches it, and predicting the mean costs about one variance."""
    config = config_of()
    torch.manual_seed(0)
    model = SupervisedTower(config.tower(), 2)
    model.mean, model.spread = target_scale(store.targets(config.targets), config.targets)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    losses = [validation_loss(model, store, config, batch=batch) for batch in (1, 7, 60)]
    assert losses == pytest.approx([1.0] * 3, rel=1e-4)
    assert validation_loss(model, store, replace(config, augment=None)) == pytest.approx(losses[0], rel=1e-6)


def test_defect_3_validation_is_never_augmented(
    store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random change is asked for by training batches only."""
    asked: list[int] = []
    change = tower_training.changed_alike

    def counting(seen: Sequence[Seen], augment: CmrAugment | None, generator: torch.Generator) -> tuple[Seen, ...]:
        asked.append(len(seen[0].images))
        return change(seen, augment, generator)

    monkeypatch.setattr(tower_training, "changed_alike", counting)
    train_tower(store, config_of("slice", optim=replace(OPTIM, epochs=1)), tmp_path)
    steps = len(store.subset("training")) // OPTIM.batch_size
    assert asked == [OPTIM.batch_size] * steps


@pytest.mark.parametrize("half", [False, True])
def test_defect_12_both_precisions_train(half: bool, store: PairStore, tmp_path: Path) -> None:
    """Half the bytes or not, the run ends with finite weights; no dtype is asserted away."""
    optim = replace(OPTIM, epochs=1, autocast_bfloat16=half)
    model = train_tower(store, config_of("slice", optim=optim), tmp_path)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


class Pair(nn.Module):
    """A frozen tower below a head that learns."""

    def __init__(self, tower: Frozen) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.width, 2)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return what the head says."""
        return self.head(self.tower(*inputs))


@pytest.mark.parametrize("look", ["slice", "slice_time", "ed_volume"])
def test_defect_4_frozen_means_frozen(look: Look, store: PairStore) -> None:
    """Steps of training in train mode change no weight and no BatchNorm statistic; who else is in the batch says nothing."""
    tower = config_of(look).tower()
    tower.train()(*seen_by(store, look, range(8)).arguments())
    pair = Pair(Frozen(tower)).train()
    before, head = weights(pair.tower), pair.head.weight.detach().clone()
    seen = seen_by(store, look, range(6))
    alone = pair.tower(*(each[:1] for each in seen.arguments()))
    optimizer = torch.optim.AdamW(pair.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        pair(*seen.arguments()).square().sum().backward()
        optimizer.step()
        pair.train()
    assert same(weights(pair.tower), before)
    assert not torch.equal(pair.head.weight, head)
    assert not any(module.training for module in pair.tower.network.modules())
    assert torch.allclose(pair.tower(*seen.arguments())[:1], alone, atol=1e-5)
    assert pair.tower.width == tower.width


def test_defect_9_each_tower_loads_by_itself(store: PairStore, tmp_path: Path) -> None:
    """The ES tower loads without an ED tower beside it; a missing or unfinished run is refused, never left as drawn."""
    config = config_of("es_volume", optim=replace(OPTIM, epochs=1))
    trained = train_tower(store, config, tmp_path / "es")
    assert same(weights(frozen_tower(tmp_path / "es", config).network), weights(trained.tower))
    with pytest.raises(FileNotFoundError, match="no trained ed_volume tower"):
        frozen_tower(tmp_path / "ed", config_of("ed_volume"))
    with pytest.raises(ValueError, match="holds 1 of 3 epochs"):
        frozen_tower(tmp_path / "es", replace(config, optim=OPTIM))
    assert load_checkpoint(tmp_path / "es", SupervisedTower(config.tower(), 2), None) is not None


def test_too_few_subjects_are_refused(store: PairStore, tmp_path: Path) -> None:
    """A batch that the training part does not fill is a clear error."""
    with pytest.raises(ValueError, match="do not fill one batch of 99"):
        train_tower(store, config_of(optim=replace(OPTIM, batch_size=99)), tmp_path)
