"""The few things we ask of Orthanc, as a protocol, and the adapter over its Python module.

Everything in this package but ``plugin`` sees Orthanc only through ``OrthancApi``, so that it runs in tests
without Orthanc. Called from the one background thread only: a REST call inside a callback can deadlock.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

_UNKNOWN_RESOURCE = 17  # OrthancPluginErrorCode_UnknownResource
_INEXISTENT_ITEM = 7  # OrthancPluginErrorCode_InexistentItem


class ResourceGone(Exception):
    """Orthanc does not know this resource: it was deleted, or never had what was asked for."""


class OrthancRefused(Exception):
    """Orthanc answered with an error; nothing was lost, try again."""


class OrthancStopping(Exception):
    """Orthanc is shutting down; no call may be made any more."""


class OrthancApi(Protocol):
    """Orthanc's REST interface and its durable properties, from inside the process."""

    def get(self, path: str) -> Any:
        """JSON at a path. Raises ResourceGone, OrthancRefused, OrthancStopping."""

    def get_bytes(self, path: str) -> bytes:
        """Raw answer at a path. Raises ResourceGone, OrthancRefused, OrthancStopping."""

    def post(self, path: str, body: object) -> Any:
        """Send JSON, receive JSON. Raises ResourceGone, OrthancRefused, OrthancStopping."""

    def put(self, path: str, body: bytes) -> None:
        """Write a value. Raises ResourceGone, OrthancRefused, OrthancStopping."""

    def read_property(self, number: int) -> str | None:
        """One of the plugin properties in Orthanc's database (numbers from 1024), or None."""

    def write_property(self, number: int, value: str) -> None:
        """Write such a property durably."""

    def log_warning(self, text: str) -> None:
        """One line in Orthanc's log; never patient data."""


class EmbeddedOrthanc:
    """``OrthancApi`` over the ``orthanc`` module that the Python plugin host provides.

    Args:
        module: the ``orthanc`` module.
        stopping: once set, every further call raises ``OrthancStopping``.
    """

    def __init__(self, module: ModuleType, stopping: threading.Event) -> None:
        self._module = module
        self._stopping = stopping

    def get(self, path: str) -> Any:
        return _json(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        return self._call(path, lambda: self._module.RestApiGet(path))

    def post(self, path: str, body: object) -> Any:
        return _json(self._call(path, lambda: self._module.RestApiPost(path, json.dumps(body))))

    def put(self, path: str, body: bytes) -> None:
        self._call(path, lambda: self._module.RestApiPut(path, body))

    def read_property(self, number: int) -> str | None:
        text = self._call("property", lambda: self._module.GetGlobalProperty(number, "").encode())
        return text.decode() or None

    def write_property(self, number: int, value: str) -> None:
        self._call("property", lambda: self._module.SetGlobalProperty(number, value))

    def log_warning(self, text: str) -> None:
        self._module.LogWarning(f"purkinje: {text}")

    def _call(self, path: str, act: Callable[[], Any]) -> bytes:
        if self._stopping.is_set():
            raise OrthancStopping
        try:
            answer = act()
        except self._module.OrthancException as error:
            raise _translated(path, error) from error
        return answer if isinstance(answer, bytes) else b""


def _json(answer: bytes) -> Any:
    """Tolerant of what hostile headers leave in Orthanc's answers: bytes that are not UTF-8, control characters."""
    return json.loads(answer.decode(errors="replace"), strict=False)


def _translated(path: str, error: Exception) -> Exception:
    code = error.args[0] if error.args else None
    if code in (_UNKNOWN_RESOURCE, _INEXISTENT_ITEM):
        return ResourceGone(path)
    return OrthancRefused(f"{path}: Orthanc error {error.args}")
