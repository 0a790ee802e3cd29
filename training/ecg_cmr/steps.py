"""What is trained in stages A and C: which network, by which loss of which rows. ``stages`` runs them over epochs.

Letters: B patients, T patches of a record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.config import OptimConfig
from training.ecg_cmr.alignment import Aligned, contrast_of
from training.ecg_cmr.augment import EcgAugment, augment_ecg
from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.losses import Contrast, chance_loss
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.tower_inputs import CmrAugment, changed_alike, seen_by
from training.models.ecg_vit import EcgMae, mae_loss

Rows = NDArray[np.int64]
Numbers = Mapping[str, float]
_ASKED_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Of a batch: what is made small, and what is written down, by name."""

    total: Tensor
    logged: Numbers


class Stage(Protocol):
    """A part of a run."""

    @property
    def name(self) -> str:
        """Of its folder."""

    @property
    def number(self) -> int:
        """Sets its random numbers apart."""

    @property
    def optim(self) -> OptimConfig:
        """Of its optimiser."""

    @property
    def score(self) -> str:
        """Name of the validation number whose smallest value chooses the weights."""

    @property
    def network(self) -> nn.Module:
        """All that changes."""

    def terms(self, rows: Rows, generator: torch.Generator) -> Terms:
        """Return the loss of some pairs of the training part."""

    def validate(self) -> Numbers:
        """Return the numbers of the validation part, without random change."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Pairs of a part of the store, the number of every pair's patient, and what frozen towers say of them where asked once."""

    store: PairStore
    patients: Tensor
    known: Mapping[str, Tensor] | None
    augment: CmrAugment | None


class MaeStep:
    """Stage A, on the ECGs of the training part."""

    name, number, score = "mae", 1, "total"

    def __init__(self, run: EcgCmrRun, network: EcgMae, store: PairStore) -> None:
        self.network, self.optim, self._stage = network, run.mae.optim, run.mae
        self._train, self._validation = store.subset("training"), store.subset("validation")
        self._augment, self._seed = run.augment, run.seed

    def terms(self, rows: Rows, generator: torch.Generator) -> Terms:
        return self._terms(_records(self._train, rows, self._augment, generator), generator)

    @torch.no_grad()
    def validate(self) -> Numbers:
        """Return the means over all records, each with the same mask every time."""
        generator = torch.Generator().manual_seed(self._seed)
        rows = np.arange(len(self._validation))
        found = [
            (len(part), self._terms(_records(self._validation, part, None, generator), generator).logged)
            for part in np.array_split(rows, range(self.optim.batch_size, len(rows), self.optim.batch_size))
        ]
        return {name: sum(count * each[name] for count, each in found) / len(rows) for name in found[0][1]}

    def _terms(self, ecg_BLN: Tensor, generator: torch.Generator) -> Terms:
        device = _device(self.network)
        noise_BT = torch.rand((len(ecg_BLN), self.network.encoder.shape.tokens), generator=generator)
        ecg_BLN = ecg_BLN.to(device)
        with _autocast(device, self.optim):
            rebuilt = self.network(ecg_BLN, noise_BT.to(device))
        terms = mae_loss(rebuilt, ecg_BLN, correlation_weight=self._stage.correlation_weight)
        return Terms(total=terms.total, logged={name: float(value.detach()) for name, value in terms._asdict().items()})


class ContrastStep:
    """Stage C, on pairs; every batch has one pair of a patient."""

    name, number, score = "contrast", 3, "alignment"

    def __init__(self, run: EcgCmrRun, network: Aligned, store: PairStore) -> None:
        assert run.contrast is not None
        self.network, self.optim, self._stage = network, run.contrast.optim, run.contrast
        self._looks = dict(zip(run.names, (tower.look for tower in run.towers), strict=True))
        self._augment = run.augment
        self._train = self._part(store.subset("training"), self._stage.cmr_augment)
        self._validation = self._part(store.subset("validation"), None)

    def terms(self, rows: Rows, generator: torch.Generator) -> Terms:
        return self._terms(self._train, rows, self._augment, generator)

    @torch.no_grad()
    def validate(self) -> Numbers:
        """Return the means over batches of equal size, one pair of a patient; what does not fill a batch is left out."""
        rows = first_rows(self._validation.store.patients)
        size = min(self.optim.batch_size, len(rows))
        batches = rows[: len(rows) // size * size].reshape(-1, size)
        generator = torch.Generator()  # nothing is drawn from it: no random change is asked for
        found = [self._terms(self._validation, batch, None, generator).logged for batch in batches]
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}

    def _terms(self, part: _Part, rows: Rows, augment: EcgAugment | None, generator: torch.Generator) -> Terms:
        device = _device(self.network)
        ecg_BLN, cmr = _records(part.store, rows, augment, generator), self._cmr(part, rows, generator)
        with _autocast(device, self.optim):
            projected = self.network(ecg_BLN.to(device), cmr)
        found = contrast_of(projected, part.patients[rows].to(device), self._stage)
        return Terms(total=found.total, logged=_logged(found, projected["temperature"]))

    def _cmr(self, part: _Part, rows: Rows, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Return what the towers say of some pairs, [B, E] each."""
        if part.known is not None:
            return {name: known[rows].to(_device(self.network)) for name, known in part.known.items()}
        return self._seen(part.store, rows, part.augment, generator)

    def _part(self, store: PairStore, augment: CmrAugment | None) -> _Part:
        known = self._asked(store) if self._stage.frozen and augment is None else None
        return _Part(store=store, patients=_numbers(store.patients), known=known, augment=augment)

    def _asked(self, store: PairStore) -> Mapping[str, Tensor]:
        """Return what frozen towers say of all pairs of a part, [N, E] each."""
        rows = np.arange(len(store))
        parts = np.array_split(rows, range(_ASKED_AT_ONCE, len(rows), _ASKED_AT_ONCE))
        found = [self._seen(store, chosen, None, torch.Generator()) for chosen in parts]
        return {name: torch.cat([each[name].cpu() for each in found]) for name in self._looks}

    def _seen(
        self, store: PairStore, rows: Rows, augment: CmrAugment | None, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return what the towers say now; both phases of a pair are changed alike."""
        device = _device(self.network)
        seen = changed_alike([seen_by(store, look, rows.tolist()) for look in self._looks.values()], augment, generator)
        with _autocast(device, self.optim):
            return {
                name: self.network.towers[name](*(part.to(device) for part in each.arguments())).float()
                for name, each in zip(self._looks, seen, strict=True)
            }


def _logged(found: Contrast, temperature: Tensor) -> Numbers:
    """Return every pair's loss and accuracy, and the loss of chance beside them."""
    logged = {"total": float(found.total.detach()), "alignment": float(found.alignment.detach())}
    for name, term in found.pairs.items():
        logged |= {f"{name}_loss": float(term.loss.detach()), f"{name}_accuracy": float(term.accuracy)}
    return logged | {"chance": chance_loss(found.patients), "temperature": float(temperature.detach())}


def drawn_rows(patients: Sequence[str], rng: np.random.Generator) -> Rows:
    """Return one row of every patient, drawn anew each time, in random order: no batch has a patient twice."""
    order = rng.permutation(len(patients))
    return order[first_rows([patients[row] for row in order])]


def first_rows(patients: Sequence[str]) -> Rows:
    """Return the first row of every patient, in order."""
    first: dict[str, int] = {}
    for row, patient in enumerate(patients):
        first.setdefault(patient, row)
    return np.array(list(first.values()), np.int64)


def _records(store: PairStore, rows: Rows, augment: EcgAugment | None, generator: torch.Generator) -> Tensor:
    ecg_BLN = torch.from_numpy(store.read("ecg", rows.tolist())).float()
    return ecg_BLN if augment is None else augment_ecg(ecg_BLN, augment, generator)


def _numbers(patients: Sequence[str]) -> Tensor:
    _, numbers = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64))


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _autocast(device: torch.device, optim: OptimConfig) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=optim.autocast_bfloat16)
