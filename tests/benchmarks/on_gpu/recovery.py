"""What happens when it goes wrong, each in a process of its own: killed, out of GPU memory, context lost, foreign plan."""

from __future__ import annotations

import importlib.util
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.bundle.reader import Bundle
from tests.benchmarks.on_gpu.results import Recorder

ROOT = Path(__file__).resolve().parents[3]
_ANSWER_S = 120.0
_NEEDS_S = 20.0

Said = dict[str, Any]


class Worker:
    """A serving process; what it says is read without waiting for ever."""

    def __init__(self, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.on_gpu.worker", *arguments]
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._read_errors, daemon=True).start()

    def hear(self, key: str, timeout_s: float) -> Said | None:
        """Return the next thing it says that has a key; None where it ends, or says nothing in time."""
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                return None
            if line is None:
                return None
            said: Said = json.loads(line) if line.startswith("{") else {}
            if key in said:
                return said

    def end(self, timeout_s: float = 10.0) -> str:
        """Wait for its end, end it where it goes on, and say how it ended."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        code = self.process.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"

    @property
    def complaint(self) -> str:
        """The last line of its error output."""
        return self._errors[-1].strip() if self._errors else "it said nothing"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors += [line for line in self.process.stderr if line.strip()]


@contextmanager
def working(arguments: list[str]) -> Iterator[Worker]:
    """Start a worker and see to its end."""
    worker = Worker(arguments)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()


def measure_recovery(bundle: Bundle, device: str, plans: Path, batch_max: int, section: Recorder) -> None:
    """Add one row for each thing that goes wrong."""
    base = [str(bundle.path), device, str(plans), str(batch_max)]
    _killed(base, section)
    if device == "cpu":
        section.leave_out("GPU memory used up, context lost, foreign plan", "they need a GPU, and --device is cpu")
        return
    _starved(base, section)
    if importlib.util.find_spec("torch") is None:
        section.leave_out("context lost", "torch, which provokes it, is not installed")
    else:
        _lost(base, section)


def measure_foreign_plan(bundle: Bundle, device: str, plans: Path, batch_max: int, section: Recorder) -> None:
    """Add one row for each plan of TensorRT-RTX that is read on this GPU."""
    if device == "cpu":
        section.leave_out("plans of TensorRT-RTX on this GPU", "they need a GPU, and --device is cpu")
        return
    with working([str(bundle.path), device, str(plans), str(batch_max), "rtx"]) as worker:
        while (said := worker.hear("target", _ANSWER_S)) is not None:
            section.row(
                **{"plan for": said["target"], "GPU": said["gpu"], "loads": said["loads"], "library": said["message"]}
            )
        how = worker.end()
        if how != "exit 0":
            section.leave_out("the rest of the plans", f"the process ended with {how}: {worker.complaint}")


def _killed(base: list[str], section: Recorder) -> None:
    """Kill -9 in the middle of a run, and start again."""
    for what in ("first start", "start after kill -9"):
        if section.has_time(what, _NEEDS_S):
            with working([*base, "wait"]) as worker:
                if _told_ready(what, worker, section):
                    time.sleep(0.2)  # in the middle of something


def _starved(base: list[str], section: Recorder) -> None:
    if section.has_time("GPU memory used up", _NEEDS_S):
        with working([*base, "starve"]) as worker:
            _told_ready("GPU memory used up", worker, section)


def _lost(base: list[str], section: Recorder) -> None:
    """Lose the context, see what the runner says twice, and start again."""
    if not section.has_time("context lost", 2 * _NEEDS_S):
        return
    with working([*base, "lose"]) as worker:
        if _told_ready("before the loss", worker, section):
            for attempt in ("first", "second"):
                said = worker.hear("lost", _ANSWER_S) or {
                    "lost": "nothing",
                    "message": worker.complaint,
                    "seconds": None,
                }
                _row(
                    f"context lost, {attempt} run",
                    section,
                    seconds=said["seconds"],
                    outcome=str(said["lost"]),
                    says=said["message"],
                )
            _row(
                "context lost, end of the process",
                section,
                seconds=None,
                outcome=worker.end(),
                says="75 asks for a new one",
            )
    with working([*base, "wait"]) as worker:
        _told_ready("start after the loss", worker, section)


def _told_ready(what: str, worker: Worker, section: Recorder) -> bool:
    said = worker.hear("ready", min(_ANSWER_S, max(1.0, section.left_s)))
    if said is None:
        section.leave_out(what, f"the process did not answer ({worker.end(0.1)}): {worker.complaint}")
        return False
    seconds = time.monotonic() - worker.started_s
    _row(
        what,
        section,
        seconds=seconds,
        outcome=f"{said['runtime']} {said['precision']}",
        says=said["fallback"] or "golden records agree",
    )
    return True


def _row(what: str, section: Recorder, *, seconds: float | None, outcome: str, says: str) -> None:
    section.row(what=what, seconds=seconds, outcome=outcome, says=" ".join(says.split())[:200].replace("|", "/"))
