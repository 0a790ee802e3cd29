"""Registration, callbacks, the background thread and the entry script, with a stand-in for the ``orthanc`` module."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from orthanc_plugin.orthanc_api import EmbeddedOrthanc, OrthancRefused, OrthancStopping, ResourceGone
from tests.doubles.orthanc import ECG, FakeOrthanc

CHANGES = SimpleNamespace(ORTHANC_STARTED=11, ORTHANC_STOPPED=12, NEW_INSTANCE=4, NEW_SERIES=5)


class OrthancException(Exception):
    """What the module raises: an error code and its text."""


class FakeModule(ModuleType):
    """The functions of the ``orthanc`` module that we use, over the double."""

    ChangeType = CHANGES
    OrthancException = OrthancException

    def __init__(self, configuration: dict[str, Any]) -> None:
        super().__init__("orthanc")
        self.pacs = FakeOrthanc(utc_s=time.time)
        self.configuration = configuration
        self.errors: list[str] = []
        self.on_change: Any = None
        self.routes: dict[str, Any] = {}
        self.threads: set[str] = set()

    def GetConfiguration(self) -> str:
        return json.dumps(self.configuration)

    def RegisterOnChangeCallback(self, callback: Any) -> None:
        self.on_change = callback

    def RegisterRestCallback(self, path: str, callback: Any) -> None:
        self.routes[path] = callback

    def RestApiGet(self, path: str) -> bytes:
        self.threads.add(threading.current_thread().name)
        try:
            return self.pacs.get_bytes(path)
        except ResourceGone as error:
            raise OrthancException(17, "Unknown resource") from error

    def RestApiPost(self, path: str, body: str) -> bytes:
        return json.dumps(self.pacs.post(path, json.loads(body))).encode()

    def RestApiPut(self, path: str, body: bytes) -> bytes:
        self.pacs.put(path, body)
        return b""

    def GetGlobalProperty(self, number: int, default: str) -> str:
        return self.pacs.read_property(number) or default

    def SetGlobalProperty(self, number: int, value: str) -> None:
        self.pacs.write_property(number, value)

    def LogWarning(self, text: str) -> None:
        self.errors.append(text)

    def LogError(self, text: str) -> None:
        self.errors.append(text)

    def status(self) -> dict[str, Any]:
        """GET /purkinje/status."""
        answers: list[str] = []
        output = SimpleNamespace(AnswerBuffer=lambda body, _type: answers.append(body))
        self.routes["/purkinje/status"](output, "/purkinje/status", method="GET")
        return dict(json.loads(answers[0]))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Load the plugin into a stand-in Orthanc; the thread is stopped at the end."""
    loaded: list[FakeModule] = []

    def _load(section: Any) -> FakeModule:
        module = FakeModule({"Purkinje": section})
        loaded.append(module)
        monkeypatch.setitem(sys.modules, "orthanc", module)
        monkeypatch.delitem(sys.modules, "orthanc_plugin.plugin", raising=False)
        importlib.import_module("orthanc_plugin.plugin").register()
        return module

    yield _load
    for module in loaded:
        if module.on_change is not None:
            module.on_change(CHANGES.ORTHANC_STOPPED, 0, "")
    sys.modules.pop("orthanc_plugin.plugin", None)


def eventually(condition: Any, timeout_s: float = 10.0) -> bool:
    """True once the condition holds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_a_study_is_announced_by_the_background_thread(load: Any, tmp_path: Path) -> None:
    """From the change callback to the log, with every REST call on our own thread."""
    module = load({"Log": f"sqlite://{tmp_path}/log.db", "EcgDebounceSeconds": 0.0, "PollSeconds": 30})
    module.on_change(CHANGES.ORTHANC_STARTED, 0, "")
    assert eventually(lambda: module.status()["state"] == "running")
    module.pacs.store("1.2", "1.2.1", "1.2.1.1", sop_class_uid=ECG, modality="ECG")
    module.on_change(CHANGES.NEW_INSTANCE, 3, "i")
    assert eventually(lambda: module.status()["announced"] == 1)
    assert module.threads == {"purkinje"}
    assert module.errors == []
    status = module.status()
    assert status["last_announcement"]["modality"] == "ecg"
    assert status["log"]["state"] == "ok"


def test_the_callback_only_sets_an_event(load: Any, tmp_path: Path) -> None:
    """Before Orthanc has started, and for other changes, no call is made at all."""
    module = load({"Log": f"sqlite://{tmp_path}/log.db"})
    module.on_change(CHANGES.NEW_INSTANCE, 3, "i")
    module.on_change(CHANGES.NEW_SERIES, 2, "s")
    assert module.pacs.calls.total() == 0


def test_the_thread_ends_with_orthanc(load: Any, tmp_path: Path) -> None:
    """After the stop callback has returned, no call is made any more."""
    module = load({"Log": f"sqlite://{tmp_path}/log.db", "PollSeconds": 0.05})
    module.on_change(CHANGES.ORTHANC_STARTED, 0, "")
    assert eventually(lambda: module.status()["state"] == "running")
    module.on_change(CHANGES.ORTHANC_STOPPED, 0, "")
    calls = module.pacs.calls.total()
    time.sleep(0.3)
    assert module.pacs.calls.total() == calls
    assert module.status()["state"] == "stopped"


def test_the_stop_waits_for_a_call_in_progress(load: Any, tmp_path: Path) -> None:
    """Orthanc goes on shutting down only when our thread has left it."""
    module = load({"Log": f"sqlite://{tmp_path}/log.db", "PollSeconds": 0.05})
    answer = module.RestApiGet
    module.RestApiGet = lambda path: (time.sleep(0.5), answer(path))[1]
    module.on_change(CHANGES.ORTHANC_STARTED, 0, "")
    time.sleep(0.1)
    module.on_change(CHANGES.ORTHANC_STOPPED, 0, "")
    assert "purkinje" not in {thread.name for thread in threading.enumerate()}


def test_the_thread_survives_whatever_goes_wrong(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error nobody thought of is told without its text, and the work goes on."""
    module = load({"Log": f"sqlite://{tmp_path}/log.db", "EcgDebounceSeconds": 0.0, "PollSeconds": 0.05})
    monkeypatch.setattr("orthanc_plugin.plugin.RETRY_S", 0.05)
    module.pacs.refuse = "/changes"
    module.on_change(CHANGES.ORTHANC_STARTED, 0, "")
    assert eventually(lambda: bool(module.errors))
    module.pacs.refuse = None
    module.pacs.store("1.2", "1.2.1", "1.2.1.1", sop_class_uid=ECG, modality="ECG")
    assert eventually(lambda: module.status()["announced"] == 1)
    assert "OrthancRefused" in module.status()["last_trouble"]


def test_wrong_settings_leave_the_plugin_off(load: Any) -> None:
    """The status says why, no change callback is registered, and loading does not raise."""
    module = load({"Log": "sqlite:///x", "Typo": 1})
    assert module.on_change is None
    assert module.status()["state"] == "off"
    assert "Typo" in module.status()["reason"]
    assert len(module.errors) == 1


def test_the_status_shows_no_secret(load: Any) -> None:
    """Options of the log are named, not shown."""
    module = load({"Log": "kafka://h:1", "LogOptions": {"security": {"sasl_plain_password": "geheim"}}})
    assert "geheim" not in json.dumps(module.status())


@pytest.mark.parametrize("wrong", [ImportError("no kafka"), SyntaxError("typo"), SystemExit(3), RuntimeError("any")])
def test_the_entry_script_never_raises(root: Path, monkeypatch: pytest.MonkeyPatch, wrong: BaseException) -> None:
    """Whatever happens while the plugin loads, Orthanc is told in one line and starts."""
    module = FakeModule({})

    def fail() -> None:
        raise wrong

    monkeypatch.setitem(sys.modules, "orthanc", module)
    monkeypatch.setitem(sys.modules, "orthanc_plugin.plugin", SimpleNamespace(register=fail))
    runpy.run_path(str(root / "deploy" / "orthanc" / "purkinje_entry.py"))
    assert len(module.errors) == 1
    assert type(wrong).__name__ in module.errors[0]


def test_the_entry_script_lies_alone(root: Path) -> None:
    """Orthanc puts its folder first on sys.path: no other module may lie there."""
    folder = root / "deploy" / "orthanc"
    assert [path.name for path in folder.rglob("*.py")] == ["purkinje_entry.py"]


def test_errors_of_orthanc_are_ours() -> None:
    """Unknown resources, other errors and a stop are told apart."""
    module = FakeModule({})
    stopping = threading.Event()
    api = EmbeddedOrthanc(module, stopping)
    with pytest.raises(ResourceGone):
        api.get("/studies/unknown")
    module.RestApiGet = lambda _: _raise(OrthancException(-1, "Internal error"))  # type: ignore[method-assign]
    with pytest.raises(OrthancRefused, match="/system"):
        api.get("/system")
    stopping.set()
    with pytest.raises(OrthancStopping):
        api.get("/system")


def test_answers_with_broken_text_are_read() -> None:
    """Bytes that are not UTF-8 and control characters, left by hostile headers, do not stop the walk."""
    module = FakeModule({})
    module.RestApiGet = lambda _: b'{"SeriesDescription": "\xff\x01"}'  # type: ignore[method-assign]
    assert EmbeddedOrthanc(module, threading.Event()).get("/series/x") == {"SeriesDescription": "\ufffd\x01"}


def _raise(error: Exception) -> bytes:
    raise error
