"""Runs of the five variants that take a second, and pairs that they learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import OptimConfig
from training.data.patient_split import PUBLISHED_SHARES
from training.data.targets import DISEASES
from training.ecg_cmr.augment import EcgAugment
from training.ecg_cmr.config import ContrastStage, EcgCmrRun, MaeStage
from training.ecg_cmr.pair_source import PairEntry, pair_key
from training.ecg_cmr.tower_inputs import Look
from training.ecg_cmr.tower_training import TowerConfig
from training.ecg_cmr.variants import LOOKS, Variant
from training.models.ecg_vit import EcgVitShape

SLICES, SIDE, SAMPLES = 3, 16, 100
VISITS_TWICE = 10
SHAPE = EcgVitShape(
    width=16,
    depth=1,
    heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=2,
    patch_leads=12,
    patch_samples=10,
    samples=SAMPLES,
)
OPTIM = OptimConfig(
    epochs=2,
    batch_size=8,
    learning_rate=1e-2,
    weight_decay=0.01,
    warmup_fraction=0.1,
    gradient_clip=1.0,
    autocast_bfloat16=False,
)
WHOLE_SHAPE = replace(SHAPE, patch_samples=250, samples=5000)
"""Of a record as it is served."""
ONE_EPOCH = replace(OPTIM, epochs=1, learning_rate=1e-3)


@dataclass(frozen=True, kw_only=True)
class Hearts:
    """Discs as large as a number, and an ECG of that height; the first patients come twice."""

    patients: int = 50
    salt: str = "hearts"
    shares: Mapping[str, int] = field(default_factory=lambda: PUBLISHED_SHARES)
    spec: Mapping[str, Any] = field(default_factory=dict)
    name = "hearts"

    def entries(self) -> Sequence[PairEntry]:
        return [self._entry(number) for number in range(self.patients + VISITS_TWICE)]

    def _entry(self, number: int) -> PairEntry:
        patient, day = f"heart-{number % self.patients}", date(2020, 1, 1) + timedelta(days=number // self.patients)
        large, small = self._sizes(number)
        return PairEntry(
            key=pair_key(patient, day, day),
            patient=patient,
            ecg_on=day,
            cmr_on=day,
            targets={"lvedv": 20 * large, "lvesv": 10 * small},
            diseases={},
        )

    def _sizes(self, number: int) -> tuple[float, float]:
        large, small = np.random.default_rng(number).uniform(2, 7, 2)
        return float(large), float(small)

    def read(self, number: int) -> Mapping[str, NDArray[Any]]:
        rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        large, small = self._sizes(number)
        discs = [(np.hypot(rows, columns) < size).astype(np.float16) for size in (large, small)]
        rng = np.random.default_rng(1000 + number)
        waves = np.sin(np.arange(SAMPLES) / np.array([[large], [small]] * 6)) * np.array([[large], [small]] * 6)
        return {
            "ecg": (waves + 0.1 * rng.normal(size=(12, SAMPLES))).astype(np.float32),
            "volumes": np.repeat(np.stack(discs)[:, None], SLICES, axis=1),
            "slice_mask": np.arange(SLICES) < SLICES - 1,
            "cine": np.stack([discs[0], discs[1]]),
        }


def tiny(variant: Variant = "triplet", **contrast: Any) -> EcgCmrRun:
    """A run of a second."""
    looks = LOOKS[variant]
    form = {"form": "triplet" if len(looks) == 2 else "pairwise", "hidden": 8, "width": 6}
    stage = ContrastStage(**({"optim": replace(OPTIM, epochs=3)} | form | contrast))
    return EcgCmrRun(
        recipe="tiny",
        seed=3,
        encoder=SHAPE,
        augment=EcgAugment(shift_s=0.02),
        mae=MaeStage(optim=OPTIM),
        towers=tuple(_tower(look) for look in looks),
        contrast=stage if looks else None,
    )


def _tower(look: Look) -> TowerConfig:
    return TowerConfig(
        look=look,
        size="small",
        targets=("lvedv", "lvesv"),
        seed=1,
        optim=replace(OPTIM, epochs=1, batch_size=16),
        slices=SLICES,
    )


@dataclass(frozen=True, kw_only=True)
class ToldHearts(Hearts):
    """The same hearts with everything that a study asks for; the third patient does not state a weight.

    Args:
        cmr: stands for the preparation; nothing depends on it.
    """

    cmr: Any = None

    def _entry(self, number: int) -> PairEntry:
        entry = super()._entry(number)
        large, small = self._sizes(number)
        rng = np.random.default_rng(number % self.patients)
        demographics = {
            "age_years": 60 + 5 * rng.normal(),
            "male": float(rng.integers(2)),
            "height_cm": 170 + 5 * large,
        }
        return replace(
            entry,
            targets=entry.targets | {"lvef": 100 * large / (large + small), "wall_thickness": 9.0},
            diseases={name: place == 0 or bool(rng.random() < 0.5) for place, name in enumerate(DISEASES)},
            demographics=demographics | ({} if number == 2 else {"weight_kg": 70 + 9 * rng.normal()}),
        )
