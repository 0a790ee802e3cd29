"""Where pairs of ECG and cardiac MR come from: what the builder of the store asks of a data set, and the digital hearts.

A data set lists its pairs with everything that is known of them, and reads one when asked. Arrays are float or bool, one
set of names for all pairs; see ``PairSource``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.preprocess.cmr_volume import CmrVolumeSpec, prepare_volumes
from engines.preprocess.registry import prepare
from engines.preprocess.spec import EcgSpec
from engines.records import CineStack, EcgRecord, Modality
from training.data.heart_arrays import bare_code, source_digest
from training.data.patient_split import PUBLISHED_SHARES
from training.data.sources.paired_subjects import (
    CoarseScan,
    demographics_of,
    draw_pair,
    draw_patient,
    targets_of,
)
from training.data.targets import DISEASES
from training.phantoms.paired import Cohort

Arrays = Mapping[str, NDArray[Any]]
"""Arrays of one pair by name, without a batch axis."""

_PAIR_CODE = (
    "engines/preprocess/cmr_volume.py",
    "training/data/sources/paired_subjects.py",
    "training/ecg_cmr/pair_source.py",
    "training/phantoms/paired.py",
    "training/phantoms/paired_ecg.py",
)
"""Code that decides the arrays besides that of the single modalities."""


@dataclass(frozen=True, kw_only=True)
class PairEntry:
    """What is known of a pair without reading it.

    Args:
        key: names the pair; patient and days of both studies, never a row number.
        patient: pairs of one patient share it.
        ecg_on, cmr_on: days of the studies.
        targets: by name; NaN or left out where it was not measured.
        diseases: flags by name; left out where unknown.
        diagnosed_on: first days of the diseases that are there, where known.
        demographics: by name; NaN or left out where unknown.
    """

    key: str = field(repr=False)
    patient: str = field(repr=False)
    ecg_on: date
    cmr_on: date
    targets: Mapping[str, float]
    diseases: Mapping[str, bool]
    diagnosed_on: Mapping[str, date] = field(default_factory=dict)
    demographics: Mapping[str, float] = field(default_factory=dict)


class PairSource(Protocol):
    """A data set of pairs. It travels to other processes, so it holds settings and no open files."""

    @property
    def name(self) -> str:
        """In words, for logs and tables."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """Everything that decides the arrays, as JSON."""

    @property
    def salt(self) -> str:
        """Of the split."""

    @property
    def shares(self) -> Mapping[str, int]:
        """Of the parts, percent."""

    def entries(self) -> Sequence[PairEntry]:
        """List the pairs; the order is that of the store."""

    def read(self, number: int) -> Arrays:
        """Return the arrays of ``entries()[number]``.

        Raises:
            Refusal: one of the two records cannot be used.
        """


def pair_key(patient: str, ecg_on: date, cmr_on: date) -> str:
    """Return the key of a pair: who, and on which days."""
    return f"{patient}/ecg-{ecg_on.isoformat()}/cmr-{cmr_on.isoformat()}"


def prepared_pair(ecg: EcgRecord, cmr: CineStack, *, ecg_spec: EcgSpec, cmr_spec: CmrVolumeSpec) -> Arrays:
    """Return the arrays of two records.

    Returns:
        ``ecg`` as its specification says, ``volumes`` float16 [2, D, S, S] (end-diastole, end-systole), ``slice_mask``
        bool [D] and ``cine`` float16 [T, S, S] of the mid slice, the first frame at end-diastole.

    Raises:
        Refusal: one of the two cannot be used.
    """
    volumes = prepare_volumes(cmr, cmr_spec).arrays
    return {
        "ecg": prepare(ecg, ecg_spec).arrays["ecg"][0],
        "volumes": volumes["volumes"][0].astype(np.float16),
        "slice_mask": volumes["slice_mask"][0].astype(bool),
        "cine": volumes["cine"][0, 0].astype(np.float16),
    }


@dataclass(frozen=True, kw_only=True)
class PhantomPairs:
    """Digital hearts seen by both, as a ``PairSource``; arrays as ``prepared_pair`` says.

    Args:
        seed: names the set.
        patients: how many.
        cohort: ``standard`` or ``easy``, see ``training.phantoms.paired``.
        ecg, cmr: how the records are prepared.
        scan: coarse scanner settings; None those of a clinical scanner.
        first: number of the first patient.
        shares: of the parts, percent.
    """

    seed: int
    patients: int
    cohort: Cohort
    ecg: EcgSpec
    cmr: CmrVolumeSpec
    scan: CoarseScan | None = field(default_factory=CoarseScan)
    first: int = 0
    shares: Mapping[str, int] = field(default_factory=lambda: dict(PUBLISHED_SHARES))

    @property
    def name(self) -> str:
        return f"paired digital phantoms, {self.cohort} cohort, seed {self.seed}"

    @property
    def salt(self) -> str:
        return f"phantoms-{self.cohort}-{self.seed}"

    @property
    def spec(self) -> Mapping[str, Any]:
        return {
            "ecg": self.ecg.model_dump(mode="json"),
            "cmr": self.cmr.model_dump(mode="json"),
            "scan": None if self.scan is None else asdict(self.scan),
            "code_sha256": pair_code_digest(),
        }

    def entries(self) -> Sequence[PairEntry]:
        return [self._entry(self.first + number) for number in range(self.patients)]

    def read(self, number: int) -> Arrays:
        pair = draw_pair(self.seed, self.first + number, self.cohort, self.scan)
        return prepared_pair(pair.ecg, pair.cmr, ecg_spec=self.ecg, cmr_spec=self.cmr)

    def _entry(self, index: int) -> PairEntry:
        patient = draw_patient(self.seed, index, self.cohort)
        name = f"paired-{self.cohort}-{self.seed}-{index:06d}"
        return PairEntry(
            key=pair_key(name, patient.ecg_on, patient.cmr_on),
            patient=name,
            ecg_on=patient.ecg_on,
            cmr_on=patient.cmr_on,
            targets=targets_of(patient),
            diseases={disease: patient.heart.diseases[disease] for disease in DISEASES},
            diagnosed_on=patient.diagnosed_on,
            demographics=demographics_of(patient),
        )


def pair_code_digest() -> str:
    """Return the SHA-256 over the code that makes the arrays of a pair, blind to comments, docstrings and layout."""
    root = Path(__file__).parents[2]
    parts = [source_digest(Modality.ECG), source_digest(Modality.CMR)]
    parts += [f"{name}:{bare_code(root / name)}" for name in _PAIR_CODE]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
