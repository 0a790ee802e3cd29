"""Why a network says what it says of a clip: where it looks, which known hearts lie near, how the embeddings are ordered.

Everything here is numbers; ``explain_pictures`` draws them. Imported late: UMAP compiles when first used.

Letters: T frames, S pixels, N videos, E width of the embedding, C features, t h w their positions in time and space.

Source: Selvaraju et al., "Grad-CAM", ICCV 2017, with the ejection fraction for the class score and both signs kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.coreecho.evaluation import Answers

FloatArray = NDArray[np.float64]
FEWEST_FOR_UMAP = 15
_NEIGHBOURS = 15
_THIRD_STAGES = ("blocks3", "body.layer3")


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Where a clip raises the ejection fraction that is answered, and where it lowers it.

    Args:
        raises_TSS: float32, 0 to 1; 1 is the strongest place of the clip, of either sign.
        lowers_TSS: the same scale.
        ef_percent: the answer that is explained.
    """

    raises_TSS: NDArray[np.float32]
    lowers_TSS: NDArray[np.float32]
    ef_percent: float


def grad_cam(network: nn.Module, clip_1TSS: NDArray[np.uint8]) -> Attention:
    """Return the class-activation maps of one clip for the ejection fraction, from the features after the third stage.

    The gradient goes back through the regressor. It is averaged over time and space, so each feature has one weight; the
    weighted sum is split by sign, made as large as the clip and divided by its largest value over the whole clip.

    Args:
        network: clip to ``ef``; its ``encoder`` has ``blocks3`` or ``body.layer3``.
        clip_1TSS: 8-bit grey values.
    """
    network.eval()
    device = next(network.parameters()).device
    with _Watched(_third_stage(network)) as watched, torch.enable_grad():
        ef_11 = network(torch.from_numpy(clip_1TSS)[None].to(device))["ef"]
        (gradient_1Cthw,) = torch.autograd.grad(ef_11.sum(), watched.output)
    weights_1C111 = gradient_1Cthw.mean(dim=(2, 3, 4), keepdim=True)
    map_1thw = (weights_1C111 * watched.output.detach()).sum(dim=1)
    signs_12thw = torch.stack([map_1thw.clamp(min=0), (-map_1thw).clamp(min=0)], dim=1)
    large_12TSS = functional.interpolate(
        signs_12thw.float(), size=clip_1TSS.shape[1:], mode="trilinear", align_corners=False
    )
    scaled_2TSS = (large_12TSS / large_12TSS.max().clamp(min=torch.finfo(torch.float32).tiny))[0].cpu().numpy()
    return Attention(raises_TSS=scaled_2TSS[0], lowers_TSS=scaled_2TSS[1], ef_percent=float(ef_11.detach()))


class _Watched:
    """Keeps the output of a module, with its gradient, while the context lasts."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.output: Tensor

    def __enter__(self) -> Self:
        self._handle = self._module.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_error: object) -> None:
        self._handle.remove()

    def _keep(self, _module: nn.Module, _given: Any, output: Tensor) -> Tensor:
        self.output = output if output.requires_grad else output.requires_grad_()
        return self.output


def _third_stage(network: nn.Module) -> nn.Module:
    encoder: Any = network.encoder
    modules = dict(encoder.named_modules())
    for name in _THIRD_STAGES:
        if name in modules:
            return modules[name]
    raise ValueError(f"{type(encoder).__name__} has no third stage; expected one of {', '.join(_THIRD_STAGES)}")


def project(embeddings_NE: FloatArray, *, seed: int) -> tuple[FloatArray, str]:
    """Return positions [N, 2] and the name of the projection: UMAP, or PCA for fewer than 15 videos.

    Raises:
        ValueError: fewer than three videos, or a number that is not finite.

    Source: L. McInnes, J. Healy, J. Melville, arXiv 1802.03426.
    """
    if embeddings_NE.ndim != 2 or len(embeddings_NE) < 3 or not np.isfinite(embeddings_NE).all():
        raise ValueError(f"embeddings have the shape {embeddings_NE.shape}; expected finite [N, E] with N >= 3")
    if len(embeddings_NE) < FEWEST_FOR_UMAP:
        return principal_axes(embeddings_NE), f"PCA (fewer than {FEWEST_FOR_UMAP} videos, too few for UMAP)"
    import umap

    neighbours = min(_NEIGHBOURS, len(embeddings_NE) - 1)
    reducer = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(embeddings_NE), np.float64), "UMAP"


def principal_axes(embeddings_NE: FloatArray) -> FloatArray:
    """Return the first two principal components, [N, 2]."""
    from sklearn.decomposition import PCA

    return np.asarray(PCA(n_components=2, svd_solver="full").fit_transform(embeddings_NE), np.float64)


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A video of the training set: its row, how far its embedding lies, and its true ejection fraction."""

    row: int
    key: str
    distance: float
    ef_percent: float


def nearest(known: Answers, asked: Answers, *, count: int) -> list[list[Neighbour]]:
    """Return the nearest known videos of each asked one, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(count, len(known.keys))).fit(known.embeddings_NE)
    distances, rows = index.kneighbors(asked.embeddings_NE)
    return [
        [
            Neighbour(
                row=int(row), key=known.keys[row], distance=float(distance), ef_percent=float(known.truth_percent[row])
            )
            for distance, row in zip(*each, strict=True)
        ]
        for each in zip(distances, rows, strict=True)
    ]
