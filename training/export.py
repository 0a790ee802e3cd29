"""A trained network to a bundle: graph, calibration, golden vectors, measured metrics, model card.

The bundle is written twice: first without metrics, so that they can be measured through the bundle itself.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import structlog
from torch import nn

from engines.bundle.calibration import Postprocess, WideIntervals
from engines.bundle.golden import GoldenCase
from engines.bundle.manifest import (
    CARD_NAME,
    EMBEDDING_NAME,
    GOLDEN_NAME,
    GRAPH_NAME,
    Golden,
    ManifestDraft,
    OutOfDistribution,
)
from engines.bundle.parts import TensorSpec
from engines.bundle.second_graphs import CrossModalPart
from engines.bundle.writer import CrossModalFiles, GateFiles, write_bundle
from engines.predictors.distance import EmbeddingStatistics
from engines.records import Modality
from training.config import BundleConfig, DataConfig
from training.data.heart_arrays import HeartArrays
from training.data.splits import Split
from training.data.targets import DISEASES, ESTIMATES
from training.evaluate import evaluate_bundle
from training.golden import golden_cases
from training.onnx_graph import PARITY_TOLERANCE, check_direction, check_parity, export_graph
from training.outputs import HeartOutputs, heart_outputs
from training.postprocess import (
    LIMIT_PERCENTILE,
    cmr_postprocess,
    distance_limit,
    ecg_postprocess,
    echo_postprocess,
    wide_intervals,
)
from training.signature import input_spec, output_specs
from training.view_gate import GatePart

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class CrossModalRelease:
    """What an ECG bundle carries to compare its embedding with cardiac MR; ``metrics`` are those of the comparison."""

    manifest: CrossModalPart
    files: CrossModalFiles
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a bundle says beyond its network.

    Args:
        data: the hearts it was trained on and how they were prepared.
        bundle: its name and words.
        batch_size: inputs that go through the network at once.
        condition: what the logit of a cardiac MR network speaks for; None for other networks.
        metrics: measured by the caller, besides those that every bundle gets.
        gate: the view check that an echo bundle carries, or None.
        cross_modal: the comparison with cardiac MR that an ECG bundle carries, or None.
        interval_by_spread: whether the interval of an echo engine grows with the spread between clips.
        estimates, diseases: what the columns of an ECG network are, in their order.
        wide_coverage_percent: of a second interval around each estimate of an ECG network; None for one interval.
        parity_tolerance: how far graph and network may differ, in the units of the outputs.
    """

    data: DataConfig
    bundle: BundleConfig
    batch_size: int
    condition: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    gate: GatePart | None = None
    cross_modal: CrossModalRelease | None = None
    interval_by_spread: bool = False
    estimates: tuple[str, ...] = ESTIMATES
    diseases: tuple[str, ...] = DISEASES
    wide_coverage_percent: float | None = None
    parity_tolerance: float = PARITY_TOLERANCE


_POSTPROCESS: dict[Modality, Callable[[HeartOutputs, Release], Postprocess]] = {
    Modality.ECHO: lambda calibration, release: echo_postprocess(
        calibration, release.bundle.coverage_percent, by_spread=release.interval_by_spread
    ),
    Modality.CMR: lambda calibration, release: cmr_postprocess(calibration, release.condition),
    Modality.ECG: lambda calibration, release: ecg_postprocess(
        calibration, release.bundle.coverage_percent, estimates=release.estimates, diseases=release.diseases
    ),
}

_PREPARED_TOLERANCE = {"clip": 1.0, "image": 1e-4, "ecg": 1e-4}
_OUTPUT_TOLERANCE = {
    "ef": 0.05,
    "logit": 5e-3,
    "estimates": 0.1,
    "disease_logits": 0.04,
    "embedding": 5e-3,
}
"""Of ``estimates`` a tenth of an EF point, millilitre or gram, the last digit that is reported: in FP16 a hundred and sixty
millilitres are off by 0.04. Of ``disease_logits`` what moves a probability by at most one percent; in FP16 they are off by half of
it."""
_FIELD_TOLERANCE = {
    "logit": 1e-4,
    "embedding": 1e-4,
    "psnr_db": 1e-3,
    "contexts": 1e-4,
    "poses": 1e-5,
    "relevance": 1e-4,
}
"""Of a network that fits a field, in FP32.

Measured over 50 inputs of the phantoms' size: ONNX Runtime gives the same bits at each level of optimisation, and OpenVINO
differs by 1e-6 in logit and embedding, 3e-7 in contexts, 2e-7 in relevance and 6e-6 dB. A hundred times that is for other
processors; reduced multiplication (TF32, bfloat16) lies outside.
"""
_PARITY_HEARTS = 8


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """Everything of a bundle but its metrics."""

    draft: ManifestDraft
    graph: bytes
    golden: list[GoldenCase]
    embedding: EmbeddingStatistics
    gate: GateFiles | None
    cross_modal: CrossModalFiles | None

    def write(self, directory: Path, metrics: dict[str, float]) -> Path:
        """Write the bundle with these metrics."""
        draft = self.draft.model_copy(update={"metrics": metrics})
        return write_bundle(
            directory,
            draft,
            onnx_bytes=self.graph,
            golden=self.golden,
            embedding=self.embedding,
            gate=self.gate,
            cross_modal=self.cross_modal,
        )


def export_bundle(release: Release, network: nn.Module, arrays: HeartArrays, split: Split, directory: Path) -> Path:
    """Write the bundle of a trained network and return its folder.

    Args:
        release: what the bundle says.
        network: trained.
        arrays: of the run's hearts.
        split: of the run's hearts; calibration hearts calibrate, test hearts are measured.
        directory: the bundle's folder; its parent is made where missing.

    Raises:
        ParityError: when graph and network disagree.
    """
    parts = _parts(release, network, arrays, split)
    spec = input_spec(release.data.preprocess)
    with tempfile.TemporaryDirectory() as scratch:
        trial = parts.write(Path(scratch) / "trial", {})
        metrics = evaluate_bundle(trial, arrays, split.test, spec)
    directory.parent.mkdir(parents=True, exist_ok=True)
    checked = {} if release.cross_modal is None else release.cross_modal.metrics
    parts.write(directory, metrics | dict(release.metrics) | dict(checked))
    _log.info("bundle.written", bundle=directory.name, bytes=sum(file.stat().st_size for file in directory.iterdir()))
    return directory


def copy_card(bundle: Path, docs: Path) -> Path:
    """Copy the model card of a bundle into the documentation and return its path."""
    docs.mkdir(parents=True, exist_ok=True)
    target = docs / f"{bundle.name}.md"
    target.write_bytes((bundle / CARD_NAME).read_bytes())
    return target


def _parts(release: Release, network: nn.Module, arrays: HeartArrays, split: Split) -> BundleParts:
    network.eval()
    spec = input_spec(release.data.preprocess)
    batch = release.batch_size
    training = heart_outputs(network, arrays, split.train, batch_size=batch)
    calibration = heart_outputs(network, arrays, split.calibration, batch_size=batch)
    answers = {"estimates": len(release.estimates), "disease_logits": len(release.diseases)}
    outputs = output_specs(release.data.modality, training.shapes(), answers)
    graph = export_graph(network, spec, [output.name for output in outputs])
    hearts = arrays.usable(split.test)[:_PARITY_HEARTS]
    examples = np.stack([arrays.inputs[heart, 0] for heart in hearts])
    parity = check_parity(graph, network, spec.name, examples, tolerance=release.parity_tolerance)
    if release.data.modality is Modality.ECG:
        check_direction(graph, network, spec.name, examples)
    _log.info("graph.checked", bytes=len(graph), largest_difference=parity)
    embedding = EmbeddingStatistics.fit(training.all_rows("embedding"))
    draft = ManifestDraft(
        schema_version=_schema_version(release),
        name=release.bundle.name,
        version=release.bundle.version,
        modality=release.data.modality,
        method=release.bundle.method,
        intended_use=release.bundle.intended_use,
        training_data=release.bundle.training_data,
        created_utc=dt.datetime.now(dt.UTC).replace(microsecond=0),
        graph=GRAPH_NAME,
        preprocess=release.data.preprocess,
        inputs=(spec,),
        outputs=outputs,
        postprocess=_POSTPROCESS[release.data.modality](calibration, release),
        out_of_distribution=OutOfDistribution(
            file=EMBEDDING_NAME,
            output="embedding",
            limit_distance=distance_limit(embedding, calibration),
            limit_percentile=LIMIT_PERCENTILE,
        ),
        golden=_golden_section(spec, outputs),
        metrics={},
        gate=None if release.gate is None else release.gate.manifest,
        wide_intervals=_wide_intervals(calibration, release),
        cross_modal=None if release.cross_modal is None else release.cross_modal.manifest,
    )
    golden = golden_cases(release.data, graph, spec, count=release.bundle.golden_hearts)
    gate = None if release.gate is None else release.gate.files
    cross = None if release.cross_modal is None else release.cross_modal.files
    return BundleParts(draft=draft, graph=graph, golden=golden, embedding=embedding, gate=gate, cross_modal=cross)


def _schema_version(release: Release) -> Literal[1, 2, 3, 4]:
    """The oldest schema that can say it, so that older readers read what they can."""
    if release.cross_modal is not None:
        return 4
    if release.wide_coverage_percent is not None:
        return 3
    return 1 if release.gate is None else 2


def _wide_intervals(calibration: HeartOutputs, release: Release) -> WideIntervals | None:
    if release.wide_coverage_percent is None:
        return None
    return wide_intervals(calibration, release.wide_coverage_percent, release.estimates)


def _golden_section(spec: TensorSpec, outputs: tuple[TensorSpec, ...]) -> Golden:
    return Golden(
        file=GOLDEN_NAME,
        prepared_tolerance={spec.name: _PREPARED_TOLERANCE[spec.name]},
        output_tolerance=output_tolerances([output.name for output in outputs]),
    )


def output_tolerances(names: Sequence[str]) -> dict[str, float]:
    """Return how far each released output of a network may lie from the stored one, by name, in its unit."""
    table = _FIELD_TOLERANCE if "psnr_db" in names else _OUTPUT_TOLERANCE
    return {name: table[name] for name in names}
