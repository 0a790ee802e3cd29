"""The proxy between a browser, the viewer's files and the PACS."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from stream_processors.local import viewer
from stream_processors.local.proxy import ViewerProxy
from stream_processors.local.viewer import LocalViewer, ViewerMissing


class Pacs(BaseHTTPRequestHandler):
    """Says what it was asked, and refuses what is not there."""

    asked: list[tuple[str, str | None]] = []  # noqa: RUF012 - one list for the whole server

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("accept")))
        self.send_response(404 if "missing" in self.path else 200)
        self.send_header("Content-Type", "application/dicom+json")
        self.end_headers()
        self.wfile.write(b"[{}]")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def pacs() -> Iterator[str]:
    """A PACS that answers everything."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pacs)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Pacs.asked.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A built viewer of three files, and something beside it that is nobody's business."""
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in ("index.html", "app.js", "app-config.js"):
        (folder / name).write_text(name)
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


@pytest.fixture
def proxy(files: Path, pacs: str) -> Iterator[ViewerProxy]:
    """The proxy in front of both."""
    own = files.parent / "own.js"
    own.write_text("ours")
    started = ViewerProxy(files, {"app-config.js": own}, pacs)
    started.start()
    yield started
    started.stop()


def test_files_are_served_and_unknown_paths_are_the_application(proxy: ViewerProxy) -> None:
    """A single-page application answers every address with its page; our configuration replaces its own."""
    assert httpx.get(f"{proxy.url}/app.js").text == "app.js"
    assert httpx.get(f"{proxy.url}/app.js").headers["content-type"].startswith("text/javascript")
    assert httpx.get(f"{proxy.url}/viewer?StudyInstanceUIDs=1.2").text == "index.html"
    assert httpx.get(f"{proxy.url}/app-config.js").text == "ours"


def test_dicom_web_is_passed_on_with_its_query_and_accept(proxy: ViewerProxy) -> None:
    """The PACS sees the request as the browser made it, and the browser sees its answer and status."""
    answer = httpx.get(f"{proxy.url}/dicom-web/studies?limit=2", headers={"accept": "application/dicom+json"})
    assert (answer.status_code, answer.json()) == (200, [{}])
    assert Pacs.asked == [("/dicom-web/studies?limit=2", "application/dicom+json")]
    assert httpx.get(f"{proxy.url}/dicom-web/missing").status_code == 404


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "/link.txt", "/dicom-web/../instances"])
def test_nothing_else_is_reached(proxy: ViewerProxy, path: str) -> None:
    """No path leads out of the folder, and none to the rest of the PACS's interface."""
    host, port = proxy.url.removeprefix("http://").split(":")
    import http.client

    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    assert b"secret" not in body
    assert Pacs.asked == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_reading_is_allowed(proxy: ViewerProxy, method: str) -> None:
    """Nobody changes the PACS through the viewer."""
    assert httpx.request(method, f"{proxy.url}/dicom-web/studies").status_code == 501
    assert Pacs.asked == []


def test_a_silent_pacs_is_a_bad_gateway(files: Path) -> None:
    """The page still loads when the PACS is down, and a request to it ends with a status."""
    proxy = ViewerProxy(files, {}, "http://127.0.0.1:9")
    proxy.start()
    try:
        assert httpx.get(f"{proxy.url}/").text == "index.html"
        assert httpx.get(f"{proxy.url}/dicom-web/studies").status_code == 502
    finally:
        proxy.stop()


def test_missing_files_name_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the npm package the message says what to run."""
    monkeypatch.setattr(viewer, "OHIF_FILES", tmp_path)
    with pytest.raises(ViewerMissing, match=r"viewer\.sh"):
        LocalViewer("http://127.0.0.1:1")
