"""Sends DICOM files and folders to a PACS by C-STORE, byte for byte as they lie on disk.

ECG files that are no DICOM are turned into DICOM objects first (``ecg_object``).

One kind of damage is mended on the way, because real carts write it and receivers lose the association over it: a second
Sequence Delimitation Item behind the pixel data. The result names the files it was taken from.

One presentation context per SOP class and transfer syntax that occurs, in as few associations as 128 contexts allow.
What is no DICOM file is skipped with its reason, what is refused is told with its status, and one bad file never keeps
the others back. Called by ``purkinje send`` and the demo. Names and values of the files are not logged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pynetdicom import _config
from pynetdicom.presentation import PresentationContext, build_context
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from engines.errors import Refusal
from orthanc_plugin.wire.events import is_uid
from stream_processors.errors import PacsError, PacsUnavailable
from stream_processors.pacs.association import MOST_CONTEXTS, Peer, association, require_stored, status_of
from stream_processors.pacs.ecg_object import Identity, ecg_object, part10_bytes
from stream_processors.part10 import UNREADABLE

_DELIMITER = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
"""Sequence Delimitation Item (FFFE,E0DD), little endian (PS3.5 7.5.1, A.4)."""
_STRAY = 0xFFFEE0DD
_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory: a DICOMDIR is an index, not an object to store


@dataclass(frozen=True, kw_only=True)
class DicomFile:
    """A file that can be sent."""

    path: Path
    sop_class_uid: str
    transfer_syntax_uid: str


@dataclass(kw_only=True)
class SendResult:
    """What became of every file; ``skipped`` and ``failed`` map a path to its reason, ``mended`` ones were sent too."""

    sent: list[Path] = field(default_factory=list)
    mended: dict[Path, str] = field(default_factory=dict)
    skipped: dict[Path, str] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Every file named or below a named folder, sorted by name; hidden ones are left out.

    Raises:
        FileNotFoundError: a name that is neither file nor folder.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = (one for one in path.rglob("*") if one.is_file())
            found += sorted(
                one for one in below if not any(part.startswith(".") for part in one.relative_to(path).parts)
            )
        elif path.is_file():
            found.append(path)
        else:
            msg = f"{path} is neither a file nor a folder"
            raise FileNotFoundError(msg)
    return found


def send(paths: Sequence[Path], peer: Peer, *, each_done: Callable[[Path], None] = lambda _: None) -> SendResult:
    """Send files in the given order.

    Args:
        paths: files.
        peer: where to.
        each_done: called after each file, sent or not.

    Raises:
        PacsUnavailable: nobody answers at all; what was sent before stays sent.
    """
    result = SendResult()
    files = []
    for path in paths:
        described = describe(path)
        if isinstance(described, str):
            result.skipped[path] = described
            each_done(path)
        else:
            files.append(described)
    for batch in _batches(files):
        _send_batch(batch, peer, result, each_done)
    return result


def send_files(  # noqa: PLR0913 - an address has these parts
    paths: Iterable[Path],
    *,
    host: str,
    port: int,
    called_ae_title: str,
    calling_ae_title: str = "PURKINJE",
    timeout_s: float = 60.0,
    console: Console,
) -> SendResult:
    """``send`` with a progress bar; files and folders may be mixed. Raises like ``find_files`` and ``send``."""
    peer = Peer(
        host=host,
        port=port,
        called_ae_title=called_ae_title,
        calling_ae_title=calling_ae_title,
        timeout_s=timeout_s,
    )
    files = find_files(paths)
    with Progress(
        TextColumn("sending to {task.description}"), BarColumn(), MofNCompleteColumn(), console=console
    ) as progress:
        task = progress.add_task(str(peer), total=len(files))
        return send(files, peer, each_done=lambda _: progress.advance(task))


def send_ecg_files(
    paths: Iterable[Path],
    peer: Peer,
    identity: Identity,
) -> SendResult:
    """Turn ECG files that are no DICOM into DICOM objects and send them; what cannot be turned is skipped with its reason.

    Raises:
        PacsUnavailable: nobody answers at all.
    """
    skipped: dict[Path, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        made: dict[Path, Path] = {}
        for number, path in enumerate(paths):
            try:
                content = part10_bytes(ecg_object(path, identity))
            except (Refusal, OSError, ValueError) as error:
                skipped[path] = str(error)
                continue
            made[Path(folder) / f"{number}.dcm"] = path
            (Path(folder) / f"{number}.dcm").write_bytes(content)
        result = send(list(made), peer)
        return SendResult(
            sent=[made[path] for path in result.sent],
            skipped=skipped,
            failed={made[path]: reason for path, reason in result.failed.items()},
        )


def describe(path: Path) -> DicomFile | str:
    """What a file is for the network, or why it cannot be sent."""
    try:
        meta = read_file_meta_info(path)
        sop_class, syntax = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
        instance = str(meta.MediaStorageSOPInstanceUID)
    except InvalidDicomError:
        return "not a DICOM file (no DICM prefix, PS3.10 7.1)"
    except UNREADABLE as error:
        return f"unreadable file meta information ({type(error).__name__}, PS3.10 7.1)"
    if not all(is_uid(uid) for uid in (sop_class, syntax, instance)):
        return "the file meta information has a malformed UID (PS3.5 9.1)"
    if sop_class == _DIRECTORY:
        return "a DICOMDIR, not an object to store"
    return DicomFile(path=path, sop_class_uid=sop_class, transfer_syntax_uid=syntax)


def _batches(files: Iterable[DicomFile]) -> Iterator[list[DicomFile]]:
    """Runs of files that need at most ``MOST_CONTEXTS`` contexts together."""
    batch: list[DicomFile] = []
    needed: set[tuple[str, str]] = set()
    for file in files:
        context = (file.sop_class_uid, file.transfer_syntax_uid)
        if context not in needed and len(needed) == MOST_CONTEXTS:
            yield batch
            batch, needed = [], set()
        needed.add(context)
        batch.append(file)
    if batch:
        yield batch


def _contexts(files: Iterable[DicomFile]) -> list[PresentationContext]:
    pairs = dict.fromkeys((file.sop_class_uid, file.transfer_syntax_uid) for file in files)
    return [build_context(sop_class, syntax) for sop_class, syntax in pairs]


def _send_batch(batch: Sequence[DicomFile], peer: Peer, result: SendResult, each_done: Callable[[Path], None]) -> None:
    """Send a batch; a file that breaks the association is told as failed and the rest goes over a new one."""
    waiting = list(batch)
    while waiting:
        before = len(waiting)
        try:
            with association(peer, _contexts(waiting)) as opened:
                while waiting and opened.is_established:
                    _send_one(opened, waiting.pop(0), result, each_done)
        except PacsError as error:
            if isinstance(error, PacsUnavailable) and not (result.sent or result.failed):
                raise
            _give_up(waiting, str(error), result, each_done)
            return
        if len(waiting) == before:
            _give_up(waiting[:1], "the association broke off before the file was sent", result, each_done)
            del waiting[:1]


def _give_up(files: Iterable[DicomFile], reason: str, result: SendResult, each_done: Callable[[Path], None]) -> None:
    for file in files:
        result.failed[file.path] = reason
        each_done(file.path)


def _send_one(opened: Any, file: DicomFile, result: SendResult, each_done: Callable[[Path], None]) -> None:
    _config.STORE_SEND_CHUNKED_DATASET = True  # the bytes of the file, not a re-encoding of them
    try:
        mended = _mended(file.path)
        require_stored(status_of(opened.send_c_store(mended or file.path), "C-STORE"), "C-STORE")
        result.sent.append(file.path)
        if mended is not None:
            result.mended[file.path] = "a second Sequence Delimitation Item behind the pixel data was left out"
    except PacsError as error:
        result.failed[file.path] = str(error)
    except (RuntimeError, *UNREADABLE) as error:
        accepted = any(
            (context.abstract_syntax, context.transfer_syntax[0]) == (file.sop_class_uid, file.transfer_syntax_uid)
            for context in opened.accepted_contexts
        )
        result.failed[file.path] = (
            f"the file cannot be sent ({type(error).__name__})"
            if accepted
            else f"the PACS does not accept {file.sop_class_uid} in transfer syntax {file.transfer_syntax_uid}"
        )
    each_done(file.path)


def _mended(path: Path) -> Dataset | None:
    """The data set without a stray delimiter at its end, or None for a file that needs no mending."""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 2 * len(_DELIMITER)))
        if file.read() != 2 * _DELIMITER:
            return None
    dataset = dcmread(path)
    return None if dataset.pop(_STRAY, None) is None else dataset
