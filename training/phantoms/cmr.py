"""A short-axis bSSFP cine stack of a subject, slices apex to base, from end-diastole on.

The cavity of each slice is the section of the half-ellipsoid of ``cycle``: the areas times the slice distance give the
volumes back. Blood is bright, muscle dark; body, lungs, liver, coil shading, breath-hold shifts and Rician noise are
nuisance that no other modality sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from engines.records import CineStack, SourceInstance
from training.phantoms.cycle import left_ventricle, right_ventricle_scale
from training.phantoms.subjects import Floats, Subject

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
_BLOOD, _MUSCLE, _LUNG, _FAT, _LIVER = 0.85, 0.25, 0.06, 0.95, 0.38


@dataclass(frozen=True, kw_only=True)
class MrScan:
    """Scanner settings of one stack, drawn apart from the heart."""

    size_px: int
    spacing_mm: float
    slice_distance_mm: float
    phases: int
    turn_rad: float
    centre_mm: tuple[float, float]
    noise: float
    orientation: tuple[float, float, float, float, float, float]
    origin_mm: tuple[float, float, float]
    one_series_per_slice: bool
    peak: float


def draw_scan(rng: np.random.Generator) -> MrScan:
    """Draw scanner settings: 1.4 to 1.9 mm pixels, 8 to 10 mm slices, 20 to 30 phases, any oblique orientation."""
    rows = _rotation(rng)
    return MrScan(
        size_px=int(rng.choice([160, 176, 192])),
        spacing_mm=float(np.round(rng.uniform(1.4, 1.9), 3)),
        slice_distance_mm=float(rng.choice([8.0, 9.0, 10.0])),
        phases=int(rng.choice([20, 25, 30])),
        turn_rad=float(rng.uniform(0, 2 * np.pi)),
        centre_mm=(float(rng.normal(0, 12)), float(rng.normal(0, 12))),
        noise=float(rng.uniform(0.01, 0.05)),
        orientation=tuple(float(value) for value in np.round(rows[:2].ravel(), 6)),  # type: ignore[arg-type]
        origin_mm=tuple(float(value) for value in np.round(rng.normal(0, 40, 3), 2)),  # type: ignore[arg-type]
        one_series_per_slice=bool(rng.random() < 0.3),
        peak=float(rng.uniform(400, 3000)),
    )


def _rotation(rng: np.random.Generator) -> Floats:
    """A right-handed oblique frame near the usual short axis, [3, 3] rows: row direction, column direction, normal."""
    normal = np.array([0.65, 0.45, -0.60]) + rng.normal(0, 0.08, 3)
    normal /= np.linalg.norm(normal)
    row = np.cross([0.0, 0.3, 1.0], normal)
    row /= np.linalg.norm(row)
    return np.stack([row, np.cross(normal, row), normal])


def cmr_stack(subject: Subject, rng: np.random.Generator) -> CineStack:
    """Render a stack with scanner settings of its own; sources carry placeholder UIDs."""
    return rendered(subject, draw_scan(rng), rng)


def rendered(subject: Subject, scan: MrScan, rng: np.random.Generator) -> CineStack:
    """Render a stack with the given settings."""
    positions = _slice_positions(subject, scan, rng)
    phases = np.arange(scan.phases) / scan.phases
    images = _images(subject, scan, rng, positions, phases)
    interval_ms = 60000.0 / subject.heart_rate_bpm
    times = np.tile(np.round(phases * interval_ms, 1), (len(positions), 1))
    axis = np.cross(scan.orientation[:3], scan.orientation[3:])
    offset = float(np.dot(scan.origin_mm, axis))
    return CineStack(
        images_SPHW=images,
        spacing_mm=(scan.spacing_mm, scan.spacing_mm),
        slice_positions_mm=np.asarray(offset + positions - positions[0], np.float64),
        trigger_times_ms=np.asarray(times, np.float64),
        orientation=scan.orientation,
        sources_SP=tuple(tuple(_placeholder(s, p) for p in range(scan.phases)) for s in range(len(positions))),
        heart_rate_bpm=float(np.round(subject.heart_rate_bpm)),
    )


def _placeholder(slice_index: int, phase_index: int) -> SourceInstance:
    return SourceInstance(
        sop_class_uid=MR_IMAGE_STORAGE,
        sop_instance_uid=f"2.25.1.{slice_index}.{phase_index}",
        series_instance_uid="2.25.2",
    )


def _slice_positions(subject: Subject, scan: MrScan, rng: np.random.Generator) -> Floats:
    """Distance of each slice from the end-diastolic apex along the long axis, mm; one slice beyond either end."""
    length = float(left_ventricle(subject, np.zeros(1)).length_mm[0])
    first = -float(rng.uniform(0.2, 0.9)) * scan.slice_distance_mm
    count = int(np.ceil((length - first) / scan.slice_distance_mm)) + 1
    return first + scan.slice_distance_mm * np.arange(count)


def _images(
    subject: Subject,
    scan: MrScan,
    rng: np.random.Generator,
    positions: Floats,
    phases: Floats,
) -> NDArray[np.uint16]:
    grid = (np.arange(scan.size_px) - (scan.size_px - 1) / 2) * scan.spacing_mm
    column_mm, row_mm = np.meshgrid(grid.astype(np.float32), grid.astype(np.float32))
    shading = _shading(column_mm, row_mm, rng)
    texture = 1 + 0.12 * gaussian_filter(rng.normal(0, 1, column_mm.shape), 2.0).astype(np.float32) * 4
    images = np.empty((len(positions), len(phases), scan.size_px, scan.size_px), np.uint16)
    for index, position in enumerate(positions):
        shift = rng.normal(0, 1.5, 2)  # breath-hold position
        x, y = column_mm - scan.centre_mm[0] - shift[0], row_mm - scan.centre_mm[1] - shift[1]
        u = np.cos(scan.turn_rad) * x + np.sin(scan.turn_rad) * y
        v = -np.sin(scan.turn_rad) * x + np.cos(scan.turn_rad) * y
        clean = _slice(subject, float(position), u, v, phases, scan.spacing_mm) * shading * texture
        images[index] = _noisy(clean, scan, rng)
    return images


def _shading(x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0015, 0.004)
    return np.asarray(np.exp(strength * (np.cos(angle) * x + np.sin(angle) * y)), np.float32)


def _noisy(clean: Floats, scan: MrScan, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Rician noise: magnitude of a complex signal."""
    generator = np.random.default_rng(int(rng.integers(2**63)))
    real = clean + scan.noise * generator.standard_normal(clean.shape, dtype=np.float32)
    imaginary = scan.noise * generator.standard_normal(clean.shape, dtype=np.float32)
    return np.asarray(np.clip(scan.peak * np.hypot(real, imaginary), 0, 65535), np.uint16)


def _slice(  # noqa: PLR0913, PLR0917 - a place, a time and a heart
    subject: Subject,
    position_mm: float,
    u: Floats,
    v: Floats,
    phases: Floats,
    edge_mm: float,
) -> Floats:
    """One slice over all phases, [P, H, W], 0 to about 1; ``u`` points from the left to the right ventricle."""
    shape = left_ventricle(subject, phases)
    descent = shape.length_mm[0] - shape.length_mm  # the base comes down, the apex stays
    inner = _section(shape.radius_mm, shape.length_mm, position_mm)
    wall = _wall(subject, shape.radius_mm, descent)
    outer = _section(shape.radius_mm + wall, shape.length_mm + wall, position_mm + wall)
    body = _body(u, v, position_mm)
    right = right_ventricle_scale(subject, phases)
    level = float(np.clip(position_mm / shape.length_mm[0], 0, 1.1))
    frames = np.empty((len(phases), *u.shape), np.float32)
    distance = np.hypot(u, v)
    for index in range(len(phases)):
        frame = _with_right_ventricle(body, u, v, float(outer[index]), float(right[index]), level, subject, edge_mm)
        frame = _mix(frame, _MUSCLE, _inside(float(outer[index]) - distance, edge_mm)) if outer[index] > 0 else frame
        frame = _mix(frame, _BLOOD, _inside(float(inner[index]) - distance, edge_mm)) if inner[index] > 0 else frame
        frames[index] = frame
    return frames


def _section(radius: Floats, length: Floats, position: Floats | float) -> Floats:
    """Radius of the section at a distance from the apex; 0 where the slice misses the half-ellipsoid."""
    relative = np.asarray(position) / length
    within = (relative > 0) & (relative <= 1)
    return np.where(within, radius * np.sqrt(np.clip(1 - (1 - relative) ** 2, 0, 1)), 0.0)


def _wall(subject: Subject, radius: Floats, descent: Floats) -> Floats:
    """Wall thickness per phase: the muscle keeps its area, so it thickens as the cavity shrinks."""
    area = (radius[0] + subject.wall_mm) ** 2 - radius[0] ** 2
    return np.asarray(np.sqrt(radius**2 + area) - radius + 0.05 * descent)


def _body(u: Floats, v: Floats, position_mm: float) -> Floats:
    """Chest wall, lungs, liver: static."""
    frame = np.full(u.shape, _LUNG, np.float32)
    frame = _mix(frame, 0.45, _inside(62 - np.hypot(u - 30, v * 0.9), 3.0))  # mediastinum and pericardial fat
    frame = _mix(frame, _LIVER, _inside(55 - np.hypot(u - 20, v - 95 + 0.3 * position_mm), 3.0))
    chest = np.hypot((u - 15) / 1.25, v)
    frame = _mix(frame, 0.30, _inside(chest - 105, 3.0))
    frame = _mix(frame, _FAT, _inside(chest - 118, 3.0))
    return _mix(frame, 0.0, _inside(chest - 132, 3.0))


def _with_right_ventricle(  # noqa: PLR0913, PLR0917 - the same, and what it is drawn on
    body: Floats,
    u: Floats,
    v: Floats,
    outer_mm: float,
    scale: float,
    level: float,
    subject: Subject,
    edge_mm: float,
) -> Floats:
    """The right ventricle as a crescent around the septum; largest at the base, gone at the apex."""
    if not 0.12 < level <= 1.05:
        return body
    size = (subject.rvedv_ml / 170.0) ** (1 / 3) * np.sqrt(level)
    half_width, half_height = 26 * size * scale, 40 * size * (0.6 + 0.4 * scale)
    centre = outer_mm + 0.35 * half_width
    distance = 1 - np.hypot((u - centre) / half_width, v / half_height)
    frame = _mix(body, _MUSCLE, _inside((distance + 0.10) * half_width, edge_mm))
    return _mix(frame, _BLOOD * 0.95, _inside(distance * half_width, edge_mm))


def _inside(depth_mm: Floats, edge_mm: float) -> Floats:
    """0 outside, 1 inside, linear over one pixel: partial volume at an edge; depth is positive inside."""
    return np.asarray(np.clip(depth_mm / edge_mm + 0.5, 0, 1), np.float32)


def _mix(below: Floats, value: float, alpha: Floats) -> Floats:
    return below + alpha * (value - below)
