"""What pydicom may raise at a file that is broken (PS3.10 7). Used by ``reported`` and ``pacs.send``."""

from __future__ import annotations

import struct

from pydicom.errors import BytesLengthException, InvalidDicomError

UNREADABLE = (
    InvalidDicomError,
    BytesLengthException,
    struct.error,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Found by reading damaged files; an exception that is missing here is a bug and ends as a dead letter."""
