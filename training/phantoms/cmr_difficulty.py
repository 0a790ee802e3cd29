"""How hard the short-axis phantoms are: every constant that decides what one slice tells of the whole heart.

The volumes of a subject stay exact whatever is set here. Zero switches a difficulty off; larger is harder. The other
``cmr`` modules read these values when they draw, so that a caller may change them for a calibration.
"""

from __future__ import annotations

CONTRACTION_VARIATION_SD = 0.10
"""Uneven contraction from apex to base. The loss of cavity area in systole is multiplied by ``1 + f``, where ``f`` is the
sum of an apex-to-base slope and a mid-ventricular wave, each of this root-mean-square size. The mid slice of a heart
then contracts more or less than the whole heart does: this sets the error of any answer from one slice."""

REGIONAL_SHARE = 0.5
"""Share of the hearts with a sector of the wall that moves inward less than the rest."""

REGIONAL_SEVERITY = (0.3, 1.0)
"""How much less that sector moves: 0 as the rest, 1 not at all. The area of the cavity stays, its shape does not."""

APEX_SHIFT_SD_MM = 2.0
"""Through-plane motion: by how much the whole heart moves along its axis from diastole to systole, besides the descent
of the base, so that a slice shows another part of the wall."""

TRIGGER_JITTER_SD = 0.012
"""Mis-triggering: shift of each slice's phases, as a fraction of the heart beat."""

BREATH_HOLD_SD_MM = 2.0
"""In-plane shift of each slice from another depth of breath."""

NOISE = (0.01, 0.05)
"""Range of the noise (standard deviation of either channel), where blood is about 0.85."""

BLOOD_MUSCLE_CONTRAST = (0.42, 0.62)
"""Range of the difference between blood and muscle; narrower and lower is harder."""

BLUR_PX = (1.0, 2.0)
"""Range of the width of an edge, pixels: partial volume within the slice and motion within a phase."""

PAPILLARY_SCALE = 1.0
"""Size of the papillary muscles and trabeculae; 0 removes them."""

BANDING_SHARE = 0.2
"""Share of the stacks with a dark off-resonance band."""
