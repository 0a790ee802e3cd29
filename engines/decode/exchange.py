"""How parent and child talk: one JSON line and one npz archive a message, never a pickle.

A message is an eight-byte length and that many bytes: four bytes of JSON length, the JSON, an npz of the arrays.
"""

from __future__ import annotations

import base64
import io
import json
import socket
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.decode.study import StudyReading
from engines.errors import InputRefused, NotApplicable, Refusal, RefusalCode
from engines.preprocess.registry import Prepared
from engines.records import SourceInstance

LARGEST_ANSWER_BYTES = 512 * 1024 * 1024
_LENGTH_BYTES = 8


def send(connection: socket.socket, document: Any, arrays: dict[str, NDArray[Any]] | None = None) -> None:
    """Send one message."""
    text = json.dumps(document).encode()
    archive = io.BytesIO()
    np.savez(archive, **(arrays or {}))  # type: ignore[arg-type]
    body = len(text).to_bytes(4, "big") + text + archive.getvalue()
    connection.sendall(len(body).to_bytes(_LENGTH_BYTES, "big") + body)


def receive(connection: socket.socket) -> tuple[Any, dict[str, NDArray[Any]]]:
    """Receive one message.

    Raises:
        EOFError: the other side is gone.
        ValueError: the message is longer than any answer of ours, or not of this form.
        TimeoutError: nothing came within the connection's timeout.
    """
    length = int.from_bytes(_exactly(connection, _LENGTH_BYTES), "big")
    if not 4 <= length <= LARGEST_ANSWER_BYTES:
        raise ValueError(f"a message of {length} bytes; expected 4 to {LARGEST_ANSWER_BYTES}")
    body = _exactly(connection, length)
    end = 4 + int.from_bytes(body[:4], "big")
    with np.load(io.BytesIO(body[end:]), allow_pickle=False) as archive:
        return json.loads(body[4:end]), {name: archive[name] for name in archive.files}


def reading_to_message(reading: StudyReading) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A reading as JSON values and arrays."""
    arrays = {f"{n}/{name}": array for n, each in enumerate(reading.prepared) for name, array in each.arrays.items()}
    described = [
        {"sources": [asdict(source) for source in each.sources], "region_px": each.region_px, "notes": each.notes}
        for each in reading.prepared
    ]
    return {
        "prepared": described,
        "headers": [base64.b64encode(header).decode() for header in reading.headers],
        "refusal": None if reading.refusal is None else _refusal_to_json(reading.refusal),
    }, arrays


def reading_from_message(document: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> StudyReading:
    """The reading a message describes."""
    return StudyReading(
        prepared=tuple(_prepared(number, described, arrays) for number, described in enumerate(document["prepared"])),
        headers=tuple(base64.b64decode(header) for header in document["headers"]),
        refusal=None if document["refusal"] is None else _refusal_from_json(document["refusal"]),
    )


def _prepared(number: int, described: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Prepared:
    start = f"{number}/"
    region = described["region_px"]
    return Prepared(
        arrays={name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)},
        sources=tuple(_source(source) for source in described["sources"]),
        region_px=None if region is None else (region[0], region[1], region[2], region[3]),
        notes=tuple(described["notes"]),
    )


def _source(values: dict[str, Any]) -> SourceInstance:
    return SourceInstance(
        sop_class_uid=values["sop_class_uid"],
        sop_instance_uid=values["sop_instance_uid"],
        series_instance_uid=values["series_instance_uid"],
        frame_numbers=tuple(values["frame_numbers"]),
        waveform_channels=tuple((group, channel) for group, channel in values["waveform_channels"]),
        view_labels=tuple((attribute, label) for attribute, label in values["view_labels"]),
    )


def _refusal_to_json(refusal: Refusal) -> dict[str, str]:
    kind = "not_applicable" if isinstance(refusal, NotApplicable) else "refused"
    return {"kind": kind, "code": refusal.code.value, "reason": refusal.reason}


def _refusal_from_json(values: dict[str, str]) -> Refusal:
    kind = NotApplicable if values["kind"] == "not_applicable" else InputRefused
    return kind(RefusalCode(values["code"]), values["reason"])


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            raise EOFError("the decoding process is gone")
        parts += part
    return bytes(parts)
