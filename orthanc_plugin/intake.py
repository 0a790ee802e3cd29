"""Which instances concern us: cheap rules on header fields that Orthanc keeps in its database.

No file is opened here. Whether a study can really be analysed is for the processors to say: they answer
every announced study with a report, a refusal or 'not applicable'. The rules, by modality:

- ``ecg``: the ECG waveform classes. A picture of an ECG (Encapsulated PDF or Secondary Capture with Modality ECG) is
  announced only where the study holds no waveform, so that someone reads why it cannot be analysed.
- ``echo``: ultrasound multi-frame (with the retired class), and ultrasound image storage with more than one
  frame. Intravascular ultrasound (Modality IVUS) and 3D volumes are left out.
- ``cmr``: every MR study. Header fields do not tell a heart from a brain reliably (Body Part Examined is optional
  and often wrong), so the processors decide; a site may exclude body parts and descriptions by settings.
- everything else (CT, SEG, SR, PR, KO, DOC, RTPLAN ...) is not ours, nor is anything we made ourselves.

Source: PS3.4 B.5 for the SOP classes, PS3.3 C.7.3.1.1.1 for Modality.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

OWN_MANUFACTURER = "PURKINJE"
"""Manufacturer (0008,0070) that starts like this, in any case, marks an object of our own making."""

ECG_WAVEFORMS = frozenset(f"1.2.840.10008.5.1.4.1.1.9.1.{suffix}" for suffix in (1, 2, 3, 4))
ECG_PICTURES = frozenset(f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("104.1", "7", "7.1", "7.2", "7.3", "7.4"))
US_MULTI_FRAME = frozenset(("1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.3"))
US_IMAGE = frozenset(("1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.6"))
MR_IMAGE = frozenset(f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("4", "4.1", "4.4"))

_BY_SOP_CLASS = {
    **dict.fromkeys(ECG_WAVEFORMS, "ecg"),
    **dict.fromkeys(US_MULTI_FRAME | US_IMAGE, "echo"),
    **dict.fromkeys(MR_IMAGE, "cmr"),
}
_BY_MODALITY = {"ECG": "ecg", "US": "echo", "MR": "cmr"}
_NEVER = frozenset(("IVUS", "SR", "PR", "KO", "DOC", "SEG", "REG", "CT"))


@dataclass(frozen=True)
class Exclusions:
    """MR series that a site does not want announced (see ``Settings``)."""

    body_parts: frozenset[str] = frozenset()
    descriptions: str = ""

    def cover(self, header: Mapping[str, str]) -> bool:
        """True where the series is excluded; both comparisons ignore case."""
        if header.get("BodyPartExamined", "").strip().upper() in self.body_parts:
            return True
        description = header.get("SeriesDescription", "")
        return bool(self.descriptions) and re.search(self.descriptions, description, re.IGNORECASE) is not None


class HasClass(Protocol):
    """What is asked of an instance."""

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID (0008,0016)."""

    @property
    def number_of_frames(self) -> int:
        """Number of Frames (0028,0008); 1 where absent."""


def modality_of_series(header: Mapping[str, str], sop_class_uid: str, exclusions: Exclusions) -> str | None:
    """Topic modality of a series, or None where it does not concern us.

    A series may mix SOP classes (echo stills beside clips), so Modality speaks first, then the class of one instance.

    Args:
        header: Orthanc's main DICOM tags of the series, by keyword.
        sop_class_uid: SOP class of any one of its instances.
        exclusions: what the site does not want announced.
    """
    stated = header.get("Modality", "").strip().upper()
    if is_own(header) or stated in _NEVER:
        return None
    modality = _BY_MODALITY.get(stated) or _BY_SOP_CLASS.get(sop_class_uid)
    if modality == "cmr" and exclusions.cover(header):
        return None
    return modality


def is_own(header: Mapping[str, str]) -> bool:
    """True for objects this software made: a report must never trigger itself."""
    return header.get("Manufacturer", "").strip().upper().startswith(OWN_MANUFACTURER)


def chosen_series(modality: str, instances: Mapping[str, Sequence[HasClass]]) -> tuple[str, ...]:
    """The series that belong in an announcement, each with everything in it; may be none.

    Args:
        modality: ``cmr``, ``echo`` or ``ecg``.
        instances: series id -> its instances, for the series that ``modality_of_series`` gave to this modality.
    """
    if modality == "ecg":
        return _with(instances, _is_waveform) or _with(instances, _is_picture)
    return _with(instances, _is_clip if modality == "echo" else _is_mr)


def _with(instances: Mapping[str, Sequence[HasClass]], wanted: Callable[[HasClass], bool]) -> tuple[str, ...]:
    return tuple(series for series, held in instances.items() if any(map(wanted, held)))


def _is_waveform(instance: HasClass) -> bool:
    return instance.sop_class_uid in ECG_WAVEFORMS


def _is_picture(instance: HasClass) -> bool:
    return instance.sop_class_uid in ECG_PICTURES


def _is_mr(instance: HasClass) -> bool:
    return instance.sop_class_uid in MR_IMAGE


def _is_clip(instance: HasClass) -> bool:
    if instance.sop_class_uid in US_MULTI_FRAME:
        return True
    return instance.sop_class_uid in US_IMAGE and instance.number_of_frames > 1
