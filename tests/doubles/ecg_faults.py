"""Faults of every kind that the gate knows, put into a clean ECG: what the quality gate has to find.

Each takes a record and a generator and gives the record with the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from engines.errors import RefusalCode
from engines.preprocess.ecg_quality import EcgFlag
from engines.records import EcgRecord

Fault = Callable[[EcgRecord, np.random.Generator], EcgRecord]


def _with(record: EcgRecord, signal: np.ndarray, **changes: Any) -> EcgRecord:
    return replace(record, signal_mv=signal.astype(np.float32), **changes)


def lead_off(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """One needed lead holds 1 uV of amplifier noise for four tenths of the time or longer."""
    signal, row = record.signal_mv.copy(), int(rng.choice([0, 1, *range(6, 12)]))
    length = int(signal.shape[1] * rng.uniform(0.4, 1.0))
    start = int(rng.integers(0, signal.shape[1] - length + 1))
    signal[row, start : start + length] = rng.normal(0, 0.001, length)
    return _with(record, signal)


def padded(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """A needed lead was not recorded at the end."""
    signal = record.signal_mv.copy()
    signal[int(rng.choice([0, 1, *range(6, 12)])), -int(rng.uniform(0.1, 5) * record.sampling_rate_hz) :] = np.nan
    return _with(record, signal)


def clipped(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """The amplifier's range ends at 92 to 98 % of the samples of a lead."""
    signal, row = record.signal_mv.copy(), int(rng.integers(0, 12))
    signal[row] = np.minimum(signal[row], np.percentile(signal[row], rng.uniform(92, 98)))
    return _with(record, signal)


def overrange(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """An artefact of 12 to 40 mV."""
    signal = record.signal_mv.copy()
    at, length = int(rng.integers(100, signal.shape[1] - 100)), int(rng.integers(1, 50))
    signal[int(rng.integers(0, 12)), at : at + length] += rng.uniform(12, 40) * rng.choice([-1, 1])
    return _with(record, signal)


def misnamed(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """Two limb leads under each other's names."""
    signal = record.signal_mv.copy()
    one, two = rng.choice(3, 2, replace=False)
    signal[[one, two]] = signal[[two, one]]
    return _with(record, signal)


def misscaled(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """One limb lead of twice or half its size."""
    signal = record.signal_mv.copy()
    signal[int(rng.integers(0, 6))] *= rng.choice([0.5, 2.0])
    return _with(record, signal)


def short(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """2.5 to 9.4 s."""
    return _with(record, record.signal_mv[:, : int(rng.uniform(2.5, 9.4) * record.sampling_rate_hz)])


def columns(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """Four columns of 2.5 s, as on paper, the rest zero or missing."""
    empty, quarter = rng.choice([0.0, np.nan]), record.signal_mv.shape[1] // 4
    signal = np.full_like(record.signal_mv, empty)
    for row in range(12):
        part = slice(row // 3 * quarter, (row // 3 + 1) * quarter)
        signal[row, part] = record.signal_mv[row, part]
    return _with(record, signal)


def rate(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """A rate outside what is accepted."""
    return replace(record, sampling_rate_hz=float(rng.choice([50.0, 80.0, 2000.0, 4000.0])))


def arms(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """Left and right arm swapped: I changes its sign, II and III, aVR and aVL change places."""
    signal = record.signal_mv[[0, 2, 1, 4, 3, *range(5, 12)]].copy()
    signal[0] *= -1
    return _with(record, signal)


def right_arm_leg(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """Right arm and right leg swapped: II is what lies between two legs."""
    one, two = record.signal_mv[:2].astype(float)
    new_one, new_two = one - two, rng.normal(0, 0.008, len(one))
    limb = [new_one, new_two, new_two - new_one, -(new_one + new_two) / 2, new_one - new_two / 2, new_two - new_one / 2]
    chest = record.signal_mv[6:] - two / 3
    return _with(record, np.stack([*limb, *chest]))


def left_arm_leg(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """Left arm and left leg swapped: I and II, aVL and aVF change places, III changes its sign."""
    signal = record.signal_mv[[1, 0, 2, 3, 5, 4, *range(6, 12)]].copy()
    signal[2] *= -1
    return _with(record, signal)


def first_precordial(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """V1 and V2 swapped."""
    return _with(record, record.signal_mv[[*range(6), 7, 6, *range(8, 12)]])


def paced(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """Spikes of 0.5 to 4 mV and at most 2 ms, or one sample, 40 to 100 a minute, seen by most leads."""
    signal, rate_hz = record.signal_mv.astype(float), record.sampling_rate_hz
    sizes = np.clip(rng.normal(0, 1, 12), -2, 2) * rng.uniform(0.5, 2.0)
    sizes[int(rng.integers(6, 12))] = rng.uniform(0.5, 4.0)
    sizes[2:6] = sizes[1] - sizes[0], -(sizes[0] + sizes[1]) / 2, sizes[0] - sizes[1] / 2, sizes[1] - sizes[0] / 2
    width = max(1, round(0.002 * rate_hz * rng.uniform(0.3, 1.0)))
    for moment in np.arange(0.2, 9.9, 60 / rng.uniform(40, 100)):
        at = int(moment * rate_hz)
        signal[:, at : at + width] += sizes[:, None]
    return _with(record, signal)


def monitor_filter(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """A cart in monitor mode, which says so."""
    return replace(record, lowpass_hz=float(rng.choice([25.0, 35.0, 40.0])))


def strong_highpass(record: EcgRecord, rng: np.random.Generator) -> EcgRecord:
    """A baseline filter that touches the ST segment, and is stated."""
    return replace(record, highpass_hz=float(rng.choice([0.67, 1.0, 2.0])))


FAULTS: dict[str, tuple[Fault, RefusalCode | EcgFlag]] = {
    "lead off": (lead_off, RefusalCode.LEAD_OFF),
    "padding": (padded, RefusalCode.LEAD_OFF),
    "clipped": (clipped, RefusalCode.SATURATED),
    "over range": (overrange, RefusalCode.SATURATED),
    "wrongly named": (misnamed, RefusalCode.LEADS_INCONSISTENT),
    "wrongly scaled": (misscaled, RefusalCode.LEADS_INCONSISTENT),
    "too short": (short, RefusalCode.RECORD_TOO_SHORT),
    "four columns": (columns, RefusalCode.LEADS_NOT_SIMULTANEOUS),
    "rate": (rate, RefusalCode.SAMPLING_RATE_UNSUPPORTED),
    "arms swapped": (arms, EcgFlag.CABLE_SWAP_ARMS),
    "right arm and leg swapped": (right_arm_leg, EcgFlag.CABLE_SWAP_RIGHT_ARM_LEG),
    "left arm and leg swapped": (left_arm_leg, EcgFlag.CABLE_SWAP_LEFT_ARM_LEG),
    "V1 and V2 swapped": (first_precordial, EcgFlag.CABLE_SWAP_PRECORDIAL),
    "paced": (paced, EcgFlag.PACED),
    "low pass": (monitor_filter, EcgFlag.LOW_PASS),
    "high pass": (strong_highpass, EcgFlag.HIGH_PASS),
}
"""Each fault with what it has to be found as."""
