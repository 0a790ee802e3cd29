"""Labels of UK Biobank from a participant table, and the participants who have withdrawn.

Tables come from three generations of tools and name one column in many ways: ``22420-2.0``, ``f.22420.2.0``,
``p22420_i2``, ``participant.p22420_i2``. Messages name files, columns and lines, never participants.

Fields: 24103 LVEF of the derived set (Bai 2020); 22420 LVEF of the scanner's InlineVF, noisier and at times far off
(Suinesiaputra 2018).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from training.data.sources.cmr_labels import HIGHEST_PERCENT, LOWEST_PERCENT

FIELD_PREFERENCE = ("24103", "22420")
"""One field labels the whole set, so that a label means one thing: the first that the table holds values of."""

_ENDINGS = {".csv", ".tsv", ".txt", ".tab"}
_EID = re.compile(r"(?:participant\.)?(?:f\.|n_)?eid", re.IGNORECASE)
_COLUMN = re.compile(
    r"(?:participant\.)?(?:f\.|[pnx]_?)?(?P<field>\d{3,6})[-._]i?(?P<instance>\d+)(?:[._]a?(?P<index>\d+))?",
    re.IGNORECASE,
)
_WITHDRAWN = re.compile(r"(?:w\d+(?:_\d+)*|withdr[\w-]*)\.(?:csv|txt)", re.IGNORECASE)
INTEGER = re.compile(r"(-?\d+)(?:\.0)?")
MISSING = {"", "NA", "NAN", "NULL"}

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Header:
    """First line of a file whose rows are participants.

    Args:
        path: of the file.
        delimiter: between cells.
        cells: names of the columns.
        eid_column: place of the participant's number.
    """

    path: Path
    delimiter: str
    cells: tuple[str, ...]
    eid_column: int


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A file of participants, and the column of each field at the wanted visit."""

    header: Header
    field_columns: dict[str, int]


def read_lvef(
    root: Path, eids: Collection[str], label_field: str | None, instance: int
) -> tuple[str, dict[str, float]]:
    """The field that labels come from, and LVEF in percent by eid, of those participants that have images.

    Raises:
        ValueError: no table, no column, more than one table with it, a broken line, or no value for anybody.
    """
    tables = [table for path in table_files(root) if (table := _table(path, instance)) is not None]
    wanted = FIELD_PREFERENCE if label_field is None else (label_field,)
    known = [field for field in wanted if any(field in table.field_columns for table in tables)]
    for field in known:
        labels = _values(_only(tables, field), field, eids)
        if labels:
            return field, labels
    raise ValueError(_no_labels(root, tables, wanted, known, instance))


def withdrawn_eids(root: Path) -> frozenset[str]:
    """Participants to leave out: every ``w<application>_<date>.csv`` or ``withdrawn*.txt`` in the folder, one eid a line.

    Raises:
        ValueError: such a file holds anything else: better no run than one with a person who said no.
    """
    eids: set[str] = set()
    for path in sorted(root.iterdir()):
        if _WITHDRAWN.fullmatch(path.name):
            eids.update(_eids_of(path))
    return frozenset(eids)


def _eids_of(path: Path) -> Iterator[str]:
    with errors_of(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            text = line.strip().strip('"')
            found = INTEGER.fullmatch(text)
            if found:
                yield found[1]
            elif text and not (number == 1 and _EID.fullmatch(text)):
                raise ValueError(
                    f"{path.name} line {number} is no eid; a list of withdrawn participants has one a line"
                )


def table_files(root: Path) -> list[Path]:
    """Tables in a folder, lists of the withdrawn left out."""
    paths = (path for path in sorted(root.iterdir()) if path.suffix.lower() in _ENDINGS and path.is_file())
    return [path for path in paths if not _WITHDRAWN.fullmatch(path.name)]


def header_of(path: Path) -> Header | None:
    """The header of a file, or None where it names no participants.

    Raises:
        ValueError: a bare list of numbers, which may be a list of the withdrawn under another name.
    """
    with errors_of(path), path.open(newline="", encoding="utf-8-sig") as file:
        line = file.readline()
        delimiter = "\t" if "\t" in line else ","
        header = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
        if len(header) == 1 and (INTEGER.fullmatch(header[0]) or _EID.fullmatch(header[0])):
            raise ValueError(
                f"{path.name} is a bare list of numbers; name it withdrawn.txt if these participants have withdrawn,"
                " or move it elsewhere"
            )
    eid_columns = [place for place, cell in enumerate(header) if _EID.fullmatch(cell)]
    if not eid_columns:
        return None
    return Header(path=path, delimiter=delimiter, cells=tuple(header), eid_column=eid_columns[0])


def _table(path: Path, instance: int) -> _Table | None:
    """The table in a file, or None where its header names no participants."""
    found = header_of(path)
    if found is None:
        return None
    return _Table(header=found, field_columns=_field_columns(found.cells, instance))


def _field_columns(header: Sequence[str], instance: int) -> dict[str, int]:
    found = ((place, _COLUMN.fullmatch(cell)) for place, cell in enumerate(header))
    return {
        match["field"]: place
        for place, match in found
        if match and int(match["instance"]) == instance and int(match["index"] or 0) == 0
    }


def _only(tables: list[_Table], field: str) -> _Table:
    having = [table for table in tables if field in table.field_columns]
    if len(having) > 1:
        names = ", ".join(table.header.path.name for table in having)
        raise ValueError(f"field {field} is in {len(having)} tables ({names}); leave one in the folder")
    return having[0]


def _values(table: _Table, field: str, eids: Collection[str]) -> dict[str, float]:
    """Plausible values of the wanted participants; missing and implausible ones are counted and left out.

    Raises:
        ValueError: a short line, a value that is no number, fractions, or two values for one participant.
    """
    wanted, found, implausible = set(eids), dict[str, float](), 0
    for line, eid, text in _cells(table, table.field_columns[field]):
        if eid not in wanted or text.upper() in MISSING:
            continue
        value = _number(text, f"{table.header.path.name} line {line}, field {field}")
        if found.setdefault(eid, value) != value:
            raise ValueError(
                f"{table.header.path.name} line {line} gives a participant a second value of field {field}"
            )
    values = {eid: value for eid, value in found.items() if LOWEST_PERCENT <= value <= HIGHEST_PERCENT}
    implausible = len(found) - len(values)
    if sum(0 < value <= 1 for value in found.values()) * 2 > len(found):
        raise ValueError(f"{table.header.path.name}: field {field} holds fractions; LVEF in percent is expected")
    _log.info("labels.read", field=field, values=len(values), implausible=implausible, missing=len(wanted) - len(found))
    return values


def _cells(table: _Table, column: int) -> Iterator[tuple[int, str, str]]:
    """Line number, eid and text of a column."""
    for line, eid, row in rows_of(table.header):
        yield line, eid, row[column].strip()


def rows_of(header: Header) -> Iterator[tuple[int, str, list[str]]]:
    """Line number, eid and cells of each participant, line by line: these tables may have gigabytes.

    Raises:
        ValueError: a line of another width, or no text.
    """
    with errors_of(header.path), header.path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=header.delimiter)
        next(reader)
        for row in reader:
            if row and len(row) != len(header.cells):
                raise ValueError(
                    f"{header.path.name} line {reader.line_num} has {len(row)} cells; the header has {len(header.cells)}"
                )
            eid = INTEGER.fullmatch(row[header.eid_column].strip()) if row else None
            if eid is not None:
                yield reader.line_num, eid[1], row


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} is {text!r}; expected a number or an empty cell")
    return value


def _no_labels(root: Path, tables: list[_Table], wanted: tuple[str, ...], known: list[str], instance: int) -> str:
    fields = " or ".join(wanted)
    if known:
        return f"field {' and '.join(known)}: no value for any participant with images; is it the right table?"
    if tables:
        names = ", ".join(table.header.path.name for table in tables)
        return f"no column of field {fields} for instance {instance} in {names}; expected e.g. {wanted[0]}-{instance}.0"
    count = len(table_files(root))
    return (
        f"none of {count} .csv, .tsv, .tab or .txt files in the folder has a column eid; add a table of field {fields}"
    )


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Say which file is not text."""
    try:
        yield
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name} is not readable as UTF-8 text ({type(error).__name__})") from None
