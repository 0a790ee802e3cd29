"""What the inspecting commands print for people. Called by ``cli``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream_processors.inspection import Finding, Status

_MARKS = {
    True: Text("ok", style="green"),
    False: Text("fails", style="bold red"),
    None: Text("missing", style="yellow"),
}


def check_table(findings: Sequence[Finding]) -> RenderableType:
    """One line per finding, with the command that repairs it."""
    table = Table("", "what", "found", "what to do", show_lines=False)
    for finding in findings:
        table.add_row(_MARKS[finding.ok], finding.name, Text(finding.detail), Text(finding.remedy))
    return table


def status_table(status: Status) -> RenderableType:
    """The state of the parts, then the studies."""
    parts = Table("", "part", "found", show_lines=False)
    for finding in (status.pacs, status.log):
        parts.add_row(_MARKS[finding.ok], finding.name, Text(finding.detail))
    plugin = "not loaded" if status.plugin is None else str(status.plugin.get("state", "loaded"))
    parts.add_row(_MARKS[None if status.plugin is None else True], "plugin", plugin)
    parts.add_row(_processors_mark(status.processors), "processors", Text(_processors_line(status.processors)))
    engines = (status.processors or {}).get("engines")
    computing = [_engine_table(engines)] if engines else []
    studies = (_lag_table(status.lag), _outcome_table(status.outcomes), _dead_line(status.dead_letters))
    return Group(parts, *computing, *studies)


def _processors_mark(said: Mapping[str, Any] | None) -> Text:
    return _MARKS[None if said is None else bool(said["running"])]


def _processors_line(said: Mapping[str, Any] | None) -> str:
    if said is None:
        return "unknown: no status file is there; set status_file"
    if not said["running"]:
        return f"not running; the status file says {said['state']}"
    building = f": {said['building']}" if said.get("building") else ""
    replaced = f"; replaced {said['replaced']} times lately, since a GPU was lost" if said.get("replaced") else ""
    return f"{said['state']}{building} (process {said['pid']}){replaced}"


def _engine_table(engines: Mapping[str, Mapping[str, str | None]]) -> RenderableType:
    """On what each engine that has passed its self-test computes."""
    table = Table("modality", "engine", "runtime", "device", "precision", "fallback, because", show_lines=False)
    for modality, one in engines.items():
        named = (f"{one.get('name')} {one.get('version')}", f"{one.get('runtime')} {one.get('runtime_version')}")
        table.add_row(
            modality, *named, str(one.get("device")), str(one.get("precision")), Text(one.get("fallback") or "")
        )
    return table


def letter_table(letters: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One line per dead letter."""
    if not letters:
        return Text("no dead letters")
    table = Table("id", "study", "error", "attempts", "given up", show_lines=False)
    for letter in letters:
        cause = Text(f"{letter['error'].rpartition('.')[2]}\n{letter['message']}".strip())
        table.add_row(
            letter["id"], letter["study_instance_uid"], cause, str(letter["attempts"]), letter["last_failed_utc"]
        )
    return table


def _lag_table(lag: Mapping[str, int] | None) -> RenderableType:
    if lag is None:
        return Text("waiting: unknown, the log does not answer")
    table = Table("topic", "waiting", show_lines=False)
    for topic, count in lag.items():
        table.add_row(topic, str(count))
    return table


def _outcome_table(outcomes: Mapping[str, Mapping[str, int]] | None) -> RenderableType:
    if not outcomes:
        return Text("no study has ended yet" if outcomes is not None else "outcomes: unknown")
    names = sorted({outcome for counts in outcomes.values() for outcome in counts})
    table = Table("modality", *names, show_lines=False)
    for modality, counts in outcomes.items():
        table.add_row(modality, *(str(counts.get(name, 0)) for name in names))
    return table


def _dead_line(count: int | None) -> RenderableType:
    if not count:
        return Text("dead letters: none" if count == 0 else "dead letters: unknown")
    return Text(f"dead letters: {count}; see purkinje dead-letter list", style="bold red")
