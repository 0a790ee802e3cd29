"""Training of the classifier: the class alone, or the ejection fraction beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from training.enf import classify, study
from training.enf.classify import Labelled, classifier_logits, train_classifier
from training.enf.config import EnfRun
from training.enf.latents import Latents
from training.models.invariant_transformer import InvariantTransformer
from training.recipes.enf_small import recipe

HEARTS, LATENTS, CONTEXT = 96, 16, 4


def run(lvef_weight: float, epochs: int = 4) -> EnfRun:
    """A tiny classifier of 16 latents."""
    made = recipe()
    shape = replace(made.classifier.shape, width=16, layers=1, heads=2, dropout=0.0)
    classifier = replace(
        made.classifier, shape=shape, epochs=epochs, batch_size=16, noise=0.0, lvef_weight=lvef_weight, views=1
    )
    return replace(made, shape=replace(made.shape, latents=LATENTS, context_width=CONTEXT), classifier=classifier)


def hearts(seed: int = 0) -> Labelled:
    """Hearts whose first context number is their ejection fraction, under noise."""
    rng = np.random.default_rng(seed)
    lvef = rng.uniform(15.0, 70.0, HEARTS)
    contexts = rng.normal(size=(HEARTS, 1, 2, LATENTS, CONTEXT)).astype(np.float32)
    contexts[..., 0] += ((lvef - 40.0) / 15.0)[:, None, None, None].astype(np.float32)
    task = recipe().task
    return Labelled(
        latents=Latents(contexts_NV2LC=contexts, psnr_db=np.full((HEARTS, 1, 2), 25.0, np.float32), seconds=0.0),
        positive=lvef <= 40.0,
        targets=task.targets(lvef),
        lvef_percent=lvef,
    )


def logits_of(network: InvariantTransformer, labelled: Labelled) -> np.ndarray:
    """Of the plain views."""
    return classifier_logits(network, labelled.latents.contexts_NV2LC[:, 0])


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_it_learns_the_class(weight: float) -> None:
    """With and without the ejection fraction beside it, new hearts are told apart."""
    network = train_classifier(run(weight, epochs=12), hearts(0), hearts(1), seed=0)
    fresh = hearts(2)
    assert ((logits_of(network, fresh) > 0) == fresh.positive).mean() > 0.85


def test_the_ejection_fraction_teaches_the_network() -> None:
    """It changes the network, by what it says: other ejection fractions of the same classes give another network."""
    training, validation = hearts(0), hearts(1)
    told = logits_of(train_classifier(run(1.0), training, validation, seed=0), validation)
    other = replace(training, lvef_percent=training.lvef_percent[::-1].copy())
    otherwise = logits_of(train_classifier(run(1.0), other, validation, seed=0), validation)
    assert np.abs(told - otherwise).max() > 1e-3


def test_without_a_weight_the_ejection_fraction_is_not_looked_at() -> None:
    """A weight of 0 gives the same bits whatever the ejection fractions are."""
    training, validation = hearts(0), hearts(1)
    told = logits_of(train_classifier(run(0.0), training, validation, seed=0), validation)
    other = replace(training, lvef_percent=np.full(HEARTS, np.nan))
    assert np.array_equal(told, logits_of(train_classifier(run(0.0), other, validation, seed=0), validation))


def test_the_estimate_is_trained_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The linear estimate of the ejection fraction moves, and is no part of what comes back."""
    made: list[tuple[nn.Linear, torch.Tensor]] = []
    learner_of = classify._learner

    def learner(*given: object) -> object:
        found = learner_of(*given)
        made.append((found.estimate, found.estimate.weight.detach().clone()))
        return found

    monkeypatch.setattr(classify, "_learner", learner)
    network = train_classifier(run(1.0), hearts(0), hearts(1), seed=0)
    ((estimate, before),) = made
    assert not torch.equal(estimate.weight, before)
    plain = classify.new_classifier(run(0.0), hearts(0).latents)
    assert set(network.state_dict()) == set(plain.state_dict())


def test_the_comparison_trains_on_the_class_alone(tmp_path: object) -> None:
    """All models of the comparison learn from the same targets; the release may know more."""
    assert recipe().classifier.lvef_weight > 0.0
    options = study.StudyOptions(
        recipe="enf_small",
        data=None,
        cmr=study.CmrOptions(),
        out=tmp_path,
        docs=None,
        sizes=(4, 2, 2),
        seeds=1,
        first_seed=2,
        dicom_studies=0,
        segmentation_hearts=0,
        contours=None,
        workers=1,
        command="",
    )
    protocol = study._protocol(options)
    assert protocol.run.classifier.lvef_weight == 0.0
    assert protocol.run.classifier.views == 4 < recipe().classifier.views
    assert protocol.seeds == (2,)
