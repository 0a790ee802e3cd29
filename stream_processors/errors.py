"""Every error of the processors, and where the errors of other people's libraries end up in it.

The tree (``*`` = worth trying again later)::

    ProcessorError
    ├── SettingsInvalid             an operator has to act before anything can run
    ├── PacsError
    │   ├── PacsUnavailable *       unreachable, too slow, out of resources: lasts until somebody repairs it
    │   │   ├── PacsUnauthorized *  it refuses our credentials or our application entity
    │   │   └── CommitmentPending * stored, but the archive has not yet said that it keeps it (PS3.4 J)
    │   ├── PacsFault *             it answers, but fails on this one object
    │   └── PacsRefused             it says no to this one object, and will say so again
    ├── StoreUnverified *           stored, yet not found, or found with another identity
    ├── ReportUnreadable            an object under our UID is not a report of ours
    ├── ClaimTooLarge               the study is larger than this installation fetches
    ├── Stopped                     an operator has to act before this message can end
    ├── Abandoned                   the process is ending; the message is delivered again
    ├── NewProcessNeeded            only a new process can bring it to its end; it is delivered again, to that one
    ├── ResourceExhausted *         no memory or no disk left here
    └── ClaimEnded                  the announcement is no longer true; ends in an outcome, not in a failure
        ├── ClaimSuperseded         the study holds something else by now; a newer revision is coming
        └── ClaimExpired            the study is gone

``engines.errors``, ``EventError`` and ``LogUnavailable`` of ``orthanc_plugin.wire`` stand beside this tree; what is
done about each class of all four is one table, ``disposition``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ProcessorError(Exception):
    """Root of the tree; the message names no patient. ``retriable``: the same call may succeed later."""

    retriable: ClassVar[bool] = False


class SettingsInvalid(ProcessorError):
    """A setting is missing, unknown or contradicts another."""


class PacsError(ProcessorError):
    """The PACS did not do what it was asked."""


class PacsUnavailable(PacsError):
    """The PACS cannot be reached, does not answer in time or has no room."""

    retriable = True


class PacsUnauthorized(PacsUnavailable):
    """The PACS refuses our credentials; whatever we send is safe until somebody repairs them."""


class CommitmentPending(PacsUnavailable):
    """The archive has not yet answered the storage commitment request (PS3.4 J.3)."""


class PacsFault(PacsError):
    """The PACS is up but fails on this one object."""

    retriable = True


class PacsRefused(PacsError):
    """The PACS refuses this one object for good."""


class StoreUnverified(ProcessorError):
    """The PACS said 'stored', but what it shows afterwards is not what was sent."""

    retriable = True


class ReportUnreadable(ProcessorError):
    """An object that should be a report of ours cannot be read as one."""


class ClaimTooLarge(ProcessorError):
    """The announced study has more bytes than the settings allow to fetch."""


class Stopped(ProcessorError):
    """Nothing more can be done without an operator; the message stays uncommitted."""


class Abandoned(ProcessorError):
    """The process is ending; the message stays uncommitted and is delivered again."""


class NewProcessNeeded(ProcessorError):
    """The GPU's context is lost in this process; the message stays uncommitted and is delivered to the next one."""


class ResourceExhausted(ProcessorError):
    """This machine has no memory, disk or file handles left."""

    retriable = True


class ClaimEnded(ProcessorError):
    """The announcement no longer describes the study.

    Args:
        reason: one sentence for the outcome event.
    """

    code: ClassVar[str] = "claim_ended"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClaimSuperseded(ClaimEnded):
    """What the PACS holds no longer hashes to the digest of the claim."""

    code = "claim_superseded"


class ClaimExpired(ClaimEnded):
    """Nothing of the claim is left in the PACS."""

    code = "claim_expired"


FOREIGN: Mapping[str, type[ProcessorError]] = {
    "httpx.TransportError": PacsUnavailable,
    "httpx.DecodingError": PacsUnavailable,
    "httpx.UnsupportedProtocol": SettingsInvalid,
    "httpx.InvalidURL": SettingsInvalid,
    "httpx.TooManyRedirects": SettingsInvalid,
    "httpx.HTTPError": PacsFault,
    "httpx.CookieConflict": PacsFault,
    "httpx.StreamError": PacsUnavailable,
    "pydicom.errors.InvalidDicomError": ReportUnreadable,
    "pydicom.errors.BytesLengthException": ReportUnreadable,
    "pynetdicom.fsm.InvalidEventError": PacsUnavailable,
    "builtins.MemoryError": ResourceExhausted,
    "builtins.ConnectionError": PacsUnavailable,
    "builtins.TimeoutError": PacsUnavailable,
    "builtins.OSError": ResourceExhausted,
}
"""Library exception -> ours, by qualified name, so that no library is imported to read the table; subclasses follow."""

_SPEAKS_FREELY = ("httpx",)
"""Libraries whose messages hold addresses and numbers only; the others quote values of the data set."""


def from_foreign(error: BaseException, doing: str) -> ProcessorError | None:
    """Our error for a library's, or None for one that no table knows.

    Args:
        error: what a library raised.
        doing: what was being done, for the message (``storing the report``).
    """
    for cls in type(error).__mro__:
        ours = FOREIGN.get(f"{cls.__module__}.{cls.__qualname__}")
        if ours is not None:
            return ours(f"{doing}: {_describe(error)}")
    return None


def _describe(error: BaseException) -> str:
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    speaks_freely = type(error).__module__.partition(".")[0] in _SPEAKS_FREELY
    return f"{name}: {error}" if speaks_freely and str(error) else name
