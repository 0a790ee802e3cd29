"""A lock among processes that survives the death, and the standstill, of its holder.

Two things hold it together, each for what the other cannot see:

- the kernel's ``flock`` on the lease's file: gone the moment its holder is gone, also by kill -9;
- a heartbeat, the time of change of that file: it stops where the holder stands still, or runs on another machine that
  went away. Whoever waits and sees no beat for the length of the lease takes over and says so. Beats are watched with
  the waiter's own monotonic clock, so that no clock that is wrong or set can end a lease.

A lease is never altered by anybody but its holder. Taking over means adding the next generation,
``<name>.lease-<n + 1>``, by a hard link that appears whole or not at all: of several who try one succeeds. An empty file
is a lease given back. Whoever was taken over and wakes again does no harm if, as ``plan.write_plan`` does, it leaves a
result that stands as it is.

Used by ``engines.build.cache``.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

Log = Callable[[str], None]

POLL_S = 0.1
_BEATS = 4
"""In the time of one lease: three may be late before anybody takes over."""
_BUILD_MAX_S = 6 * 3600.0
"""A holder that beats but never ends, a compiler that hangs, is taken over after this."""
_BYTES_MAX = 4096


@contextmanager
def leased(folder: Path, name: str, *, lease_s: float, log: Log) -> Iterator[None]:
    """Hold the lease of a name; waits while another holds it.

    Args:
        folder: of the lease's file; exists.
        name: of what is leased; without a slash.
        lease_s: without a beat for so long, the next takes over.
        log: is told whom it waits for, and when it takes over.

    Raises:
        OSError: the folder cannot be written to.
    """
    held = _acquired(_Waiting(folder=folder, name=name, lease_s=lease_s, log=log))
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(held.descriptor, lease_s / _BEATS, ended), daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        _give_back(held.descriptor)


def is_leased(folder: Path, name: str, *, lease_s: float) -> bool:
    """Whether somebody holds the lease of a name and gave a sign of life within ``lease_s``."""
    latest = _latest(folder, name)
    if latest is None:
        return False
    path = _lease_path(folder, name, latest)
    try:
        return not _is_free(path) and time.time() - path.stat().st_mtime < lease_s
    except FileNotFoundError:  # followed by another just now
        return True


def remove_leases(folder: Path, name: str) -> None:
    """Remove the lease's files; the caller has seen that nobody holds it."""
    for generation in _generations(folder, name):
        _lease_path(folder, name, generation).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class _Held:
    folder: Path
    name: str
    generation: int
    descriptor: int


@dataclass(kw_only=True)
class _Waiting:
    """What a waiter has seen of the lease: ``beat`` of ``generation``, unchanged ``since`` on its own clock."""

    folder: Path
    name: str
    lease_s: float
    log: Log
    generation: int = 0
    beat: int = 0
    since: float = field(default_factory=time.monotonic)

    def has_run_out(self, generation: int, path: Path) -> bool:
        """Look at the newest lease; whether it has not beaten for the time of a lease."""
        beat = path.stat().st_mtime_ns
        if (generation, beat) != (self.generation, self.beat):
            if generation != self.generation:
                self.log(f"waiting for {_holder(path)}, which builds {self.name}")
            self.generation, self.beat, self.since = generation, beat, time.monotonic()
        return time.monotonic() - self.since > self.lease_s


def _acquired(waiting: _Waiting) -> _Held:
    while True:
        latest = _latest(waiting.folder, waiting.name) or 0
        try:
            free = latest == 0 or _may_follow(waiting, latest)
        except FileNotFoundError:  # followed by another and removed meanwhile
            continue
        held = _claimed(waiting.folder, waiting.name, latest + 1) if free else None
        if held is not None:
            _remove_before(held)
            return held
        if not free:
            time.sleep(min(POLL_S, waiting.lease_s / _BEATS))


def _may_follow(waiting: _Waiting, generation: int) -> bool:
    path = _lease_path(waiting.folder, waiting.name, generation)
    if _is_free(path):
        return True
    if not waiting.has_run_out(generation, path):
        return False
    waiting.log(f"{_holder(path)} gave no sign of life for {waiting.lease_s:g} s; taking over {waiting.name}")
    return True


def _is_free(path: Path) -> bool:
    """Given back, or held by a process of this machine that is gone."""
    with path.open("rb") as stream:
        stated = stream.read(_BYTES_MAX)
        if not stated:
            return True
        if _field(stated, "machine") != _machine():  # its locks may not be seen from here
            return False
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _claimed(folder: Path, name: str, generation: int) -> _Held | None:
    """Add a generation, locked before it appears; None where another was first."""
    fresh = folder / f".lease-{secrets.token_hex(8)}"
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, _statement())
        os.link(fresh, _lease_path(folder, name, generation))
    except FileExistsError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    finally:
        fresh.unlink()
    if _latest(folder, name) != generation:  # late: others have come and gone since this generation was free
        _give_back(descriptor)
        return None
    return _Held(folder=folder, name=name, generation=generation, descriptor=descriptor)


def _give_back(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.close(descriptor)


def _beat(descriptor: int, every_s: float, ended: threading.Event) -> None:
    until = time.monotonic() + _BUILD_MAX_S
    while not ended.wait(every_s) and time.monotonic() < until:
        with suppress(OSError):  # a beat that is missed is made up by the next
            os.utime(descriptor)


def _remove_before(held: _Held) -> None:
    for generation in _generations(held.folder, held.name):
        if generation < held.generation:
            _lease_path(held.folder, held.name, generation).unlink(missing_ok=True)


def _latest(folder: Path, name: str) -> int | None:
    return max(_generations(folder, name), default=None)


def _generations(folder: Path, name: str) -> list[int]:
    prefix = f"{name}.lease-"
    numbers = [entry.removeprefix(prefix) for entry in os.listdir(folder) if entry.startswith(prefix)]  # noqa: PTH208
    return [int(number) for number in numbers if number.isdecimal()]


def _lease_path(folder: Path, name: str, generation: int) -> Path:
    return folder / f"{name}.lease-{generation}"


def _statement() -> bytes:
    return json.dumps({"machine": _machine(), "host": socket.gethostname(), "pid": os.getpid()}).encode()


def _holder(path: Path) -> str:
    stated = path.read_bytes()[:_BYTES_MAX]
    return f"process {_field(stated, 'pid')} on {_field(stated, 'host')}"


def _field(stated: bytes, name: str) -> object:
    try:
        fields = json.loads(stated)
    except ValueError:
        return None
    return fields.get(name) if isinstance(fields, dict) else None


def _machine() -> str:
    """Names the running kernel: containers that share it share its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
