"""Registers our callbacks with Orthanc and runs the background thread. The only module that imports ``orthanc``.

Loaded by the entry script in ``deploy/orthanc``, which guards it: the PACS comes before the AI. Callbacks set an event
and return; every REST call is made from the background thread. The script host is AGPL and so is this package.
"""

from __future__ import annotations

import json
import os
import threading
import traceback
from pathlib import Path
from typing import Any

import orthanc

from orthanc_plugin.announcer import Announcer, Clock
from orthanc_plugin.orthanc_api import EmbeddedOrthanc, OrthancStopping
from orthanc_plugin.settings import SettingsError, settings_from_configuration
from orthanc_plugin.status import Status
from orthanc_plugin.wire.log import open_log

STATUS_PATH = "/purkinje/status"
PAUSE_S = 0.25
"""Between two rounds: gathers arrivals, and leaves interpreter and database to Orthanc."""
RETRY_S = 2.0
JOIN_S = 5.0


class Worker:
    """The background thread, from Orthanc's start to its stop.

    Args:
        announcer: does the work.
        status: where troubles are told.
        stopping: set when Orthanc stops.
    """

    def __init__(self, announcer: Announcer, status: Status, stopping: threading.Event) -> None:
        self._announcer, self._status, self._stopping = announcer, status, stopping
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="purkinje", daemon=True)

    def on_change(self, change_type: int, _level: int, _resource: str) -> None:
        """Orthanc's change callback: sets an event, nothing more."""
        if change_type == orthanc.ChangeType.NEW_INSTANCE:
            if not self._wake.is_set():
                self._wake.set()
        elif change_type == orthanc.ChangeType.ORTHANC_STARTED:
            self._thread.start()
        elif change_type == orthanc.ChangeType.ORTHANC_STOPPED:
            self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            wait_s = self._turn()
            self._stopping.wait(PAUSE_S)
            self._wake.wait(wait_s)
        self._announcer.close()
        self._status.state = "stopped"

    def _turn(self) -> float:
        try:
            return self._announcer.turn()
        except OrthancStopping:
            return 0.0
        except Exception as error:  # noqa: BLE001 - the Orthanc entry: this thread must live as long as Orthanc
            self._status.trouble(error)
            orthanc.LogError(f"purkinje: {_place(error)} in the background thread, trying again")
            return RETRY_S


def _place(error: BaseException) -> str:
    """What went wrong and where, without the message: it may quote what a header said."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def register() -> None:
    """Read the settings and register the callbacks; wrong settings leave the plugin off, and the status says why."""
    status = Status()
    _serve_status(status)
    configuration = json.loads(orthanc.GetConfiguration())
    try:
        settings = settings_from_configuration(configuration, os.environ)
    except SettingsError as error:
        status.state, status.reason = "off", str(error)
        orthanc.LogError(f"purkinje: the plugin stays off: {error}")
        return
    status.settings = settings.public()
    stopping = threading.Event()
    announcer = Announcer(
        EmbeddedOrthanc(orthanc, stopping),
        settings,
        lambda: open_log(settings.log, settings.log_options),
        status,
        Clock(),
    )
    orthanc.RegisterOnChangeCallback(Worker(announcer, status, stopping).on_change)


def _serve_status(status: Status) -> None:
    def answer(output: Any, _uri: str, **_request: Any) -> None:
        output.AnswerBuffer(json.dumps(status.as_json(), indent=2), "application/json")

    orthanc.RegisterRestCallback(STATUS_PATH, answer)
