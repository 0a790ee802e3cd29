"""Orthanc with our plugin, a log and the processors, on loopback, in one folder.

Used by the demo, ``verify``, the viewer and the tests. Stops only what it started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from orthanc_plugin.wire.events import DEAD_LETTER_TOPIC, READY_TOPICS, RESULT_TOPIC
from orthanc_plugin.wire.log import Log, open_log
from stream_processors.errors import ProcessorError
from stream_processors.local.broker import LocalBroker
from stream_processors.local.ledger import Account, take_account
from stream_processors.local.orthanc import LocalOrthanc

SITE_URL = "https://demo.purkinje.example"
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0


class StackFailed(ProcessorError):
    """A part did not start or died; the message carries the end of its log."""


@dataclass(frozen=True, kw_only=True)
class QuietTimes:
    """How long the plugin waits for late instances, seconds; short ones suit a demo, where the sender is us."""

    echo_s: float = 1.0
    cmr_s: float = 4.0

    def configuration(self) -> dict[str, float]:
        """Keys of the plugin's configuration section."""
        return {
            "EchoQuietSeconds": self.echo_s,
            "EchoQuietSecondsMin": min(self.echo_s, 1.0),
            "EchoQuietSecondsMax": max(self.echo_s, 1.0) * 3,
            "CmrQuietSeconds": self.cmr_s,
            "PollSeconds": 0.5,
        }


@dataclass
class LocalStack:
    """The running whole.

    Args:
        folder: where data, settings and process logs lie; made when missing.
        log: ``sqlite`` (embedded) or ``kafka``.
        quiet: waiting rules of the plugin.
        site_url: part of every report's UID.
        processor_environment: further environment of the processors (a test's failpoint).
    """

    folder: Path
    log: Literal["sqlite", "kafka"] = "sqlite"
    quiet: QuietTimes = field(default_factory=QuietTimes)
    site_url: str = SITE_URL
    processor_environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.broker: LocalBroker | None = None
        self.processors: subprocess.Popen[bytes] | None = None
        self.log_url = f"sqlite://{self.folder / 'log.db'}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start log, Orthanc and processors, and wait until all are ready."""
        if self.log == "kafka":
            self.broker = LocalBroker(self.folder / "kafka")
            self.broker.start()
            self.log_url = self.broker.url
            self._make_topics()
        self.start_orthanc()
        self.start_processors()
        self.wait_ready()

    def _make_topics(self) -> None:
        log = self.open_log()
        try:
            log.ensure_topics([*READY_TOPICS, RESULT_TOPIC, DEAD_LETTER_TOPIC], partitions=3, replication=1)
        finally:
            log.close()

    def start_orthanc(self) -> None:
        """Start Orthanc on this folder's storage."""
        self.orthanc = LocalOrthanc(
            self.folder / "orthanc",
            plugin={"Log": self.log_url, "AnnounceExisting": True, **self.quiet.configuration()},
        )
        self.orthanc.start()

    def start_processors(self) -> None:
        """Start ``purkinje run`` as a child; its log goes to ``processors.log``."""
        settings = self.folder / "settings.json"
        settings.write_text(json.dumps(self._settings(), indent=2))
        environment = {**os.environ, **self.processor_environment}
        with (self.folder / "processors.log").open("ab") as log:
            self.processors = subprocess.Popen(
                [sys.executable, "-m", "stream_processors.cli", "run", "--settings", str(settings)],
                stdout=log,
                stderr=log,
                env=environment,
            )

    def _settings(self) -> dict[str, Any]:
        return {
            "site_url": self.site_url,
            "node": "purkinje-demo",
            "log": {"url": self.log_url},
            "pacs": {"rest": {"url": self.orthanc.url}},
            # A demo does not wait for plans to be built.
            "engine": {"runtimes": ["openvino", "onnxruntime"]},
            "status_file": str(self.folder / "processors.json"),
        }

    def wait_ready(self) -> None:
        """Return once the processors have passed their self-tests.

        Raises:
            StackFailed: they ended, or are not ready in time.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.processors is not None and self.processors.poll() is not None:
                raise StackFailed(
                    f"the processors ended with {self.processors.returncode}:\n{self.processor_log_tail()}"
                )
            if self._is_ready():
                return
            time.sleep(0.1)
        raise StackFailed(f"the processors are not ready after {READY_TIMEOUT_S:.0f} s:\n{self.processor_log_tail()}")

    def _is_ready(self) -> bool:
        try:
            status = json.loads((self.folder / "processors.json").read_text())
        except (OSError, json.JSONDecodeError):
            return False
        assert self.processors is not None
        return bool(status.get("ready")) and status.get("pid") == self.processors.pid

    def kill_processors(self) -> None:
        """End the processors with SIGKILL, as a power cut would."""
        if self.processors is not None:
            self.processors.send_signal(signal.SIGKILL)
            self.processors.wait()
            self.processors = None

    def stop_processors(self) -> None:
        """End the processors in order (SIGTERM), by force after a while."""
        if self.processors is None:
            return
        self.processors.terminate()
        try:
            self.processors.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill_processors()
        self.processors = None

    def stop(self) -> None:
        """Stop everything that was started."""
        self.stop_processors()
        if hasattr(self, "orthanc"):
            self.orthanc.stop()
        if self.broker is not None:
            self.broker.stop()

    def processor_log_tail(self, characters: int = 3000) -> str:
        """End of the processors' log."""
        path = self.folder / "processors.log"
        return path.read_text(errors="replace")[-characters:] if path.exists() else "(no log)"

    def open_log(self) -> Log:
        """The log, for reading the account."""
        return open_log(self.log_url)

    def plugin_status(self) -> dict[str, Any]:
        """``GET /purkinje/status``."""
        response = httpx.get(f"{self.orthanc.url}/purkinje/status", timeout=10)
        response.raise_for_status()
        return dict(response.json())

    def account(self) -> Account:
        """Announcements and outcomes so far."""
        log = self.open_log()
        try:
            return take_account(log)
        finally:
            log.close()
