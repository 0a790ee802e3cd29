"""One origin for a browser: the built files of a viewer, and a PACS's DICOMweb behind the same address.

For the demo and the tests, on loopback: reads only (GET, HEAD), follows no redirect, serves nothing outside the folder
and reaches nothing of the PACS besides DICOMweb.
"""

from __future__ import annotations

import mimetypes
import shutil
import threading
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote, urlsplit

import httpx

DICOM_WEB: Final = "/dicom-web/"
_PASSED_ON: Final = ("accept", "range")
_PASSED_BACK: Final = ("content-type", "content-length", "content-range")
_TIMEOUT_S: Final = 60.0
_ISOLATION: Final = {
    # The viewer decodes in threads that share memory, which browsers grant to isolated pages only.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ViewerProxy:
    """A server on a port of the system's choice, in a thread of its own.

    Args:
        files: folder with the viewer's built files; its ``index.html`` answers every unknown path (a single-page app).
        replaced: files served in place of those of the same name in the folder.
        pacs_url: base URL of the PACS; ``/dicom-web/`` is passed on to it.
    """

    def __init__(self, files: Path, replaced: dict[str, Path], pacs_url: str) -> None:
        self._client = httpx.Client(base_url=pacs_url, timeout=_TIMEOUT_S, trust_env=False)
        handler = partial(_Handler, files=files.resolve(), replaced=replaced, client=self._client)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="viewer-proxy", daemon=True)

    @property
    def url(self) -> str:
        """Address to open."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Serve until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and the connections to the PACS."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._client.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object, files: Path, replaced: dict[str, Path], client: httpx.Client) -> None:
        self._files, self._replaced, self._client = files, replaced, client
        super().__init__(*args)  # type: ignore[arg-type]  # (request, address, server) of the standard library

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if ".." in path.split("/"):
            self.send_error(HTTPStatus.NOT_FOUND)
        elif path.startswith(DICOM_WEB):
            self._pass_on()
        else:
            self._send_file(self._file(path.lstrip("/")))

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - name given by the standard library
        """Say nothing: paths and queries of a viewer can hold a patient's name."""

    def _pass_on(self) -> None:
        headers = {name: value for name in _PASSED_ON if (value := self.headers.get(name))}
        headers["accept-encoding"] = "identity"
        try:
            with self._client.stream(self.command, self.path, headers=headers) as answer:
                self._send_head(answer)
                if self.command != "HEAD":
                    self._copy(answer)
        except httpx.HTTPError:
            self.send_error(HTTPStatus.BAD_GATEWAY, "the PACS does not answer")

    def _send_head(self, answer: httpx.Response) -> None:
        self.send_response(answer.status_code)
        for name in _PASSED_BACK:
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        if "content-length" not in answer.headers:
            self.send_header("Connection", "close")
        self._end_head()

    def _copy(self, answer: httpx.Response) -> None:
        try:
            for chunk in answer.iter_raw():
                self.wfile.write(chunk)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _file(self, name: str) -> Path:
        """The file of this path; ``index.html`` where there is none, and for whatever lies outside the folder."""
        if name in self._replaced:
            return self._replaced[name]
        path = (self._files / name).resolve()
        return path if path.is_file() and path.is_relative_to(self._files) else self._files / "index.html"

    def _send_file(self, path: Path) -> None:
        with path.open("rb") as file:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", mimetypes.guess_type(path.name)[0] or "application/octet-stream")
            self.send_header("Content-Length", str(path.stat().st_size))
            self._end_head()
            if self.command != "HEAD":
                self._write(file)

    def _write(self, file: BinaryIO) -> None:
        try:
            shutil.copyfileobj(file, self.wfile)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _end_head(self) -> None:
        for name, value in _ISOLATION.items():
            self.send_header(name, value)
        self.end_headers()
