"""Whether what was found looks like a sector: its sides, its apex, and how much of it is saturated.

A sector hangs from an apex above its middle and widens downwards. One that lies on its side, stands on its head or has
parallel sides was turned, cut or made by another probe, and no network here has seen one. Called by ``echo_clean``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import InputRefused, RefusalCode
from engines.preprocess.spec import EchoCleanSpec

_SIDES_FROM, _SIDES_TO = 0.15, 0.45
"""The rows, as fractions of the sector's height, in which both sides are straight."""


@dataclass(frozen=True, kw_only=True)
class SectorQuality:
    """Numbers of one sector.

    Args:
        area_fraction: of the region it was searched in.
        opening_degrees: angle between its sides; negative where it narrows downwards.
        apex_column: where the sides meet, as a fraction of its width.
        apex_row: the same below its top edge, as a fraction of its height.
        saturated_fraction: mean part of its pixels that is saturated.
        coloured_fraction: part of its pixels that is coloured.
    """

    area_fraction: float
    opening_degrees: float
    apex_column: float
    apex_row: float
    saturated_fraction: float
    coloured_fraction: float

    def sentence(self) -> str:
        """The numbers for the reader."""
        return (
            f"Sector: {100 * self.area_fraction:.0f} % of the image, opening {self.opening_degrees:.0f} degrees, "
            f"apex at {100 * self.apex_column:.0f} % of its width, {100 * self.saturated_fraction:.1f} % saturated."
        )


def quality_of(
    mask_HW: NDArray[np.bool_],
    aspect: float,
    saturated_HW: NDArray[np.float32],
    coloured_HW: NDArray[np.bool_],
    area_fraction: float,
) -> SectorQuality:
    """Measure a sector.

    Args:
        mask_HW: the sector, at least two rows high.
        aspect: row spacing over column spacing.
        saturated_HW: part of the frames in which a pixel was saturated.
        coloured_HW: pixels that once were coloured.
        area_fraction: of the region it was searched in.
    """
    opening, column, row = _sides(mask_HW, aspect)
    return SectorQuality(
        area_fraction=area_fraction,
        opening_degrees=opening,
        apex_column=column,
        apex_row=row,
        saturated_fraction=float(saturated_HW[mask_HW].mean()),
        coloured_fraction=float(coloured_HW[mask_HW].mean()),
    )


def require_plausible(quality: SectorQuality, spec: EchoCleanSpec) -> None:
    """Refuse what cannot be a B-mode sector the right way up.

    Raises:
        InputRefused: COLOUR_DOPPLER or SECTOR_IMPLAUSIBLE, with the numbers.
    """
    if quality.coloured_fraction > spec.colour_fraction_max:
        raise InputRefused(
            RefusalCode.COLOUR_DOPPLER,
            f"{100 * quality.coloured_fraction:.0f} % of the sector is coloured, at most "
            f"{100 * spec.colour_fraction_max:.0f} % are expected; a grey-scale (B-mode) clip is needed",
        )
    faults = list(_faults(quality, spec))
    if faults:
        raise InputRefused(
            RefusalCode.SECTOR_IMPLAUSIBLE,
            f"the image does not look like an upright B-mode sector: {'; '.join(faults)}",
        )


def _faults(quality: SectorQuality, spec: EchoCleanSpec) -> Iterator[str]:
    if not spec.opening_degrees_min <= quality.opening_degrees <= spec.opening_degrees_max:
        yield (
            f"its sides open by {quality.opening_degrees:.0f} degrees downwards, {spec.opening_degrees_min:.0f} to "
            f"{spec.opening_degrees_max:.0f} are expected"
        )
    if not (spec.apex_column_min <= quality.apex_column <= spec.apex_column_max):
        yield f"its apex lies at {100 * quality.apex_column:.0f} % of its width"
    if quality.apex_row > spec.apex_row_max:
        yield f"its apex lies {100 * quality.apex_row:.0f} % of its height below the top"
    if quality.saturated_fraction > spec.saturated_fraction_max:
        yield f"{100 * quality.saturated_fraction:.0f} % of it is saturated; lower the gain"


def _sides(mask_HW: NDArray[np.bool_], aspect: float) -> tuple[float, float, float]:
    """Opening in degrees, and column and row of the apex as fractions of width and height."""
    rows = np.flatnonzero(mask_HW.any(axis=1))
    top, height = int(rows[0]), len(rows)
    chosen = rows[int(_SIDES_FROM * height) : max(int(_SIDES_TO * height), int(_SIDES_FROM * height) + 2)]
    left = mask_HW[chosen].argmax(axis=1)
    right = mask_HW.shape[1] - mask_HW[chosen][:, ::-1].argmax(axis=1)
    depth = (chosen - top) * aspect
    (left_slope, left_start), (right_slope, right_start) = (np.polyfit(depth, side, 1) for side in (left, right))
    opening = float(np.degrees(np.arctan(right_slope) - np.arctan(left_slope)))
    widening = right_slope - left_slope
    apex_depth = (left_start - right_start) / widening if abs(widening) > 1e-6 else np.inf
    columns = np.flatnonzero(mask_HW.any(axis=0))
    apex_column = left_start + left_slope * apex_depth if np.isfinite(apex_depth) else float(columns.mean())
    return (
        opening,
        float((apex_column - columns[0]) / len(columns)),
        float(apex_depth / (height * aspect)),
    )
