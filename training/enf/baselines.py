"""The classifiers that the equivariant neural field is compared with: ResNet50 three ways, and the segmented volume.

A classifier has a ``name``, is trained with ``fit`` and gives ``logits`` of images; positive means an ejection fraction at or
below the threshold. ``SegmentationEf`` needs whole stacks and has ``logits_of_stacks`` instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from engines.preprocess.cmr import locate_heart
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack
from training.config import OptimConfig
from training.enf.config import Task
from training.enf.descent import descend
from training.enf.pairs import Pairs
from training.enf.segmentation import CavityNotFoundError, mean_over_turns, segmentation_ef
from training.models.pair_resnet import PairResNet
from training.optim import learning_rate_at, make_optimizer

Progress = Callable[[str], None]
"""Is told one sentence after every epoch."""


class Classifier(Protocol):
    """What the comparison asks of each competitor."""

    name: str

    @property
    def settings(self) -> str:
        """Everything but the hearts and the seed that decides the answers."""

    @property
    def training_s(self) -> float:
        """Seconds that the training took, whenever it was."""

    def fit(self, train: Pairs, validation: Pairs, *, seed: int, progress: Progress) -> None:
        """Train; equal arguments give equal weights."""

    def logits(self, images_N2SS: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return float64 [N]; positive means an ejection fraction at or below the threshold."""


OPTIM = OptimConfig(
    epochs=20,
    batch_size=32,
    learning_rate=1e-3,
    weight_decay=0.05,
    warmup_fraction=0.1,
    gradient_clip=1.0,
    autocast_bfloat16=False,
)
"""Twenty epochs of AdamW."""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """How a ResNet50 is trained.

    One epoch of 275 pairs of 64 pixels takes 7.4 s on one core (measured), so 20 epochs of two variants and three seeds
    take 15 minutes.

    Args:
        optim: AdamW, warm-up, cosine; with batch normalisation the incomplete last batch is left out.
        task: what is positive, and what they are trained on.
        shift_max_px: largest shift of the unturned views, either way.
        gain_spread, gamma_spread: an image x becomes (1 + g) x ** (1 + h), g and h uniform up to these.
        network: makes the untrained network.
    """

    optim: OptimConfig = OPTIM
    task: Task = field(default_factory=lambda: Task(condition="lvef_at_most_40", blur_percent=5.0))
    shift_max_px: float = 4.0
    gain_spread: float = 0.1
    gamma_spread: float = 0.2
    network: Callable[[], nn.Module] = PairResNet.fifty


class NotFittedError(RuntimeError):
    """A classifier was asked before it was trained or loaded."""


class ResNet50:
    """ResNet50 trained on unturned views, shifted a little; the weights of the epoch with the best validation accuracy."""

    name = "ResNet50"

    def __init__(self, config: BaselineConfig | None = None) -> None:
        self.config = config or BaselineConfig()
        self._network: nn.Module | None = None
        self._fitted_on = ""
        self.training_s = 0.0

    @property
    def settings(self) -> str:
        """Everything but the hearts and the seed that decides the answers."""
        return repr(self.config)

    def fit(self, train: Pairs, validation: Pairs, *, seed: int, progress: Progress) -> None:
        """Train unless this very fit is already held.

        Raises:
            ValueError: the training hearts do not fill one batch.
            NonFiniteLossError: a loss is not finite.
        """
        digest = self._digest(train, validation, seed)
        if self._fitted_on == digest:
            return
        torch.manual_seed(seed)
        network, started = self.config.network(), time.perf_counter()
        _train(self, network, (train, validation), seed=seed, progress=progress)
        self._network, self._fitted_on = network.eval(), digest
        self.training_s = time.perf_counter() - started

    def training_views(self, train: Pairs, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return one view of each heart, float32 [n, 2, S, S], unturned and shifted."""
        limit = self.config.shift_max_px
        shifts = rng.uniform(-limit, limit, (len(rows), 2))
        views = [train.views(rows[i : i + 1], shift_px=(shifts[i, 0], shifts[i, 1])) for i in range(len(rows))]
        return np.concatenate(views)

    def logits(self, images_N2SS: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the logits, float64 [N].

        Raises:
            NotFittedError: neither trained nor loaded.
        """
        if self._network is None:
            raise NotFittedError(f"{self.name} is not trained; call fit or load first")
        logits_N: NDArray[np.float64] = _network_logits(self._network, images_N2SS, self.config.optim.batch_size)
        return logits_N

    def save(self, path: Path) -> None:
        """Write the weights and what they were trained on, as safetensors.

        Raises:
            NotFittedError: neither trained nor loaded.
        """
        if self._network is None:
            raise NotFittedError(f"{self.name} is not trained; there is nothing to save")
        tensors = {name: value.contiguous() for name, value in self._network.state_dict().items()}
        partial = path.with_name(path.name + ".partial")
        stated = {"classifier": self.name, "fitted_on": self._fitted_on, "seconds": str(self.training_s)}
        save_file(tensors, partial, metadata=stated)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Read what ``save`` wrote; a ``fit`` on the same hearts, config and seed is then skipped.

        Raises:
            ValueError: the file holds another classifier.
        """
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
        if metadata["classifier"] != self.name:
            raise ValueError(f"{path} holds {metadata['classifier']}; expected {self.name}: name another file")
        network = self.config.network()
        network.load_state_dict(load_file(path))
        self._network, self._fitted_on = network.eval(), metadata["fitted_on"]
        self.training_s = float(metadata["seconds"])

    def _digest(self, train: Pairs, validation: Pairs, seed: int) -> str:
        settings = [self.name, repr(self.config.optim), repr(self.config.task), self.config.shift_max_px]
        settings += [self.config.gain_spread, self.config.gamma_spread, self.config.network.__qualname__, seed]
        return hashlib.sha256(json.dumps([*settings, train.sha256, validation.sha256]).encode()).hexdigest()


class ResNet50Rotated(ResNet50):
    """ResNet50 trained on views at any angle."""

    name = "ResNet50 rotated"

    def training_views(self, train: Pairs, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return one view of each heart, float32 [n, 2, S, S], at any angle and shifted."""
        return train.random_views(rows, rng)


class ResNet50C4:
    """The network of a plain ``ResNet50``, its logits averaged over the four quarter turns of the image.

    Exactly invariant: a turned image gives the same four logits in another order, which ``mean_over_turns`` ignores.

    Args:
        plain: trained here when it is not trained yet; its weights are shared.
    """

    name = "ResNet50 C4"

    def __init__(self, plain: ResNet50) -> None:
        self.plain = plain

    @property
    def settings(self) -> str:
        """Those of the plain network."""
        return self.plain.settings

    @property
    def training_s(self) -> float:
        """Seconds of the plain network's training; there is no other."""
        return self.plain.training_s

    def fit(self, train: Pairs, validation: Pairs, *, seed: int, progress: Progress) -> None:
        """Train the plain network unless this very fit is already held."""
        self.plain.fit(train, validation, seed=seed, progress=progress)

    def logits(self, images_N2SS: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the averaged logits, float64 [N]."""
        turned = [self.plain.logits(np.rot90(images_N2SS, turns, axes=(2, 3))) for turns in range(4)]
        return mean_over_turns(turned)


class SegmentationEf:
    """Threshold minus the ejection fraction of segmented volumes: needs the whole stack, not the two images.

    Args:
        network: a trained ``ShortAxisUnet``.
        spec: of the preprocessing that finds the heart.
        threshold_percent: hearts at or below it are positive.
    """

    name = "Segmentation EF"

    def __init__(self, network: nn.Module, spec: CmrSpec, threshold_percent: float) -> None:
        self.network = network
        self.spec = spec
        self.threshold_percent = threshold_percent

    @property
    def settings(self) -> str:
        """Digest of the weights, preprocessing and threshold."""
        digest = hashlib.sha256()
        for tensor in self.network.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return repr((digest.hexdigest(), self.spec, self.threshold_percent))

    def logits_of_stacks(self, stacks: Sequence[CineStack]) -> NDArray[np.float64]:
        """Return float64 [N], percentage points below the threshold; NaN where no cavity was segmented.

        Raises:
            InputRefused: no heart is found in a stack.
        """
        return np.array([self._score(stack) for stack in stacks], np.float64)

    def _score(self, stack: CineStack) -> float:
        try:
            return self.threshold_percent - segmentation_ef(locate_heart(stack, self.spec), self.spec, self.network)
        except CavityNotFoundError:
            return math.nan


def _train(
    classifier: ResNet50, network: nn.Module, pairs: tuple[Pairs, Pairs], *, seed: int, progress: Progress
) -> None:
    """Train in place; the network ends with the weights of the best epoch."""
    (train, validation), optim = pairs, classifier.config.optim
    optimizer = make_optimizer(network, optim)
    truth, images = (
        validation.labels(classifier.config.task.threshold_percent),
        validation.views(np.arange(len(validation))),
    )
    best, best_state = (-1.0, -math.inf), {}
    for epoch in range(optim.epochs):
        loss = _epoch(classifier, network, optimizer, train, (seed, epoch))
        quality = _quality(_network_logits(network, images, optim.batch_size), truth)
        if quality > best:
            best, best_state = quality, {name: value.clone() for name, value in network.state_dict().items()}
        progress(
            f"{classifier.name}, seed {seed}: epoch {epoch + 1} of {optim.epochs}, training loss {loss:.3f}, "
            f"validation accuracy {quality[0]:.3f}, best {best[0]:.3f}"
        )
    network.load_state_dict(best_state)


def _epoch(
    classifier: ResNet50, network: nn.Module, optimizer: torch.optim.AdamW, train: Pairs, stream: tuple[int, int]
) -> float:
    """Show every heart once, except those left over from full batches; return the mean loss."""
    optim, rng = classifier.config.optim, np.random.default_rng(stream)
    steps = len(train) // optim.batch_size
    if steps == 0:
        raise ValueError(f"{len(train)} training hearts do not fill one batch of {optim.batch_size}")
    order = rng.permutation(len(train))[: steps * optim.batch_size].reshape(steps, -1)
    targets = torch.from_numpy(classifier.config.task.targets(train.lvef_percent))
    network.train()
    losses = []
    for step, rows in enumerate(order):
        rate = learning_rate_at(stream[1] * steps + step, optim.epochs * steps, optim)
        images = _jittered(classifier.training_views(train, rows, rng), classifier.config, rng)
        loss = binary_cross_entropy_with_logits(network(images), targets[torch.from_numpy(rows)])
        losses.append(descend(network, optimizer, loss, rate, optim.gradient_clip))
    return float(np.mean(losses))


def _jittered(images_N2SS: NDArray[np.float32], config: BaselineConfig, rng: np.random.Generator) -> Tensor:
    shape = (len(images_N2SS), 1, 1, 1)
    gain = 1.0 + rng.uniform(-config.gain_spread, config.gain_spread, shape)
    gamma = 1.0 + rng.uniform(-config.gamma_spread, config.gamma_spread, shape)
    return torch.from_numpy((gain * images_N2SS**gamma).astype(np.float32))


def _quality(logits_N: NDArray[np.float64], truth_N: NDArray[np.bool_]) -> tuple[float, float]:
    """Accuracy, and minus the mean loss, which decides between equal accuracies."""
    loss = np.logaddexp(0.0, np.where(truth_N, -logits_N, logits_N)).mean()
    return float(((logits_N > 0) == truth_N).mean()), -float(loss)


@torch.inference_mode()
def _network_logits(network: nn.Module, images_N2SS: NDArray[np.float32], batch: int) -> NDArray[np.float64]:
    network.eval()
    images = torch.from_numpy(np.ascontiguousarray(images_N2SS, np.float32))
    return np.asarray(torch.cat([network(part) for part in images.split(batch)]).double().numpy())
