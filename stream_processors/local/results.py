"""What came out, as a table for people and as ``summary.json`` for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from stream_processors.local.ledger import Account

NAMES = {
    "lvef": "LVEF",
    "rvef": "RVEF",
    "cardiac_output": "CO",
    "lvedv": "LVEDV",
    "lvesv": "LVESV",
    "lv_mass": "LV mass",
    "rvedv": "RVEDV",
    "rvesv": "RVESV",
    **{f"lvef_at_most_{percent}": f"LVEF <= {percent} %" for percent in (30, 35, 40, 50)},
}
_LONGEST_REASON = 90


def summarise(account: Account, studies: Iterable[str]) -> list[dict[str, Any]]:
    """One entry per outcome of the given studies; a study without announcement gets the outcome ``ignored``."""
    return [entry for study in studies for entry in (_entries(account, study) or [_ignored(study)])]


def _entries(account: Account, study: str) -> list[dict[str, Any]]:
    return [_entry(account, outcome) for outcome in account.of_study(study)]


def _entry(account: Account, outcome: Mapping[str, Any]) -> dict[str, Any]:
    event = account.announced[outcome["claim_event_id"]]
    report = outcome["report"]
    return {
        "study_instance_uid": outcome["study_instance_uid"],
        "modality": outcome["modality"],
        "revision": outcome["revision"],
        "completeness_rule": event.completeness_rule,
        "outcome": outcome["outcome"],
        "reason_code": outcome["reason_code"],
        "reason": outcome["reason"],
        "measurements": [_measurement(each) for each in outcome["estimates"]],
        "probabilities": list(outcome["probabilities"]),
        "model": outcome["engine"],
        "cross_modal": _cross_modal(outcome.get("cross_modal")),
        "stage_ms": outcome["stage_ms"],
        "report_sop_instance_uid": report["sop_instance_uid"] if report else None,
        "companion_sop_instance_uid": report["companion_sop_instance_uid"] if report else None,
    }


def _measurement(estimate: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome of an earlier minor version states no second interval."""
    stated = {key: estimate[key] for key in ("quantity", "value", "unit", "interval")}
    return {**stated, "wide_interval": estimate.get("wide_interval")}


def _cross_modal(finding: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The finding without the embedding, which the log keeps; an outcome of an earlier minor version has none."""
    return None if finding is None else {key: value for key, value in finding.items() if key != "embedding"}


def _ignored(study: str) -> dict[str, Any]:
    return {
        "study_instance_uid": study,
        "modality": None,
        "outcome": "ignored",
        "reason_code": "out_of_scope",
        "reason": "no cardiac MR, echo or ECG instance in it: not announced",
        "measurements": [],
        "probabilities": [],
        "model": None,
        "cross_modal": None,
        "stage_ms": {},
        "report_sop_instance_uid": None,
    }


def result_text(entry: Mapping[str, Any]) -> str:
    """The result of one entry in a line: numbers with intervals, or the reason why there are none."""
    said = [_number(each) for each in entry["measurements"]] + [_probability(each) for each in entry["probabilities"]]
    finding = entry.get("cross_modal")
    if said:
        return "\n".join([*said, *([] if finding is None else [_similarity(finding)])])
    reason = str(entry["reason"] or entry["reason_code"] or "")
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 1]}…"


def _number(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["interval"]["low"], estimate["interval"]["high"]
    name = NAMES.get(estimate["quantity"], estimate["quantity"].replace("_", " "))
    wide = estimate.get("wide_interval")
    also = "" if wide is None else f"; {wide['coverage_percent']:g} %: {wide['low']:.1f} to {wide['high']:.1f}"
    return f"{name} {estimate['value']:.1f} {estimate['unit']} ({low:.1f} to {high:.1f}{also})"


def _probability(probability: Mapping[str, Any]) -> str:
    low, high = (100 * probability["interval"][end] for end in ("low", "high"))
    name = NAMES.get(probability["condition"], probability["condition"].replace("_", " "))
    said = {True: "present", False: "absent", None: "undetermined"}[probability["decision"]]
    return f"{name}: {100 * probability['probability']:.0f} % ({low:.0f} to {high:.0f}), {said}"


def _similarity(finding: Mapping[str, Any]) -> str:
    name = f"cross-modal check, {finding['partner_modality'].upper()} {finding['days_apart']} d apart"
    if finding["cosine"] is None:
        return f"{name}: not compared, {finding['not_compared']}"
    low = ", unusually little for one patient" if finding["below_limit"] else ""
    shares = f"above {finding['own_percent']:.1f} % of one patient, {finding['others_percent']:.1f} % of two"
    return f"{name}: {finding['cosine']:.3f} ({shares}){low}"


def table_of(entries: Sequence[Mapping[str, Any]]) -> Table:
    """The table of a demo: study, modality, result or refusal, time per stage."""
    table = Table(title="What stands in the PACS now", show_lines=True)
    for column in ("study", "modality", "outcome", "result (interval) or reason", "time per stage, ms"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        times = ", ".join(
            f"{stage} {ms:.0f}" for stage, ms in entry["stage_ms"].items() if stage != "total" and ms >= 1
        )
        total = entry["stage_ms"].get("total")
        cells = [
            f"…{entry['study_instance_uid'][-12:]}",
            entry["modality"] or "-",
            entry["outcome"],
            result_text(entry),
        ]
        table.add_row(*cells, f"{times}\ntotal {total:.0f}" if total is not None else "")
    return table


def write_summary(out: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``summary.json``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "summary.json"
    path.write_text(json.dumps(entries, indent=2) + "\n")
    return path
