"""DICOM folders: the files of a study anywhere below ``ROOT/<id>/``, labels in ``ROOT/labels.csv``.

Every file is given to ``engines.decode.decode_cmr``, the decoder of the serving path; file names mean nothing.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engines.decode.cmr import decode_cmr
from engines.errors import InputRefused, RefusalCode
from engines.records import CineStack
from training.data.sources.cmr_labels import join_labels, read_labels
from training.data.sources.cmr_studies import CmrOptions, FoundStudies, files_below

MOST_FILES = 20_000
MOST_BYTES = 2 * 1024**3
_DEEPEST = 16
NAME = "DICOM folders"


def dicom_folders(root: Path) -> dict[str, Path]:
    """Folder of each study, by its name; hidden and empty folders are none."""
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: path for path in folders if next(files_below(path, _DEEPEST), None) is not None}


def dicom_studies(root: Path, options: CmrOptions) -> FoundStudies:
    """Open a folder of this layout.

    Raises:
        ValueError: ``labels.csv`` is missing or broken, or fits no folder.
    """
    folders = dicom_folders(root)
    labels = join_labels(NAME, read_labels(root), folders.keys(), options.exclude_percent)
    found = FoundStudies(name=NAME, lvef_percent_by_key=labels, load=_Loader(folders))
    return found.salted(options.log_salt)


@dataclass(frozen=True)
class _Loader:
    """The stack of a key; a value, so that it travels to worker processes."""

    folders: Mapping[str, Path]

    def __call__(self, key: str) -> CineStack:
        return decode_cmr(folder_instances(self.folders[key]))


def folder_instances(folder: Path) -> list[BinaryIO]:
    """Every file below a folder, in memory.

    Raises:
        InputRefused: more files or bytes than any study has, or a file that cannot be read.
    """
    paths = list(files_below(folder, _DEEPEST))
    total = sum(path.stat().st_size for path in paths)
    if len(paths) > MOST_FILES or total > MOST_BYTES:
        message = (
            f"a folder of {len(paths)} files and {total} bytes; at most {MOST_FILES} files and {MOST_BYTES} bytes are"
            " read: give each study a folder of its own"
        )
        raise InputRefused(RefusalCode.LIMITS_EXCEEDED, message)
    try:
        return [io.BytesIO(path.read_bytes()) for path in paths]
    except OSError as error:
        message = f"a file of the folder cannot be read ({type(error).__name__}); look at its permissions"
        raise InputRefused(RefusalCode.UNDECODABLE, message) from None
