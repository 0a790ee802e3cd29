"""``purkinje-train evaluate enf``: the whole comparison as one command, its table, its numbers and its pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.config import load_recipe
from training.data.sources.cmr_studies import CmrOptions, open_cmr_studies
from training.enf.baselines import BaselineConfig, ResNet50, SegmentationEf
from training.enf.config import EnfRun
from training.enf.dicom_path import DicomTurns, dicom_turns
from training.enf.enf_classifier import EnfClassifier
from training.enf.expert_check import check_against_experts
from training.enf.hearts import Refused
from training.enf.measurements import Comparison, document
from training.enf.occlusion import agreement
from training.enf.pictures import draw_pictures
from training.enf.protocol import Protocol, SeedHearts, compare, phantoms_of, seed_hearts
from training.enf.requirements import as_markdown, as_rows, requirements
from training.enf.segmentation import SegmentationConfig, phantom_segmentation
from training.enf.table import markdown

Progress = Callable[[str], None]
_DICOM_SEED = 60_000
_COMPARED_VIEWS = 4
"""Most views of a training heart in the comparison, where every seed fits its own; a release takes all of the recipe."""
_SEEN_SEEDS = {0, 1}
"""Seeds of the phantoms whose hearts had a part in choices the numbers depend on."""
_PHANTOMS = "Trained and tested on digital phantoms. Not for clinical use."
_PATIENTS = "Trained and tested on a data set of patients by a research protocol. Not for clinical use."


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What the command was asked for.

    Args:
        recipe: of the field.
        data: folder of a data set, or None for digital phantoms.
        cmr: how a data set folder is read.
        out: folder of everything that is kept between runs.
        docs: folder that receives table, numbers and pictures; None writes them below ``out`` only.
        sizes: hearts of training, validation and test.
        seeds: how many.
        first_seed: the first of them; the others follow.
        dicom_studies: phantom studies written as DICOM four times each.
        segmentation_hearts: phantoms the segmentation is trained on; 0 leaves it out.
        contours: folder of contoured stacks to check the segmentation with, or None.
        workers: processes that read studies.
        device: of the field, such as ``cuda``.
        command: as it stands in the table.
    """

    recipe: str
    data: Path | None
    cmr: CmrOptions
    out: Path
    docs: Path | None
    sizes: tuple[int, int, int]
    seeds: int
    first_seed: int
    dicom_studies: int
    segmentation_hearts: int
    contours: Path | None
    workers: int
    command: str
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Study:
    """The page with all tables, and whether everything holds that must."""

    table: str
    holds: bool


def run_study(options: StudyOptions, progress: Progress) -> Study:
    """Run what is missing, write table, numbers and pictures, and return the table.

    Raises:
        ValueError: the recipe is no field, the data set folder is broken or too small.
    """
    protocol = _protocol(options)
    network = _segmentation(options, protocol.run, progress)
    segmentation = (
        None
        if network is None
        else SegmentationEf(network, protocol.run.preprocess, protocol.run.task.threshold_percent)
    )
    compared = compare(protocol, options.out, segmentation, progress)
    first = _first_models(protocol, options, progress)
    further = _further(options, protocol.run, first, network) | {"refused": refusals(compared.refused)}
    measured = document(compared.outcomes, _comparison(options, protocol))
    found = requirements(measured, further, phantoms=options.data is None)
    table = "\n".join([markdown(measured), as_markdown(found), _prose(further)])
    numbers = measured | {"further": further, "requirements": as_rows(found)}
    for folder in filter(None, (options.out, options.docs)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "enf.md").write_text(table, encoding="utf-8")
        text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "enf.json").write_text(text + "\n", encoding="utf-8")
        draw_pictures(first.field, first.hearts, compared.outcomes, folder / "enf", first.models)
    return Study(table=table, holds=all(each.met for each in found))


def refusals(refused: Mapping[int, Sequence[Refused]]) -> dict[str, dict[str, int]]:
    """Return how many studies of each seed could not be used, by reason code; they are in no part of the comparison."""
    return {str(seed): dict(sorted(Counter(each.code for each in found).items())) for seed, found in refused.items()}


@dataclass(frozen=True, kw_only=True)
class FirstSeed:
    """Hearts and trained models of the first seed, for the DICOM way and the pictures."""

    hearts: SeedHearts
    field: EnfClassifier
    models: tuple[EnfClassifier, ResNet50]


def _protocol(options: StudyOptions) -> Protocol:
    run = load_recipe(options.recipe)
    if not isinstance(run, EnfRun):
        msg = f"{options.recipe} is no recipe of an equivariant neural field; take enf_small or enf_published"
        raise ValueError(msg)  # noqa: TRY004 - a wrong name, not a wrong type
    views = min(run.classifier.views, _COMPARED_VIEWS)
    # All models learn from the same targets.
    run = replace(run, classifier=replace(run.classifier, views=views, lvef_weight=0.0))
    if options.data is None:
        studies = phantoms_of(run, options.sizes)
    else:
        opened = open_cmr_studies(options.data, options.cmr)
        studies = lambda _seed: opened  # noqa: E731 - the same data set for every seed
    return Protocol(
        run=run,
        sizes=options.sizes,
        seeds=tuple(range(options.first_seed, options.first_seed + options.seeds)),
        baseline=BaselineConfig(task=run.task),
        studies=studies,
        workers=options.workers,
        device=options.device,
    )


def _segmentation(options: StudyOptions, run: EnfRun, progress: Progress) -> nn.Module | None:
    if options.segmentation_hearts == 0:
        return None
    config = SegmentationConfig(spec=run.preprocess, subjects=options.segmentation_hearts)
    return phantom_segmentation(config, options.out / "segmentation", progress)


def _first_models(protocol: Protocol, options: StudyOptions, progress: Progress) -> FirstSeed:
    seed = protocol.seeds[0]
    hearts = seed_hearts(protocol, seed, options.out / "cache")
    run = replace(protocol.run, seed=protocol.run.seed + 100 * seed)
    field = EnfClassifier(run, options.out / f"seed-{seed}-enf", options.device)
    field.fit(hearts.train, hearts.validation, seed=seed, progress=progress)
    plain = ResNet50(protocol.baseline)
    plain.load(options.out / f"seed-{seed}-resnet50.safetensors")
    return FirstSeed(hearts=hearts, field=field, models=(field, plain))


def _further(options: StudyOptions, run: EnfRun, first: FirstSeed, network: nn.Module | None) -> dict[str, Any]:
    """Return what stands beside the table: the DICOM way, the reconstruction, the segmentation against experts."""
    test = first.hearts.test
    fitted = first.field.latents(test.views(np.arange(len(test))))
    contexts = torch.from_numpy(fitted.contexts_NV2LC[:, 0])
    found: dict[str, Any] = {
        "reconstruction_psnr_db": [float(value) for value in np.percentile(fitted.psnr_db, [5, 50, 95])],
        "shares": asdict(agreement(first.field.classifier, contexts, seed=0)),
    }
    if options.dicom_studies:
        turns = dicom_turns(first.models, run.preprocess, seed=_DICOM_SEED, count=options.dicom_studies)
        names = (first.field.name, first.models[1].name)
        found["dicom"] = {name: _of_turns(each) for name, each in zip(names, turns, strict=True)}
    if network is not None and options.contours is not None:
        found["experts"] = check_against_experts(network, options.contours, run.preprocess, options.out / "experts")
    return found


def _seen(seeds: Sequence[int]) -> str:
    """Say which seeds took part in choices that the numbers depend on."""
    seen = sorted(_SEEN_SEEDS & set(seeds))
    which = f"{' and '.join(map(str, seen))} stand here" if seen else "neither stands here"
    return (
        "How hard the phantoms are was set with ResNet50, before the field was looked at; how soft the targets near the "
        f"threshold are was chosen by the field's accuracy on the hearts of seeds 0 and 1: {which}"
    )


def _of_turns(turns: DicomTurns) -> dict[str, float]:
    return {
        "studies": len(turns.logits),
        "answered": turns.answered,
        "changed_answers": turns.changed,
        "largest_logit_change_sd": turns.largest_change_sd,
    }


def _prose(further: dict[str, Any]) -> str:
    low, middle, high = further["reconstruction_psnr_db"]
    shares = further["shares"]
    lines = [
        "## Beside the table",
        (
            f"- Reconstruction of the test images of the first seed: PSNR {middle:.1f} dB (5th to 95th percentile "
            f"{low:.1f} to {high:.1f})."
        ),
        (
            "- Shares of the latents in the logit, as the report draws them, against occlusion: median rank correlation "
            f"{shares['spearman']:.2f}; the {shares['removed']} heaviest latents taken away together lower the size of the "
            f"logit by {shares['top_removed']:.2f}, as many at random by {shares['random_removed']:.2f} (medians)."
        ),
    ]
    refused = {seed: sum(codes.values()) for seed, codes in further["refused"].items()}
    said = ", ".join(
        f"{count} (seed {seed}: {', '.join(further['refused'][seed]) or 'none'})" for seed, count in refused.items()
    )
    lines.append(f"- Studies that the preprocessing refused and that are in no part: {said}.")
    for model, turns in further.get("dicom", {}).items():
        lines.append(
            f"- {model}, {turns['studies']} new studies written as DICOM unturned and turned by 90, 180 and 270 degrees, "
            f"{turns['answered']} answered: {turns['changed_answers']} changed answers, largest change of the logit "
            f"{turns['largest_logit_change_sd']:.2e} sd."
        )
    for subject, numbers in further.get("experts", {}).items():
        said = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items())
        lines.append(f"- Segmentation against the expert contours of {subject}: {said}.")
    return "\n".join([lines[0], "", *lines[1:]]) + "\n"


def _comparison(options: StudyOptions, protocol: Protocol) -> Comparison:
    run = protocol.run
    phantoms = options.data is None
    return Comparison(
        data_set=protocol.studies(0).name
        if not phantoms
        else "digital phantoms, another set for each seed, half positive",
        train_hearts=options.sizes[0],
        condition=f"LVEF of at most {run.task.threshold_percent:g} %",
        command=options.command,
        caution=_PHANTOMS if phantoms else _PATIENTS,
        settings=(
            (
                f"ENF ({run.recipe}): {run.shape.latents} latents of {run.shape.context_width}, hidden {run.shape.hidden}, "
                f"{run.preprocess.size_px} px of {run.preprocess.pixel_spacing_mm:g} mm, {run.fit.steps} inner steps, "
                f"{run.meta.iterations} {run.meta.order} order iterations of {run.meta.batch_frames} frames, "
                f"{run.classifier.views} views a heart, {run.classifier.epochs} epochs"
            ),
            f"ResNet50: {protocol.baseline.optim.epochs} epochs, best validation accuracy, no pre-trained weights",
            *((_seen(protocol.seeds),) if phantoms else ()),
        ),
    )
