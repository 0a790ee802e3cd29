"""The page of ``segmentation_study``: numbers come from its document, here they become words.

Called by ``segmentation_study``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]

_UNITS = {"cardiac_output": "l/min", "lv_mass": "g", "lvef": "%", "rvef": "%"}
_WORDS = {"network": "the network, in a wider crop", "truth": "the phantom's labels"}


def markdown(found: Document) -> str:
    """Return the page."""
    lines = [
        "# Short-axis stacks measured by segmentation",
        "",
        f"- Data set: {found['data_set']} ({found['caution']})",
        f"- Network: a small U-Net trained on {found['training_hearts']} other phantoms; tissue averaged over four quarter turns",
        f"- Stacks: {found['stacks']}; refused: {_refused(found['refused'])}",
        f"- Made again by: `{found['command']}`",
        "",
        *_agreement_lines(found["agreement"]),
        "",
        "The base moves through the slices: where a step from muscle to the fat about an atrium is not seen, the atrium counts,",
        "most of all at end-systole, so volumes there come out high and ejection fractions low.",
        "",
        "## The crop that the towers see",
        "",
        f"It is {found['crop_mm']:g} mm wide, about the axis of the cavity that is traced in every slice and phase without a",
        "network (`engines/preprocess/cmr.py`), in training and in serving alike. Held against both ventricles and the muscle of",
        "the left at end-diastole, in all slices of the ventricle:",
        "",
        "| heart as seen by | stacks | whole heart inside | least share inside | margin: least, 5th percentile, median |",
        "| --- | --- | --- | --- | --- |",
        *(_crop_line(_WORDS[name], each) for name, each in found["crop"].items() if each is not None),
        *_expert_lines(found["experts"]),
    ]
    return "\n".join(lines) + "\n"


def _agreement_lines(agreement: Mapping[str, Document]) -> list[str]:
    if not agreement:
        return ["The data set states no quantity of enough stacks to compare with."]
    return [
        "| target | stacks | bias | limits of agreement | MAE | R2 |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_target_line(name, each) for name, each in agreement.items()),
        "",
        "Measured less stated, in the unit of the target; in brackets the 95 % percentile interval of 1,000 drawings of patients.",
    ]


def _refused(codes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in codes.items()) or "none"


def _target_line(name: str, each: Document) -> str:
    bias, mae, r2 = (each[metric] for metric in ("bias", "mae", "r2"))
    limits = f"{each['loa_low']['value']:+.1f} to {each['loa_high']['value']:+.1f}"
    said = f"{bias['value']:+.2f} [{bias['low']:+.2f}, {bias['high']:+.2f}] | {limits} | {mae['value']:.2f} | {r2['value']:.3f}"
    return f"| {name}, {_UNITS.get(name, 'ml')} | {each['stacks']} | {said} |"


def _crop_line(words: str, each: Document) -> str:
    least, fifth, median = each["margin_mm"]
    return (
        f"| {words} | {each['stacks']} | {each['whole']} | {each['least_inside_share']:.4f} | "
        f"{least:.1f}, {fifth:.1f}, {median:.1f} mm |"
    )


def _expert_lines(experts: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    if not experts:
        return []
    names = ("cavity_dice", "myocardium_dice", "expert_lvef_percent", "found_lvef_percent", "measured_lvef_percent")
    rows = [
        f"| {subject} | " + " | ".join(_number(each[name]) for name in names) + " |"
        for subject, each in experts.items()
    ]
    return [
        "",
        "## Against contours of experts",
        "",
        "| subject | Dice, cavity | Dice, muscle | LVEF %, expert | LVEF %, contoured images | LVEF %, whole stack |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


def _number(value: float | None) -> str:
    return "refused" if value is None else f"{value:.3g}"
