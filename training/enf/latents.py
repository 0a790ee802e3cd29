"""Contexts of fitted views: what the classifier is trained on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.bundle.parts import TensorSpec
from training.enf.config import EnfRun
from training.enf.meta import start_context
from training.enf.pairs import Pairs
from training.models.enf import Enf
from training.models.enf_frozen import FrozenField, psnr_db
from training.models.enf_orbits import pair_tables
from training.models.invariant_transformer import FRAMES
from training.models.latent_cloud import initial_cloud
from training.onnx_graph import export_graph

_BATCH_HEARTS = 4


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Fitted views; letters: N hearts, V views, L latents, C context.

    Args:
        contexts_NV2LC: float32.
        psnr_db: float32 [N, V, 2], how well each frame is reproduced.
        seconds: time of the fits.
    """

    contexts_NV2LC: NDArray[np.float32]
    psnr_db: NDArray[np.float32]
    seconds: float


def frozen_field(run: EnfRun, enf: Enf, size: int) -> FrozenField:
    """Return the fit of the engine for images of ``size`` pixels."""
    tables = pair_tables(size, run.shape.latents, run.shape.neighbours)
    return FrozenField(
        enf,
        tables,
        window=float(initial_cloud(run.shape.latents, 1).window[0]),
        start=start_context(run),
        steps=run.fit.steps,
        learning_rate=run.fit.learning_rate,
    ).eval()


class FieldRunner:
    """The fit as the engine will run it: the field alone as a graph in ONNX Runtime, twice as fast as eager torch.

    On a GPU it is eager torch, without TF32, which does not resolve the gradients of the fit.

    Args:
        field: of a trained decoder.
        size_px: S.
        device: ``cpu`` for ONNX Runtime, else eager torch there.
    """

    def __init__(self, field: FrozenField, size_px: int, device: str = "cpu") -> None:
        self._eager = None if device == "cpu" else copy.deepcopy(_FieldOutputs(field)).to(device)
        if self._eager is not None:
            torch.set_float32_matmul_precision("highest")
            return
        spec = TensorSpec(name="image", dtype="float32", shape=(-1, 2, size_px, size_px))
        graph = export_graph(_FieldOutputs(field), spec, ["contexts", "psnr_db"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def fit(self, images_N2SS: NDArray[np.float32]) -> Latents:
        """Fit images as one view each."""
        contexts, psnr, started = [], [], time.perf_counter()
        for start in range(0, len(images_N2SS), _BATCH_HEARTS):
            found = self._run(np.ascontiguousarray(images_N2SS[start : start + _BATCH_HEARTS]))
            contexts.append(found[0][:, None])
            psnr.append(found[1][:, None])
        return Latents(
            contexts_NV2LC=np.concatenate(contexts),
            psnr_db=np.concatenate(psnr),
            seconds=time.perf_counter() - started,
        )

    @torch.inference_mode()
    def _run(self, batch_N2SS: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Contexts and PSNR of one batch."""
        names = ["contexts", "psnr_db"]
        if self._eager is None:
            found: list[NDArray[np.float32]] = self._session.run(names, {"image": batch_N2SS})
            return found
        device = next(self._eager.buffers()).device
        outputs = self._eager(torch.from_numpy(batch_N2SS).to(device))
        return [outputs[name].cpu().numpy() for name in names]


class _FieldOutputs(nn.Module):
    """The field with named outputs for images of both frames."""

    def __init__(self, field: FrozenField) -> None:
        super().__init__()
        self.field = field

    def forward(self, image_BFSS: Tensor) -> dict[str, Tensor]:
        fitted = self.field(image_BFSS.flatten(0, 1))
        psnr = psnr_db(fitted.errors).unflatten(0, (-1, FRAMES))
        return {"contexts": fitted.contexts.unflatten(0, (-1, FRAMES)), "psnr_db": psnr}


def fit_views(  # noqa: PLR0913 - what is fitted, how often, and where it is kept
    field: FieldRunner,
    pairs: Pairs,
    *,
    views: int,
    seed: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Latents:
    """Fit the plain view and ``views - 1`` random views of every heart; views that lie in ``cache`` are read.

    Args:
        field: of the trained decoder.
        pairs: hearts.
        views: per heart.
        seed: of the random views.
        cache: folder of this decoder and these hearts; one file a view.
        progress: called with views done and to do.
    """
    cache.mkdir(parents=True, exist_ok=True)
    parts = []
    for view in range(views):
        parts.append(_one_view(field, pairs, view, seed, cache / f"view-{view:02d}.npz"))
        if progress is not None:
            progress(view + 1, views)
    return Latents(
        contexts_NV2LC=np.concatenate([part.contexts_NV2LC for part in parts], axis=1),
        psnr_db=np.concatenate([part.psnr_db for part in parts], axis=1),
        seconds=sum(part.seconds for part in parts),
    )


def _one_view(field: FieldRunner, pairs: Pairs, view: int, seed: int, file: Path) -> Latents:
    if file.exists():
        with np.load(file) as stored:
            return Latents(
                contexts_NV2LC=stored["contexts"], psnr_db=stored["psnr_db"], seconds=float(stored["seconds"])
            )
    rows = np.arange(len(pairs))
    images = pairs.views(rows) if view == 0 else pairs.random_views(rows, np.random.default_rng([seed, view]))
    fitted = field.fit(images)
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, contexts=fitted.contexts_NV2LC, psnr_db=fitted.psnr_db, seconds=fitted.seconds)
    partial.replace(file)
    return fitted
