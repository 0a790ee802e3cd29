"""What was announced and how it ended, read from the log: the account that must balance.

Used by the demo, by ``verify`` and by the fault tests. Reads topics without a group, so that it disturbs nobody.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from orthanc_plugin.wire.events import READY_TOPICS, RESULT_TOPIC, StudyReady, parse_study_ready
from orthanc_plugin.wire.log import Log
from stream_processors.events import parse_outcome


@dataclass(frozen=True)
class Account:
    """Announcements and outcomes of one moment.

    Args:
        announced: announcements by event id.
        outcomes: distinct outcomes by the event id of their announcement, in order of arrival.
    """

    announced: dict[str, StudyReady]
    outcomes: dict[str, list[dict[str, Any]]]

    @property
    def open_events(self) -> list[StudyReady]:
        """Announced, and not ended yet."""
        return [event for event_id, event in self.announced.items() if event_id not in self.outcomes]

    @property
    def contradictions(self) -> list[str]:
        """Announcements with more than one distinct outcome; must stay empty."""
        return [event_id for event_id, ends in self.outcomes.items() if len(ends) > 1]

    def of_study(self, study_instance_uid: str) -> list[dict[str, Any]]:
        """Outcomes of one study, one per announcement."""
        ids = [key for key, event in self.announced.items() if event.study_instance_uid == study_instance_uid]
        return [self.outcomes[event_id][-1] for event_id in ids if event_id in self.outcomes]


def take_account(log: Log) -> Account:
    """Read every announcement and every outcome that lies in the log now."""
    announced: dict[str, StudyReady] = {}
    for topic in READY_TOPICS:
        for record in log.read(topic):
            event = parse_study_ready(record.headers, record.value)
            announced[event.event_id] = event
    return Account(announced, _distinct_outcomes(log))


def _distinct_outcomes(log: Log) -> dict[str, list[dict[str, Any]]]:
    distinct: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in log.read(RESULT_TOPIC):
        outcome = parse_outcome(record.headers, record.value)
        outcome["logged_ms"] = record.timestamp_ms
        distinct[outcome["claim_event_id"]].setdefault(outcome["event_id"], outcome)
    return {claim: list(ends.values()) for claim, ends in distinct.items()}


def as_json(account: Account) -> str:
    """The account as indented JSON, for a failed test or a curious engineer."""
    plain = {
        "announced": {key: json.loads(event.value()) for key, event in account.announced.items()},
        "outcomes": account.outcomes,
    }
    return json.dumps(plain, indent=2, sort_keys=True)
