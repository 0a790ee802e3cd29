"""``purkinje-train evaluate segmentation``: the U-Net that measures stacks and checks the crop of the towers, as one command.

On digital phantoms its measurements are held against the truth, on a data set of patients against its tables, and with
contours of experts against those. A stack takes some seconds on one core; what was measured is kept, line by line, and not
measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import Refusal
from engines.records import CineStack, Modality
from training.data.heart_arrays import bare_code, source_digest
from training.data.sources.expert_contours import read_expert_study
from training.data.sources.paired_subjects import TARGETS, draw_patient, targets_of
from training.data.sources.ukbb_ecg import UkbbOptions
from training.data.worker_pool import worker_pool
from training.ecg_cmr.drawn_metrics import REGRESSION, as_json, measured, patient_weights, regression
from training.ecg_cmr.evaluation import DRAWS
from training.ecg_cmr.measured_stacks import CropCheck, Segmenter, StackRow, measure_stack, side_mm, write_rows
from training.ecg_cmr.preparation import cmr_volume_small, ecg_of_pairs
from training.ecg_cmr.segmentation_page import markdown
from training.ecg_cmr.ukbb_pairs import UkbbPairs, ukbb_pairs
from training.enf.expert_check import check_against_experts
from training.enf.segmentation import SegmentationConfig, phantom_segmentation
from training.phantoms.cmr import draw_scan, rendered_with_labels
from training.recipes import enf_small

Progress = Callable[[str], None]
Document = dict[str, Any]
Labels = NDArray[np.uint8]

NAME = "segmentation"
"""Of what is written."""
MEASURED = "measured.csv"
LEAST_MEASURED = 5
"""Fewest stacks that an agreement is stated of."""
_PHANTOMS = "Trained and tested on digital phantoms. Not for clinical use."
_PATIENTS = "Trained on digital phantoms, tested on a data set of patients. Not for clinical use."
_STREAM = 0x5EB
"""Sets these scans apart from those the network learns from."""
_PHASES = 16
_CODE = ("training/ecg_cmr/measured_stacks.py", "training/ecg_cmr/segmented_stack.py", "training/enf/segmentation.py")
"""Code that decides a row besides the preparation of the stack."""
_TOLD = 10
"""A word after so many stacks."""


class StackSource(Protocol):
    """Stacks to measure. It travels to other processes, so it holds settings and no open files."""

    @property
    def name(self) -> str:
        """In words."""

    @property
    def keys(self) -> Sequence[str]:
        """Name the patients."""

    def stated(self, number: int) -> Mapping[str, float]:
        """Return the targets that are known without measuring."""

    def read(self, number: int) -> tuple[CineStack, Labels | None]:
        """Return a stack, and the labels of a phantom.

        Raises:
            Refusal: the images cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class PhantomStacks:
    """Digital hearts that no training has seen, as a clinical scanner with few phases sees them.

    Args:
        seed: names the set.
        stacks: how many.
    """

    seed: int
    stacks: int

    @property
    def name(self) -> str:
        return f"digital phantoms, seed {self.seed}"

    @property
    def keys(self) -> Sequence[str]:
        return [f"phantom-{self.seed}-{number:06d}" for number in range(self.stacks)]

    def stated(self, number: int) -> Mapping[str, float]:
        return targets_of(draw_patient(self.seed, number, "standard"))

    def read(self, number: int) -> tuple[CineStack, Labels | None]:
        rng = np.random.default_rng([_STREAM, self.seed, number])
        scan = replace(draw_scan(rng), phases=_PHASES)
        return rendered_with_labels(draw_patient(self.seed, number, "standard").heart, scan, rng)


@dataclass(frozen=True, kw_only=True)
class UkbbStacks:
    """Participants with an ECG and a short-axis archive of one visit; keys are those of the ECG."""

    pairs: UkbbPairs = field(repr=False)

    @property
    def name(self) -> str:
        return self.pairs.name

    @property
    def keys(self) -> Sequence[str]:
        return [ecg for ecg, _ in self.pairs.studies]

    def stated(self, number: int) -> Mapping[str, float]:
        return {name: value for name, value in self.pairs.listed[number].targets.items() if name in TARGETS}

    def read(self, number: int) -> tuple[CineStack, Labels | None]:
        return self.pairs.load_cmr(self.pairs.studies[number][1]), None


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """What the command was asked for.

    Args:
        data: folder of UK Biobank, or None for digital phantoms.
        instance: UK Biobank: 2 is the first imaging visit, 3 the repeat.
        out: folder of everything that is kept between runs.
        docs: folder that receives page and numbers; None writes them below ``out`` only.
        stacks: phantoms that are measured.
        seed: of them.
        training_hearts: phantoms the network is trained on.
        contours: folder of contoured stacks to check the network with, or None.
        workers: processes that measure.
        command: as it stands on the page.
    """

    data: Path | None
    instance: int
    out: Path
    docs: Path | None
    stacks: int
    seed: int
    training_hearts: int
    contours: Path | None
    workers: int
    command: str


def run_segmentation_study(options: SegmentationOptions, progress: Progress) -> str:
    """Train and measure what is missing, write page, numbers and the table of the stacks, and return the page.

    Raises:
        ValueError: a folder holds another run, the data set folder is broken, or hardly a stack could be measured.
        FileNotFoundError: no contours in their folder.
    """
    source = _source(options)  # before the training: a broken folder is told at once
    spec = enf_small.preprocess(size_px=64)
    config = SegmentationConfig(spec=spec, subjects=options.training_hearts)
    network = phantom_segmentation(config, options.out / "network", progress)
    by = Segmenter(network=network, spec=spec, volume=cmr_volume_small())
    experts = _experts(by, options)
    rows = measured_rows(source, by, options, progress)
    write_rows(rows, options.out / MEASURED)
    found = document(rows, source.name, options) | {"experts": experts}
    page = markdown(found)
    for folder in filter(None, (options.out, options.docs)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{NAME}.md").write_text(page, encoding="utf-8")
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / f"{NAME}.json").write_text(text + "\n", encoding="utf-8")
    return page


def _experts(by: Segmenter, options: SegmentationOptions) -> dict[str, dict[str, float | None]]:
    """Overlap and ejection fractions by subject; None where a stack was refused."""
    if options.contours is None:
        return {}
    checked = check_against_experts(by.network, options.contours, by.spec, options.out / "experts")
    found: dict[str, dict[str, float | None]] = {}
    for name, numbers in checked.items():
        row = measure_stack(name, read_expert_study(options.contours / name).stack, by, stated={})
        found[name] = {**numbers, "measured_lvef_percent": row.measured.get("lvef")}
    return found


def _source(options: SegmentationOptions) -> StackSource:
    if options.data is None:
        return PhantomStacks(seed=options.seed, stacks=options.stacks)
    chosen = UkbbOptions(instance=options.instance, outcomes=False, quantities=False)
    return UkbbStacks(pairs=ukbb_pairs(options.data, ecg=ecg_of_pairs(), cmr=cmr_volume_small(), options=chosen))


def measured_rows(
    source: StackSource, by: Segmenter, options: SegmentationOptions, progress: Progress
) -> list[StackRow]:
    """Return the row of every stack, measuring those that the journal below ``options.out`` lacks."""
    options.out.mkdir(parents=True, exist_ok=True)
    journal = options.out / f"stacks-{_digest(source, by)}.jsonl"
    known = {row.key: row for row in _read(journal)}
    missing = [number for number, key in enumerate(source.keys) if key not in known]
    progress(f"{source.name}: {len(missing)} of {len(source.keys)} stacks to measure")
    with journal.open("a", encoding="utf-8") as file:
        for done, row in enumerate(_measured(partial(_row, source, by), missing, options.workers), start=1):
            known[row.key] = row
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            if done % _TOLD == 0 or done == len(missing):
                progress(f"{source.name}: {done} of {len(missing)} measured")
    # What a data set states is asked anew: its tables may have grown since.
    return [replace(known[key], stated=dict(source.stated(number))) for number, key in enumerate(source.keys)]


def _digest(source: StackSource, by: Segmenter) -> str:
    """Of what decides the rows: data, network, settings and the code that measures, blind to comments and layout."""
    root = Path(__file__).parents[2]
    settings = [source.name, by.spec.model_dump(mode="json"), by.volume.model_dump(mode="json")]
    code = [source_digest(Modality.CMR), *(bare_code(root / name) for name in _CODE)]
    digest = hashlib.sha256(json.dumps([*settings, *code]).encode())
    for name, value in sorted(by.network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(journal: Path) -> Iterator[StackRow]:
    """Rows of a run before; a line that was cut off is measured again."""
    if not journal.exists():
        return
    whole = journal.read_bytes().rpartition(b"\n")
    journal.write_bytes(whole[0] + whole[1])
    for line in whole[0].decode().splitlines():
        values = json.loads(line)
        crops = {name: CropCheck(**values[name]) if values[name] else None for name in ("crop", "true_crop")}
        yield StackRow(**(values | crops))


def _measured(row: Callable[[int], StackRow], numbers: Sequence[int], workers: int) -> Iterator[StackRow]:
    if min(workers, len(numbers)) <= 1:
        yield from map(row, numbers)
        return
    with worker_pool(workers) as pool:
        yield from pool.imap(row, numbers)


def _row(source: StackSource, by: Segmenter, number: int) -> StackRow:
    torch.set_num_threads(1)
    key, stated = source.keys[number], dict(source.stated(number))
    try:
        stack, labels_SPHW = source.read(number)
    except Refusal as refusal:
        return StackRow(key=key, stated=stated, code=refusal.code.value, reason=refusal.reason)
    return measure_stack(key, stack, by, stated=stated, labels_SPHW=labels_SPHW)


def document(rows: Sequence[StackRow], name: str, options: SegmentationOptions, *, draws: int = DRAWS) -> Document:
    """Return every number of the page; no key of a patient is in it.

    Raises:
        ValueError: fewer than ``LEAST_MEASURED`` stacks were measured.
    """
    kept = [row for row in rows if row.measured]
    if len(kept) < LEAST_MEASURED:
        reasons = "; ".join(sorted({row.reason for row in rows if row.reason})[:3]) or "none was there"
        raise ValueError(f"{len(kept)} of {len(rows)} stacks could be measured, {LEAST_MEASURED} expected: {reasons}")
    return {
        "data_set": name,
        "caution": _PHANTOMS if options.data is None else _PATIENTS,
        "command": options.command,
        "training_hearts": options.training_hearts,
        "crop_mm": side_mm(cmr_volume_small()),
        "stacks": len(rows),
        "refused": dict(sorted(Counter(row.code for row in rows if row.code).items())),
        "agreement": {target: found for target in TARGETS if (found := _agreement(kept, target, draws)) is not None},
        "crop": {
            "network": _crops([row.crop for row in kept]),
            "truth": _crops([row.true_crop for row in kept]),
        },
    }


def _agreement(rows: Sequence[StackRow], target: str, draws: int) -> Document | None:
    """How a target by segmentation agrees with the stated one; None where hardly a stack has both."""
    both = [row for row in rows if target in row.stated and target in row.measured]
    if len(both) < LEAST_MEASURED:
        return None
    truth, given = (np.array([getattr(row, side)[target] for row in both]) for side in ("stated", "measured"))
    drawn = regression(truth, given, patient_weights([row.key for row in both], draws=draws))
    return {"stacks": len(both), **{name: as_json(measured(drawn[name])) for name in REGRESSION}}


def _crops(found: Sequence[CropCheck | None]) -> Document | None:
    """How the crops of all stacks hold their hearts."""
    checks = [each for each in found if each is not None]
    if not checks:
        return None
    inside = np.array([each.inside_share for each in checks])
    margin = np.array([each.margin_mm for each in checks])
    return {
        "stacks": len(checks),
        "whole": int((inside == 1.0).sum()),
        "least_inside_share": round(float(inside.min()), 4),
        "margin_mm": [round(float(value), 1) for value in np.percentile(margin, [0, 5, 50])],
    }
