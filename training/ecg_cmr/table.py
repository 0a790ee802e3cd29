"""The study as Markdown, from the document made of its outcomes.

Pure functions; all numbers come from ``training.ecg_cmr.measurements`` and are formatted here, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from training.coreecho.table import markdown_table
from training.ecg_cmr.evaluation import AVERAGE
from training.ecg_cmr.outcome import DEMOGRAPHICS, MODELS, VARIANTS

Document = Mapping[str, Any]


class Published(NamedTuple):
    """A row as its authors state it."""

    work: str
    data: str
    result: str


PUBLISHED = (
    Published(
        "Bujalance Gomez 2025, triplet (figure 2)",
        "UK Biobank",
        "average R2 0.605 over CMR features; list not published",
    ),
    Published(
        "Alvarez-Florez 2026, arXiv 2602.12883",
        "more than 34,000 pairs",
        "functional parameters +9.2 %, outcomes +0.7 %",
    ),
    Published("Turgut 2025", "40,044 of UK Biobank", "risk prediction up to +12.19 %, phenotypes up to +27.59 %"),
    Published("PTACL 2025", "27,951 pairs", "retrieval, volumes and EF better than global contrastive alone"),
    Published(
        "CardioNets 2024/25",
        "UK Biobank 41,519; MIMIC-IV-ECG 501,172",
        "R2 +24.8 %, cardiomyopathy AUC +39.3 % (relative)",
    ),
    Published(
        "LVM-AI 2021, ECG and age, sex, BMI",
        "4,903 of UK Biobank; 1,371 of MGB",
        "LV mass r 0.79 and 0.60; LVH c 0.653 and 0.621",
    ),
    Published("ML4Hseg, from CMR itself", "891", "LV mass r 0.864, MAE 10.4 g"),
    Published(
        "Naderi 2025, LVH of median ECG and clinical data", "48,835 of UK Biobank; SHIP", "AUROC 0.97; 0.78 external"
    ),
    Published(
        "EchoNext-Mini", "100,000 ECGs of 36,286 patients", "structural heart disease AUROC 0.820; full EchoNext 0.852"
    ),
    Published("LVSD, Leipzig", "42,291", "AUROC 0.88 external; lower in AF, tachycardia, wide QRS"),
    Published("Yagi 2022", "221,846 ECGs of 4 hospitals", "AUROC 0.913 and 0.914 internal, 0.849 to 0.877 external"),
    Published("xresnet1d101 on PTB-XL", "fold 10", "macro AUROC 0.925 all, 0.937 diagnostic, 0.957 rhythm"),
)
_PROBES = {"linear": "linear probe", "mlp": "MLP probe", "fine_tune": "full fine-tuning"}
_LEGEND = """\
Mean over the seeds ± sample SD between them; in brackets the 95 % percentile interval of {draws:,} drawings of patients, all ECGs
of a patient together. R2 is per target on patients no part of the model saw, and the average is over exactly the targets listed
above. Slope: of the answer on the truth, 1 is no shrinkage towards the mean. Bias and limits of agreement (1.96 SD): answer less
truth. AUROC and AUPRC stand at the prevalence of the test set, which is not balanced."""


def markdown(measured: Document) -> str:
    """Return what a study comes to as Markdown; ``details`` has the rest.

    Args:
        measured: from ``training.ecg_cmr.measurements.document``, or read back from JSON.

    Raises:
        ValueError: the document has no baseline of demographics only.
    """
    _require_baseline(measured)
    parts = [_header(measured), _figure(measured), _LEGEND.format(draws=measured["draws"])]
    parts += [_retrieval(measured), _order(measured), _seeds(measured), _published()]
    return _joined(parts)


def details(measured: Document) -> str:
    """Return every target, condition, difference and subgroup as Markdown, and what the probes chose."""
    title = "# What the heart looks like, read from a twelve-lead ECG: details"
    caution = f"{measured['comparison']['caution']} Patients, targets and letters as on the page of the study."
    parts = [title, caution, _targets(measured), _conditions(measured), _differences(measured)]
    return _joined([*parts, _subgroups(measured), _notes(measured)])


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def section(title: str, measured: Document) -> str:
    """Return data, figure and retrieval of a document as a section of another page."""
    comparison = measured["comparison"]
    sizes = " / ".join(str(size) for size in comparison["sizes"])
    about = f"{comparison['data_set']}. Patients for training / validation / test: {sizes}."
    retrieval = _retrieval(measured).replace("## Retrieval", "### Retrieval")
    return "\n\n".join(part for part in (f"## {title}", about, _figure(measured), retrieval) if part) + "\n"


def _require_baseline(measured: Document) -> None:
    if DEMOGRAPHICS not in {model["model"] for model in measured["models"]}:
        raise ValueError("no baseline of demographics only in the document; no table is made without it")


def _header(measured: Document) -> str:
    comparison = measured["comparison"]
    sizes = " / ".join(str(size) for size in comparison["sizes"])
    lines = [
        f"Data set: {comparison['data_set']} ({comparison['caution']})",
        f"Patients for training / validation / test: {sizes}. Seeds: {', '.join(map(str, measured['seeds']))}.",
        f"Targets of the average R2 ({len(measured['targets'])}): {', '.join(measured['targets'])}",
        f"Columns of the baseline: {', '.join(measured['demographics'])}",
        f"Made again by: `{comparison['command']}`",
        *comparison["settings"],
    ]
    return "\n".join(["# What the heart looks like, read from a twelve-lead ECG", "", *(f"- {line}" for line in lines)])


def _figure(measured: Document) -> str:
    """The five variants and the baseline in one table, beside the published average."""
    head = ("model", "read off by", "average R2", "LVEF R2", "LVEF MAE", "mean AUROC", "training s")
    rows = [
        [
            _words(model),
            _PROBES[model["probe"]],
            _value(model["numbers"].get(AVERAGE, {}).get("r2")),
            _value(model["numbers"].get("lvef", {}).get("r2")),
            _value(model["numbers"].get("lvef", {}).get("mae"), 2),
            _mean_auroc(model, measured["conditions"]),
            f"{model['seconds']:.0f}",
        ]
        for model in measured["models"]
    ]
    rows.append(["published: triplet, UK Biobank patients", "not stated", "0.605", "", "", "", ""])
    return markdown_table(head, rows)


def _words(model: Document) -> str:
    words = MODELS[model["model"]]
    return f"**{words}**" if model["model"] in VARIANTS else words


def _mean_auroc(model: Document, conditions: Sequence[str]) -> str:
    found = [model["numbers"][name]["auroc"]["value"] for name in conditions if name in model["numbers"]]
    known = [value for value in found if value is not None]
    return f"{sum(known) / len(known):.3f} ({len(known)} conditions)" if known else "none"


def _value(found: Document | None, digits: int = 3) -> str:
    """Mean, spread over seeds and interval; words where there is no number."""
    if found is None or found["value"] is None:
        return "none"
    spread = "" if found.get("sd") is None else f" ± {found['sd']:.{digits}f}"
    return f"{found['value']:.{digits}f}{spread}{_interval(found, digits)}"


def _interval(found: Document, digits: int) -> str:
    if found["low"] is None or found["high"] is None:
        return ""
    return f" [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _each(measured: Document) -> Iterator[tuple[str, str, Document]]:
    """Words of model and probe, and the numbers."""
    for model in measured["models"]:
        yield MODELS[model["model"]], _PROBES[model["probe"]], model["numbers"]


def _targets(measured: Document) -> str:
    head = ("target", "model", "read off by", "R2", "Pearson", "MAE", "bias", "limits of agreement", "slope")
    rows = [
        [target, words, probe, *_regression(numbers[target])]
        for target in measured["targets"]
        for words, probe, numbers in _each(measured)
    ]
    return "## Each target\n\n" + markdown_table(head, rows) if rows else ""


def _regression(found: Document) -> list[str]:
    limits = " to ".join(
        "none" if found[name]["value"] is None else f"{found[name]['value']:.2f}" for name in ("loa_low", "loa_high")
    )
    accuracy = [_value(found["r2"]), _value(found["pearson"]), _value(found["mae"], 2)]
    return [*accuracy, _value(found["bias"], 2), limits, _value(found["slope"])]


def _conditions(measured: Document) -> str:
    head = ("condition", "model", "read off by", "AUROC", "AUPRC", "prevalence", "mean probability", "Brier")
    rows = [
        [condition, words, probe, *_classification(numbers[condition])]
        for condition in measured["conditions"]
        for words, probe, numbers in _each(measured)
    ]
    return "## Each condition\n\n" + markdown_table(head, rows) if rows else ""


def _classification(found: Document) -> list[str]:
    return [_value(found[name]) for name in ("auroc", "auprc", "prevalence", "mean_probability", "brier")]


def _retrieval(measured: Document) -> str:
    columns = ("ecg_to_cmr_top1", "ecg_to_cmr_top5", "cmr_to_ecg_top1", "cmr_to_ecg_top5", "chance_top1")
    head = ("model", "images by ECG, top 1", "top 5", "ECG by images, top 1", "top 5", "chance, top 1")
    found = {words: numbers["retrieval"] for words, _, numbers in _each(measured) if "retrieval" in numbers}
    rows = [[words, *(_value(numbers[name]) for name in columns)] for words, numbers in found.items()]
    return "## Retrieval across modalities\n\n" + markdown_table(head, rows) if rows else ""


def _order(measured: Document) -> str:
    rows = [
        [
            f"{each['of']} {each['metric']}",
            _PROBES[each["probe"]],
            str(place),
            VARIANTS[one["variant"]],
            _value(one),
            _share(one),
        ]
        for each in measured["order"]
        for place, one in enumerate(each["variants"], start=1)
    ]
    head = ("by", "read off by", "place", "variant", "value", "share of drawings above the next")
    return "## Order of the variants\n\n" + markdown_table(head, rows) if rows else ""


def _share(one: Document) -> str:
    return "" if one["above_next_share"] is None else f"{one['above_next_share']:.3f}"


def _differences(measured: Document) -> str:
    head = ("model", "less", "read off by", "of", "metric", "difference")
    rows = [
        [MODELS[each["model"]], MODELS[each["less"]], _PROBES[each["probe"]], name, metric, _value(value)]
        for each in measured["differences"]
        for name, metrics in each["numbers"].items()
        for metric, value in metrics.items()
    ]
    words = "On the same drawings of the same patients, mean over the seeds. Above 0: the first model is better."
    return f"## Differences\n\n{words}\n\n{markdown_table(head, rows)}" if rows else ""


def _subgroups(measured: Document) -> str:
    head = ("subgroup", "patients", "model", "read off by", "average R2", "LVEF R2", "LVEF MAE", "mean AUROC")
    rows = [
        [name, " / ".join(map(str, group["patients"])), MODELS[model["model"]], _PROBES[model["probe"]], *cells]
        for model in measured["models"]
        for name, group in model["subgroups"].items()
        for cells in [_of_subgroup(group, measured["conditions"])]
    ]
    return "## Subgroups\n\nPatients of each seed.\n\n" + markdown_table(head, rows) if rows else ""


def _of_subgroup(group: Document, conditions: Sequence[str]) -> list[str]:
    if "numbers" not in group:
        return ["too few"] * 4
    found = group["numbers"]
    lvef = found.get("lvef", {})
    values = [_value(found.get(AVERAGE, {}).get("r2")), _value(lvef.get("r2")), _value(lvef.get("mae"), 2)]
    return [*values, _mean_auroc(group, conditions)]


def _seeds(measured: Document) -> str:
    head = ("model", "read off by", "seed", "average R2", "LVEF R2")
    rows = [
        [
            MODELS[model["model"]],
            _PROBES[model["probe"]],
            str(seed),
            *(_value(numbers.get(name, {}).get("r2")) for name in (AVERAGE, "lvef")),
        ]
        for model in measured["models"]
        for seed, numbers in zip(model["seeds"], model["of_each_seed"], strict=True)
    ]
    return "## Each seed\n\n" + markdown_table(head, rows)


def _published() -> str:
    words = (
        "Other patients, other targets: only on UK Biobank, with the same targets, are ours to be compared with these."
    )
    return f"## Published numbers\n\n{words}\n\n" + markdown_table(("work", "data", "result"), PUBLISHED)


def _notes(measured: Document) -> str:
    lines = [
        f"- {MODELS[model['model']]}, {_PROBES[model['probe']]}: {words}"
        for model in measured["models"]
        for words in (*model["chosen"], *model["notes"])
    ]
    return "\n".join(["## Notes", "", *lines]) if lines else ""
