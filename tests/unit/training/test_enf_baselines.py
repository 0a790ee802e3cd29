"""The classifiers the field is compared with: what is exactly invariant and what is not, training, saving, resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engines.preprocess.spec import CmrSpec
from training.config import OptimConfig
from training.enf.baselines import (
    BaselineConfig,
    NotFittedError,
    ResNet50,
    ResNet50C4,
    ResNet50Rotated,
    SegmentationEf,
)
from training.enf.pairs import Pairs
from training.loop import NonFiniteLossError
from training.models.pair_resnet import PairResNet
from training.recipes.enf_small import preprocess

SIZE, WIDE = 16, 28


class TinyNet(nn.Module):
    """Two convolutions with batch normalisation: as little invariant to turns as a ResNet50."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()
        )
        self.head = nn.Linear(8 * 5 * 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.layers(image).flatten(1))[:, 0]


class BrokenNet(TinyNet):
    """Gives no number."""

    def forward(self, image: Tensor) -> Tensor:
        """Return NaN with a gradient."""
        return super().forward(image) * torch.nan


def spec() -> CmrSpec:
    """A specification at 16 pixels."""
    return preprocess(size_px=SIZE)


def config(epochs: int = 8, network: type[nn.Module] = TinyNet, batch_size: int = 8) -> BaselineConfig:
    """A short run of a tiny network."""
    return BaselineConfig(
        optim=OptimConfig(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=1e-2,
            weight_decay=0.01,
            warmup_fraction=0.1,
            gradient_clip=1.0,
            autocast_bfloat16=False,
        ),
        shift_max_px=1.0,
        network=network,
    )


def pairs(count: int, seed: int) -> Pairs:
    """Discs brighter at the top, which shrink in systole when the ejection fraction is above 40 percent."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((WIDE, WIDE)) - (WIDE - 1) / 2
    low = np.arange(count) % 2 == 0
    radius = np.stack([np.full(count, 6.0), np.where(low, 5.5, 2.0)], axis=1)[..., None, None]
    disc = (np.hypot(rows, columns) < radius) * (1.5 - rows / 8)
    noise = rng.normal(0, 0.1, (count, 2, WIDE, WIDE))
    return Pairs(
        wide_N2WW=(disc + noise).astype(np.float32),
        lvef_percent=np.where(low, 25.0, 60.0),
        keys=tuple(f"heart-{seed}-{index}" for index in range(count)),
        spec=spec(),
    )


def fitted(classifier: ResNet50, seed: int = 0) -> tuple[ResNet50, list[str]]:
    """The classifier after training, and what it said."""
    said: list[str] = []
    classifier.fit(pairs(24, 1), pairs(12, 2), seed=seed, progress=said.append)
    return classifier, said


@given(seed=st.integers(0, 2**31), turns=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_averaging_over_quarter_turns_is_exactly_invariant_and_the_plain_network_is_not(seed: int, turns: int) -> None:
    """For any weights and images the averaged logits of turned images are the same bits; the plain ones differ."""
    torch.manual_seed(seed)
    plain = ResNet50(config())
    plain._network = TinyNet().eval()
    images = np.random.default_rng(seed).random((3, 2, SIZE, SIZE), np.float32)
    turned = np.rot90(images, turns, axes=(2, 3))
    averaged = ResNet50C4(plain)
    assert np.array_equal(averaged.logits(turned), averaged.logits(images))
    assert np.abs(plain.logits(turned) - plain.logits(images)).max() > 1e-4


def test_the_full_network_averaged_is_exactly_invariant() -> None:
    """ResNet50 itself, 50 layers with random weights: the same bits after averaging, another logit without."""
    torch.manual_seed(0)
    plain = ResNet50()
    plain._network = PairResNet.fifty().eval()
    images = np.random.default_rng(0).random((2, 2, 32, 32), np.float32)
    turned = np.rot90(images, axes=(2, 3))
    averaged = ResNet50C4(plain)
    assert np.array_equal(averaged.logits(turned), averaged.logits(images))
    assert np.abs(plain.logits(turned) - plain.logits(images)).max() > 1e-4


def test_the_full_network_is_a_resnet50() -> None:
    """One logit from two channels; as many parameters as the published network with another first and last layer."""
    network = PairResNet.fifty()
    published, first, last = 25_557_032, 3 * 64 * 49, 2048 * 1000 + 1000
    assert sum(value.numel() for value in network.parameters()) == published - first + 2 * 64 * 49 - last + 2049
    assert network.eval()(torch.rand(2, 2, 64, 64)).shape == (2,)


@pytest.mark.parametrize("kind", [ResNet50, ResNet50Rotated])
def test_training_separates_the_classes(kind: type[ResNet50]) -> None:
    """Discs that shrink and discs that do not are told apart; positive means a low ejection fraction."""
    classifier, said = fitted(kind(config()))
    held = pairs(20, 3)
    logits = classifier.logits(held.views(np.arange(20)))
    assert logits.dtype == np.float64
    assert ((logits > 0) == held.labels(40.0)).mean() >= 0.95
    assert len(said) == 8


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    """Training is deterministic: the same logits for the same seed, others for another."""
    images = pairs(4, 3).views(np.arange(4))
    first, again, other = (fitted(ResNet50(config(epochs=2)), seed)[0].logits(images) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_epoch_with_the_best_validation_accuracy_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three epochs the second is the best: the final weights are those it ended with."""
    from training.enf import baselines

    states, train_epoch = [], baselines._epoch

    def recorded(classifier: ResNet50, network: nn.Module, *rest: object) -> float:
        loss = train_epoch(classifier, network, *rest)
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return loss

    qualities = iter([(0.6, -0.5), (0.9, -0.5), (0.9, -0.6)])
    monkeypatch.setattr(baselines, "_epoch", recorded)
    monkeypatch.setattr(baselines, "_quality", lambda *_: next(qualities))
    kept = fitted(ResNet50(config(epochs=3)))[0]._network.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in states[1].items())
    assert not torch.equal(kept["head.weight"], states[2]["head.weight"])


def test_a_saved_fit_is_read_and_not_repeated(tmp_path: Path) -> None:
    """After loading, the logits are the same and the same fit does nothing; with other hearts it trains again."""
    classifier, _ = fitted(ResNet50(config(epochs=2)))
    classifier.save(tmp_path / "plain.safetensors")
    read = ResNet50(config(epochs=2))
    read.load(tmp_path / "plain.safetensors")
    images = pairs(4, 3).views(np.arange(4))
    assert np.array_equal(read.logits(images), classifier.logits(images))
    assert fitted(read)[1] == []
    assert len(fitted(read, seed=1)[1]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["plain.safetensors"]


def test_a_file_of_another_classifier_is_refused(tmp_path: Path) -> None:
    """Weights trained on turned views are not taken for the plain ones."""
    fitted(ResNet50Rotated(config(epochs=1)))[0].save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="ResNet50 rotated"):
        ResNet50(config(epochs=1)).load(tmp_path / "x.safetensors")


def test_the_averaged_network_is_the_plain_one_and_not_trained_twice() -> None:
    """Fitting the averaged classifier after the plain one says nothing: the weights are shared."""
    plain, _ = fitted(ResNet50(config(epochs=1)))
    said: list[str] = []
    ResNet50C4(plain).fit(pairs(24, 1), pairs(12, 2), seed=0, progress=said.append)
    assert said == []


def test_plain_views_are_never_turned_and_rotated_ones_are() -> None:
    """The discs are brighter at the top: in plain training views always, in rotated ones only by chance."""
    hearts, rows = pairs(12, 4), np.arange(12)
    for kind, always in ((ResNet50, True), (ResNet50Rotated, False)):
        views = kind(config()).training_views(hearts, rows, np.random.default_rng(0))
        top = views[:, 0, : SIZE // 2].mean(axis=(1, 2)) > views[:, 0, SIZE // 2 :].mean(axis=(1, 2))
        assert bool(top.all()) is always


def test_plain_views_are_shifted_each_by_its_own() -> None:
    """Twelve equal hearts give twelve different training views."""
    one = pairs(1, 4)
    hearts = one.subset(np.zeros(12, np.int64))
    views = ResNet50(config()).training_views(hearts, np.arange(12), np.random.default_rng(0))
    assert len(np.unique(views.reshape(12, -1), axis=0)) == 12


def test_a_logit_does_not_depend_on_the_other_images() -> None:
    """Batch normalisation uses its trained statistics: one image alone gives its logit among others."""
    classifier, _ = fitted(ResNet50(config(epochs=1)))
    images = pairs(8, 3).views(np.arange(8))
    assert classifier.logits(images[:1]) == pytest.approx(classifier.logits(images)[:1], abs=1e-5)


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    """No logits and no file without training; too few hearts and a loss that is no number end the training."""
    with pytest.raises(NotFittedError, match="fit or load"):
        ResNet50(config()).logits(np.zeros((1, 2, SIZE, SIZE), np.float32))
    with pytest.raises(NotFittedError, match="nothing to save"):
        ResNet50(config()).save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="24 training hearts"):
        fitted(ResNet50(config(batch_size=25)))
    with pytest.raises(NonFiniteLossError, match="finite"):
        fitted(ResNet50(config(network=BrokenNet)))


def test_segmentation_scores_stacks_in_percentage_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score is the threshold minus the ejection fraction: 35 % is +5 at a threshold of 40 %, no cavity is NaN."""
    from training.enf import baselines

    answers = {"weak": 35.0, "strong": 62.0}

    def ejection(located: str, *_: object) -> float:
        if located not in answers:
            raise baselines.CavityNotFoundError
        return answers[located]

    monkeypatch.setattr(baselines, "locate_heart", lambda stack, _: stack)
    monkeypatch.setattr(baselines, "segmentation_ef", ejection)
    scores = SegmentationEf(nn.Identity(), spec(), 40.0).logits_of_stacks(["weak", "strong", "none"])
    assert scores[:2].tolist() == [5.0, -22.0]
    assert np.isnan(scores[2])
