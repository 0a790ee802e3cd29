"""Golden vectors: a few records with the arrays and outputs that training saw, in one ``.npz`` without pickle.

Written by the training exporter, replayed by ``engines.selftest`` through the serving path. Keys of the archive are
``<nnn>/record/<field>``, ``<nnn>/prepared/<input>``, ``<nnn>/output/<output>`` and ``<nnn>/record.json`` (the
fields that are not arrays, as UTF-8 bytes in uint8). Phantoms only: no patient-derived data stands in a bundle.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import BundleCorrupt
from engines.records import ArrayFrames, CineLoop, CineStack, EcgRecord, Record, SourceInstance

Arrays = dict[str, NDArray[Any]]
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """One record, what ``engines.preprocess`` made of it, and what the network answered."""

    record: Record
    prepared: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]


def golden_bytes(cases: Sequence[GoldenCase]) -> bytes:
    """Serialise the cases; equal cases give equal bytes.

    Args:
        cases: at least one, at most 1000.

    Returns:
        The ``.npz`` archive.
    """
    arrays: Arrays = {}
    for index, case in enumerate(cases):
        arrays.update({f"{index:03d}/{key}": array for key, array in _case_arrays(case).items()})
    return npz_bytes(arrays)


def golden_cases(archive: bytes) -> tuple[GoldenCase, ...]:
    """Rebuild the cases.

    Raises:
        BundleCorrupt: the archive is not what ``golden_bytes`` writes.
    """
    arrays = npz_arrays(archive)
    indices = sorted({key.split("/", 1)[0] for key in arrays})
    try:
        return tuple(_case_from(_below(arrays, f"{index}/")) for index in indices)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"the golden vectors cannot be read back ({error}); export the bundle again"
        raise BundleCorrupt(msg) from error


def record_arrays(record: Record) -> tuple[Arrays, dict[str, Any]]:
    """Split a record into its arrays and its other fields (JSON-ready, with its kind)."""
    kind = type(record).__name__
    return _SPLIT[kind](record)


def record_from_arrays(arrays: Mapping[str, NDArray[Any]], fields: Mapping[str, Any]) -> Record:
    """Build the record that ``record_arrays`` split; KeyError, TypeError or ValueError where that is impossible."""
    return _JOIN[fields["record"]](arrays, fields)


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Write a compressed ``.npz`` whose bytes depend on the arrays only (``numpy.savez`` stores the time)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(arrays[name]), allow_pickle=False)
    return buffer.getvalue()


def npz_arrays(archive: bytes) -> Arrays:
    """Read a ``.npz`` without pickle.

    Raises:
        BundleCorrupt: it is no such archive.
    """
    try:
        with np.load(io.BytesIO(archive), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"not a readable .npz archive without pickle ({error}); export the bundle again"
        raise BundleCorrupt(msg) from error


def _case_arrays(case: GoldenCase) -> Arrays:
    arrays, fields = record_arrays(case.record)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {
        "record.json": np.frombuffer(text.encode(), dtype=np.uint8),
        **{f"record/{name}": array for name, array in arrays.items()},
        **{f"prepared/{name}": array for name, array in case.prepared.items()},
        **{f"output/{name}": array for name, array in case.outputs.items()},
    }


def _case_from(arrays: Arrays) -> GoldenCase:
    fields = json.loads(arrays["record.json"].tobytes())
    record = record_from_arrays(_below(arrays, "record/"), fields)
    return GoldenCase(record=record, prepared=_below(arrays, "prepared/"), outputs=_below(arrays, "output/"))


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _split_loop(loop: CineLoop) -> tuple[Arrays, dict[str, Any]]:
    frames_THW = np.stack(list(loop.frames.luma(range(len(loop.frames)))))
    arrays: Arrays = {"frames_THW": frames_THW, "frame_times_ms": loop.frame_times_ms}
    fields = {name: getattr(loop, name) for name in ("region_px", "spacing_mm", "heart_rate_bpm", "view")}
    return arrays, {"record": "CineLoop", **fields, "source": _source_fields(loop.source)}


def _join_loop(arrays: Mapping[str, NDArray[Any]], fields: Mapping[str, Any]) -> CineLoop:
    return CineLoop(
        frames=ArrayFrames(frames_THW=arrays["frames_THW"]),
        frame_times_ms=arrays["frame_times_ms"],
        region_px=_tuple_or_none(fields["region_px"]),
        spacing_mm=_tuple_or_none(fields["spacing_mm"]),
        heart_rate_bpm=fields["heart_rate_bpm"],
        view=fields["view"],
        source=_source(fields["source"]),
    )


_STACK_ARRAYS = ("images_SPHW", "slice_positions_mm", "trigger_times_ms")


def _split_stack(stack: CineStack) -> tuple[Arrays, dict[str, Any]]:
    arrays: Arrays = {name: getattr(stack, name) for name in _STACK_ARRAYS}
    fields = {name: getattr(stack, name) for name in ("spacing_mm", "orientation", "heart_rate_bpm")}
    sources = [[_source_fields(source) for source in row] for row in stack.sources_SP]
    return arrays, {"record": "CineStack", **fields, "sources_SP": sources}


def _join_stack(arrays: Mapping[str, NDArray[Any]], fields: Mapping[str, Any]) -> CineStack:
    return CineStack(
        images_SPHW=arrays["images_SPHW"],
        slice_positions_mm=arrays["slice_positions_mm"],
        trigger_times_ms=arrays["trigger_times_ms"],
        spacing_mm=tuple(fields["spacing_mm"]),
        orientation=tuple(fields["orientation"]),
        sources_SP=tuple(tuple(_source(source) for source in row) for row in fields["sources_SP"]),
        heart_rate_bpm=fields["heart_rate_bpm"],
    )


def _split_ecg(ecg: EcgRecord) -> tuple[Arrays, dict[str, Any]]:
    fields = {name: getattr(ecg, name) for name in ("sampling_rate_hz", "highpass_hz", "lowpass_hz", "warnings")}
    lists = {"derived_leads": sorted(ecg.derived_leads), "source": _source_fields(ecg.source)}
    return {"signal_mv": ecg.signal_mv}, {"record": "EcgRecord", **fields, **lists}


def _join_ecg(arrays: Mapping[str, NDArray[Any]], fields: Mapping[str, Any]) -> EcgRecord:
    return EcgRecord(
        signal_mv=arrays["signal_mv"],
        sampling_rate_hz=fields["sampling_rate_hz"],
        source=_source(fields["source"]),
        derived_leads=frozenset(fields["derived_leads"]),
        highpass_hz=fields["highpass_hz"],
        lowpass_hz=fields["lowpass_hz"],
        warnings=tuple(fields["warnings"]),
    )


def _source_fields(source: SourceInstance) -> dict[str, Any]:
    """Without what the source calls its view: free text has no place in a bundle."""
    return {name: value for name, value in asdict(source).items() if name != "view_labels"}


def _source(fields: Mapping[str, Any]) -> SourceInstance:
    return SourceInstance(
        sop_class_uid=fields["sop_class_uid"],
        sop_instance_uid=fields["sop_instance_uid"],
        series_instance_uid=fields["series_instance_uid"],
        frame_numbers=tuple(fields["frame_numbers"]),
        waveform_channels=tuple((group, channel) for group, channel in fields["waveform_channels"]),
    )


def _tuple_or_none(values: Sequence[Any] | None) -> Any:
    return None if values is None else tuple(values)


_SPLIT: dict[str, Callable[[Any], tuple[Arrays, dict[str, Any]]]] = {
    "CineLoop": _split_loop,
    "CineStack": _split_stack,
    "EcgRecord": _split_ecg,
}
_JOIN: dict[str, Callable[[Mapping[str, NDArray[Any]], Mapping[str, Any]], Record]] = {
    "CineLoop": _join_loop,
    "CineStack": _join_stack,
    "EcgRecord": _join_ecg,
}
