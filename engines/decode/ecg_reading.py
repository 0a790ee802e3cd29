"""What a reader of an ECG file hands over: recorded leads in millivolt, and who and what the file says they came from.

``EcgOrigin`` is the only place where a patient's identity stands beside a signal; it never enters a record. Made by the readers
``ecg_*``, turned into records by ``ecg_file``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from engines.decode.ecg_leads import Signal
from engines.errors import InputRefused, RefusalCode

MAX_FILE_BYTES = 32 * 2**20
"""A resting ECG takes half a megabyte as XML; what is larger than this is a long recording or no ECG at all."""


@dataclass(frozen=True, kw_only=True)
class EcgContent:
    """The bytes of a file, and where it lies: the signals of a WFDB record stand in files beside its header."""

    path: Path
    data: bytes


@dataclass(frozen=True, kw_only=True)
class EcgOrigin:
    """Whose ECG it is and what recorded it, as far as the file says so.

    Args:
        patient_id: as in the file.
        patient_name: a DICOM person name, family^given (PS3.5 6.2.1).
        birth_date: YYYYMMDD.
        sex: M, F or O.
        accession_number: of the order.
        acquired_at: local time.
        manufacturer, model, software: of the cart.
    """

    patient_id: str | None = None
    patient_name: str | None = None
    birth_date: str | None = None
    sex: str | None = None
    accession_number: str | None = None
    acquired_at: datetime | None = None
    manufacturer: str | None = None
    model: str | None = None
    software: str | None = None


@dataclass(frozen=True, kw_only=True)
class EcgReading:
    """One simultaneous recording.

    Args:
        signals_mv: float64 [N] by lead, recorded leads only; NaN where the file marks a sample as invalid.
        sampling_rate_hz: native rate.
        steps_mv: size of one stored step, by lead.
        highpass_hz, lowpass_hz, notch_hz: filter edges stated by the file, or None.
        warnings: sentences for the report, without patient data.
        origin: patient and cart.
    """

    signals_mv: Mapping[str, Signal]
    sampling_rate_hz: float
    steps_mv: Mapping[str, float]
    highpass_hz: float | None = None
    lowpass_hz: float | None = None
    notch_hz: float | None = None
    warnings: tuple[str, ...] = ()
    origin: EcgOrigin = field(default_factory=EcgOrigin)


def malformed(found: str) -> InputRefused:
    """A refusal for a file that is not what its format says."""
    return InputRefused(RefusalCode.UNDECODABLE, f"{found}; export the ECG again from its source")


def cut_off(found: str) -> InputRefused:
    """A refusal for samples that are missing."""
    return InputRefused(RefusalCode.PIXEL_DATA_INCONSISTENT, f"{found}; the file is incomplete: export it again")


def require_rate(rate_hz: float | None) -> float:
    """The sampling rate, refused where the file does not state a possible one.

    Raises:
        InputRefused: SAMPLING_RATE_UNSUPPORTED.
    """
    if rate_hz is None or not 0 < rate_hz <= 100_000:
        raise InputRefused(
            RefusalCode.SAMPLING_RATE_UNSUPPORTED, f"the sampling rate is {rate_hz}; expected 200 to 1000 Hz"
        )
    return rate_hz


def person_name(family: str | None, given: str | None) -> str | None:
    """Family and given name as a DICOM person name; characters that separate its parts are taken out."""
    parts = [(part or "").strip().translate({ord(each): " " for each in "^=\\"}) for part in (family, given)]
    name = "^".join(parts).rstrip("^")
    return name if name.strip("-^ ") else None  # carts write dashes for what they do not know


def sex_code(text: str | None) -> str | None:
    """Return M, F or O (PS3.3 C.7.1.1), or None where the file does not say."""
    return {"M": "M", "F": "F", "O": "O"}.get((text or "").strip().upper()[:1])


def date_code(year: str | None, month: str | None, day: str | None) -> str | None:
    """YYYYMMDD, or None where the parts are no date."""
    moment = moment_of(year, month, day)
    return moment.strftime("%Y%m%d") if moment is not None else None


def moment_of(*parts: str | None) -> datetime | None:
    """Year, month, day and, where given, hour, minute, second as a local time; None where they are none."""
    try:
        numbers = [int(float(part or "")) for part in parts]
        return datetime(*numbers) if len(numbers) >= 3 and numbers[0] >= 1800 else None  # type: ignore[arg-type]  # noqa: DTZ001 - carts write local time
    except (TypeError, ValueError, OverflowError):
        return None
