"""UK Biobank: bulk item 20209 (short-axis heart images), ``<eid>_20209_<instance>_<index>.zip``, and a participant table.

An archive holds DICOM files and a ``manifest.csv`` (or ``manifest.cvs``). The cine is a series per slice,
``CINE_segmented_SAX_b<k>``, or one mixed ``CINE_segmented_SAX``; other series of the same place (analysis screens,
tagging) are left out by name. Archives come from outside: they are read in memory within bounds, nothing is unpacked.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import structlog

from engines.decode.cmr import decode_cmr
from engines.decode.headers import parsed, texts
from engines.errors import InputRefused, RefusalCode
from engines.records import CineStack
from training.data.sources.cmr_labels import join_labels
from training.data.sources.cmr_studies import CmrOptions, FoundStudies, files_below
from training.data.sources.ukbb_table import read_lvef, withdrawn_eids

BULK_FIELD = "20209"
MOST_ENTRIES = 5_000
LARGEST_ENTRY_BYTES = 8 * 1024**2
MOST_BYTES = 1024**3
"""A stack of 12 slices of 50 frames of 208 x 208 pixels has 600 entries, 90 kB each, 54 MB in all."""

_ARCHIVE = re.compile(r"(?P<eid>\d+)_(?P<field>\d+)_(?P<instance>\d+)_(?P<index>\d+)\.zip")
_OF_ONE_SLICE = re.compile(r"CINE_SEGMENTED_SAX_B\d+")
_MIXED = re.compile(r"CINE_SEGMENTED_SAX")
_MANIFESTS = {"manifest.csv", "manifest.cvs"}
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What ``zipfile`` raises on damaged, encrypted or unsupported archives."""

_log = structlog.get_logger()


def ukbb_archives(root: Path) -> list[tuple[re.Match[str], Path]]:
    """Archives of the short-axis item of any visit, with the parts of their names."""
    matches = ((_ARCHIVE.fullmatch(path.name), path) for path in files_below(root))
    return [(match, path) for match, path in matches if match and match["field"] == BULK_FIELD]


def ukbb_studies(root: Path, options: CmrOptions) -> FoundStudies:
    """Open a folder of this layout; participants who have withdrawn are not in it.

    Raises:
        ValueError: no archive of the wanted visit, two of one participant, or no labels for them.
    """
    archives = _of_visit(ukbb_archives(root), options)
    withdrawn = withdrawn_eids(root)
    kept = {eid: path for eid, path in archives.items() if eid not in withdrawn}
    _log.info("archives.found", archives=len(archives), withdrawn=len(archives) - len(kept))
    if not kept:
        raise ValueError(f"all {len(archives)} participants with images have withdrawn")
    field, values = read_lvef(root, kept.keys(), options.label_field, options.instance)
    name = f"UK Biobank {BULK_FIELD}, LVEF of field {field}"
    labels = join_labels(name, values, kept.keys(), options.exclude_percent)
    return FoundStudies(name=name, lvef_percent_by_key=labels, load=ArchiveLoader(kept)).salted(options.log_salt)


def _of_visit(archives: list[tuple[re.Match[str], Path]], options: CmrOptions) -> dict[str, Path]:
    wanted = (options.instance, options.index)
    visit = [(match["eid"], path) for match, path in archives if _visit(match) == wanted]
    found = dict(visit)
    if not found:
        others = ", ".join(f"{a}_{b}" for a, b in sorted({_visit(match) for match, _ in archives}))
        raise ValueError(f"no archive of instance {wanted[0]}, index {wanted[1]}; the folder has {others or 'none'}")
    if len(found) < len(visit):
        raise ValueError(f"{len(visit) - len(found)} archives are there twice, in two folders; leave one of each")
    return found


def _visit(match: re.Match[str]) -> tuple[int, int]:
    return int(match["instance"]), int(match["index"])


@dataclass(frozen=True)
class ArchiveLoader:
    """The stack of a key; a value, so that it travels to worker processes; raises ``Refusal`` where it cannot be used."""

    archives: Mapping[str, Path]

    def __call__(self, key: str) -> CineStack:
        return decode_cmr(_short_axis(archive_files(self.archives[key])))


def _short_axis(instances: Sequence[BinaryIO]) -> list[BinaryIO]:
    """The instances of the series per slice, or of the mixed series where there are none.

    Raises:
        InputRefused: neither kind is there, or a file is not readable.
    """
    series = [(" ".join(texts(parsed(instance), "SeriesDescription")), instance) for instance in instances]
    for names in (_OF_ONE_SLICE, _MIXED):
        chosen = [instance for name, instance in series if names.fullmatch(name)]
        if chosen:
            return chosen
    message = (
        f"{len(series)} DICOM files in {len({name for name, _ in series})} series, none named CINE_segmented_SAX_b<k> or"
        " CINE_segmented_SAX; look at the archive"
    )
    raise InputRefused(RefusalCode.NO_SHORT_AXIS_CINE, message)


def archive_files(path: Path) -> list[BinaryIO]:
    """The DICOM files of an archive that may belong to the cine, in memory.

    Raises:
        InputRefused: damaged, encrypted, beyond the bounds, with names that lead out of it, or with files missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _cine_files(archive)
    except _BROKEN as error:
        message = f"the archive is not readable ({type(error).__name__}); fetch it again"
        raise InputRefused(RefusalCode.UNDECODABLE, message) from None


def _cine_files(archive: zipfile.ZipFile) -> list[BinaryIO]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    _check(entries)
    manifests = [entry for entry in entries if _base(entry) in _MANIFESTS]
    files = {entry.filename: entry for entry in entries if entry not in manifests}
    listed = _listed(b"\n".join(_bytes_of(archive, entry) for entry in manifests).decode("utf-8", "replace"))
    absent = listed - {_base(entry) for entry in files.values()}
    if absent:
        message = (
            f"{len(absent)} of {len(listed)} files of the cine that the manifest lists are missing; fetch it again"
        )
        raise InputRefused(RefusalCode.UNDECODABLE, message)
    wanted = [
        entry for entry in files.values() if (_base(entry) in listed if listed else _base(entry).endswith(".dcm"))
    ]
    return [io.BytesIO(_bytes_of(archive, entry)) for entry in wanted]


def _check(entries: Collection[zipfile.ZipInfo]) -> None:
    """Bounds that the directory of the archive states; what it states falsely meets the bounds of reading."""
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MOST_ENTRIES or total > MOST_BYTES:
        raise _beyond(f"an archive of {len(entries)} files and {total} bytes; {MOST_ENTRIES} and {MOST_BYTES} are read")
    if any(_leads_out(entry.orig_filename) for entry in entries):
        raise _beyond("a name in the archive leads out of it")
    if any(entry.compress_type not in _METHODS or entry.flag_bits & 1 for entry in entries):
        raise _beyond("a file of the archive is encrypted, or neither stored nor deflated")


def _beyond(found: str) -> InputRefused:
    return InputRefused(RefusalCode.LIMITS_EXCEEDED, f"{found}: no archive of UK Biobank is like this, fetch it again")


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name.startswith(("/", "\\")) or ":" in name or "\0" in name


def _base(entry: zipfile.ZipInfo) -> str:
    return PurePosixPath(entry.filename).name.lower()


def _bytes_of(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        content = file.read(LARGEST_ENTRY_BYTES + 1)
    if len(content) > LARGEST_ENTRY_BYTES:
        raise _beyond(f"a file of the archive has more than {LARGEST_ENTRY_BYTES} bytes")
    return content


def _listed(manifest: str) -> set[str]:
    """Names of the files of cine series, lower case; empty where the manifest names none.

    Dates hold commas that are not quoted, so columns move from line to line: cells are known by what they look like.
    """
    files: set[str] = set()
    for line in manifest.splitlines():
        cells = [cell.strip(' "\t') for cell in line.split(",")]
        if any(_OF_ONE_SLICE.fullmatch(cell.upper()) or _MIXED.fullmatch(cell.upper()) for cell in cells):
            files.update(cell.lower() for cell in cells if cell.lower().endswith(".dcm"))
    return files
