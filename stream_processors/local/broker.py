"""Starts and stops the Kafka of ``deploy/kafka/broker.py`` as a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stream_processors.errors import ProcessorError

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


class BrokerMissing(ProcessorError):
    """Kafka cannot be had on this machine; the message says what to install."""


class LocalBroker:
    """One Apache Kafka node on a loopback port of the system's choice.

    Args:
        folder: where it keeps its data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start and wait until it answers.

        Raises:
            BrokerMissing: no Java, no jars, or it did not come up.
        """
        script = DEPLOY / "kafka" / "broker.py"
        if not script.exists():
            raise BrokerMissing(f"{script} is missing: Kafka's launcher comes with a checkout of the repository")
        command = [sys.executable, str(script), "--folder", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, error = self._process.communicate()
            raise BrokerMissing(error.strip() or "Kafka did not start")
        self.url = str(json.loads(line)["url"])

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()
            self._process = None
