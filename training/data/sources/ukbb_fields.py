"""Any fields of UK Biobank from participant tables: quantities of cardiac MR, diagnoses with dates, visits, body and age.

Columns are named as in ``ukbb_table`` and by the research platform, which leaves out what a field does not have:
``p31``, ``p53_i2``, ``p41270`` (all codes in one cell), ``p41280_a7``. Messages name files, columns and lines.

Fields: category 157, 24100 to 24181 (Bai et al., Nature Medicine 26 (2020), 1654-1662); 41270 and 41280, diagnoses of hospital
records and their first dates; 53, day of a visit; 31, 21003, 50, 21002, 21001, sex, age, height, weight and body mass index.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from training.data.icd10_outcomes import Diagnosis
from training.data.sources.ukbb_table import MISSING, Header, header_of, rows_of, table_files

_AORTA = ("maximum_area", "minimum_area", "distensibility")
_WHOLE = (
    *("lvedv", "lvesv", "lvsv", "lvef", "cardiac_output", "lv_mass", "rvedv", "rvesv", "rvsv", "rvef"),
    *(
        "la_maximum_volume",
        "la_minimum_volume",
        "lasv",
        "laef",
        "ra_maximum_volume",
        "ra_minimum_volume",
        "rasv",
        "raef",
    ),
    *(f"ascending_aorta_{name}" for name in _AORTA),
    *(f"descending_aorta_{name}" for name in _AORTA),
)
_SEGMENTS = (
    *(f"wall_thickness_aha{segment}" for segment in range(1, 17)),
    "wall_thickness",
    *(f"circumferential_strain_aha{segment}" for segment in range(1, 17)),
    "circumferential_strain",
    *(f"radial_strain_aha{segment}" for segment in range(1, 17)),
    "radial_strain",
    *(f"longitudinal_strain_segment{segment}" for segment in range(1, 7)),
    "longitudinal_strain",
)
CARDIAC_FIELDS = {str(24100 + place): name for place, name in enumerate((*_WHOLE, *_SEGMENTS))}
"""Name of each of the 82 fields: ml, %, l/min, g, mm2, mm; strains in %."""
THIRTEEN_TARGETS = (*_WHOLE[:10], "wall_thickness", "circumferential_strain", "radial_strain")
"""What the published towers were pre-trained on."""
DIAGNOSES, DIAGNOSIS_DATES, VISIT_DAY = "41270", "41280", "53"
BODY_FIELDS = {"21003": "age_years", "50": "height_cm", "21002": "weight_kg", "21001": "bmi_kg_m2"}
SEX = "31"

_LEGACY = re.compile(r"(?:f\.|[nxs]_|ts_)?(?P<field>\d{2,6})[-._](?P<instance>\d+)[._](?P<index>\d+)", re.IGNORECASE)
_PLATFORM = re.compile(
    r"(?:participant\.)?p(?P<field>\d{2,6})(?:_i(?P<instance>\d+))?(?:_a(?P<index>\d+))?", re.IGNORECASE
)

Place = tuple[str, int]
"""Field and instance."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Text of a cell and where it stands."""

    text: str
    where: str


Person = dict[Place, dict[int, Cell]]
"""Filled cells by field and instance, then by array index."""


def read_fields(root: Path, eids: Collection[str], wanted: Collection[Place]) -> dict[str, Person]:
    """Return the filled cells of the wanted fields of the wanted participants, from all tables of the folder.

    Raises:
        ValueError: no table, a column in two tables, a participant in a table twice, or a broken line.
    """
    headers = [header for path in table_files(root) if (header := header_of(path)) is not None]
    if not headers:
        raise ValueError("no .csv, .tsv, .tab or .txt file in the folder has a column eid; add a table of participants")
    found: dict[str, Person] = {eid: defaultdict(dict) for eid in eids}
    seen: dict[tuple[Place, int], str] = {}
    for header in headers:
        columns = _columns(header, wanted)
        _require_once(columns, seen, header.path.name)
        if columns:
            _collect(header, columns, found)
    return found


def columns_in(root: Path, wanted: Collection[Place]) -> set[Place]:
    """Return those of the wanted fields that any table of the folder has a column of."""
    headers = (header for path in table_files(root) if (header := header_of(path)) is not None)
    return {place for header in headers for place, _ in _columns(header, wanted)}


def _columns(header: Header, wanted: Collection[Place]) -> dict[tuple[Place, int], int]:
    """Column by field, instance and index."""
    found = {}
    for column, name in enumerate(header.cells):
        match = _PLATFORM.fullmatch(name) or _LEGACY.fullmatch(name)
        if match:
            place = (match["field"], int(match["instance"] or 0))
            if place in wanted:
                found[place, int(match["index"] or 0)] = column
    return found


def _require_once(columns: Collection[tuple[Place, int]], seen: dict[tuple[Place, int], str], name: str) -> None:
    for place in columns:
        if place in seen:
            raise ValueError(f"field {place[0][0]} is in {seen[place]} and in {name}; leave one in the folder")
        seen[place] = name


def _collect(header: Header, columns: Mapping[tuple[Place, int], int], found: dict[str, Person]) -> None:
    read = set()
    for line, eid, row in rows_of(header):
        if eid not in found:
            continue
        if eid in read:
            raise ValueError(f"{header.path.name} line {line} repeats a participant; expected one line each")
        read.add(eid)
        for (place, index), column in columns.items():
            text = row[column].strip()
            if text.upper() not in MISSING:
                found[eid][place][index] = Cell(text=text, where=f"{header.path.name} line {line}, field {place[0]}")


def number_of(person: Person, field: str, instance: int) -> float | None:
    """Return a quantity, or None where the participant has none.

    Raises:
        ValueError: the cell is no finite number.
    """
    cell = person.get((field, instance), {}).get(0)
    if cell is None:
        return None
    try:
        value = float(cell.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{cell.where} is no number; expected one, or an empty cell")
    return value


def day_of(cell: Cell) -> date:
    """Return a day.

    Raises:
        ValueError: the cell is none.
    """
    try:
        return date.fromisoformat(cell.text[:10])
    except ValueError:
        raise ValueError(f"{cell.where} is no day; expected YYYY-MM-DD") from None


def diagnoses_of(person: Person) -> list[Diagnosis]:
    """Return the codes of a participant, each with the date of the same array index, or None where it has none.

    Raises:
        ValueError: a date is none, or there are dates beyond the codes: the columns are of two exports.
    """
    codes = _codes(person.get((DIAGNOSES, 0), {}))
    dates = person.get((DIAGNOSIS_DATES, 0), {})
    surplus = dates.keys() - codes.keys()
    if surplus:
        where = dates[min(surplus)].where
        raise ValueError(
            f"{where}: {len(surplus)} dates have no code; export fields {DIAGNOSES} and {DIAGNOSIS_DATES} together"
        )
    return [
        Diagnosis(code=code, first=day_of(dates[index]) if index in dates else None) for index, code in codes.items()
    ]


def _codes(cells: Mapping[int, Cell]) -> dict[int, str]:
    """Codes by array index: a cell each, or all in one cell as a list or between bars."""
    if list(cells) != [0] or not any(mark in cells[0].text for mark in "[|"):
        return {index: cell.text for index, cell in cells.items()}
    text = cells[0].text
    try:
        listed = json.loads(text.replace("'", '"')) if text.startswith("[") else text.split("|")
    except json.JSONDecodeError:
        raise ValueError(f'{cells[0].where} is no list of codes; expected ["I10", "I251"] or I10|I251') from None
    return {index: str(code).strip() for index, code in enumerate(listed)}
