"""A short-axis bSSFP cine stack of a subject, from end-diastole on, with labels where they are asked for.

The cavity areas of the slices times their distance give the volumes back (``cmr_heart``). The heart lies in the patient
as hearts do, and the stack is stored as scanners do (``cmr_view``). Body, coil shading, banding, breath-hold shifts,
mis-triggering and Rician noise are nuisance that no other modality sees; ``cmr_difficulty`` says how much.

Letters: S slice, P phase, H row, W column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.records import CineStack, SourceInstance
from training.phantoms import cmr_difficulty as difficulty
from training.phantoms.cmr_body import Body, Slab, banding, coil_gain, draw_body, noise_field, painted_body
from training.phantoms.cmr_heart import Motion, Outlines, draw_motion, outlines
from training.phantoms.cmr_paint import HeartDetail, draw_detail, painted_heart, painted_labels, patch_of
from training.phantoms.cmr_tissue import Tissues, draw_tissues
from training.phantoms.cmr_view import draw_view, feet_rad
from training.phantoms.cycle import left_ventricle
from training.phantoms.subjects import Floats, Subject

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
_PATCH_MARGIN_MM = 14.0


@dataclass(frozen=True, kw_only=True)
class MrScan:
    """Scanner settings of one stack, drawn apart from the heart.

    Args:
        size_px, spacing_mm: square matrix and pixel.
        slice_distance_mm, phases: slices and phases of the beat.
        turn_rad: direction of the right ventricle in the stored image, from the row towards the column direction.
        apex_first: slices run from apex to base along the stored normal, else from base to apex.
        centre_mm: place of the left ventricle in the stored image, (column, row) from its centre.
        noise: standard deviation of either channel, relative to ``peak``.
        orientation: ImageOrientationPatient.
        origin_mm: point of the patient in the middle of the first slice.
        one_series_per_slice: how the series are divided.
        peak: stored value of grey level 1.
    """

    size_px: int
    spacing_mm: float
    slice_distance_mm: float
    phases: int
    turn_rad: float
    apex_first: bool
    centre_mm: tuple[float, float]
    noise: float
    orientation: tuple[float, float, float, float, float, float]
    origin_mm: tuple[float, float, float]
    one_series_per_slice: bool
    peak: float


def draw_scan(rng: np.random.Generator) -> MrScan:
    """Draw scanner settings: 1.4 to 1.9 mm pixels, 8 to 10 mm slices, 20 to 30 phases, views of ``cmr_view``."""
    view = draw_view(rng)
    x, y, z = (float(value) for value in np.round(rng.normal(0, 40, 3), 2))
    return MrScan(
        size_px=int(rng.choice([160, 176, 192])),
        spacing_mm=float(np.round(rng.uniform(1.4, 1.9), 3)),
        slice_distance_mm=float(rng.choice([8.0, 9.0, 10.0])),
        phases=int(rng.choice([20, 25, 30])),
        turn_rad=view.turn_rad,
        apex_first=view.apex_first,
        centre_mm=(float(rng.normal(0, 12)), float(rng.normal(0, 12))),
        noise=float(rng.uniform(*difficulty.NOISE)),
        orientation=view.cosines(),
        origin_mm=(x, y, z),
        one_series_per_slice=bool(rng.random() < 0.3),
        peak=float(rng.uniform(400, 3000)),
    )


@dataclass(frozen=True, kw_only=True)
class _Chest:
    """Everything that is drawn once for a stack."""

    subject: Subject
    scan: MrScan
    motion: Motion
    detail: HeartDetail
    tissues: Tissues
    body: Body
    gain_HW: Floats
    fine_HW: Floats
    coarse_HW: Floats


def cmr_stack(subject: Subject, rng: np.random.Generator) -> CineStack:
    """Render a stack with scanner settings of its own; sources carry placeholder UIDs."""
    return rendered(subject, draw_scan(rng), rng)


def rendered(subject: Subject, scan: MrScan, rng: np.random.Generator) -> CineStack:
    """Render a stack with the given settings."""
    return rendered_with_labels(subject, scan, rng)[0]


def rendered_with_labels(
    subject: Subject, scan: MrScan, rng: np.random.Generator
) -> tuple[CineStack, NDArray[np.uint8]]:
    """Render a stack and say what each pixel shows.

    Returns:
        The stack that ``rendered`` gives, and uint8 [S, P, H, W]: 0 background, 1 left ventricular cavity (papillary
        muscles included), 2 left ventricular muscle, 3 right ventricular cavity.
    """
    positions = _slice_positions(subject, scan, rng)
    phases = np.arange(scan.phases) / scan.phases
    chest = _draw_chest(subject, scan, rng)
    order = positions if scan.apex_first else positions[::-1]
    slices = [_slice(chest, float(position), phases, rng) for position in order]
    return _stack(subject, scan, positions, np.stack([image for image, _ in slices])), np.stack(
        [labels for _, labels in slices]
    )


def _stack(subject: Subject, scan: MrScan, positions: Floats, images_SPHW: NDArray[np.uint16]) -> CineStack:
    interval_ms = 60000.0 / subject.heart_rate_bpm
    times = np.tile(np.round(np.arange(scan.phases) / scan.phases * interval_ms, 1), (len(positions), 1))
    offset = float(np.dot(scan.origin_mm, np.cross(scan.orientation[:3], scan.orientation[3:])))
    return CineStack(
        images_SPHW=images_SPHW,
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


def _draw_chest(subject: Subject, scan: MrScan, rng: np.random.Generator) -> _Chest:
    motion, detail, tissues = draw_motion(rng), draw_detail(rng), draw_tissues(rng, scan.spacing_mm)
    radius_mm = float(left_ventricle(subject, np.zeros(1)).radius_mm[0]) + subject.wall_mm
    x, y = _grid(scan)
    a, b = _standard_view(scan, x, y)
    fine, coarse = (noise_field(a.shape, grain_mm / scan.spacing_mm, rng) for grain_mm in (1.8, 6.0))
    gain = coil_gain(a, b, rng) * banding(a, b, rng) * (1 + tissues.texture * (0.7 * fine + 0.7 * coarse))
    return _Chest(
        subject=subject,
        scan=scan,
        motion=motion,
        detail=detail,
        tissues=tissues,
        body=draw_body(rng, radius_mm),
        gain_HW=np.maximum(gain, 0),
        fine_HW=fine,
        coarse_HW=coarse,
    )


def _grid(scan: MrScan, shift_mm: tuple[float, float] = (0.0, 0.0)) -> tuple[Floats, Floats]:
    """Distance of each pixel from the left ventricle's axis along the row and the column direction, float32 [H, W]."""
    grid = (np.arange(scan.size_px) - (scan.size_px - 1) / 2) * scan.spacing_mm
    x, y = np.meshgrid(grid - scan.centre_mm[0] - shift_mm[0], grid - scan.centre_mm[1] - shift_mm[1])
    return x.astype(np.float32), y.astype(np.float32)


def _standard_view(scan: MrScan, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coordinates to the right and down in the standard view, where the feet are down and the apex is in front."""
    feet, hand = feet_rad(scan.orientation), 1 if scan.apex_first else -1
    return hand * (np.sin(feet) * x - np.cos(feet) * y), np.cos(feet) * x + np.sin(feet) * y


def _heart_axes(scan: MrScan, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coordinates to the right ventricle and to its anterior insertion: with the long axis a right-handed frame."""
    hand = 1 if scan.apex_first else -1
    cos, sin = np.cos(scan.turn_rad), np.sin(scan.turn_rad)
    return cos * x + sin * y, hand * (cos * y - sin * x)


def _slice(
    chest: _Chest, position_mm: float, phases: Floats, rng: np.random.Generator
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Images and labels of one slice, [P, H, W] each."""
    scan, tissues = chest.scan, chest.tissues
    dx, dy = (float(value) for value in difficulty.BREATH_HOLD_SD_MM * rng.normal(0, 1, 2))
    late = np.mod(phases + difficulty.TRIGGER_JITTER_SD * rng.normal(), 1.0)
    x, y = _grid(scan, (dx, dy))
    body = painted_body(chest.body, tissues, _slab(chest, x, y, position_mm))
    curves = outlines(chest.subject, chest.motion, position_mm, late)
    rows, columns = _patch_limits(curves, x, y)
    patch = patch_of(*_heart_axes(scan, x[rows, columns], y[rows, columns]))
    frames = np.repeat((body * chest.gain_HW)[None], len(phases), axis=0)
    heart = painted_heart(curves, chest.detail, tissues, patch, body[rows, columns], late)
    frames[:, rows, columns] = heart * chest.gain_HW[rows, columns]
    labels = np.zeros(frames.shape, np.uint8)
    labels[:, rows, columns] = painted_labels(curves, patch)
    return _noisy(frames, scan, rng), labels


def _slab(chest: _Chest, x: Floats, y: Floats, position_mm: float) -> Slab:
    """Where the pixels of a slice lie in the body; its noise moves on with the slice."""
    a, b = _standard_view(chest.scan, x, y)
    steps = (round(11.7 * position_mm), round(4.3 * position_mm))
    fine, coarse = (np.roll(noise, steps, axis=(0, 1)) for noise in (chest.fine_HW, chest.coarse_HW))
    return Slab(a=a, b=b, position_mm=position_mm, fine=fine, coarse=coarse)


def _patch_limits(curves: Outlines, x: Floats, y: Floats) -> tuple[slice, slice]:
    """Rows and columns that the heart reaches."""
    reach = float(curves.right_PA.max()) + _PATCH_MARGIN_MM
    rows, columns = np.flatnonzero(np.abs(y[:, 0]) <= reach), np.flatnonzero(np.abs(x[0]) <= reach)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _noisy(clean_PHW: Floats, scan: MrScan, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Rician noise: magnitude of a complex signal."""
    generator = np.random.default_rng(int(rng.integers(2**63)))
    real = clean_PHW + scan.noise * generator.standard_normal(clean_PHW.shape, dtype=np.float32)
    imaginary = scan.noise * generator.standard_normal(clean_PHW.shape, dtype=np.float32)
    return np.asarray(np.clip(scan.peak * np.hypot(real, imaginary), 0, 65535), np.uint16)
