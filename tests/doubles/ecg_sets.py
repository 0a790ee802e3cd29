"""Small files in the layouts of public ECG sets: WFDB records and tables with a header."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wfdb

from engines.records import LEAD_NAMES


def signal(seed: int, samples: int = 60) -> np.ndarray:
    """Twelve different leads in the canonical order, [12, samples] in whole microvolts as mV."""
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(0, 0.3, (12, samples)), 3)


def write_record(
    path: Path, signal_mv: np.ndarray, names: Sequence[str], *, rate_hz: int = 500, unit: str = "mV", scale: float = 1.0
) -> None:
    """A record as the releases hold it: 16 bits, a thousandth of a millivolt a step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = [[lead.upper() for lead in LEAD_NAMES].index(name.upper()) for name in names]
    wfdb.wrsamp(
        path.name,
        fs=rate_hz,
        units=[unit] * len(names),
        sig_name=list(names),
        p_signal=(signal_mv[order] * scale).T,
        fmt=["16"] * len(names),
        adc_gain=[1000.0 / scale] * len(names),
        baseline=[0] * len(names),
        write_dir=str(path.parent),
    )


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def edited(path: Path, change: Callable[[str], str]) -> None:
    """Change the text of a file."""
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
