"""Random changes of an ECG: what moves, what never does, and how much noise there is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.ecg_cmr.augment import EcgAugment, augment_ecg

NOTHING = EcgAugment(shift_s=0.0, gain=(1.0, 1.0), noise_probability=0.0, lead_off_probability=0.0)
FROM_I_AND_II = torch.tensor([[-1.0, 1.0], [-0.5, -0.5], [1.0, -0.5], [-0.5, 1.0]])


def _ecg(records: int = 4) -> Tensor:
    """Beats that differ in every lead, limb leads consistent."""
    time = torch.arange(5000) / 500
    beat = torch.exp(-(((time * 1.2) % 1.0 - 0.5) ** 2) / 4e-4)
    heights = torch.randn((records, 8, 1), generator=torch.Generator().manual_seed(7))
    eight = heights * beat + 0.2 * heights.roll(1, 1) * beat.roll(60)
    return torch.cat([eight[:, :2], FROM_I_AND_II @ eight[:, :2], eight[:, 2:]], dim=1)


def _changed(seed: int = 0, records: int = 4, **ranges: object) -> tuple[Tensor, Tensor]:
    ecg = _ecg(records)
    fields = vars(NOTHING) | ranges
    return ecg, augment_ecg(ecg, EcgAugment(**fields), torch.Generator().manual_seed(seed))


def test_without_ranges_nothing_changes() -> None:
    """Every part can be switched off."""
    ecg, changed = _changed()
    assert torch.equal(ecg, changed)


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    """With the default ranges too, and the input is left as it was."""
    ecg = _ecg()
    first, again, other = (augment_ecg(ecg, EcgAugment(), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(ecg, _ecg())


def test_no_sign_flips_and_no_lead_takes_the_place_of_another() -> None:
    """Over many draws each lead that is on correlates with itself, positively, more than with any other record's lead."""
    quiet = EcgAugment(shift_s=0.0, snr_db=(20.0, 30.0))
    ecg = _ecg(50)
    changed = augment_ecg(ecg, quiet, torch.Generator().manual_seed(1))
    on = changed.abs().amax(dim=2) > 0
    product = (changed * ecg).sum(dim=2) / (changed.norm(dim=2) * ecg.norm(dim=2)).clamp(min=1e-9)
    loud = on & (ecg.norm(dim=2) > 0.3 * ecg.norm(dim=2).mean())
    assert (product[loud] > 0.5).all()
    ratios = (changed.norm(dim=2) / ecg.norm(dim=2))[loud]
    assert float(ratios.min()) > 0.7
    assert float(ratios.max()) < 1.6


def test_limb_leads_stay_consistent() -> None:
    """With all changes on, III, aVR, aVL and aVF follow from I and II to rounding."""
    changed = augment_ecg(_ecg(), EcgAugment(), torch.Generator().manual_seed(3))
    torch.testing.assert_close(changed[:, 2:6], FROM_I_AND_II @ changed[:, :2], atol=1e-5, rtol=0)


def test_a_shift_moves_all_leads_alike() -> None:
    """Each record has its own roll, at most the range either way and up to it, all twelve leads together."""
    ecg, changed = _changed(records=60, shift_s=0.006)
    steps = [
        next(step for step in range(-20, 21) if torch.equal(before.roll(step, 1), after))
        for before, after in zip(ecg, changed, strict=True)
    ]
    assert set(steps) == set(range(-3, 4))


def test_a_gain_lies_in_its_range() -> None:
    """One factor a record, within 0.8 to 1.25."""
    ecg, changed = _changed(records=40, gain=(0.8, 1.25))
    factors = (changed.norm(dim=2) / ecg.norm(dim=2)).unique(dim=0)
    assert (factors.std(dim=1) < 1e-5).all()
    assert 0.8 - 1e-4 <= float(factors.min()) < 0.9
    assert 1.15 < float(factors.max()) <= 1.25 + 1e-4


@pytest.mark.parametrize("limits", [(5.0, 5.0), (5.0, 30.0)])
def test_noise_has_the_asked_ratio(limits: tuple[float, float]) -> None:
    """The power of the signal over that of all noise lies in the range, record by record."""
    ecg, changed = _changed(records=40, noise_probability=1.0, snr_db=limits)
    noise = (changed - ecg).square().mean(dim=(1, 2))
    found_db = 10 * torch.log10(ecg.square().mean(dim=(1, 2)) / noise)
    assert float(found_db.min()) >= limits[0] - 0.01
    assert float(found_db.max()) <= limits[1] + 0.01
    assert float(found_db.max() - found_db.min()) > 0.5 * (limits[1] - limits[0]) - 0.01


def test_noise_has_its_three_bands() -> None:
    """Wander below 0.8 Hz, mains at 50 or 60 Hz, muscle up to 150 Hz; nothing above, and every kind occurs."""
    ecg, changed = _changed(records=60, noise_probability=0.5, snr_db=(5.0, 5.0))
    power = torch.fft.rfft(changed - ecg).abs().square().sum(dim=1)  # [B, F]
    hertz = torch.fft.rfftfreq(5000, 1 / 500)
    shares = {
        name: power[:, (hertz >= low) & (hertz <= high)].sum(dim=1) / power.sum(dim=1).clamp(min=1e-9)
        for name, (low, high) in {
            "wander": (0.05, 0.85),
            "50": (49.95, 50.05),
            "60": (59.95, 60.05),
            "all": (0.05, 150.05),
        }.items()
    }
    assert all(float(shares[name].max()) > 0.5 for name in ("wander", "50", "60"))
    noisy = power.sum(dim=1) > 1e-3
    assert 0.6 < float(noisy.float().mean()) < 1.0
    assert (shares["all"][noisy] > 0.999).all()


def test_a_lead_that_is_off() -> None:
    """Chest leads become 0, derived limb leads are computed again, I and II are never off."""
    ecg = _ecg(1)
    ecg[:, 2:6] += 1.0  # no longer what follows from I and II
    off = augment_ecg(ecg, EcgAugment(**(vars(NOTHING) | {"lead_off_probability": 1.0})), torch.Generator())
    assert torch.equal(off[:, :2], ecg[:, :2])
    torch.testing.assert_close(off[:, 2:6], FROM_I_AND_II @ ecg[:, :2])
    assert not off[:, 6:].any()


def test_leads_are_off_one_by_one() -> None:
    """About one chest lead in ten, not whole records."""
    _, changed = _changed(records=120, lead_off_probability=0.1)
    off = (changed[:, 6:].abs().amax(dim=2) == 0).float()
    assert float(off.mean()) == pytest.approx(0.1, abs=0.04)
    assert float(off.sum(dim=1).max()) < 6


@pytest.mark.parametrize("gain", [(-1.0, 1.0), (0.0, 1.0), (1.2, 0.8), (math.nan, 1.0)])
def test_a_gain_that_could_flip_a_sign_is_refused(gain: tuple[float, float]) -> None:
    """The published augmentation turned one ECG in forty upside down."""
    with pytest.raises(ValueError, match="a sign that flips"):
        EcgAugment(gain=gain)


def test_other_records_are_refused() -> None:
    """Eight leads are no canonical record."""
    with pytest.raises(ValueError, match=r"expected \[B, 12, N\]"):
        augment_ecg(torch.zeros(2, 8, 5000), EcgAugment(), torch.Generator())
