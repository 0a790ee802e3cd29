"""The networks of the contrast: ECG encoder, towers, and the projections that are thrown away afterwards.

Letters: B patients, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.ecg_cmr.config import ContrastStage
from training.ecg_cmr.losses import Contrast, Temperature, margin_contrast, pairwise_contrast, triplet_contrast
from training.models.ecg_vit import EcgVit


class Projection(nn.Module):
    """Linear without bias, BatchNorm, ReLU, linear: embedding [B, E] to the space of the contrast."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, embedding_BE: Tensor) -> Tensor:
        """Return [B, outputs]."""
        return self.layers(embedding_BE)


class Aligned(nn.Module):
    """An ECG encoder beside the towers of cardiac MR.

    Args:
        encoder: is trained.
        towers: by name of the modality; those that are frozen stay so whatever ``train`` is asked for.
        stage: sizes and temperature.
    """

    def __init__(self, encoder: EcgVit, towers: Mapping[str, nn.Module], stage: ContrastStage) -> None:
        super().__init__()
        self.encoder, self.towers = encoder, nn.ModuleDict(towers)
        widths = {"ecg": encoder.width} | {name: int(tower.width) for name, tower in towers.items()}
        self.projections = nn.ModuleDict(
            {name: Projection(width, stage.hidden, stage.width) for name, width in widths.items()}
        )
        self.temperature = Temperature(stage.temperature, learned=stage.learned_temperature)

    def forward(self, ecg_BLN: Tensor, cmr: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the projections by name, [B, width] each, and the temperature.

        Args:
            ecg_BLN: the records.
            cmr: embedding of each tower, [B, E].
        """
        embeddings = {"ecg": self.encoder(ecg_BLN), **cmr}
        projected = {name: self.projections[name](rows) for name, rows in embeddings.items()}
        return projected | {"temperature": self.temperature()}


def contrast_of(projected: Mapping[str, Tensor], patients: Tensor, stage: ContrastStage) -> Contrast:
    """Return the contrast of a batch in the form that the stage asks for."""
    if stage.form == "pairwise":
        return pairwise_contrast(patients=patients, **projected)
    if stage.form == "margin":
        return margin_contrast(patients=patients, margin=stage.margin, **projected)
    weights = stage.weights
    if stage.form == "anchor":
        weights = type(weights)(ecg_ed=weights.ecg_ed, ecg_es=weights.ecg_es, ed_es=0.0)
    return triplet_contrast(patients=patients, weights=weights, **projected)


@torch.inference_mode()
def embed_ecg(encoder: EcgVit, ecg_NLN: Tensor, *, batch: int = 64) -> Tensor:
    """Return the embeddings of records, [N, E], in evaluation mode."""
    encoder.eval()
    return torch.cat([encoder(part).float() for part in ecg_NLN.split(batch)])
