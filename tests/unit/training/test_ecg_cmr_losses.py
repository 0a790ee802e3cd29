"""The contrast of ECG and cardiac MR: values by hand and in 64 bits, the three pairs apart, two processes as one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from training.coreecho.distributed import own_share, parallel
from training.ecg_cmr.losses import (
    ANCHORED,
    EQUAL,
    Contrast,
    PairWeights,
    RepeatedPatientError,
    Temperature,
    chance_loss,
    margin_contrast,
    pairwise_contrast,
    triplet_contrast,
)

ROWS, WIDTH, TAU = 6, 5, 0.07
PATIENTS = torch.arange(ROWS)
UNEQUAL = PairWeights(ecg_ed=0.7, ecg_es=0.2, ed_es=0.1)


def _rows(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _three() -> dict[str, Tensor]:
    return {"ecg": _rows(1), "ed": _rows(2), "es": _rows(3)}


def _written_out(first: Tensor, second: Tensor, tau: float) -> tuple[float, float]:
    """Loss and accuracy of a pair as the formula says it, in loops and 64 bits."""
    a, b = (
        rows.double().numpy() / np.linalg.norm(rows.double().numpy(), axis=1, keepdims=True) for rows in (first, second)
    )
    loss, hits, count = 0.0, 0, len(a)
    for left, right in ((a, b), (b, a)):
        for row in range(count):
            scores = [float(left[row] @ right[other]) / tau for other in range(count)]
            loss += (math.log(sum(math.exp(score) for score in scores)) - scores[row]) / count / 2
            hits += int(np.argmax(scores)) == row
    return loss, hits / count / 2


def test_two_orthogonal_patients_by_hand() -> None:
    """Own cosine 1, other 0, tau 1: the loss is ln(1 + 1/e); at tau 0.5 it is ln(1 + 1/e^2)."""
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.5]])  # of other lengths, which must not matter
    for tau, expected in ((1.0, 0.3132616875), (0.5, 0.1269280110)):
        found = pairwise_contrast(ecg=rows, cmr=torch.eye(2), patients=PATIENTS[:2], temperature=tau)
        assert float(found.total) == pytest.approx(expected, abs=1e-7)
        assert float(found.pairs["ecg_cmr"].accuracy) == 1.0


def test_a_pair_is_the_formula_in_64_bits() -> None:
    """Loss and accuracy equal the sums written out; both directions count."""
    ecg, cmr = _rows(1), _rows(2) + _rows(1)
    found = pairwise_contrast(ecg=ecg, cmr=cmr, patients=PATIENTS, temperature=TAU)
    loss, accuracy = _written_out(ecg, cmr, TAU)
    assert float(found.total) == pytest.approx(loss, rel=1e-12)
    assert float(found.pairs["ecg_cmr"].accuracy) == pytest.approx(accuracy)
    assert 0 < accuracy < 1
    assert found.patients == ROWS


@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL, ANCHORED])
def test_the_triplet_is_the_weighted_mean_of_its_pairs(weights: PairWeights) -> None:
    """Each weight meets its own pair; every pair is returned, also one without weight."""
    given = _three()
    found = triplet_contrast(**given, patients=PATIENTS, temperature=TAU, weights=weights)
    pairs = {
        name: _written_out(*(given[each] for each in name.split("_")), TAU)[0] for name in ("ecg_ed", "ecg_es", "ed_es")
    }
    expected = sum(getattr(weights, name) * loss for name, loss in pairs.items()) / sum(vars(weights).values())
    assert float(found.total) == pytest.approx(expected, rel=1e-12)
    assert {name: float(term.loss) for name, term in found.pairs.items()} == pytest.approx(pairs, rel=1e-12)
    assert float(found.alignment) == pytest.approx((pairs["ecg_ed"] + pairs["ecg_es"]) / 2, rel=1e-12)


def test_defect_01_modalities_cannot_be_confused() -> None:
    """Positions are refused, so (ED, ES, ECG) cannot arrive as (CMR, ECG, ES); with unequal weights the values differ."""
    given = _three()
    with pytest.raises(TypeError):
        triplet_contrast(*given.values(), PATIENTS, TAU)  # type: ignore[misc]
    right = triplet_contrast(**given, patients=PATIENTS, temperature=TAU, weights=UNEQUAL)
    turned = triplet_contrast(
        ecg=given["ed"], ed=given["es"], es=given["ecg"], patients=PATIENTS, temperature=TAU, weights=UNEQUAL
    )
    assert abs(float(right.total - turned.total)) > 1e-3
    assert float(right.pairs["ecg_ed"].loss) == pytest.approx(float(turned.pairs["ecg_es"].loss))


def test_equal_weights_do_not_know_the_order() -> None:
    """With equal weights a permutation of the modalities leaves the total."""
    ecg, ed, es = _three().values()
    totals = [
        float(triplet_contrast(ecg=a, ed=b, es=c, patients=PATIENTS, temperature=TAU).total)
        for a, b, c in ((ecg, ed, es), (ed, es, ecg), (es, ecg, ed), (ed, ecg, es))
    ]
    assert totals == pytest.approx([totals[0]] * 4, rel=1e-12)


def test_the_pair_without_ecg_says_nothing_to_the_ecg() -> None:
    """The gradient of ED-ES to the ECG is zero; the anchor form gives ED and ES no gradient of it."""
    given = {name: rows.requires_grad_() for name, rows in _three().items()}
    found = triplet_contrast(**given, patients=PATIENTS, temperature=TAU)
    (of_ecg,) = torch.autograd.grad(found.pairs["ed_es"].loss, given["ecg"], allow_unused=True, retain_graph=True)
    assert of_ecg is None or not of_ecg.any()
    anchored = triplet_contrast(**given, patients=PATIENTS, temperature=TAU, weights=ANCHORED)
    expected = (found.pairs["ecg_ed"].loss + found.pairs["ecg_es"].loss) / 2
    for name in ("ecg", "ed", "es"):
        of_anchored, of_expected = (
            torch.autograd.grad(loss, given[name], retain_graph=True)[0] for loss in (anchored.total, expected)
        )
        torch.testing.assert_close(of_anchored, of_expected)


def test_the_margin_form_by_hand() -> None:
    """Anchor at 0 degrees, its ED at 60, the other's ED at 90: 0.2 + 0 - 0.5 is no loss; the rest is counted likewise."""
    ecg = torch.eye(2)
    ed = torch.tensor([[0.5, math.sqrt(0.75)], [0.0, 1.0]])
    es = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = margin_contrast(ecg=ecg, ed=ed, es=es, patients=PATIENTS[:2], temperature=TAU, margin=0.2)
    hinges = [
        0.0,  # ecg 0, ed: 0.2 + 0 - 0.5 < 0
        0.2 + math.sqrt(0.75) - 1.0,  # ecg 1, ed
        0.2 + 1.0 - 1.0,  # ecg 0, es: both alike
        0.2 + 0.0 - 0.0,  # ecg 1, es: both at a right angle
    ]
    assert float(found.total) == pytest.approx(sum(hinges) / 4, abs=1e-6)
    assert set(found.pairs) == {"ecg_ed", "ecg_es", "ed_es"}


def test_the_hardest_negative_is_the_one_that_counts() -> None:
    """Only the nearest other positive of each anchor gets a gradient."""
    ecg, es = torch.eye(3), torch.eye(3)
    ed = torch.tensor([[1.0, 0.0, 0.0], [0.95, 0.1, 0.0], [0.2, 0.0, 1.0]]).requires_grad_()
    found = margin_contrast(ecg=ecg, ed=ed, es=es, patients=PATIENTS[:3], temperature=TAU, margin=0.2)
    of_first_anchor = 0.2 + 0.95 / math.hypot(0.95, 0.1) - 1.0
    of_second = 0.2 + 0.0 - 0.1 / math.hypot(0.95, 0.1)
    of_third = max(0.0, 0.2 + 0.0 - 1.0 / math.hypot(0.2, 1.0))
    assert float(found.total.detach()) == pytest.approx((of_first_anchor + of_second + of_third) / 6, abs=1e-6)


def test_embeddings_that_say_nothing_score_chance() -> None:
    """All alike: the loss is ln N and no row is a hit."""
    rows = torch.ones(64, 3)
    found = pairwise_contrast(ecg=rows, cmr=rows, patients=torch.arange(64), temperature=TAU)
    assert float(found.total) == pytest.approx(4.1588830834, abs=1e-5)
    assert chance_loss(64) == pytest.approx(4.1588830834)
    assert float(found.pairs["ecg_cmr"].accuracy) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_defect_12_logits_are_single_precision_under_autocast(dtype: torch.dtype) -> None:
    """Under autocast, and from embeddings of any type, the loss is that of the same embeddings without it."""
    ecg, cmr = _rows(1, dtype), _rows(2, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pairwise_contrast(ecg=ecg, cmr=cmr, patients=PATIENTS, temperature=TAU)
        margin = margin_contrast(ecg=ecg, ed=cmr, es=cmr, patients=PATIENTS, temperature=TAU, margin=0.2)
    assert found.total.dtype == torch.float32
    assert float(found.total) == pytest.approx(_written_out(ecg, cmr, TAU)[0], rel=1e-5)
    plain = margin_contrast(
        ecg=ecg.float(), ed=cmr.float(), es=cmr.float(), patients=PATIENTS, temperature=1.0, margin=0.2
    )
    assert float(margin.total) == pytest.approx(float(plain.total), rel=1e-5)


def _pairwise(patients: Tensor) -> Contrast:
    return pairwise_contrast(ecg=_rows(1), cmr=_rows(2), patients=patients, temperature=TAU)


def _triplet(patients: Tensor) -> Contrast:
    return triplet_contrast(**_three(), patients=patients, temperature=TAU)


def _margin(patients: Tensor) -> Contrast:
    return margin_contrast(**_three(), patients=patients, temperature=TAU, margin=0.2)


@pytest.mark.parametrize("form", [_pairwise, _triplet, _margin])
def test_a_patient_twice_in_a_batch_is_refused(form: Callable[[Tensor], Contrast]) -> None:
    """The number of the repeated patient is said."""
    form(PATIENTS)
    with pytest.raises(RepeatedPatientError, match=r"patients number \[3\]"):
        form(torch.tensor([0, 1, 2, 3, 3, 5]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cmr": torch.ones(5, WIDTH)}, r"expected \[n, E\]"),
        ({"patients": torch.arange(5)}, r"expected \[n, E\]"),
        ({"ecg": torch.ones(ROWS), "cmr": torch.ones(ROWS)}, r"expected \[n, E\]"),
        ({"ecg": torch.ones(1, 2), "cmr": torch.ones(1, 2), "patients": torch.arange(1)}, "n of 2 or more"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_what_makes_no_contrast_is_refused(change: dict, reason: str) -> None:
    """Shapes apart, one row alone and no temperature are said with what was expected."""
    given = {"ecg": _rows(1), "cmr": _rows(2), "patients": PATIENTS, "temperature": TAU} | change
    with pytest.raises(ValueError, match=reason):
        pairwise_contrast(**given)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 1.0), (1.0, -0.1, 1.0), (math.nan, 1.0, 1.0)])
def test_weights_that_leave_the_ecg_out_are_refused(weights: tuple[float, float, float]) -> None:
    """No weight with an ECG, a negative one and one that is no number make no loss."""
    with pytest.raises(ValueError, match="one with an ECG above zero"):
        PairWeights(**dict(zip(("ecg_ed", "ecg_es", "ed_es"), weights, strict=True)))


@pytest.mark.parametrize("margin", [0.0, 2.0, -1.0])
def test_a_margin_that_no_cosines_have_is_refused(margin: float) -> None:
    """Cosines lie at most 2 apart."""
    with pytest.raises(ValueError, match=f"margin is {margin}"):
        margin_contrast(**_three(), patients=PATIENTS, temperature=TAU, margin=margin)


def test_the_temperature_is_fixed_or_learned() -> None:
    """Fixed it is no parameter; learned it falls where partners are near, and never below 0.01."""
    assert not list(Temperature(TAU, learned=False).parameters())
    assert float(Temperature(TAU, learned=False)()) == pytest.approx(TAU)
    learned = Temperature(TAU, learned=True)
    rows = _rows(1, torch.float32)
    pairwise_contrast(ecg=rows, cmr=rows, patients=PATIENTS, temperature=learned()).total.backward()
    assert float(learned.log_scale.grad) < 0
    with torch.no_grad():
        learned.log_scale.fill_(100.0)
    assert float(learned()) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="temperature is -1"):
        Temperature(-1.0, learned=False)


class _Towers(nn.Module):
    """Three linear towers and a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.towers = nn.ModuleDict({name: nn.Linear(7, WIDTH) for name in ("ecg", "ed", "es")})
        self.temperature = Temperature(0.3, learned=True)

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.towers[name](rows) for name, rows in given.items()} | {"temperature": self.temperature()}


def _given() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(ROWS, 7, generator=generator) for name in ("ecg", "ed", "es")}


def _loss(outputs: dict[str, Tensor], patients: Tensor) -> Tensor:
    hinged = margin_contrast(**outputs, patients=patients, margin=0.3).total
    return triplet_contrast(**outputs, patients=patients, weights=UNEQUAL).total + hinged


def _gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): value.grad for name, value in network.named_parameters()}


def _one_of_two(rank: int, rendezvous: str, out: str) -> None:
    """Half of the patients; then a batch whose repeated patient is split between the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mine = torch.from_numpy(own_share(np.arange(ROWS)))
    network = parallel(_Towers())
    loss = _loss(network({name: rows[mine] for name, rows in _given().items()}), mine)
    loss.backward()
    try:
        _loss(network({name: rows[mine] for name, rows in _given().items()}), mine // 2)
        refused = False
    except RepeatedPatientError:
        refused = True
    torch.save({"loss": float(loss.detach()), "gradients": _gradients(network), "refused": refused}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_on_the_whole_batch(tmp_path: Path) -> None:
    """Loss and every gradient, that of the temperature too, are those of one process; a split repetition is refused."""
    network = _Towers()
    loss = _loss(network(_given()), PATIENTS)
    loss.backward()
    multiprocessing.start_processes(
        _one_of_two, args=(str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2, start_method="spawn"
    )
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found["refused"]
        assert found["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
        for name, expected in _gradients(network).items():
            torch.testing.assert_close(found["gradients"][name], expected, atol=1e-6, rtol=1e-5)
    assert all(float(value.abs().max()) > 1e-4 for value in _gradients(network).values())
