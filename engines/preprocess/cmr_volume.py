"""Short-axis cine stack to the volumes at end-diastole and end-systole and the mid slice over the beat, for an embedding.

The heart is found by ``preprocess.cmr``: canonical view, cavity traced in every slice and phase, end-diastole and
end-systole where the cavity of the whole stack is largest and smallest (never a fixed frame). Slices are those between
apex and base, on a grid of fixed distance about the mid slice, so that a long ventricle fills more of it than a short one.
Called by training and, for the check of an ECG against the CMR of the same patient, by serving.

Letters: D slices of the volume, S pixels, T phases of the cine, P phases of the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.cmr import LocatedHeart, crop_slices, locate_heart
from engines.preprocess.registry import Prepared
from engines.preprocess.spec import CmrSpec, Fraction, Positive
from engines.records import CineStack

_TIE_MM = 1e-3
"""Of two slices equally near to a place of the grid, the one nearer to the mid slice is taken, whatever rounding does."""


class CmrVolumeSpec(BaseModel):
    """Stack to ``volumes`` float32 [1, 2, D, S, S], ``slice_mask`` float32 [1, D] and ``cine`` float32 [1, 1, T, S, S].

    Args:
        heart: how the ventricle is found; states the side S and the pixel spacing of the crop too, and the percentiles of
            the ventricle's slices at both phases that grey values are cut at.
        slices: D.
        slice_distance_mm: of the grid.
        phases: T, evenly over the beat, the first at end-diastole.
        ventricle_slices_min: refuse ventricles that fewer slices hold.
        slice_gap_max: largest distance of two slices of the ventricle, relative to the usual one of the stack.
        outside_fraction_max: largest part of the crop that may lie outside the image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["cmr_volume"]
    preprocess_version: Literal[1]
    heart: CmrSpec
    slices: Annotated[int, Field(ge=2, le=64)]
    slice_distance_mm: Positive
    phases: Annotated[int, Field(ge=2, le=128)]
    ventricle_slices_min: Annotated[int, Field(ge=1)]
    slice_gap_max: Annotated[float, Field(gt=1.0)]
    outside_fraction_max: Fraction


@dataclass(frozen=True, kw_only=True)
class SliceGrid:
    """Which slice stands at which place of the volume, from apex to base.

    Args:
        indices: int [D], slices of the canonical stack; where the mask is off, the nearest one of the ventricle.
        mask: bool [D], where the place lies within the ventricle.
        cut: slices of the ventricle beyond both ends of the volume.
    """

    indices: NDArray[np.int64]
    mask: NDArray[np.bool_]
    cut: int


def prepare_volumes(stack: CineStack, spec: CmrVolumeSpec) -> Prepared:
    """Crop both volumes and the cine.

    Returns:
        The arrays of ``CmrVolumeSpec``; grey values have mean 0 and standard deviation 1 over the ventricle's slices at
        both phases; masked slices and what lies outside the image hold the background.

    Raises:
        InputRefused: as ``locate_heart``; too few slices hold the ventricle or one between them is missing
            (``TOO_FEW_SLICES``); the image cuts the heart off, or it has no contrast (``HEART_NOT_FOUND``).
    """
    located = locate_heart(stack, spec.heart)
    height_mm = slice_heights_mm(stack, located)
    check_quality(located, height_mm, spec)
    grid = slice_grid(located, height_mm, spec)
    beat = (located.phases.end_diastole, located.phases.end_systole)
    crops_D2SS = crop_slices(located, spec.heart, spec.heart.size_px, grid.indices.tolist(), beat)
    scale = _Scale.of(crops_D2SS[grid.mask], spec.heart)
    volumes = scale.applied(np.swapaxes(crops_D2SS, 0, 1))
    volumes[:, ~grid.mask] = scale.background
    cine = crop_slices(located, spec.heart, spec.heart.size_px, (located.mid_slice,), beat_phases(located, spec.phases))
    return Prepared(
        arrays={
            "volumes": volumes[None],
            "slice_mask": grid.mask.astype(np.float32)[None],
            "cine": scale.applied(cine)[None],
        },
        sources=located.sources,
        region_px=located.region_px,
        notes=_notes(located, grid),
    )


def slice_heights_mm(stack: CineStack, located: LocatedHeart) -> NDArray[np.float64]:
    """Height of every canonical slice above the first, towards the base, millimetres."""
    positions = np.asarray(stack.slice_positions_mm)[list(located.canonical.slice_order)]
    return np.asarray(np.abs(positions - positions[0]), np.float64)


def slice_grid(located: LocatedHeart, height_mm: NDArray[np.float64], spec: CmrVolumeSpec) -> SliceGrid:
    """Fill the places of a grid about the mid slice with the nearest slices of the ventricle.

    A place counts where it lies between the ends of the ventricle, half a slice distance beyond its outermost slices.
    """
    held = np.arange(located.first_slice, located.last_slice + 1)
    place_mm = (np.arange(spec.slices) - (spec.slices - 1) // 2) * spec.slice_distance_mm
    from_mid_mm = height_mm[held] - height_mm[located.mid_slice]
    cost = np.abs(from_mid_mm[None] - place_mm[:, None]) + _TIE_MM * np.abs(from_mid_mm)[None]
    half = _usual_distance_mm(height_mm) / 2 - _TIE_MM
    beyond = (from_mid_mm < place_mm[0] - half) | (from_mid_mm > place_mm[-1] + half)
    return SliceGrid(
        indices=held[cost.argmin(axis=1)],
        mask=(place_mm > from_mid_mm[0] - half) & (place_mm < from_mid_mm[-1] + half),
        cut=int(beyond.sum()),
    )


def beat_phases(located: LocatedHeart, count: int) -> Sequence[int]:
    """Phases nearest to ``count`` moments evenly over one beat, from end-diastole on; frames are never blended."""
    phases = located.canonical.images_SPHW.shape[1]
    steps = np.floor(np.arange(count) * phases / count + 0.5).astype(int)
    return [int(phase) for phase in (located.phases.end_diastole + steps) % phases]


def check_quality(located: LocatedHeart, height_mm: NDArray[np.float64], spec: CmrVolumeSpec) -> None:
    """Refuse what would give a volume that looks whole and is not.

    Raises:
        InputRefused: see ``prepare_volumes``.
    """
    held = located.last_slice - located.first_slice + 1
    if held < spec.ventricle_slices_min:
        message = f"The left ventricle lies in {held} slices; expected at least {spec.ventricle_slices_min}."
        raise InputRefused(RefusalCode.TOO_FEW_SLICES, message)
    usual_mm = _usual_distance_mm(height_mm)
    gap_mm = float(np.diff(height_mm[located.first_slice : located.last_slice + 1]).max(initial=0.0))
    if gap_mm > spec.slice_gap_max * usual_mm:
        message = (
            f"Two slices of the ventricle lie {gap_mm:.1f} mm apart, the others {usual_mm:.1f} mm; expected at most "
            f"{spec.slice_gap_max:g} times that: a slice is missing, send the whole stack."
        )
        raise InputRefused(RefusalCode.TOO_FEW_SLICES, message)
    outside = outside_fraction(located, spec.heart)
    if outside > spec.outside_fraction_max:
        message = (
            f"{100 * outside:.0f} % of the heart's region lies outside the image; expected at most "
            f"{100 * spec.outside_fraction_max:.0f} %: the field of view cuts the heart off."
        )
        raise InputRefused(RefusalCode.HEART_NOT_FOUND, message)


def outside_fraction(located: LocatedHeart, spec: CmrSpec) -> float:
    """Part of the crop that lies outside the image, 0 to 1."""
    inside = 1.0
    lengths = located.canonical.images_SPHW.shape[2:]
    for centre, spacing_mm, length in zip(located.centre_px, located.canonical.spacing_mm, lengths, strict=True):
        half = spec.size_px * spec.pixel_spacing_mm / spacing_mm / 2.0
        covered = min(centre + half, length - 0.5) - max(centre - half, -0.5)
        inside *= max(0.0, covered) / (2.0 * half)
    return 1.0 - inside


def _usual_distance_mm(height_mm: NDArray[np.float64]) -> float:
    return float(np.median(np.diff(height_mm))) if len(height_mm) > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Grey values to numbers of mean 0 and standard deviation 1."""

    low: float
    high: float
    mean: float
    spread: float

    @classmethod
    def of(cls, crops: NDArray[np.float64], spec: CmrSpec) -> _Scale:
        low, high = (float(value) for value in np.percentile(crops, [spec.percentile_low, spec.percentile_high]))
        if high <= low:
            message = "The heart's region has no contrast: all pixels are equal; check the series."
            raise InputRefused(RefusalCode.HEART_NOT_FOUND, message)
        cut = np.clip(crops, low, high)
        return cls(low=low, high=high, mean=float(cut.mean()), spread=float(cut.std()))

    @property
    def background(self) -> float:
        """What black becomes."""
        return (self.low - self.mean) / self.spread

    def applied(self, crops: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.asarray((np.clip(crops, self.low, self.high) - self.mean) / self.spread, np.float32)


def _notes(located: LocatedHeart, grid: SliceGrid) -> tuple[str, ...]:
    phases = located.phases
    found = (
        f"Slices {located.first_slice + 1} to {located.last_slice + 1} from the apex, end diastole at phase "
        f"{phases.end_diastole + 1}, end systole at phase {phases.end_systole + 1}."
    )
    beyond = f"{grid.cut} slices of the ventricle lie beyond the ends of the volume."
    return (found, beyond) if grid.cut else (found,)
