"""The pictures of a comparison, from its first seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.enf.baselines import Classifier
from training.enf.enf_classifier import EnfClassifier
from training.enf.figures import (
    Curve,
    curve_figure,
    embedding_figure,
    gallery_figure,
    latent_overlay_figure,
    reconstruction_figure,
    turn_figure,
    write_png,
)
from training.enf.occlusion import occlusion
from training.enf.outcome import ModelOutcome
from training.enf.protocol import SeedHearts

_SHOWN = 4


def draw_pictures(
    field: EnfClassifier,
    hearts: SeedHearts,
    outcomes: Sequence[ModelOutcome],
    folder: Path,
    models: Sequence[Classifier],
) -> None:
    """Write reconstructions, latents, occlusion, a map of embeddings, turns, the learning curve and a gallery as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    images = hearts.test.views(np.arange(len(hearts.test)))
    answers = _answers(field, images)
    shown = images[:_SHOWN]
    write_png(
        reconstruction_figure(shown, reconstructions(field, shown), answers["psnr_db"][:_SHOWN]),
        folder / "reconstruction.png",
    )
    threshold = field.run.task.threshold_percent
    row = int(np.argmax(np.abs(answers["logit"][:, 0])))
    write_png(
        latent_overlay_figure(images[row], answers["poses"][row], answers["relevance"][row], threshold),
        folder / "latents.png",
    )
    removed = _occlusion(field, answers["contexts"][row])
    write_png(latent_overlay_figure(images[row], answers["poses"][row], removed, threshold), folder / "occlusion.png")
    write_png(embedding_figure(answers["embedding"], hearts.test.lvef_percent, threshold), folder / "embedding.png")
    write_png(turn_figure(outcomes), folder / "turns.png")
    write_png(curve_figure([_curve(field.folder)]), folder / "meta-learning.png")
    write_png(gallery_figure(images[row], _gallery(models, images[row]), threshold), folder / "gallery.png")


@torch.inference_mode()
def reconstructions(field: EnfClassifier, images_N2SS: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the fitted field shows of each image, float32 [N, 2, S, S]."""
    network = field.network.field
    frames = torch.from_numpy(np.ascontiguousarray(images_N2SS)).flatten(0, 1)
    values = network(frames).values
    rebuilt = torch.empty_like(frames.flatten(1))
    rebuilt[:, network.pixels] = values
    return np.asarray(rebuilt.reshape(images_N2SS.shape).numpy())


@torch.inference_mode()
def _answers(field: EnfClassifier, images_N2SS: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    batches = [
        field.network(torch.from_numpy(batch)) for batch in np.array_split(images_N2SS, max(1, len(images_N2SS) // 4))
    ]
    return {name: torch.cat([batch[name] for batch in batches]).double().numpy() for name in batches[0]}


def _occlusion(field: EnfClassifier, contexts_2NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Change of the logit without each latent of one heart, [2, N]."""
    return occlusion(field.classifier, torch.from_numpy(contexts_2NC).float()[None])[0]


def _curve(folder: Path) -> Curve:
    history = json.loads((folder / "curve.json").read_text(encoding="utf-8"))["history"]
    steps, values = zip(*history, strict=True)
    return Curve(label="PSNR of training frames after the fit, dB", steps=steps, values=values)


def _gallery(models: Sequence[Classifier], image_2SS: NDArray[np.float32]) -> dict[str, list[float]]:
    turned = np.stack([np.rot90(image_2SS, turns, axes=(1, 2)) for turns in range(4)])
    return {model.name: (1 / (1 + np.exp(-model.logits(turned)))).tolist() for model in models}
