"""Keeps a folder of plans within its size: the least recently used go first, never one that is in use or being built.

The age of a plan is that of a file beside it, which is touched whenever the plan is handed out.
Used by ``engines.build.cache``.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from engines.build.lease import Log, is_leased
from engines.build.plan import locked, verdict_path
from engines.build.verdicts import failure, read_verdicts
from engines.errors import PlanRefused

GRACE_S = 60.0
"""A plan that was handed out within this time is not removed to make room, whoever was given it."""


def touch(plan: Path) -> None:
    """Note that a plan was handed out; a folder that cannot be written to has no ages, and needs none."""
    with suppress(OSError):
        _used_path(plan).touch()


def last_used(plan: Path) -> float:
    """Return when a plan was handed out last, or else written, in seconds of the wall clock; 0 where nothing stands."""
    for path in (_used_path(plan), plan, verdict_path(plan)):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def exists(path: Path) -> bool:
    """Whether something stands there; where a folder on the way may not be entered it may, so it counts."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def make_room(kept: Path, bytes_max: int, *, lease_s: float, log: Log) -> None:
    """Remove the least recently used plans of a folder until the rest fits.

    Args:
        kept: a plan of the folder that stays whatever it takes.
        bytes_max: of all plans together.
        lease_s: as for ``lease.is_leased``.
        log: is told what was removed, and where the rest does not fit.
    """
    try:
        with locked(kept.parent):
            excess = _evict_oldest(kept, bytes_max, lease_s, log)
    except OSError as error:
        log(f"no room can be made in {kept.parent} ({error.strerror})")
        return
    if excess > 0:
        log(f"the plans in {kept.parent} are {excess / 1e6:.1f} MB over their limit; all others are in use")


def _evict_oldest(kept: Path, bytes_max: int, lease_s: float, log: Log) -> int:
    sizes = {path: path.stat().st_size for path in kept.parent.glob("*.plan")}
    excess = sum(sizes.values()) - bytes_max
    for path in sorted(sizes, key=last_used):
        if excess > 0 and path != kept and _may_go(path, lease_s):
            _evict(path)
            log(f"{path.name} was removed to make room")
            excess -= sizes[path]
    return excess


def _may_go(path: Path, lease_s: float) -> bool:
    return time.time() - last_used(path) > GRACE_S and not is_leased(path.parent, path.stem, lease_s=lease_s)


def _evict(path: Path) -> None:
    """Remove a plan with what lies beside it, but for a lease and a log; that its gate failed is not forgotten."""
    path.unlink()
    with suppress(PlanRefused):
        if failure(read_verdicts(path)) is None:
            for beside in path.parent.glob(f"{path.stem}.[!l]*"):
                beside.unlink(missing_ok=True)


def _used_path(plan: Path) -> Path:
    return plan.with_suffix(".used")
