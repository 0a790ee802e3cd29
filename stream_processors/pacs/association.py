"""Opening associations as a service class user: exactly the contexts that are needed, Nagle's delay switched off.

Used by ``dimse`` (reports), ``commitment`` and ``send`` (files). pynetdicom says little by exception and much by state;
what it says is turned into ``PacsUnavailable`` or ``PacsRefused`` here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.presentation import PresentationContext, build_context

from stream_processors.errors import PacsFault, PacsRefused, PacsUnauthorized, PacsUnavailable

VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
MOST_CONTEXTS = 128
"""Presentation context identifiers are odd and below 256 (PS3.8 9.3.2.2)."""

_CALLED_AE_UNKNOWN = (1, 1, 7)
_CALLING_AE_UNKNOWN = (1, 1, 3)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The application entity at the other end, and the name we use there."""

    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str
    timeout_s: float

    def __str__(self) -> str:
        return f"{self.called_ae_title} at {self.host}:{self.port}"


def contexts_for(sop_class_uids: Sequence[str]) -> list[PresentationContext]:
    """Two contexts per SOP class, one for each uncompressed transfer syntax.

    An acceptor picks one syntax per context (PS3.8 9.3.3.2); offered apart, it cannot take the implicit one alone where
    it knows both, so our explicit files arrive byte for byte.
    """
    return [build_context(uid, syntax) for uid in sop_class_uids for syntax in UNCOMPRESSED]


@contextmanager
def association(
    peer: Peer, contexts: Sequence[PresentationContext], handlers: Sequence[tuple[Any, Callable[..., Any]]] = ()
) -> Iterator[Any]:
    """An established association, released at the end and aborted when the body raises.

    Raises:
        PacsUnavailable: nobody answers, or the peer is busy.
        PacsUnauthorized: it does not know one of the two AE titles.
        PacsRefused: it accepts none of the contexts.
    """
    entity = AE(ae_title=peer.calling_ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = peer.timeout_s
    entity.connection_timeout = peer.timeout_s
    opened = entity.associate(
        peer.host,
        peer.port,
        contexts=list(contexts),
        ae_title=peer.called_ae_title,
        evt_handlers=[(evt.EVT_CONN_OPEN, send_at_once), *handlers],
    )
    if not opened.is_established:
        raise _why_not(opened, peer)
    return_taken_answers(opened)
    try:
        yield opened
    except BaseException:
        opened.abort()
        raise
    opened.release()


def return_taken_answers(opened: Any) -> None:
    """Close a race of pynetdicom 3.0.4: its background loop may take an answer that ``send_c_store`` waits for.

    The loop looks at its pause flag and at the queue in two steps; on a busy machine the answer arrives in between, is
    dropped as unexpected, and the sender waits until the time-out. An answer that the loop takes goes back to the queue.
    """
    serve = opened._serve_request  # noqa: SLF001 - there is no public place to stand

    def serve_or_return(message: Any, context_id: int) -> None:
        if message.is_valid_response:
            opened.dimse.msg_queue.put((context_id, message))
        else:
            serve(message, context_id)

    opened._serve_request = serve_or_return  # noqa: SLF001


def send_at_once(event: Any) -> None:
    """Set TCP_NODELAY: without it each small message waits up to 40 ms for the acknowledgement of the one before."""
    connection = event.assoc.dul.socket.socket
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def echo(peer: Peer) -> str:
    """C-ECHO (PS3.4 A); one line on what answered. Raises like ``association``."""
    with association(peer, [build_context(VERIFICATION)]) as opened:
        status_of(opened.send_c_echo(), f"C-ECHO to {peer}")
    return f"{peer} answers C-ECHO"


def status_of(response: Dataset, doing: str) -> int:
    """The status of a response; an empty response is a time-out or an abort.

    Raises:
        PacsUnavailable: there is none.
    """
    if "Status" not in response:
        msg = f"{doing}: no answer (time-out or abort)"
        raise PacsUnavailable(msg)
    return int(response.Status)


STORE_FAILURES: Mapping[range, type[PacsUnavailable | PacsRefused | PacsFault]] = {
    range(0x0110, 0x0111): PacsFault,  # processing failure (PS3.7 C.5.10)
    range(0x0124, 0x0125): PacsUnauthorized,  # not authorised
    range(0xA700, 0xA800): PacsUnavailable,  # out of resources (PS3.4 B.2.3)
    range(0xA900, 0xAA00): PacsRefused,  # data set does not match the SOP class
    range(0xC000, 0xD000): PacsRefused,  # cannot understand
}
"""C-STORE failures (PS3.4 B.2.3, PS3.7 C.5); another one is ``PacsRefused``."""

STORE_WARNINGS = (0xB000, 0xB006, 0xB007)
"""Stored, but coerced or with elements discarded (PS3.4 B.2.3)."""


def require_stored(status: int, doing: str) -> None:
    """Return for success and warnings; raise what a failure means."""
    if status == 0 or status in STORE_WARNINGS:
        return
    failure = next((failure for codes, failure in STORE_FAILURES.items() if status in codes), PacsRefused)
    msg = f"{doing}: status 0x{status:04X}"
    raise failure(msg)


def _why_not(opened: Any, peer: Peer) -> PacsUnavailable | PacsRefused:
    answer = getattr(opened.acceptor, "primitive", None)
    if opened.is_rejected and answer is not None:
        reason = (answer.result, answer.result_source, answer.diagnostic)
        if reason in (_CALLED_AE_UNKNOWN, _CALLING_AE_UNKNOWN):
            msg = f"{peer} does not accept a call by {peer.calling_ae_title}: enter both AE titles there"
            return PacsUnauthorized(msg)
        return PacsUnavailable(f"{peer} rejects the association: {answer.reason_str}")
    if opened.acceptor.primitive is not None and not opened.accepted_contexts:
        return PacsRefused(f"{peer} accepts none of the offered SOP classes and transfer syntaxes")
    return PacsUnavailable(f"{peer} cannot be reached")
