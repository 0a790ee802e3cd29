"""The comparison as Markdown, from the document made of its outcomes.

Pure functions; all numbers come from ``training.coreecho.measurements`` and are formatted here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from training.coreecho.evaluation import BINS
from training.coreecho.measurements import METRICS, Document


class Published(NamedTuple):
    """A row as printed by its authors, on the test videos of EchoNet-Dynamic."""

    method: str
    clips: str
    mae: str
    rmse: str
    r2: str


PUBLISHED = (
    Published("EchoNet-Dynamic R(2+1)D", "1 heartbeat", "4.22", "5.56", "79"),
    Published("EchoNet-Dynamic R(2+1)D", "full video", "4.05", "5.32", "81"),
    Published("UVT", "1 heartbeat", "5.32", "7.23", "64"),
    Published("UVT", "full video", "5.95", "8.38", "52"),
    Published("EchoGraphs", "1 heartbeat", "4.01", "5.36", "81"),
    Published("EchoGraphs", "full video", "4.23", "5.67", "79"),
    Published("EchoCoTr", "1 clip", "3.95", "5.17", "82"),
    Published("EchoCoTr, reproduced by the authors of CoReEcho", "3 clips", "3.98", "5.30", "81"),
    Published("CoReEcho", "3 clips", "3.90", "5.13", "82"),
)

_WORDS = {
    "in_domain": "in-domain, 3 fixed clips",
    "in_domain_all_clips": "in-domain, all clips",
    "out_of_domain": "out-of-domain, 3 fixed clips",
    "out_of_domain_all_clips": "out-of-domain, all clips",
}
_HEAD = ("method", "test set", "MAE", "RMSE", "R2", "slope", "Spearman of distances")
_LEGEND = """\
Errors in percentage points of ejection fraction, mean ± sample SD over the seeds; in brackets the 95 % percentile interval
of 10,000 draws of patients, of the first seed. Slope: of the answer on the truth, 1 is no shrinkage towards the mean. Spearman
of distances: rank correlation of the distance of two embeddings with the difference of their ejection fractions, over all
pairs of patients (1,000 draws)."""


def markdown(measured: Document) -> str:
    """Return the tables of a document as Markdown.

    Args:
        measured: from ``training.coreecho.measurements.document``, or read back from JSON.
    """
    parts = [_header(measured), _main(measured), _LEGEND, _bins(measured), _seeds(measured), _differences(measured)]
    parts += [_published(measured), _cost(measured), _notes(measured)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(measured: Document) -> str:
    comparison = measured["comparison"]
    sizes = " / ".join(str(size) for size in comparison["sizes"])
    lines = [
        f"Data set: {comparison['data_set']} ({comparison['caution']})",
        f"Videos for training / validation / test: {sizes}. Seeds: {', '.join(map(str, measured['seeds']))}.",
        f"Made again by: `{comparison['command']}`",
        *comparison["settings"],
    ]
    title = "# Ejection fraction from apical four-chamber clips: Rank-N-Contrast against L1 alone"
    return "\n".join([title, "", *(f"- {line}" for line in lines)])


def _main(measured: Document) -> str:
    rows = [
        [model["model"], _WORDS.get(domain, domain), *(_value(numbers, metric) for metric in METRICS)]
        for model in measured["models"]
        for domain, numbers in model["domains"].items()
    ]
    return markdown_table(_HEAD, rows)


def _value(numbers: Document, metric: str) -> str:
    """Mean and spread over seeds, and the interval of the first seed."""
    summary, first = numbers[metric], numbers["of_each_seed"][0][metric]
    digits = 2 if metric in {"mae", "rmse"} else 3
    spread = "" if summary["sd"] is None else f" ± {summary['sd']:.{digits}f}"
    return f"{summary['mean']:.{digits}f}{spread} [{first['low']:.{digits}f}, {first['high']:.{digits}f}]"


def _bins(measured: Document) -> str:
    head = ("method", "test set", *(f"MAE, LVEF {name} %" for name in BINS), "SD between clips, median")
    rows = [
        [
            model["model"],
            _WORDS.get(domain, domain),
            *(_mean(numbers["mae_by_bin"][name]) for name in BINS),
            _mean(numbers["clip_sd_median"]),
        ]
        for model in measured["models"]
        for domain, numbers in model["domains"].items()
    ]
    return "## By true ejection fraction\n\n" + markdown_table(head, rows)


def _mean(summary: Document) -> str:
    if summary["mean"] is None:
        return "no video"
    spread = "" if summary["sd"] is None else f" ± {summary['sd']:.2f}"
    return f"{summary['mean']:.2f}{spread}"


def _seeds(measured: Document) -> str:
    rows = [
        [model["model"], _WORDS.get(domain, domain), str(seed), _interval(each["mae"]), _interval(each["order"], 3)]
        for model in measured["models"]
        for domain, numbers in model["domains"].items()
        for seed, each in zip(model["seeds"], numbers["of_each_seed"], strict=True)
    ]
    return "## Each seed\n\n" + markdown_table(("method", "test set", "seed", "MAE", "Spearman of distances"), rows)


def _differences(measured: Document) -> str:
    if not measured["differences"]:
        return ""
    first = measured["models"][0]["model"]
    rows = [
        [
            each["less"],
            _WORDS.get(each["domain"], each["domain"]),
            str(each["seed"]),
            _interval(each["mae"]),
            _interval(each["order"], 3),
        ]
        for each in measured["differences"]
    ]
    words = (
        f"{first} less the other method, on the same draws of the same patients. Below 0 in MAE, above 0 in the order: "
        f"{first} is better."
    )
    head = ("less", "test set", "seed", "MAE", "Spearman of distances")
    return "## Differences\n\n" + words + "\n\n" + markdown_table(head, rows)


def _interval(found: Document, digits: int = 2) -> str:
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _published(measured: Document) -> str:
    ours = [
        [
            f"**ours: {model['model']}**",
            _WORDS.get(domain, domain),
            *(_plain(numbers, metric) for metric in ("mae", "rmse", "r2")),
        ]
        for model in measured["models"]
        for domain, numbers in model["domains"].items()
        if domain.startswith("in_domain")
    ]
    head = ("method", "clips", "MAE", "RMSE", "R2, %")
    words = (
        "The published rows are of the test videos of EchoNet-Dynamic (patients). Ours are of the data set named at the top: "
        "only where that is EchoNet-Dynamic are they to be compared."
    )
    return (
        "## Published numbers beside ours\n\n" + words + "\n\n" + markdown_table(head, [*map(list, PUBLISHED), *ours])
    )


def _plain(numbers: Document, metric: str) -> str:
    value = numbers[metric]["mean"]
    return f"{100 * value:.0f}" if metric == "r2" else f"{value:.2f}"


def _cost(measured: Document) -> str:
    rows = [[model["model"], f"{model['seconds']['mean']:.0f}"] for model in measured["models"]]
    return "## Cost\n\n" + markdown_table(("method", "training s, mean of seeds"), rows)


def _notes(measured: Document) -> str:
    lines = [f"- {model['model']}: {note}" for model in measured["models"] for note in model["notes"]]
    return "\n".join(["## Notes", "", *lines]) if lines else ""


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
