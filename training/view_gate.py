"""A trained view network to the gate of an echo bundle: graph, golden logits, threshold, and what it does on test loops.

A gate lies in a folder of its own until the release of an engine takes it (``Release.gate``). Called by ``training.release``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray
from torch import nn

from engines.bundle.golden import npz_bytes
from engines.bundle.manifest import GATE_GOLDEN_NAME, GATE_GRAPH_NAME
from engines.bundle.parts import TensorSpec
from engines.bundle.second_graphs import ViewGate
from engines.bundle.writer import GateFiles
from training.config import RunConfig, ViewDataConfig
from training.data.heart_arrays import HeartArrays
from training.data.splits import Split
from training.metrics import wilson_interval
from training.onnx_graph import check_parity, export_graph, run_graph
from training.phantoms.echo_views import APICAL_FOUR_CHAMBER, VIEWS
from training.signature import input_of

GATE_NAME, METRICS_NAME = "gate.json", "metrics.json"
OUTPUT = "view_logits"
MARGIN_PROBABILITY = 0.2
THRESHOLDS = (0.5, 0.9)
"""A view is never accepted below the first, and nothing above the second is asked for."""
PASSING_OTHERS_PERCENT = 0.5
"""Share of the other views among the calibration loops that may reach the threshold."""
LOOPS_MAX = 3
_GOLDEN_TOLERANCE = 5e-3
_GOLDEN_FRAMES = 8

FloatArray = NDArray[np.float64]
_log = structlog.get_logger()


REAL_LOOPS = "real_training_loops"
"""Metric: loops of patients that the network was trained with."""


@dataclass(frozen=True, kw_only=True)
class GatePart:
    """What an echo bundle takes over from a gate's folder; ``metrics`` are those of the gate by itself."""

    manifest: ViewGate
    files: GateFiles
    metrics: Mapping[str, float]

    @property
    def real_loops(self) -> int:
        """Loops of patients that the view check was trained with."""
        return int(self.metrics[REAL_LOOPS])


def export_gate(  # noqa: PLR0913 - a network, what it was trained on, and where it goes
    config: RunConfig, network: nn.Module, arrays: HeartArrays, split: Split, folder: Path, *, real_loops: int = 0
) -> Path:
    """Write the gate of a trained network and return its folder.

    Args:
        config: the run.
        network: trained.
        arrays: of digital hearts.
        split: of the digital hearts: calibration loops set the threshold, test loops are measured.
        folder: of the gate.
        real_loops: loops of patients that it was trained with besides.

    Raises:
        ParityError: when graph and network disagree.
        TypeError: the run is not one of views.
    """
    if not isinstance(config.data, ViewDataConfig):
        raise TypeError(f"{config.recipe} is trained on {type(config.data).__name__}; expected loops of views")
    spec = input_of(config.data)
    graph = export_graph(network.eval(), spec, [OUTPUT])
    golden = golden_frames(arrays, split)
    parity = check_parity(graph, network, spec.name, golden)
    _log.info("graph.checked", bytes=len(graph), largest_difference=parity)
    votes, views = loop_votes(graph, spec, arrays, split.calibration)
    gate = gate_manifest(config, spec, threshold_of(votes, views))
    logits = run_graph(graph, spec.name, golden)[OUTPUT]
    test_votes, test_views = loop_votes(graph, spec, arrays, split.test)
    metrics = {REAL_LOOPS: float(real_loops), **gate_metrics(gate, test_votes, test_views)}
    files = {
        gate.graph: graph,
        gate.golden: npz_bytes({spec.name: golden, OUTPUT: logits}),
        GATE_NAME: (gate.model_dump_json(indent=1) + "\n").encode(),
        METRICS_NAME: (json.dumps(metrics, indent=1) + "\n").encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read_gate(folder: Path) -> GatePart:
    """Read what ``export_gate`` wrote."""
    manifest = ViewGate.model_validate_json((folder / GATE_NAME).read_bytes())
    files = GateFiles(graph=(folder / manifest.graph).read_bytes(), golden=(folder / manifest.golden).read_bytes())
    metrics = json.loads((folder / METRICS_NAME).read_bytes())
    return GatePart(manifest=manifest, files=files, metrics=metrics)


def gate_manifest(config: RunConfig, spec: TensorSpec, threshold_probability: float) -> ViewGate:
    """Return the manifest's part; no label is trusted unless a site says so."""
    assert isinstance(config.data, ViewDataConfig)
    return ViewGate(
        name=config.bundle.name,
        graph=GATE_GRAPH_NAME,
        golden=GATE_GOLDEN_NAME,
        golden_tolerance=_GOLDEN_TOLERANCE,
        input=spec,
        output=TensorSpec(name=OUTPUT, dtype="float32", shape=(-1, len(VIEWS))),
        views=VIEWS,
        accepted_view=APICAL_FOUR_CHAMBER,
        threshold_probability=threshold_probability,
        margin_probability=MARGIN_PROBABILITY,
        frames=config.data.frames,
        loops_max=LOOPS_MAX,
        trusted_labels=(),
    )


def loop_votes(
    graph: bytes, spec: TensorSpec, arrays: HeartArrays, loops: NDArray[np.int64]
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return the mean probabilities of the usable loops, [N, V], and their true views, [N]."""
    usable = arrays.usable(loops)
    votes = [_vote(run_graph(graph, spec.name, np.array(arrays.inputs[loop, : arrays.clips[loop]]))) for loop in usable]
    return np.stack(votes), np.asarray(arrays.targets[usable, 0], np.int64)


def threshold_of(votes_NV: FloatArray, views_N: NDArray[np.int64]) -> float:
    """Return the probability that all but ``PASSING_OTHERS_PERCENT`` of the other views stay below, within ``THRESHOLDS``."""
    others = votes_NV[views_N != 0, 0]
    reached = float(np.percentile(others, 100 - PASSING_OTHERS_PERCENT)) if len(others) else THRESHOLDS[0]
    return round(min(max(reached, THRESHOLDS[0]), THRESHOLDS[1]), 3)


def gate_metrics(gate: ViewGate, votes_NV: FloatArray, views_N: NDArray[np.int64]) -> dict[str, float]:
    """Return the share of each view that passes, with its Wilson interval; the first is the one that should."""
    rivals = votes_NV[:, 1:].max(axis=1)
    passed = (votes_NV[:, 0] >= gate.threshold_probability) & (votes_NV[:, 0] - rivals >= gate.margin_probability)
    metrics = {"test_loops": float(len(views_N))}
    for number, view in enumerate(gate.views):
        metrics |= _share(f"{view}_passed_share", passed[views_N == number])
    return metrics | _share("other_views_passed_share", passed[views_N != 0])


def golden_frames(arrays: HeartArrays, split: Split) -> NDArray[np.uint8]:
    """Return the first frame of a few test loops."""
    loops = arrays.usable(split.test)[:_GOLDEN_FRAMES]
    return np.stack([arrays.inputs[loop, 0] for loop in loops])


def _share(name: str, passed: Sequence[bool] | NDArray[np.bool_]) -> dict[str, float]:
    if not len(passed):
        return {}
    measured = wilson_interval(int(np.sum(passed)), len(passed))
    return {name: measured.value, f"{name}_low": measured.low, f"{name}_high": measured.high}


def _vote(outputs: dict[str, NDArray[np.float32]]) -> FloatArray:
    logits = outputs[OUTPUT].astype(np.float64)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray((raised / raised.sum(axis=1, keepdims=True)).mean(axis=0))
