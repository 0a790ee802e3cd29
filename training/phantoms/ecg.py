"""A 12-lead ECG of a subject: a heart vector of Gaussian waves, seen by twelve leads.

Each beat is a sum of Gaussians in three dimensions (P, Q, R, S, T); the eight independent leads are projections of that
vector and the limb leads follow from I and II, so that Einthoven's and Goldberger's relations hold exactly. Form and rate
depend on the heart (the model is ours; the dependences are stated in ``_waves``), noise does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.records import EcgRecord, SourceInstance
from training.phantoms.subjects import Floats, Subject

DURATION_S = 10.0
RATES_HZ = (250, 500, 1000)
UNSEEN = 0.55
"""Spread of what an ECG does not tell: the heart that it looks like differs from the heart that it is, in units of
20 points of LVEF, of 15 points of RVEF and of a factor e in volume. Set once so that LVEF is known to an R2 near 0.6."""
_P_ENDS_S = -0.1
"""Waves whose centre lies earlier are of P."""
# Directions of I, II, V1..V6 in (left, foot, front): a plain torso, of our own choice.
_LEADS = np.array(
    [
        [0.92, 0.05, 0.10],
        [0.35, 0.90, 0.05],
        [-0.55, 0.05, 0.85],
        [-0.15, 0.10, 1.20],
        [0.35, 0.15, 1.10],
        [0.80, 0.20, 0.75],
        [0.95, 0.25, 0.30],
        [0.90, 0.25, 0.00],
    ]
)
"""mV seen per mV of heart vector, [8, 3]."""

Wave = tuple[float, float, Floats]
"""Delay after R in seconds, width in seconds, vector in mV."""


@dataclass(frozen=True, kw_only=True)
class DrawnEcg:
    """What is drawn of a record before it is rendered.

    Args:
        rate_hz: native sampling rate.
        fibrillates: whether fibrillation stands in the place of P.
        beats: (R time, RR interval) of those that touch the record, seconds.
        waves: of every beat; P counts only without fibrillation.
    """

    rate_hz: int
    fibrillates: bool
    beats: Sequence[tuple[float, float]]
    waves: Sequence[Wave]


def ecg_record(subject: Subject, rng: np.random.Generator, source: SourceInstance | None = None) -> EcgRecord:
    """Render ten seconds; the native rate is one of ``RATES_HZ``."""
    drawn = draw_ecg(subject, rng)
    time_s = np.arange(int(DURATION_S * drawn.rate_hz)) / drawn.rate_hz
    independent = _LEADS @ _heart_vector(drawn, rng, time_s)
    independent = independent * float(np.exp(rng.normal(0, 0.12)))
    independent += _noise(rng, time_s, len(independent))
    signal = twelve(_quantised(independent))
    return EcgRecord(
        signal_mv=signal.astype(np.float32),
        sampling_rate_hz=float(drawn.rate_hz),
        source=source
        or SourceInstance(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.9.1.1", sop_instance_uid="2.25.1", series_instance_uid="2.25.2"
        ),
        highpass_hz=0.05,
        lowpass_hz=150.0,
    )


def twelve(independent: Floats) -> Floats:
    """Twelve leads [12, N] from I, II, V1..V6 [8, N] (Einthoven, Goldberger)."""
    one, two = independent[0], independent[1]
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.stack([*limb, *independent[2:]])


def draw_ecg(subject: Subject, rng: np.random.Generator) -> DrawnEcg:
    """Draw what the heart looks like; ``ecg_record`` draws the same with the same generator, and noise after it."""
    rate_hz, fibrillates = int(rng.choice(RATES_HZ)), subject.diseases["atrial_fibrillation"]
    beats = _beat_times(subject, rng, fibrillates)
    return DrawnEcg(rate_hz=rate_hz, fibrillates=fibrillates, beats=beats, waves=_waves(subject, rng))


def _heart_vector(drawn: DrawnEcg, rng: np.random.Generator, time_s: Floats) -> Floats:
    """Sum of the waves of every beat, [3, N] in mV."""
    vector = np.zeros((3, len(time_s)))
    for beat, interval in drawn.beats:
        stretch = np.sqrt(interval)  # Bazett: the T wave follows the square root of RR
        for delay, width, direction in drawn.waves:
            if drawn.fibrillates and delay < _P_ENDS_S:
                continue
            centre = beat + (delay * stretch if delay > 0.1 else delay)
            vector += np.outer(direction, np.exp(-0.5 * ((time_s - centre) / width) ** 2))
    if drawn.fibrillates:
        vector += _fibrillation(rng, time_s)
    return vector


def _beat_times(subject: Subject, rng: np.random.Generator, fibrillates: bool) -> list[tuple[float, float]]:
    """(R time, RR interval) of the beats that touch the record, seconds."""
    mean_s, spread = 60.0 / subject.heart_rate_bpm, 0.17 if fibrillates else 0.03
    moment, beats = -float(rng.uniform(0, mean_s)), []
    while moment < DURATION_S + mean_s:
        interval = mean_s * float(np.clip(rng.normal(1, spread), 0.5, 1.7))
        beats.append((moment, interval))
        moment += interval
    return beats


def _waves(subject: Subject, rng: np.random.Generator) -> list[Wave]:
    """P (two), Q, R, S, the ST segment, T and T's shoulder.

    A dilated, weak ventricle has a broader QRS, more leftward and backward forces, a flatter or inverted T and a larger
    terminal P. Every dependence carries its own scatter.
    """
    weak = (55.0 - subject.lvef_percent) / 20.0 + rng.normal(0, UNSEEN)
    large = np.log(subject.lvedv_ml / 140.0) + rng.normal(0, UNSEEN)
    right = (50.0 - subject.rvef_percent) / 15.0 + rng.normal(0, UNSEEN)
    broad = float(np.clip(1 + 0.28 * weak + rng.normal(0, 0.10), 0.75, 2.2))
    gain = float(np.exp(0.25 * large + 0.03 * (subject.wall_mm - 9.5) + rng.normal(0, 0.15)))
    turn = rng.normal(0, 0.18)
    infarct = 1.0 if subject.diseases["myocardial_infarction"] else 0.0
    r_wave = gain * _rotated(np.array([1.05 - 0.10 * weak, 0.75 - 0.25 * weak, -0.45 - 0.25 * weak]), turn)
    s_wave = gain * _rotated(np.array([-0.30 - 0.10 * right, 0.05, -0.45 - 0.15 * weak]), turn)
    q_wave = gain * np.array([-0.12 - 0.20 * infarct, -0.02 - 0.15 * infarct, 0.22 - 0.25 * infarct])
    t_size = 0.30 - 0.13 * weak + rng.normal(0, 0.07)
    t_wave = t_size * np.array([0.8, 0.5, 0.45]) + np.array([0, 0, 0.10 * infarct])
    ischaemia = 0.05 * float(subject.diseases["coronary_artery_disease"]) * abs(rng.normal(1, 0.5))
    return [
        (-0.165 - 0.01 * weak, 0.020 + 0.004 * max(weak, 0), np.array([0.07, 0.12, 0.04])),
        (-0.135, 0.016, np.array([0.05 + 0.02 * weak, 0.05, -0.03 - 0.02 * weak])),
        (-0.026 * broad, 0.009 * broad, q_wave),
        (0.0, 0.012 * broad, r_wave),
        (0.030 * broad, 0.013 * broad, s_wave),
        (0.120, 0.040, -ischaemia * np.array([1.0, 0.6, 0.3])),
        (0.29 + rng.normal(0, 0.01), 0.048, t_wave),
        (0.24, 0.050, 0.35 * t_wave),
    ]


def _rotated(vector: Floats, angle: float) -> Floats:
    """Turn in the frontal plane: the electrical axis differs between people."""
    x, y, z = vector
    return np.array([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y, z])


def _fibrillation(rng: np.random.Generator, time_s: Floats) -> Floats:
    """Small irregular waves at 5 to 8 Hz instead of P, [3, N] in mV."""
    frequency = rng.uniform(5, 8)
    wander = np.cumsum(rng.normal(0, 0.02, len(time_s)))
    wave = np.sin(2 * np.pi * frequency * time_s + wander)
    return np.outer(rng.normal(0, 0.035, 3), wave)


def _noise(rng: np.random.Generator, time_s: Floats, leads: int) -> Floats:
    """Baseline wander, mains and muscle noise, [leads, N] in mV; independent of the heart."""
    wander = rng.normal(0, 0.05, (leads, 1)) * np.sin(
        2 * np.pi * rng.uniform(0.12, 0.35) * time_s + rng.uniform(0, 6.28, (leads, 1))
    )
    mains = rng.uniform(0, 0.010) * np.sin(
        2 * np.pi * rng.choice([50.0, 60.0]) * time_s + rng.uniform(0, 6.28, (leads, 1))
    )
    muscle = rng.uniform(0.003, 0.02) * rng.normal(0, 1, (leads, len(time_s)))
    return np.asarray(wander + mains + muscle)


def _quantised(signal_mv: Floats) -> Floats:
    """Steps of 2.5 microvolt, as the cart stores them; even, so that halves stay whole steps of 1.25."""
    return np.asarray(np.round(signal_mv / 0.0025) * 0.0025)
