"""Clips that are not apical four-chamber views: what a view check must tell from one.

Simple sections of the same heart, each with the structures by which a view is known: two chambers without a right heart, the
long axis lying across the sector with the aorta, the short axis as a ring, no heart at all, and a four-chamber view that was
turned. Scanner, speckle and burned-in text are those of ``echo``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.records import CineLoop
from training.phantoms.echo import AnatomyOf, FourChambers, UltrasoundScan, draw_scan, loop_of, rendered
from training.phantoms.subjects import Floats, Subject

APICAL_FOUR_CHAMBER = "apical_four_chamber"
_SECONDS = 1.1
"""Length of a clip: one beat of most hearts is enough to tell a view."""


class TwoChambers(FourChambers):
    """The left ventricle and atrium, tissue where the right heart would be."""

    def right_heart(self, value: Floats, length: float, radius: float, wall: float, index: int) -> None:
        """Nothing: the section passes the right heart by."""


class LongAxis(FourChambers):
    """The left ventricle lying across the sector, its apex to the left, with the outflow of the right one and the aorta."""

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - see ``FourChambers.of``
        cls,
        subject: Subject,
        scan: UltrasoundScan,
        phase: Floats,
        x: Floats,
        z: Floats,
        rng: np.random.Generator,
    ) -> Self:
        chambers = super().of(subject, scan, phase, x, z, rng)
        angle = float(rng.uniform(-0.35, 0.25))
        across, down = x + 0.55 * float(chambers.length[0]), z - float(rng.uniform(60, 80))
        cosine, sine = np.cos(angle), np.sin(angle)
        along = (cosine * across + sine * down).astype(np.float32)
        return replace(chambers, s=along, w=(cosine * down - sine * across).astype(np.float32))

    def right_heart(self, value: Floats, length: float, radius: float, wall: float, index: int) -> None:
        """A band of the right ventricle in front, the aortic root behind the valve."""
        edge = -(radius + wall)
        thickness = self.right_width * float(self.right[index])
        band = (self.w < edge) & (self.w > edge - thickness) & (self.s > 0.25 * length)
        value[(self.w < edge + 3) & (self.w > edge - thickness - 3) & (self.s > 0.25 * length)] = 0.42
        value[band] = self.blood
        root = np.abs(self.w + 0.75 * radius)
        beyond = (self.s > length) & (self.s < length + 45)
        value[(root < 17) & beyond] = 0.60
        value[(root < 13) & beyond] = self.blood


@dataclass(frozen=True, kw_only=True)
class ShortAxis:
    """A ring of muscle around a round cavity with two papillary muscles, the right ventricle as a crescent beside it."""

    chambers: FourChambers

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - see ``FourChambers.of``
        cls,
        subject: Subject,
        scan: UltrasoundScan,
        phase: Floats,
        x: Floats,
        z: Floats,
        rng: np.random.Generator,
    ) -> Self:
        chambers = FourChambers.of(subject, scan, phase, x, z, rng)
        down = z - float(rng.uniform(62, 82))
        across = x - float(rng.uniform(-4, 14))
        return cls(chambers=replace(chambers, s=down.astype(np.float32), w=across.astype(np.float32)))

    def amplitude(self, index: int, generator: np.random.Generator) -> Floats:
        """Echo amplitude of every pixel of one frame."""
        heart = self.chambers
        radius, wall = float(heart.radius[index]), float(heart.wall[index])
        right = 1.15 * float(heart.radius[0]) * float(heart.right[index])
        middle = np.hypot(heart.w, heart.s)
        crescent = np.hypot(heart.w + radius + 0.55 * right, 0.8 * heart.s)
        value = np.full(heart.s.shape, 0.22, np.float32)
        value[crescent < right + 4] = 0.42
        value[crescent < right] = heart.blood
        value[middle < radius + wall] = 0.50
        value[middle < radius] = heart.blood
        for side in (-1.0, 1.0):
            papillary = np.hypot(heart.w - side * 0.55 * radius, heart.s - 0.45 * radius)
            value[(papillary < 0.20 * radius + 2) & (middle < radius)] = 0.48
        return value * heart.speckled(float(heart.radius[index]), radius, generator)


@dataclass(frozen=True, kw_only=True)
class NoHeart:
    """Noise, and a few bright wires that stand still, as in air, in a test object or with the probe on the table."""

    depth: Floats
    wires: Floats
    level: float

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - see ``FourChambers.of``
        cls,
        subject: Subject,  # noqa: ARG003 - there is none
        scan: UltrasoundScan,
        phase: Floats,  # noqa: ARG003
        x: Floats,
        z: Floats,
        rng: np.random.Generator,
    ) -> Self:
        wires = np.zeros(x.shape, np.float32)
        for _ in range(int(rng.integers(0, 9))):
            across, down = rng.uniform(-40, 40), rng.uniform(20, scan.depth_mm)
            wires[np.hypot(x - across, z - down) < 2.5] = 0.9
        return cls(depth=(z / scan.depth_mm).astype(np.float32), wires=wires, level=float(rng.uniform(0.10, 0.45)))

    def amplitude(self, index: int, generator: np.random.Generator) -> Floats:  # noqa: ARG002 - every frame is alike
        """Fresh noise in every frame."""
        noise = np.hypot(*generator.standard_normal((2, *self.depth.shape), dtype=np.float32)) / 1.25
        return np.asarray(np.maximum(self.level * (1.2 - 0.6 * self.depth), self.wires) * noise)


def _as_rendered(frames_THW: NDArray[np.uint8], scan: UltrasoundScan, rng: np.random.Generator) -> NDArray[np.uint8]:
    del scan, rng
    return frames_THW


def _turned(frames_THW: NDArray[np.uint8], scan: UltrasoundScan, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The region turned by 90, 180 or 270 degrees about its middle; what leaves the region is lost."""
    x0, y0, x1, y1 = scan.region_px
    turned = frames_THW.copy()
    quarter_turns = int(rng.integers(1, 4))
    region = frames_THW[:, y0:y1, x0:x1]
    turned[:, y0:y1, x0:x1] = _fitted(np.rot90(region, quarter_turns, axes=(1, 2)), (y1 - y0, x1 - x0))
    return turned


def _fitted(frames_THW: NDArray[np.uint8], shape_HW: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of the frames in a black frame of another shape."""
    _, height, width = frames_THW.shape
    fitted = np.zeros((len(frames_THW), *shape_HW), np.uint8)
    rows, columns = min(height, shape_HW[0]), min(width, shape_HW[1])
    (top, left), (to_top, to_left) = (
        ((outer_h - rows) // 2, (outer_w - columns) // 2) for outer_h, outer_w in ((height, width), shape_HW)
    )
    fitted[:, to_top : to_top + rows, to_left : to_left + columns] = frames_THW[
        :, top : top + rows, left : left + columns
    ]
    return fitted


_Finish = Callable[[NDArray[np.uint8], UltrasoundScan, np.random.Generator], NDArray[np.uint8]]
_VIEWS: dict[str, tuple[AnatomyOf, _Finish]] = {
    APICAL_FOUR_CHAMBER: (FourChambers.of, _as_rendered),
    "apical_two_chamber": (TwoChambers.of, _as_rendered),
    "parasternal_long_axis": (LongAxis.of, _as_rendered),
    "parasternal_short_axis": (ShortAxis.of, _as_rendered),
    "no_heart": (NoHeart.of, _as_rendered),
    "turned": (FourChambers.of, _turned),
}
VIEWS = tuple(_VIEWS)
"""Names of the views; the first is the one that an ejection fraction is estimated from."""


def view_loop(view: str, subject: Subject, rng: np.random.Generator) -> CineLoop:
    """Render a short clip of a view, with scanner settings of its own; no view is stated.

    Args:
        view: one of ``VIEWS``.
        subject: the heart.
        rng: of the scanner and the noise.
    """
    anatomy_of, finish = _VIEWS[view]
    drawn = draw_scan(rng, subject)
    frames = max(18, round(1000 * _SECONDS / drawn.frame_ms))
    scan = replace(drawn, frames=frames, states_view=False)
    return loop_of(subject, scan, finish(rendered(subject, scan, rng, anatomy_of), scan, rng))
