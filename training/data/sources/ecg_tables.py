"""Tables of ECGs: CSV with a header, read line by line, every complaint with file and line.

Called by the readers ``ptb_xl``, ``mimic_iv_ecg`` and ``echonext``, and for what was measured of stacks.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

_MISSING = {"", "na", "nan", "null", "none"}
_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line; messages name it, never its content where that may be a person."""

    where: str
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a cell that must be filled.

        Raises:
            ValueError: it is empty.
        """
        found = self.optional(column)
        if found is None:
            raise ValueError(f"{self.where}: {column} is empty; expected a value")
        return found

    def optional(self, column: str) -> str | None:
        """Return a cell, or None where it is empty or the table lacks the column."""
        found = (self.cells.get(column) or "").strip()
        return None if found.lower() in _MISSING else found

    def number(self, column: str) -> float | None:
        """Return a number, or None where the cell is empty.

        Raises:
            ValueError: it is something else.
        """
        found = self.optional(column)
        try:
            value = None if found is None else float(found)
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{self.where}: {column} is no number; expected one, or an empty cell")
        return value

    def whole(self, column: str) -> str:
        """Return an identifier that tables write as ``15709`` or ``15709.0``.

        Raises:
            ValueError: it is empty or no whole number.
        """
        found = self.text(column)
        plain = found.removesuffix(".0")
        if not plain.isdigit():
            raise ValueError(f"{self.where}: {column} is no whole number; expected an identifier such as 15709")
        return plain

    def flag(self, column: str) -> bool | None:
        """Return a 0 or 1, or None where the cell is empty.

        Raises:
            ValueError: it is something else.
        """
        found = self.optional(column)
        if found is None:
            return None
        if found.lower() not in _FLAGS:
            raise ValueError(f"{self.where}: {column} is {found[:12]!r}; expected 0 or 1")
        return _FLAGS[found.lower()]

    def day(self, column: str) -> date | None:
        """Return the day of a date or time in ISO form, or None where the cell is empty.

        Raises:
            ValueError: it is something else.
        """
        found = self.optional(column)
        try:
            return None if found is None else datetime.fromisoformat(found).date()
        except ValueError:
            raise ValueError(
                f"{self.where}: {column} is no date; expected YYYY-MM-DD, with or without a time"
            ) from None


def rows_of_table(path: Path, columns: Collection[str], layout: str) -> Iterator[Row]:
    """Yield the lines of a table.

    Args:
        path: of the table.
        columns: that must be there; others may be.
        layout: what the folder should be, for messages.

    Raises:
        ValueError: no file, no text, a column missing, a line of another width, or no line at all.
    """
    if not path.is_file():
        raise ValueError(f"no {path.name} in the folder; {layout}")
    empty = True
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{path.name} has no column {', '.join(missing)}; {layout}")
            for cells in reader:
                empty = False
                yield _row(path.name, reader.line_num, cells)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name} is not readable as CSV in UTF-8 ({type(error).__name__})") from None
    if empty:
        raise ValueError(f"{path.name} has a header and no ECG")


def _row(name: str, line: int, cells: Mapping[str | None, str | None]) -> Row:
    """A line with as many cells as the header; DictReader keeps surplus ones under None and fills missing ones with it."""
    if None in cells or None in cells.values():
        raise ValueError(f"{name} line {line} has another number of cells than the header; fetch the table again")
    return Row(where=f"{name} line {line}", cells={str(column): str(text) for column, text in cells.items()})
