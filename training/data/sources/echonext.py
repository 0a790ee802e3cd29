"""EchoNext 1.x: 100,000 ECGs at 250 Hz with findings of an echocardiogram, one array a split.

Layout: ``echonext_metadata_100k.csv`` and ``EchoNext_{train,val,test,no_split}_waveforms.npy``, [N, 1, 2500, 12], whose rows are
those of the table with that split, in order. Three things to know:

- The waveforms are median-filtered, clipped and standardised with numbers that are not published. They are no millivolt, and a
  record is: what one unit is worth has to be stated by the caller, and each record says so.
- ``no_split`` holds earlier ECGs of patients of validation and test. It is left out, or they would train on their own.
- A flag of 0 may mean that nothing was measured. Where the table has the measurement, an empty one makes the label unknown.

Source: Elias and Finer, EchoNext, PhysioNet 2025, doi 10.13026/r9pp-3y42.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.errors import InputRefused, RefusalCode
from engines.records import EcgRecord, SourceInstance
from training.data.sources.ecg_sets import EcgEntry, EcgSet, Home
from training.data.sources.ecg_tables import Row, rows_of_table

TABLES = ("echonext_metadata_100k.csv", "EchoNext_metadata_100k.csv")
LAYOUT = f"expected the folder of EchoNext, with {TABLES[0]} and EchoNext_<split>_waveforms.npy"
RATE_HZ = 250.0
SHAPE = (1, 2500, 12)
FLAGS = (
    "lvef_lte_45_flag",
    "lvwt_gte_13_flag",
    "aortic_stenosis_moderate_or_greater_flag",
    "aortic_regurgitation_moderate_or_greater_flag",
    "mitral_regurgitation_moderate_or_greater_flag",
    "tricuspid_regurgitation_moderate_or_greater_flag",
    "pulmonary_regurgitation_moderate_or_greater_flag",
    "rv_systolic_dysfunction_moderate_or_greater_flag",
    "pericardial_effusion_moderate_large_flag",
    "pasp_gte_45_flag",
    "tr_max_gte_32_flag",
    "shd_moderate_or_greater_flag",
)
_MEASURED = {"lvef_lte_45_flag": "lvef_value"}
"""The measurement behind a flag; the other columns of measurements are named after reading the release."""
_HOMES: Mapping[str, Home] = {"train": "training", "val": "validation", "test": "test"}
_SEXES = {"male": 1.0, "m": 1.0, "female": 0.0, "f": 0.0}
_WARNING = "The waveform was filtered, clipped and standardised by its publishers; its amplitude is a stated guess."
_SOURCE = SourceInstance(sop_class_uid="1.2", sop_instance_uid="2.25.11", series_instance_uid="2.25.12")


def echonext(root: Path, *, millivolt_per_unit: float | None) -> EcgSet:
    """Open the folder.

    Args:
        root: of the release.
        millivolt_per_unit: what one unit of the standardised waveforms is worth. There is no default: it is not published.

    Raises:
        ValueError: no scale, the folder is not of this layout, or an array does not have the rows of the table.
    """
    if millivolt_per_unit is None or not (math.isfinite(millivolt_per_unit) and millivolt_per_unit > 0):
        raise ValueError(
            f"millivolt_per_unit is {millivolt_per_unit}; the waveforms of EchoNext are standardised and a record is in"
            " millivolt: state what a unit is worth, such as from ECGs of known amplitude"
        )
    table = next((root / name for name in TABLES if (root / name).is_file()), root / TABLES[0])
    rows = list(rows_of_table(table, ("ecg_key", "patient_key", "split", *FLAGS), LAYOUT))
    by_split = {split: [row for row in rows if row.text("split") == split] for split in _HOMES}
    _check_splits(rows, by_split)
    places = {row.text("ecg_key"): (split, place) for split, each in by_split.items() for place, row in enumerate(each)}
    arrays = {split: _array(root, split, len(each)) for split, each in by_split.items() if each}
    entries = tuple(_entry(row, home) for split, home in _HOMES.items() for row in by_split[split])
    return EcgSet(name="EchoNext", entries=entries, load=_Loader(arrays, places, millivolt_per_unit))


def _check_splits(rows: Sequence[Row], by_split: Mapping[str, Sequence[Row]]) -> None:
    """Refuse an unknown split, and a patient of two: no_split alone may repeat patients, and is left out."""
    unknown = {row.text("split") for row in rows} - {*_HOMES, "no_split"}
    if unknown:
        raise ValueError(f"splits {sorted(unknown)[:3]}; expected {', '.join(_HOMES)} and no_split")
    patients = [{row.text("patient_key") for row in each} for each in by_split.values()]
    shared = sum(map(len, patients)) - len(set().union(*patients))
    if shared:
        raise ValueError(f"{shared} patients are in two splits; use the table of the release")


def _array(root: Path, split: str, rows: int) -> Path:
    """Where the array of a split lies, its header checked; the array itself is mapped when a record is loaded."""
    path = root / f"EchoNext_{split}_waveforms.npy"
    if not path.is_file():
        raise ValueError(f"no {path.name} in the folder; {LAYOUT}")
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path.name} is not readable as an array ({type(error).__name__}); fetch it again") from None
    if shape != (rows, *SHAPE):
        raise ValueError(
            f"{path.name} has shape {shape}; the table has {rows} ECGs of that split, expected {(rows, *SHAPE)}"
        )
    return path


@dataclass(frozen=True)
class _Loader:
    """The record of a key; a value, so that it travels to worker processes."""

    arrays: Mapping[str, Path]
    places: Mapping[str, tuple[str, int]]
    millivolt_per_unit: float

    def __call__(self, key: str) -> EcgRecord:
        split, place = self.places[key]
        stored = np.load(self.arrays[split], mmap_mode="r", allow_pickle=False)[place, 0]
        signal = np.asarray(stored, np.float64).T * self.millivolt_per_unit
        if np.isinf(signal).any():
            raise InputRefused(RefusalCode.UNDECODABLE, "the waveform holds infinite values; fetch the array again")
        return EcgRecord(
            signal_mv=signal.astype(np.float32), sampling_rate_hz=RATE_HZ, source=_SOURCE, warnings=(_WARNING,)
        )


def _entry(row: Row, home: Home) -> EcgEntry:
    lvef = row.number("lvef_value")
    return EcgEntry(
        key=row.text("ecg_key"),
        patient=row.text("patient_key"),
        targets={} if lvef is None else {"lvef": lvef},
        labels=_labels(row),
        demographics=_demographics(row),
        home=home,
    )


def _labels(row: Row) -> dict[str, bool]:
    """Flags that say something: one of 0 whose measurement is empty does not."""
    found = {name: row.flag(name) for name in FLAGS}
    unmeasured = {
        name
        for name, column in _MEASURED.items()
        if column in row.cells and row.number(column) is None and not found[name]
    }
    return {name: value for name, value in found.items() if value is not None and name not in unmeasured}


def _demographics(row: Row) -> dict[str, float]:
    age, sex = row.number("age_at_ecg"), row.optional("sex")
    if sex is not None and sex.lower() not in _SEXES:
        raise ValueError(f"{row.where}: sex is {sex[:12]!r}; expected male or female")
    found = {"age_years": age, "male": None if sex is None else _SEXES[sex.lower()]}
    return {name: value for name, value in found.items() if value is not None}
