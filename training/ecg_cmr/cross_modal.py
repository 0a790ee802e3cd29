"""A trained contrast to the cross-modal check of an ECG bundle: one graph, statistics of known pairs, golden pairs.

The projections that the contrast is trained with are thrown away for the engine and kept for the check. Nothing was trained or
chosen on the known pairs. Called by ``release``; ``engines.predictors.cross_modal`` serves it.

Letters: B patients, N known pairs, E width of the ECG's embedding, D slices, S pixels, T phases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from engines.bundle.golden import GoldenCase
from engines.bundle.manifest import CROSS_MODAL_GOLDEN_NAME, CROSS_MODAL_GRAPH_NAME, SIMILARITY_NAME
from engines.bundle.parts import TensorSpec
from engines.bundle.second_graphs import CMR_PROJECTION, ECG_PROJECTION, CrossModalPart, prepared_shapes
from engines.bundle.writer import CrossModalFiles
from engines.errors import Refusal
from engines.predictors.similarity import LOW_PERCENT, SimilarityStatistics, directions
from engines.preprocess.cmr_volume import prepare_volumes
from engines.preprocess.registry import prepare
from engines.records import CineStack
from training.data.sources.paired_subjects import Pair, draw_pair
from training.ecg_cmr.alignment import Aligned, embed_ecg
from training.ecg_cmr.config import EcgCmrRun
from training.ecg_cmr.embeddings import projections
from training.ecg_cmr.frozen import Frozen
from training.ecg_cmr.release_plan import ReleasePlan
from training.ecg_cmr.retrieval import retrieval
from training.ecg_cmr.store import PairStore
from training.ecg_cmr.tower_inputs import Look
from training.export import CrossModalRelease
from training.onnx_graph import exported, require_direction, run_named

FloatArray = NDArray[np.float64]
Arrays = dict[str, NDArray[np.float32]]
OUTPUTS = (ECG_PROJECTION, CMR_PROJECTION)
_IMAGES: dict[Look, tuple[str, ...]] = {
    "slice": ("cine",),
    "slice_time": ("cine",),
    "ed_volume": ("volumes", "slice_mask"),
    "es_volume": ("volumes", "slice_mask"),
}
"""What each look is made of, by name of the prepared arrays."""
_TOLERANCE, _PREPARED_TOLERANCE = 2e-3, 1e-3
"""Of a number of a unit vector, and of grey values with a standard deviation of 1."""
_GOLDEN_PAIRS, _TRIES_PER_PAIR = 2, 10
_PARITY_PAIRS = 8
_log = structlog.get_logger()


class PairProjections(nn.Module):
    """Embedding of an ECG and prepared images to two unit vectors, whose dot product is their similarity.

    Of two towers the unit vectors stand side by side divided by the root of 2, and the ECG's twice, so that the dot product is
    the mean of both cosines.

    Args:
        run: says what the towers look at.
        aligned: trained.
    """

    def __init__(self, run: EcgCmrRun, aligned: Aligned) -> None:
        super().__init__()
        self.looks = {name: tower.look for name, tower in zip(run.names, run.towers, strict=True)}
        self.projections = aligned.projections
        self.towers = nn.ModuleDict({name: _bare(aligned.towers[name]) for name in self.looks})
        self.width = aligned.encoder.width

    def forward(self, embedding_BE: Tensor, images: Tensor, mask_BD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return both projections, [B, P] each.

        Args:
            embedding_BE: of the ECG.
            images: ``volumes`` [B, 2, D, S, S], or ``cine`` [B, 1, T, S, S] for towers that look at the mid slice.
            mask_BD: ``slice_mask`` of volumes.
        """
        ecg = functional.normalize(self.projections["ecg"](embedding_BE), dim=1)
        cmr = [self._projected(name, look, images, mask_BD) for name, look in self.looks.items()]
        share = len(cmr) ** -0.5
        return torch.cat([ecg] * len(cmr), dim=1) * share, torch.cat(cmr, dim=1) * share

    def _projected(self, name: str, look: Look, images: Tensor, mask_BD: Tensor | None) -> Tensor:
        embedding = self.towers[name](*_seen(look, images, mask_BD))
        return functional.normalize(self.projections[name](embedding), dim=1)


def _bare(tower: nn.Module) -> nn.Module:
    """The network itself: the exporter cannot look through a block without gradients."""
    return tower.network if isinstance(tower, Frozen) else tower


def _seen(look: Look, images: Tensor, mask_BD: Tensor | None) -> tuple[Tensor, ...]:
    """As ``tower_inputs.seen_by`` takes it from a store."""
    if look == "slice":
        return (images[:, :, 0],)
    if look == "slice_time":
        return (images,)
    assert mask_BD is not None
    return images[:, ("ed_volume", "es_volume").index(look), None], mask_BD


def cross_modal_release(run: EcgCmrRun, aligned: Aligned, store: PairStore, plan: ReleasePlan) -> CrossModalRelease:
    """Return what the bundle of a variant with towers compares by.

    Args:
        run: the variant.
        aligned: trained.
        store: known pairs whom nothing was trained or chosen on.
        plan: of the release.

    Raises:
        ParityError: graph and network disagree.
        ValueError: too few known pairs, or too few golden pairs were accepted.
    """
    network = PairProjections(run, aligned).eval()
    part = _manifest(network, run, plan)
    graph = exported(network, part.inputs, OUTPUTS)
    least = check_projections(graph, network, _inputs_of(part, aligned, store, range(min(_PARITY_PAIRS, len(store)))))
    _log.info("cross_modal.checked", bytes=len(graph), least_cosine=least)
    ecg_NE, cmr_NE = projections(run, aligned, store)
    files = CrossModalFiles(
        graph=graph,
        golden=golden_pairs(part, graph, aligned, plan),
        statistics=SimilarityStatistics.fit(ecg_NE, cmr_NE, store.patients),
    )
    metrics = known_pair_metrics(ecg_NE, cmr_NE, store.patients)
    return CrossModalRelease(manifest=part, files=files, metrics=metrics)


def _manifest(network: PairProjections, run: EcgCmrRun, plan: ReleasePlan) -> CrossModalPart:
    assert run.contrast is not None
    width = run.contrast.width * len(run.towers)
    return CrossModalPart(
        graph=CROSS_MODAL_GRAPH_NAME,
        golden=CROSS_MODAL_GOLDEN_NAME,
        statistics=SIMILARITY_NAME,
        preprocess=plan.pairs.cmr,
        inputs=(TensorSpec(name="embedding", dtype="float32", shape=(-1, network.width)), *_image_specs(run, plan)),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=(-1, width)) for name in OUTPUTS),
        window_days=plan.window_days,
        prepared_tolerance=_PREPARED_TOLERANCE,
        tolerance=_TOLERANCE,
    )


def _image_specs(run: EcgCmrRun, plan: ReleasePlan) -> Iterator[TensorSpec]:
    shapes = prepared_shapes(plan.pairs.cmr)
    for name in dict.fromkeys(name for tower in run.towers for name in _IMAGES[tower.look]):
        yield TensorSpec(name=name, dtype="float32", shape=shapes[name])


@torch.inference_mode()
def check_projections(graph: bytes, network: PairProjections, inputs: Mapping[str, NDArray[np.float32]]) -> float:
    """Return the least cosine between the projections of graph and network.

    Raises:
        ParityError: it does not exceed ``LEAST_COSINE``.
    """
    expected = network.eval()(*(torch.from_numpy(array) for array in inputs.values()))
    found = run_named(graph, inputs)
    named = zip(OUTPUTS, expected, strict=True)
    return min(require_direction(rows, torch.from_numpy(found[name]), f"{name}s") for name, rows in named)


def _inputs_of(part: CrossModalPart, aligned: Aligned, store: PairStore, rows: Sequence[int]) -> Arrays:
    """Inputs of the graph from pairs of a store, which leaves out the channel of a cine."""
    ecg = torch.from_numpy(np.asarray(store.read("ecg", rows), np.float32))
    given = {"embedding": embed_ecg(aligned.encoder, ecg).numpy()}
    for tensor in part.images:
        stored = np.asarray(store.read(tensor.name, rows), np.float32)
        given[tensor.name] = stored.reshape(len(rows), *tensor.shape[1:])
    return given


def golden_pairs(part: CrossModalPart, graph: bytes, aligned: Aligned, plan: ReleasePlan) -> list[GoldenCase]:
    """Return pairs of the hearts that follow those of the release.

    Raises:
        ValueError: the preprocessing refuses too many of the thinned stacks.
    """
    source, cases = plan.ecgs, list[GoldenCase]()
    first = source.first + source.patients
    for index in range(first, first + _TRIES_PER_PAIR * _GOLDEN_PAIRS):
        if len(cases) == _GOLDEN_PAIRS:
            break
        pair = draw_pair(source.seed, index, source.cohort, plan.pairs.scan)
        try:
            cases.append(_golden_pair(part, graph, aligned, plan, pair))
        except Refusal as refusal:
            _log.info("golden_pair.refused", patient=index, reason=refusal.reason)
    if len(cases) < _GOLDEN_PAIRS:
        raise ValueError(f"only {len(cases)} of {_GOLDEN_PAIRS} golden pairs were accepted by the preprocessing")
    return cases


def _golden_pair(part: CrossModalPart, graph: bytes, aligned: Aligned, plan: ReleasePlan, pair: Pair) -> GoldenCase:
    stack = thinned_stack(pair.cmr)
    images = prepare_volumes(stack, part.preprocess).arrays
    ecg = np.asarray(prepare(pair.ecg, plan.ecgs.ecg).arrays["ecg"], np.float32)
    embedding = embed_ecg(aligned.encoder, torch.from_numpy(ecg)).numpy()
    prepared = {"embedding": embedding, **{tensor.name: images[tensor.name] for tensor in part.images}}
    return GoldenCase(record=stack, prepared=prepared, outputs=run_named(graph, prepared))


def thinned_stack(stack: CineStack) -> CineStack:
    """Return the stack with every second row and column and every slice: its volume needs them, a bundle has little room."""
    rows, columns = stack.spacing_mm
    return replace(stack, images_SPHW=stack.images_SPHW[..., ::2, ::2].copy(), spacing_mm=(2.0 * rows, 2.0 * columns))


def known_pair_metrics(ecg_NE: FloatArray, cmr_NE: FloatArray, patients: Sequence[str]) -> dict[str, float]:
    """Return how many pairs are known, what a limit does to pairs it was not set on, and how often a partner is found.

    Each half of the patients is asked with the limit of the other half.
    """
    names, number = np.unique(np.asarray(patients), return_inverse=True)
    asked = [_limit_on(ecg_NE, cmr_NE, names[number], number % 2 == half) for half in (0, 1)]
    below, above = np.mean(asked, axis=0)
    found = retrieval(ecg_NE, cmr_NE, patients, np.ones((1, len(patients))))
    return {
        "cross_modal_pairs": float(len(patients)),
        "cross_modal_own_below_limit_percent": round(float(below), 2),
        "cross_modal_others_above_limit_percent": round(float(above), 2),
        **{f"cross_modal_{name}_share": round(float(values[0]), 4) for name, values in found.items()},
    }


def _limit_on(
    ecg_NE: FloatArray, cmr_NE: FloatArray, patients: NDArray[np.str_], asked: NDArray[np.bool_]
) -> tuple[float, float]:
    """Percent of pairs of one patient below the limit of the others, and of pairs of two patients not below it."""
    rest = ~asked
    limit = np.quantile(_cosines(ecg_NE[rest], cmr_NE[rest]).diagonal(), LOW_PERCENT / 100.0)
    cosine_NN = _cosines(ecg_NE[asked], cmr_NE[asked])
    apart_NN = patients[asked][:, None] != patients[asked][None, :]
    return 100.0 * float((cosine_NN.diagonal() < limit).mean()), 100.0 * float((cosine_NN[apart_NN] >= limit).mean())


def _cosines(ecg_NE: FloatArray, cmr_NE: FloatArray) -> FloatArray:
    return np.asarray(directions(ecg_NE) @ directions(cmr_NE).T)
