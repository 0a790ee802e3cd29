"""An apical four-chamber B-mode clip of a subject, as luma, with what a scanner burns in around it.

The left ventricle is the long-axis section of the half-ellipsoid of ``cycle``: the area-length volume of the drawn cavity
gives the true ejection fraction. Speckle is fixed to the tissue and moves with it. Depth, gain, attenuation, dropout,
sector and frame rate are nuisance that no other modality sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from engines.records import ArrayFrames, CineLoop, SourceInstance
from training.phantoms.cycle import left_ventricle, right_ventricle_scale
from training.phantoms.echo_scanners import FAMILIAR, ScannerSettings
from training.phantoms.subjects import Floats, Subject

US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"
APICAL_FOUR_CHAMBER = "399214001"
_NOISE_SIDE = 512


@dataclass(frozen=True, kw_only=True)
class UltrasoundScan:
    """Scanner settings of one clip, drawn apart from the heart.

    ``region_px`` is the 2D region (x0, y0, x1, y1); the burned-in text and the ECG trace lie outside it.
    """

    width_px: int
    height_px: int
    region_px: tuple[int, int, int, int]
    depth_mm: float
    half_angle_rad: float
    tilt_rad: float
    apex_depth_mm: float
    frame_ms: float
    frames: int
    start_phase: float
    gain: float
    compression: float
    attenuation: float
    dropout: float
    blood: float
    states_view: bool
    time_vector: bool

    @property
    def spacing_mm(self) -> float:
        """Pixel spacing, the same in both directions."""
        return self.depth_mm / (self.region_px[3] - self.region_px[1])


def draw_scan(rng: np.random.Generator, subject: Subject, scanner: ScannerSettings = FAMILIAR) -> UltrasoundScan:
    """Draw the settings of one clip from those of a scanner, as deep as the heart needs."""
    length = float(left_ventricle(subject, np.zeros(1)).length_mm[0])
    height = int(rng.choice(scanner.heights_px))
    rate = float(rng.uniform(*scanner.frame_rate_hz))
    return UltrasoundScan(
        width_px=int(height * 1.35) // 2 * 2,
        height_px=height,
        region_px=(int(height * 0.10), 20, int(height * 0.10) + int(height * 1.12), height - 24),
        depth_mm=max(float(rng.uniform(*scanner.depth_mm)), length + 55),
        half_angle_rad=float(rng.uniform(*scanner.half_angle_rad)),
        tilt_rad=float(rng.normal(0, scanner.tilt_sd_rad)),
        apex_depth_mm=float(rng.uniform(*scanner.apex_depth_mm)),
        frame_ms=float(np.round(1000 / rate, 3)),
        frames=int(rng.uniform(*scanner.duration_s) * rate),
        start_phase=float(rng.uniform(0, 1)),
        gain=float(rng.uniform(*scanner.gain)),
        compression=float(rng.uniform(*scanner.compression)),
        attenuation=float(rng.uniform(*scanner.attenuation)),
        dropout=float(rng.uniform(*scanner.dropout)),
        blood=float(rng.uniform(*scanner.blood)),
        states_view=bool(rng.random() < 0.5),
        time_vector=bool(rng.random() < 0.3),
    )


def echo_loop(subject: Subject, rng: np.random.Generator, scanner: ScannerSettings = FAMILIAR) -> CineLoop:
    """Render a clip with scanner settings of its own; the source carries placeholder UIDs."""
    scan = draw_scan(rng, subject, scanner)
    return loop_of(subject, scan, rendered(subject, scan, rng))


def loop_of(
    subject: Subject, scan: UltrasoundScan, frames: NDArray[np.uint8], source: SourceInstance | None = None
) -> CineLoop:
    """The record of rendered frames."""
    return CineLoop(
        frames=ArrayFrames(frames_THW=frames),
        frame_times_ms=scan.frame_ms * np.arange(len(frames), dtype=np.float64),
        region_px=scan.region_px,
        spacing_mm=(scan.spacing_mm, scan.spacing_mm),
        heart_rate_bpm=float(np.round(subject.heart_rate_bpm)),
        view=APICAL_FOUR_CHAMBER if scan.states_view else None,
        source=source
        or SourceInstance(sop_class_uid=US_MULTIFRAME, sop_instance_uid="2.25.1", series_instance_uid="2.25.2"),
    )


class Anatomy(Protocol):
    """What lies in the sector: the echo amplitude of every pixel looked at, about 0 to 1, frame by frame."""

    def amplitude(self, index: int, generator: np.random.Generator) -> Floats:
        """Of one frame, speckle included."""


AnatomyOf = Callable[[Subject, UltrasoundScan, Floats, Floats, Floats, np.random.Generator], Anatomy]
"""A heart, its scan, the phases of the frames, and x and z of the places looked at (mm)."""


def rendered(
    subject: Subject, scan: UltrasoundScan, rng: np.random.Generator, anatomy_of: AnatomyOf | None = None
) -> NDArray[np.uint8]:
    """Luma frames, uint8 [T, H, W]; of the four chambers unless told otherwise."""
    beat = scan.frame_ms * subject.heart_rate_bpm / 60000.0
    phase = scan.start_phase + beat * np.arange(scan.frames)
    frame_THW = np.repeat(_screen(scan, subject)[None], scan.frames, axis=0)
    x0, y0, x1, y1 = scan.region_px
    frame_THW[:, y0:y1, x0:x1] = _sector(subject, scan, phase, rng, anatomy_of or FourChambers.of)
    _draw_trace(frame_THW, scan, phase)
    return frame_THW


def _screen(scan: UltrasoundScan, subject: Subject) -> NDArray[np.uint8]:
    """Static text outside the region."""
    image = Image.new("L", (scan.width_px, scan.height_px))
    draw = ImageDraw.Draw(image)
    draw.text((4, 3), f"PHANTOM  HR {subject.heart_rate_bpm:.0f}  {scan.depth_mm / 10:.0f} cm", fill=190)
    return np.asarray(image)


def _draw_trace(frame_THW: NDArray[np.uint8], scan: UltrasoundScan, phase: Floats) -> None:
    """A running ECG line below the region."""
    base = scan.height_px - 6
    for index in range(len(frame_THW)):
        shown = phase[max(0, index - 60) : index + 1]
        height = 12 * np.exp(-(((np.mod(shown + 0.5, 1) - 0.5) / 0.03) ** 2))
        column = np.linspace(4, scan.width_px - 5, 61)[: len(shown)].astype(int)
        frame_THW[index, (base - height).astype(int), column] = 220


def _sector(
    subject: Subject, scan: UltrasoundScan, phase: Floats, rng: np.random.Generator, anatomy_of: AnatomyOf
) -> NDArray[np.uint8]:
    x, z = _grid(scan)
    radius_mm = np.hypot(x, z)
    within = (np.abs(np.arctan2(x, z)) < scan.half_angle_rad) & (radius_mm < scan.depth_mm) & (radius_mm > 2)
    loss = _loss(x, z, scan, rng)
    anatomy = anatomy_of(subject, scan, phase, x[within], z[within], rng)
    frames = np.zeros((len(phase), *x.shape), np.uint8)
    generator = np.random.default_rng(int(rng.integers(2**63)))
    for index in range(len(phase)):
        amplitude = anatomy.amplitude(index, generator) * loss[within]
        grey = 255 * np.clip(scan.gain * amplitude, 0, 1) ** scan.compression
        frames[index][within] = grey.astype(np.uint8)
    return frames


def _grid(scan: UltrasoundScan) -> tuple[Floats, Floats]:
    """Position of each pixel of the region, mm: x to the right, z down from the transducer."""
    x0, y0, x1, y1 = scan.region_px
    columns = (np.arange(x1 - x0) - (x1 - x0 - 1) / 2) * scan.spacing_mm
    rows = np.arange(y1 - y0) * scan.spacing_mm
    x, z = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    return x, z


def _loss(x: Floats, z: Floats, scan: UltrasoundScan, rng: np.random.Generator) -> Floats:
    """Attenuation with depth and shadows along a few directions."""
    angle = np.arctan2(x, z)
    shadow = np.ones_like(x)
    for _ in range(2):
        centre, width = rng.uniform(-0.7, 0.7), rng.uniform(0.03, 0.10)
        shadow -= scan.dropout * rng.uniform(0.3, 1.0) * np.exp(-(((angle - centre) / width) ** 2)).astype(np.float32)
    return np.asarray(np.exp(-scan.attenuation * z) * np.clip(shadow, 0.1, 1))


@dataclass(frozen=True, kw_only=True)
class FourChambers:
    """Four chambers in heart coordinates: ``s`` along the axis from the apex, ``w`` across it, positive to the left ventricle."""

    s: Floats
    w: Floats
    length: Floats
    radius: Floats
    right: Floats
    wall: Floats
    opening: Floats
    right_width: float
    blood: float
    speckle: Floats

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - a heart, its scan and the places looked at
        cls,
        subject: Subject,
        scan: UltrasoundScan,
        phase: Floats,
        x: Floats,
        z: Floats,
        rng: np.random.Generator,
    ) -> Self:
        shape = left_ventricle(subject, phase)
        rest = left_ventricle(subject, np.zeros(1))
        width = float(24 * (subject.rvedv_ml / 170) ** (1 / 3))
        across = x - (float(rest.radius_mm[0]) - 0.5 * width) * 0.35
        down = z - scan.apex_depth_mm
        cosine, sine = np.cos(scan.tilt_rad), np.sin(scan.tilt_rad)
        area = (rest.radius_mm[0] + subject.wall_mm) ** 2 - rest.radius_mm[0] ** 2
        field = gaussian_filter(rng.normal(0, 1, (2, _NOISE_SIDE, _NOISE_SIDE)), (0, 1.0, 1.6), mode="wrap")
        speckle = np.hypot(field[0], field[1])
        relaxing = np.mod(phase, 1.0)
        return cls(
            s=(cosine * down + sine * across).astype(np.float32),
            w=(cosine * across - sine * down).astype(np.float32),
            length=shape.length_mm,
            radius=shape.radius_mm,
            right=right_ventricle_scale(subject, phase),
            wall=np.sqrt(shape.radius_mm**2 + area) - shape.radius_mm,
            opening=np.where(relaxing > subject.systole_fraction + 0.05, 1.0, 0.0),
            right_width=width,
            blood=scan.blood,
            speckle=(speckle / speckle.mean()).astype(np.float32),
        )

    def amplitude(self, index: int, generator: np.random.Generator) -> Floats:
        """Echo amplitude of every pixel of one frame, about 0 to 1, speckle included."""
        length, radius, wall = float(self.length[index]), float(self.radius[index]), float(self.wall[index])
        along, across = self.s / length, self.w
        ventricle = np.hypot(across / radius, 1 - along)
        muscle = np.hypot(across / (radius + wall), 1 - (self.s + wall) / (length + wall))
        value = np.full(self.s.shape, 0.22, np.float32)
        value[(muscle < 1) & (along <= 1)] = 0.50
        self.right_heart(value, length, radius, wall, index)
        atrium = np.hypot(across / (0.80 * radius + 4), (self.s - length - 24) / 25)
        value[(atrium < 1.13) & (along > 1)] = 0.45
        value[(atrium < 1) & (along > 1.0)] = self.blood
        value[(ventricle < 1) & (along <= 1)] = self.blood
        self._leaflets(value, length, radius, index)
        return value * self.speckled(length, radius, generator)

    def right_heart(self, value: Floats, length: float, radius: float, wall: float, index: int) -> None:
        """The right ventricle and atrium, beside the left ones."""
        width = self.right_width * float(self.right[index])
        centre = -(radius + wall + width)
        ventricle = np.hypot((self.w - centre) / width, 1 - self.s / (0.92 * length))
        inside = (self.s <= 0.92 * length) & (
            self.w < -(radius * np.sqrt(np.clip(1 - (1 - self.s / length) ** 2, 0, 1)) + wall)
        )
        value[(ventricle < 1.15) & inside] = 0.42
        value[(ventricle < 1) & inside] = self.blood
        atrium = np.hypot((self.w - centre * 0.9) / 21, (self.s - 0.92 * length - 22) / 22)
        below = self.s > 0.93 * length
        value[(atrium < 1.13) & below] = np.maximum(value[(atrium < 1.13) & below], 0.40)
        value[(atrium < 1) & below] = self.blood

    def _leaflets(self, value: Floats, length: float, radius: float, index: int) -> None:
        """The mitral leaflets: a closed line at the base in systole, two flaps into the ventricle in diastole."""
        if self.opening[index]:
            edge = np.abs(np.abs(self.w) - 0.62 * radius) < 1.2
            value[edge & (self.s > length - 14) & (self.s < length)] = 0.75
        else:
            value[(np.abs(self.s - length + 0.12 * (radius - np.abs(self.w))) < 1.3) & (np.abs(self.w) < radius)] = 0.75

    def speckled(self, length: float, radius: float, generator: np.random.Generator) -> Floats:
        """Noise looked up in tissue coordinates, so that it moves with the heart, and a little that is new each frame."""
        rows = (self.s * (float(self.length[0]) / length) * 2.2).astype(np.int32) % _NOISE_SIDE
        columns = (self.w * (float(self.radius[0]) / radius) * 2.2).astype(np.int32) % _NOISE_SIDE
        fresh = generator.standard_normal(self.s.shape, dtype=np.float32)
        return np.clip(self.speckle[rows, columns] + 0.15 * fresh, 0, 3)
