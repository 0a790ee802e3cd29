"""The Equivariant Neural Field as a classifier of the comparison: decoder, fits and Transformer behind ``fit`` and ``logits``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from training.enf.classify import Labelled, classifier_logits, new_classifier, train_classifier
from training.enf.config import EnfRun
from training.enf.latents import FieldRunner, Latents, fit_views, frozen_field
from training.enf.meta import meta_learn
from training.enf.pairs import Pairs
from training.models.enf_risk_net import EnfRiskNet
from training.models.invariant_transformer import InvariantTransformer
from training.models.latent_cloud import initial_cloud

Progress = Callable[[str], None]
_log = structlog.get_logger()
_CLASSIFIER = "classifier.safetensors"
_UNTRAINED = "the field is not trained; call fit first"


class EnfClassifier:
    """Fit contexts, read them by relative poses. What lies in ``folder`` is not done twice.

    Args:
        run: the recipe.
        folder: of decoder, fits and classifier of these hearts.
    """

    name = "ENF"

    def __init__(self, run: EnfRun, folder: Path) -> None:
        self.run, self.folder = run, folder
        self._network: EnfRiskNet | None = None
        self._runner: FieldRunner | None = None

    @property
    def network(self) -> EnfRiskNet:
        """The whole network, fit included."""
        if self._network is None:
            raise RuntimeError(_UNTRAINED)
        return self._network

    @property
    def classifier(self) -> InvariantTransformer:
        """The Transformer that reads fitted contexts."""
        classifier = self.network.classifier
        assert isinstance(classifier, InvariantTransformer)
        return classifier

    def fit(self, train: Pairs, validation: Pairs, *, seed: int, progress: Progress) -> None:
        """Meta-learn the decoder, fit views of the training hearts, train the classifier."""
        enf = meta_learn(self.run, train, self.folder, progress=_counted("decoder iteration", progress))
        field = frozen_field(self.run, enf, train.spec.size_px)
        self._runner = FieldRunner(field, train.spec.size_px)
        views = self.run.classifier.views
        cache = self.folder / "fits"
        latents = fit_views(
            self._runner, train, views=views, seed=seed, cache=cache, progress=_counted("view", progress)
        )
        checked = self._runner.fit(validation.views(np.arange(len(validation))))
        classifier = self._classifier(train, latents, validation, checked, seed, progress)
        cloud = initial_cloud(self.run.shape.latents, self.run.shape.context_width)
        self._network = EnfRiskNet(field, classifier, cloud.poses).eval()

    def latents(self, images_N2SS: NDArray[np.float32]) -> Latents:
        """Return the fits of images, one view each."""
        if self._runner is None:
            raise RuntimeError(_UNTRAINED)
        return self._runner.fit(images_N2SS)

    def logits(self, images_N2SS: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return float64 [N]; positive means a positive heart of the task."""
        contexts = self.latents(images_N2SS).contexts_NV2LC[:, 0]
        return self.logits_of_contexts(contexts)

    def logits_of_contexts(self, contexts_N2LC: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return float64 [N] of fitted contexts."""
        return classifier_logits(self.classifier, contexts_N2LC)

    def _classifier(  # noqa: PLR0913, PLR0917 - two sets of hearts with their fits
        self, train: Pairs, fits: Latents, validation: Pairs, checked: Latents, seed: int, progress: Progress
    ) -> InvariantTransformer:
        threshold = self.run.task.threshold
        file = self.folder / _CLASSIFIER
        if file.exists():
            network = new_classifier(self.run, fits)
            network.load_state_dict(load_file(file))
            return network.eval()
        network = train_classifier(
            self.run,
            Labelled(latents=fits, positive=train.labels(threshold)),
            Labelled(latents=checked, positive=validation.labels(threshold)),
            seed=seed,
            progress=_counted("classifier epoch", progress),
        )
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)
        return network


def _counted(what: str, progress: Progress) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        progress(f"ENF: {what} {done} of {total}")

    return tell
