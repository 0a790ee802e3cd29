"""An ECG from its DICOM file to the estimates on one core: the engine against eager torch and against the published way.

Networks: the encoder that two CPU cores train, and size T with weights in 8 bits, each with the heads of a bundle, untrained,
which costs the same. Each is exported as for a bundle. Three parts are timed: the network alone; the whole way with the
engine's decoder and preparation before either network; and the published way, pydicom's waveform, asymmetric least squares as
published, eager torch. Before anything is timed every arm answers: the networks agree to a cosine of 0.9999, and the published
baseline equals the engine's banded solution. All arms of a part run in one process, in changing order, and
what is counted is processor time.

    python -m tests.benchmarks.bench_ecg --out ecg.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import openvino
import pydicom
import torch
from numpy.typing import NDArray

from engines.decode.ecg import decode_ecg
from engines.preprocess.registry import prepare
from engines.records import EcgRecord
from engines.runtime.openvino_runner import compiled
from tests.benchmarks.bench_ecg_preprocess import SPEC, at_500_hz, published_baseline, same_baseline
from tests.benchmarks.interleave import interleaved
from training.models.ecg_vit import EcgVit, EcgVitNet, EcgVitShape
from training.onnx_graph import export_graph, opened_graph
from training.phantoms.dicom import Patient, Study, write_ecg
from training.phantoms.subjects import draw_subject
from training.signature import input_spec
from training.weight_storage import round_to_int8, with_int8_weights

OUTPUTS = ("estimates", "disease_logits", "embedding")
LEAST_COSINE = 0.9999
FASTER, WHOLE = 2.0, "the whole way"
"""How many times faster than the same in eager torch the engine is meant to be, from file to estimates."""
GOAL_ARM, PUBLISHED = "eager torch, the engine's preparation", "eager torch, published preparation"
Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Arm = Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A network as it would be released."""

    network: EcgVitNet
    graph: bytes


def main() -> int:
    """Measure and write; 1 where an arm is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    record = at_500_hz()
    content = as_dicom(record)
    rows = [row for name, make in networks().items() for row in measured(name, make(), content, options.rounds)]
    packages = ("torch", "openvino", "onnxruntime", "pydicom", "scipy", "numpy")
    environment = {name: version(name) for name in packages} | processor()
    options.out.write_text(json.dumps({"name": "ECG to estimates, one core", "rows": rows, "environment": environment}))
    return 0 if same_baseline(record) and all(row["correct"] for row in rows) else 1


def processor() -> dict[str, str]:
    """Its name, and whether it multiplies 8-bit numbers at once, on which the products of size T depend."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = sorted({"avx512_vnni", "avx_vnni", "amx_int8"} & set(text.split()))
    name = str(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"))
    return {"machine": platform.machine(), "processor": name, "8-bit products": ", ".join(found) or "none"}


def networks() -> dict[str, Callable[[], Made]]:
    """What is measured: name -> how to make it."""
    return {
        "small": lambda: made(EcgVitShape.small(), int8=False),
        "T, 8-bit weights": lambda: made(EcgVitShape.tiny(), int8=True),
    }


def made(shape: EcgVitShape, *, int8: bool) -> Made:
    """A network with the heads of a bundle, and its graph."""
    heads = {"estimates": torch.nn.Linear(shape.width, 8), "disease_logits": torch.nn.Linear(shape.width, 6)}
    network = EcgVitNet(EcgVit(shape), heads).eval()
    if int8:
        round_to_int8(network)
    graph = export_graph(network, input_spec(SPEC), OUTPUTS)
    return Made(network=network, graph=with_int8_weights(graph) if int8 else graph)


def as_dicom(record: EcgRecord) -> bytes:
    """The record as a 12-lead ECG object."""
    with tempfile.TemporaryDirectory() as folder:
        subject = draw_subject(np.random.default_rng(0))
        study = Study(key="bench", number=1, patient=Patient(), subject=subject, description="ECG")
        (path,) = write_ecg(study, record, np.random.default_rng(0), Path(folder))
        return path.read_bytes()


def measured(name: str, network: Made, content: bytes, rounds: int) -> list[dict[str, Any]]:
    """Rows of every part of one network."""
    return [
        row for part, arms in parts_of(network, content).items() for row in rows_of(f"{name}: {part}", arms, rounds)
    ]


def parts_of(network: Made, content: bytes) -> dict[str, dict[str, Arm]]:
    """Every arm, by what is timed; the first arm of a part is the engine."""
    openvino_run, onnx_run, eager_run = openvino_of(network), onnx_of(network), eager_of(network)
    ecg = ready(content)
    return {
        "network alone": {
            "engine (OpenVINO)": lambda: openvino_run(ecg),
            "ONNX Runtime": lambda: onnx_run(ecg),
            "eager torch": lambda: eager_run(ecg),
        },
        WHOLE: {
            "engine (OpenVINO)": lambda: openvino_run(ready(content)),
            GOAL_ARM: lambda: eager_run(ready(content)),
            PUBLISHED: lambda: eager_run(as_published(content)),
        },
    }


def ready(content: bytes) -> NDArray[np.float32]:
    """The engine's decoder and preparation, [1, 12, 5000]."""
    return prepare(decode_ecg([BytesIO(content)]), SPEC).arrays["ecg"]


def as_published(content: bytes) -> NDArray[np.float32]:
    """Pydicom's waveform without its baseline, [1, 12, 5000]; leads and sampling rate are those of the network here."""
    waveform_NL = pydicom.dcmread(BytesIO(content)).waveform_array(0)
    signal = np.asarray(waveform_NL, np.float64).T
    return (signal - published_baseline(signal)).astype(np.float32)[None]


def openvino_of(network: Made) -> Answer:
    """The engine's runtime on one thread, all outputs, as it serves."""
    request = compiled(openvino, network.graph, 1).create_infer_request()

    def run(ecg: NDArray[np.float32]) -> NDArray[np.float32]:
        found = request.infer({"ecg": ecg}, share_inputs=False, share_outputs=False)
        return joined({name: found[name] for name in OUTPUTS})

    return run


def onnx_of(network: Made) -> Answer:
    """ONNX Runtime on one thread."""
    session = opened_graph(network.graph, 1)
    return lambda ecg: joined(dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"ecg": ecg}), strict=True)))


def eager_of(network: Made) -> Answer:
    """The same network in eager torch."""

    @torch.inference_mode()
    def run(ecg: NDArray[np.float32]) -> NDArray[np.float32]:
        return joined({name: value.numpy() for name, value in network.network(torch.from_numpy(ecg)).items()})

    return run


def joined(outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """All outputs of one record in one vector."""
    return np.concatenate([np.asarray(outputs[name]).ravel() for name in OUTPUTS])


def rows_of(what: str, arms: Mapping[str, Arm], rounds: int) -> list[dict[str, Any]]:
    """One row an arm; each answers before it is timed."""
    answers = {name: arm() for name, arm in arms.items()}
    taken = interleaved(arms, rounds, clock=process_time)
    engine = next(iter(arms))
    return [
        {
            "what": what,
            "arm": name,
            "median ms": statistics.median(times),
            "engine is faster by": ratio(times, taken[engine]),
            "goal": goal(what, ratio(times, taken[engine])) if name == GOAL_ARM else "",
            "cosine": None if name == PUBLISHED else cosine(answers[name], answers[engine]),
            "correct": name == PUBLISHED or cosine(answers[name], answers[engine]) > LEAST_COSINE,
        }
        for name, times in taken.items()
    ]


def ratio(times: list[float], own: list[float]) -> float:
    """Median over the rounds of the time of an arm over that of the engine."""
    return statistics.median(time / mine for time, mine in zip(times, own, strict=True))


def goal(what: str, faster: float) -> str:
    """Whether the whole way is as much faster as it is meant to be."""
    if not what.endswith(WHOLE):
        return ""
    return f"{FASTER:g}x {'reached' if faster >= FASTER else 'missed'}"


def cosine(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Of two vectors."""
    return float(found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected)))


if __name__ == "__main__":
    sys.exit(main())
