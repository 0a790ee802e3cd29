"""Settings of the scanners that the echo phantoms are seen with: ranges that the settings of one clip are drawn from.

``FAMILIAR`` is what every digital heart is drawn with. ``FOREIGN`` is a scanner of another make, for the question of how a
network does where it was not trained: finer pixels, more frames, a narrower and deeper sector, less gain, another
compression, more attenuation, more shadows and less contrast between blood and muscle.
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ScannerSettings:
    """Ranges of ``training.phantoms.echo.UltrasoundScan``; a heart that is larger than its depth gets more.

    Args:
        name: for tables and data sets.
        heights_px: of the frame; each as likely.
        frame_rate_hz: frames a second.
        duration_s: length of a clip.
        depth_mm: of the sector.
        half_angle_rad: of the sector.
        tilt_sd_rad: standard deviation of the angle between heart and beam.
        apex_depth_mm: from the transducer to the apex.
        gain, compression, attenuation, dropout, blood: of the image.
    """

    name: str
    heights_px: tuple[int, ...]
    frame_rate_hz: Range
    duration_s: Range
    depth_mm: Range
    half_angle_rad: Range
    tilt_sd_rad: float
    apex_depth_mm: Range
    gain: Range
    compression: Range
    attenuation: Range
    dropout: Range
    blood: Range


FAMILIAR = ScannerSettings(
    name="familiar",
    heights_px=(224, 240, 256),
    frame_rate_hz=(25, 60),
    duration_s=(2.4, 3.4),
    depth_mm=(140, 180),
    half_angle_rad=(0.60, 0.76),
    tilt_sd_rad=0.10,
    apex_depth_mm=(12, 24),
    gain=(0.75, 1.25),
    compression=(0.55, 0.85),
    attenuation=(0.0, 0.006),
    dropout=(0.0, 0.6),
    blood=(0.03, 0.10),
)

FOREIGN = ScannerSettings(
    name="foreign",
    heights_px=(288, 304),
    frame_rate_hz=(50, 75),
    duration_s=(2.4, 3.4),
    depth_mm=(175, 205),
    half_angle_rad=(0.52, 0.62),
    tilt_sd_rad=0.16,
    apex_depth_mm=(16, 30),
    gain=(0.60, 0.85),
    compression=(0.45, 0.60),
    attenuation=(0.004, 0.008),
    dropout=(0.3, 0.8),
    blood=(0.07, 0.15),
)

SCANNERS = {settings.name: settings for settings in (FAMILIAR, FOREIGN)}
