"""Tiny bundles, made on the fly without torch: one linear layer, real digests, real golden vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.bundle import manifest as m
from engines.bundle.calibration import (
    CmrPostprocess,
    ConformalEstimate,
    EcgPostprocess,
    EchoPostprocess,
    Postprocess,
    ProbabilityTable,
    WideIntervals,
)
from engines.bundle.golden import GoldenCase, npz_bytes
from engines.bundle.parts import TensorSpec
from engines.bundle.second_graphs import CMR_PROJECTION, ECG_PROJECTION, CrossModalPart, ViewGate
from engines.bundle.writer import CrossModalFiles, GateFiles, write_bundle
from engines.predictors.distance import EmbeddingStatistics
from engines.predictors.similarity import GRID, SimilarityStatistics
from engines.preprocess.cmr_volume import CmrVolumeSpec, prepare_volumes
from engines.preprocess.registry import prepare
from engines.preprocess.spec import CmrSpec, EcgSpec, EchoSpec
from engines.records import ArrayFrames, CineLoop, CineStack, EcgRecord, Modality, Record, SourceInstance

EMBEDDING, SHARED = 4, 8
VIEWS = ("parasternal_long_axis", "apical_four_chamber", "no_heart")
DISEASES = (
    "coronary_artery_disease",
    "atrial_fibrillation",
    "sudden_cardiac_death",
    "heart_failure",
    "myocardial_infarction",
    "cardiomyopathy",
)
ECHO = EchoSpec(
    kind="echo",
    preprocess_version=1,
    size_px=16,
    clip_frames=2,
    clips=2,
    frame_step_ms=80.0,
    frame_interval_max_ms=100.0,
    frames_min=4,
    duration_min_ms=100.0,
    short_loop="refuse",
    sector_frames=4,
    sector_deviation_min=1.0,
    sector_area_min=0.01,
    sector_area_max=1.0,
    margin_fraction=0.0,
    chroma_spread_max=10.0,
)
CMR = CmrSpec(
    kind="cmr",
    preprocess_version=2,
    size_px=16,
    pixel_spacing_mm=2.0,
    search_spacing_mm=4.0,
    slices_min=3,
    phases_min=4,
    motion_contrast_min=1.0,
    motion_fraction_min=0.1,
    ventricle_score_min=0.1,
    slice_score_min=0.1,
    percentile_low=1.0,
    percentile_high=99.0,
)
ECG = EcgSpec(
    kind="ecg",
    preprocess_version=1,
    profile="ecg_spine_v1",
    sampling_rate_hz=100,
    window_samples=200,
    window_min_s=2.0,
    window_step_s=1.0,
    source_rate_min_hz=100.0,
    source_rate_max_hz=1000.0,
    highpass_hz=0.5,
    highpass_order=2,
    scale_mv=1.0,
    flat_deviation_mv=0.001,
    flat_fraction_max=0.5,
    amplitude_max_mv=10.0,
    saturated_fraction_max=0.1,
    saturated_run_ms=50.0,
    consistency_max_mv=0.1,
)
VOLUMES = CmrVolumeSpec(
    kind="cmr_volume",
    preprocess_version=1,
    heart=CmrSpec(
        kind="cmr",
        preprocess_version=2,
        size_px=32,
        pixel_spacing_mm=5.0,
        search_spacing_mm=3.0,
        slices_min=3,
        phases_min=8,
        motion_contrast_min=3.0,
        motion_fraction_min=0.3,
        ventricle_score_min=0.05,
        slice_score_min=0.15,
        percentile_low=1.0,
        percentile_high=99.0,
    ),
    slices=12,
    slice_distance_mm=10.0,
    phases=6,
    ventricle_slices_min=6,
    slice_gap_max=1.5,
    outside_fraction_max=0.15,
)
"""Of the cross-modal check; accepts ``hearts.small_stack``."""
SPECS = {Modality.ECHO: ECHO, Modality.CMR: CMR, Modality.ECG: ECG}
SOURCE = SourceInstance(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.9.1.1", sop_instance_uid="2.25.1", series_instance_uid="2.25.2"
)


def signature(modality: Modality) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the tiny graph of a modality."""
    inputs = {
        Modality.ECHO: ("clip", "uint8", (-1, 1, 2, 16, 16)),
        Modality.CMR: ("image", "float32", (-1, 2, 16, 16)),
        Modality.ECG: ("ecg", "float32", (-1, 12, 200)),
    }
    widths = {
        Modality.ECHO: {"ef": 1},
        Modality.CMR: {"logit": 1},
        Modality.ECG: {"estimates": 3, "disease_logits": len(DISEASES)},
    }
    name, dtype, shape = inputs[modality]
    columns = {**widths[modality], "embedding": EMBEDDING}
    outputs = tuple(TensorSpec(name=key, dtype="float32", shape=(-1, width)) for key, width in columns.items())
    return (TensorSpec(name=name, dtype=dtype, shape=shape),), outputs


def conformal(quantity: str = "lvef", **changes: Any) -> ConformalEstimate:
    """An interval of +/- 5 between 0 and 100."""
    fields = {
        "quantity": quantity,
        "unit": "%",
        "coverage_percent": 90.0,
        "conformal_quantile": 5.0,
        "sd_offset": None,
        "minimum": 0.0,
        "maximum": 100.0,
    }
    return ConformalEstimate(**{**fields, **changes})


def table(condition: str = "lvef_at_most_40") -> ProbabilityTable:
    """Certain at both ends, straddling in the middle."""
    return ProbabilityTable(
        condition=condition,
        threshold_probability=0.5,
        coverage_percent=100.0,
        logits=(-4.0, -1.0, 1.0, 4.0),
        low=(0.0, 0.3, 0.4, 0.9),
        high=(0.1, 0.6, 0.7, 1.0),
    )


def postprocess(modality: Modality) -> Postprocess:
    """Calibration numbers of a modality."""
    estimates = (conformal("lvef"), conformal("rvef"), conformal("cardiac_output", unit="l/min"))
    return {
        Modality.ECHO: EchoPostprocess(modality=Modality.ECHO, lvef=conformal(), clip_sd_limit_percent=8.0),
        Modality.CMR: CmrPostprocess(
            modality=Modality.CMR, risk=table(), undecided_logits=0.0, reconstruction_gate=None
        ),
        Modality.ECG: EcgPostprocess(
            modality=Modality.ECG, estimates=estimates, conditions=tuple(map(table, DISEASES))
        ),
    }[modality]


def gate(**changes: Any) -> ViewGate:
    """A gate of three views over 16 x 16 frames."""
    fields = {
        "name": "tiny-view",
        "graph": m.GATE_GRAPH_NAME,
        "golden": m.GATE_GOLDEN_NAME,
        "golden_tolerance": 1e-3,
        "input": TensorSpec(name="frames", dtype="uint8", shape=(-1, 1, 16, 16)),
        "output": TensorSpec(name="view_logits", dtype="float32", shape=(-1, len(VIEWS))),
        "views": VIEWS,
        "accepted_view": "apical_four_chamber",
        "threshold_probability": 0.7,
        "margin_probability": 0.4,
        "frames": 4,
        "loops_max": 2,
        "trusted_labels": (),
    }
    return ViewGate(**{**fields, **changes})


def wide_intervals(**changes: Any) -> WideIntervals:
    """95 percent, twice and three times as wide as ``conformal``."""
    fields = {"coverage_percent": 95.0, "conformal_quantiles": (10.0, 15.0, 10.0)}
    return WideIntervals(**{**fields, **changes})


def cross_modal(**changes: Any) -> CrossModalPart:
    """A cross-modal check of volumes in a space of 8 dimensions, for pairs within a week."""
    inputs = {"embedding": (-1, EMBEDDING), "volumes": (-1, 2, 12, 32, 32), "slice_mask": (-1, 12)}
    fields = {
        "graph": m.CROSS_MODAL_GRAPH_NAME,
        "golden": m.CROSS_MODAL_GOLDEN_NAME,
        "statistics": m.SIMILARITY_NAME,
        "preprocess": VOLUMES,
        "inputs": tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in inputs.items()),
        "outputs": tuple(
            TensorSpec(name=name, dtype="float32", shape=(-1, SHARED)) for name in (ECG_PROJECTION, CMR_PROJECTION)
        ),
        "window_days": 7,
        "prepared_tolerance": 1e-4,
        "tolerance": 1e-3,
    }
    return CrossModalPart(**{**fields, **changes})


def draft(modality: Modality, **changes: Any) -> m.ManifestDraft:
    """A complete manifest of a tiny bundle."""
    inputs, outputs = signature(modality)
    fields = {
        "schema_version": 1,
        "name": f"tiny-{modality.value}",
        "version": "0.1.0",
        "modality": modality,
        "method": "One linear layer.",
        "intended_use": "Tests of the software.",
        "training_data": "nothing at all",
        "created_utc": datetime(2025, 1, 1, tzinfo=UTC),
        "graph": m.GRAPH_NAME,
        "preprocess": SPECS[modality],
        "inputs": inputs,
        "outputs": outputs,
        "postprocess": postprocess(modality),
        "out_of_distribution": m.OutOfDistribution(
            file=m.EMBEDDING_NAME, output="embedding", limit_distance=50.0, limit_percentile=99.5
        ),
        "golden": m.Golden(
            file=m.GOLDEN_NAME,
            prepared_tolerance={inputs[0].name: 1e-4},
            output_tolerance={output.name: 1e-3 for output in outputs},
        ),
        "metrics": {"mean_absolute_error_percent": 4.25},
        "gate": None,
        "wide_intervals": None,
        "cross_modal": None,
    }
    return m.ManifestDraft(**{**fields, **changes})


def graph(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, bias: Mapping[str, float] | None = None
) -> bytes:
    """ONNX bytes: cast, flatten, and one matrix per output."""
    source = inputs[0]
    width = int(np.prod(source.shape[1:]))
    rng = np.random.default_rng(7)
    scale = 1e-2 / (255.0 if source.dtype == "uint8" else 1.0)
    nodes = [
        helper.make_node("Cast", [source.name], ["values"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Flatten", ["values"], ["row"], axis=1),
    ]
    constants = []
    for output in outputs:
        weights = rng.normal(size=(width, output.shape[1])).astype(np.float32) * np.float32(scale)
        offset = np.full(output.shape[1], (bias or {}).get(output.name, 0.5), dtype=np.float32)
        constants += [numpy_helper.from_array(weights, f"w_{output.name}")]
        constants += [numpy_helper.from_array(offset, f"b_{output.name}")]
        nodes.append(helper.make_node("Gemm", ["row", f"w_{output.name}", f"b_{output.name}"], [output.name]))
    body = helper.make_graph(nodes, "tiny", _values(inputs), _values(outputs), constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def ecg_record(seed: int = 0, *, seconds: float = 3.0) -> EcgRecord:
    """Twelve consistent leads of smooth noise at 250 Hz."""
    rng = np.random.default_rng(seed)
    samples = round(250 * seconds)
    lead_i, lead_ii, *chest = np.cumsum(rng.normal(size=(8, samples)), axis=1) * 0.02
    limb = [lead_i, lead_ii, lead_ii - lead_i, -(lead_i + lead_ii) / 2, lead_i - lead_ii / 2, lead_ii - lead_i / 2]
    return EcgRecord(signal_mv=np.stack([*limb, *chest]).astype(np.float32), sampling_rate_hz=250.0, source=SOURCE)


def cine_loop(seed: int = 0) -> CineLoop:
    """Six frames of noise with every optional field stated."""
    rng = np.random.default_rng(seed)
    return CineLoop(
        frames=ArrayFrames(frames_THW=rng.integers(0, 256, (6, 20, 24), dtype=np.uint8)),
        frame_times_ms=np.arange(6) * 40.0,
        region_px=(1, 2, 20, 18),
        spacing_mm=(0.5, 0.4),
        heart_rate_bpm=61.5,
        view="399214001",
        source=SOURCE,
    )


def cine_stack(seed: int = 0) -> CineStack:
    """Three slices of four phases of noise."""
    rng = np.random.default_rng(seed)
    return CineStack(
        images_SPHW=rng.integers(0, 4096, (3, 4, 8, 9), dtype=np.uint16),
        spacing_mm=(1.5, 1.25),
        slice_positions_mm=np.array([-8.0, 0.0, 8.0]),
        trigger_times_ms=np.tile(np.arange(4) * 30.0, (3, 1)),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        sources_SP=tuple(tuple(SOURCE for _ in range(4)) for _ in range(3)),
        heart_rate_bpm=None,
    )


def record(modality: Modality, seed: int = 0) -> Record:
    """A small record of a modality; only the ECG is one that preprocessing accepts."""
    makers = {Modality.ECHO: cine_loop, Modality.CMR: cine_stack, Modality.ECG: ecg_record}
    return makers[modality](seed)


def prepared_arrays(modality: Modality, seed: int = 0) -> dict[str, NDArray[Any]]:
    """What the network reads: the true preparation of an ECG, noise of the right form for the others."""
    if modality is Modality.ECG:
        return dict(prepare(ecg_record(seed), ECG).arrays)
    tensor = signature(modality)[0][0]
    noise = np.random.default_rng(seed).uniform(0, 255 if tensor.dtype == "uint8" else 1, (2, *tensor.shape[1:]))
    return {tensor.name: noise[: 2 if modality is Modality.ECHO else 1].astype(tensor.dtype)}


def write_tiny(folder: Path, modality: Modality = Modality.ECG, **changes: Any) -> Path:
    """Write a tiny bundle whose golden outputs are ONNX Runtime's."""
    manifest = draft(modality, **changes)
    onnx_bytes = graph(manifest.inputs, manifest.outputs)
    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    names = [output.name for output in manifest.outputs]
    cases = []
    for seed in range(2):
        arrays = prepared_arrays(modality, seed)
        outputs = dict(zip(names, session.run(names, arrays), strict=True))
        cases.append(GoldenCase(record=record(modality, seed), prepared=arrays, outputs=outputs))
    statistics = EmbeddingStatistics(mean=np.zeros(EMBEDDING), precision=np.eye(EMBEDDING))
    gate_files = None if manifest.gate is None else tiny_gate(manifest.gate)
    cross = None if manifest.cross_modal is None else tiny_cross_modal(manifest.cross_modal)
    return write_bundle(
        folder, manifest, onnx_bytes=onnx_bytes, golden=cases, embedding=statistics, gate=gate_files, cross_modal=cross
    )


def tiny_cross_modal(part: CrossModalPart) -> CrossModalFiles:
    """Linear projections, the golden pair of a small stack, and statistics of known pairs."""
    onnx_bytes = projections_graph(part)
    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    record, images = small_volumes(part.preprocess)
    embedding = np.random.default_rng(3).normal(size=(1, EMBEDDING)).astype(np.float32)
    arrays = {part.inputs[0].name: embedding, **{tensor.name: images[tensor.name] for tensor in part.images}}
    names = [output.name for output in part.outputs]
    outputs = dict(zip(names, session.run(names, arrays), strict=True))
    statistics = SimilarityStatistics(own=np.linspace(-0.5, 1.0, GRID), others=np.linspace(-1.0, 0.8, GRID))
    case = GoldenCase(record=record, prepared=arrays, outputs=outputs)
    return CrossModalFiles(graph=onnx_bytes, golden=[case], statistics=statistics)


@cache
def small_volumes(spec: CmrVolumeSpec) -> tuple[CineStack, Mapping[str, NDArray[Any]]]:
    """A small stack and what it is prepared to."""
    from tests.doubles.hearts import small_stack  # it needs the phantoms, which few tests do

    stack = small_stack(1)
    return stack, prepare_volumes(stack, spec).arrays


def projections_graph(part: CrossModalPart) -> bytes:
    """ONNX bytes: unit vectors of one matrix times the embedding, and of one times everything of the images."""
    rng = np.random.default_rng(11)
    first, *images = part.inputs
    # What is flat already is left alone: OpenVINO would drop the node and name the input after its output.
    rows = {tensor.name: f"row_{tensor.name}" if len(tensor.shape) > 2 else tensor.name for tensor in images}
    nodes = [helper.make_node("Flatten", [name], [row], axis=1) for name, row in rows.items() if row != name]
    nodes.append(helper.make_node("Concat", list(rows.values()), ["row_images"], axis=1))
    constants = [numpy_helper.from_array(np.array([1]), "axis")]
    sizes = (first.shape[1], sum(int(np.prod(tensor.shape[1:])) for tensor in images))
    for output, row, size in zip(part.outputs, (first.name, "row_images"), sizes, strict=True):
        weights = rng.normal(size=(size, output.shape[1])).astype(np.float32) / np.float32(size)
        constants.append(numpy_helper.from_array(weights, f"w_{output.name}"))
        nodes += [
            helper.make_node("MatMul", [row, f"w_{output.name}"], [f"raw_{output.name}"]),
            helper.make_node("ReduceL2", [f"raw_{output.name}", "axis"], [f"length_{output.name}"], keepdims=1),
            helper.make_node("Div", [f"raw_{output.name}", f"length_{output.name}"], [output.name]),
        ]
    body = helper.make_graph(nodes, "tiny_pair", _values(part.inputs), _values(part.outputs), constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def tiny_gate(part: ViewGate) -> GateFiles:
    """A linear gate and its golden logits."""
    onnx_bytes = graph((part.input,), (part.output,))
    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    frames = np.random.default_rng(5).integers(0, 256, (2, *part.input.shape[1:]), dtype=np.uint8)
    (logits,) = session.run([part.output.name], {part.input.name: frames})
    return GateFiles(graph=onnx_bytes, golden=npz_bytes({part.input.name: frames, part.output.name: logits}))


def _values(tensors: Sequence[TensorSpec]) -> list[Any]:
    return [
        helper.make_tensor_value_info(
            tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), ["batch", *tensor.shape[1:]]
        )
        for tensor in tensors
    ]
