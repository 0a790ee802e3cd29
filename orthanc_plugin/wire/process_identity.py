"""Tells whether the process that holds a lease still lives, from another process of the same machine.

A process id alone is not enough: numbers are used again, containers have their own, machines restart. Linux only;
elsewhere nobody is ever *known* to be dead, and a lease simply runs out. Used by ``sqlite_log``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessIdentity:
    """One run of one process.

    Args:
        boot: id of the machine's present start; empty where unknown.
        namespace: which table the process id belongs to (containers have their own).
        pid: process id.
        started: start time in clock ticks since boot, so that a number used again is told apart.
    """

    boot: str
    namespace: str
    pid: int
    started: str

    def known_dead(self, observer: ProcessIdentity) -> bool:
        """True only when this process certainly ended; ``observer`` is the asking process."""
        if self.boot and observer.boot and self.boot != observer.boot:
            return True
        if not self.started or not self.namespace or self.namespace != observer.namespace:
            return False
        return _started(self.pid) != self.started


def own_identity() -> ProcessIdentity:
    """Identity of the calling process."""
    pid = os.getpid()
    return ProcessIdentity(boot=_boot(), namespace=_namespace(), pid=pid, started=_started(pid))


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Field 22 of proc(5) stat; empty when there is no such process, or only its zombie is left."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # the name in parentheses may hold anything, also blanks
    return "" if fields[0] in {"Z", "X"} else fields[19]
