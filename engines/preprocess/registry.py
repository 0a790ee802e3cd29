"""The one door of preprocessing: ``prepare(record, spec)`` gives the arrays a network reads.

Training and serving both come through here. Pure numpy and scipy; no DICOM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from engines.preprocess.spec import CmrSpec, EcgSpec, EchoSpec
from engines.records import CineLoop, CineStack, EcgRecord, Record, SourceInstance


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What one record became.

    Args:
        arrays: named network inputs (``clip``, ``image`` or ``ecg``).
        sources: the instances, with the frames or channels that were read; the first is the one to show.
        region_px: (x0, y0, x1, y1) in the first source frame that was analysed, end exclusive, or None.
        notes: sentences for the reader, without patient data.
    """

    arrays: Mapping[str, NDArray[Any]]
    sources: tuple[SourceInstance, ...]
    region_px: tuple[int, int, int, int] | None
    notes: tuple[str, ...]


def prepare(record: Record, spec: EchoSpec | CmrSpec | EcgSpec) -> Prepared:
    """Turn a decoded record into the arrays that ``spec`` describes.

    Raises:
        InputRefused: the quality of the record does not allow an answer.
        ValueError: the spec is for another kind of record.
    """
    match record, spec:
        case CineLoop(), EchoSpec():
            from engines.preprocess.echo import prepare_echo

            return prepare_echo(record, spec)
        case CineStack(), CmrSpec():
            from engines.preprocess.cmr import prepare_cmr

            return prepare_cmr(record, spec)
        case EcgRecord(), EcgSpec():
            from engines.preprocess.ecg import prepare_ecg

            return prepare_ecg(record, spec)
    msg = f"a {type(record).__name__} cannot be prepared with a spec of kind {spec.kind!r}; use the bundle of its modality"
    raise ValueError(msg)
