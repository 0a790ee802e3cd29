"""From a recipe of the field to a bundle: hearts, decoder, fits, classifier, calibration, one graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
import torch

from training.config import config_digest
from training.data.heart_arrays import REFUSED, HeartArrays
from training.data.splits import Split, split_hearts
from training.data.targets import COLUMNS, LVEF_CONDITIONS
from training.enf.config import EnfRun
from training.enf.enf_classifier import EnfClassifier
from training.enf.hearts import phantom_studies, prepared_pairs
from training.enf.pairs import Pairs
from training.evaluate import evaluate_bundle
from training.export import Release, export_bundle
from training.signature import input_spec

_BATCH_HEARTS = 4
_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class ReleaseHearts:
    """Hearts of a release; ``rows`` says where a usable heart stands among all, refused ones included."""

    pairs: Pairs
    rows: np.ndarray
    split: Split
    hearts: int

    def part(self, rows: np.ndarray) -> Pairs:
        """Return the usable hearts of one part."""
        return self.pairs.subset(np.flatnonzero(np.isin(self.rows, rows)))


def train_enf(run: EnfRun, out: Path, *, workers: int, threads: int) -> Path:
    """Train decoder and classifier below ``out``, or finish them; returns the folder."""
    folder = run_folder(run, out)
    _trained(run, _hearts(run, out, workers), folder, threads)
    return folder


def release_enf(run: EnfRun, out: Path, bundle: Path, *, workers: int, threads: int) -> Path:
    """Train where needed, then write the bundle; returns its folder."""
    hearts = _hearts(run, out, workers)
    model = _trained(run, hearts, run_folder(run, out), threads)
    release = Release(
        data=run.data,
        bundle=run.bundle,
        batch_size=_BATCH_HEARTS,
        condition=run.task.condition,
        metrics=_field_metrics(model, hearts),
    )
    return export_bundle(release, model.network, _arrays(hearts), hearts.split, bundle)


def evaluate_enf(run: EnfRun, out: Path, bundle: Path, *, workers: int) -> dict[str, float]:
    """Return the metrics of a bundle on the test hearts of a run."""
    hearts = _hearts(run, out, workers)
    return evaluate_bundle(bundle, _arrays(hearts), hearts.split.test, input_spec(run.preprocess))


def run_folder(run: EnfRun, out: Path) -> Path:
    """Return where a run lives; another config has another folder."""
    return out / f"{run.recipe}-{config_digest(run)[:12]}"


def _hearts(run: EnfRun, out: Path, workers: int) -> ReleaseHearts:
    studies = phantom_studies(run.data.seed, run.data.hearts)
    pairs, refused = prepared_pairs(studies, studies.keys, run.preprocess, out / "pairs", workers=workers)
    _log.info("hearts.ready", usable=len(pairs), refused=len(refused))
    place = {key: row for row, key in enumerate(studies.keys)}
    return ReleaseHearts(
        pairs=pairs,
        rows=np.array([place[key] for key in pairs.keys]),
        split=split_hearts(run.data.hearts, run.data.split, run.data.seed),
        hearts=run.data.hearts,
    )


def _trained(run: EnfRun, hearts: ReleaseHearts, folder: Path, threads: int) -> EnfClassifier:
    torch.set_num_threads(threads)
    model = EnfClassifier(run, folder)
    train, validation = hearts.part(hearts.split.train), hearts.part(hearts.split.validation)
    model.fit(train, validation, seed=run.seed, progress=lambda text: _log.info("enf.progress", done=text))
    return model


def _arrays(hearts: ReleaseHearts) -> HeartArrays:
    """Return the plain views as the arrays every bundle is exported and measured from."""
    size = hearts.pairs.spec.size_px
    inputs = np.zeros((hearts.hearts, 1, 2, size, size), np.float32)
    targets = np.full((hearts.hearts, len(COLUMNS)), np.nan, np.float32)
    clips = np.full(hearts.hearts, REFUSED, np.uint8)
    inputs[hearts.rows, 0] = hearts.pairs.views(np.arange(len(hearts.pairs)))
    targets[hearts.rows, COLUMNS.index("lvef")] = hearts.pairs.lvef_percent
    for condition, percent in LVEF_CONDITIONS.items():
        targets[hearts.rows, COLUMNS.index(condition)] = hearts.pairs.labels(percent)
    clips[hearts.rows] = 1
    return HeartArrays(inputs=inputs, targets=targets, clips=clips, sha256="")


def _field_metrics(model: EnfClassifier, hearts: ReleaseHearts) -> dict[str, float]:
    """Return reconstruction and turning of the test hearts."""
    test = hearts.part(hearts.split.test)
    images = test.views(np.arange(len(test)))
    psnr = model.latents(images).psnr_db
    before = model.logits(images)
    after = np.stack([model.logits(np.rot90(images, turns, axes=(2, 3))) for turns in (1, 2, 3)])
    return {
        "reconstruction_psnr_median_db": round(float(np.median(psnr)), 2),
        "quarter_turn_changed_decisions": float(((after > 0) != (before > 0)).sum()),
        "quarter_turn_largest_logit_change_sd": float(f"{np.abs(after - before).max() / before.std():.2e}"),
    }
