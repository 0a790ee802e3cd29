"""How the volumes of a heart change over one beat, and the shape that holds a volume. Shared by echo and CMR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.phantoms.subjects import Floats, Subject

SHORTENING = 0.16
"""Part of the long axis that a normal ventricle loses in systole; scaled with the ejected fraction."""


def emptying(phase: Floats | float, systole_fraction: float) -> Floats:
    """Part of the stroke volume that has left, 0 at end-diastole (phase 0 and 1), 1 at end-systole; one minimum.

    Systole is half a cosine; filling is fast at first, then slow, then the atrium adds the rest.
    """
    phase = np.mod(np.asarray(phase, dtype=float), 1.0)
    ejecting = 0.5 - 0.5 * np.cos(np.pi * np.clip(phase / systole_fraction, 0, 1))
    rest = np.clip((phase - systole_fraction) / (1 - systole_fraction), 0, 1)
    filling = (
        0.72 * (0.5 - 0.5 * np.cos(np.pi * np.clip(rest / 0.45, 0, 1)))
        + 0.28 * (0.5 - 0.5 * np.cos(np.pi * rest)) * rest
    )
    return np.where(phase <= systole_fraction, ejecting, 1 - filling)


@dataclass(frozen=True, kw_only=True)
class Ventricle:
    """Half an ellipsoid of revolution: apex at 0, base at ``length_mm``, widest at the base.

    Its volume is 2/3 pi R^2 L, which is also what the area-length formula 8 A^2 / (3 pi L) gives for its long-axis area.
    """

    length_mm: Floats
    radius_mm: Floats


def left_ventricle(subject: Subject, phase: Floats) -> Ventricle:
    """Shape of the left ventricular cavity at each phase; its volume is exact."""
    emptied = emptying(phase, subject.systole_fraction)
    volume_mm3 = 1000 * (subject.lvedv_ml - (subject.lvedv_ml - subject.lvesv_ml) * emptied)
    radius_ed = (1000 * subject.lvedv_ml / (2 / 3 * np.pi * 2 * subject.sphericity)) ** (1 / 3)
    length = 2 * subject.sphericity * radius_ed * (1 - SHORTENING * subject.lvef_percent / 60 * emptied)
    return Ventricle(length_mm=length, radius_mm=np.sqrt(volume_mm3 / (2 / 3 * np.pi * length)))


def right_ventricle_scale(subject: Subject, phase: Floats) -> Floats:
    """In-plane size of the right ventricle relative to end-diastole; area follows its volume."""
    emptied = emptying(phase, subject.systole_fraction)
    return np.asarray(np.sqrt(1 - subject.rvef_percent / 100 * emptied))
