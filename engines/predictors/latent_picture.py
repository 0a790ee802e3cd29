"""Draws which latents carry the answer of a cardiac MR engine, on the two images it read.

Numpy and Pillow only. Called by ``predictors.base``; the report marks the directions of the patient, which it has from
the headers, and writes the picture into the PACS. No patient data is drawn.

Letters: F frame (end-diastole, end-systole), S image size, N latents, H row, W column.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from engines.predictions import Picture
from engines.predictors.patient_directions import Directions

FRAME_LABELS = ("ED", "ES")
TOWARDS_RGB = (230, 110, 0)
AWAY_RGB = (86, 180, 233)
"""Orange and sky blue (Okabe, Ito, "Color universal design", 2008): told apart in every common colour blindness."""

_PANEL_PX = 384
_GAP_PX = 8
_HEAD_PX = 30
_FOOT_PX = 92
_FONT_PX = 15
_RADIUS_PX = (2.0, 9.0)
_OPACITY = (70, 255)
_OVERSAMPLING = 3
_LINE_LETTERS = 100
_EDGE_PX = 5
_LETTERS_EXPLAINED = (
    "Letters at the edges: directions of the patient, R right, L left, A anterior, P posterior, H head, F foot."
)
_INK = (235, 235, 235)
_PAPER = (16, 16, 16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """What the network placed on two images, and what each part adds to its logit.

    Args:
        images_FSS: float [2, S, S], 0 to 1, end-diastole first.
        poses_N3: float [N, 3]: x to the right and y down in half fields of view (-1 and 1 are the centres of the first
            and the last pixel), and the orientation in radians from x towards y.
        relevance_FN: float [2, N]: additive share of each latent in the logit; positive speaks for the condition.
        shown: sentences that name the slice and the phases of the images.

    Raises:
        ValueError: the shapes do not belong together.
    """

    images_FSS: NDArray[np.floating]
    poses_N3: NDArray[np.floating]
    relevance_FN: NDArray[np.floating]
    shown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        frames, count, size = len(FRAME_LABELS), len(self.poses_N3), self.images_FSS.shape[-1]
        fits = self.images_FSS.shape == (frames, size, size)
        if not fits or self.poses_N3.shape != (count, 3) or self.relevance_FN.shape != (frames, count):
            found = f"{self.images_FSS.shape}, {self.poses_N3.shape}, {self.relevance_FN.shape}"
            msg = f"images, poses and relevance are {found}; expected [2, S, S], [N, 3] and [2, N]"
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentPicture(Picture):
    """The picture, and where the images lie in it.

    Args:
        panels_px: (x0, y0, x1, y1) of each image, end exclusive; all are shown in one view.
    """

    panels_px: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Marker:
    """One latent on one panel: centre and radius in pixels of the panel, opacity 0 to 255."""

    x_px: float
    y_px: float
    angle_rad: float
    radius_px: float
    opacity: int
    towards: bool


def latent_picture(latents: Latents, *, condition: str, warning: str) -> LatentPicture:
    """Draw both frames with their latents, and below them how to read it.

    Args:
        latents: images, poses and shares, and what is shown.
        condition: what the logit speaks for, in words.
        warning: what the reader must know of the model; the drawn line is cut at its end where it is long.

    Returns:
        The picture; the same input gives the same pixels.
    """
    panels = [_panel(latents, frame) for frame in range(len(FRAME_LABELS))]
    side = panels[0].width
    canvas = Image.new("RGB", (2 * side + _GAP_PX, _HEAD_PX + side + _FOOT_PX), _PAPER)
    draw = ImageDraw.Draw(canvas)
    lefts = [frame * (side + _GAP_PX) for frame in range(len(FRAME_LABELS))]
    for left, panel, label in zip(lefts, panels, FRAME_LABELS, strict=True):
        canvas.paste(panel, (left, _HEAD_PX))
        draw.text((left + 6, 6), label, fill=_INK, font=_font())
    _legend(draw, top=_HEAD_PX + side, lines=_legend_lines(condition, warning))
    return LatentPicture(
        rgb_HW3=np.asarray(canvas, dtype=np.uint8).copy(),
        caption=_caption(latents.shown, condition, warning),
        panels_px=tuple((left, _HEAD_PX, left + side, _HEAD_PX + side) for left in lefts),
    )


def with_directions(picture: LatentPicture, directions: Directions) -> LatentPicture:
    """Mark at the edges of every panel which way the patient lies, and say so in the caption.

    Args:
        picture: without marks.
        directions: of the view of its panels.
    """
    canvas = Image.fromarray(picture.rgb_HW3)
    draw = ImageDraw.Draw(canvas)
    for x0, y0, x1, y1 in picture.panels_px:
        middle_x, middle_y = (x0 + x1) // 2, (y0 + y1) // 2
        places = {
            "left": ((x0 + _EDGE_PX, middle_y), "lm"),
            "right": ((x1 - _EDGE_PX, middle_y), "rm"),
            "top": ((middle_x, y0 + _EDGE_PX), "ma"),
            "bottom": ((middle_x, y1 - _EDGE_PX), "md"),
        }
        for edge, (place, anchor) in places.items():
            word = directions.edges[edge]
            draw.text(place, word, fill=_INK, font=_font(), anchor=anchor, stroke_width=2, stroke_fill=_PAPER)
    return replace(
        picture, rgb_HW3=np.asarray(canvas, dtype=np.uint8).copy(), caption=f"{picture.caption} {_LETTERS_EXPLAINED}"
    )


def markers(latents: Latents, frame: int, scale: int) -> Iterator[Marker]:
    """The latents of one frame, the heaviest last so that it lies on top.

    The largest share of both frames has the largest radius and is opaque; the area grows with the share.

    Args:
        latents: images, poses and shares.
        frame: 0 end-diastole, 1 end-systole.
        scale: pixels of the panel per pixel of the image.
    """
    size = latents.images_FSS.shape[-1]
    largest = float(np.abs(latents.relevance_FN).max()) or 1.0
    weight_N = np.abs(latents.relevance_FN[frame]) / largest
    for index in np.argsort(weight_N, kind="stable"):
        x, y, angle_rad = (float(value) for value in latents.poses_N3[index])
        weight = float(weight_N[index])
        yield Marker(
            x_px=_panel_px(x, size, scale),
            y_px=_panel_px(y, size, scale),
            angle_rad=angle_rad,
            radius_px=_RADIUS_PX[0] + (_RADIUS_PX[1] - _RADIUS_PX[0]) * math.sqrt(weight),
            opacity=round(_OPACITY[0] + (_OPACITY[1] - _OPACITY[0]) * weight),
            towards=bool(latents.relevance_FN[frame, index] > 0),
        )


def _panel_px(coordinate: float, size: int, scale: int) -> float:
    """Pixel of the enlarged image in which a coordinate lies; -1 is the centre of the first pixel of the small one."""
    return ((coordinate + 1.0) / 2.0 * (size - 1) + 0.5) * scale - 0.5


def _panel(latents: Latents, frame: int) -> Image.Image:
    size = latents.images_FSS.shape[-1]
    scale = max(1, round(_PANEL_PX / size))
    grey = np.round(255.0 * np.clip(latents.images_FSS[frame], 0.0, 1.0)).astype(np.uint8)
    large = Image.fromarray(grey).resize((size * scale, size * scale), Image.Resampling.BICUBIC).convert("RGBA")
    large.alpha_composite(_overlay(latents, frame, scale))
    return large.convert("RGB")


def _overlay(latents: Latents, frame: int, scale: int) -> Image.Image:
    """The markers alone, drawn larger and made smaller again, so that edges are smooth; the heavier covers the lighter."""
    side = latents.images_FSS.shape[-1] * scale
    layer = Image.new("RGBA", (side * _OVERSAMPLING, side * _OVERSAMPLING), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for marker in markers(latents, frame, scale):
        _draw_marker(draw, marker, _OVERSAMPLING)
    return layer.resize((side, side), Image.Resampling.BOX)


def _draw_marker(draw: ImageDraw.ImageDraw, marker: Marker, scale: int) -> None:
    """A disc speaks for the condition, a square against it; the tick shows the orientation."""
    x, y, radius = ((value + 0.5) * scale for value in (marker.x_px, marker.y_px, marker.radius_px - 0.5))
    colour = (*(TOWARDS_RGB if marker.towards else AWAY_RGB), marker.opacity)
    edge = (*_PAPER, marker.opacity)
    reach = radius + 4.0 * scale
    tip = (x + reach * math.cos(marker.angle_rad), y + reach * math.sin(marker.angle_rad))
    draw.line([(x, y), tip], fill=colour, width=2 * scale)
    box = (x - radius, y - radius, x + radius, y + radius)
    if marker.towards:
        draw.ellipse(box, fill=colour, outline=edge, width=scale)
    else:
        draw.rectangle(box, fill=colour, outline=edge, width=scale)


def _legend_lines(condition: str, warning: str) -> tuple[str, ...]:
    return (
        f"speaks for {condition}",
        f"speaks against {condition}",
        "Size and opacity: share of this part of the heart in the result. Tick: orientation of the part.",
        textwrap.shorten(f"AI output, not reviewed. {warning}", _LINE_LETTERS, placeholder=" ..."),
    )


def _legend(draw: ImageDraw.ImageDraw, *, top: int, lines: tuple[str, ...]) -> None:
    height = _FOOT_PX // len(lines)
    for number, line in enumerate(lines):
        y = top + 4 + number * height
        keyed = number < 2
        if keyed:
            marker = Marker(x_px=14, y_px=y + 8, angle_rad=0, radius_px=6, opacity=255, towards=number == 0)
            _draw_marker(draw, marker, 1)
        draw.text((32 if keyed else 6, y), line, fill=_INK, font=_font())


def _caption(shown: tuple[str, ...], condition: str, warning: str) -> str:
    view = (
        "End-diastole (ED) and end-systole (ES) as the network read them, seen from the apex; this view may be mirrored or "
        "turned against the stored images."
    )
    marks = (
        f"Orange discs speak for {condition}, blue squares against it; size and opacity show the share of each part in the "
        "result, ticks its orientation."
    )
    return " ".join((view, *shown, marks, warning))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_PX)
