"""Twelve-lead ECG to a fixed window in fixed units, behind a quality gate.

Every doubt ends in a refusal: nothing is imputed, no lead is replaced, amplitude is never normalised per record.
Called by ``registry.prepare``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.ecg_clean import prepare_ecg_clean
from engines.preprocess.ecg_quality import CONSISTENCY_PERCENTILE, check_rails
from engines.preprocess.ecg_window import Signal, first_clean_window, highpassed, resampled, window_notes
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import EcgSpec
from engines.records import LEAD_NAMES, EcgRecord


def prepare_ecg(record: EcgRecord, spec: EcgSpec) -> Prepared:
    """Prepare a record by the version of its specification.

    Returns:
        ``ecg`` float32 [1, 12, window_samples].

    Raises:
        InputRefused: rate, length, lead-off, saturation or consistency is out of bounds.
    """
    return _VERSIONS[spec.preprocess_version](record, spec)


def _spine(record: EcgRecord, spec: EcgSpec) -> Prepared:
    """Profile ``ecg_spine_v1``: first clean window, resampled, high-passed, in units of ``scale_mv``."""
    start, window = first_clean_window(record, spec, lambda window: _passed(window, record.sampling_rate_hz, spec))
    filtered = highpassed(resampled(window, record.sampling_rate_hz, spec.sampling_rate_hz), spec)
    fitted = filtered[:, : spec.window_samples]
    missing = spec.window_samples - fitted.shape[1]
    ecg = np.pad(fitted, ((0, 0), (0, missing))) / spec.scale_mv
    skipped = window_notes(start / record.sampling_rate_hz, missing, spec)
    notes = (*record.warnings, *skipped, *_filter_notes(record, spec))
    return Prepared(arrays={"ecg": ecg[None].astype(np.float32)}, sources=(record.source,), region_px=None, notes=notes)


_VERSIONS: Mapping[int, Callable[[EcgRecord, Any], Prepared]] = {1: _spine, 2: prepare_ecg_clean}


def _passed(window_mv: Signal, sampling_rate_hz: float, spec: EcgSpec) -> Signal:
    """Gate of one window: LEAD_OFF, SATURATED or LEADS_INCONSISTENT, with the lead and the measured value."""
    _check_padding(window_mv)
    _check_flat(window_mv, sampling_rate_hz, spec)
    check_rails(window_mv, sampling_rate_hz, spec, LEAD_NAMES)
    _check_consistency(window_mv, spec)
    return window_mv


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


def _filter_notes(record: EcgRecord, spec: EcgSpec) -> Iterator[str]:
    if record.lowpass_hz is not None and record.lowpass_hz < 100:
        yield f"The cart filtered above {record.lowpass_hz:g} Hz: QRS amplitudes are reduced."
    if record.highpass_hz is not None and record.highpass_hz > spec.highpass_hz:
        yield f"The cart filtered below {record.highpass_hz:g} Hz: ST segments may be distorted."
