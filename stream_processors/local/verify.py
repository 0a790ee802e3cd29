"""``purkinje verify``: new phantom studies through the whole way, each report held against the truth."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stream_processors.local.arrivals import make_phantoms, of_truths
from stream_processors.local.demo import fetch_reports, send, wait_for_outcomes
from stream_processors.local.results import result_text, summarise
from stream_processors.local.stack import LocalStack


class Verdict(StrEnum):
    """How one report compares with the truth."""

    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "wrong"


def judge(entry: Mapping[str, Any], truth: Mapping[str, Any]) -> Verdict:
    """Compare one summary entry with the truth of its study.

    Echo and ECG are right when the true LVEF lies in the reported interval. CMR is right when the class (LVEF <= 40 %)
    is; an undetermined class counts as refused. A study that failed or was never announced is wrong: it was lost.
    """
    if entry["outcome"] in ("abstained", "refused"):
        return Verdict.REFUSED
    if entry["outcome"] != "reported":
        return Verdict.WRONG
    if entry["modality"] == "cmr":
        return _judge_class(entry["probabilities"], truth)
    return _judge_interval(entry["measurements"], truth)


def _judge_class(probabilities: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> Verdict:
    decision = next(each["decision"] for each in probabilities if each["condition"] == "lvef_at_most_40")
    if decision is None:
        return Verdict.REFUSED
    return Verdict.RIGHT if decision == (truth["lvef_percent"] <= 40) else Verdict.WRONG


def _judge_interval(measurements: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> Verdict:
    interval = next(each["interval"] for each in measurements if each["quantity"] == "lvef")
    return Verdict.RIGHT if interval["low"] <= truth["lvef_percent"] <= interval["high"] else Verdict.WRONG


def run_verify(method: str, *, seed: int, count: int, out: Path | None, console: Console) -> int:
    """Make, send, wait, compare; the last line printed says how many were right, refused and wrong.

    Returns:
        0 when every study has exactly one outcome, whatever the verdicts are.
    """
    with tempfile.TemporaryDirectory(prefix="purkinje-verify-") as name:
        folder = Path(name)
        with console.status(f"making {count} {method} phantoms from seed {seed}"):
            truths = make_phantoms([method], seed=seed, count=count, out=folder / "phantoms")
        with LocalStack(folder / "stack") as stack:
            send(stack, of_truths(truths), console)
            studies = [truth["study_instance_uid"] for truth in truths]
            account = wait_for_outcomes(stack, studies, console)
            entries = summarise(account, studies)
            reports = fetch_reports(stack, entries)
    compared = compare(entries, truths)
    console.print(_table(compared))
    if out is not None:
        _write(out, compared, reports)
    console.print(last_line(compared), highlight=False)
    return 0 if len(entries) == len(truths) and not account.contradictions else 1


def compare(entries: Sequence[dict[str, Any]], truths: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each entry with its truth and verdict."""
    by_study = {truth["study_instance_uid"]: {k: v for k, v in truth.items() if k != "files"} for truth in truths}
    pairs = [(entry, by_study[entry["study_instance_uid"]]) for entry in entries]
    return [{**entry, "truth": truth, "verdict": judge(entry, truth).value} for entry, truth in pairs]


def last_line(compared: Sequence[Mapping[str, Any]]) -> str:
    """``right R refused F wrong W of N``."""
    counts = Counter(entry["verdict"] for entry in compared)
    return " ".join(f"{verdict} {counts[verdict]}" for verdict in Verdict) + f" of {len(compared)}"


def _table(compared: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Reports against the truth")
    for column in ("study", "true LVEF %", "outcome", "said", "verdict"):
        table.add_column(column, overflow="fold")
    for entry in compared:
        said = result_text(entry).splitlines()
        truth = f"{entry['truth']['lvef_percent']:.1f}"
        table.add_row(
            f"…{entry['study_instance_uid'][-12:]}", truth, entry["outcome"], said[0] if said else "", entry["verdict"]
        )
    return table


def _write(out: Path, compared: Sequence[Mapping[str, Any]], reports: Mapping[str, bytes]) -> None:
    folder = out / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    (out / "verify.json").write_text(json.dumps(list(compared), indent=2) + "\n")
    for uid, content in reports.items():
        (folder / f"{uid}.dcm").write_bytes(content)
