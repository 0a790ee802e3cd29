"""MIMIC-IV-ECG 1.0: about 800,000 ten-second ECGs of 160,000 patients at 500 Hz, with the cart's own measurements.

Layout: ``record_list.csv``, ``files/pNNNN/pNNNNNNNN/sNNNNNNNN/NNNNNNNN.{hea,dat}`` and, if wanted, ``machine_measurements.csv``.
Days are shifted by a constant per patient: days between ECGs of a patient are true, the years are not. Waveforms hold NaN
segments and constant leads; they stay as they are for the quality gate to refuse.

Source: Gow et al., MIMIC-IV-ECG: Diagnostic Electrocardiogram Matched Subset 1.0, PhysioNet 2023.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.records import EcgRecord
from training.data.sources.ecg_sets import EcgEntry, EcgSet
from training.data.sources.ecg_tables import Row, rows_of_table
from training.data.sources.wfdb_ecg import read_wfdb, record_within

RECORDS, MEASUREMENTS = "record_list.csv", "machine_measurements.csv"
LAYOUT = f"expected the folder of MIMIC-IV-ECG 1.0, with {RECORDS} and the folder files"
LONGEST_QRS_MS = 400.0
"""The cart writes 29999 where it did not measure; no ventricle takes longer than this."""

_COLUMNS = ("subject_id", "study_id", "ecg_time", "path")
_REPORTS = tuple(f"report_{index}" for index in range(18))
_PACED = re.compile(r"\bpac(?:ed|ing|er|emaker)\b", re.IGNORECASE)

_Measured = tuple[Mapping[str, float], Mapping[str, bool]]


def mimic_iv_ecg(root: Path, *, keep: Callable[[str], bool] | None = None) -> EcgSet:
    """Open the folder.

    Args:
        root: of the release.
        keep: of a patient, whether to take the ECGs; None takes all. Where only a part of the release was fetched, say which.

    Raises:
        ValueError: the folder is not of this layout, a line is broken, nobody is kept, or the first record is not there.
    """
    measured = _measurements(root)
    paths: dict[str, Path] = {}
    entries = []
    for row in rows_of_table(root / RECORDS, _COLUMNS, LAYOUT):
        if keep is None or keep(row.whole("subject_id")):
            entries.append(_entry(row, measured))
            paths[entries[-1].key] = record_within(root, row.text("path"))
    if not entries:
        raise ValueError(f"no ECG of {RECORDS} is of a patient that is kept; ask for others")
    if not paths[entries[0].key].with_suffix(".hea").is_file():
        raise ValueError(
            f"the first record of {RECORDS} is not in the folder; fetch the folder files, or keep those you have"
        )
    return EcgSet(name="MIMIC-IV-ECG", entries=tuple(entries), load=_Loader(paths))


@dataclass(frozen=True)
class _Loader:
    """The record of a key; a value, so that it travels to worker processes."""

    paths: Mapping[str, Path]

    def __call__(self, key: str) -> EcgRecord:
        return read_wfdb(self.paths[key])


def _entry(row: Row, measured: Mapping[str, _Measured]) -> EcgEntry:
    key = row.whole("study_id")
    targets, labels = measured.get(key, ({}, {}))
    recorded = row.day("ecg_time")
    return EcgEntry(key=key, patient=row.whole("subject_id"), recorded=recorded, targets=targets, labels=labels)


def _measurements(root: Path) -> dict[str, _Measured]:
    """QRS duration and whether a statement speaks of pacing, by ECG; empty where the table was not fetched."""
    if not (root / MEASUREMENTS).exists():
        return {}
    rows = rows_of_table(root / MEASUREMENTS, ("study_id", "qrs_onset", "qrs_end", _REPORTS[0]), LAYOUT)
    return {row.whole("study_id"): (_targets(row), {"paced": _paced(row)}) for row in rows}


def _targets(row: Row) -> Mapping[str, float]:
    onset, end = row.number("qrs_onset"), row.number("qrs_end")
    if onset is None or end is None or not 0 < end - onset <= LONGEST_QRS_MS:
        return {}
    return {"qrs_duration_ms": end - onset}


def _paced(row: Row) -> bool:
    return any(_PACED.search(row.optional(column) or "") for column in _REPORTS)
