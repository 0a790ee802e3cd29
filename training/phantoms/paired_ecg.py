"""The ECG of the easy cohort: every property of the heart that a short-axis stack shows has a wave of its own.

As ``ecg``, but nothing is unseen: the heart that the ECG looks like is the heart that it is, up to ``SCATTER``. A correct
contrast of ECG and CMR finds the partners on this cohort; on hearts as ``ecg`` renders them it cannot, by construction.
"""

from __future__ import annotations

import numpy as np

from engines.records import EcgRecord, SourceInstance
from training.phantoms.ecg import (
    _LEADS,
    DURATION_S,
    Wave,
    _beat_times,
    _fibrillation,
    _noise,
    _quantised,
    _rotated,
    twelve,
)
from training.phantoms.subjects import Floats, Subject

RATE_HZ = 500
SCATTER = 0.05
"""Standard deviation of every link, in its unit (``paired`` states the units)."""


def linked_ecg(subject: Subject, rng: np.random.Generator) -> EcgRecord:
    """Render ten seconds at 500 Hz; noise, rate and rhythm are drawn as in ``ecg``."""
    time_s = np.arange(int(DURATION_S * RATE_HZ)) / RATE_HZ
    independent = _LEADS @ _heart_vector(subject, rng, time_s)
    independent += _noise(rng, time_s, len(independent))
    return EcgRecord(
        signal_mv=twelve(_quantised(independent)).astype(np.float32),
        sampling_rate_hz=float(RATE_HZ),
        source=SourceInstance(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.9.1.1", sop_instance_uid="2.25.1", series_instance_uid="2.25.2"
        ),
        highpass_hz=0.05,
        lowpass_hz=150.0,
    )


def _heart_vector(subject: Subject, rng: np.random.Generator, time_s: Floats) -> Floats:
    """Sum of the waves of every beat, [3, N] in mV."""
    fibrillates = subject.diseases["atrial_fibrillation"]
    waves = linked_waves(subject, rng)
    if fibrillates:
        waves = [wave for wave in waves if wave[0] > -0.1]
    vector = _fibrillation(rng, time_s) if fibrillates else np.zeros((3, len(time_s)))
    for beat, interval in _beat_times(subject, rng, fibrillates):
        stretch = float(np.sqrt(interval))
        for delay, width, direction in waves:
            centre = beat + (delay * stretch if delay > 0.1 else delay)
            vector += np.outer(direction, np.exp(-0.5 * ((time_s - centre) / width) ** 2))
    return vector


def linked_waves(subject: Subject, rng: np.random.Generator) -> list[Wave]:
    """P, Q, R, S, T and T's shoulder; the effect sizes stand in ``paired``."""
    weak, large, right, thick, round_, late = _seen(subject) + rng.normal(0, SCATTER, 6)
    broad, gain = 1 + 0.30 * weak, float(np.exp(0.60 * large))
    infarct = float(subject.diseases["myocardial_infarction"])
    ischaemia = 0.05 * float(subject.diseases["coronary_artery_disease"])
    t_wave = (0.40 + 0.12 * thick) * np.array([0.8, 0.5, 0.45])
    t_delay = 0.29 + 0.025 * late
    return [
        (-0.165, 0.020, np.array([0.07, 0.12, 0.04])),
        (-0.135, 0.016, np.array([0.05, 0.05, -0.03])),
        (-0.026 * broad, 0.009 * broad, gain * np.array([-0.12 - 0.20 * infarct, -0.02 - 0.15 * infarct, 0.22])),
        (0.0, 0.012 * broad, gain * _rotated(np.array([1.05, 0.75, -0.45]), 0.25 * round_)),
        (0.030 * broad, 0.013 * broad, gain * np.array([-0.30 - 0.15 * right, 0.05, -0.45])),
        (0.120, 0.040, -ischaemia * np.array([1.0, 0.6, 0.3])),
        (t_delay, 0.048, t_wave),
        (t_delay - 0.05, 0.050, 0.35 * t_wave),
    ]


def _seen(subject: Subject) -> Floats:
    """weak, large, right, thick, round and late, [6]."""
    return np.array(
        [
            (55.0 - subject.lvef_percent) / 20.0,
            np.log(subject.lvedv_ml / 160.0),
            (50.0 - subject.rvef_percent) / 15.0,
            (subject.wall_mm - 9.5) / 2.0,
            (1.65 - subject.sphericity) / 0.15,
            (subject.systole_fraction - 0.38) / 0.05,
        ]
    )
