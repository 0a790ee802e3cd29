"""The outcome file, the document of numbers and its Markdown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.enf.measurements import PHANTOM_CAUTION, Comparison, document
from training.enf.outcome import ModelOutcome, Turned, read_outcome, write_outcome
from training.enf.table import markdown

LABELS = np.arange(60) < 30
COMPARISON = Comparison(
    data_set="short-axis phantoms, seed 7",
    train_hearts=275,
    condition="LVEF of at most 40 %",
    command="purkinje-train evaluate enf",
    caution=PHANTOM_CAUTION,
    settings=("ENF: h 64, 3 steps",),
)


def logits(wrong: int, labels: np.ndarray = LABELS) -> np.ndarray:
    """Logits of +-1, the first ``wrong`` with the wrong sign."""
    return np.where(np.arange(len(labels)) < wrong, -1.0, 1.0) * np.where(labels, 1.0, -1.0)


def outcome(model: str, *, seed: int = 0, turned_wrong: tuple[int, ...] = (5, 5, 5), **changes: object) -> ModelOutcome:
    """An outcome with 6 wrong on validation, 5 on test and the given numbers wrong after quarter turns."""
    turns = zip(("90", "180", "270"), turned_wrong, strict=True)
    quarter = [Turned(name=f"turn {a}", kind="quarter", amount=a, logits=logits(wrong)) for a, wrong in turns]
    shifts = [
        Turned(name=f"shift 5 px {way}", kind="shift", amount="5", logits=logits(5) * (1 + 0.3 * index))
        for index, way in enumerate(("right", "down"))
    ]
    given_parts = {
        "model": model,
        "seed": seed,
        "made_from": "a" * 64,
        "validation_logits": logits(6),
        "validation_labels": LABELS,
        "test_labels": LABELS,
        "test_logits": logits(5),
        "turned": (*quarter, *shifts),
        "seconds": {"train": 12.34, "per_study": 0.0021},
        "notes": ("small network",),
    }
    return ModelOutcome(**{**given_parts, **changes})


def row(text: str, start: str) -> list[str]:
    """Cells of the first row that starts so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# Outcome files


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_outcome_file_gives_back_every_number(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    """Logits return bit for bit, down to subnormal and up to the largest."""
    path = tmp_path_factory.mktemp("outcome") / "enf-0.json"
    logits_N, labels_N = np.array(values), np.array(values) > 0
    turned = (Turned(name="negative", kind="angle", amount="15", logits=-logits_N),)
    write_outcome(path, outcome("ENF", test_logits=logits_N, test_labels=labels_N, turned=turned))
    read = read_outcome(path)
    assert read.test_logits.tolist() == values
    assert read.turned[0].logits.tolist() == [-value for value in values]


def test_outcome_file_gives_back_the_same_document(tmp_path: Path) -> None:
    """Labels, turns, seconds and notes return too, so a resumed run has the same table."""
    write_outcome(tmp_path / "enf.json", outcome("ENF"))
    read = read_outcome(tmp_path / "enf.json")
    assert (read.test_labels.dtype, read.notes) == (np.bool_, ("small network",))
    assert document([read], COMPARISON) == document([outcome("ENF")], COMPARISON)


def test_outcome_file_appears_whole(tmp_path: Path) -> None:
    """No partial file stays beside it, and an existing one is replaced."""
    path = tmp_path / "enf.json"
    for seed in (0, 1):
        write_outcome(path, outcome("ENF", seed=seed))
    assert [item.name for item in tmp_path.iterdir()] == ["enf.json"]
    assert read_outcome(path).seed == 1


def test_outcome_of_another_schema_is_refused(tmp_path: Path) -> None:
    """An old file says that the model must run again."""
    path = tmp_path / "enf.json"
    write_outcome(path, outcome("ENF"))
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(ValueError, match="schema version 1, expected 2; run that model again"):
        read_outcome(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_logits": np.ones(59)}, r"test logits have shape \(59,\); expected \(60,\)"),
        ({"validation_logits": np.full(60, np.nan)}, "validation: 60 of 60 are not finite"),
        ({"test_labels": np.ones(60)}, "test labels are float64"),
        ({"seconds": {"train": 1.0}}, "seconds has"),
        ({"turned": (Turned(name="a", kind="angle", amount="5", logits=np.ones(3)),)}, "a logits have shape"),
        ({"turned": (Turned(name="a", kind="angle", amount="5", logits=np.ones(60)),) * 2}, "share a name"),
    ],
)
def test_outcome_whose_parts_do_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    """Every array has one finite number per heart and every change its own name."""
    with pytest.raises(ValueError, match=message):
        outcome("ENF", **changes)


def test_change_of_unknown_kind_or_without_numbers_is_refused() -> None:
    """Only quarter turns, angles and shifts are known; mirror images are undone before, never measured."""
    with pytest.raises(ValueError, match="kind 'zoom' is unknown"):
        Turned(name="zoom 2", kind="zoom", amount="2", logits=np.ones(60))
    with pytest.raises(ValueError, match="1 of 2 are not finite"):
        Turned(name="turn 5", kind="angle", amount="5", logits=np.array([0.0, np.inf]))


# Document and Markdown


def test_main_row_has_the_numbers_counted_by_hand() -> None:
    """6 and 5 of 60 wrong; 5, 10, 5 wrong after the turns: 5 flips of 180, p 3/16 after Bonferroni."""
    cells = row(markdown(document([outcome("ResNet50", turned_wrong=(5, 10, 5))], COMPARISON)), "ResNet50")
    assert cells[1:4] == ["90.0 [79.9, 95.3]", "91.7 [81.9, 96.4]", "88.9 [83.5, 92.7]"]
    assert cells[4:7] == ["5 of 180", "5 of 60", "0.19"]
    assert [float(cell) for cell in cells[7:]] == pytest.approx([2.03, 0.06], abs=0.01)


def test_model_that_does_not_turn_has_no_flips_and_p_one() -> None:
    """Equal logits give 0 of 180, p 1.00 and change 0."""
    cells = row(markdown(document([outcome("ENF")], COMPARISON)), "ENF")
    assert cells[4:] == ["0 of 180", "0 of 60", "1.00", "0.0e+00", "0.0e+00"]


def test_seeds_are_summarised_and_pooled_and_listed() -> None:
    """Two seeds: mean ± SD, an interval of 120 decisions, flips of 360, one p per seed."""
    seeds = [outcome("ENF", seed=1, test_logits=logits(11)), outcome("ENF", seed=0)]
    measured = document(seeds, COMPARISON)
    cells = row(markdown(measured), "ENF")
    assert cells[2].startswith("86.7 ± 7.1 [")
    assert cells[4] == "18 of 360"
    assert cells[6] == "1.00; 0.094"
    test = measured["models"][0]["test"]
    assert measured["models"][0]["seeds"] == [0, 1]
    assert test["right_of_each_seed"] == [[55, 60], [49, 60]]
    assert (test["accuracy_pooled_over_seeds"]["count"], test["accuracy_pooled_over_seeds"]["of"]) == (104, 120)


def test_drift_pools_changes_of_one_kind_and_amount() -> None:
    """Two shifts of 5 px are one row of 120 decisions with a change of 0.3 at most and 0.15 on average."""
    measured = document([outcome("ENF")], COMPARISON)
    shift = measured["models"][0]["changes"][-1]
    assert (shift["label"], shift["names"]) == ("shift 5 px", ["shift 5 px right", "shift 5 px down"])
    assert (shift["flips"]["count"], shift["flips"]["of"]) == (0, 120)
    sd = float(np.std(logits(5)))
    assert (shift["max_change_sd"], shift["mean_change_sd"]) == pytest.approx((0.3 / sd, 0.15 / sd), rel=1e-5)
    line = next(line for line in markdown(measured).splitlines() if "| shift 5 px |" in line)
    assert "| 0 of 120 | 0.30 | 0.15 | 1.00 |" in line


@pytest.mark.parametrize(
    ("kind", "amount", "label"),
    [("angle", "15", "turn 15°"), ("angle", "-7.5", "turn -7.5°"), ("shift", "half a pixel", "shift half a pixel")],
)
def test_changes_are_labelled_with_their_unit(kind: str, amount: str, label: str) -> None:
    """Numbers get the unit of their kind, words stay as they are."""
    turned = (Turned(name="x", kind=kind, amount=amount, logits=logits(5)),)
    assert document([outcome("ENF", turned=turned)], COMPARISON)["models"][0]["changes"][0]["label"] == label


def test_header_says_data_sizes_seeds_command_and_caution() -> None:
    """Whoever reads the table alone knows what it is and how to make it again."""
    text = markdown(document([outcome("ENF", seed=3), outcome("ResNet50", seed=1)], COMPARISON))
    for words in (
        "short-axis phantoms, seed 7 (digital phantoms, not for clinical use)",
        "275 / 60 / 60. Seeds: 1, 3.",
        "`purkinje-train evaluate enf`",
        "- ENF: h 64, 3 steps",
        "- ENF: small network",
        "| ENF | 12 | 2 |",
    ):
        assert words in text


def test_published_rows_stand_apart_and_carry_their_uncertainty() -> None:
    """The published accuracies are there, said to be of different patients, with Fisher and Wilson numbers."""
    text = markdown(document([outcome("ENF")], COMPARISON))
    part = text[text.index("## Published") : text.index("## Drift")]
    for words in ("| 91.0 | 83.0 |", "| 87.0 | 87.0 |", "| 93 (1) | 85 (2) |", "| 86 (1) | 86 (1) |"):
        assert words in part
    for words in (
        "different patients",
        "55/60 against 50/60 has Fisher exact p = 0.27",
        "86.7 [75.8, 93.1] %",
        "p = 0.80",
    ):
        assert words in part


def test_markdown_of_the_json_read_back_is_the_same() -> None:
    """The JSON file alone is enough to make the table, and it is stable."""
    outcomes = [outcome("ENF", turned_wrong=(5, 6, 7)), outcome("ResNet50", turned_wrong=(9, 5, 5))]
    text = json.dumps(document(outcomes, COMPARISON), allow_nan=False)
    assert text == json.dumps(document(outcomes, COMPARISON), allow_nan=False)
    assert markdown(json.loads(text)) == markdown(document(outcomes, COMPARISON))


def test_tables_are_rectangular() -> None:
    """Every row of a table has as many cells as its head, also for odd model names."""
    text = markdown(document([outcome("a|b"), outcome("bare", turned=())], COMPARISON))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block}) == 1
    assert row(text, "bare")[3:] == ["not measured"] * 6


def test_collapsed_model_is_said_to_be_one() -> None:
    """Constant logits have no standard deviation; the cell says so."""
    constant = np.ones(60)
    turned = (Turned(name="turn 90", kind="quarter", amount="90", logits=constant),)
    text = markdown(document([outcome("ENF", test_logits=constant, turned=turned)], COMPARISON))
    assert row(text, "ENF")[-1] == "undefined (constant logit)"


def test_outcomes_that_cannot_be_compared_are_refused() -> None:
    """The same seed twice, other hearts, other changes or nothing at all are mistakes of the caller."""
    enf = outcome("ENF")
    others = dataclasses.replace(outcome("ResNet50"), test_labels=~LABELS)
    fewer = dataclasses.replace(outcome("ENF", seed=1), turned=enf.turned[:2])
    for outcomes, message in (
        ([], "no outcome"),
        ([enf, enf], "seed 0 twice"),
        ([enf, others], "other test hearts"),
        ([enf, fewer], "seed 1 has changes"),
    ):
        with pytest.raises(ValueError, match=message):
            document(outcomes, COMPARISON)
