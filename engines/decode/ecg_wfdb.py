"""WFDB records (PhysioNet): a text header and the signal files beside it, formats 16, 24, 32, 61, 80, 160 and 212.

``value = (stored - baseline) / gain`` in the stated unit. MATLAB 4 files are format 16 behind a byte offset. A gain of 0 means
uncalibrated and is refused. The ``wfdb`` package reads more, but brings pandas and a network client into the serving
environment; the tests hold this reader against it. Called by ``ecg_file``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from engines.decode.ecg_leads import lead_named, millivolt_per, require_independent
from engines.decode.ecg_reading import (
    MAX_FILE_BYTES,
    EcgContent,
    EcgOrigin,
    EcgReading,
    cut_off,
    malformed,
    moment_of,
    require_rate,
    sex_code,
)
from engines.errors import InputRefused, RefusalCode

MAX_SIGNALS, MAX_SAMPLES = 64, 2_000_000
_HEADER_BYTES = 65_536
_RECORD = re.compile(
    r"^(?P<name>[\w.-]+)(?P<segments>/\d+)?[ \t]+(?P<signals>\d+)"
    r"(?:[ \t]+(?P<rate>[\d.eE+-]+)(?:/[^\s]*)?(?:[ \t]+(?P<samples>\d+)"
    r"(?:[ \t]+(?P<time>[\d:.]+)(?:[ \t]+(?P<date>[\d/]+))?)?)?)?\s*$"
)
_FORMAT = re.compile(r"^(?P<format>\d+)(?:x(?P<per_frame>\d+))?(?::(?P<skew>\d+))?(?:\+(?P<offset>\d+))?$")
_GAIN = re.compile(r"^(?P<gain>[\d.eE+-]+)(?:\((?P<baseline>-?\d+)\))?(?:/(?P<unit>\S+))?$")
_COMMENT = re.compile(r"^#+\s*<?(?P<key>age|sex)>?\s*:\s*(?P<value>\S+)", re.IGNORECASE)
_INVALID = {16: -(2**15), 61: -(2**15), 160: -(2**15), 24: -(2**23), 32: -(2**31), 80: -(2**7), 212: -(2**11)}
"""The stored value that marks a missing sample."""
_LINEAR = {16: ("<i2", 0), 61: (">i2", 0), 32: ("<i4", 0), 80: ("u1", 2**7), 160: ("<u2", 2**15)}
"""Whole bytes, and what is subtracted."""


@dataclass(frozen=True, kw_only=True)
class _SignalLine:
    """One signal as the header describes it."""

    file: str
    format: int
    offset: int
    skew: int
    per_frame: int
    gain: float
    baseline: int
    unit: str
    checksum: int | None
    description: str


def recognises(content: EcgContent) -> bool:
    """True for a header: a record line after comments, and a file name and a format in the next."""
    lines = _lines(content.data[:_HEADER_BYTES])
    return bool(lines) and _RECORD.match(lines[0]) is not None and (len(lines) == 1 or len(lines[1].split()) >= 2)


def read(content: EcgContent) -> EcgReading:
    """Read the twelve leads among the signals.

    Raises:
        InputRefused: leads missing, no gain, another format, or signal files that are absent or cut short.
    """
    lines = _lines(content.data[:_HEADER_BYTES])
    record = _RECORD.match(lines[0])
    if record is None or record["segments"]:
        raise malformed("the header is not that of one segment (name the header of a segment of a longer record)")
    count = int(record["signals"])
    if not 0 < count <= MAX_SIGNALS or len(lines) - 1 < count:
        raise malformed(f"the header promises {count} signals and describes {len(lines) - 1}")
    signals = [_signal_line(line) for line in lines[1 : count + 1]]
    leads = _leads(signals)
    rate_hz = require_rate(_number(record["rate"]) if record["rate"] else None)
    stored = _stored(content, signals, int(record["samples"] or 0))
    return EcgReading(
        signals_mv={lead: _millivolt(signals[index], stored[index]) for lead, index in leads.items()},
        sampling_rate_hz=rate_hz,
        steps_mv={lead: millivolt_per(signals[index].unit) / signals[index].gain for lead, index in leads.items()},
        warnings=_warnings(signals, leads, stored),
        origin=_origin(record, content.data),
    )


def _lines(data: bytes) -> list[str]:
    """Lines of a header that are neither comments nor empty."""
    text = data.decode("latin-1")
    if "\0" in text:
        return []
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _signal_line(line: str) -> _SignalLine:
    words = line.split(maxsplit=8)
    kind = _FORMAT.match(words[1]) if len(words) > 1 else None
    if kind is None:
        raise malformed(f"a signal line has no format: {len(words)} words")
    gain = _GAIN.match(words[2]) if len(words) > 2 else None
    zero = int(_number(words[4])) if len(words) > 4 else 0
    return _SignalLine(
        file=words[0],
        format=int(kind["format"]),
        offset=int(kind["offset"] or 0),
        skew=int(kind["skew"] or 0),
        per_frame=int(kind["per_frame"] or 1),
        gain=_number(gain["gain"]) if gain else 0.0,
        baseline=int(gain["baseline"]) if gain and gain["baseline"] else zero,
        unit=(gain["unit"] if gain else None) or "mV",  # the format's own default (header(5))
        checksum=int(_number(words[6])) if len(words) > 6 else None,
        description=words[8] if len(words) > 8 else "",
    )


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise malformed("the header holds something else where a number is expected")
    return number


def _leads(signals: Sequence[_SignalLine]) -> dict[str, int]:
    """Index of the signal of each lead; every one calibrated and simultaneous."""
    named = [(lead_named(each.description), index) for index, each in enumerate(signals)]
    leads = {lead: index for lead, index in named if lead is not None}
    require_independent(leads)
    if len(leads) < sum(lead is not None for lead, _ in named):
        raise InputRefused(RefusalCode.LEADS_INCONSISTENT, "a lead is in the record twice; expected each once")
    for lead, index in leads.items():
        _require_usable(lead, signals[index])
    return leads


def _require_usable(lead: str, line: _SignalLine) -> None:
    if line.gain == 0:
        raise InputRefused(RefusalCode.UNIT_UNKNOWN, f"lead {lead} states no gain; without it its amplitude is unknown")
    millivolt_per(line.unit)
    if line.skew > 1:
        raise InputRefused(
            RefusalCode.LEADS_NOT_SIMULTANEOUS,
            f"lead {lead} is skewed by {line.skew} samples; simultaneous leads are expected",
        )


def _stored(content: EcgContent, signals: Sequence[_SignalLine], promised: int) -> list[NDArray[np.int64]]:
    """Stored values of every signal, file by file: signals of one file are interleaved."""
    if promised > MAX_SAMPLES:
        raise InputRefused(RefusalCode.LIMITS_EXCEEDED, f"{promised} samples; at most {MAX_SAMPLES} are read")
    stored: list[NDArray[np.int64]] = []
    for name, group in groupby(signals, key=lambda line: line.file):
        lines = list(group)
        if len({line.format for line in lines}) > 1 or any(line.per_frame != 1 for line in lines):
            raise malformed(f"the signals of {name[:32]!r} differ in format or rate")
        values = _unpacked(_signal_bytes(content, name)[lines[0].offset :], lines[0].format)
        frames = promised or len(values) // len(lines)
        if len(values) < frames * len(lines) or frames == 0:
            raise cut_off(f"a signal file holds {len(values)} values where {max(1, frames) * len(lines)} are promised")
        stored += list(values[: frames * len(lines)].reshape(frames, len(lines)).T)
    return stored


def _signal_bytes(content: EcgContent, name: str) -> bytes:
    """Bytes of a signal file, which lies beside its header and nowhere else."""
    if name != name.replace("\\", "/").rpartition("/")[2] or name.startswith(".") or name in {"-", "~"}:
        raise malformed("a signal file is not named as a file beside the header")
    path = content.path.parent / name
    if not path.is_file():
        raise cut_off("a signal file that the header names does not lie beside it")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputRefused(RefusalCode.LIMITS_EXCEEDED, f"a signal file has more than {MAX_FILE_BYTES} bytes")
    return path.read_bytes()


def _unpacked(data: bytes, kind: int) -> NDArray[np.int64]:
    """Stored values in file order, int64 [N] (signal(5))."""
    if kind in _LINEAR:
        dtype, zero = _LINEAR[kind]
        return np.frombuffer(data, dtype, count=len(data) // np.dtype(dtype).itemsize).astype(np.int64) - zero
    if kind not in _INVALID:
        raise malformed(f"the signal format {kind} is not read here; expected {', '.join(map(str, sorted(_INVALID)))}")
    parts = np.frombuffer(data, "u1", count=len(data) // 3 * 3).reshape(-1, 3).astype(np.int64)
    if kind == 24:
        return _signed(parts @ np.array([1, 2**8, 2**16]), 24)
    low, middle, high = parts.T
    pairs = np.stack([low + (middle % 16) * 2**8, high + (middle // 16) * 2**8], axis=1)
    return _signed(pairs.ravel(), 12)


def _signed(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    return np.where(values >= 2 ** (bits - 1), values - 2**bits, values)


def _millivolt(line: _SignalLine, stored: NDArray[np.int64]) -> NDArray[np.float64]:
    values = (stored - line.baseline) / line.gain * millivolt_per(line.unit)
    values[stored == _INVALID[line.format]] = np.nan
    return values


def _warnings(
    signals: Sequence[_SignalLine], leads: dict[str, int], stored: Sequence[NDArray[np.int64]]
) -> tuple[str, ...]:
    """Leads whose sum is not that of the header: 16 bits, signed."""
    altered = [lead for lead, index in leads.items() if _differs(signals[index].checksum, stored[index])]
    return (f"The checksums of leads {', '.join(altered)} differ from the header's.",) if altered else ()


def _differs(checksum: int | None, stored: NDArray[np.int64]) -> bool:
    return checksum is not None and (int(stored.sum()) - checksum) % 2**16 != 0


def _origin(record: re.Match[str], data: bytes) -> EcgOrigin:
    comments = (_COMMENT.match(line.strip()) for line in data.decode("latin-1").splitlines())
    stated = {match["key"].lower(): match["value"] for match in comments if match}
    return EcgOrigin(sex=sex_code(stated.get("sex")), acquired_at=_moment(record["date"], record["time"]))


def _moment(date: str | None, time: str | None) -> datetime | None:
    """Base date ``DD/MM/YYYY`` and time ``HH:MM:SS``."""
    day = (date or "").split("/")
    return moment_of(day[2], day[1], day[0], *(time or "").split(":")) if len(day) == 3 and time else None
