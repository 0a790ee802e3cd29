"""Changes of an ECG that leave the heart as it is, in training only: time, gain, noise at the electrodes, a lead that is off.

No sign is flipped and no lead takes another's place. Noise is drawn at the electrodes' independent leads, I, II and V1 to
V6, and the four others follow by their definition, so that an augmented record is as consistent as one from a cart.

Letters: B records, N samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLING_RATE_HZ = 500.0
_LIMB = ((-1.0, 1.0), (-0.5, -0.5), (1.0, -0.5), (-0.5, 1.0))
"""III, aVR, aVL, aVF from I and II."""
_DERIVED = slice(2, 6)
_INDEPENDENT = (0, 1, 6, 7, 8, 9, 10, 11)


@dataclass(frozen=True, kw_only=True)
class EcgAugment:
    """Ranges of the random change.

    Args:
        shift_s: largest shift in time, either way; the record goes round its end.
        gain: range of the factor on the whole record, above 0.
        noise_probability: of each of baseline wander, mains and muscle, record by record.
        snr_db: range of the ratio of signal to all noise.
        lead_off_probability: of each lead but I and II: a chest lead is then 0, a limb lead is computed from I and II.
    """

    shift_s: float = 1.0
    gain: tuple[float, float] = (0.8, 1.25)
    noise_probability: float = 0.5
    snr_db: tuple[float, float] = (5.0, 30.0)
    lead_off_probability: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.gain[0] <= self.gain[1]:
            msg = f"gain is {self.gain}; expected a range above 0, since a sign that flips is another heart"
            raise ValueError(msg)


def augment_ecg(ecg_BLN: Tensor, augment: EcgAugment, generator: torch.Generator) -> Tensor:
    """Return a changed copy, float32 [B, 12, N]; the same generator state gives the same.

    Args:
        ecg_BLN: twelve leads in the canonical order at 500 Hz, in any unit.
        augment: the ranges.
        generator: on the CPU.

    Raises:
        ValueError: the records do not have twelve leads.
    """
    if ecg_BLN.ndim != 3 or ecg_BLN.shape[1] != 12:
        msg = f"records are {list(ecg_BLN.shape)}; expected [B, 12, N]"
        raise ValueError(msg)
    shifted = _shifted(ecg_BLN, augment.shift_s, generator)
    noisy = shifted + _noise(shifted, augment, generator)
    gain = _uniform((len(noisy), 1, 1), augment.gain, generator)
    return _leads_off(gain * noisy, augment.lead_off_probability, generator)


def _shifted(ecg_BLN: Tensor, shift_s: float, generator: torch.Generator) -> Tensor:
    batch, _, samples = ecg_BLN.shape
    most = round(shift_s * SAMPLING_RATE_HZ)
    offsets = torch.randint(-most, most + 1, (batch, 1), generator=generator)
    steps = (torch.arange(samples)[None, :] + offsets) % samples  # [B, N]
    return ecg_BLN.gather(2, steps[:, None, :].expand_as(ecg_BLN))


def _noise(ecg_BLN: Tensor, augment: EcgAugment, generator: torch.Generator) -> Tensor:
    batch, _, samples = ecg_BLN.shape
    size = (batch, len(_INDEPENDENT), samples)
    kinds = torch.stack([_unit(make(size, generator)) for make in (_wander, _mains, _muscle)])  # [3, B, 8, N]
    on = torch.rand((3, batch, 1, 1), generator=generator) < augment.noise_probability
    noise = _twelve((kinds * on * torch.rand((3, batch, 1, 1), generator=generator)).sum(dim=0))
    wanted_db = _uniform((batch, 1, 1), augment.snr_db, generator)
    power, signal = (each.square().mean(dim=(1, 2), keepdim=True) for each in (noise, ecg_BLN))
    scale = (signal / power.clamp(min=1e-12) * 10.0 ** (-wanted_db / 10.0)).sqrt()
    return torch.where(power > 0, scale * noise, 0.0)


def _wander(size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Breathing and movement: what a high-pass at 0.5 Hz leaves of 0.1 to 0.8 Hz."""
    return _band(size, (0.1, 0.8), generator)


def _muscle(size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return _band(size, (20.0, 150.0), generator)


def _mains(size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """50 or 60 Hz, of another strength and phase in each lead."""
    batch, leads, samples = size
    hertz = 50.0 + 10.0 * torch.randint(0, 2, (batch, 1, 1), generator=generator)
    phase = 2.0 * math.pi * torch.rand((batch, leads, 1), generator=generator)
    strength = 0.2 + torch.rand((batch, leads, 1), generator=generator)
    return strength * torch.sin(2.0 * math.pi * hertz * torch.arange(samples) / SAMPLING_RATE_HZ + phase)


def _band(size: tuple[int, int, int], band_hz: tuple[float, float], generator: torch.Generator) -> Tensor:
    samples = size[2]
    spectrum = torch.fft.rfft(torch.randn(size, generator=generator))
    hertz = torch.fft.rfftfreq(samples, 1.0 / SAMPLING_RATE_HZ)
    return torch.fft.irfft(spectrum * ((hertz >= band_hz[0]) & (hertz <= band_hz[1])), n=samples)


def _unit(noise_BLN: Tensor) -> Tensor:
    return noise_BLN / noise_BLN.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12)


def _twelve(independent_BLN: Tensor) -> Tensor:
    """Return all twelve leads of I, II and V1 to V6."""
    limb = independent_BLN[:, :2]
    return torch.cat([limb, torch.tensor(_LIMB) @ limb, independent_BLN[:, 2:]], dim=1)


def _leads_off(ecg_BLN: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    off = torch.rand((len(ecg_BLN), 12, 1), generator=generator) < probability
    off[:, :2] = False  # without I and II a record is refused
    replaced = torch.zeros_like(ecg_BLN)
    replaced[:, _DERIVED] = torch.tensor(_LIMB) @ ecg_BLN[:, :2]
    return torch.where(off, replaced, ecg_BLN)


def _uniform(shape: tuple[int, ...], limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * torch.rand(shape, generator=generator)
