"""Starts and stops a Debian Orthanc of its own, on loopback, in one folder: for the demo and the tests.

Not for a hospital: no authentication, every sender may store. How to configure a real one is in ``deploy/orthanc``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from stream_processors.errors import ProcessorError

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY_SCRIPT = REPOSITORY / "deploy" / "orthanc" / "purkinje_entry.py"
AE_TITLE = "ORTHANC"

_BINARY_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin")
_PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc")
_PLUGINS = {"orthanc-python": "libOrthancPython.so", "orthanc-dicomweb": "libOrthancDicomWeb.so"}
_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
_PORT_ATTEMPTS = 5


class OrthancMissing(ProcessorError):
    """Orthanc or one of its plugins is not installed; the message says what to install."""


class OrthancFailed(ProcessorError):
    """Orthanc ended or did not become ready; the message carries the end of its log."""


def find_orthanc() -> tuple[Path, tuple[Path, ...]]:
    """Orthanc's executable and the Python and DICOMweb plugins.

    Raises:
        OrthancMissing: with the command that installs what is missing.
    """
    binary = shutil.which("Orthanc") or shutil.which("Orthanc", path=os.pathsep.join(_BINARY_FOLDERS))
    plugins = {package: _find_plugin(name) for package, name in _PLUGINS.items()}
    missing = [] if binary else ["orthanc"]
    missing += [package for package, path in plugins.items() if path is None]
    if missing or binary is None:
        raise OrthancMissing(f"not installed: {', '.join(missing)}. Run: sudo apt-get install {' '.join(missing)}")
    return Path(binary), tuple(path for path in plugins.values() if path is not None)


class LocalOrthanc:
    """One Orthanc with its own storage; ports are the system's choice and stay the same over restarts.

    Args:
        folder: storage, configuration and log; made when missing.
        plugin: our configuration section (see ``orthanc_plugin.settings``), or None to run without our plugin.
        configuration: further keys of Orthanc's configuration, over ours.
        entry_script: what the Python plugin loads.
        environment: further environment variables.
    """

    def __init__(
        self,
        folder: Path,
        *,
        plugin: Mapping[str, Any] | None = None,
        configuration: Mapping[str, Any] | None = None,
        entry_script: Path = ENTRY_SCRIPT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self._plugin, self._configuration = plugin, dict(configuration or {})
        self._entry_script, self._environment = entry_script, dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.http_port = self.dicom_port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base URL of the REST interface."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def log_path(self) -> Path:
        """Where its output goes, over all restarts."""
        return self.folder / "orthanc.log"

    @property
    def pid(self) -> int | None:
        """Process id, or None while it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start, and return once it answers on both ports.

        Raises:
            OrthancMissing: it is not installed.
            OrthancFailed: it did not become ready.
        """
        assert self._process is None, "already started"
        binary, plugins = find_orthanc()
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        for _ in range(_PORT_ATTEMPTS):
            self._choose_ports()
            self._launch(binary, plugins)
            if self._becomes_ready():
                return
            self._reap()
            self.http_port = self.dicom_port = 0  # somebody may have taken a port meanwhile
        raise OrthancFailed(f"Orthanc did not start; the end of {self.log_path}:\n{self.log_tail()}")

    def stop(self) -> None:
        """End it in order (SIGTERM) and wait until it has released its database; by force after a minute."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would, and wait until the process is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop in order and start again on the same storage and ports."""
        self.stop()
        self.start()

    def plugin_status(self) -> dict[str, Any]:
        """``GET /purkinje/status``."""
        response = httpx.get(f"{self.url}/purkinje/status", timeout=10)
        response.raise_for_status()
        return dict(response.json())

    def log_tail(self, characters: int = 3000) -> str:
        """End of its log."""
        return self.log_path.read_text(errors="replace")[-characters:] if self.log_path.exists() else "(no log)"

    def _launch(self, binary: Path, plugins: Sequence[Path]) -> None:
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(self._full_configuration(plugins), indent=2))
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary), str(path)], stdout=log, stderr=log, cwd=self.folder, env=self._full_environment()
            )

    def _full_configuration(self, plugins: Sequence[Path]) -> dict[str, Any]:
        configuration: dict[str, Any] = {
            "Name": "Purkinje local",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "TemporaryDirectory": str(self.folder / "tmp"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": AE_TITLE,
            "DicomAlwaysAllowStore": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "StableAge": 1,
            "Plugins": [str(path) for path in plugins],
        }
        if self._plugin is not None:
            configuration |= {"PythonScript": str(self._entry_script), "Purkinje": dict(self._plugin)}
        return configuration | self._configuration

    def _full_environment(self) -> dict[str, str]:
        """Orthanc embeds the system's Python: show it this repository and the Kafka client of this environment."""
        folders = [str(REPOSITORY)]
        kafka = importlib.util.find_spec("kafka")
        if kafka is not None and kafka.origin is not None:
            folders.append(str(Path(kafka.origin).parents[1]))
        # DCMTK waits 40 ms per instance for Nagle's algorithm unless told otherwise.
        return {**os.environ, "TCP_NODELAY": "1", "PYTHONPATH": os.pathsep.join(folders), **self._environment}

    def _choose_ports(self) -> None:
        if self.http_port:
            return
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            self.http_port, self.dicom_port = first.getsockname()[1], second.getsockname()[1]

    def _becomes_ready(self) -> bool:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                return False
            if self._answers():
                return True
            time.sleep(0.05)
        return False

    def _answers(self) -> bool:
        try:
            system = httpx.get(f"{self.url}/system", timeout=2)
            socket.create_connection(("127.0.0.1", self.dicom_port), timeout=2).close()
        except (httpx.HTTPError, OSError):
            return False
        return system.status_code == httpx.codes.OK and system.json()["DicomPort"] == self.dicom_port

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._reap(_STOP_TIMEOUT_S)

    def _reap(self, timeout_s: float = 0.0) -> None:
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _find_plugin(name: str) -> Path | None:
    candidates = (Path(folder) / name for folder in _PLUGIN_FOLDERS)
    return next((path for path in candidates if path.exists()), None)
