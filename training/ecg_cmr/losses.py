"""The contrast between an ECG and the cardiac MR of the same patient: InfoNCE of pairs, the triplet form, and its ablations.

Every argument that could be taken for another is named at the call. Each pair's own loss and accuracy come back beside the
total, because totals of different variants are not comparable. Called by ``training.ecg_cmr.steps``.

Source: Radford et al., CLIP, 2021, for the symmetric form; Alvarez-Florez et al., arXiv 2602.12883, for the triplet of
modalities, the weighted mean of three such terms. Own code.

Letters: N patients over all processes, n of this one, E width of a projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.coreecho.distributed import gathered, processes

ContrastForm = Literal["pairwise", "triplet", "anchor", "margin"]
_COLDEST = 0.01
"""Lowest temperature that is learned, as in CLIP: below it single precision loses the smaller logits."""


class RepeatedPatientError(ValueError):
    """A batch holds a patient twice: the two rows would be taught to lie apart."""


@dataclass(frozen=True, kw_only=True)
class PairTerm:
    """Of one pair of modalities.

    Attributes:
        loss: scalar with gradient, nats; ``chance_loss`` where the embeddings say nothing.
        accuracy: scalar, share of rows whose own partner is nearer than every other, mean of both directions.
    """

    loss: Tensor
    accuracy: Tensor


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """What a batch gives.

    Attributes:
        total: scalar to make small.
        pairs: every pair by name, ``ecg_cmr`` or ``ecg_ed``, ``ecg_es`` and ``ed_es``; also those without weight.
        patients: N, whose logarithm is the loss of chance.
    """

    total: Tensor
    pairs: Mapping[str, PairTerm]
    patients: int

    @property
    def alignment(self) -> Tensor:
        """Mean loss of the pairs with an ECG: the only number that is comparable between forms."""
        return torch.stack([term.loss for name, term in self.pairs.items() if name.startswith("ecg_")]).mean()


@dataclass(frozen=True, kw_only=True)
class PairWeights:
    """Weights of the three pairs of the triplet form; divided by their sum.

    Raises:
        ValueError: one is negative, or both with an ECG are zero.
    """

    ecg_ed: float
    ecg_es: float
    ed_es: float

    def __post_init__(self) -> None:
        weights = (self.ecg_ed, self.ecg_es, self.ed_es)
        if not all(0 <= weight < math.inf for weight in weights) or self.ecg_ed + self.ecg_es == 0:
            msg = f"weights of ECG-ED, ECG-ES and ED-ES are {weights}; expected none negative and one with an ECG above zero"
            raise ValueError(msg)


EQUAL = PairWeights(ecg_ed=1.0, ecg_es=1.0, ed_es=1.0)
"""As published."""
ANCHORED = PairWeights(ecg_ed=1.0, ecg_es=1.0, ed_es=0.0)
"""Without the term that cannot improve the ECG encoder."""


class Temperature(nn.Module):
    """The temperature tau of the contrast, fixed or learned on a logarithmic scale.

    Args:
        start: tau, or where learning starts; positive.
        learned: whether it is a parameter.

    Raises:
        ValueError: ``start`` is not positive.
    """

    log_scale: Tensor

    def __init__(self, start: float, *, learned: bool) -> None:
        super().__init__()
        _require_temperature(start)
        log_scale = torch.tensor(-math.log(start))
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self) -> Tensor:
        """Return tau, a scalar, not below 0.01."""
        return torch.exp(-self.log_scale).clamp(min=_COLDEST)


def chance_loss(patients: int) -> float:
    """Return the loss of embeddings that say nothing, ln N."""
    return math.log(patients)


def pairwise_contrast(*, ecg: Tensor, cmr: Tensor, patients: Tensor, temperature: Tensor | float) -> Contrast:
    """Return symmetric InfoNCE of ECG and cardiac MR over the rows of all processes.

    Args:
        ecg: [n, E], any floating type, not normalised.
        cmr: [n, E], of the same patients.
        patients: int64 [n], a number for each patient.
        temperature: tau.

    Raises:
        RepeatedPatientError: a patient occurs twice.
        ValueError: shapes that do not belong together, fewer than two rows, or a temperature that is not positive.
    """
    rows = _unit_rows(patients, ecg=ecg, cmr=cmr)
    term = _info_nce(rows["ecg"], rows["cmr"], temperature)
    return Contrast(total=term.loss, pairs={"ecg_cmr": term}, patients=len(rows["ecg"]))


def triplet_contrast(  # noqa: PLR0913 - three modalities, which a call must not confuse
    *,
    ecg: Tensor,
    ed: Tensor,
    es: Tensor,
    patients: Tensor,
    temperature: Tensor | float,
    weights: PairWeights = EQUAL,
) -> Contrast:
    """Return the weighted mean of InfoNCE over ECG-ED, ECG-ES and ED-ES.

    Args:
        ecg: [n, E].
        ed: [n, E], of end diastole.
        es: [n, E], of end systole.
        patients: int64 [n].
        temperature: tau.
        weights: of the pairs; ``ANCHORED`` for the ablation without ED-ES.

    Raises:
        RepeatedPatientError, ValueError: as ``pairwise_contrast``.
    """
    pairs = _three_pairs(_unit_rows(patients, ecg=ecg, ed=ed, es=es), temperature)
    shares = {"ecg_ed": weights.ecg_ed, "ecg_es": weights.ecg_es, "ed_es": weights.ed_es}
    total = torch.stack([shares[name] * term.loss for name, term in pairs.items()]).sum() / sum(shares.values())
    return Contrast(total=total, pairs=pairs, patients=len(patients) * processes().count)


def margin_contrast(  # noqa: PLR0913 - as triplet_contrast
    *, ecg: Tensor, ed: Tensor, es: Tensor, patients: Tensor, temperature: Tensor | float, margin: float
) -> Contrast:
    """Return the triplet loss with a margin: ECG as anchor, ED and ES as positives, the hardest row of the batch as negative.

    The mean over both positives of max(0, margin + max_j cos(e_i, p_j) - cos(e_i, p_i)), j other than i. The temperature
    enters only the InfoNCE of the pairs that are logged, so that they can be compared with those of the other forms.

    Args:
        ecg: [n, E].
        ed: [n, E].
        es: [n, E].
        patients: int64 [n].
        temperature: tau, of the logged pairs.
        margin: 0 to 2, in cosines.

    Raises:
        RepeatedPatientError, ValueError: as ``pairwise_contrast``, or a margin out of its range.
    """
    if not 0.0 < margin < 2.0:
        msg = f"margin is {margin}; expected above 0 and below 2, in cosines"
        raise ValueError(msg)
    rows = _unit_rows(patients, ecg=ecg, ed=ed, es=es)
    with torch.autocast(ecg.device.type, enabled=False):
        hinges = torch.stack([_hinges(rows["ecg"] @ rows[name].T, margin) for name in ("ed", "es")])
    return Contrast(total=hinges.mean(), pairs=_three_pairs(rows, temperature), patients=len(rows["ecg"]))


def _hinges(cosine_NN: Tensor, margin: float) -> Tensor:
    return functional.relu(margin + _hardest(cosine_NN) - cosine_NN.diagonal())


def _hardest(similarity_NN: Tensor) -> Tensor:
    """Return the nearest of the others, row by row, [N]."""
    own = torch.eye(len(similarity_NN), dtype=torch.bool, device=similarity_NN.device)
    return similarity_NN.masked_fill(own, -torch.inf).amax(dim=1)


def _three_pairs(rows: Mapping[str, Tensor], temperature: Tensor | float) -> dict[str, PairTerm]:
    named = {"ecg_ed": ("ecg", "ed"), "ecg_es": ("ecg", "es"), "ed_es": ("ed", "es")}
    return {name: _info_nce(rows[first], rows[second], temperature) for name, (first, second) in named.items()}


def _info_nce(first_NE: Tensor, second_NE: Tensor, temperature: Tensor | float) -> PairTerm:
    """Source: l(A, B) = (CE(S, diag) + CE(S^T, diag)) / 2 with S = A B^T / tau, rows of unit length."""
    _require_temperature(float(torch.as_tensor(temperature).detach()))
    with torch.autocast(first_NE.device.type, enabled=False):
        logits = first_NE @ second_NE.T / temperature  # [N, N]
        own = torch.arange(len(logits), device=logits.device)
        loss = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2.0
    return PairTerm(loss=loss, accuracy=_accuracy(logits.detach()))


def _accuracy(logits_NN: Tensor) -> Tensor:
    """A tie is no hit, so that embeddings that are all alike hit nothing."""
    own = logits_NN.diagonal()
    hits = [own > _hardest(directed) for directed in (logits_NN, logits_NN.T)]
    return torch.stack(hits).float().mean()


def _unit_rows(patients: Tensor, **modalities: Tensor) -> dict[str, Tensor]:
    """Return the rows of all processes at unit length, in single precision or, where it was given, double."""
    _require_rows(patients, modalities)
    _require_distinct(gathered(patients))
    return {name: _unit(gathered(rows)) for name, rows in modalities.items()}


def _unit(rows_NE: Tensor) -> Tensor:
    with torch.autocast(rows_NE.device.type, enabled=False):
        wide = rows_NE.to(torch.promote_types(rows_NE.dtype, torch.float32))
        return functional.normalize(wide, dim=1)


def _require_rows(patients: Tensor, modalities: Mapping[str, Tensor]) -> None:
    shapes = {name: list(rows.shape) for name, rows in modalities.items()}
    first = next(iter(modalities.values()))
    same = all(rows.shape == first.shape for rows in modalities.values())
    if not same or first.ndim != 2 or patients.shape != first.shape[:1] or len(first) * processes().count < 2:
        msg = (
            f"embeddings are {shapes} and patients {list(patients.shape)}; expected [n, E] each and [n], n of 2 or more"
        )
        raise ValueError(msg)


def _require_distinct(patients: Tensor) -> None:
    numbers, counts = torch.unique(patients, return_counts=True)
    if len(numbers) < len(patients):
        repeated = numbers[counts > 1].tolist()
        msg = f"patients number {repeated} occur more than once in a batch; draw one row of a patient for a batch"
        raise RepeatedPatientError(msg)


def _require_temperature(temperature: float) -> None:
    if not 0.0 < temperature < math.inf:
        msg = f"temperature is {temperature}; expected a positive number"
        raise ValueError(msg)
