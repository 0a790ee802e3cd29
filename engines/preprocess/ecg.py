"""Twelve-lead ECG to a fixed window in fixed units, behind a quality gate.

Every doubt ends in a refusal: nothing is imputed, no lead is replaced, amplitude is never normalised per record.
Called by ``registry.prepare``.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import EcgCleanSpec, EcgSpec
from engines.records import LEAD_NAMES, EcgRecord

Signal = NDArray[np.float64]
CONSISTENCY_PERCENTILE = 98.0


def prepare_ecg(record: EcgRecord, spec: EcgSpec) -> Prepared:
    """Profile ``ecg_spine_v1``: first clean window, resampled, high-passed, in units of ``scale_mv``; else version 2.

    Returns:
        ``ecg`` float32 [1, 12, window_samples].

    Raises:
        InputRefused: rate, length, lead-off, saturation or consistency is out of bounds.
    """
    if isinstance(spec, EcgCleanSpec):
        from engines.preprocess.ecg_clean import prepare_ecg_clean

        return prepare_ecg_clean(record, spec)
    _check_rate(record.sampling_rate_hz, spec)
    start, window = _first_clean_window(record, spec)
    resampled = _resample(window, record.sampling_rate_hz, spec.sampling_rate_hz)
    filtered = _highpass(resampled, spec)
    fitted = filtered[:, : spec.window_samples]
    missing = spec.window_samples - fitted.shape[1]
    ecg = np.pad(fitted, ((0, 0), (0, missing))) / spec.scale_mv
    notes = (*record.warnings, *_notes(record, start / record.sampling_rate_hz, missing, spec))
    return Prepared(arrays={"ecg": ecg[None].astype(np.float32)}, sources=(record.source,), region_px=None, notes=notes)


def check_quality(window_mv: Signal, sampling_rate_hz: float, spec: EcgSpec) -> None:
    """Gate of one window.

    Args:
        window_mv: float64 [12, N] at the native rate, millivolt.
        sampling_rate_hz: native rate.
        spec: the thresholds.

    Raises:
        InputRefused: LEAD_OFF, SATURATED or LEADS_INCONSISTENT, with the lead and the measured value.
    """
    _check_padding(window_mv)
    _check_flat(window_mv, sampling_rate_hz, spec)
    _check_amplitude(window_mv, spec)
    _check_plateaus(window_mv, sampling_rate_hz, spec)
    _check_consistency(window_mv, spec)


def _check_rate(rate_hz: float, spec: EcgSpec) -> None:
    if not spec.source_rate_min_hz <= rate_hz <= spec.source_rate_max_hz:
        raise InputRefused(
            RefusalCode.SAMPLING_RATE_UNSUPPORTED,
            f"The ECG is sampled at {rate_hz:g} Hz; expected {spec.source_rate_min_hz:g} to {spec.source_rate_max_hz:g} Hz.",
        )


def _first_clean_window(record: EcgRecord, spec: EcgSpec) -> tuple[int, Signal]:
    first_refusal: InputRefused | None = None
    for start, window in _windows(record, spec):
        try:
            check_quality(window, record.sampling_rate_hz, spec)
        except InputRefused as refusal:
            first_refusal = first_refusal or refusal
        else:
            return start, window
    if first_refusal is not None:
        raise first_refusal
    seconds = record.signal_mv.shape[1] / record.sampling_rate_hz
    raise InputRefused(
        RefusalCode.RECORD_TOO_SHORT, f"The ECG lasts {seconds:.2f} s; expected at least {spec.window_min_s:g} s."
    )


def _windows(record: EcgRecord, spec: EcgSpec) -> Iterator[tuple[int, Signal]]:
    rate_hz = record.sampling_rate_hz
    samples = record.signal_mv.shape[1]
    length = round(spec.window_samples / spec.sampling_rate_hz * rate_hz)
    shortest = int(spec.window_min_s * rate_hz)
    if samples < shortest:
        return
    step = max(1, round(spec.window_step_s * rate_hz))
    for start in range(0, max(1, samples - length + 1), step):
        yield start, record.signal_mv[:, start : start + length].astype(np.float64)


def _check_padding(window_mv: Signal) -> None:
    padded = np.isnan(window_mv).mean(axis=1)
    if padded.max() > 0.0:
        lead = LEAD_NAMES[int(padded.argmax())]
        raise InputRefused(
            RefusalCode.LEAD_OFF,
            f"Lead {lead} holds no signal in {100 * padded.max():.1f} % of the window; expected a complete recording.",
        )


def _check_flat(window_mv: Signal, rate_hz: float, spec: EcgSpec) -> None:
    second = max(2, round(rate_hz))
    pieces = window_mv.shape[1] // second
    deviations = window_mv[:, : pieces * second].reshape(len(window_mv), pieces, second).std(axis=2)
    flat = (deviations < spec.flat_deviation_mv).mean(axis=1)
    if flat.max() > spec.flat_fraction_max:
        lead = LEAD_NAMES[int(flat.argmax())]
        raise InputRefused(
            RefusalCode.LEAD_OFF,
            f"Lead {lead} is flat (below {1000 * spec.flat_deviation_mv:g} uV) in {100 * flat.max():.0f} % of the window; "
            "check the electrode and record again.",
        )


def _check_amplitude(window_mv: Signal, spec: EcgSpec) -> None:
    departure = np.abs(window_mv - np.median(window_mv, axis=1, keepdims=True)).max(axis=1)
    if departure.max() > spec.amplitude_max_mv:
        lead = LEAD_NAMES[int(departure.argmax())]
        raise InputRefused(
            RefusalCode.SATURATED,
            f"Lead {lead} departs {departure.max():.1f} mV from its median; expected at most {spec.amplitude_max_mv:g} mV.",
        )


def _check_plateaus(window_mv: Signal, rate_hz: float, spec: EcgSpec) -> None:
    run = max(3, round(spec.saturated_run_ms / 1000.0 * rate_hz))
    for lead, row in zip(LEAD_NAMES, window_mv, strict=True):
        fraction = max(_plateau_samples(row == row.max(), run), _plateau_samples(row == row.min(), run)) / len(row)
        if fraction > spec.saturated_fraction_max:
            raise InputRefused(
                RefusalCode.SATURATED,
                f"Lead {lead} is clipped in {100 * fraction:.2f} % of the window; "
                f"expected at most {100 * spec.saturated_fraction_max:g} %.",
            )


def _plateau_samples(at_extreme: NDArray[np.bool_], run: int) -> int:
    edges = np.flatnonzero(np.diff(at_extreme.astype(np.int8), prepend=0, append=0))
    return sum(stop - start for start, stop in list(pairwise(edges.tolist()))[::2] if stop - start >= run)


def _check_consistency(window_mv: Signal, spec: EcgSpec) -> None:
    # The mean is linear, so offsets of single leads go and exact leads stay exact. A fault shows in the QRS complexes,
    # which fill a tenth of the time: a high percentile sees it, a median would not.
    centred = window_mv - window_mv.mean(axis=1, keepdims=True)
    lead = dict(zip(LEAD_NAMES, centred, strict=True))
    sums = {
        "I + III - II": lead["I"] + lead["III"] - lead["II"],
        "aVR + aVL + aVF": lead["aVR"] + lead["aVL"] + lead["aVF"],
    }
    departures = {name: float(np.percentile(np.abs(each), CONSISTENCY_PERCENTILE)) for name, each in sums.items()}
    worst = max(departures, key=departures.__getitem__)
    if departures[worst] > spec.consistency_max_mv:
        raise InputRefused(
            RefusalCode.LEADS_INCONSISTENT,
            f"{worst} is {1000 * departures[worst]:.0f} uV where Einthoven's and Goldberger's laws say 0 "
            f"(limit {1000 * spec.consistency_max_mv:g} uV); the leads are mislabelled or wrongly scaled.",
        )


def _resample(window_mv: Signal, from_hz: float, to_hz: float) -> Signal:
    ratio = Fraction(to_hz / from_hz).limit_denominator(1000)
    if ratio == 1:
        return window_mv
    return np.asarray(signal.resample_poly(window_mv, ratio.numerator, ratio.denominator, axis=1, padtype="line"))


def _highpass(window_mv: Signal, spec: EcgSpec) -> Signal:
    sections = signal.butter(spec.highpass_order, spec.highpass_hz, "highpass", fs=spec.sampling_rate_hz, output="sos")
    settle = min(2 * spec.sampling_rate_hz, window_mv.shape[1] - 1)
    return np.asarray(signal.sosfiltfilt(sections, window_mv, axis=1, padtype="odd", padlen=settle))


def _notes(record: EcgRecord, start_s: float, missing: int, spec: EcgSpec) -> Iterator[str]:
    if start_s > 0:
        yield f"The first {start_s:g} s were skipped: signal quality."
    if missing > 0:
        yield f"The record ends {1000 * missing / spec.sampling_rate_hz:.0f} ms before the window; filled with 0 mV."
    if record.lowpass_hz is not None and record.lowpass_hz < 100:
        yield f"The cart filtered above {record.lowpass_hz:g} Hz: QRS amplitudes are reduced."
    if record.highpass_hz is not None and record.highpass_hz > spec.highpass_hz:
        yield f"The cart filtered below {record.highpass_hz:g} Hz: ST segments may be distorted."
