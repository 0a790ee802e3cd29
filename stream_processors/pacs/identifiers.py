"""What may become part of a request to the PACS: identifiers whose form was checked. Called by ``orthanc_rest``."""

from __future__ import annotations

import re

from orthanc_plugin.wire.events import is_uid
from stream_processors.errors import PacsRefused

_ORTHANC_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")


def checked_pacs_id(text: str) -> str:
    """The identifier of a resource, as it is. Raises PacsRefused where it has not Orthanc's form."""
    if not _ORTHANC_ID.fullmatch(text):
        msg = "a resource identifier is not of Orthanc's form (five groups of eight hexadecimal digits)"
        raise PacsRefused(msg)
    return text


def checked_uid(text: str) -> str:
    """The UID, as it is. Raises PacsRefused where it is none."""
    if not is_uid(text):
        msg = "a UID is not well formed (PS3.5 9.1); it does not become part of a request"
        raise PacsRefused(msg)
    return text
