"""Digital hearts as a source of records: heart i of a seed is always the same heart.

Nothing is read from disk; the phantoms render the record that a DICOM file of the same heart would decode to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engines.records import Modality, Record
from training.data.targets import DISEASES, LVEF_CONDITIONS
from training.phantoms.cmr import cmr_stack
from training.phantoms.ecg import ecg_record
from training.phantoms.echo import echo_loop
from training.phantoms.subjects import Subject, draw_subject

_STREAM = 0x7075726B
"""Sets these hearts apart from those of ``purkinje-train phantoms make``, whatever its seed."""

_RENDERERS: dict[Modality, Callable[[Subject, np.random.Generator], Record]] = {
    Modality.ECHO: echo_loop,
    Modality.CMR: cmr_stack,
    Modality.ECG: ecg_record,
}


@dataclass(frozen=True, kw_only=True)
class Heart:
    """One record and what is true of it, by column of ``training.data.targets.COLUMNS``."""

    record: Record
    targets: dict[str, float]


def draw_subject_of(seed: int, index: int) -> Subject:
    """Return the subject of heart ``index`` of a seed, without rendering anything."""
    return draw_subject(_generator(seed, index))


def draw_heart(modality: Modality, seed: int, index: int) -> Heart:
    """Return heart ``index`` of the set named by ``seed``, rendered by its own scanner."""
    rng = _generator(seed, index)
    subject = draw_subject(rng)
    return Heart(record=_RENDERERS[modality](subject, rng), targets=targets_of(subject))


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([_STREAM, seed, index])


def targets_of(subject: Subject) -> dict[str, float]:
    """Return what is true of a subject, by column."""
    return {
        "lvef": subject.lvef_percent,
        "rvef": subject.rvef_percent,
        "cardiac_output": subject.cardiac_output_l_min,
        **{name: float(subject.lvef_percent <= percent) for name, percent in LVEF_CONDITIONS.items()},
        **{name: float(subject.diseases[name]) for name in DISEASES},
    }
