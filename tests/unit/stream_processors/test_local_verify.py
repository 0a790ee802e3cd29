"""``verify --rotate``: which answers turning changes, and by how much, without Orthanc."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from click.testing import CliRunner
from rich.console import Console

from engines.bundle.reader import load_bundle, released_bundle
from engines.records import Modality
from stream_processors.cli import main
from stream_processors.local import arrivals, bars, verify
from stream_processors.local.arrivals import make_phantoms
from stream_processors.local.bars import accuracy_of, missed_bars
from stream_processors.local.ledger import Account
from stream_processors.local.verify import VerifyOptions, compare, run_verify, turns_of

DEGREES = (0, 90, 180, 270)
Said = Mapping[str, Any]


def answered(probability: float, *, decision: bool | None) -> dict[str, Any]:
    """How a study with a number ends."""
    said = {
        "condition": "lvef_at_most_40",
        "probability": probability,
        "interval": {"low": 0.0, "high": 1.0},
        "decision": decision,
    }
    return {"outcome": "reported", "reason_code": None, "reason": None, "probabilities": [said]}


def unanswered(outcome: str, code: str) -> dict[str, Any]:
    """How a study without a number ends."""
    return {"outcome": outcome, "reason_code": code, "reason": code, "probabilities": []}


RISK = answered(0.9, decision=True)


def studies(*ends: Said) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Entries and truths of one heart with LVEF 30 %, unturned first."""
    entries, truths = [], []
    for degrees, end in zip(DEGREES, ends, strict=False):
        uid = f"2.25.{degrees}"
        entries.append({"study_instance_uid": uid, "modality": "cmr", "measurements": [], "stage_ms": {}, **end})
        truth = {"study_instance_uid": uid, "lvef_percent": 30.0, "files": [], "turned_degrees": degrees}
        truths.append({**truth, "unturned_study_instance_uid": "2.25.0"})
    return entries, truths


@pytest.mark.parametrize(
    ("ends", "line"),
    [
        ((RISK, RISK, RISK, RISK), "turned 3 changed 0 largest probability change 0.0000"),
        (
            (RISK, answered(0.88, decision=True), RISK, answered(0.93, decision=True)),
            "turned 3 changed 0 largest probability change 0.0300",
        ),
        (
            (RISK, answered(0.4, decision=None), RISK, answered(0.1, decision=False)),
            "turned 3 changed 2 largest probability change 0.8000",
        ),
        (
            (RISK, RISK, unanswered("refused", "heart_not_found"), unanswered("abstained", "reconstruction_poor")),
            "turned 3 changed 2 largest probability change 0.0000",
        ),
        (
            (
                unanswered("abstained", "out_of_distribution"),
                unanswered("abstained", "out_of_distribution"),
                unanswered("abstained", "reconstruction_poor"),
                unanswered("refused", "out_of_distribution"),
            ),
            "turned 3 changed 2 largest probability change 0.0000",
        ),
        ((RISK,), "turned 0 changed 0 largest probability change 0.0000"),
    ],
)
def test_changed_answers_are_counted(ends: Sequence[Said], line: str) -> None:
    """Another decision, outcome or reason code is a change; another probability alone is not, but it is told."""
    assert turns_of(compare(*studies(*ends))).line == line


class FakeStack:
    """Stands for Orthanc, the log and the processors; nothing is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to stop."""


def run(monkeypatch: pytest.MonkeyPatch, ends: Sequence[Said], *, rotate: bool) -> tuple[int, list[str]]:
    """Run ``verify`` on studies that end so; return exit code and lines."""
    entries, truths = studies(*ends)
    asked: list[tuple[bool, bool]] = []

    def phantoms(*_: object, turned: bool, evenly: bool, **_more: object) -> list[dict[str, Any]]:
        asked.append((turned, evenly))
        return truths

    replaced = {
        "LocalStack": FakeStack,
        "make_phantoms": phantoms,
        "send": lambda *_: None,
        "wait_for_outcomes": lambda *_: Account({}, {}),
        "summarise": lambda *_: entries,
        "fetch_reports": lambda *_: {},
    }
    for name, double in replaced.items():
        monkeypatch.setattr(verify, name, double)
    console = Console(record=True, width=150, file=io.StringIO())
    code = run_verify(VerifyOptions(method="cmr", seed=1, count=1, out=None, rotate=rotate), console)
    assert asked == [(rotate, True)]
    return code, console.export_text().strip().splitlines()


def test_a_changed_answer_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdicts count the studies as they were made; one changed answer among the turned makes the exit code 1."""
    code, lines = run(monkeypatch, (RISK, RISK, RISK, answered(0.2, decision=False)), rotate=True)
    assert lines[-2:] == ["turned 3 changed 1 largest probability change 0.7000", "right 1 refused 0 wrong 0 of 1"]
    assert code == 1


def test_unchanged_answers_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong answer that stays the same is no change."""
    wrong = answered(0.1, decision=False)
    code, lines = run(monkeypatch, (wrong, wrong, wrong, wrong), rotate=True)
    assert lines[-2:] == ["turned 3 changed 0 largest probability change 0.0000", "right 0 refused 0 wrong 1 of 1"]
    assert code == 0


def test_without_rotate_nothing_is_said_of_turning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain run prints what it printed before."""
    code, lines = run(monkeypatch, (RISK,), rotate=False)
    assert lines[-1] == "right 1 refused 0 wrong 0 of 1"
    assert not any("turned" in line for line in lines)
    assert code == 0


@pytest.mark.parametrize("method", ["echo", "ecg"])
def test_rotate_is_for_cardiac_mr(method: str) -> None:
    """Any other method is wrong usage, said before anything starts."""
    result = CliRunner().invoke(main, ["verify", "--method", method, "--seed", "1", "--rotate"])
    assert result.exit_code == 2
    assert f"found --method {method}, expected --method cmr" in result.output


def test_the_phantom_program_is_asked_for_turned_and_even_studies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each option is passed on, and only then."""
    commands: list[list[str]] = []

    def program(command: list[str], **_: object) -> Any:
        commands.append(command)
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(arrivals.subprocess, "run", program)
    (tmp_path / "cmr").mkdir()
    (tmp_path / "cmr" / "truth.json").write_text(json.dumps([]))
    for turned, evenly in ((True, False), (False, True), (False, False)):
        make_phantoms(["cmr"], seed=1, count=2, out=tmp_path, turned=turned, evenly=evenly)
    asked = [[word for word in command if word in {"--turned", "--evenly"}] for command in commands]
    assert asked == [["--turned"], ["--evenly"], []]


@pytest.mark.parametrize(
    ("right", "refused", "wrong", "missed"),
    [
        (85, 0, 15, []),
        (81, 4, 15, ["right of the answered 84.4 %"]),
        (84, 10, 6, []),
        (86, 11, 3, ["refused 11.0 %"]),
        (0, 100, 0, ["right of the answered 0.0 %", "refused 100.0 %"]),
        (40, 0, 59, []),
    ],
)
def test_bars_are_held_from_a_hundred_studies(right: int, refused: int, wrong: int, missed: list[str]) -> None:
    """At least 85 % of the answered right and at most 10 % refused; fewer than a hundred studies miss nothing."""
    verdicts = ["right"] * right + ["refused"] * refused + ["wrong"] * wrong
    found = missed_bars("cmr", [{"verdict": verdict} for verdict in verdicts])
    assert [sentence.partition(";")[0] for sentence in found] == missed
    assert missed_bars("another", [{"verdict": "wrong"}] * 100) == []


def echoes(right: int, wrong: int, refused: int, *, error: float = 2.0, width: float = 12.0) -> list[dict[str, Any]]:
    """Judged echo studies of LVEF 50 % whose numbers are off by ``error`` with intervals of ``width``."""
    interval = {"low": 50.0 - width / 2, "high": 50.0 + width / 2}
    lvef = {"quantity": "lvef", "value": 50.0 + error, "unit": "%", "interval": interval}
    truth = {"lvef_percent": 50.0}
    told = [{"outcome": "reported", "measurements": [lvef], "truth": truth, "verdict": "right"}] * right
    told += [{"outcome": "reported", "measurements": [lvef], "truth": truth, "verdict": "wrong"}] * wrong
    return told + [{"outcome": "abstained", "measurements": [], "truth": truth, "verdict": "refused"}] * refused


@pytest.mark.parametrize(
    ("judged", "missed"),
    [
        (echoes(84, 16, 0), []),
        (echoes(97, 3, 0), []),
        (echoes(83, 17, 0), ["right of the answered 83.0 %"]),
        (echoes(98, 2, 0), ["right of the answered 98.0 %"]),
        (echoes(80, 10, 10), []),
        (echoes(80, 9, 11), ["refused 11.0 %"]),
        (echoes(90, 10, 0, error=5.99, width=21.9), []),
        (echoes(90, 10, 0, error=6.0), ["mean absolute error 6.00"]),
        (echoes(90, 10, 0, width=22.0), ["median interval width 22.00"]),
        (
            echoes(0, 0, 100),
            ["right of the answered 0.0 %", "refused 100.0 %", "no study has a number"],
        ),
        (echoes(10, 80, 9), []),
    ],
)
def test_echo_keeps_coverage_error_and_width(judged: list[dict[str, Any]], missed: list[str]) -> None:
    """84 to 97 % inside, error below 6, width below 22, at most 10 % refused; fewer than a hundred miss nothing."""
    assert [sentence.partition(";")[0] for sentence in missed_bars("echo", judged)] == missed


def test_error_and_width_are_of_the_studies_with_a_number() -> None:
    """A study without number counts in neither; without any there is nothing to say."""
    assert accuracy_of(echoes(0, 0, 3)) is None
    found = accuracy_of([*echoes(1, 0, 2, error=1.0, width=10.0), *echoes(1, 0, 0, error=-4.0, width=20.0)])
    assert found is not None
    assert found.line == "mean absolute error 2.50 median interval width 15.00 EF points"


CARD = {"lvef_r_squared": 0.60, "lvef_demographics_only_r_squared": 0.20}


def ecgs(*, inside: int = 160, refused: int = 0, of: int = 200, r_squared: float = 0.60) -> list[dict[str, Any]]:
    """Judged ECG studies whose LVEF is 40 or 60 %, with errors that make this R2."""
    error = 10.0 * (1.0 - r_squared) ** 0.5
    found: list[dict[str, Any]] = []
    for index in range(of - refused):
        truth = 40.0 if index % 2 else 60.0
        value = truth + (error if index % 4 < 2 else -error)
        lvef = {"quantity": "lvef", "value": value, "unit": "%", "interval": {"low": value - 9, "high": value + 9}}
        verdict = "right" if index < inside else "wrong"
        judged = {"measurements": [lvef], "truth": {"lvef_percent": truth}, "verdict": verdict}
        found.append({"outcome": "reported", **judged})
    empty = {"outcome": "refused", "measurements": [], "truth": {"lvef_percent": 50.0}, "verdict": "refused"}
    return found + [empty] * refused


@pytest.mark.parametrize(
    ("judged", "missed"),
    [
        (ecgs(), []),
        (ecgs(inside=148), []),
        (ecgs(inside=172), []),
        (ecgs(inside=147), ["right of the answered 73.5 %"]),
        (ecgs(inside=173), ["right of the answered 86.5 %"]),
        (ecgs(refused=6), []),
        (ecgs(refused=8), ["refused 4.0 %"]),
        (ecgs(r_squared=0.65), []),
        (ecgs(r_squared=0.55), []),
        (ecgs(r_squared=0.651), ["R2 of LVEF 0.651"]),
        (ecgs(r_squared=0.549), ["R2 of LVEF 0.549"]),
        (ecgs(r_squared=0.20), ["R2 of LVEF 0.200", "R2 of LVEF 0.200"]),
        (ecgs(of=99, inside=0, r_squared=-1.0), []),
        (ecgs(of=100, refused=100), ["right of the answered 0.0 %", "refused 100.0 %", "no R2, without numbers or"]),
    ],
)
def test_ecg_keeps_coverage_explained_variance_and_refusals(judged: list[dict[str, Any]], missed: list[str]) -> None:
    """74 to 86 % inside, at most 3 % refused, R2 within 0.05 of the card and above its baseline; from a hundred on."""
    found = [sentence.partition(";")[0] for sentence in missed_bars("ecg", judged, CARD)]
    assert [sentence.partition(" with one")[0] for sentence in found] == missed


def test_a_card_without_baseline_keeps_no_bar() -> None:
    """What is to be beaten must be stated: a card that lacks it is a missed bar, not a silent pass."""
    (missed,) = missed_bars("ecg", ecgs(), {"lvef_r_squared": 0.6})
    assert missed.startswith("the model card states no lvef_demographics_only_r_squared; release")


def test_the_card_is_that_of_the_released_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a card given, the numbers are those that the installed bundle states."""
    stated = load_bundle(released_bundle(Modality.ECG)).manifest
    card = {**CARD, "lvef_r_squared": stated.metrics["lvef_r_squared"]}
    bundle = SimpleNamespace(manifest=SimpleNamespace(metrics=card))
    monkeypatch.setattr(bars, "load_bundle", lambda path: bundle if path == released_bundle(Modality.ECG) else None)
    assert missed_bars("ecg", ecgs(r_squared=card["lvef_r_squared"])) == []
    assert len(missed_bars("ecg", ecgs(r_squared=card["lvef_r_squared"] - 0.06))) == 1


def test_r_squared_is_told_where_truths_differ() -> None:
    """The line of the studies with numbers ends in R2; one and the same truth has none."""
    found = accuracy_of(ecgs(r_squared=0.6))
    assert found is not None
    assert found.line.endswith("EF points R2 0.600")


def test_a_class_is_judged_by_the_threshold_of_its_condition() -> None:
    """38 % is present at 40 and absent at 35."""
    entry = {"outcome": "reported", "modality": "cmr", **answered(0.9, decision=True)}
    truth = {"lvef_percent": 38.0}
    assert verify.judge(entry, truth) is verify.Verdict.RIGHT
    other = [{**entry["probabilities"][0], "condition": "lvef_at_most_35"}]
    assert verify.judge({**entry, "probabilities": other}, truth) is verify.Verdict.WRONG
