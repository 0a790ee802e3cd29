"""Small digital hearts, quick to render: the phantoms with coarse pixels, few phases and short clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.records import CineLoop, CineStack, EcgRecord
from training.phantoms import cmr, echo
from training.phantoms.dicom import Patient, Study, write_cmr, write_ecg, write_echo
from training.phantoms.ecg import ecg_record
from training.phantoms.subjects import Subject, draw_subject


def small_subject(seed: int) -> Subject:
    """A heart that a coarse grid still resolves: ejection fraction of 45 to 65 %."""
    rng = np.random.default_rng(seed)
    subject = draw_subject(rng)
    while not 45 <= subject.lvef_percent <= 65:
        subject = draw_subject(rng)
    return subject


def small_mr_scan(seed: int, **changes: Any) -> cmr.MrScan:
    """3 mm pixels, 12 phases, 10 mm slices."""
    coarse = {"size_px": 88, "spacing_mm": 3.0, "phases": 12, "slice_distance_mm": 10.0, "one_series_per_slice": False}
    return replace(cmr.draw_scan(np.random.default_rng(seed)), **{**coarse, **changes})


def small_stack(seed: int, **changes: Any) -> CineStack:
    """A short-axis stack of the heart with this seed."""
    return cmr.rendered(small_subject(seed), small_mr_scan(seed, **changes), np.random.default_rng(seed))


def small_ultrasound_scan(seed: int, **changes: Any) -> echo.UltrasoundScan:
    """40 frames, 40 ms apart."""
    scan = echo.draw_scan(np.random.default_rng(seed), small_subject(seed))
    return replace(scan, **{"frames": 40, "frame_ms": 40.0, **changes})


def small_loop(seed: int, **changes: Any) -> CineLoop:
    """A four-chamber clip of the heart with this seed."""
    subject, scan = small_subject(seed), small_ultrasound_scan(seed, **changes)
    return echo.loop_of(subject, scan, echo.rendered(subject, scan, np.random.default_rng(seed)))


def clean_ecg(seed: int) -> EcgRecord:
    """An ECG of any heart."""
    rng = np.random.default_rng(seed)
    return ecg_record(draw_subject(rng), rng)


def written(modality: str, seed: int, folder: Path, patient: Patient) -> list[bytes]:
    """The small heart as the instances of a DICOM study."""
    subject, rng = small_subject(seed), np.random.default_rng(seed)
    study = Study(key=f"small/{seed}", number=1, patient=patient, subject=subject, description="Small phantom")
    if modality == "cmr":
        scan, stack = small_mr_scan(seed), small_stack(seed)
        files = write_cmr(study, scan, np.asarray(stack.images_SPHW, np.uint16), stack.trigger_times_ms, folder)
    elif modality == "echo":
        ultrasound = small_ultrasound_scan(seed)
        files = write_echo(study, ultrasound, echo.rendered(subject, ultrasound, rng), folder)
    else:
        files = write_ecg(study, ecg_record(subject, rng), rng, folder)
    return [path.read_bytes() for path in files]


def restored(stack: CineStack, turns: int, mirrored: bool) -> CineStack:
    """The same heart as another scanner stores it: turned or mirrored images with the orientation that says so."""
    row, column = np.array(stack.orientation[:3]), np.array(stack.orientation[3:])
    images, positions, sources = stack.images_SPHW, stack.slice_positions_mm, stack.sources_SP
    for _ in range(turns):
        images, row, column = np.rot90(images, axes=(2, 3)), column, -row
    if mirrored:
        images, row = images[::-1, :, :, ::-1], -row
        positions, sources = -positions[::-1], sources[::-1]
    a, b, c, d, e, f = (float(value) for value in (*row, *column))
    return replace(
        stack,
        images_SPHW=images,
        orientation=(a, b, c, d, e, f),
        slice_positions_mm=positions,
        sources_SP=sources,
    )
