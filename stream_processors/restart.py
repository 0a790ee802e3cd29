"""Replaces the process by a fresh one of the same command line, but not for ever.

The context of a GPU, once lost, comes back in a new process only. The times of the replacements travel on the command
line (``purkinje run --replaced ...``), so that they need neither a file nor the environment. Called by ``processors``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stream_processors.errors import SettingsInvalid

OPTION = "--replaced"
REPLACEMENTS_MAX = 5
WINDOW_S = 600.0
"""More than ``REPLACEMENTS_MAX`` replacements in this time do not mend it: an operator has to look."""

_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, kw_only=True)
class Replacements:
    """How often this process was replaced lately, and what replaces it.

    Args:
        at_s: seconds on the machine's monotonic clock, one for each replacement so far.
        command: of this process.
        clock: seconds since the machine started.
        execute: takes the place of ``os.execv`` in tests.
    """

    at_s: tuple[float, ...] = ()
    command: Sequence[str] = ()
    clock: Callable[[], float] = time.monotonic
    execute: Callable[[str, list[str]], object] = os.execv

    @property
    def recent_s(self) -> tuple[float, ...]:
        """The replacements that count now; times of an earlier start of the machine lie in the future."""
        now_s = self.clock()
        return tuple(at_s for at_s in self.at_s if 0.0 <= now_s - at_s < WINDOW_S)

    @property
    def allowed(self) -> bool:
        """Whether one more replacement is within the bound."""
        return len(self.recent_s) < REPLACEMENTS_MAX

    def replace(self) -> None:
        """Become a new process of the same command line; only the doubles of the tests return.

        Nothing that is open here stays open there, also not what a driver opened.
        """
        _close_on_exec()
        self.execute(sys.executable, self.next_command())

    def next_command(self) -> list[str]:
        """The command line of the new process: this one's, with one more replacement."""
        now_s = self.clock()
        times = ",".join(f"{at_s:.1f}" for at_s in (*self.recent_s, now_s))
        return [sys.executable, *_without_option(self.command[1:]), OPTION, times]


def replacements_of(text: str) -> Replacements:
    """What the command line of this process says.

    Args:
        text: seconds, separated by commas; or empty.

    Raises:
        SettingsInvalid: anything else.
    """
    try:
        at_s = tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        msg = f"{OPTION} is {text!r}; the process writes it itself: leave it out"
        raise SettingsInvalid(msg) from None
    return Replacements(at_s=at_s, command=tuple(sys.orig_argv))


def _without_option(arguments: Sequence[str]) -> list[str]:
    kept = list(arguments)
    while OPTION in kept:
        place = kept.index(OPTION)
        del kept[place : place + 2]
    return kept


def _close_on_exec() -> None:
    if not _DESCRIPTORS.is_dir():
        return
    for path in list(_DESCRIPTORS.iterdir()):
        if int(path.name) > 2:
            _never_inherit(int(path.name))


def _never_inherit(descriptor: int) -> None:
    try:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - the signature belongs to os
    except OSError:  # closed since it was listed, as that of the listing itself
        return
