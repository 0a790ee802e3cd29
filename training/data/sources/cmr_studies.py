"""Cardiac MR studies with a known ejection fraction, in whichever of three folder layouts they lie.

Here live the protocol that training reads through, what all layouts share, and the recognition of the layout. The
layouts themselves are ``ukbb_cmr``, ``nifti_cmr`` and ``dicom_cmr``. Nothing here writes; a key (a participant's
number) never enters a log or a message: a log names a study by a keyed hash.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import structlog

from engines.errors import Refusal
from engines.records import CineStack

LAYOUTS = {
    "ukbb": "UK Biobank: <eid>_20209_<instance>_<index>.zip, in ROOT or folders below, and in ROOT a table (.csv, .tsv)"
    " with the columns eid and 24103-2.0 or 22420-2.0",
    "nifti": "NIfTI: ROOT/<id>/sa.nii.gz or ROOT/<id>.nii.gz, and ROOT/labels.csv with the columns id and lvef_percent",
    "dicom": "DICOM: the files of a study anywhere below ROOT/<id>/, and ROOT/labels.csv with the columns id and"
    " lvef_percent",
}
DEEPEST_FOLDER = 4
_SALT_BYTES = (8, hashlib.blake2b.MAX_KEY_SIZE)

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class LabelledStack:
    """One short-axis cine and its reference.

    Args:
        key: names the patient within the data set; never for a log.
        lvef_percent: left ventricular ejection fraction, 0 to 100.
        stack: the cine as the decoder of the serving path yields it.
    """

    key: str = field(repr=False)
    lvef_percent: float
    stack: CineStack = field(repr=False)


class CmrStudies(Protocol):
    """Studies of one data set folder, one a patient."""

    @property
    def name(self) -> str:
        """Layout and source of the labels, for tables and logs."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all studies that have images and a label, sorted."""

    def __len__(self) -> int:
        """Number of studies."""

    def lvef_percent(self, key: str) -> float:
        """Reference of one study, 0 to 100, without reading its images."""

    def read(self, key: str) -> LabelledStack:
        """Read one study.

        Raises:
            Refusal: the images of this study cannot be used; others may be fine.
            ValueError: no study has this key.
        """

    def log_name(self, key: str) -> str:
        """What a log calls the study."""


@dataclass(frozen=True, kw_only=True)
class CmrOptions:
    """What a data set does not say itself.

    Args:
        exclude_percent: leave out studies of this LVEF, both ends included, e.g. (38.0, 42.0): near the threshold the
            label is noise. None keeps all.
        label_field: UK Biobank: the only field to take labels from; None takes 24103 or else 22420.
        instance: UK Biobank: 2 = first imaging visit, 3 = repeat.
        index: UK Biobank: array index of the bulk item.
        frame_interval_ms: NIfTI: time between phases, for files whose headers do not say it.
        log_salt: keeps the names of the studies in the logs the same from run to run; a secret as the keys are.
    """

    exclude_percent: tuple[float, float] | None = None
    label_field: str | None = None
    instance: int = 2
    index: int = 0
    frame_interval_ms: float | None = None
    log_salt: bytes | None = None

    def __post_init__(self) -> None:
        if self.exclude_percent is not None and not 0 <= self.exclude_percent[0] < self.exclude_percent[1] <= 100:
            raise ValueError(
                f"exclude_percent is {self.exclude_percent}; expected (low, high) within 0 to 100, or None"
            )
        if self.frame_interval_ms is not None and not self.frame_interval_ms > 0:
            raise ValueError(f"frame_interval_ms is {self.frame_interval_ms}; expected a positive time, or None")
        if self.log_salt is not None and not _SALT_BYTES[0] <= len(self.log_salt) <= _SALT_BYTES[1]:
            raise ValueError(f"log_salt has {len(self.log_salt)} bytes; expected {_SALT_BYTES[0]} to {_SALT_BYTES[1]}")


@dataclass(frozen=True, kw_only=True)
class FoundStudies:
    """The ``CmrStudies`` of every layout: labels by key, and how the stack of a key is loaded.

    Args:
        name: layout and source of the labels.
        lvef_percent_by_key: reference of each study.
        load: the stack of a key; raises ``Refusal`` where it cannot be used.
        salt: key of the hash that names studies in logs.
    """

    name: str
    lvef_percent_by_key: Mapping[str, float] = field(repr=False)
    load: Callable[[str], CineStack] = field(repr=False)
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sorted(self.lvef_percent_by_key))

    def __len__(self) -> int:
        return len(self.lvef_percent_by_key)

    def lvef_percent(self, key: str) -> float:
        if key not in self.lvef_percent_by_key:
            raise ValueError(f"no study with this key among {len(self)}; take one of .keys")
        return self.lvef_percent_by_key[key]

    def read(self, key: str) -> LabelledStack:
        lvef_percent = self.lvef_percent(key)
        return LabelledStack(key=key, lvef_percent=lvef_percent, stack=self.load(key))

    def salted(self, salt: bytes | None) -> FoundStudies:
        """The same studies with log names that last, or as they are for None."""
        return self if salt is None else replace(self, salt=salt)

    def log_name(self, key: str) -> str:
        """Keyed BLAKE2: short numbers cannot be guessed back without the salt."""
        return hashlib.blake2b(key.encode(), key=self.salt, digest_size=6).hexdigest()


def usable_studies(studies: CmrStudies) -> Iterator[LabelledStack]:
    """Read study after study; a refused one is logged by its hash and left out."""
    for key in studies.keys:
        try:
            study = studies.read(key)
        except Refusal as refusal:
            _log.warning("study.refused", study=studies.log_name(key), code=refusal.code.value, reason=refusal.reason)
            continue
        yield study


def open_cmr_studies(root: Path, options: CmrOptions | None = None) -> CmrStudies:
    """Recognise the layout of a data set folder and open it; see ``LAYOUTS``.

    Raises:
        ValueError: no folder, no layout or more than one, or a folder that is broken in its layout.
    """
    from training.data.sources.dicom_cmr import dicom_folders, dicom_studies
    from training.data.sources.nifti_cmr import nifti_files, nifti_studies
    from training.data.sources.ukbb_cmr import ukbb_archives, ukbb_studies

    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give the folder of the data set\n{_expectation()}")
    chosen = options or CmrOptions()
    found = {"ukbb": bool(ukbb_archives(root)), "nifti": bool(nifti_files(root))}
    found["dicom"] = not any(found.values()) and bool(dicom_folders(root)) and (root / "labels.csv").is_file()
    names = [name for name, is_found in found.items() if is_found]
    if len(names) != 1:
        raise ValueError(_unrecognised(root, names))
    openers = {"ukbb": ukbb_studies, "nifti": nifti_studies, "dicom": dicom_studies}
    return openers[names[0]](root, chosen)


def files_below(root: Path, deepest: int = DEEPEST_FOLDER) -> Iterator[Path]:
    """Regular files below a folder, sorted within each folder; links are not followed."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders.sort()
        if len(here.relative_to(root).parts) >= deepest:
            folders.clear()
        yield from (here / name for name in sorted(names) if not (here / name).is_symlink())


def _unrecognised(root: Path, names: list[str]) -> str:
    if names:
        both = " and ".join(names)
        return f"the folder holds the layouts {both} at once; give each a folder of its own\n{_expectation()}"
    return f"the layout is not recognised: {_inventory(root)}\n{_expectation()}"


def _expectation() -> str:
    return "\n".join(("expected one of:", *(f"  {text}" for text in LAYOUTS.values())))


def _inventory(root: Path) -> str:
    """What lies in the folder, in numbers: names may be those of patients."""
    endings = Counter(_ending(path) for path in files_below(root))
    files = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(6)) or "none"
    folders = sum(path.is_dir() for path in root.iterdir())
    labels = "with" if (root / "labels.csv").is_file() else "no"
    return f"found {folders} folders, files: {files}; {labels} labels.csv"


def _ending(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.name.endswith(".nii.gz") else path.suffix[:8] or "without ending"
