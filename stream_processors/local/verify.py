"""``purkinje verify``: new phantom studies through the whole way, each report held against the truth."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stream_processors.local.arrivals import make_phantoms, of_truths
from stream_processors.local.bars import Verdict, accuracy_of, missed_bars
from stream_processors.local.demo import fetch_reports, send, wait_for_outcomes
from stream_processors.local.results import result_text, summarise
from stream_processors.local.stack import LocalStack

_LVEF_CONDITION = "lvef_at_most_"


def judge(entry: Mapping[str, Any], truth: Mapping[str, Any]) -> Verdict:
    """Compare one summary entry with the truth of its study.

    Echo and ECG are right when the true LVEF lies in the reported interval. CMR is right when the class is (LVEF at or
    below the threshold that its condition names); an undetermined class counts as refused. A study that failed or was
    never announced is wrong: it was lost.
    """
    if entry["outcome"] in ("abstained", "refused"):
        return Verdict.REFUSED
    if entry["outcome"] != "reported":
        return Verdict.WRONG
    if entry["modality"] == "cmr":
        return _judge_class(entry["probabilities"], truth)
    return _judge_interval(entry["measurements"], truth)


def _judge_class(probabilities: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> Verdict:
    (given,) = (each for each in probabilities if each["condition"].startswith(_LVEF_CONDITION))
    if given["decision"] is None:
        return Verdict.REFUSED
    positive = truth["lvef_percent"] <= float(given["condition"].removeprefix(_LVEF_CONDITION))
    return Verdict.RIGHT if given["decision"] == positive else Verdict.WRONG


def _judge_interval(measurements: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> Verdict:
    interval = next(each["interval"] for each in measurements if each["quantity"] == "lvef")
    return Verdict.RIGHT if interval["low"] <= truth["lvef_percent"] <= interval["high"] else Verdict.WRONG


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What the user asked for; see ``purkinje verify --help``."""

    method: str
    seed: int
    count: int
    out: Path | None
    rotate: bool


@dataclass(frozen=True, kw_only=True)
class Turns:
    """How the answers for turned studies compare with those for the same studies unturned.

    Args:
        turned: studies whose pixels were turned.
        changed: of them, those with another answer: outcome, reason code or decision.
        largest_probability_change: 0 to 1, over the studies that were answered both ways.
    """

    turned: int
    changed: int
    largest_probability_change: float

    @property
    def line(self) -> str:
        """``turned T changed C largest probability change D``."""
        change = f"{self.largest_probability_change:.4f}"
        return f"turned {self.turned} changed {self.changed} largest probability change {change}"


def run_verify(options: VerifyOptions, console: Console) -> int:
    """Make, send, wait, compare; the last line printed says how many were right, refused and wrong.

    The ejection fractions of the phantoms, and what an ECG shows of them, are spread as the population's are, so that few studies
    stand for many.

    Lines before it say the error and the width of the intervals where numbers are reported, with ``rotate`` what turning
    changed, and which bar is missed; the verdicts count the studies that were not turned.

    Returns:
        0 when every study has exactly one outcome, turning changed no answer, and the method keeps its ``BARS``.
    """
    method, seed, count, out = options.method, options.seed, options.count, options.out
    with tempfile.TemporaryDirectory(prefix="purkinje-verify-") as name:
        folder = Path(name)
        with console.status(f"making {count} {method} phantoms from seed {seed}"):
            truths = make_phantoms(
                [method], seed=seed, count=count, out=folder / "phantoms", turned=options.rotate, evenly=True
            )
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
    turns = turns_of(compared)
    if options.rotate:
        console.print(turns.line, highlight=False)
    judged = [entry for entry in compared if not is_turned(entry)]
    if (accuracy := accuracy_of(judged)) is not None:
        console.print(accuracy.line, highlight=False)
    missed = missed_bars(method, judged)
    for sentence in missed:
        console.print(sentence, highlight=False)
    console.print(last_line(judged), highlight=False)
    complete = len(entries) == len(truths) and not account.contradictions
    return 0 if complete and not turns.changed and not missed else 1


def compare(entries: Sequence[dict[str, Any]], truths: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each entry with its truth and verdict."""
    by_study = {truth["study_instance_uid"]: {k: v for k, v in truth.items() if k != "files"} for truth in truths}
    pairs = [(entry, by_study[entry["study_instance_uid"]]) for entry in entries]
    return [{**entry, "truth": truth, "verdict": judge(entry, truth).value} for entry, truth in pairs]


def turns_of(compared: Sequence[Mapping[str, Any]]) -> Turns:
    """Hold every turned study against the unturned one it was made from."""
    unturned = {entry["study_instance_uid"]: entry for entry in compared if not is_turned(entry)}
    pairs = [(unturned[each["truth"]["unturned_study_instance_uid"]], each) for each in compared if is_turned(each)]
    changes = [abs(one - other) for pair in pairs for one, other in zip(*map(_probabilities, pair), strict=False)]
    return Turns(
        turned=len(pairs),
        changed=sum(_answer(one) != _answer(other) for one, other in pairs),
        largest_probability_change=max(changes, default=0.0),
    )


def is_turned(entry: Mapping[str, Any]) -> bool:
    """True for a study whose stored pixels were turned."""
    return bool(entry["truth"]["turned_degrees"])


def _answer(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    decisions = [(each["condition"], each["decision"]) for each in entry["probabilities"]]
    return entry["outcome"], entry["reason_code"], *sorted(decisions, key=str)


def _probabilities(entry: Mapping[str, Any]) -> list[float]:
    return [each["probability"] for each in sorted(entry["probabilities"], key=lambda each: str(each["condition"]))]


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
