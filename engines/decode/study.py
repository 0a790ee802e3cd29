"""From the instances of a study to prepared arrays and header extracts: what runs inside the child process.

Nothing here keeps bounds of its own on memory or time; ``sandbox`` does. Called by ``sandbox_child`` and by tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from engines.decode.cmr import decode_cmr
from engines.decode.ecg import decode_ecg
from engines.decode.echo import decode_echo
from engines.decode.headers import header_extract, parsed
from engines.errors import InputRefused, Refusal
from engines.preprocess.registry import Prepared, prepare
from engines.preprocess.spec import CmrSpec, EcgSpec, EchoCleanSpec, EchoSpec
from engines.records import CineStack, Modality, Record

if TYPE_CHECKING:
    from engines.preprocess.cmr_volume import CmrVolumeSpec

HEADERS_OF_A_REFUSAL = 3


@dataclass(frozen=True, kw_only=True)
class StudyReading:
    """What became of the instances of one claim.

    Args:
        prepared: one entry per usable record; empty when refused.
        headers: Part 10 extracts without pixel or waveform data: of the sources, or of what was looked at when refused.
        refusal: why there is nothing to predict from, or None.
    """

    prepared: tuple[Prepared, ...]
    headers: tuple[bytes, ...]
    refusal: Refusal | None


def read_instances(
    modality: Modality, instances: Sequence[BinaryIO], spec: EchoSpec | CmrSpec | EcgSpec | CmrVolumeSpec
) -> StudyReading:
    """Decode, preprocess and extract headers; a refusal is part of the answer, not an exception."""
    try:
        prepared = _prepared(modality, instances, spec)
    except Refusal as refusal:
        return StudyReading(prepared=(), headers=_headers(instances, None), refusal=refusal)
    wanted = {source.sop_instance_uid for each in prepared for source in each.sources}
    return StudyReading(prepared=prepared, headers=_headers(instances, wanted), refusal=None)


def _prepared(
    modality: Modality, instances: Sequence[BinaryIO], spec: EchoSpec | CmrSpec | EcgSpec | CmrVolumeSpec
) -> tuple[Prepared, ...]:
    """Every record that preprocessing accepts; the first refusal where it accepts none."""
    prepared: list[Prepared] = []
    refusals: list[InputRefused] = []
    for record in _records(modality, instances, spec):
        try:
            prepared.append(_prepare(record, spec))
        except InputRefused as refusal:
            refusals.append(refusal)
    if not prepared:
        raise refusals[0]
    return tuple(prepared)


def _prepare(record: Record, spec: EchoSpec | CmrSpec | EcgSpec | CmrVolumeSpec) -> Prepared:
    """Volumes are what the cross-modal check reads, no input of an engine: they do not come through the registry."""
    if spec.kind != "cmr_volume":
        return prepare(record, spec)
    from engines.preprocess.cmr_volume import prepare_volumes

    assert isinstance(record, CineStack)
    return prepare_volumes(record, spec)


def _records(
    modality: Modality, instances: Sequence[BinaryIO], spec: EchoSpec | CmrSpec | EcgSpec | CmrVolumeSpec
) -> tuple[Record, ...]:
    match modality:
        case Modality.ECHO:
            if isinstance(spec, EchoCleanSpec):
                return decode_echo(instances, most=spec.loops_max, stored_luma=True)
            return decode_echo(instances)
        case Modality.CMR:
            return (decode_cmr(instances),)
        case Modality.ECG:
            return (decode_ecg(instances),)


def _headers(instances: Sequence[BinaryIO], wanted: set[str] | None) -> tuple[bytes, ...]:
    """Extracts of the wanted instances, or of the first few readable ones where nothing is wanted in particular."""
    extracts: list[bytes] = []
    for instance in instances:
        if wanted is None and len(extracts) == HEADERS_OF_A_REFUSAL:
            break
        try:
            dataset = parsed(instance)
        except Refusal:
            continue
        extract = header_extract(dataset) if wanted is None or str(dataset.SOPInstanceUID) in wanted else None
        if extract is not None:
            extracts.append(extract)
    return tuple(extracts)
