"""A WFDB record of a data set to an ``EcgRecord``, by the decoder that serves, so that both mean the same leads and amplitudes.

Called by the readers of PTB-XL and MIMIC-IV-ECG, whose tables name records without an ending.
"""

from __future__ import annotations

from pathlib import Path

from engines.decode.ecg_file import read_ecg_file
from engines.errors import InputRefused, RefusalCode
from engines.records import EcgRecord


def record_within(root: Path, name: str) -> Path:
    """Return where a record lies that a table names, without an ending.

    Raises:
        ValueError: the name leads out of the folder.
    """
    path = root / name
    if not name or "://" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError("a record of the table lies outside the folder; use the table of the release")
    return path


def read_wfdb(path: Path) -> EcgRecord:
    """Read a record.

    Args:
        path: of header and signal file, without their endings.

    Raises:
        InputRefused: a file is missing or damaged, a lead is missing or there twice, or a unit is no voltage.
    """
    try:
        return read_ecg_file(path.with_name(f"{path.name}.hea")).record
    except OSError as error:
        message = f"the WFDB record is not readable ({type(error).__name__}); fetch header and signal again"
        raise InputRefused(RefusalCode.UNDECODABLE, message) from None
