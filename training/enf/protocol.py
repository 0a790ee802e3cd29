"""The comparison: every model on the same hearts, unturned and turned, for several seeds; one outcome file each.

A heart is turned where the scanner would have: the stored images of the whole stack, before anything is located. Small
angles and shifts are drift of the crop. Each outcome is written when it is known, so that a run resumes.

Source: the protocol of Wiers et al., MIDL 2026 (class-balanced 275 / 60 / 60 hearts, mid slice at end diastole and end
systole, test images turned by 90, 180 and 270 degrees), with the same hearts before and after.
"""

from __future__ import annotations

import hashlib
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from engines.errors import Refusal
from engines.preprocess.cmr import prepare_cmr
from engines.preprocess.spec import CmrSpec
from engines.records import CineStack
from training.data.sources.cmr_studies import CmrStudies
from training.data.splits import balanced_split
from training.enf.baselines import BaselineConfig, Classifier, ResNet50, ResNet50C4, ResNet50Rotated, SegmentationEf
from training.enf.config import EnfRun
from training.enf.enf_classifier import EnfClassifier
from training.enf.hearts import Refused, phantom_studies, prepared_pairs, turned_pairs, turned_stack
from training.enf.outcome import ModelOutcome, Turned, made_from_of, read_outcome, write_outcome
from training.enf.pairs import Pairs

Progress = Callable[[str], None]
SPARE, SPARE_LEAST = 1.03, 4
"""More studies than the split needs are prepared, because some may be refused."""

ANGLES_DEG = (5.0, 15.0, 45.0)
SHIFTS_PX = (2, 5, 10)
TIMED_STUDIES = 5
_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is compared on what.

    Args:
        run: recipe of the field; its task and preprocessing hold for all models.
        sizes: hearts of training, validation and test.
        seeds: each draws hearts (phantoms) or a split (a data set) of its own, and weights.
        baseline: how the ResNet50s are trained.
        studies: of a seed; ``phantoms_of`` or the same data set for all.
        workers: processes that read studies.
        device: of the field, such as ``cuda``.
    """

    run: EnfRun
    sizes: tuple[int, int, int]
    seeds: tuple[int, ...]
    baseline: BaselineConfig
    studies: Callable[[int], CmrStudies]
    workers: int
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All outcomes, seed by seed, and the studies that could not be used, by seed."""

    outcomes: list[ModelOutcome]
    refused: dict[int, tuple[Refused, ...]]


@dataclass(frozen=True, kw_only=True)
class SeedHearts:
    """The hearts of one seed; ``turned`` holds the test hearts after 1, 2 and 3 quarter turns of their stacks."""

    seed: int
    train: Pairs
    validation: Pairs
    test: Pairs
    turned: tuple[Pairs, Pairs, Pairs]
    refused: tuple[Refused, ...]

    @property
    def sha256(self) -> str:
        """Digest of all hearts, turned ones included."""
        parts = (self.train, self.validation, self.test, *self.turned)
        return hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()


def phantoms_of(run: EnfRun, sizes: tuple[int, int, int]) -> Callable[[int], CmrStudies]:
    """Return digital hearts, another set for each seed, half of them positive."""
    count = 2 * (round(SPARE * sum(sizes) / 2) + SPARE_LEAST)
    threshold = run.task.threshold_percent
    return lambda seed: phantom_studies(run.data.seed + 1000 * (seed + 1), count, balanced_at_percent=threshold)


def seed_hearts(protocol: Protocol, seed: int, cache: Path) -> SeedHearts:
    """Prepare and split the hearts of a seed.

    Raises:
        ValueError: too few usable studies of a class, or a turned test heart was refused while the unturned was not.
    """
    studies, spec, workers = protocol.studies(seed), protocol.run.preprocess, protocol.workers
    pairs, refused = prepared_pairs(studies, studies.keys, spec, cache, workers=workers)
    threshold = protocol.run.task.threshold_percent
    rows = balanced_split(pairs.keys, pairs.lvef_percent, threshold_percent=threshold, sizes=protocol.sizes, seed=seed)
    train, validation, test = (pairs.subset(part) for part in rows)
    found = turned_pairs(studies, test.keys, spec, cache, turns=(1, 2, 3), workers=workers)
    one, two, three = (_all_usable(each, turns) for turns, each in enumerate(found, start=1))
    return SeedHearts(
        seed=seed, train=train, validation=validation, test=test, turned=(one, two, three), refused=refused
    )


def _all_usable(found: tuple[Pairs, tuple[Refused, ...]], turns: int) -> Pairs:
    pairs, refused = found
    if refused:
        msg = f"{len(refused)} test hearts are refused after {90 * turns} degrees ({refused[0].reason}) and were not before"
        raise ValueError(msg)
    return pairs


def compare(protocol: Protocol, out: Path, segmentation: SegmentationEf | None, progress: Progress) -> Compared:
    """Run what is missing and return everything.

    Args:
        protocol: what on what.
        out: folder of outcomes and weights.
        segmentation: trained; None leaves that row out.
        progress: is told what is done.
    """
    outcomes: list[ModelOutcome] = []
    refused = {}
    for seed in protocol.seeds:
        hearts = seed_hearts(protocol, seed, out / "cache")
        parts = "/".join(str(len(part)) for part in (hearts.train, hearts.validation, hearts.test))
        progress(f"seed {seed}: {parts} hearts, {len(hearts.refused)} refused")
        outcomes += _of_seed(protocol, hearts, out, segmentation, progress)
        refused[seed] = hearts.refused
    return Compared(outcomes=outcomes, refused=refused)


def _of_seed(
    protocol: Protocol, hearts: SeedHearts, out: Path, segmentation: SegmentationEf | None, progress: Progress
) -> list[ModelOutcome]:
    studies, seed, threshold = protocol.studies(hearts.seed), hearts.seed, protocol.run.task.threshold_percent
    outcomes = []
    for model in _models(protocol, out, seed):
        compared = partial(_compared, model, studies, hearts, threshold, out, progress)
        outcomes.append(_once(out, seed, model, hearts, compared))
    if segmentation is not None:
        make = partial(_segmented, segmentation, studies, hearts, threshold)
        outcomes.append(_once(out, seed, segmentation, hearts, make))
    return outcomes


def _stem(name: str, seed: int) -> str:
    return f"seed-{seed}-{name.replace(' ', '-').lower()}"


def _models(protocol: Protocol, out: Path, seed: int) -> Sequence[Classifier]:
    plain = ResNet50(protocol.baseline)
    run = replace(protocol.run, seed=protocol.run.seed + 100 * seed)
    field = EnfClassifier(run, out / f"seed-{seed}-enf", protocol.device)
    return field, plain, ResNet50C4(plain), ResNet50Rotated(protocol.baseline)


class Competitor(typing.Protocol):
    """What names an outcome: a model and what decides its answers."""

    name: str

    @property
    def settings(self) -> str:
        """Everything but the hearts and the seed that decides the answers."""


def _once(
    out: Path, seed: int, model: Competitor, hearts: SeedHearts, make: Callable[[str], ModelOutcome]
) -> ModelOutcome:
    """Read the outcome of these very hearts and settings, or make it; what lies there of others is made again."""
    file = out / f"{_stem(model.name, seed)}.json"
    stated = repr((model.name, seed, model.settings, hearts.sha256, ANGLES_DEG, SHIFTS_PX))
    made_from = hashlib.sha256(stated.encode()).hexdigest()
    if file.exists() and made_from_of(file) == made_from:
        return read_outcome(file)
    out.mkdir(parents=True, exist_ok=True)
    write_outcome(file, make(made_from))
    return read_outcome(file)


def _compared(  # noqa: PLR0913, PLR0917 - a model, its hearts, the task, and where it goes
    model: Classifier,
    studies: CmrStudies,
    hearts: SeedHearts,
    threshold_percent: float,
    out: Path,
    progress: Progress,
    made_from: str,
) -> ModelOutcome:
    weights = out / f"{_stem(model.name, hearts.seed)}.safetensors"
    if isinstance(model, ResNet50) and weights.exists():
        model.load(weights)
    model.fit(hearts.train, hearts.validation, seed=hearts.seed, progress=progress)
    if isinstance(model, ResNet50):
        model.save(weights)
    return ModelOutcome(
        model=model.name,
        seed=hearts.seed,
        made_from=made_from,
        validation_logits=model.logits(hearts.validation.views(np.arange(len(hearts.validation)))),
        validation_labels=hearts.validation.labels(threshold_percent),
        test_labels=hearts.test.labels(threshold_percent),
        test_logits=model.logits(hearts.test.views(np.arange(len(hearts.test)))),
        turned=(*_quarter_turns(model, hearts), *_drift(model, hearts.test)),
        seconds={"train": model.training_s, "per_study": _per_study_s(studies, hearts.test, partial(_whole, model))},
    )


def _whole(model: Classifier, spec: CmrSpec, stack: CineStack) -> NDArray[np.float64]:
    """From the stack to the answer."""
    return model.logits(prepare_cmr(stack, spec).arrays["image"])


def _per_study_s(
    studies: CmrStudies, test: Pairs, answer: Callable[[CmrSpec, CineStack], NDArray[np.float64]]
) -> float:
    """Median seconds from a decoded stack to the answer, one study after the other; the first is not counted."""
    seconds = []
    for key in test.keys[: TIMED_STUDIES + 1]:
        stack = studies.read(key).stack
        started = time.perf_counter()
        answer(test.spec, stack)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:] or seconds))


def _quarter_turns(model: Classifier, hearts: SeedHearts) -> tuple[Turned, ...]:
    rows = np.arange(len(hearts.test))
    before = hearts.test.views(rows)
    found = []
    for turns, pairs in enumerate(hearts.turned, start=1):
        images = pairs.views(rows)
        # A harness that forgets to turn finds every model invariant.
        if images.shape != before.shape or np.allclose(images, before, atol=1e-3):
            msg = f"the images turned by {90 * turns} degrees equal the unturned ones"
            raise AssertionError(msg)
        found.append(
            Turned(name=f"{90 * turns} degrees", kind="quarter", amount=str(90 * turns), logits=model.logits(images))
        )
    return tuple(found)


def _drift(model: Classifier, test: Pairs) -> tuple[Turned, ...]:
    rows = np.arange(len(test))
    turned = [
        Turned(
            name=f"{angle:g} degrees", kind="angle", amount=f"{angle:g}", logits=model.logits(test.views(rows, angle))
        )
        for angle in ANGLES_DEG
    ]
    shifted = [
        Turned(
            name=f"{pixels} px {direction}",
            kind="shift",
            amount=str(pixels),
            logits=model.logits(test.views(rows, shift_px=(pixels * down, pixels * right))),
        )
        for pixels in SHIFTS_PX
        for direction, down, right in (("down", 1, 0), ("right", 0, 1))
    ]
    return (*turned, *shifted)


def _segmented(
    model: SegmentationEf, studies: CmrStudies, hearts: SeedHearts, threshold_percent: float, made_from: str
) -> ModelOutcome:
    validation = np.array([_stack_logits(model, studies, key, (0,))[0] for key in hearts.validation.keys])
    test = np.array([_stack_logits(model, studies, key, (0, 1, 2, 3)) for key in hearts.test.keys])  # [N, 4]
    per_study = _per_study_s(studies, hearts.test, lambda _spec, stack: model.logits_of_stacks([stack]))
    turned = tuple(
        Turned(name=f"{90 * turns} degrees", kind="quarter", amount=str(90 * turns), logits=_decided(test[:, turns]))
        for turns in (1, 2, 3)
    )
    without = int(np.isnan(test[:, 0]).sum())
    notes = (f"{model.name} reads the whole stack; no cavity was found in {without} test hearts: decided against.",)
    return ModelOutcome(
        model=model.name,
        seed=hearts.seed,
        made_from=made_from,
        validation_logits=_decided(validation),
        validation_labels=hearts.validation.labels(threshold_percent),
        test_labels=hearts.test.labels(threshold_percent),
        test_logits=_decided(test[:, 0]),
        turned=turned,
        seconds={"per_study": per_study},
        notes=notes,
    )


def _stack_logits(model: SegmentationEf, studies: CmrStudies, key: str, turns: Sequence[int]) -> list[float]:
    """Percentage points below the threshold after each number of quarter turns; NaN without a cavity or a heart."""
    stack = studies.read(key).stack
    found = []
    for each in turns:
        try:
            found.append(float(model.logits_of_stacks([turned_stack(stack, each)])[0]))
        except Refusal:
            found.append(np.nan)
    return found


def _decided(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """An ejection fraction that could not be measured is no positive decision."""
    return np.where(np.isnan(values), -1e-6, values)
