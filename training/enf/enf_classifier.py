"""The Equivariant Neural Field as a classifier of the comparison: decoder, fits and Transformer behind ``fit`` and ``logits``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training.enf.classify import Labelled, classifier_logits, new_classifier, train_classifier
from training.enf.config import EnfRun
from training.enf.latents import FieldRunner, Latents, fit_views, frozen_field
from training.enf.meta import meta_digest, meta_learn, seconds_of
from training.enf.pairs import Pairs
from training.models.enf_risk_net import EnfRiskNet
from training.models.invariant_transformer import InvariantTransformer
from training.models.latent_cloud import initial_cloud

Progress = Callable[[str], None]
_UNTRAINED = "the field is not trained; call fit first"


class EnfClassifier:
    """Fit contexts, read them by relative poses. What lies in ``folder`` is not done twice.

    Args:
        run: the recipe.
        folder: of decoder, fits and classifier of these hearts.
        device: of decoder and fits, such as ``cuda``; the classifier is small and stays on the CPU.
    """

    name = "ENF"

    def __init__(self, run: EnfRun, folder: Path, device: str = "cpu") -> None:
        self.run, self.folder, self.device = run, folder, device
        self._network: EnfRiskNet | None = None
        self._runner: FieldRunner | None = None
        self.training_s = 0.0

    @property
    def settings(self) -> str:
        """Everything of the recipe that decides the answers."""
        run = self.run
        return repr((run.seed, run.task, run.shape, run.fit, run.meta, run.classifier))

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
        """Meta-learn the decoder, fit views of the training hearts, train the classifier.

        Fits and classifier lie under the digest of what they were made from, so that nothing else is ever taken for them.
        """
        tell = _counted("decoder iteration", progress)
        enf = meta_learn(self.run, train, self.folder, device=self.device, progress=tell)
        field = frozen_field(self.run, enf, train.spec.size_px)
        self._runner = FieldRunner(field, train.spec.size_px, self.device)
        views = self.run.classifier.views
        made_from = meta_digest(self.run, train)
        cache = self.folder / f"fits-{_digest(made_from, seed)}"
        latents = fit_views(
            self._runner, train, views=views, seed=seed, cache=cache, progress=_counted("view", progress)
        )
        checked = self._runner.fit(validation.views(np.arange(len(validation))))
        name = _digest(made_from, seed, self.run.task, self.run.classifier, validation.sha256)
        file = self.folder / f"classifier-{name}.safetensors"
        classifier, classifier_s = self._classifier(file, train, latents, validation, checked, seed, progress)
        self.training_s = seconds_of(self.folder) + latents.seconds + classifier_s
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
        self,
        file: Path,
        train: Pairs,
        fits: Latents,
        validation: Pairs,
        checked: Latents,
        seed: int,
        progress: Progress,
    ) -> tuple[InvariantTransformer, float]:
        """Return the classifier and the seconds that its training took."""
        if file.exists():
            network = new_classifier(self.run, fits)
            network.load_state_dict(load_file(file))
            with safe_open(file, framework="pt") as opened:
                return network.eval(), float(opened.metadata()["seconds"])
        started = time.perf_counter()
        network = train_classifier(
            self.run,
            self._labelled(train, fits),
            self._labelled(validation, checked),
            seed=seed,
            progress=_counted("classifier epoch", progress),
        )
        seconds = time.perf_counter() - started
        partial = file.with_suffix(".partial")
        tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(tensors, partial, metadata={"seconds": str(seconds)})
        partial.replace(file)
        return network, seconds

    def _labelled(self, pairs: Pairs, fits: Latents) -> Labelled:
        task = self.run.task
        positive = pairs.labels(task.threshold_percent)
        return Labelled(
            latents=fits,
            positive=positive,
            targets=task.targets(pairs.lvef_percent),
            lvef_percent=pairs.lvef_percent,
        )


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _counted(what: str, progress: Progress) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        progress(f"ENF: {what} {done} of {total}")

    return tell
