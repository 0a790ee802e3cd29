"""The parameters of preprocessing, which travel with the weights in the manifest.

No field has a default value: a manifest that lacks one is refused, so that nobody serves with a number
that training never saw. Called by ``registry`` and the three preprocessing modules; written by training.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EchoSpec(_Spec):
    """B-mode clip to ``clip`` uint8 [K, 1, T, S, S].

    Args:
        size_px: side S of the square.
        clip_frames: frames T of a clip.
        clips: evenly spaced clips K; fewer when the loop has no room for K different starts.
        frame_step_ms: time between two frames of a clip; frames are the nearest in time.
        frame_interval_max_ms: refuse loops recorded with longer gaps between frames.
        frames_min: refuse loops with fewer recorded frames.
        duration_min_ms: refuse loops that last less.
        short_loop: what a clip longer than its loop is filled with: nothing (refused) or black frames at the end.
        sector_frames: frames looked at to find the sector, evenly spaced.
        sector_deviation_min: temporal standard deviation, grey levels, from which a pixel counts as moving tissue.
        sector_area_min: smallest accepted sector, as a fraction of the region (or frame) it is searched in.
        sector_area_max: largest accepted sector; above it the whole screen moves and there is no sector.
        margin_fraction: border left around the sector, as a fraction of its longer side.
        chroma_spread_max: mean absolute departure from grey inside the sector, grey levels; above it is colour Doppler.
    """

    kind: Literal["echo"]
    preprocess_version: Literal[1]
    size_px: Annotated[int, Field(ge=16, le=1024)]
    clip_frames: Annotated[int, Field(ge=2, le=512)]
    clips: Annotated[int, Field(ge=1, le=64)]
    frame_step_ms: Positive
    frame_interval_max_ms: Positive
    frames_min: Annotated[int, Field(ge=2)]
    duration_min_ms: Positive
    short_loop: Literal["refuse", "black_end"]
    sector_frames: Annotated[int, Field(ge=4, le=64)]
    sector_deviation_min: Positive
    sector_area_min: Fraction
    sector_area_max: Fraction
    margin_fraction: Fraction
    chroma_spread_max: Positive


class EchoCleanSpec(EchoSpec):
    """Version 2: as ``EchoSpec``, with overlays taken out of the sector and implausible sectors refused.

    A pixel that once was coloured is overlay (ECG trace, markers), and so is one that stands still, is bright and belongs
    to a thin stroke (text, scales). Overlay is left out of the area averages, so that the tissue around it fills in.

    Args:
        loops_max: candidate loops of a study that are decoded.
        overlay_colour_min: departure from grey, grey levels, from which a pixel is overlay.
        overlay_still_max: temporal standard deviation, grey levels, up to which a pixel stands still.
        overlay_bright_min: temporal mean, grey levels, from which a pixel that stands still may be text.
        overlay_stroke_px: widest stroke of text, source pixels; broader still parts are tissue.
        overlay_grow_px: border added to every overlay, source pixels; compression blurs its edge.
        colour_fraction_max: largest accepted coloured part of the sector; above it is colour Doppler.
        opening_degrees_min, opening_degrees_max: accepted angle between the sides of the sector.
        apex_column_min, apex_column_max: accepted column of the apex, as a fraction of the sector's width.
        apex_row_max: lowest accepted row of the apex, as a fraction of the sector's height below its top edge; the apex of
            a curved array lies above the top edge.
        saturated_level: grey level from which a pixel is saturated.
        saturated_fraction_max: largest accepted saturated part of the sector.
    """

    preprocess_version: Literal[2]  # type: ignore[assignment]
    loops_max: Annotated[int, Field(ge=1, le=64)]
    overlay_colour_min: Positive
    overlay_still_max: Positive
    overlay_bright_min: Positive
    overlay_stroke_px: Annotated[int, Field(ge=1, le=32)]
    overlay_grow_px: Annotated[int, Field(ge=0, le=8)]
    colour_fraction_max: Fraction
    opening_degrees_min: Annotated[float, Field(ge=-180.0, le=180.0)]
    opening_degrees_max: Annotated[float, Field(ge=-180.0, le=180.0)]
    apex_column_min: float
    apex_column_max: float
    apex_row_max: float
    saturated_level: Annotated[int, Field(ge=1, le=255)]
    saturated_fraction_max: Fraction


class CmrSpec(_Spec):
    """Short-axis cine stack to ``image`` float32 [1, 2, S, S]: mid slice, end-diastole then end-systole.

    Args:
        size_px: side S of the square crop.
        pixel_spacing_mm: of the crop.
        search_spacing_mm: of the coarse grid on which the left ventricle is sought.
        slices_min: refuse stacks with fewer slices.
        phases_min: refuse stacks with fewer phases.
        motion_contrast_min: strongest over median motion; below it nothing beats in the stack.
        motion_fraction_min: a ventricle is sought where motion exceeds this fraction of its maximum.
        ventricle_score_min: smallest contrast between blood pool and wall, less the pool's texture, over the pool's grey
            value; of the middle half of the stack.
        slice_score_min: the same of one slice, from which it is taken to hold the left ventricle.
        percentile_low: of both crops together; becomes 0.
        percentile_high: of both crops together; becomes 1.
    """

    kind: Literal["cmr"]
    preprocess_version: Literal[2]
    size_px: Annotated[int, Field(ge=16, le=512)]
    pixel_spacing_mm: Positive
    search_spacing_mm: Positive
    slices_min: Annotated[int, Field(ge=1)]
    phases_min: Annotated[int, Field(ge=4)]
    motion_contrast_min: Positive
    motion_fraction_min: Fraction
    ventricle_score_min: Fraction
    slice_score_min: Fraction
    percentile_low: Annotated[float, Field(ge=0.0, lt=50.0)]
    percentile_high: Annotated[float, Field(gt=50.0, le=100.0)]


class EcgSpec(_Spec):
    """Twelve-lead ECG to ``ecg`` float32 [1, 12, N].

    Args:
        profile: name of the processing chain; ``ecg_spine_v1`` is polyphase resampling, zero-phase Butterworth
            high-pass, first clean window, fixed scale (amplitude carries information).
        sampling_rate_hz: of the output.
        window_samples: N of the output.
        window_min_s: shortest accepted record; what lacks to the window is filled with 0 mV at the end.
        window_step_s: distance between the windows tried.
        source_rate_min_hz: lowest accepted native rate.
        source_rate_max_hz: highest accepted native rate.
        highpass_hz: -3 dB edge of one pass; the filter runs forwards and backwards.
        highpass_order: of one pass.
        scale_mv: millivolts that become 1.
        flat_deviation_mv: standard deviation over one second below which a lead is flat.
        flat_fraction_max: largest accepted flat part of a lead.
        amplitude_max_mv: largest accepted departure from the median of a lead.
        saturated_fraction_max: largest accepted part of samples on a clipped plateau.
        saturated_run_ms: shortest stay at a lead's extreme value that counts as a plateau.
        consistency_max_mv: largest accepted 98th percentile of ``|I + III - II|`` and ``|aVR + aVL + aVF|``.
    """

    kind: Literal["ecg"]
    preprocess_version: Literal[1]
    profile: Literal["ecg_spine_v1"]
    sampling_rate_hz: Annotated[int, Field(ge=100, le=1000)]
    window_samples: Annotated[int, Field(ge=100)]
    window_min_s: Positive
    window_step_s: Positive
    source_rate_min_hz: Positive
    source_rate_max_hz: Positive
    highpass_hz: Positive
    highpass_order: Annotated[int, Field(ge=1, le=8)]
    scale_mv: Positive
    flat_deviation_mv: Positive
    flat_fraction_max: Fraction
    amplitude_max_mv: Positive
    saturated_fraction_max: Fraction
    saturated_run_ms: Positive
    consistency_max_mv: Positive


class EcgCleanSpec(EcgSpec):
    """Version 2: as ``EcgSpec``, with leads masked or refused by rule, doubts flagged, and a choice of profiles.

    Args:
        profile: the processing chain behind the gate, by name and year; ``ecg_profiles`` holds them.
        masked_precordial_max: precordial leads that may be missing and become zeros; above 0 only for networks trained with
            lead dropout.
        pace_prominence_mv, pace_ratio: a spike stands out of its 4 ms by this many millivolts and by this many times what the
            98th percentile of the lead does.
        pace_hits_min: spikes in a record from which its rhythm counts as paced.
        lowpass_min_hz, highpass_max_hz: filters of the cart that are flagged.
        heart_rate_min_bpm, heart_rate_max_bpm: rates outside are flagged.
        swap_correlation_max: correlation of leads I and V6 below which the arms may be swapped.
        swap_flat_fraction: size of lead II as a part of the precordial leads' below which the right leg may be on the arm.
        swap_p_ratio: P of lead I over P of lead II above which left arm and leg may be swapped.
        swap_path_ratio: length of the way V2, V1, V3 as a part of the way V1, V2, V3, in millivolts over the QRS, below which V1
            and V2 may be swapped.
    """

    preprocess_version: Literal[2]  # type: ignore[assignment]
    profile: Literal["ecg_clean_2026", "ams2025", "turgut2025"]  # type: ignore[assignment]
    masked_precordial_max: Annotated[int, Field(ge=0, le=2)]
    pace_prominence_mv: Positive
    pace_ratio: Positive
    pace_hits_min: Annotated[int, Field(ge=1)]
    lowpass_min_hz: Positive
    highpass_max_hz: Positive
    heart_rate_min_bpm: Positive
    heart_rate_max_bpm: Positive
    swap_correlation_max: Annotated[float, Field(ge=-1.0, le=1.0)]
    swap_flat_fraction: Fraction
    swap_p_ratio: Positive
    swap_path_ratio: Positive


EcgVersions = Annotated[EcgSpec | EcgCleanSpec, Field(discriminator="preprocess_version")]
EchoVersions = Annotated[EchoSpec | EchoCleanSpec, Field(discriminator="preprocess_version")]
PreprocessSpec = Annotated[EchoVersions | CmrSpec | EcgVersions, Field(discriminator="kind")]


def spec_sha256(spec: EchoSpec | CmrSpec | EcgSpec) -> str:
    """Digest of a spec: SHA-256, hexadecimal, of its JSON with sorted keys and no spaces."""
    document = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()
