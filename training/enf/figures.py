"""Pictures of the comparison: reconstructions, latents, embedding, turns, curves; each 1200 px wide as PNG.

Every function returns a figure, ``write_png`` writes it. Colours are those of Okabe and Ito, told apart by colour-blind
readers; what a colour says is also said by shape or word. Called by the protocol and by ``training.cli``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.enf.outcome import ModelOutcome
from training.enf.projection import project

FloatArray = NDArray[np.float64]
Images = NDArray[np.floating[Any]]

WIDTH_PX = 1200
_DPI = 100
_FONT_PT = 13
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#8C8C8C"
_FRAMES = ("end diastole", "end systole")
_TICK_HALF_FIELD = 0.1


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One measured quantity over the steps of a training.

    Attributes:
        label: of the y axis, with its unit.
        steps: iterations or epochs, [n].
        values: [n].
        steps_label: of the x axis.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    steps_label: str = "iteration"


def write_png(figure: Any, path: Path) -> None:
    """Write a figure as PNG, 1200 px wide, the same bytes for the same figure."""
    figure.savefig(path, dpi=_DPI, format="png", facecolor="white", metadata={"Software": None})


def reconstruction_figure(images_n2SS: Images, reconstructions_n2SS: Images, psnr_db_n2: FloatArray) -> Any:
    """Return one row per heart: image, reconstruction and difference of ED and of ES, PSNR above each pair.

    Args:
        images_n2SS: 0 to 1, ED and ES.
        reconstructions_n2SS: of the same shape.
        psnr_db_n2: peak signal-to-noise ratio in dB.

    Raises:
        ValueError: when the shapes do not fit.
    """
    if images_n2SS.shape != reconstructions_n2SS.shape or psnr_db_n2.shape != images_n2SS.shape[:2]:
        shapes = images_n2SS.shape, reconstructions_n2SS.shape, psnr_db_n2.shape
        raise ValueError(f"images, reconstructions and PSNR have shapes {shapes}; expected [n,2,S,S] twice and [n,2]")
    figure, axes = _grid(len(images_n2SS), 6, height_px=230 * len(images_n2SS) + 60)
    for row, heart in enumerate(axes):
        for frame, name in enumerate(_FRAMES):
            pair = images_n2SS[row, frame], reconstructions_n2SS[row, frame]
            _draw_pair(heart[3 * frame : 3 * frame + 3], pair, f"{psnr_db_n2[row, frame]:.1f} dB")
            if row == 0:
                heart[3 * frame].set_title(name)
    return figure


def _draw_pair(axes: Any, pair: tuple[Images, Images], psnr: str) -> None:
    image, reconstruction = pair
    _draw_image(axes[0], image)
    _draw_image(axes[1], reconstruction)
    axes[1].set_title(psnr)
    axes[2].imshow(reconstruction - image, cmap="RdBu_r", vmin=-0.25, vmax=0.25, interpolation="nearest")
    axes[2].set_title("difference ±0.25")


def latent_overlay_figure(
    image_2SS: Images, poses_N3: FloatArray, relevance_2N: FloatArray, threshold_percent: float
) -> Any:
    """Return ED and ES with their latents: a marker each, size by |relevance|, colour by sign, tick by orientation.

    Args:
        image_2SS: 0 to 1.
        poses_N3: column and row in half fields of view, -1 to 1, and theta in rad from the column towards the row axis.
        relevance_2N: share of each latent in the logit; positive speaks for a low LVEF.
        threshold_percent: up to which an LVEF is low.

    Raises:
        ValueError: when the shapes do not fit.
    """
    count = len(poses_N3)
    if poses_N3.shape != (count, 3) or relevance_2N.shape != (2, count):
        shapes = poses_N3.shape, relevance_2N.shape
        raise ValueError(f"poses and relevance have shapes {shapes}; expected [N,3] and [2,N]")
    figure, axes = _grid(1, 2, height_px=680)
    largest = float(np.abs(relevance_2N).max())
    for frame, axis in enumerate(axes[0]):
        _draw_image(axis, image_2SS[frame])
        _draw_latents(axis, pixels(poses_N3, image_2SS.shape[-1]), relevance_2N[frame], largest)
        axis.set_title(_FRAMES[frame])
    high, low = _classes(threshold_percent)
    figure.suptitle(f"blue circle: for {high}; vermilion square: for {low}; area: share in the logit")
    return figure


def pixels(poses_N3: FloatArray, size_px: int) -> FloatArray:
    """Return column, row of the latents and of the ends of their ticks in pixels, [N,4].

    Coordinates run from -1 to 1 over the centres of the first and the last pixel, so pixel = (t + 1) / 2 * (S - 1).
    """
    t_N2, theta_N = poses_N3[:, :2], poses_N3[:, 2]
    tips_N2 = t_N2 + _TICK_HALF_FIELD * np.stack([np.cos(theta_N), np.sin(theta_N)], axis=1)
    pixels_N4: FloatArray = (np.concatenate([t_N2, tips_N2], axis=1) + 1) / 2 * (size_px - 1)
    return pixels_N4


def _draw_latents(axis: Any, pixels_N4: FloatArray, relevance_N: FloatArray, largest: float) -> None:
    area_N = 12 + 240 * np.abs(relevance_N) / largest if largest else np.full(len(relevance_N), 12.0)
    for chosen_N, colour, marker in ((relevance_N > 0, VERMILION, "s"), (relevance_N <= 0, BLUE, "o")):
        column, row, tip_column, tip_row = pixels_N4[chosen_N].T
        axis.plot(np.stack([column, tip_column]), np.stack([row, tip_row]), color=colour, linewidth=1.5)
        axis.scatter(column, row, s=area_N[chosen_N], c=colour, marker=marker, edgecolors="white", linewidths=0.6)


def embedding_figure(
    embeddings_nE: FloatArray, lvef_percent_n: FloatArray, threshold_percent: float, *, seed: int = 0
) -> Any:
    """Return the hearts in two dimensions, coloured by LVEF, the two classes by shape; the title names the projection."""
    positions_n2, method = project(embeddings_nE, seed=seed)
    figure, axes = _grid(1, 1, height_px=900, images=False)
    axis = axes[0, 0]
    low_n = lvef_percent_n <= threshold_percent
    high, low = _classes(threshold_percent)
    scale = {"vmin": float(lvef_percent_n.min()), "vmax": float(lvef_percent_n.max()), "cmap": "cividis"}
    for chosen_n, marker, label in ((low_n, "^", low), (~low_n, "o", high)):
        column, row = positions_n2[chosen_n].T
        colour = lvef_percent_n[chosen_n]
        points = axis.scatter(column, row, c=colour, marker=marker, s=60, edgecolors="black", linewidths=0.4, **scale)
        points.set_label(label)
    figure.colorbar(points, ax=axis, label="LVEF, %")
    axis.set(title=f"{method} of {len(embeddings_nE)} embeddings, seed {seed}", xticks=[], yticks=[])
    axis.legend()
    return figure


def turn_figure(outcomes: Sequence[ModelOutcome]) -> Any:
    """Return one panel per model: logits after quarter turns over those before, all seeds, flips marked by crosses."""
    by_model: dict[str, list[ModelOutcome]] = {}
    for outcome in outcomes:
        by_model.setdefault(outcome.model, []).append(outcome)
    columns = min(3, len(by_model))
    rows = -(-len(by_model) // columns)
    figure, axes = _grid(rows, columns, height_px=WIDTH_PX // columns * rows, images=False)
    for axis in axes.flat[len(by_model) :]:
        axis.set_axis_off()
    for axis, (model, group) in zip(axes.flat, by_model.items(), strict=False):
        _draw_turns(axis, model, group)
    return figure


def _draw_turns(axis: Any, model: str, outcomes: Sequence[ModelOutcome]) -> None:
    pairs = [(outcome.test_logits, turned.logits) for outcome in outcomes for turned in outcome.of_kind("quarter")]
    if not pairs:
        raise ValueError(f"{model} has no quarter turn to draw; measure 90, 180 and 270 degrees first")
    before, after = (np.concatenate(part) for part in zip(*pairs, strict=True))
    flipped = (before > 0) != (after > 0)
    axis.axline((0, 0), slope=1, color=GREY, linewidth=1)
    axis.axhline(0, color=GREY, linewidth=1, linestyle=":")
    axis.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axis.scatter(before[~flipped], after[~flipped], s=14, c=BLUE)
    axis.scatter(before[flipped], after[flipped], s=60, c=VERMILION, marker="x")
    axis.set(title=f"{model}: {int(flipped.sum())} of {len(flipped)} flip", xlabel="logit unturned", ylabel="turned")


def curve_figure(curves: Sequence[Curve]) -> Any:
    """Return one panel per curve, beneath each other."""
    figure, axes = _grid(len(curves), 1, height_px=330 * len(curves), images=False)
    for axis, curve, colour in zip(axes[:, 0], curves, [BLUE, VERMILION] * len(curves), strict=False):
        axis.plot(curve.steps, curve.values, color=colour, marker="o", markersize=3)
        axis.set(xlabel=curve.steps_label, ylabel=curve.label)
        axis.grid(visible=True, alpha=0.3)
    return figure


def gallery_figure(image_2SS: Images, probabilities: Mapping[str, Sequence[float]], threshold_percent: float) -> Any:
    """Return ED and ES at 0, 90, 180 and 270 degrees with each model's probability of a low LVEF beneath.

    Args:
        image_2SS: 0 to 1, unturned.
        probabilities: of each model at the four turns.
        threshold_percent: up to which an LVEF is low.

    Raises:
        ValueError: when a model has not four probabilities.
    """
    wrong = [model for model, values in probabilities.items() if len(values) != 4]
    if wrong:
        raise ValueError(f"{wrong} have not four probabilities; expected one for each of 0, 90, 180, 270 degrees")
    figure, axes = _grid(2, 4, height_px=720 + 34 * len(probabilities))
    for quarter in range(4):
        for frame, name in enumerate(_FRAMES):
            _draw_image(axes[frame, quarter], np.rot90(image_2SS[frame], quarter))
            axes[frame, quarter].set_title(f"{name}, {90 * quarter}°")
    lines = [_probability_line(model, values) for model, values in probabilities.items()]
    title = f"probability of {_classes(threshold_percent)[1]} at 0, 90, 180, 270°"
    figure.supxlabel("\n".join([title, *lines]), fontsize=_FONT_PT + 1)
    return figure


def _classes(threshold_percent: float) -> tuple[str, str]:
    """Names of the upper and the lower class."""
    return f"LVEF > {threshold_percent:g} %", f"LVEF <= {threshold_percent:g} %"


def _probability_line(model: str, values: Sequence[float]) -> str:
    flips = sum((value > 0.5) != (values[0] > 0.5) for value in values)
    return f"{model}: " + "   ".join(f"{value:.3f}" for value in values) + f"   ({flips} of 3 flip)"


def _grid(rows: int, columns: int, *, height_px: int, images: bool = True) -> tuple[Any, Any]:
    """Return an empty figure 1200 px wide and its axes, [rows, columns]; those of images have no ticks."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": _FONT_PT, "axes.titlesize": _FONT_PT, "figure.titlesize": _FONT_PT}):
        figure = Figure(figsize=(WIDTH_PX / _DPI, height_px / _DPI), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
    if images:
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
    return figure, axes


def _draw_image(axis: Any, image_SS: Images) -> None:
    axis.imshow(image_SS, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
