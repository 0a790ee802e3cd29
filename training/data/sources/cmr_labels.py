"""Reads ``labels.csv`` and joins labels with images; used by the NIfTI and DICOM layouts, the join by all three.

Messages name lines, not patients.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping
from pathlib import Path

import structlog

LABELS_FILE = "labels.csv"
LOWEST_PERCENT, HIGHEST_PERCENT = 2.0, 98.0
"""No heart ejects less or more; below 1 the values are fractions."""

_COLUMNS = ("id", "lvef_percent")
_log = structlog.get_logger()


def read_labels(root: Path) -> dict[str, float]:
    """LVEF in percent by id.

    Raises:
        ValueError: no file, a column missing, or a line without a usable id and value.
    """
    path = root / LABELS_FILE
    if not path.is_file():
        raise ValueError(f"no {LABELS_FILE} in the folder; write one with the columns {' and '.join(_COLUMNS)}")
    labels: dict[str, float] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            _check_columns(reader.fieldnames or ())
            for row in reader:
                _add(labels, row, reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{LABELS_FILE} is not readable as CSV in UTF-8 ({type(error).__name__})") from None
    if not labels:
        raise ValueError(f"{LABELS_FILE} has a header and no studies")
    return labels


def join_labels(
    name: str, labels: Mapping[str, float], images: Collection[str], exclude_percent: tuple[float, float] | None
) -> dict[str, float]:
    """Labels of the studies that have images, less those within the excluded band.

    Raises:
        ValueError: nothing is left.
    """
    both = {key: value for key, value in labels.items() if key in images}
    if not both:
        raise ValueError(
            f"{len(labels)} labels and {len(images)} studies with images have no id in common; compare how they are written"
        )
    kept = {key: value for key, value in both.items() if not _within(value, exclude_percent)}
    if not kept:
        raise ValueError(f"all {len(both)} studies lie within the excluded {exclude_percent} %; choose a narrower band")
    _log.info(
        "data_set.opened",
        data_set=name,
        studies=len(kept),
        labels_without_images=len(labels) - len(both),
        images_without_label=len(images) - len(both),
        excluded=len(both) - len(kept),
    )
    return kept


def _within(value: float, band: tuple[float, float] | None) -> bool:
    return band is not None and band[0] <= value <= band[1]


def _check_columns(header: Collection[str]) -> None:
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise ValueError(f"{LABELS_FILE} has the columns {list(header)}; {' and '.join(missing)} missing")


def _add(labels: dict[str, float], row: Mapping[str, str | None], line: int) -> None:
    key = (row["id"] or "").strip()
    if not key:
        raise ValueError(f"{LABELS_FILE} line {line} has no id")
    if key in labels:
        raise ValueError(f"{LABELS_FILE} line {line} repeats an id; expected one line a patient")
    labels[key] = percent(row["lvef_percent"] or "", f"{LABELS_FILE} line {line}")


def percent(text: str, where: str) -> float:
    """A plausible ejection fraction in percent.

    Raises:
        ValueError: no number, or outside ``LOWEST_PERCENT`` to ``HIGHEST_PERCENT``.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not LOWEST_PERCENT <= value <= HIGHEST_PERCENT:
        hint = "; a fraction? multiply by 100" if 0 < value <= 1 else ""
        raise ValueError(
            f"{where}: LVEF is {text!r}; expected a number from {LOWEST_PERCENT:g} to {HIGHEST_PERCENT:g} percent{hint}"
        )
    return value
