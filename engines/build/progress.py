"""What a build says while it runs: every message into a file, and a line every few seconds where it takes long.

Called by ``engines.build.compile``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from engines.build.flavour import Flavour
from engines.errors import PlanBuildFailed

Progress = Callable[[str], None]

HEARTBEAT_S = 5.0


@contextmanager
def recorded(flavour: Flavour, path: Path | None) -> Iterator[None]:
    """Write everything the library says into a file; what stood there is written over.

    Args:
        flavour: whose messages.
        path: of the file, its folder made where missing; None keeps nothing.

    Raises:
        PlanBuildFailed: the file cannot be written.
    """
    stream = None if path is None else _opened(path)
    flavour.listener().attend(stream)
    try:
        yield
    finally:
        flavour.listener().attend(None)
        if stream is not None:
            stream.close()


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8", errors="replace")
    except OSError as error:
        msg = f"the build's log {path} cannot be written ({error.strerror}); check the folder"
        raise PlanBuildFailed(msg) from error


@contextmanager
def told(target: str, phase: Callable[[], str], progress: Progress) -> Iterator[None]:
    """Say every ``HEARTBEAT_S`` seconds how long a build has taken and what it does.

    Args:
        target: of the build.
        phase: what it does now, or an empty string where that is not known.
        progress: is told; from another thread.
    """
    ended = threading.Event()
    start = time.monotonic()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            doing = phase()
            progress(f"{target}: building for {time.monotonic() - start:.0f} s{doing and f', {doing}'}")

    thread = threading.Thread(target=beat, name="build progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def watched(trt: Any, config: Any) -> Callable[[], str]:
    """Have the builder tell its phases, where its library can; return a function that says the current one."""
    if not hasattr(trt, "IProgressMonitor"):
        return str
    monitor = _monitor(trt)
    config.progress_monitor = monitor
    return monitor.current  # type: ignore[no-any-return]


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Its methods are called by the library's threads, and must not raise."""

        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, tuple[int, int]] = {}

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name] = (step + 1, self._phases[phase_name][1])
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def current(self) -> str:
            """Return the innermost phase."""
            phases = list(self._phases.items())
            return "{0}, step {1[0]} of {1[1]}".format(*phases[-1]) if phases else ""

    return Monitor()
