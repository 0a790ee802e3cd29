"""What ``GET /purkinje/status`` says: how far we are, what waits, and whether the log answers. No patient data.

The background thread writes, HTTP threads read; every write replaces whole values, so a reader never waits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from orthanc_plugin.wire.events import StudyReady


@dataclass
class Status:
    """The state of the plugin.

    Args:
        settings: the settings with secrets masked.
        state: ``starting``, ``running``, ``stopped``, or ``off`` with a reason.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    state: str = "starting"
    reason: str | None = None
    source: str | None = None
    cursor: int | None = None
    walked: int | None = None
    waiting: Mapping[str, int] = field(default_factory=dict)
    announced: int = 0
    unchanged: int = 0
    unannounceable: int = 0
    last_announcement: Mapping[str, Any] | None = None
    log_state: str = "unknown"
    log_detail: str | None = None
    log_failures: int = 0
    last_trouble: str | None = None

    def log_answers(self, detail: str | None = None) -> None:
        """The log was written or answered."""
        self.log_state, self.log_detail = "ok", detail

    def log_fails(self, error: Exception) -> None:
        """The log could not be written or reached."""
        self.log_state, self.log_detail = "unavailable", f"{type(error).__name__}: {error}"
        self.log_failures += 1

    def announced_now(self, event: StudyReady) -> None:
        """An announcement is in the log."""
        self.announced += 1
        self.log_answers(self.log_detail)
        self.last_announcement = {
            "event_id": event.event_id,
            "modality": event.modality,
            "revision": event.revision,
            "rule": event.completeness_rule,
            "announced_utc": event.announced_utc,
        }

    def trouble(self, error: Exception) -> None:
        """Something else went wrong in the background thread; it goes on."""
        self.last_trouble = f"{_now()} {type(error).__name__}"

    def as_json(self) -> dict[str, Any]:
        """The whole status as JSON-ready values."""
        return {
            "version": package_version(),
            "state": self.state,
            "reason": self.reason,
            "source": self.source,
            "cursor": self.cursor,
            "walked": self.walked,
            "backlog": {"pending": sum(self.waiting.values()), "by_modality": dict(self.waiting)},
            "announced": self.announced,
            "unchanged": self.unchanged,
            "unannounceable": self.unannounceable,
            "last_announcement": self.last_announcement,
            "log": {"state": self.log_state, "detail": self.log_detail, "failures": self.log_failures},
            "last_trouble": self.last_trouble,
            "settings": dict(self.settings),
        }


def package_version() -> str:
    """Version of the installed distribution; 'source tree' where the code runs uninstalled."""
    try:
        return version("purkinje")
    except PackageNotFoundError:
        return "source tree"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
