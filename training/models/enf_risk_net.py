"""The released network: fit of both frames and classifier in one graph, and everything a report wants to know of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.models.enf_frozen import FrozenField, psnr_db
from training.models.invariant_transformer import FRAMES, InvariantTransformer


class EnfRiskNet(nn.Module):
    """Image float32 [B, 2, S, S], 0 to 1, to the named outputs of the bundle.

    ``logit`` [B, 1], ``embedding`` [B, E], ``psnr_db`` [B, 2], ``contexts`` [B, 2, N, C], ``poses`` [B, N, 3] (the same
    for all, half fields of view and radian), ``relevance`` [B, 2, N]. The embedding is what the classifier pools, mean
    and spread of the contexts of each frame, and the PSNR: it does not turn with the image either.

    Letters: B hearts, S pixels, N latents, C context, E = D + 4 * C + 2, D width of the classifier.
    """

    OUTPUTS = ("logit", "embedding", "psnr_db", "contexts", "poses", "relevance")

    def __init__(self, field: FrozenField, classifier: InvariantTransformer, poses: Tensor) -> None:
        super().__init__()
        self.field, self.classifier = field, classifier
        self.register_buffer("poses", poses.float())

    def forward(self, image_BFSS: Tensor) -> dict[str, Tensor]:
        """Return the named outputs."""
        poses: Any = self.poses
        fitted = self.field(image_BFSS.flatten(0, 1))
        contexts = fitted.contexts.unflatten(0, (-1, FRAMES))  # [B, 2, N, C]
        psnr = psnr_db(fitted.errors).unflatten(0, (-1, FRAMES))  # [B, 2]
        answer = self.classifier(contexts)
        return {
            "logit": answer["logit"],
            "embedding": torch.cat([answer["pooled"], self._statistics(contexts), psnr / 10.0], dim=1),
            "psnr_db": psnr,
            "contexts": contexts,
            "poses": poses.expand(image_BFSS.shape[0], *poses.shape),
            "relevance": answer["relevance"],
        }

    def _statistics(self, contexts_BFNC: Tensor) -> Tensor:
        """Return mean and spread over the latents of each frame, in units of the training set, [B, 4 * C]."""
        standard = (contexts_BFNC - self.classifier.mean) / self.classifier.spread
        mean = standard.mean(dim=2)
        spread = (standard - mean[:, :, None]).square().mean(dim=2).sqrt()
        return torch.cat([mean.flatten(1), spread.flatten(1)], dim=1)
