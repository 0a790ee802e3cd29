"""Pictures of an explanation: attention over a clip as PNG and GIF, the map of embeddings, the nearest known hearts as PNG.

Colours are those of Okabe and Ito; what raises the ejection fraction is vermilion, what lowers it is blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.coreecho.evaluation import Answers
from training.coreecho.explain import Attention, Neighbour, principal_axes, project
from training.enf.figures import write_png

FloatArray = NDArray[np.float64]
Frames = NDArray[np.uint8]

_RAISES, _LOWERS = np.array([213.0, 94.0, 0.0]), np.array([0.0, 114.0, 178.0])
_STRENGTH = 0.75
_SHOWN_FRAMES = 6
_GIF_SIDE_PX = 336
_DPI = 100


def overlay(clip_TSS: Frames, attention: Attention) -> Frames:
    """Return the clip in colour, uint8 [T, S, S, 3], the attention laid over it; where there is none it stays grey."""
    grey_TSS3 = np.repeat(clip_TSS[..., None].astype(np.float64), 3, axis=-1)
    raises, lowers = (
        _STRENGTH * part[..., None].astype(np.float64) for part in (attention.raises_TSS, attention.lowers_TSS)
    )
    kept = np.clip(1 - raises - lowers, 0, 1)
    return np.asarray(np.clip(np.rint(kept * grey_TSS3 + raises * _RAISES + lowers * _LOWERS), 0, 255), np.uint8)


def write_gif(clip_TSS: Frames, attention: Attention, step_ms: float, path: Path) -> None:
    """Write clip and overlay side by side as a GIF that runs at the clip's own speed."""
    grey_TSS3 = np.repeat(clip_TSS[..., None], 3, axis=-1)
    both = np.concatenate([grey_TSS3, overlay(clip_TSS, attention)], axis=2)
    size = (2 * _GIF_SIDE_PX, _GIF_SIDE_PX)
    frames = [Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR) for frame in both]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=max(20, round(step_ms)), loop=0)


def write_attention(clip_TSS: Frames, attention: Attention, title: str, path: Path) -> None:
    """Write evenly spaced frames above the same frames with the attention laid over them."""
    chosen = np.unique(np.linspace(0, len(clip_TSS) - 1, _SHOWN_FRAMES).round().astype(int))
    figure, axes = _grid(2, len(chosen), height_px=460)
    coloured = overlay(clip_TSS, attention)
    for column, frame in enumerate(chosen):
        axes[0, column].imshow(clip_TSS[frame], cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(f"frame {frame + 1}")
        axes[1, column].imshow(coloured[frame])
    figure.suptitle(f"{title}; vermilion raises the answer, blue lowers it")
    _write(figure, path)


def write_map(answers: Answers, path: Path, *, seed: int) -> None:
    """Write the embeddings in two dimensions, by UMAP and by PCA, coloured by the true ejection fraction."""
    positions, method = project(answers.embeddings_NE, seed=seed)
    figure, axes = _grid(1, 2, height_px=560)
    panels = ((positions, method), (principal_axes(answers.embeddings_NE), "PCA"))
    for axis, (place, name) in zip(axes[0], panels, strict=True):
        points = axis.scatter(place[:, 0], place[:, 1], c=answers.truth_percent, s=22, cmap="viridis")
        axis.set_title(f"{name} of {len(place)} videos")
    figure.colorbar(points, ax=axes[0].tolist(), label="true LVEF, %")
    _write(figure, path)


def write_nearest(asked: Frames, title: str, known: Sequence[tuple[Frames, Neighbour]], path: Path) -> None:
    """Write the first frame of a video beside those of its nearest known videos, with distance and true LVEF."""
    figure, axes = _grid(1, 1 + len(known), height_px=330)
    axes[0, 0].imshow(asked, cmap="gray", vmin=0, vmax=255)
    axes[0, 0].set_title(title)
    for axis, (image, neighbour) in zip(axes[0, 1:], known, strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{neighbour.key}\nLVEF {neighbour.ef_percent:.0f} %, distance {neighbour.distance:.2f}")
    _write(figure, path)


def _grid(rows: int, columns: int, *, height_px: int) -> tuple[Any, Any]:
    """Return an empty figure 1200 px wide and its axes, [rows, columns], without ticks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1200 / _DPI, height_px / _DPI), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def _write(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(figure, path)
