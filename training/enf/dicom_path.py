"""The turned image written as DICOM, decoded, prepared and answered: invariance of the whole way, not of a tensor."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.decode.cmr import decode_cmr
from engines.errors import Refusal
from engines.preprocess.cmr import prepare_cmr
from engines.preprocess.spec import CmrSpec
from training.enf.baselines import Classifier
from training.phantoms.make import StudyTruth, make_studies


@dataclass(frozen=True, kw_only=True)
class DicomTurns:
    """Logits of studies written as they are and turned by 90, 180 and 270 degrees.

    Args:
        logits: float64 [N, 4]; NaN where the study was refused.
    """

    logits: NDArray[np.float64]

    @property
    def answered(self) -> int:
        """Studies that were answered unturned."""
        return int(np.isfinite(self.logits[:, 0]).sum())

    @property
    def changed(self) -> int:
        """Turned studies whose decision, or refusal, is not that of the unturned one."""
        decision = np.where(np.isfinite(self.logits), self.logits > 0, -1)
        return int((decision[:, 1:] != decision[:, :1]).sum())

    @property
    def largest_change_sd(self) -> float:
        """Largest change of a logit, in standard deviations of the unturned logits.

        Raises:
            ValueError: fewer than two studies were answered, so that there is no standard deviation.
        """
        if self.answered < 2:
            raise ValueError(
                f"{self.answered} of {len(self.logits)} studies were answered; write at least two that are"
            )
        before = self.logits[:, :1]
        return float(np.nanmax(np.abs(self.logits[:, 1:] - before)) / np.nanstd(before))


def dicom_turns(models: Sequence[Classifier], spec: CmrSpec, *, seed: int, count: int) -> list[DicomTurns]:
    """Write ``count`` phantom studies four times each and ask every model.

    Args:
        models: trained.
        spec: of the preprocessing.
        seed: of the studies; they belong to no training set.
        count: of unturned studies.
    """
    with tempfile.TemporaryDirectory(prefix="purkinje-turns-") as name:
        folder = Path(name)
        truths = make_studies("cmr", seed, count, folder, turned=True)
        images = [_image(folder, truth, spec) for truth in truths]
    return [DicomTurns(logits=_asked(model, images).reshape(count, 4)) for model in models]


def _image(folder: Path, truth: StudyTruth, spec: CmrSpec) -> NDArray[np.float32] | None:
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context((folder / file).open("rb")) for file in truth.files]
        try:
            return np.asarray(prepare_cmr(decode_cmr(files), spec).arrays["image"], np.float32)
        except Refusal:
            return None


def _asked(model: Classifier, images: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float64]:
    usable = [row for row, image in enumerate(images) if image is not None]
    logits = np.full(len(images), np.nan)
    if not usable:
        return logits
    logits[usable] = model.logits(np.concatenate([image for image in images if image is not None]))
    return logits
