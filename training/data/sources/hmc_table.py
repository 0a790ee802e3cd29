"""The tables of HMC-QU: a row a video with the wall motion of each segment, the frames of one cycle, and a tick for a mask.

Columns by place, since headers are merged and differ: ECHO first, then the segments, and last the reference frame (from 1),
the end-of-cycle frame and the tick (the letter that Wingdings shows as a tick). The codes of the segments are detected.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_Cells = tuple[Any, ...]
_NORMAL_WORDS = ("non-mi", "non mi", "nonmi", "no mi", "normal", "no")
_ABNORMAL_WORDS = ("mi", "abnormal", "yes")
_SCALES = ({0.0, 1.0}, {1.0, 2.0, 3.0, 4.0, 5.0})
"""No and yes; wall motion scores, which begin with normal."""
_HEADER_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class HmcRow:
    """One video.

    Args:
        key: stem of the file.
        where: what a message calls it.
        infarction: any segment is abnormal.
        cycle: frames of one cardiac cycle, from 0, end exclusive, or None where not stated.
        has_mask: the tick is set.
    """

    key: str = field(repr=False)
    where: str
    infarction: bool
    cycle: tuple[int, int] | None
    has_mask: bool


def read_table(path: Path, abnormal: Collection[str] | None = None) -> list[HmcRow]:
    """Read a table.

    Args:
        path: ``A4C.xlsx`` or ``A2C.xlsx``.
        abnormal: codes of an abnormal segment as text; None detects them.

    Raises:
        ValueError: not a workbook, without the column ECHO, empty, or with codes that cannot be told apart.
    """
    rows = _cells(path)
    header = next((index for index, row in enumerate(rows[:_HEADER_ROWS]) if _text(row[0]).upper() == "ECHO"), None)
    if header is None:
        raise ValueError(f"{path.name}: no first column ECHO in the first {_HEADER_ROWS} rows")
    width = 1 + max((index for row in rows[header:] for index, cell in enumerate(row) if _text(cell)), default=0)
    table = [(f"{path.name} row {index + 1}", row[:width]) for index, row in enumerate(rows) if index > header]
    table = [(where, row) for where, row in table if _text(row[0])]
    if not table:
        raise ValueError(f"{path.name} has a header and no videos")
    if width < 5:
        raise ValueError(
            f"{path.name} has {width} columns; ECHO, segments, reference frame, end of cycle, mask are expected"
        )
    codes = abnormal_codes([_text(cell) for _, row in table for cell in row[1:-3]], path.name, abnormal)
    return [_row(row, where, codes) for where, row in table]


def abnormal_codes(cells: Sequence[str], table: str, stated: Collection[str] | None = None) -> frozenset[str]:
    """Return the codes that mean an abnormal segment.

    Words say it themselves. Of numbers, 0 and 1 are no and yes, and codes from 1 on are wall motion scores, of which 1 is
    normal; both scales must show their normal value. A table whose segments are all alike tells nothing.

    Raises:
        ValueError: the codes cannot be told apart, or a stated code does not occur.
    """
    found = {cell for cell in cells if cell}
    if stated is not None:
        if not found & set(stated):
            raise ValueError(f"{table}: no segment has one of the codes {sorted(stated)}; found {sorted(found)}")
        return frozenset(stated)
    words = {cell for cell in found if cell.lower() in (*_NORMAL_WORDS, *_ABNORMAL_WORDS)}
    if len(found) > 1 and words == found:
        return frozenset(cell for cell in found if cell.lower() in _ABNORMAL_WORDS)
    numbers = {cell: float(cell) for cell in found if cell.replace(".", "", 1).isdigit()}
    if len(numbers) == len(found) > 1 and any(
        min(scale) in numbers.values() and set(numbers.values()) <= scale for scale in _SCALES
    ):
        normal = min(numbers.values())
        return frozenset(cell for cell, number in numbers.items() if number > normal)
    raise ValueError(
        f"{table}: the segments have the codes {sorted(found)[:9]}, which cannot be told apart; say which are abnormal"
    )


def _cells(path: Path) -> list[_Cells]:
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}; give the folder that holds it and HMC-QU/")
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        rows = [tuple(row) for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile, InvalidFileException) as error:
        raise ValueError(f"{path.name} is not readable as an Excel workbook ({type(error).__name__})") from None
    width = max((len(row) for row in rows), default=0)
    return [row + (None,) * (max(width, 1) - len(row)) for row in rows]


def _text(cell: Any) -> str:
    """A cell as text; whole numbers without a point."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _row(row: _Cells, where: str, abnormal: frozenset[str]) -> HmcRow:
    segments = [text for text in (_text(cell) for cell in row[1:-3]) if text]
    if not segments:
        raise ValueError(f"{where}: no segment has a label; take the row out")
    key = _text(row[0])
    return HmcRow(
        key=key[:-4] if key.lower().endswith(".avi") else key,
        where=where,
        infarction=any(text in abnormal for text in segments),
        cycle=_cycle(row[-3], row[-2], where),
        has_mask=bool(_text(row[-1])),
    )


def _cycle(reference: Any, end: Any, where: str) -> tuple[int, int] | None:
    first, last = _text(reference), _text(end)
    if not first and not last:
        return None
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) < int(last)):
        raise ValueError(
            f"{where}: the cycle is from frame {first!r} to {last!r}; expected two numbers from 1 on, or nothing"
        )
    return int(first) - 1, int(last)
