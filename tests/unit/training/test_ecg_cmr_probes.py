"""Probes of embeddings: masked, standardised, chosen on validation only, and a frozen encoder that stays as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from training.ecg_cmr.evaluation import Answers, Cohort
from training.ecg_cmr.neural_probes import FitOptions, Probe, fine_tune, mean_loss, mlp_probe, train_epoch
from training.ecg_cmr.probes import (
    Part,
    Parts,
    Probed,
    Scale,
    demographics_only,
    each_part,
    linear_probe,
    with_demographics,
)
from training.metrics import auroc, r_squared

QUICK = FitOptions(learning_rates=(1e-2,), batch_rows=32, epochs=40, patience=10)
WEIGHTS = np.random.default_rng(99).standard_normal((6, 3))


def part(name: str, count: int, seed: int) -> Part:
    """Embeddings of which two quantities and a condition follow linearly; a quarter of one quantity is not known."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((count, 6)) * 3 + 1
    latent = (inputs - 1) / 3 @ WEIGHTS
    truth = latent[:, :2] * (10, 0.5) + (55, 5) + 0.3 * rng.standard_normal((count, 2)) * (10, 0.5)
    truth[::4, 1] = np.nan
    label = (latent[:, 2:] + 0.3 * rng.standard_normal((count, 1)) > 1).astype(float)
    label[::5] = np.nan
    cohort = Cohort(
        keys=tuple(f"{name}-{row}" for row in range(count)),
        patients=tuple(f"{name}-{row}" for row in range(count)),
        targets=("lvef", "cardiac_output"),
        truth_NT=truth,
        conditions=("heart_failure",),
        label_ND=label,
        demographics=("age_years", "male"),
        demographics_NG=np.stack([50 + 5 * latent[:, 0], rng.random(count) < 0.5], axis=1).astype(float),
    )
    return Part(inputs=inputs.astype(np.float32), cohort=cohort)


@pytest.fixture(scope="module")
def parts() -> Parts:
    """160, 60 and 80 patients."""
    return Parts(train=part("a", 160, 0), validation=part("b", 60, 1), test=part("c", 80, 2))


class Encoder(nn.Module):
    """Batch statistics and dropout, of which a frozen encoder shows neither."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Dropout(0.2), nn.Linear(12, 8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return embeddings [B, 8]."""
        return self.layers(inputs)


def _accuracy(probed: Probed) -> tuple[float, float, float]:
    cohort, given = probed.answers.cohort, probed.answers
    known = np.isfinite(cohort.truth_NT)
    r2 = [r_squared(cohort.truth_NT[known[:, at], at], given.given_NT[known[:, at], at]) for at in (0, 1)]
    labelled = np.isfinite(cohort.label_ND[:, 0])
    return (*r2, auroc(cohort.label_ND[labelled, 0], given.probability_ND[labelled, 0]))


def _poisoned(of: Part, *, test: bool) -> Part:
    """The same rows with other truths."""
    shift = 30.0 if test else 0.0
    truth, label = of.cohort.truth_NT + shift, 1 - of.cohort.label_ND
    return replace(of, cohort=replace(of.cohort, truth_NT=truth, label_ND=label))


def _same(first: Answers, second: Answers) -> bool:
    return np.array_equal(first.given_NT, second.given_NT) and np.array_equal(
        first.probability_ND, second.probability_ND
    )


def test_the_linear_probe_reads_what_is_linear(parts: Parts) -> None:
    """Targets in their own units and a probability, though a quarter of the values is missing."""
    lvef, output, failure = _accuracy(linear_probe(parts))
    assert lvef > 0.9
    assert output > 0.9
    assert failure > 0.9


def test_the_mlp_probe_reads_it_too(parts: Parts) -> None:
    """Trained with the masked loss on standardised targets."""
    assert min(_accuracy(mlp_probe(parts, QUICK))) > 0.8


def test_fine_tuning_moves_a_copy_and_reads_it_too(parts: Parts) -> None:
    """The encoder that was given keeps its weights."""
    encoder = Encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert min(_accuracy(fine_tune(encoder, 8, parts, options=QUICK))) > 0.7
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("kind", ["linear", "mlp", "fine_tune"])
def test_what_is_asked_about_neither_teaches_nor_chooses(parts: Parts, kind: str) -> None:
    """Other truths in the test part change no answer and no choice; other truths in validation may."""
    probes = {
        "linear": linear_probe,
        "mlp": lambda given: mlp_probe(given, replace(QUICK, epochs=3)),
        "fine_tune": lambda given: fine_tune(Encoder(), 8, given, options=replace(QUICK, epochs=3)),
    }
    first = probes[kind](parts)
    second = probes[kind](replace(parts, test=_poisoned(parts.test, test=True)))
    assert _same(first.answers, second.answers)
    assert first.chosen == second.chosen


def test_the_validation_part_chooses_each_penalty(parts: Parts) -> None:
    """Of a wild and a mild penalty the mild one; where validation contradicts training, the strongest; an end is said."""
    assert (
        linear_probe(parts, alphas=(1e5, 1.0), inverse_strengths=(1.0,)).chosen[0]
        == "lvef: alpha 1 (the end of the grid)"
    )
    rng = np.random.default_rng(3)
    truth = rng.permutation(parts.validation.cohort.truth_NT, axis=0)
    shuffled = replace(parts.validation, cohort=replace(parts.validation.cohort, truth_NT=truth))
    assert "alpha 100000 " in linear_probe(replace(parts, validation=shuffled)).chosen[0]
    assert "learning rate 0.01" in mlp_probe(parts, replace(QUICK, learning_rates=(1e-6, 1e-2), epochs=4)).chosen[0]


def test_a_value_that_was_not_measured_counts_in_no_loss(parts: Parts) -> None:
    """The loss of rows without truth is the loss of the rows with it: nothing is filled in, no row is dropped whole."""
    scale = Scale.of(parts.train.cohort.truth_NT)
    head = nn.Linear(6, 3)
    network = Probe(nn.Identity(), head, frozen=True)
    found = mean_loss(network, parts.test, scale, "cpu")
    cohort = parts.test.cohort
    with torch.no_grad():
        given = head(torch.from_numpy(parts.test.inputs)).numpy()
    squared = (given[:, :2] - scale.to(cohort.truth_NT)) ** 2
    logit = given[:, 2:]
    entropy = np.logaddexp(0, logit) - cohort.label_ND * logit
    assert found == pytest.approx(np.nanmean(np.concatenate([squared, entropy], axis=1)), rel=1e-5)


def test_defect_6_the_reported_loss_is_a_mean_whatever_the_batches(parts: Parts) -> None:
    """With steps of size 0 an epoch in uneven batches reports what one batch of everything reports."""
    scale = Scale.of(parts.train.cohort.truth_NT)
    network = Probe(nn.Identity(), nn.Linear(6, 3), frozen=True)
    still = torch.optim.SGD(network.parameters(), lr=0.0)
    expected = mean_loss(network, parts.train, scale, "cpu")
    for batch_rows in (7, 50, 1000):
        found = train_epoch(network, parts.train, scale, still, replace(QUICK, batch_rows=batch_rows))
        assert found == pytest.approx(expected, rel=1e-5)


def test_defect_4_a_frozen_encoder_moves_neither_weights_nor_batch_statistics(parts: Parts) -> None:
    """After steps in training mode every tensor of the encoder is as before, and an answer does not depend on its batch."""
    encoder = Encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    network = Probe(encoder, nn.Linear(8, 3), frozen=True)
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.1)
    scale = Scale.of(parts.train.cohort.truth_NT)
    for _ in range(3):
        train_epoch(network, parts.train, scale, optimizer, QUICK)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    network.train()
    inputs = torch.from_numpy(parts.test.inputs)
    torch.testing.assert_close(network(inputs)[:2], network(inputs[:2]))
    moving = Probe(Encoder(), nn.Linear(8, 3), frozen=False)
    train_epoch(moving, parts.train, scale, torch.optim.SGD(moving.parameters(), lr=0.1), QUICK)
    assert not torch.equal(before["layers.1.running_mean"], moving.encoder.state_dict()["layers.1.running_mean"])


def test_defect_3_validation_and_answers_draw_nothing(parts: Parts) -> None:
    """Asked twice, an encoder with dropout gives one loss and one answer; two runs of one seed give one model."""
    network = Probe(Encoder(), nn.Linear(8, 3), frozen=False)
    scale = Scale.of(parts.train.cohort.truth_NT)
    assert mean_loss(network, parts.validation, scale, "cpu") == mean_loss(network, parts.validation, scale, "cpu")
    first, second = (fine_tune(Encoder(), 8, parts, options=replace(QUICK, epochs=2)) for _ in range(2))
    assert _same(first.answers, second.answers)


def test_defect_7_demographics_alone_and_beside_the_embedding(parts: Parts) -> None:
    """Both run, and the columns are what the probe reads: age tells of a quantity that follows age."""
    alone = linear_probe(each_part(parts, lambda each: demographics_only(each.cohort)))
    assert 0.05 < _accuracy(alone)[0] < 0.99
    both = each_part(parts, with_demographics)
    assert both.train.inputs.shape == (160, 8)
    assert _accuracy(linear_probe(both))[0] > 0.9
    assert _accuracy(mlp_probe(both, QUICK))[0] > 0.8


def test_demographics_that_are_missing_are_not_filled_in(parts: Parts) -> None:
    """A row without its age is counted and refused, and so is a cohort without columns."""
    people = parts.train.cohort.demographics_NG.copy()
    people[3, 0] = np.nan
    with pytest.raises(ValueError, match="age_years: 1"):
        demographics_only(replace(parts.train.cohort, demographics_NG=people))
    with pytest.raises(ValueError, match="at least age and sex"):
        demographics_only(replace(parts.train.cohort, demographics=(), demographics_NG=np.empty((160, 0))))
    with pytest.raises(ValueError, match="expected embeddings"):
        with_demographics(replace(parts.train, inputs=np.zeros((160, 12, 5), np.float32)))


def test_a_patient_in_two_parts_is_refused(parts: Parts) -> None:
    """As are inputs of other rows, other columns, and targets or conditions nothing can be learnt of."""
    with pytest.raises(ValueError, match="80 patients are in two parts"):
        replace(parts, validation=parts.test)
    with pytest.raises(ValueError, match="expected one a row"):
        replace(parts.train, inputs=np.zeros((3, 6)))
    with pytest.raises(ValueError, match="other targets"):
        replace(parts, test=replace(parts.test, cohort=replace(parts.test.cohort, targets=("lvef", "lvedv"))))
    blank = replace(parts.train.cohort, truth_NT=np.full((160, 2), np.nan))
    with pytest.raises(ValueError, match="lvef is known of 0 training"):
        linear_probe(replace(parts, train=replace(parts.train, cohort=blank)))
    with pytest.raises(ValueError, match="no value in the training part"):
        mlp_probe(replace(parts, train=replace(parts.train, cohort=blank)), QUICK)
    healthy = replace(parts.train.cohort, label_ND=np.zeros((160, 1)))
    with pytest.raises(ValueError, match="heart_failure: one class only"):
        linear_probe(replace(parts, train=replace(parts.train, cohort=healthy)))


def test_a_loss_that_is_not_finite_ends_the_training(parts: Parts) -> None:
    """Before the step, so that no weight is lost to it."""
    broken = parts.train.inputs.copy()
    broken[0, 0] = np.inf
    network = Probe(nn.Identity(), nn.Linear(6, 3), frozen=True)
    scale = Scale.of(parts.train.cohort.truth_NT)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train_epoch(network, replace(parts.train, inputs=broken), scale, optimizer, replace(QUICK, batch_rows=200))
    assert all(torch.isfinite(weight).all() for weight in network.parameters())
    with pytest.raises(ValueError, match="at least one learning rate"):
        replace(QUICK, learning_rates=())
