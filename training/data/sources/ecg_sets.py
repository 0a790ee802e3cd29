"""ECGs of a data set, whatever its layout: what stores are built from.

An ``EcgSet`` knows of every ECG its key, patient, day, targets, labels and demographics without reading a waveform; the record
is loaded when asked for, in any process. What was not measured is absent, never filled in. Nothing here writes; a key or
patient never enters a log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal

import structlog

from engines.errors import InputRefused, Refusal, RefusalCode
from engines.records import EcgRecord

EcgDecoder = Callable[[bytes], EcgRecord]
"""Content of a file to its record; raises ``Refusal``. Picklable, as it travels to worker processes."""
Home = Literal["training", "validation", "test"]

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class EcgEntry:
    """What a data set says of one ECG.

    Args:
        key: names the ECG within the data set; never for a log.
        patient: names the patient within the data set; never for a log.
        recorded: day of the ECG; None where the data set does not say it.
        targets: measured quantities by name, in the unit of ``training.data.targets`` or of the reader.
        labels: conditions and quality flags that are known, by name.
        demographics: ``age_years``, ``male`` (0 or 1), ``height_cm``, ``weight_kg``, ``bmi_kg_m2`` where stated.
        home: the part the publishers put it in, or None.
    """

    key: str = field(repr=False)
    patient: str = field(repr=False)
    recorded: date | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, bool] = field(default_factory=dict)
    demographics: Mapping[str, float] = field(default_factory=dict)
    home: Home | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EcgCase:
    """One ECG with its waveform."""

    entry: EcgEntry
    record: EcgRecord = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class EcgSet:
    """The ECGs of every layout.

    Args:
        name: layout and source of the labels, for tables and logs.
        entries: one an ECG.
        load: the record of a key; raises ``Refusal`` where it cannot be used.
    """

    name: str
    entries: tuple[EcgEntry, ...] = field(repr=False)
    load: Callable[[str], EcgRecord] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse an empty set and keys that are there twice."""
        if not self.entries:
            raise ValueError(f"{self.name}: no ECG")
        repeated = len(self.entries) - len(self._by_key)
        if repeated:
            raise ValueError(f"{self.name}: {repeated} keys are there twice; expected one row an ECG")

    @cached_property
    def _by_key(self) -> dict[str, EcgEntry]:
        return {entry.key: entry for entry in self.entries}

    def entry(self, key: str) -> EcgEntry:
        """Return what is known of an ECG.

        Raises:
            ValueError: no ECG has this key.
        """
        if key not in self._by_key:
            raise ValueError(f"{self.name}: no ECG has this key")
        return self._by_key[key]

    def case(self, key: str) -> EcgCase:
        """Read one ECG.

        Raises:
            Refusal: its waveform cannot be used; others may be fine.
            ValueError: no ECG has this key.
        """
        return EcgCase(entry=self.entry(key), record=self.load(key))


def usable_cases(ecg_set: EcgSet, keys: Iterable[str] | None = None) -> Iterator[EcgCase]:
    """Read ECGs one after the other and leave out those that are refused; reasons are counted in the log.

    A case carries its key, so what is left out moves nobody.

    Raises:
        ValueError: every one of them was refused.
    """
    refused: Counter[str] = Counter()
    read = 0
    for key in [entry.key for entry in ecg_set.entries] if keys is None else keys:
        try:
            case = ecg_set.case(key)
        except Refusal as refusal:
            refused[refusal.code.value] += 1
            continue
        read += 1
        yield case
    _log.info("ecgs.read", data_set=ecg_set.name, read=read, **refused)
    if refused and not read:
        raise ValueError(f"{ecg_set.name}: every ECG was refused ({dict(refused)}); look at one of them")


def file_content(path: Path, what: str, most_bytes: int) -> bytes:
    """Return the bytes of a file of a data set.

    Raises:
        InputRefused: UNDECODABLE, the file is missing or not readable; LIMITS_EXCEEDED, it is larger than any such file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        message = f"the {what} is not readable ({type(error).__name__}); fetch it again"
        raise InputRefused(RefusalCode.UNDECODABLE, message) from None
    if len(content) > most_bytes:
        raise InputRefused(RefusalCode.LIMITS_EXCEEDED, f"the {what} has more than {most_bytes} bytes; fetch it again")
    return content
