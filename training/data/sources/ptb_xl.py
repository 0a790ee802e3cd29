"""PTB-XL 1.0.3: 21,799 ten-second ECGs of 18,869 patients, statements in SCP-ECG codes, and flags of signal quality.

Layout: ``ptbxl_database.csv``, ``scp_statements.csv``, ``records500/`` and ``records100/``. No target of cardiac MR is known of
these ECGs; they train the encoder and measure the quality gate.

Source: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset", Scientific Data 7 (2020), 154.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.records import EcgRecord
from training.data.sources.ecg_sets import EcgEntry, EcgSet, Home
from training.data.sources.ecg_tables import Row, rows_of_table
from training.data.sources.wfdb_ecg import read_wfdb, record_within

TABLE, STATEMENTS = "ptbxl_database.csv", "scp_statements.csv"
LAYOUT = f"expected the folder of PTB-XL 1.0.3, with {TABLE}, {STATEMENTS} and the folders records500 or records100"
QUALITY_FLAGS = ("baseline_drift", "static_noise", "burst_noise", "electrodes_problems", "extra_beats", "pacemaker")
"""Free text where it applies, such as the leads; an empty cell says that nobody noted it."""
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
OLDEST_STATED_YEARS = 89.0
"""Older patients are written as 300 years."""

_COLUMNS = ("ecg_id", "patient_id", "age", "sex", "height", "weight", "recording_date", "scp_codes", "strat_fold")
_FILES = {500: "filename_hr", 100: "filename_lr"}
_FIRST_FOLD_OF_VALIDATION, _FOLD_OF_TEST = 9, 10


def ptb_xl(root: Path, *, rate_hz: Literal[100, 500] = 500) -> EcgSet:
    """Open the folder.

    Args:
        root: of the release.
        rate_hz: which of the two copies.

    Raises:
        ValueError: the folder is not of this layout, a line is broken, or records of the table are missing.
    """
    classes = _superclasses(root)
    rows = list(rows_of_table(root / TABLE, (*_COLUMNS, *QUALITY_FLAGS, _FILES[rate_hz]), LAYOUT))
    paths = {row.whole("ecg_id"): record_within(root, row.text(_FILES[rate_hz])) for row in rows}
    missing = sum(not path.with_suffix(".hea").is_file() for path in paths.values())
    if missing:
        raise ValueError(
            f"{missing} of {len(paths)} records of {TABLE} at {rate_hz} Hz are not in the folder; fetch them"
        )
    entries = tuple(_entry(row, classes) for row in rows)
    return EcgSet(name=f"PTB-XL at {rate_hz} Hz", entries=entries, load=_Loader(paths))


@dataclass(frozen=True)
class _Loader:
    """The record of a key; a value, so that it travels to worker processes."""

    paths: Mapping[str, Path]

    def __call__(self, key: str) -> EcgRecord:
        return read_wfdb(self.paths[key])


def _superclasses(root: Path) -> dict[str, str]:
    """Diagnostic class by code; codes of form and rhythm have none."""
    rows = rows_of_table(root / STATEMENTS, ("", "diagnostic_class"), LAYOUT)
    return {row.text(""): found for row in rows if (found := row.optional("diagnostic_class")) is not None}


def _entry(row: Row, classes: Mapping[str, str]) -> EcgEntry:
    codes = _codes(row)
    present = {classes[code] for code in codes if code in classes}
    labels = {name: row.optional(name) is not None for name in QUALITY_FLAGS}
    labels |= {f"superclass_{name}": name in present for name in SUPERCLASSES}
    return EcgEntry(
        key=row.whole("ecg_id"),
        patient=row.whole("patient_id"),
        recorded=row.day("recording_date"),
        labels=labels | {"rhythm_atrial_fibrillation": "AFIB" in codes},
        demographics=_demographics(row),
        home=_home(row),
    )


def _codes(row: Row) -> set[str]:
    """Codes of the statements; the number beside a code is its likelihood, 0 where the report gives none."""
    try:
        return {str(code) for code in dict(ast.literal_eval(row.text("scp_codes")))}
    except (ValueError, TypeError, SyntaxError):
        raise ValueError(f"{row.where}: scp_codes is no dictionary such as {{'NORM': 100.0}}") from None


def _demographics(row: Row) -> dict[str, float]:
    """Age, sex, height and weight as far as they are stated; 0 is male in this table."""
    sex, age = row.flag("sex"), row.number("age")
    found = {
        "age_years": age if age is not None and 0 < age <= OLDEST_STATED_YEARS else None,
        "male": None if sex is None else float(not sex),
        "height_cm": row.number("height"),
        "weight_kg": row.number("weight"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _home(row: Row) -> Home:
    """Folds 1 to 8 train, 9 validates, 10 tests, as published."""
    fold = int(row.whole("strat_fold"))
    if not 1 <= fold <= _FOLD_OF_TEST:
        raise ValueError(f"{row.where}: strat_fold is {fold}; expected 1 to {_FOLD_OF_TEST}")
    if fold == _FOLD_OF_TEST:
        return "test"
    return "validation" if fold == _FIRST_FOLD_OF_VALIDATION else "training"
