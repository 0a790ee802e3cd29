"""The comparison as Markdown, from the document made of its outcomes.

Pure functions; all numbers come from ``training.enf.measurements`` and are formatted here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from training.enf.measurements import Document
from training.enf.statistics import Share, fisher_p

_NOT_GIVEN = "not published"


class Published(NamedTuple):
    """A row as printed by its authors: validation and test are different hearts."""

    source: str
    model: str
    validation_accuracy: str
    rotated_test_accuracy: str


PUBLISHED = (
    Published("abstract, one slice, 60/60 hearts", "ResNet50", "91.0", "83.0"),
    Published("abstract, one slice, 60/60 hearts", "ENF", "87.0", "87.0"),
    Published("MIDL 2026, three slices, mean (SD) of runs", "ResNet50", "93 (1)", "85 (2)"),
    Published("MIDL 2026, three slices, mean (SD) of runs", "ENF", "86 (1)", "86 (1)"),
)

_MAIN_HEAD = (
    "model",
    "validation accuracy %",
    "test accuracy %, unturned",
    "test accuracy %, turned 90/180/270",
    "flipped decisions",
    "hearts with a flip",
    "McNemar p",
    "max change of logit, sd",
    "mean change of logit, sd",
)

_LEGEND = """\
Accuracy: mean ± sample SD over the seeds, in brackets the 95 % Wilson interval of the decisions of all seeds
(and turns) pooled as if independent; they are not, so the true interval is wider. Flips: decisions that differ
from those on the unturned images of the same hearts, summed over the seeds. McNemar p: exact, one value per seed;
of several changes together the smallest p times their number. Change: |logit turned - logit unturned| in standard
deviations of the unturned logits, largest and mean."""


def markdown(measured: Document) -> str:
    """Return the tables of a document as Markdown.

    Args:
        measured: from ``training.enf.measurements.document``, or read back from JSON.
    """
    parts = [_header(measured), _main(measured), _LEGEND, _published(), _drift(measured), _cost(measured)]
    notes = _notes(measured)
    return "\n\n".join([*parts, notes] if notes else parts) + "\n"


def _header(measured: Document) -> str:
    comparison = measured["comparison"]
    sizes = (
        f"{comparison['train_hearts']} / {_joined(measured['validation_hearts'])} / {_joined(measured['test_hearts'])}"
    )
    lines = [
        f"Data set: {comparison['data_set']} ({comparison['caution']}).",
        f"Positive: {comparison['condition']}.",
        f"Hearts for training / validation / test: {sizes}. Seeds: {_joined(measured['seeds'])}.",
        f"Made again by: `{comparison['command']}`",
        *comparison["settings"],
    ]
    return "\n".join(["# Turned images: the same hearts before and after", "", *(f"- {line}" for line in lines)])


def _main(measured: Document) -> str:
    return _table(_MAIN_HEAD, [_main_row(model) for model in measured["models"]])


def _main_row(model: Document) -> list[str]:
    row = [model["model"], _accuracy(model["validation"]), _accuracy(model["test"])]
    quarter = model["quarter_turns"]
    if quarter is None:
        return [*row, *["not measured"] * (len(_MAIN_HEAD) - len(row))]
    p_values = "; ".join(_p(p) for p in quarter["mcnemar_p_of_each_seed"])
    changes = [_change(quarter["max_change_sd"]), _change(quarter["mean_change_sd"])]
    return [*row, _accuracy(quarter), _count(quarter["flips"]), _count(quarter["hearts_flipped"]), p_values, *changes]


def _published() -> str:
    head = ("published", "model", "validation accuracy %", "rotated test accuracy %", "flips", "max change of logit")
    rows = [[*row, _NOT_GIVEN, _NOT_GIVEN] for row in PUBLISHED]
    before, after, enf = Share(count=55, of=60), Share(count=50, of=60), Share(count=52, of=60)
    words = (
        "The published columns compare unrotated validation hearts with rotated test hearts: different patients of UK\n"
        f"Biobank, so not our columns. With 60 hearts each, {_of(before)} against {_of(after)} has Fisher exact p = "
        f"{_p(fisher_p(before, after))};\n{_of(enf)} is {_interval_share(enf)} %, and against {_of(after)} p = "
        f"{_p(fisher_p(enf, after))}."
    )
    return "## Published numbers, for orientation\n\n" + _table(head, rows) + "\n\n" + words


def _drift(measured: Document) -> str:
    head = ("model", "change", "accuracy %", "flipped decisions", "max change, sd", "mean change, sd", "McNemar p")
    rows = [_drift_row(model["model"], change) for model in measured["models"] for change in model["changes"]]
    words = "Every change on the same hearts, measured; outside quarter turns nothing is promised."
    return "## Drift\n\n" + words + "\n\n" + (_table(head, rows) if rows else "No change was measured.")


def _drift_row(model: str, change: Document) -> list[str]:
    p_values = "; ".join(_p(p) for p in change["mcnemar_p_of_each_seed"])
    sizes = [_change(change["max_change_sd"]), _change(change["mean_change_sd"])]
    return [model, change["label"], _accuracy(change), _count(change["flips"]), *sizes, p_values]


def _cost(measured: Document) -> str:
    rows = [
        [model["model"], _training(model["seconds"]), f"{1000 * model['seconds']['per_study']['mean']:.0f}"]
        for model in measured["models"]
    ]
    words = "One study: from the decoded stack to the answer, one after the other. C4 shares the training of ResNet50."
    return "## Cost\n\n" + words + "\n\n" + _table(("model", "training s, mean of seeds", "one study ms"), rows)


def _training(seconds: Document) -> str:
    return f"{seconds['train']['mean']:.0f}" if "train" in seconds else "once for all seeds"


def _notes(measured: Document) -> str:
    lines = [f"- {model['model']}: {note}" for model in measured["models"] for note in model["notes"]]
    return "\n".join(["## Notes", "", *lines]) if lines else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _accuracy(measured: Document) -> str:
    summary, interval = measured["accuracy"], measured["accuracy_pooled_over_seeds"]
    spread = "" if summary["sd"] is None else f" ± {100 * summary['sd']:.1f}"
    return f"{100 * summary['mean']:.1f}{spread} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _count(share: Document) -> str:
    return f"{share['count']} of {share['of']}"


def _of(share: Share) -> str:
    return f"{share.count}/{share.of}"


def _interval_share(share: Share) -> str:
    measured = share.measured
    return f"{100 * measured.value:.1f} [{100 * measured.low:.1f}, {100 * measured.high:.1f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _change(value: float | None) -> str:
    if value is None:
        return "undefined (constant logit)"
    return f"{value:.1e}" if value < 0.01 else f"{value:.2f}"


def _joined(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)
