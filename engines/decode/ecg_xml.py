"""XML of ECG carts, parsed within bounds: no entities, no external files, a bounded number of elements.

Namespaces are dropped: the carts' schemas have one each. A document type that only names an external file is accepted, because
MUSE writes one, and never fetched. Called by the readers of XML formats.
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from numpy.typing import NDArray

from engines.decode.ecg_reading import MAX_FILE_BYTES, malformed
from engines.errors import InputRefused, RefusalCode

MAX_ELEMENTS = 200_000
MAX_SAMPLES = 200_000
"""Of one lead: 200 s at 1000 Hz."""
_HEAD_BYTES = 65_536
_PROLOGUE = re.compile(r"<!--.*?-->|<\?.*?\?>|<!DOCTYPE[^>\[]*(?:\[.*?\]\s*)?>", re.DOTALL)
_FIRST_TAG = re.compile(r"\s*<(?:[A-Za-z_][\w.-]*:)?([A-Za-z_][\w.-]*)[\s/>]")


def root_name(data: bytes) -> str | None:
    """Name of the outermost element without its namespace, or None where the bytes are no XML."""
    text = _PROLOGUE.sub("", _decoded(data[:_HEAD_BYTES]))
    match = _FIRST_TAG.match(text.lstrip("\ufeff"))
    return match.group(1) if match else None


def parsed_xml(data: bytes) -> Element:
    """The outermost element.

    Raises:
        InputRefused: LIMITS_EXCEEDED for too large a document, UNDECODABLE for one that is broken or declares entities.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    if len(data) > MAX_FILE_BYTES or data.count(b"<") > 2 * MAX_ELEMENTS:
        raise InputRefused(
            RefusalCode.LIMITS_EXCEEDED,
            f"the document has {len(data)} bytes; at most {MAX_FILE_BYTES} and {MAX_ELEMENTS} elements are read",
        )
    try:
        root: Element = fromstring(data, forbid_dtd=False, forbid_entities=True, forbid_external=True)
    except DefusedXmlException as error:
        raise malformed(f"the XML declares entities ({type(error).__name__}), which are never expanded") from None
    except (ParseError, LookupError, ValueError) as error:
        raise malformed(f"the XML is broken ({type(error).__name__})") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def text_of(element: Element | None, path: str) -> str | None:
    """Text of the first element under a path, stripped; None where it is absent or empty."""
    found = element.find(path) if element is not None else None
    return (found.text or "").strip() or None if found is not None else None


def number_of(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def sample_values(text: str | None, what: str) -> NDArray[np.float64]:
    """Numbers separated by commas or white space, float64 [N].

    Raises:
        InputRefused: none, too many, or one that is no number.
    """
    words = (text or "").replace(",", " ").split()
    if len(words) > MAX_SAMPLES:
        raise InputRefused(
            RefusalCode.LIMITS_EXCEEDED, f"{what} has {len(words)} samples; at most {MAX_SAMPLES} are read"
        )
    try:
        values = np.array(words, np.float64)
    except ValueError:
        raise malformed(f"{what} holds something that is no number") from None
    if not len(values) or not np.isfinite(values).all():
        raise malformed(f"{what} holds no samples, or some that are not finite")
    return values


def _decoded(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data[: len(data) // 2 * 2].decode("utf-16", "replace")
    return data.decode("latin-1")
