"""``purkinje status`` says whether the processors are ready, and on what each engine computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engines.records import Modality
from stream_processors.inspection import Finding, Status, read_processors
from stream_processors.processors import StatusBoard, StatusFile
from stream_processors.routes import Route
from stream_processors.tables import status_table
from tests.doubles.predictor import FakeEngine, FakeSandbox

REASON = "the GPU has not enough memory"


def _printed(said: dict[str, Any] | None) -> str:
    found = Finding(name="PACS", ok=True, detail="answers")
    state = Status(pacs=found, plugin=None, log=found, lag={}, outcomes={}, dead_letters=0, processors=said)
    console = Console(width=200, record=True)
    console.print(status_table(state))
    return console.export_text()


def _route(modality: Modality) -> Route:
    return Route(modality=modality, sandbox=FakeSandbox([]), engine=FakeEngine(modality, "answered", []))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the processors say what they do."""
    return tmp_path / "status.json"


def test_ready_names_runtime_device_precision_and_fallback_of_each_engine(path: Path) -> None:
    """Two engines, one on the GPU and one that fell back: both are told with everything an operator asks."""
    board = StatusBoard(StatusFile(path), replaced=2)
    on_gpu, fallen = _route(Modality.ECHO), _route(Modality.ECG)
    on_gpu.engine.model = replace(
        on_gpu.engine.identity, runtime="tensorrt", device="NVIDIA L4 (sm_89)", precision="fp16", plan_sha256="e" * 64
    )
    fallen.engine.model = replace(fallen.engine.identity, fallback=REASON)
    for route in (on_gpu, fallen):
        board.opened(route)
    board.ready()
    said = read_processors(path)
    assert said is not None
    assert (said["state"], said["ready"], said["running"], said["replaced"]) == ("ready", True, True, 2)
    assert said["modalities"] == ["echo", "ecg"]
    echo, ecg = said["engines"]["echo"], said["engines"]["ecg"]
    assert (echo["runtime"], echo["device"], echo["precision"], echo["plan_sha256"], echo["fallback"]) == (
        "tensorrt", "NVIDIA L4 (sm_89)", "fp16", "e" * 64, None,
    )  # fmt: skip
    assert (ecg["runtime"], ecg["fallback"]) == ("onnxruntime", REASON)
    printed = _printed(said)
    for word in ("ready", "NVIDIA L4 (sm_89)", "fp16", "tensorrt", REASON, "replaced 2 times"):
        assert word in printed


def test_an_engine_that_falls_back_later_is_seen(path: Path) -> None:
    """The file is written again when an engine computes elsewhere, and left alone while nothing changes."""
    board, route = StatusBoard(StatusFile(path)), _route(Modality.ECG)
    board.opened(route)
    board.ready()
    before = path.read_text()
    board.ready()
    assert path.read_text() == before
    route.engine.model = replace(route.engine.identity, fallback=REASON)
    board.ready()
    assert json.loads(path.read_text())["engines"]["ecg"]["fallback"] == REASON


def test_a_plan_being_built_is_told(path: Path) -> None:
    """While a plan is built the process is not ready; the status says which, and which engines already stand."""
    board = StatusBoard(StatusFile(path))
    board.opened(_route(Modality.CMR))
    board.building(Modality.ECHO, "sm_89 fp16: building, this may take minutes")
    said = read_processors(path)
    assert said is not None
    assert (said["state"], said["ready"]) == ("building plans", False)
    assert said["building"] == "echo: sm_89 fp16: building, this may take minutes"
    assert list(said["engines"]) == ["cmr"]
    assert "building plans: echo: sm_89 fp16" in _printed(said)


def test_a_process_that_is_gone_is_not_running(path: Path) -> None:
    """A file that a killed process left does not pass for a process that serves."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_text(json.dumps({"state": "ready", "ready": True, "pid": gone.pid}))
    said = read_processors(path)
    assert said is not None
    assert said["running"] is False
    assert "not running; the status file says ready" in _printed(said)
    path.write_text(json.dumps({"state": "ready", "ready": True, "pid": os.getpid()}))
    assert (read_processors(path) or {})["running"] is True


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"state": "ready", "pid": "x"}'])
def test_without_a_readable_status_file_nothing_is_claimed(path: Path, content: str | None) -> None:
    """No file, half a file or another file: unknown, with what to set."""
    if content is not None:
        path.write_text(content)
    assert read_processors(path) is None
    assert read_processors(None) is None
    assert "set status_file" in _printed(None)
